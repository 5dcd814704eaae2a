//! Watches that meet a gap, a reader that stalls, their age, or the end of the server.

use jobwire::proto::{
    BatchSubmitRequest, Gap, JobSpec, SubmitRequest, WatchResultsRequest,
    gap::Reason,
    watch_results_request::{OnGap, Start},
    watch_results_response::Event,
};
use tonic::Code;

use crate::{
    calls::{Refusal, Watch, eventually, finish, outcomes, place, result},
    support::{Client, Server, submit},
    watch::after,
};

/// Three outcomes, of which the feed soon keeps two, and the cursor before them.
async fn cut_feed(client: &Client) -> String {
    let mut watch = Watch::open(client, WatchResultsRequest::default()).await;
    watch.checkpoint().await;
    for n in 0..3 {
        finish(client, SubmitRequest { job_id: format!("job-{n}"), ..submit("echo", "1") }).await;
    }
    watch.cursor
}

fn over(request: WatchResultsRequest) -> WatchResultsRequest {
    WatchResultsRequest { on_gap: OnGap::Continue.into(), ..request }
}

fn gap(event: Event) -> Gap {
    match event {
        Event::Gap(gap) => gap,
        other => panic!("no gap: {other:?}"),
    }
}

#[tokio::test]
async fn a_gap_is_refused_or_announced() {
    let server = Server::with("[watch]\nmax_events = 2\nring_bytes = 0\n");
    let client = server.client().await;
    let cursor = cut_feed(&client).await;
    let refused = eventually(async || client.clone().watch_results(after(&cursor)).await.err()).await;
    let refused = Refusal::read(refused);
    assert!(refused.metadata["oldest_time"].starts_with("20"), "{refused:?}");
    refused.is(Code::OutOfRange, "CURSOR_EXPIRED").says(&["no longer kept", "list again"]);

    let mut watch = Watch::open(&client, over(after(&cursor))).await;
    assert!(!watch.checkpoint().await.caught_up);
    // Whoever is cut off before the gap was told is told of it again.
    Refusal::of(client.clone().watch_results(after(&watch.cursor)).await)
        .is(Code::OutOfRange, "CURSOR_EXPIRED");
    let gap = gap(watch.event().await);
    assert_eq!((gap.reason(), gap.missed_events), (Reason::Retention, 1));
    assert!(gap.oldest_time.is_some());
    assert_eq!(watch.replay().await, ["job-1", "job-2"]);
    // What leaves the feed stays a result.
    let existing = WatchResultsRequest { include_existing: true, ..Default::default() };
    assert_eq!(Watch::open(&client, existing).await.replay().await, ["job-0", "job-1", "job-2"]);
}

#[tokio::test]
async fn a_time_before_the_feed_is_a_gap_too() {
    let server = Server::with("[watch]\nretention = \"100ms\"\nring_bytes = 0\n");
    let client = server.client().await;
    cut_feed(&client).await;
    let hour = Some(Start::Lookback(crate::support::seconds(3600.0)));
    let request = WatchResultsRequest { start: hour, ..Default::default() };
    let refused = eventually(async || client.clone().watch_results(request.clone()).await.err()).await;
    Refusal::read(refused).is(Code::OutOfRange, "CURSOR_EXPIRED");
    let mut watch = Watch::open(&client, over(request)).await;
    watch.checkpoint().await;
    Refusal::of(client.clone().watch_results(after(&watch.cursor)).await)
        .is(Code::OutOfRange, "CURSOR_EXPIRED");
    assert_eq!(gap(watch.event().await).reason(), Reason::Retention);
    // `earliest` takes what there is.
    let earliest = WatchResultsRequest { start: Some(Start::Earliest(true)), ..Default::default() };
    eventually(async || Watch::open(&client, earliest.clone()).await.replay().await.is_empty().then_some(()))
        .await;
}

