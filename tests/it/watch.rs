//! WatchResults: from where, what, and how it ends.

use std::time::Duration;

use jobwire::proto::{
    DeleteJobRequest, Job, JobFilter, JobSpec, RetryJobRequest, SubmitRequest, WatchResultsRequest,
    job::State, payload::Body, watch_results_request::Start, watch_results_response::Event,
};
use tonic::{Code, Request};

use crate::{
    calls::{Refusal, Watch, accept, eventually, finish, outcomes, place, result},
    support::{Client, Server, seconds, spec, submit},
};

pub fn after(cursor: &str) -> WatchResultsRequest {
    WatchResultsRequest { start: Some(Start::AfterCursor(cursor.into())), ..Default::default() }
}

async fn done(client: &Client, id: &str) -> Job {
    finish(client, SubmitRequest { job_id: id.into(), ..submit("echo", "1") }).await
}

#[tokio::test]
async fn a_stream_begins_with_a_checkpoint_and_says_when_it_is_live() {
    let server = Server::start();
    let client = server.client().await;
    done(&client, "before").await;
    let mut watch = Watch::open(&client, WatchResultsRequest::default()).await;
    let first = watch.checkpoint().await;
    assert!(!first.caught_up && !first.closing && first.server_time.is_some(), "{first:?}");
    assert!(watch.checkpoint().await.caught_up);
    done(&client, "after").await;
    let Event::Finished(job) = watch.event().await else { panic!() };
    assert_eq!((job.job_id.as_str(), job.state(), job.run), ("after", State::Succeeded, 1));
    assert!(job.output.is_some_and(|output| output.body.is_some()));
}

#[tokio::test]
async fn a_cursor_resumes_without_loss_or_repeat() {
    let server = Server::start();
    let client = server.client().await;
    let mut watch = Watch::open(&client, WatchResultsRequest::default()).await;
    watch.checkpoint().await;
    let mut seen = Vec::new();
    let ids: Vec<_> = (0..30).map(|n| format!("job-{n:02}")).collect();
    for (n, id) in ids.iter().enumerate() {
        place(&client, SubmitRequest { job_id: id.clone(), ..submit("echo", "1") }).await;
        if n % 3 == 0 {
            seen.push(watch.finished().await.job_id);
            // As after a broken connection.
            watch = Watch::open(&client, after(&watch.cursor)).await;
        }
    }
    while seen.len() < ids.len() {
        seen.push(watch.finished().await.job_id);
    }
    seen.sort();
    assert_eq!(seen, ids);
}

#[tokio::test]
async fn every_start_begins_where_it_says() {
    let server = Server::start();
    let client = server.client().await;
    done(&client, "a").await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    let b = done(&client, "b").await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    let replay = async |start| {
        let mut watch = Watch::open(&client, WatchResultsRequest { start, ..Default::default() }).await;
        watch.replay().await
    };
    assert_eq!(replay(None).await, [""; 0]);
    assert_eq!(replay(Some(Start::Earliest(true))).await, ["a", "b"]);
    assert_eq!(replay(Some(Start::Earliest(false))).await, [""; 0]);
    assert_eq!(replay(Some(Start::Lookback(seconds(3600.0)))).await, ["a", "b"]);
    assert_eq!(replay(Some(Start::Lookback(seconds(1e10)))).await, ["a", "b"]);
    assert_eq!(replay(Some(Start::Lookback(seconds(0.0)))).await, [""; 0]);
    assert_eq!(replay(Some(Start::SinceTime(b.finish_time.unwrap()))).await, ["b"]);
    let future = prost_types::Timestamp { seconds: 4_000_000_000, nanos: 0 };
    assert_eq!(replay(Some(Start::SinceTime(future))).await, [""; 0]);
    let cursor = accept(&client, SubmitRequest { job_id: "b".into(), ..submit("echo", "1") }).await.cursor;
    assert_eq!(replay(Some(Start::AfterCursor(cursor))).await, [""; 0]);
}

#[tokio::test]
async fn the_cursor_of_a_submit_does_not_miss_its_end() {
    let server = Server::start();
    let client = server.client().await;
    for _ in 0..20 {
        let answer = accept(&client, submit("echo", "1")).await;
        let mut watch = Watch::open(&client, after(&answer.cursor)).await;
        let id = answer.job.unwrap().job_id;
        while watch.finished().await.job_id != id {}
    }
}

