//! Refusals for want of room or time. Those of watches and waits are with them.

use std::time::Duration;

use jobwire::proto::{JobSpec, Payload, SubmitRequest, job::State, payload::Body};
use prost::Message as _;
use tonic::Code;

use crate::{
    calls::{Refusal, accept, finish, get, place},
    changes::cancel,
    support::{Client, Server, spec, submit},
};

async fn refused(client: &Client, request: SubmitRequest) -> Refusal {
    Refusal::of(client.clone().submit(request).await)
}

fn is_full(refused: Refusal, what: &str, limit: &str) {
    assert!(refused.quota().contains(what), "{refused:?}");
    assert_eq!(refused.metadata["limit"], limit);
    assert!(refused.retry_delay() > Duration::ZERO);
    refused.is(Code::ResourceExhausted, "QUEUE_FULL").says(&["is full", "try again later", "configuration"]);
}

fn in_queue(queue: &str, payload: &str) -> SubmitRequest {
    let spec = JobSpec { queue: queue.into(), ..spec("nobody", payload) };
    SubmitRequest { spec: Some(spec), ..Default::default() }
}

#[tokio::test]
async fn a_backlog_is_bounded_by_count() {
    let server = Server::with("[limits]\nmax_unfinished = 2\n");
    let client = server.client().await;
    let first = place(&client, submit("nobody", "1")).await;
    let known = SubmitRequest { job_id: "known".into(), ..submit("nobody", "1") };
    place(&client, known.clone()).await;
    is_full(refused(&client, submit("nobody", "1")).await, "backlog", "2");
    let check = SubmitRequest { validate_only: true, ..submit("nobody", "1") };
    is_full(refused(&client, check).await, "backlog", "2");
    // What is there already needs no room.
    assert!(accept(&client, known).await.deduplicated);
    cancel(&client, &first).await.unwrap();
    place(&client, submit("nobody", "1")).await;
}

#[tokio::test]
async fn a_backlog_is_bounded_by_bytes() {
    let server = Server::with("[limits]\nmax_payload_bytes = 100\nmax_unfinished_bytes = 150\n");
    let client = server.client().await;
    let hundred = format!("\"{}\"", "x".repeat(98));
    let first = place(&client, submit("nobody", &hundred)).await;
    is_full(refused(&client, submit("nobody", &hundred)).await, "bytes", "150");
    place(&client, submit("nobody", "1")).await;
    cancel(&client, &first).await.unwrap();
    place(&client, submit("nobody", &hundred)).await;
}

#[tokio::test]
async fn a_queue_is_bounded_by_itself() {
    let server = Server::with("[queues.\"acme/mail\"]\nmax_unfinished = 1\n");
    let client = server.client().await;
    let held = place(&client, in_queue("acme/mail", "1")).await;
    is_full(refused(&client, in_queue("acme/mail", "1")).await, "acme/mail", "1");
    place(&client, in_queue("acme/web", "1")).await;
    cancel(&client, &held).await.unwrap();
    place(&client, in_queue("acme/mail", "1")).await;
}

#[tokio::test]
async fn queues_cannot_be_made_without_end() {
    let server = Server::with("[limits]\nmax_lines = 2\n");
    let client = server.client().await;
    place(&client, in_queue("a", "1")).await;
    place(&client, in_queue("b", "1")).await;
    is_full(refused(&client, in_queue("c", "1")).await, "queues", "2");
    place(&client, in_queue("a", "2")).await;
}

