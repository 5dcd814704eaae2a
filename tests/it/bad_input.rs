//! Bad input of every kind: refused with its field, and the server is as it was.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jobwire::proto::{
    CancelJobRequest, GetJobRequest, JobFilter, JobSpec, ListJobsRequest, Payload, RetryJobRequest,
    RetryPolicy, SubmitRequest, WatchResultsRequest, job_spec::Start, payload::Body, watch_results_request,
};
use prost_types::{Duration, ListValue, Timestamp, Value, value::Kind};
use tonic::Code;

use crate::{
    calls::{Refusal, Watch, finish},
    support::{Client, Server, seconds, spec, submit},
};

/// Every one is refused for its field; then nothing has been stored, and the server still works.
async fn refuses(cases: Vec<(SubmitRequest, &str, &str)>) {
    let server = Server::start();
    let client = server.client().await;
    for (request, reason, field) in cases {
        let told = format!("{request:.200?}");
        let refused = Refusal::of(client.clone().submit(request).await);
        assert_eq!(refused.field(), field, "{told}");
        refused.is(Code::InvalidArgument, reason);
    }
    unharmed(&client).await;
}

async fn unharmed(client: &Client) {
    let list = client.clone().list_jobs(ListJobsRequest::default()).await.unwrap().into_inner();
    assert!(list.jobs.is_empty(), "{list:?}");
    finish(client, submit("echo", "1")).await;
}

fn invalid(request: SubmitRequest, field: &'static str) -> (SubmitRequest, &'static str, &'static str) {
    (request, "INVALID_FIELD", field)
}

fn with(change: impl FnOnce(&mut JobSpec)) -> SubmitRequest {
    let mut spec = spec("echo", "1");
    change(&mut spec);
    SubmitRequest { spec: Some(spec), ..Default::default() }
}

const NEGATIVE: Duration = Duration { seconds: -1, nanos: 0 };
const MALFORMED: Duration = Duration { seconds: 1, nanos: 1_000_000_000 };
const MIXED: Duration = Duration { seconds: 1, nanos: -1 };
const HUGE: Duration = Duration { seconds: i64::MAX, nanos: 999_999_999 };

#[tokio::test]
async fn durations() {
    let mut cases = Vec::new();
    for bad in [NEGATIVE, MALFORMED, MIXED, HUGE, Duration { seconds: i64::MIN, nanos: i32::MIN }] {
        let backoff = |change: fn(&mut RetryPolicy, Duration)| {
            with(|spec| {
                let mut retry = RetryPolicy::default();
                change(&mut retry, bad);
                spec.retry = Some(retry);
            })
        };
        cases.extend([
            invalid(with(|spec| spec.start = Some(Start::Delay(bad))), "spec.delay"),
            invalid(with(|spec| spec.start_timeout = Some(bad)), "spec.start_timeout"),
            invalid(with(|spec| spec.attempt_timeout = Some(bad)), "spec.attempt_timeout"),
            invalid(with(|spec| spec.total_timeout = Some(bad)), "spec.total_timeout"),
            invalid(with(|spec| spec.retention = Some(bad)), "spec.retention"),
            invalid(backoff(|retry, bad| retry.initial_backoff = Some(bad)), "spec.retry.initial_backoff"),
            invalid(backoff(|retry, bad| retry.max_backoff = Some(bad)), "spec.retry.max_backoff"),
        ]);
        if bad != HUGE {
            let wait = SubmitRequest { wait: Some(bad), ..submit("echo", "1") };
            cases.push(invalid(wait, "wait"));
        }
    }
    for (limit, field) in [(25.0 * 3600.0, "spec.attempt_timeout"), (0.0, "spec.attempt_timeout")] {
        cases.push(invalid(with(|spec| spec.attempt_timeout = Some(seconds(limit))), field));
    }
    let days = 24.0 * 3600.0;
    cases.push(invalid(with(|spec| spec.retention = Some(seconds(91.0 * days))), "spec.retention"));
    cases.push(invalid(with(|spec| spec.retention = Some(seconds(0.0))), "spec.retention"));
    for seconds in [-62_135_596_801, 253_402_300_800, i64::MAX, i64::MIN] {
        let time = Start::StartTime(Timestamp { seconds, nanos: 0 });
        cases.push(invalid(with(|spec| spec.start = Some(time)), "spec.start_time"));
    }
    let nanos = Start::StartTime(Timestamp { seconds: 0, nanos: -1 });
    cases.push(invalid(with(|spec| spec.start = Some(nanos)), "spec.start_time"));
    refuses(cases).await;
}