#[tokio::test]
async fn existing_outcomes_come_first_if_asked_for() {
    let server = Server::start();
    let client = server.client().await;
    done(&client, "a").await;
    let bad = SubmitRequest { job_id: "bad".into(), ..submit("sleep", "0x") };
    assert_eq!(finish(&client, bad).await.state(), State::Failed);
    let request = WatchResultsRequest { include_existing: true, ..Default::default() };
    let mut watch = Watch::open(&client, request).await;
    assert_eq!(watch.replay().await, ["a", "bad"]);
    done(&client, "b").await;
    assert_eq!(watch.finished().await.job_id, "b");

    let both = WatchResultsRequest {
        include_existing: true,
        start: Some(Start::Earliest(true)),
        ..Default::default()
    };
    let refused = Refusal::of(client.clone().watch_results(both).await);
    assert_eq!(refused.field(), "include_existing");
}

#[tokio::test]
async fn filters_of_each_kind_let_through_what_they_say() {
    let server = Server::start();
    let client = server.client().await;
    for (id, queue, kind, tenant) in [
        ("mail-a", "acme/mail", "echo", "a"),
        ("mail-b", "acme/mail", "echo", "b"),
        ("web-a", "acme/web", "echo", "a"),
        ("bad", "other", "sleep", ""),
    ] {
        let labels =
            [("tenant".to_owned(), tenant.to_owned())].into_iter().filter(|(_, value)| !value.is_empty());
        let spec = JobSpec { queue: queue.into(), labels: labels.collect(), ..spec(kind, "1.5e") };
        finish(&client, SubmitRequest { job_id: id.into(), spec: Some(spec), ..Default::default() }).await;
    }
    let list = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
    let label = |value: &str| [("tenant".to_owned(), value.to_owned())].into();
    let time = |seconds| Some(prost_types::Timestamp { seconds, nanos: 0 });
    let cases = [
        (JobFilter::default(), &["mail-a", "mail-b", "web-a", "bad"][..]),
        (JobFilter { job_ids: list(&["web-a", "unknown", "bad"]), ..Default::default() }, &["web-a", "bad"]),
        (JobFilter { queues: list(&["acme/mail"]), ..Default::default() }, &["mail-a", "mail-b"]),
        (JobFilter { queues: list(&["acme/*", "x"]), ..Default::default() }, &["mail-a", "mail-b", "web-a"]),
        (JobFilter { queues: list(&["*"]), kinds: list(&["sl*"]), ..Default::default() }, &["bad"]),
        (JobFilter { kinds: list(&["echo"]), ..Default::default() }, &["mail-a", "mail-b", "web-a"]),
        (JobFilter { states: vec![State::Failed.into()], ..Default::default() }, &["bad"]),
        (JobFilter { labels: label("a"), ..Default::default() }, &["mail-a", "web-a"]),
        (JobFilter { labels: label("*"), ..Default::default() }, &["mail-a", "mail-b", "web-a"]),
        (JobFilter { labels: label("a"), queues: list(&["acme/w*"]), ..Default::default() }, &["web-a"]),
        (JobFilter { submitted_after: time(4_000_000_000), ..Default::default() }, &[]),
        (
            JobFilter {
                submitted_after: time(0),
                submitted_before: time(4_000_000_000),
                ..Default::default()
            },
            &["mail-a", "mail-b", "web-a", "bad"],
        ),
        (JobFilter { submitted_before: time(0), ..Default::default() }, &[]),
    ];
    for (filter, expected) in cases {
        let from_feed = WatchResultsRequest {
            filter: Some(filter.clone()),
            start: Some(Start::Earliest(true)),
            ..Default::default()
        };
        assert_eq!(Watch::open(&client, from_feed).await.replay().await, expected, "{filter:?}");
        let from_jobs = WatchResultsRequest {
            filter: Some(filter.clone()),
            include_existing: true,
            ..Default::default()
        };
        assert_eq!(Watch::open(&client, from_jobs).await.replay().await, expected, "{filter:?}");
        let list = jobwire::proto::ListJobsRequest {
            filter: Some(filter.clone()),
            oldest_first: true,
            ..Default::default()
        };
        let listed = client.clone().list_jobs(list).await.unwrap().into_inner().jobs;
        let listed: Vec<_> = listed.iter().map(|job| job.job_id.as_str()).collect();
        assert_eq!(listed, expected, "{filter:?}");
    }
}

fn all_of(ids: &[&str]) -> WatchResultsRequest {
    let job_ids = ids.iter().map(|&id| id.to_owned()).collect();
    WatchResultsRequest {
        filter: Some(JobFilter { job_ids, ..Default::default() }),
        until_all_done: true,
        ..Default::default()
    }
}

