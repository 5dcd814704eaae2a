//! StreamSubmit: one verdict for each item.

use std::{collections::HashMap, time::Duration};

use futures_util::{StreamExt as _, stream};
use jobwire::proto::{
    ListJobsRequest, StreamSubmitRequest, StreamSubmitResponse, SubmitRequest,
    stream_submit_response::Verdict,
};
use prost::Message as _;
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Status, Streaming};

use crate::{
    calls::{Refusal, accept, get, result},
    postgres,
    support::{Client, PATIENCE, Server, seconds, submit},
};

fn item(sequence: i64, request: SubmitRequest) -> StreamSubmitRequest {
    StreamSubmitRequest { sequence, request: Some(request) }
}

/// A name that would be many times as long if it were told.
fn unreadable() -> SubmitRequest {
    let mut request = submit("echo", "1");
    request.spec.as_mut().unwrap().labels = [("\u{1}".repeat(1 << 20), String::new())].into();
    request
}

async fn verdicts(client: &Client, items: Vec<StreamSubmitRequest>) -> HashMap<i64, Verdict> {
    let mut stream = client.clone().stream_submit(stream::iter(items)).await.unwrap().into_inner();
    let mut verdicts = HashMap::new();
    while let Some(StreamSubmitResponse { sequence, verdict }) = next(&mut stream).await.unwrap() {
        assert!(verdicts.insert(sequence, verdict.expect("a verdict")).is_none(), "two verdicts: {sequence}");
    }
    verdicts
}

async fn next(stream: &mut Streaming<StreamSubmitResponse>) -> Result<Option<StreamSubmitResponse>, Status> {
    timeout(PATIENCE, stream.message()).await.expect("a verdict in time")
}