#[tokio::test]
async fn a_disk_that_is_nearly_full_takes_no_jobs_but_serves() {
    const RESERVE: u64 = 1 << 40;
    let mut server = Server::start();
    let client = server.client().await;
    let id = finish(&client, submit("echo", "1")).await.job_id;
    let stat = rustix::fs::statvfs(server.scratch()).unwrap();
    if stat.f_bavail * stat.f_frsize > RESERVE {
        eprintln!("this disk has more room than a reserve can be: nothing to see here");
        return;
    }
    server.kill();
    let server = server.restart_with(&format!("[store]\nreserve_bytes = {RESERVE}\n"));
    let client = server.client().await;
    let refused = refused(&client, submit("echo", "1")).await;
    assert_eq!(
        (refused.quota(), refused.metadata["reserve_bytes"].as_str()),
        ("disk", RESERVE.to_string().as_str())
    );
    assert!(refused.metadata["free_bytes"].parse::<u64>().unwrap() < RESERVE);
    assert!(refused.retry_delay() > Duration::from_secs(1));
    refused.is(Code::ResourceExhausted, "STORE_FULL").says(&["no room for new jobs", "make room"]);
    assert_eq!(get(&client, &id).await.state(), State::Succeeded);
}

#[tokio::test]
async fn a_payload_may_have_a_mebibyte() {
    let server = Server::start();
    let client = server.client().await;
    let data = |size: usize| {
        let payload = Payload { body: Some(Body::Data(vec![7; size].into())), ..Default::default() };
        let spec = JobSpec { kind: "echo".into(), payload: Some(payload), ..Default::default() };
        SubmitRequest { spec: Some(spec), ..Default::default() }
    };
    assert_eq!(finish(&client, data(1 << 20)).await.state(), State::Succeeded);
    let too_large = refused(&client, data((1 << 20) + 1)).await;
    assert_eq!(too_large.field(), "spec.payload");
    assert_eq!(
        (too_large.metadata["limit"].as_str(), too_large.metadata["size"].as_str()),
        ("1048576", "1048577")
    );
    too_large.is(Code::InvalidArgument, "TOO_LARGE").says(&["1048577", "1048576"]);
    // A message that is too large is refused before it is read.
    let size = data(4 << 20).encoded_len();
    let too_large = refused(&client, data(4 << 20)).await;
    assert_eq!(too_large.field(), "message");
    assert_eq!(
        (&*too_large.metadata["limit"], &*too_large.metadata["size"]),
        ("4194304", &*size.to_string())
    );
    too_large.is(Code::InvalidArgument, "TOO_LARGE");
}

#[tokio::test]
async fn the_largest_input_and_output_fit_one_reply() {
    const HALF: usize = 3 << 19;
    let server = Server::with(&format!("[limits]\nmax_payload_bytes = {HALF}\nmax_output_bytes = {HALF}\n"));
    let client = server.client().await;
    // As `Value`s these would be several times as large.
    let document = format!("[{}1]", "1,".repeat(HALF / 2 - 2));
    let id = finish(&client, submit("echo", &document)).await.job_id;
    let job = get(&client, &id).await;
    for payload in [job.spec.unwrap().payload.unwrap(), job.output.unwrap()] {
        assert!(!payload.omitted && payload.size_bytes == document.len() as i64);
        assert_eq!(payload.body, Some(Body::Text(document.clone())));
    }
}

#[tokio::test]
async fn a_damaged_job_is_not_handed_out() {
    let mut server = Server::start();
    let client = server.client().await;
    let id = finish(&client, submit("echo", r#""precious""#)).await.job_id;
    let sound = finish(&client, submit("echo", "1")).await.job_id;
    server.signal("TERM");
    server.ended().await;
    let store = rusqlite::Connection::open(server.data().join("jobwire.db")).unwrap();
    let damage = "UPDATE job SET payload = CAST('\"worthles\"' AS BLOB) WHERE length(payload) = 10";
    let changed = store.execute(damage, []).unwrap();
    assert_eq!(changed, 1);
    drop(store);
    let server = server.restart();
    let client = server.client().await;
    let request = jobwire::proto::GetJobRequest {
        job_id: id,
        view: jobwire::proto::JobView::Full.into(),
        ..Default::default()
    };
    let refused = Refusal::of(client.clone().get_job(request).await);
    refused.is(Code::DataLoss, "DATA_LOSS").says(&["checksum", "jobwire verify", "backup"]);
    assert_eq!(get(&client, &sound).await.state(), State::Succeeded);
}
