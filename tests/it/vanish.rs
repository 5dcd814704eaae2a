//! Clients that vanish in the middle of a call: nothing half done, nothing left behind.

use jobwire::proto::{GetResultRequest, ListJobsRequest, SubmitRequest, WatchResultsRequest};
use std::time::Duration;

use tokio::time::sleep;

use crate::{
    calls::{eventually, finish, get, place},
    frames::{Connection, DATA, END_HEADERS, END_STREAM, HEADERS, RST_STREAM, frame, headers},
    support::{Server, seconds, submit},
};

const METHODS: [&str; 11] = [
    "Submit",
    "BatchSubmit",
    "StreamSubmit",
    "GetResult",
    "WatchResults",
    "GetJob",
    "ListJobs",
    "CancelJob",
    "RetryJob",
    "DeleteJob",
    "GetServerInfo",
];

/// A message as gRPC frames it.
fn framed(message: &impl prost::Message) -> Vec<u8> {
    let body = message.encode_to_vec();
    [&[0][..], &(body.len() as u32).to_be_bytes(), &body].concat()
}

fn path(method: &str) -> Vec<u8> {
    headers(&format!("/jobwire.v1.JobService/{method}"))
}

#[tokio::test]
async fn half_a_request_does_nothing() {
    let server = Server::start();
    let body = framed(&submit("echo", &format!("\"{}\"", "x".repeat(1000))));
    for method in METHODS {
        for reset in [false, true] {
            let mut connection = Connection::open(&server).await;
            connection.send(&frame(HEADERS, END_HEADERS, 1, &path(method))).await;
            connection.send(&frame(DATA, 0, 1, &body[..body.len() / 2])).await;
            if reset {
                connection.send(&frame(RST_STREAM, 0, 1, &8u32.to_be_bytes())).await;
            }
        }
    }
    let client = server.client().await;
    finish(&client, submit("echo", "1")).await;
    let jobs = client.clone().list_jobs(ListJobsRequest::default()).await.unwrap().into_inner().jobs;
    assert_eq!(jobs.len(), 1, "{jobs:?}");
}

#[tokio::test]
async fn a_call_that_nobody_awaits_is_wholly_done_or_not_at_all() {
    let server = Server::start();
    let client = server.client().await;
    for n in 0..20 {
        let request = SubmitRequest { job_id: format!("job-{n}"), ..submit("nobody", "1") };
        let mut connection = Connection::open(&server).await;
        connection.send(&frame(HEADERS, END_HEADERS, 1, &path("Submit"))).await;
        connection.send(&frame(DATA, END_STREAM, 1, &framed(&request))).await;
    }
    finish(&client, submit("echo", "1")).await;
    let jobs = client.clone().list_jobs(ListJobsRequest::default()).await.unwrap().into_inner().jobs;
    for job in jobs {
        get(&client, &job.job_id).await;
    }
    // A repeat is safe either way.
    for n in 0..20 {
        place(&client, SubmitRequest { job_id: format!("job-{n}"), ..submit("nobody", "1") }).await;
    }
}

#[tokio::test]
async fn waits_and_watches_leave_with_their_callers() {
    let server = Server::with("[limits]\nmax_waits = 1\n[watch]\nmax_watchers = 1\n");
    let client = server.client().await;
    let id = place(&client, submit("nobody", "1")).await;
    let wait = GetResultRequest { job_id: id.clone(), wait: Some(seconds(45.0)), ..Default::default() };
    let submit = SubmitRequest { wait: Some(seconds(45.0)), ..submit("nobody", "1") };
    let watch = WatchResultsRequest::default();
    let short = GetResultRequest { wait: Some(seconds(0.001)), ..wait.clone() };
    for (method, body) in
        [("GetResult", framed(&wait)), ("Submit", framed(&submit)), ("WatchResults", framed(&watch))]
    {
        let is_free = async || match method {
            "WatchResults" => client.clone().watch_results(watch.clone()).await.is_ok(),
            _ => client.clone().get_result(short.clone()).await.is_ok(),
        };
        for reset in [false, true] {
            // A look takes the only place for a moment, and may have been in the way.
            let mut connection = eventually(async || {
                let mut connection = Connection::open(&server).await;
                connection.send(&frame(HEADERS, END_HEADERS, 1, &path(method))).await;
                connection.send(&frame(DATA, END_STREAM, 1, &body)).await;
                sleep(Duration::from_millis(50)).await;
                (!is_free().await).then_some(connection)
            })
            .await;
            if reset {
                connection.send(&frame(RST_STREAM, 0, 1, &8u32.to_be_bytes())).await;
                eventually(async || is_free().await.then_some(())).await;
            }
            drop(connection);
            eventually(async || is_free().await.then_some(())).await;
        }
    }
}