#[tokio::test]
async fn a_time_that_the_feed_has_in_part_is_a_gap_too() {
    let server = Server::with("[watch]\nmax_events = 2\nring_bytes = 0\n[workers]\nconcurrency = 0\n");
    let client = server.client().await;
    let start_timeout = Some(crate::support::seconds(0.05));
    // All of one batch end at once.
    let requests = (0..3).map(|n| {
        let spec = JobSpec { start_timeout, ..crate::support::spec("nobody", "1") };
        SubmitRequest { job_id: format!("job-{n}"), spec: Some(spec), ..Default::default() }
    });
    let batch = BatchSubmitRequest { requests: requests.collect() };
    client.clone().batch_submit(batch).await.expect("they are accepted");
    let ended = result(&client, "job-2").await;
    let since = Some(Start::SinceTime(ended.finish_time.expect("it has ended")));
    let request = WatchResultsRequest { start: since, ..Default::default() };
    let refused = eventually(async || client.clone().watch_results(request.clone()).await.err()).await;
    Refusal::read(refused).is(Code::OutOfRange, "CURSOR_EXPIRED");
}

#[tokio::test]
async fn an_idle_watcher_does_not_fall_off_the_end() {
    let server = Server::with("[watch]\nmax_events = 1\nring_bytes = 0\n");
    let client = server.client().await;
    let mut watch = Watch::open(
        &client,
        WatchResultsRequest { heartbeat_interval: Some(crate::support::seconds(1.0)), ..Default::default() },
    )
    .await;
    for _ in 0..5 {
        let id = finish(&client, submit("echo", "1")).await.job_id;
        assert_eq!(watch.finished().await.job_id, id);
    }
    let mut resumed = Watch::open(&client, after(&watch.cursor)).await;
    assert!(resumed.replay().await.is_empty());
}

#[tokio::test]
async fn the_cursor_of_another_server_is_a_replaced_log() {
    let (server, other) = (Server::start(), Server::start());
    let (client, foreign) = (server.client().await, other.client().await);
    let mut watch = Watch::open(&foreign, WatchResultsRequest::default()).await;
    watch.checkpoint().await;
    finish(&client, SubmitRequest { job_id: "here".into(), ..submit("echo", "1") }).await;
    let refused = Refusal::of(client.clone().watch_results(after(&watch.cursor)).await);
    assert!(refused.metadata.contains_key("oldest_time"));
    refused.is(Code::OutOfRange, "LOG_REPLACED").says(&["reset or restored", "list again"]);
    let mut watch = Watch::open(&client, over(after(&watch.cursor))).await;
    watch.checkpoint().await;
    assert_eq!(watch.cursor, "", "there is no place before a log");
    let gap = gap(watch.event().await);
    assert_eq!((gap.reason(), gap.missed_events), (Reason::LogReplaced, 0));
    assert_eq!(watch.replay().await, ["here"]);
}

#[tokio::test]
async fn a_restart_keeps_cursors() {
    let mut server = Server::start();
    let client = server.client().await;
    finish(&client, submit("echo", "1")).await;
    let mut watch = Watch::open(&client, WatchResultsRequest::default()).await;
    watch.replay().await;
    place(&client, SubmitRequest { job_id: "late".into(), ..submit("nobody", "1") }).await;
    server.kill();
    let server = server.restart();
    let client = server.client().await;
    let id = finish(&client, submit("echo", "1")).await.job_id;
    assert_eq!(Watch::open(&client, after(&watch.cursor)).await.replay().await, [id]);
}

/// What a stream that is to be resumed had told before its closing checkpoint.
async fn rotated(watch: Watch) -> Vec<Event> {
    let (mut events, end) = watch.rest().await;
    let refused = Refusal::of(end);
    refused.retry_delay();
    refused.is(Code::Unavailable, "STREAM_ROTATED").says(&["come back with the last cursor"]);
    let Some(Event::Checkpoint(last)) = events.pop() else { panic!("{events:?}") };
    assert!(last.closing && last.caught_up, "{last:?}");
    events
}

#[tokio::test]
async fn an_old_stream_is_closed_with_a_cursor() {
    let server = Server::with("[watch]\nmax_stream_age = \"500ms\"\n");
    let client = server.client().await;
    let mut watch = Watch::open(&client, WatchResultsRequest::default()).await;
    watch.checkpoint().await;
    finish(&client, SubmitRequest { job_id: "seen".into(), ..submit("echo", "1") }).await;
    assert_eq!(outcomes(&rotated(watch).await), ["seen"]);
}