#[tokio::test]
async fn it_ends_with_ok_when_all_are_done() {
    let server = Server::start();
    let client = server.client().await;
    done(&client, "early").await;
    let slow = SubmitRequest { job_id: "slow".into(), ..submit("sleep", r#"{"duration":"200ms"}"#) };
    let cursor = accept(&client, slow).await.cursor;
    let (events, end) = Watch::open(&client, all_of(&["early", "slow", "early"])).await.rest().await;
    assert!(end.is_ok(), "{end:?}");
    assert_eq!(outcomes(&events), ["early", "slow"]);
    // Resumed: only what came after the cursor, and the same end.
    let resumed = WatchResultsRequest { start: after(&cursor).start, ..all_of(&["early", "slow"]) };
    let (events, end) = Watch::open(&client, resumed).await.rest().await;
    assert!(end.is_ok(), "{end:?}");
    assert_eq!(outcomes(&events), ["slow"]);
}

#[tokio::test]
async fn until_all_done_needs_ids_that_exist() {
    let server = Server::start();
    let client = server.client().await;
    done(&client, "known").await;
    let refused = Refusal::of(client.clone().watch_results(all_of(&["known", "unknown"])).await);
    assert_eq!(refused.resource(), "unknown");
    refused.is(Code::NotFound, "JOB_NOT_FOUND");
    let refused = Refusal::of(client.clone().watch_results(all_of(&[])).await);
    assert_eq!(refused.field(), "filter.job_ids");
    refused.is(Code::InvalidArgument, "INVALID_FIELD");
}

#[tokio::test]
async fn a_retry_finishes_a_job_once_more() {
    let server = Server::start();
    let client = server.client().await;
    let mut watch = Watch::open(&client, WatchResultsRequest::default()).await;
    let job = finish(&client, submit("sleep", "\"no\"")).await;
    assert_eq!(watch.finished().await.run, 1);
    client
        .clone()
        .retry_job(RetryJobRequest { job_id: job.job_id.clone(), ..Default::default() })
        .await
        .unwrap();
    let again = watch.finished().await;
    assert_eq!((again.job_id.as_str(), again.run, again.attempt), (job.job_id.as_str(), 2, 1));
    // Of a job that ended twice, what exists is the newest.
    let existing = WatchResultsRequest { include_existing: true, ..Default::default() };
    assert_eq!(Watch::open(&client, existing).await.replay().await.len(), 1);
    let replay = WatchResultsRequest { start: Some(Start::Earliest(true)), ..Default::default() };
    assert_eq!(Watch::open(&client, replay).await.replay().await.len(), 2);
}

#[tokio::test]
async fn large_outputs_are_left_out() {
    let server = Server::start();
    let client = server.client().await;
    let text = |size: usize| format!("\"{}\"", "x".repeat(size - 2));
    for (id, size) in [("small", 100), ("default", 64 << 10), ("large", (64 << 10) + 1)] {
        finish(&client, SubmitRequest { job_id: id.into(), ..submit("echo", &text(size)) }).await;
    }
    for (limit, whole) in [
        (None, &["small", "default"][..]),
        (Some(0), &[]),
        (Some(100), &["small"]),
        (Some(i32::MAX), &["small", "default", "large"]),
    ] {
        let request = WatchResultsRequest {
            start: Some(Start::Earliest(true)),
            max_inline_output_bytes: limit,
            ..Default::default()
        };
        let mut watch = Watch::open(&client, request).await;
        let mut sent = Vec::new();
        for _ in 0..3 {
            let job = watch.finished().await;
            let output = job.output.unwrap();
            assert!(output.omitted == output.body.is_none() && output.size_bytes >= 100);
            if !output.omitted {
                sent.push(job.job_id);
            }
        }
        assert_eq!(sent, whole, "{limit:?}");
    }
    let negative = WatchResultsRequest { max_inline_output_bytes: Some(-1), ..Default::default() };
    let refused = Refusal::of(client.clone().watch_results(negative).await);
    assert_eq!(refused.field(), "max_inline_output_bytes");
}

#[tokio::test]
async fn heartbeats_move_the_cursor_when_nothing_matches() {
    let server = Server::start();
    let client = server.client().await;
    let nothing = JobFilter { kinds: vec!["nobody".into()], ..Default::default() };
    let request = WatchResultsRequest {
        filter: Some(nothing),
        heartbeat_interval: Some(seconds(1.0)),
        ..Default::default()
    };
    let mut watch = Watch::open(&client, request).await;
    watch.replay().await;
    let before = watch.cursor.clone();
    let id = done(&client, "unseen").await.job_id;
    let beat = watch.checkpoint().await;
    assert!(beat.caught_up && !beat.closing);
    assert_ne!(watch.cursor, before);
    assert!(Watch::open(&client, after(&watch.cursor)).await.replay().await.is_empty());
    assert_eq!(Watch::open(&client, after(&before)).await.replay().await, [id]);
}

#[tokio::test]
async fn a_deadline_ends_a_watch() {
    let server = Server::start();
    let client = server.client().await;
    let mut request = Request::new(WatchResultsRequest::default());
    request.metadata_mut().insert("grpc-timeout", "300m".parse().unwrap());
    let watch = Watch::of(client.clone().watch_results(request).await.unwrap());
    let (events, end) = watch.rest().await;
    assert_eq!(events.len(), 2, "{events:?}");
    Refusal::of(end).is(Code::DeadlineExceeded, "DEADLINE_EXCEEDED");
}

#[tokio::test]
async fn too_many_watches_are_refused_and_abandoned_ones_leave() {
    let server = Server::with("[watch]\nmax_watchers = 2\n");
    let client = server.client().await;
    for _ in 0..5 {
        let mut open = Vec::new();
        for _ in 0..2 {
            let own = server.client().await;
            let mut watch = eventually(async || {
                own.clone().watch_results(WatchResultsRequest::default()).await.ok().map(Watch::of)
            })
            .await;
            watch.checkpoint().await;
            open.push(watch);
        }
        let refused = Refusal::of(client.clone().watch_results(WatchResultsRequest::default()).await);
        assert_eq!((refused.quota(), refused.metadata["limit"].as_str()), ("watches", "2"));
        assert!(refused.retry_delay() > Duration::ZERO);
        refused.is(Code::ResourceExhausted, "WATCH_LIMIT").says(&["2 open watches", "close some"]);
    }
}

#[tokio::test]
async fn a_watch_of_many_outcomes_is_complete_and_in_order() {
    let server = Server::start();
    let client = server.client().await;
    let requests = (0..1000).map(|_| submit("echo", "1")).collect();
    let batch = jobwire::proto::BatchSubmitRequest { requests };
    let answer = client.clone().batch_submit(batch).await.unwrap().into_inner();
    let mut watch = Watch::open(&client, after(&answer.cursor)).await;
    let mut live = Vec::new();
    while live.len() < 1000 {
        live.push(watch.finished().await.job_id);
    }
    let replayed = Watch::open(&client, after(&answer.cursor)).await.replay().await;
    assert_eq!(live, replayed);
    result(&client, &live[0]).await;
}

#[tokio::test]
async fn an_output_that_swells_as_json_does_not_end_a_watch() {
    let server = Server::start();
    let client = server.client().await;
    let text = format!("[{}0]", "0,".repeat(500_000));
    finish(&client, SubmitRequest { job_id: "large".into(), ..submit("echo", &text) }).await;
    let request = WatchResultsRequest {
        start: Some(Start::Earliest(true)),
        max_inline_output_bytes: Some(i32::MAX),
        ..Default::default()
    };
    let output = Watch::open(&client, request).await.finished().await.output.unwrap();
    assert_eq!(output.body, Some(Body::Text(text)));
}

#[tokio::test]
async fn a_deleted_job_leaves_the_feed_and_counts_as_done() {
    let server = Server::start();
    let client = server.client().await;
    for id in ["a", "b", "c"] {
        done(&client, id).await;
    }
    let slow = SubmitRequest { job_id: "slow".into(), ..submit("sleep", r#"{"duration":"300ms"}"#) };
    place(&client, slow).await;
    let mut watch = Watch::open(&client, all_of(&["b", "slow"])).await;
    assert_eq!(watch.replay().await, ["b"]);
    client.clone().delete_job(DeleteJobRequest { job_id: "b".into(), ..Default::default() }).await.unwrap();
    let (events, end) = watch.rest().await;
    assert!(end.is_ok(), "{end:?}");
    assert_eq!(outcomes(&events), ["slow"]);
    let request = WatchResultsRequest { start: Some(Start::Earliest(true)), ..Default::default() };
    assert_eq!(Watch::open(&client, request).await.replay().await, ["a", "c", "slow"]);
}
