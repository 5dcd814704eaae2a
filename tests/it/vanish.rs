//! Clients that vanish in the middle of a call: nothing half done, nothing left behind.

use jobwire::proto::{GetResultRequest, ListJobsRequest, SubmitRequest, WatchResultsRequest};
use std::time::Duration;

use tokio::{io::AsyncWriteExt as _, net::TcpStream};

use tokio::time::sleep;

use crate::{
    calls::{Watch, eventually, finish, get, place},
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
pub fn framed(message: &impl prost::Message) -> Vec<u8> {
    let body = message.encode_to_vec();
    [&[0][..], &(body.len() as u32).to_be_bytes(), &body].concat()
}

/// The header block of a call.
pub fn path(method: &str) -> Vec<u8> {
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

#[tokio::test]
async fn a_browser_that_goes_away_leaves_nothing_either() {
    let server = Server::with("[limits]\nmax_waits = 1\n[watch]\nmax_watchers = 1\n");
    let client = server.client().await;
    let id = place(&client, submit("nobody", "1")).await;
    let wait = GetResultRequest { job_id: id, wait: Some(seconds(45.0)), ..Default::default() };
    let short = GetResultRequest { wait: Some(seconds(0.001)), ..wait.clone() };
    let watch = WatchResultsRequest::default();
    for (method, body) in [("GetResult", framed(&wait)), ("WatchResults", framed(&watch))] {
        let is_free = async || match method {
            "WatchResults" => client.clone().watch_results(watch.clone()).await.is_ok(),
            _ => client.clone().get_result(short.clone()).await.is_ok(),
        };
        let head = format!(
            "POST /jobwire.v1.JobService/{method} HTTP/1.1\r\nhost: x\r\n\
             content-type: application/grpc-web+proto\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        let page = eventually(async || {
            let mut page = TcpStream::connect(server.address()).await.unwrap();
            page.write_all(&[head.as_bytes(), &body].concat()).await.unwrap();
            sleep(Duration::from_millis(50)).await;
            (!is_free().await).then_some(page)
        })
        .await;
        drop(page);
        eventually(async || is_free().await.then_some(())).await;
    }
}

#[tokio::test]
async fn a_request_that_never_comes_to_its_end_is_ended() {
    let server = Server::with("[limits]\nmax_wait = \"100ms\"\nmax_unary = \"300ms\"\n");
    let client = server.client().await;
    let mut watch = Watch::open(&client, WatchResultsRequest::default()).await;
    watch.replay().await;
    for method in METHODS.into_iter().filter(|&method| method != "StreamSubmit") {
        let mut connection = Connection::open(&server).await;
        connection.send(&frame(HEADERS, END_HEADERS, 1, &path(method))).await;
        let answer = connection.next(HEADERS).await.expect("an answer");
        assert_eq!((answer.stream, answer.flags & END_STREAM), (1, END_STREAM), "{method}");
    }
    // Streams are not bounded by it.
    let id = finish(&client, submit("echo", "1")).await.job_id;
    assert_eq!(watch.finished().await.job_id, id);
}