#[tokio::test]
async fn jobs_are_accepted_in_the_order_of_their_items() {
    const ITEMS: i64 = 900;
    let server = Server::start();
    let client = server.client().await;
    let of = |n| SubmitRequest { job_id: format!("{n}"), ..submit("nobody", "1") };
    let accepted = verdicts(&client, (0..ITEMS).map(|n| item(n, of(n))).collect()).await;
    assert!(accepted.values().all(|verdict| matches!(verdict, Verdict::Accepted(_))));
    let request = ListJobsRequest { page_size: 1000, ..Default::default() };
    let jobs = client.clone().list_jobs(request).await.expect("a page").into_inner().jobs;
    // The newest first.
    let listed: Vec<i64> = jobs.iter().rev().map(|job| job.job_id.parse().expect("a number")).collect();
    // Where two batches are on their way to a database at a time, neither is the first.
    if !postgres::is_asked_for() {
        assert_eq!(listed, (0..ITEMS).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn every_item_gets_one_verdict_with_its_sequence() {
    let server = Server::start();
    let client = server.client().await;
    let repeated = SubmitRequest { request_id: "r".into(), ..submit("echo", "1") };
    accept(&client, repeated.clone()).await;
    let taken = SubmitRequest { job_id: "taken".into(), ..submit("echo", "1") };
    accept(&client, taken.clone()).await;
    let items = vec![
        item(-5, submit("echo", "1")),
        item(i64::MAX, repeated),
        item(1, submit("not a kind", "1")),
        item(2, SubmitRequest { job_id: "taken".into(), ..submit("echo", "2") }),
        item(3, SubmitRequest { wait: Some(seconds(1.0)), ..submit("echo", "1") }),
        item(5, unreadable()),
        StreamSubmitRequest { sequence: 4, request: None },
    ];
    let verdicts = verdicts(&client, items).await;
    assert_eq!(verdicts.len(), 7);
    // What a caller sends comes back in verdicts: bounded, whatever it is.
    let Verdict::Rejected(no) = &verdicts[&5] else { panic!("{verdicts:?}") };
    assert!(
        no.field.starts_with("request.spec.labels") && no.encoded_len() < 4096,
        "{} bytes",
        no.encoded_len()
    );
    let Verdict::Accepted(new) = &verdicts[&-5] else { panic!("{verdicts:?}") };
    assert!(!new.deduplicated && !new.cursor.is_empty());
    result(&client, &new.job_id).await;
    let Verdict::Accepted(known) = &verdicts[&i64::MAX] else { panic!("{verdicts:?}") };
    assert!(known.deduplicated);
    for (sequence, code, reason, field) in [
        (1, Code::InvalidArgument, "INVALID_FIELD", "request.spec.kind"),
        (2, Code::AlreadyExists, "JOB_ID_IN_USE", ""),
        (3, Code::InvalidArgument, "INVALID_FIELD", "request.wait"),
        (4, Code::InvalidArgument, "INVALID_FIELD", "request"),
    ] {
        let Verdict::Rejected(no) = &verdicts[&sequence] else { panic!("{verdicts:?}") };
        assert_eq!((no.code, no.reason.as_str(), no.field.as_str()), (code as i32, reason, field));
        assert!(!no.message.is_empty());
    }
}

#[tokio::test]
async fn ten_thousand_items_go_through() {
    let server = Server::start();
    let client = server.client().await;
    let items = (0..10_000).map(|n| item(n, submit("nobody", "1"))).collect();
    let verdicts = verdicts(&client, items).await;
    assert_eq!(verdicts.len(), 10_000);
    let accepted = verdicts.values().filter(|verdict| matches!(verdict, Verdict::Accepted(_))).count();
    assert_eq!(accepted, 10_000);
}

#[tokio::test]
async fn a_full_queue_is_a_verdict_not_the_end() {
    let server = Server::with("[queues.default]\nmax_unfinished = 2\n");
    let client = server.client().await;
    let verdicts = verdicts(&client, (0..5).map(|n| item(n, submit("nobody", "1"))).collect()).await;
    let refused: Vec<_> = verdicts
        .into_values()
        .filter_map(|verdict| match verdict {
            Verdict::Rejected(no) => Some(no),
            Verdict::Accepted(_) => None,
        })
        .collect();
    assert_eq!(refused.len(), 3);
    for no in refused {
        assert_eq!((no.code, no.reason.as_str()), (Code::ResourceExhausted as i32, "QUEUE_FULL"));
        assert!(no.retry_delay.is_some());
    }
}

#[tokio::test]
async fn verdicts_come_while_the_caller_still_sends() {
    let server = Server::start();
    let client = server.client().await;
    let (sender, items) = mpsc::channel(1);
    let mut stream = client.clone().stream_submit(ReceiverStream::new(items)).await.unwrap().into_inner();
    for n in 0..3 {
        sender.send(item(n, submit("echo", "1"))).await.unwrap();
        assert_eq!(next(&mut stream).await.unwrap().unwrap().sequence, n);
    }
    drop(sender);
    assert!(next(&mut stream).await.unwrap().is_none());
}

#[tokio::test]
async fn a_deadline_ends_the_stream_and_says_so() {
    let server = Server::start();
    let client = server.client().await;
    let (sender, items) = mpsc::channel(1);
    let mut request = Request::new(ReceiverStream::new(items));
    // As the header itself: the client's own clock stays out of it.
    request.metadata_mut().insert("grpc-timeout", "500m".parse().unwrap());
    let mut stream = client.clone().stream_submit(request).await.unwrap().into_inner();
    sender.send(item(1, submit("echo", "1"))).await.unwrap();
    assert_eq!(next(&mut stream).await.unwrap().unwrap().sequence, 1);
    Refusal::read(next(&mut stream).await.unwrap_err()).is(Code::DeadlineExceeded, "DEADLINE_EXCEEDED");
}

#[tokio::test]
async fn an_old_connection_ends_the_stream_and_says_so() {
    let server = Server::with("[http2]\nmax_connection_age = \"300ms\"\n");
    let client = server.client().await;
    let (sender, items) = mpsc::channel(1);
    let mut stream = client.clone().stream_submit(ReceiverStream::new(items)).await.unwrap().into_inner();
    sender.send(item(1, submit("echo", "1"))).await.unwrap();
    assert_eq!(next(&mut stream).await.unwrap().unwrap().sequence, 1);
    Refusal::read(next(&mut stream).await.unwrap_err()).is(Code::Unavailable, "STREAM_ROTATED");
}

#[tokio::test]
async fn a_caller_that_vanishes_leaves_what_was_accepted() {
    let server = Server::start();
    let client = server.client().await;
    let (sender, items) = mpsc::channel(1);
    let mut stream = client.clone().stream_submit(ReceiverStream::new(items)).await.unwrap().into_inner();
    sender.send(item(1, submit("nobody", "1"))).await.unwrap();
    let Some(Verdict::Accepted(accepted)) = next(&mut stream).await.unwrap().unwrap().verdict else {
        panic!()
    };
    sender.send(item(2, submit("nobody", "2"))).await.unwrap();
    drop((stream, sender, client));
    let client = server.client().await;
    get(&client, &accepted.job_id).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    let listed = client.clone().list_jobs(ListJobsRequest::default()).await.unwrap().into_inner().jobs.len();
    assert!((1..=2).contains(&listed), "{listed}");
}

#[tokio::test]
async fn a_caller_that_does_not_read_is_slowed_down() {
    let server = Server::start();
    let client = server.client().await;
    let sent = std::sync::Arc::new(std::sync::atomic::AtomicI64::new(0));
    let count = sent.clone();
    let endless = stream::iter(0..).map(move |n| {
        count.store(n, std::sync::atomic::Ordering::Relaxed);
        item(n, submit("nobody", "1"))
    });
    let stream = client.clone().stream_submit(endless).await.unwrap().into_inner();
    let now = || sent.load(std::sync::atomic::Ordering::Relaxed);
    let stands_still = async {
        loop {
            let before = now();
            tokio::time::sleep(Duration::from_millis(500)).await;
            if now() == before {
                return;
            }
        }
    };
    timeout(PATIENCE, stands_still).await.expect("the server stops reading");
    drop(stream);
    // Others are served meanwhile and afterwards.
    accept(&server.client().await, submit("echo", "1")).await;
}