#[tokio::test]
async fn names_and_keys() {
    let long = "a".repeat(129);
    let mut cases = Vec::new();
    for bad in ["a b", "a\0", "ä", "a/b", "a\n", &long] {
        cases.push(invalid(SubmitRequest { job_id: bad.into(), ..submit("echo", "1") }, "job_id"));
        cases.push(invalid(submit(bad, "1"), "spec.kind"));
    }
    cases.push(invalid(submit("", "1"), "spec.kind"));
    for bad in ["a b", "\0", "ä", &long] {
        cases.push(invalid(SubmitRequest { request_id: bad.into(), ..submit("echo", "1") }, "request_id"));
        cases.push(invalid(with(|spec| spec.unique_key = bad.into()), "spec.unique_key"));
    }
    for bad in ["Mail", "/", "a//b", "a/", "a/../b", "a b", "ä", "a\0", &long] {
        cases.push(invalid(with(|spec| spec.queue = bad.into()), "spec.queue"));
    }
    cases.push(invalid(SubmitRequest::default(), "spec"));
    refuses(cases).await;
}

#[tokio::test]
async fn numbers_and_enums() {
    let mut cases = Vec::new();
    for priority in [-101, 101, i32::MIN, i32::MAX] {
        cases.push(invalid(with(|spec| spec.priority = priority), "spec.priority"));
    }
    let retry = |retry: RetryPolicy| with(|spec| spec.retry = Some(retry));
    for max_attempts in [-1, i32::MAX] {
        cases.push(invalid(
            retry(RetryPolicy { max_attempts, ..Default::default() }),
            "spec.retry.max_attempts",
        ));
    }
    for backoff_multiplier in [0.5, -1.0, f64::NAN, f64::INFINITY, 1e300] {
        let policy = RetryPolicy { backoff_multiplier, ..Default::default() };
        cases.push(invalid(retry(policy), "spec.retry.backoff_multiplier"));
    }
    let empty = RetryPolicy { non_retryable_codes: vec![String::new()], ..Default::default() };
    cases.push(invalid(retry(empty), "spec.retry.non_retryable_codes[0]"));
    let many = RetryPolicy { non_retryable_codes: vec!["x".into(); 65], ..Default::default() };
    cases.push((retry(many), "TOO_LARGE", "spec.retry.non_retryable_codes"));
    for number in [-1, 9, i32::MAX] {
        cases
            .push(invalid(SubmitRequest { payload_format: number, ..submit("echo", "1") }, "payload_format"));
        cases.push(invalid(
            SubmitRequest { on_unique_conflict: number, ..submit("echo", "1") },
            "on_unique_conflict",
        ));
    }
    refuses(cases).await;
}

