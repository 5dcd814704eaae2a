//! Messages, tokens and headers.

use std::{collections::BTreeMap, ops::RangeInclusive, time::Duration};

use prost::Message;
use prost_types::{Duration as ProtoDuration, Value, value::Kind as ValueKind};
use tonic::metadata::{AsciiMetadataValue, MetadataMap};

use super::{
    convert::{self, Format},
    deadline, jobs, json,
    status::{rejection, status},
    tokens,
};
use crate::{
    config::{Config, Limits},
    engine,
    fuzz::{Target, lines, text},
    job::{Error, Job, JobId, JobSpec, Payload, Start, State, Timestamp, View},
    proto::{
        self, BatchSubmitRequest, CancelJobRequest, DeleteJobRequest, GetJobRequest, GetResultRequest,
        JobFilter, ListJobsRequest, RetryJobRequest, StreamSubmitRequest, SubmitRequest, WatchResultsRequest,
        job_spec, payload::Body, watch_results_request,
    },
    store::{LogId, Position, Submission},
};

pub const TARGETS: &[Target] = &[
    Target { name: "submit", run: submit, seeds: submit_seeds },
    Target { name: "batch_submit", run: batch_submit, seeds: batch_seeds },
    Target { name: "stream_submit", run: stream_submit, seeds: stream_seeds },
    Target { name: "watch_results", run: watch_results, seeds: watch_seeds },
    Target { name: "list_jobs", run: list_jobs, seeds: list_seeds },
    Target { name: "calls_by_id", run: calls_by_id, seeds: id_seeds },
    Target { name: "json_from_value", run: json_from_value, seeds: value_seeds },
    Target { name: "json_from_text", run: json_from_text, seeds: json_seeds },
    Target { name: "cursor", run: cursor, seeds: cursor_seeds },
    Target { name: "page_token", run: page_token, seeds: token_seeds },
    Target { name: "grpc_timeout", run: grpc_timeout, seeds: timeout_seeds },
    Target { name: "trace_headers", run: trace_headers, seeds: trace_seeds },
];

const LOG: LogId = LogId(0x1234_5678_9abc_def0);
const HASH: u32 = 0x1234_5678;
const MS: Duration = Duration::from_millis(1);

/// Holds of every refusal: it says what was sent wrong, and stays small whatever was sent.
fn refused(error: &Error) {
    let told = status(error.clone());
    assert_eq!(told.code(), tonic::Code::InvalidArgument, "{error:.300?}");
    assert!(!told.message().is_empty() && told.message().len() <= 1024 && told.details().len() < 4096);
    let short = rejection(error);
    assert!(short.encoded_len() < 4096, "{} bytes", short.encoded_len());
}