#[tokio::test]
async fn an_old_connection_lets_its_streams_close() {
    let server = Server::with("[http2]\nmax_connection_age = \"500ms\"\n");
    let client = server.client().await;
    rotated(Watch::open(&client, WatchResultsRequest::default()).await).await;
    // The channel takes a new connection by itself.
    finish(&client, submit("echo", "1")).await;
}

#[tokio::test]
async fn a_stop_closes_streams_with_a_cursor() {
    let mut server = Server::start();
    let client = server.client().await;
    let mut watch = Watch::open(&client, WatchResultsRequest::default()).await;
    watch.replay().await;
    server.signal("TERM");
    rotated(watch).await;
    assert!(server.ended().await.success());
}

/// One that lags is not held up by what it has still to read.
#[tokio::test]
async fn a_stop_closes_streams_that_lag() {
    const COUNT: usize = 1000;
    let server = Server::start();
    let client = server.client().await;
    let large = format!("\"{}\"", "x".repeat(60_000));
    let request = SubmitRequest { job_id: "last".into(), ..submit("echo", &large) };
    let others = (1..COUNT).map(|_| place(&client, submit("echo", &large)));
    futures_util::future::join_all(others).await;
    finish(&client, request).await;
    let all = WatchResultsRequest { start: Some(Start::Earliest(true)), ..Default::default() };
    let mut watch = Watch::open(&client, all).await;
    watch.checkpoint().await;
    server.signal("TERM");
    // Whether it is refused, or comes too late for this connection.
    eventually(async || client.clone().submit(submit("echo", "1")).await.err()).await;
    let (mut events, end) = watch.rest().await;
    Refusal::of(end).is(Code::Unavailable, "STREAM_ROTATED");
    let Some(Event::Checkpoint(last)) = events.pop() else { panic!("no last checkpoint") };
    assert!(last.closing && !last.caught_up, "{last:?}");
    assert!(outcomes(&events).len() < COUNT);
}

#[tokio::test]
async fn a_reader_that_stalls_is_ended_and_resumes() {
    let config = "[watch]\nstall_timeout = \"500ms\"\nbuffer_bytes = 65536\nmax_watchers = 1\n";
    let server = Server::with(config);
    let client = server.client().await;
    let large = format!("\"{}\"", "x".repeat(500_000));
    let all = WatchResultsRequest {
        start: Some(Start::Earliest(true)),
        max_inline_output_bytes: Some(1 << 20),
        ..Default::default()
    };
    let mut watch = Watch::open(&client, all.clone()).await;
    watch.checkpoint().await;
    let mut ids = Vec::new();
    for _ in 0..20 {
        ids.push(finish(&client, submit("echo", &large)).await.job_id);
    }
    // The one place is free again once the stalled stream has been ended.
    let other = server.client().await;
    let mut probe = eventually(async || {
        other.clone().watch_results(WatchResultsRequest::default()).await.ok().map(Watch::of)
    })
    .await;
    probe.checkpoint().await;
    drop(probe);
    let mut seen = Vec::new();
    let stalled = loop {
        match watch.next().await {
            Ok(Some(Event::Finished(job))) => seen.push(job.job_id),
            Ok(Some(_)) => {}
            Ok(None) => panic!("ended with OK"),
            Err(status) => break Refusal::read(status),
        }
    };
    assert!(!stalled.quota().is_empty());
    stalled.retry_delay();
    stalled.is(Code::ResourceExhausted, "WATCH_STALLED").says(&["500ms", "read faster", "resume"]);
    assert!(seen.len() < ids.len());
    let resumed = WatchResultsRequest { max_inline_output_bytes: None, ..after(&watch.cursor) };
    let mut watch =
        eventually(async || client.clone().watch_results(resumed.clone()).await.ok().map(Watch::of)).await;
    seen.extend(watch.replay().await);
    assert_eq!(seen, ids);
}