#[tokio::test]
async fn labels_and_types() {
    let labels = |labels: Vec<(String, String)>| with(|spec| spec.labels = labels.into_iter().collect());
    let many = |count: usize| labels((0..count).map(|n| (format!("l{n}"), String::new())).collect());
    let typed =
        |content_type: &str| with(|spec| spec.payload.as_mut().unwrap().content_type = content_type.into());
    refuses(vec![
        (many(65), "TOO_LARGE", "spec.labels"),
        invalid(labels(vec![(String::new(), "x".into())]), r#"spec.labels[""]"#),
        invalid(labels(vec![("a\0".into(), "x".into())]), r#"spec.labels["a\0"]"#),
        invalid(labels(vec![("a".into(), "x".repeat(257))]), r#"spec.labels["a"]"#),
        invalid(labels(vec![("a".into(), "\n".into())]), r#"spec.labels["a"]"#),
        invalid(typed("text/plain\r\nx: y"), "spec.payload.content_type"),
        invalid(typed("ä"), "spec.payload.content_type"),
        invalid(typed(&"a".repeat(256)), "spec.payload.content_type"),
    ])
    .await;
    let server = Server::start();
    finish(&server.client().await, many(64)).await;
}

fn document(kind: Kind) -> SubmitRequest {
    let payload = Payload { body: Some(Body::Json(Value { kind: Some(kind) })), ..Default::default() };
    with(|spec| spec.payload = Some(payload))
}

fn nested(depth: usize) -> Kind {
    (0..depth).fold(Kind::ListValue(ListValue::default()), |inner, _| {
        Kind::ListValue(ListValue { values: vec![Value { kind: Some(inner) }] })
    })
}

#[tokio::test]
async fn documents() {
    let unsafe_json = |kind| (document(kind), "JSON_UNSAFE", "spec.payload.json");
    let mut cases = vec![unsafe_json(nested(24))];
    for number in [9_007_199_254_740_994.0, -9_007_199_254_740_994.0, 1e300, f64::NAN, f64::NEG_INFINITY] {
        cases.push(unsafe_json(Kind::NumberValue(number)));
    }
    refuses(cases).await;
    let server = Server::start();
    let client = server.client().await;
    finish(&client, document(nested(23))).await;
    finish(&client, document(Kind::NumberValue(9_007_199_254_740_992.0))).await;
    let refused = Refusal::of(client.clone().submit(document(nested(24))).await);
    refused
        .is(Code::InvalidArgument, "JSON_UNSAFE")
        .says(&["nested deeper than 24", "send the document as `text`"]);
}

/// The cursor of another place in the same log, made as the server makes them.
fn at(cursor: &str, position: i64) -> String {
    let mut bytes = URL_SAFE_NO_PAD.decode(&cursor[3..]).unwrap();
    bytes[8..16].copy_from_slice(&position.to_be_bytes());
    let sum = crc32fast::hash(&[b"c1.", &bytes[..16]].concat());
    bytes[16..].copy_from_slice(&sum.to_be_bytes());
    format!("c1.{}", URL_SAFE_NO_PAD.encode(bytes))
}

#[tokio::test]
async fn cursors() {
    let server = Server::start();
    let client = server.client().await;
    let mut watch = Watch::open(&client, WatchResultsRequest::default()).await;
    watch.checkpoint().await;
    let good = watch.cursor;
    let mut flipped = good.clone().into_bytes();
    flipped[10] ^= 1;
    for bad in [
        "",
        "x",
        &good[..good.len() - 1],
        &format!("{good}A"),
        &good.replace("c1.", "c2."),
        &good.replace("c1.", "p1."),
        &String::from_utf8(flipped).unwrap(),
        &"c1.".repeat(100_000),
        "c1.ÄÖÜ",
        &at(&good, -1),
    ] {
        let start = Some(watch_results_request::Start::AfterCursor(bad.into()));
        let request = WatchResultsRequest { start, ..Default::default() };
        let refused = Refusal::of(client.clone().watch_results(request).await);
        assert_eq!(refused.field(), "after_cursor");
        refused.is(Code::InvalidArgument, "BAD_CURSOR").says(&["exactly as it was received"]);
    }
    // Well made, but of places where the log has never been. Another replica might have been there.
    for beyond in [1_000_000, i64::MAX] {
        let start = Some(watch_results_request::Start::AfterCursor(at(&good, beyond)));
        let request = WatchResultsRequest { start, ..Default::default() };
        let refused = Refusal::of(client.clone().watch_results(request).await);
        if crate::postgres::is_asked_for() {
            refused.is(Code::Unavailable, "REPLICA_BEHIND");
        } else {
            refused.is(Code::InvalidArgument, "BAD_CURSOR");
        }
    }
    unharmed(&client).await;
}

#[tokio::test]
async fn filters_and_watches() {
    let server = Server::start();
    let client = server.client().await;
    let filter = |filter: JobFilter| WatchResultsRequest { filter: Some(filter), ..Default::default() };
    let words = |word: &str, count| vec![word.to_owned(); count];
    let bad_time = Some(Timestamp { seconds: i64::MAX, nanos: 0 });
    let beat = |duration| WatchResultsRequest { heartbeat_interval: Some(duration), ..Default::default() };
    let start = |start| WatchResultsRequest { start: Some(start), ..Default::default() };
    for (request, reason, field) in [
        (
            filter(JobFilter { job_ids: words("a b", 1), ..Default::default() }),
            "INVALID_FIELD",
            "filter.job_ids[0]",
        ),
        (
            filter(JobFilter { job_ids: words("a", 1001), ..Default::default() }),
            "TOO_LARGE",
            "filter.job_ids",
        ),
        (
            filter(JobFilter { queues: words("a*b", 1), ..Default::default() }),
            "INVALID_FIELD",
            "filter.queues[0]",
        ),
        (
            filter(JobFilter { queues: words("", 1), ..Default::default() }),
            "INVALID_FIELD",
            "filter.queues[0]",
        ),
        (
            filter(JobFilter { kinds: words("a**", 1), ..Default::default() }),
            "INVALID_FIELD",
            "filter.kinds[0]",
        ),
        (filter(JobFilter { kinds: words("a", 257), ..Default::default() }), "TOO_LARGE", "filter.kinds"),
        (filter(JobFilter { states: vec![0], ..Default::default() }), "INVALID_FIELD", "filter.states[0]"),
        (filter(JobFilter { states: vec![5, 9], ..Default::default() }), "INVALID_FIELD", "filter.states[1]"),
        (filter(JobFilter { states: vec![-1], ..Default::default() }), "INVALID_FIELD", "filter.states[0]"),
        (
            filter(JobFilter { submitted_after: bad_time, ..Default::default() }),
            "INVALID_FIELD",
            "filter.submitted_after",
        ),
        (
            filter(JobFilter { submitted_before: bad_time, ..Default::default() }),
            "INVALID_FIELD",
            "filter.submitted_before",
        ),
        (beat(NEGATIVE), "INVALID_FIELD", "heartbeat_interval"),
        (beat(seconds(0.5)), "INVALID_FIELD", "heartbeat_interval"),
        (beat(seconds(61.0)), "INVALID_FIELD", "heartbeat_interval"),
        (WatchResultsRequest { on_gap: 7, ..Default::default() }, "INVALID_FIELD", "on_gap"),
        (WatchResultsRequest { payload_format: -7, ..Default::default() }, "INVALID_FIELD", "payload_format"),
        (start(watch_results_request::Start::Lookback(NEGATIVE)), "INVALID_FIELD", "lookback"),
        (start(watch_results_request::Start::Lookback(HUGE)), "INVALID_FIELD", "lookback"),
        (
            start(watch_results_request::Start::SinceTime(Timestamp { seconds: 0, nanos: -1 })),
            "INVALID_FIELD",
            "since_time",
        ),
    ] {
        let told = format!("{request:.200?}");
        let refused = Refusal::of(client.clone().watch_results(request).await);
        assert_eq!(refused.field(), field, "{told}");
        refused.is(Code::InvalidArgument, reason);
    }
    unharmed(&client).await;
}

#[tokio::test]
async fn other_calls() {
    let server = Server::start();
    let client = server.client().await;
    let view = GetJobRequest { job_id: "a".into(), view: 9, ..Default::default() };
    assert_eq!(Refusal::of(client.clone().get_job(view).await).field(), "view");
    let view = ListJobsRequest { view: 9, ..Default::default() };
    assert_eq!(Refusal::of(client.clone().list_jobs(view).await).field(), "view");
    let nul = GetJobRequest { job_id: "a\0b".into(), ..Default::default() };
    assert_eq!(Refusal::of(client.clone().get_job(nul).await).field(), "job_id");
    for reason in ["\0".to_owned(), "x".repeat(1025)] {
        let cancel = CancelJobRequest { job_id: "a".into(), reason, ..Default::default() };
        assert_eq!(Refusal::of(client.clone().cancel_job(cancel).await).field(), "reason");
    }
    let retry = RetryJobRequest { job_id: "a".into(), delay: Some(NEGATIVE), ..Default::default() };
    assert_eq!(Refusal::of(client.clone().retry_job(retry).await).field(), "delay");
    // What a caller sends comes back in errors: bounded, whatever it is.
    let flood = GetJobRequest { job_id: "\u{1F4A9}".repeat(1_000_000), ..Default::default() };
    Refusal::of(client.clone().get_job(flood).await).is(Code::InvalidArgument, "INVALID_FIELD");
    let flood = CancelJobRequest {
        job_id: "a".into(),
        etag: "\u{7f}\u{1F4A9}".repeat(500_000),
        ..Default::default()
    };
    Refusal::of(client.clone().cancel_job(flood).await).is(Code::NotFound, "JOB_NOT_FOUND");
    unharmed(&client).await;
}