fn submit_seeds() -> Vec<Vec<u8>> {
    let with = |change: fn(&mut proto::JobSpec)| {
        let mut spec = proto::JobSpec { kind: "echo".into(), ..Default::default() };
        change(&mut spec);
        SubmitRequest { spec: Some(spec), ..Default::default() }
    };
    let body = |body, content_type: &str| proto::Payload {
        body: Some(body),
        content_type: content_type.into(),
        ..Default::default()
    };
    let five = Some(ProtoDuration { seconds: 5, nanos: 1_000_000 });
    let mut full = with(|spec| {
        spec.queue = "acme/mail".into();
        spec.labels = [("tenant".into(), "acme".into()), ("n".into(), String::new())].into();
        spec.priority = -7;
        spec.unique_key = "key".into();
    });
    (full.job_id, full.request_id, full.on_unique_conflict) = ("own".into(), "request".into(), 2);
    if let Some(spec) = &mut full.spec {
        (spec.start_timeout, spec.attempt_timeout, spec.total_timeout, spec.retention) =
            (five, five, five, five);
        spec.retry = Some(proto::RetryPolicy {
            max_attempts: 3,
            initial_backoff: five,
            max_backoff: five,
            backoff_multiplier: 1.5,
            non_retryable_codes: vec!["http.404".into()],
        });
        spec.payload =
            Some(body(Body::Text(r#"{"a": [1, 2.5, "x"], "b": null}"#.into()), "application/json"));
    }
    let mut long = with(|spec| spec.labels = [("\u{1}".repeat(1000), String::new())].into());
    long.job_id = "\u{1F4A9}".repeat(500);
    let mut seeds = vec![full.encode_to_vec(), long.encode_to_vec()];
    seeds.push(
        with(|spec| spec.start = Some(job_spec::Start::Delay(ProtoDuration { seconds: 3, nanos: 0 })))
            .encode_to_vec(),
    );
    let time = prost_types::Timestamp { seconds: 1_900_000_000, nanos: 5_000_000 };
    let mut at = with(|_| {});
    if let Some(spec) = &mut at.spec {
        spec.start = Some(job_spec::Start::StartTime(time));
        spec.payload = Some(body(Body::Data(vec![0, 255].into()), ""));
    }
    seeds.push(at.encode_to_vec());
    for value in values() {
        let mut json = with(|_| {});
        if let Some(spec) = &mut json.spec {
            spec.payload = Some(body(Body::Json(value), "application/problem+json; charset=utf-8"));
        }
        seeds.push(json.encode_to_vec());
    }
    seeds
}

fn batch_seeds() -> Vec<Vec<u8>> {
    let items: Vec<_> =
        submit_seeds().iter().filter_map(|seed| SubmitRequest::decode(&seed[..]).ok()).collect();
    vec![BatchSubmitRequest { requests: items }.encode_to_vec()]
}

fn stream_seeds() -> Vec<Vec<u8>> {
    let items = submit_seeds().into_iter().enumerate().map(|(n, seed)| StreamSubmitRequest {
        sequence: n as i64,
        request: SubmitRequest::decode(&seed[..]).ok(),
    });
    items.map(|item| item.encode_to_vec()).collect()
}

fn submit(bytes: &[u8]) {
    let Ok(request) = SubmitRequest::decode(bytes) else { return };
    // What the call itself looks at.
    let _ =
        convert::format("payload_format", request.payload_format, Format::Readable).map_err(|e| refused(&e));
    item(request);
}

fn batch_submit(bytes: &[u8]) {
    let Ok(batch) = BatchSubmitRequest::decode(bytes) else { return };
    for request in batch.requests {
        item(request);
    }
}

fn stream_submit(bytes: &[u8]) {
    let Ok(message) = StreamSubmitRequest::decode(bytes) else { return };
    let Some(request) = message.request else { return };
    if let Err(error) = jobs::only_in_submit(&request) {
        assert!(request.validate_only || request.wait.is_some());
        refused(&error);
    }
    item(request);
}

fn taken(request: SubmitRequest) -> Result<Submission, Error> {
    let fresh = "fresh".parse().expect("a valid id");
    convert::submission(request, &Limits::default(), fresh, BTreeMap::new())
}

fn item(request: SubmitRequest) {
    let submission = match taken(request.clone()) {
        Ok(submission) => submission,
        Err(error) => return refused(&error),
    };
    allowed(&request, &submission);
    // What was taken is told, and what is told can be asked for again.
    let told = |format| convert::job(&job(&submission), View::Full, format, usize::MAX).spec;
    let again = SubmitRequest { spec: told(Format::Raw), ..request.clone() };
    assert_eq!(taken(again).map(|again| again.spec), Ok(submission.spec.clone()));
    let readable = SubmitRequest { spec: told(Format::Readable), ..request };
    let readable = taken(readable).expect("what is told can be asked for").spec;
    same_document(&submission.spec.payload, &readable.payload);
}

/// The limits of the contract, said again in the plainest way.
fn allowed(request: &SubmitRequest, submission: &Submission) {
    let Submission { job_id, request_id, spec, .. } = submission;
    let asked = request.spec.as_ref().expect("a job without a spec was taken");
    let plain = |text: &str, signs: &str| {
        (1..=128).contains(&text.len())
            && text.chars().all(|c| c.is_ascii_alphanumeric() || signs.contains(c))
    };
    let key = |text: &str| text.is_empty() || text.len() <= 128 && text.bytes().all(|b| b > 32 && b < 127);
    assert!(plain(&asked.kind, "._-") && spec.kind.as_str() == asked.kind);
    assert!(
        request.job_id.is_empty() || plain(&request.job_id, "._~:-") && job_id.as_str() == request.job_id
    );
    assert!(key(&request.request_id) && key(&asked.unique_key));
    assert_eq!(request_id.as_ref().map_or("", |key| key.as_str()), request.request_id);
    let queue = spec.queue.as_str();
    assert_eq!(queue, if asked.queue.is_empty() { "default" } else { &asked.queue });
    assert!(plain(queue, "/._-") && queue == queue.to_lowercase());
    assert!(queue.split('/').all(|part| !["", ".", ".."].contains(&part)));
    assert!(spec.priority.abs() <= 100);
    assert!(spec.labels == asked.labels && spec.labels.len() <= 64);
    for (name, value) in &spec.labels {
        assert!((1..=63).contains(&name.len()) && value.len() <= 256);
        assert!(!format!("{name}{value}").contains(char::is_control));
    }
    document(asked.payload.as_ref(), &spec.payload);
    times(spec);
    let retry = &spec.retry;
    assert!(retry.max_attempts.is_none_or(|n| (1..=1000).contains(&n)));
    assert!(retry.backoff_multiplier.is_none_or(|m| (1.0..=1000.0).contains(&m)));
    assert!(retry.non_retryable_codes.len() <= 64);
    assert!(retry.non_retryable_codes.iter().all(|code| (1..=128).contains(&code.len())));
}

fn times(spec: &JobSpec) {
    const DAY: Duration = Duration::from_secs(86_400);
    let within = |time: Option<Duration>, range: RangeInclusive<Duration>| {
        assert!(time.is_none_or(|time| range.contains(&time)), "{time:?}");
    };
    within(spec.attempt_timeout, MS..=DAY);
    within(spec.start_timeout, MS..=366 * DAY);
    within(spec.total_timeout, MS..=366 * DAY);
    within(spec.retention, 1000 * MS..=90 * DAY);
    within(spec.retry.initial_backoff, Duration::ZERO..=366 * DAY);
    within(spec.retry.max_backoff, Duration::ZERO..=366 * DAY);
    match spec.start {
        Start::Now => {}
        Start::Delay(delay) => within(Some(delay), Duration::ZERO..=366 * DAY),
        Start::At(time) => moment(time),
    }
}

/// In the years 1 to 9999.
fn moment(time: Timestamp) {
    assert!((-62_135_596_800_000..253_402_300_800_000).contains(&time.0), "{time:?}");
}

fn document(asked: Option<&proto::Payload>, kept: &Payload) {
    let bytes = kept.bytes();
    assert!(kept.size == bytes.len() && bytes.len() <= 1 << 20);
    assert!(kept.content_type.len() <= 255 && kept.content_type.bytes().all(|b| (32..127).contains(&b)));
    match asked.and_then(|asked| asked.body.as_ref()) {
        None => assert!(bytes.is_empty()),
        Some(Body::Text(text)) => assert_eq!(bytes, text.as_bytes()),
        Some(Body::Data(data)) => assert_eq!(&bytes, data),
        Some(Body::Json(_)) => rendered(&bytes),
    }
}

/// Compact JSON with sorted keys, of nothing that doubles or readers would damage.
fn rendered(bytes: &[u8]) {
    fn sound(value: &serde_json::Value, depth: usize) {
        use serde_json::Value::*;
        match value {
            Array(items) => items.iter().for_each(|item| sound(item, depth + 1)),
            Object(fields) => fields.values().for_each(|item| sound(item, depth + 1)),
            Number(number) => {
                assert!(number.as_i64().is_none_or(|n| n.unsigned_abs() <= 1 << 53));
                assert!(number.is_i64() || number.as_f64().is_some_and(|n| n.fract() != 0.0), "{number}");
            }
            _ => {}
        }
        assert!(depth <= 24);
    }
    let value: serde_json::Value = serde_json::from_slice(bytes).expect("what was rendered is JSON");
    sound(&value, 0);
    assert_eq!(value.to_string().as_bytes(), bytes);
}

/// The same bytes, or the same JSON.
fn same_document(one: &Payload, other: &Payload) {
    assert_eq!(one.content_type, other.content_type);
    if one.bytes() != other.bytes() {
        let value = |payload: &Payload| json::from_bytes(&payload.bytes()).expect("it was told as JSON");
        assert_eq!(value(one), value(other));
    }
}

/// A job just accepted.
fn job(submission: &Submission) -> Job {
    Job {
        id: submission.job_id.clone(),
        spec: submission.spec.clone(),
        state: State::QUEUED,
        attempt: 0,
        run: 1,
        output: None,
        error: None,
        progress: None,
        cancel_requested: false,
        worker: None,
        submit_time: Timestamp(0),
        next_attempt_time: None,
        start_time: None,
        finish_time: None,
        delete_time: None,
        version: 1,
        trace: BTreeMap::new(),
        attempts: Vec::new(),
    }
}

fn wide_filter() -> JobFilter {
    JobFilter {
        job_ids: vec!["a".into(), "b:c".into()],
        queues: vec!["acme/*".into(), "mail".into()],
        kinds: vec!["*".into()],
        states: vec![5, 6],
        labels: [("tenant".into(), "*".into())].into(),
        submitted_after: Some(prost_types::Timestamp { seconds: 1, nanos: 0 }),
        submitted_before: Some(prost_types::Timestamp { seconds: 253_402_300_799, nanos: 999_999_999 }),
    }
}

fn watch_seeds() -> Vec<Vec<u8>> {
    use watch_results_request::Start::*;
    let starts = [
        None,
        Some(AfterCursor(tokens::cursor(LOG, Position(77)))),
        Some(SinceTime(prost_types::Timestamp { seconds: 1, nanos: 2_000_000 })),
        Some(Lookback(ProtoDuration { seconds: 60, nanos: 0 })),
        Some(Earliest(true)),
    ];
    let watch = |start: Option<_>| WatchResultsRequest {
        filter: Some(wide_filter()),
        include_existing: start.is_none(),
        start,
        until_all_done: true,
        include_progress: true,
        include_transitions: true,
        heartbeat_interval: Some(ProtoDuration { seconds: 2, nanos: 0 }),
        on_gap: 2,
        payload_format: 2,
        max_inline_output_bytes: Some(100),
    };
    starts.into_iter().map(|start| watch(start).encode_to_vec()).collect()
}

fn watch_results(bytes: &[u8]) {
    let Ok(request) = WatchResultsRequest::decode(bytes) else { return };
    let (config, now) = (Config::default(), Timestamp(1_700_000_000_000));
    let watch = match convert::watch_request(request.clone(), &config, LOG, now, Default::default()) {
        Ok(watch) => watch,
        Err(error) => return refused(&error),
    };
    let filter = request.filter.unwrap_or_default();
    filtered(&filter, &watch.filter);
    assert!((Duration::from_secs(1)..=Duration::from_secs(60)).contains(&watch.heartbeat));
    assert!(watch.max_inline_output <= 1 << 20);
    assert!(!watch.until_all_done || !filter.job_ids.is_empty());
    assert!(watch.include_transitions || filter.states.iter().all(|state| *state >= 5));
    assert!(!watch.include_existing || request.start.is_none());
    match (request.start, watch.start) {
        (Some(watch_results_request::Start::AfterCursor(text)), engine::Start::After(position)) => {
            assert_eq!(text, tokens::cursor(LOG, position));
        }
        (Some(watch_results_request::Start::AfterCursor(_)), start) => {
            assert_eq!(start, engine::Start::OtherLog)
        }
        (_, engine::Start::Since(time)) => assert!(time <= now || request_names(bytes)),
        _ => {}
    }
}

/// Whether the request names a time itself, which may lie ahead.
fn request_names(bytes: &[u8]) -> bool {
    let start = WatchResultsRequest::decode(bytes).ok().and_then(|request| request.start);
    matches!(start, Some(watch_results_request::Start::SinceTime(_)))
}

fn filtered(asked: &JobFilter, filter: &crate::job::Filter) {
    assert!(asked.job_ids.len() <= 1000 && filter.job_ids.len() <= asked.job_ids.len());
    assert!(asked.job_ids.iter().all(|id| id.parse::<JobId>().is_ok_and(|id| filter.job_ids.contains(&id))));
    for (texts, patterns) in [(&asked.queues, &filter.queues), (&asked.kinds, &filter.kinds)] {
        assert!(texts.len() <= 256 && texts.len() == patterns.len());
        for (text, pattern) in texts.iter().zip(patterns) {
            let stem = text.trim_end_matches('*');
            assert!((1..=129).contains(&text.len()) && text.len() - stem.len() <= 1 && !stem.contains('*'));
            assert!(pattern.matches(stem));
            assert_eq!(pattern.matches(&format!("{stem}x")), text.ends_with('*'));
        }
    }
    assert!(asked.states.len() <= 256 && asked.states.iter().all(|state| (1..=8).contains(state)));
    assert_eq!(asked.states, filter.states.iter().map(|state| state.number()).collect::<Vec<_>>());
    assert!(asked.labels.len() <= 256 && asked.labels.len() == filter.labels.len());
    [filter.submitted_after, filter.submitted_before].into_iter().flatten().for_each(moment);
}

fn list_seeds() -> Vec<Vec<u8>> {
    let list = ListJobsRequest {
        filter: Some(wide_filter()),
        page_size: 20,
        page_token: tokens::page_token(HASH, 7),
        view: 3,
        oldest_first: true,
        payload_format: 1,
    };
    vec![list.encode_to_vec(), ListJobsRequest::default().encode_to_vec()]
}

fn list_jobs(bytes: &[u8]) {
    let Ok(request) = ListJobsRequest::decode(bytes) else { return };
    let asked = request.filter.clone().unwrap_or_default();
    match convert::filter(request.filter, 1000) {
        Ok(filter) => filtered(&asked, &filter),
        Err(error) => refused(&error),
    }
    if let Err(error) = convert::view(request.view, View::Basic) {
        assert!(!(0..=3).contains(&request.view));
        refused(&error);
    }
    page_token(request.page_token.as_bytes());
}

fn id_seeds() -> Vec<Vec<u8>> {
    let (job_id, etag) = ("0199a0c5-1b2c-7def-8123-456789abcdef".to_owned(), "1f".to_owned());
    let second = Some(ProtoDuration { seconds: 1, nanos: 0 });
    vec![
        GetResultRequest { job_id: job_id.clone(), wait: second, payload_format: 2 }.encode_to_vec(),
        GetJobRequest { job_id: job_id.clone(), view: 3, payload_format: 1 }.encode_to_vec(),
        CancelJobRequest { job_id: job_id.clone(), reason: "enough".into(), etag: etag.clone() }
            .encode_to_vec(),
        RetryJobRequest { job_id: job_id.clone(), delay: second, etag: etag.clone() }.encode_to_vec(),
        DeleteJobRequest { job_id, etag, allow_missing: true }.encode_to_vec(),
    ]
}

/// The same bytes as each of the calls that name one job.
fn calls_by_id(bytes: &[u8]) {
    let id = |id: &str| drop(id.parse::<JobId>().map_err(|error| refused(&error)));
    let time = |field: &str, time: Option<ProtoDuration>, most| {
        match convert::optional_duration(field, time.as_ref(), Duration::ZERO..=most) {
            Ok(read) => {
                assert_eq!(read.is_some(), time.is_some());
                // Printed and read again it is the same.
                let told = read.map(convert::proto_duration);
                assert_eq!(convert::optional_duration(field, told.as_ref(), Duration::ZERO..=most), Ok(read));
            }
            Err(error) => refused(&error),
        }
    };
    if let Ok(request) = GetResultRequest::decode(bytes) {
        id(&request.job_id);
        time("wait", request.wait, Duration::MAX);
    }
    if let Ok(request) = RetryJobRequest::decode(bytes) {
        id(&request.job_id);
        time("delay", request.delay, Limits::default().max_delay);
    }
    if let Ok(request) = GetJobRequest::decode(bytes) {
        id(&request.job_id);
        let _ = convert::view(request.view, View::Result).map_err(|error| refused(&error));
        let format = convert::format("payload_format", request.payload_format, Format::Readable);
        let _ = format.map_err(|error| refused(&error));
    }
    let _ = CancelJobRequest::decode(bytes).map(|request| id(&request.job_id));
    let _ = DeleteJobRequest::decode(bytes).map(|request| id(&request.job_id));
}

fn documents() -> Vec<String> {
    let deep = |depth: usize| format!("{}1{}", "[".repeat(depth), "]".repeat(depth));
    [
        "null",
        "-0",
        "1.5",
        "1e300",
        "9007199254740992",
        "9007199254740993",
        "9007199254740993.0",
        "18446744073709551617",
        r#"{"b":[1,{"c":"ü"}],"a":true}"#,
        r#"{"a":1,"a":2}"#,
        r#""\ud83d\ude00""#,
    ]
    .map(str::to_owned)
    .into_iter()
    .chain([deep(23), deep(24), deep(25)])
    .collect()
}

fn json_seeds() -> Vec<Vec<u8>> {
    documents().into_iter().map(String::into_bytes).collect()
}

fn values() -> Vec<Value> {
    let mut values: Vec<_> =
        documents().iter().filter_map(|text| json::from_bytes(text.as_bytes())).collect();
    let number = |number| Value { kind: Some(ValueKind::NumberValue(number)) };
    values.extend([f64::NAN, f64::INFINITY, -0.0, 9_007_199_254_740_994.0, 1e-320].map(number));
    values.push(Value { kind: None });
    values
}

fn value_seeds() -> Vec<Vec<u8>> {
    values().iter().map(Message::encode_to_vec).collect()
}

fn json_from_value(bytes: &[u8]) {
    let Ok(value) = Value::decode(bytes) else { return };
    if let Ok(text) = json::to_bytes(&value) {
        rendered(&text);
        let read = json::from_bytes(&text).expect("what was rendered can be read");
        // Rendered again it is the same: a missing value has become null, and that stays.
        assert_eq!(json::to_bytes(&read), Ok(text));
    }
}

/// What goes out as a value could come in as one, and is what the text says.
fn json_from_text(bytes: &[u8]) {
    let Some(value) = json::from_bytes(bytes) else { return };
    let told = json::to_bytes(&value).expect("what is told can be asked for");
    assert_eq!(json::from_bytes(&told), Some(value));
    let asked: serde_json::Value = serde_json::from_slice(bytes).expect("what was read is JSON");
    let told: serde_json::Value = serde_json::from_slice(&told).expect("what is told is JSON");
    same_json(&asked, &told);
}

fn same_json(asked: &serde_json::Value, told: &serde_json::Value) {
    use serde_json::Value::*;
    match (asked, told) {
        (Array(a), Array(b)) => {
            assert_eq!(a.len(), b.len());
            a.iter().zip(b).for_each(|(a, b)| same_json(a, b));
        }
        (Object(a), Object(b)) => {
            assert!(a.keys().eq(b.keys()));
            a.values().zip(b.values()).for_each(|(a, b)| same_json(a, b));
        }
        (Number(a), Number(b)) => {
            assert_eq!(a.as_f64(), b.as_f64());
            assert!(!a.is_i64() && !a.is_u64() || a.to_string() == b.to_string(), "{a} has become {b}");
        }
        (a, b) => assert_eq!(a, b),
    }
}

fn cursor_seeds() -> Vec<Vec<u8>> {
    let cursor = |log, position| tokens::cursor(log, Position(position)).into_bytes();
    vec![
        cursor(LOG, 0),
        cursor(LOG, 77),
        cursor(LOG, i64::MAX),
        cursor(LogId(1), 5),
        b"c1.".to_vec(),
        Vec::new(),
    ]
}

/// Only what was printed is read, to the letter.
fn cursor(bytes: &[u8]) {
    let Some(text) = text(bytes) else { return };
    match tokens::start_after("after_cursor", text, LOG) {
        Ok(engine::Start::After(position)) => {
            assert!(position.0 >= 0);
            assert_eq!(tokens::cursor(LOG, position), text);
        }
        Ok(start) => {
            assert_eq!(start, engine::Start::OtherLog);
            assert!(text.len() <= 128 && text.starts_with("c1."));
        }
        Err(error) => refused(&error),
    }
}

fn token_seeds() -> Vec<Vec<u8>> {
    let token = |hash, after| tokens::page_token(hash, after).into_bytes();
    vec![
        token(HASH, 0),
        token(HASH, i64::MAX),
        token(1, 5),
        tokens::cursor(LogId(HASH.into()), Position(1)).into_bytes(),
    ]
}

fn page_token(bytes: &[u8]) {
    let Some(text) = text(bytes) else { return };
    match tokens::page_start(text, HASH) {
        Ok(None) => assert!(text.is_empty()),
        Ok(Some(after)) => assert_eq!(tokens::page_token(HASH, after), text),
        Err(error) => refused(&error),
    }
}

fn timeout_seeds() -> Vec<Vec<u8>> {
    lines("5S\n99999999H\n100000000n\n0u\n20m\n1M\n+5S\n-1S\n5 S")
}

/// One to eight digits and a unit, nothing else.
fn grpc_timeout(bytes: &[u8]) {
    let read = deadline::parse(bytes);
    let (digits, unit) = bytes.split_at(bytes.len().saturating_sub(1));
    let number = digits.iter().try_fold(0u128, |n, digit| {
        digit.is_ascii_digit().then(|| n.saturating_mul(10).saturating_add(u128::from(digit - b'0')))
    });
    let scale =
        [(b"n", 1), (b"u", 1000), (b"m", 1_000_000), (b"S", 1_000_000_000), (b"M", 60_000_000_000u128)];
    let scale = scale.into_iter().chain([(b"H", 3_600_000_000_000)]).find(|(name, _)| *name == unit);
    let number = number.filter(|_| (1..=8).contains(&digits.len()));
    assert_eq!(
        read.map(|read| read.as_nanos()),
        number.zip(scale).map(|(number, (_, scale))| number * scale)
    );
}

fn trace_seeds() -> Vec<Vec<u8>> {
    let long = "a=b,".repeat(200).into_bytes();
    [lines("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\nvendor=value\n\u{fc}"), vec![long]]
        .concat()
}

fn trace_headers(bytes: &[u8]) {
    let Ok(value) = AsciiMetadataValue::try_from(bytes) else { return };
    let mut metadata = MetadataMap::new();
    metadata.insert("traceparent", value.clone());
    metadata.insert("tracestate", value);
    for (name, value) in jobs::trace_headers(&metadata) {
        assert!(["traceparent", "tracestate"].contains(&name.as_str()));
        assert!(value.len() <= 512 && value.bytes().all(|b| b == b'\t' || (32..127).contains(&b)));
    }
}
