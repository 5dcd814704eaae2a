//! What is submitted.

use std::{collections::BTreeMap, ops::RangeInclusive, time::Duration};

use prost::Message;
use prost_types::Duration as ProtoDuration;

use super::{MS, documents::values, refused};
use crate::{
    config::Limits,
    job::{Error, Job, JobSpec, Payload, Start, Timestamp, View},
    proto::{self, BatchSubmitRequest, StreamSubmitRequest, SubmitRequest, job_spec, payload::Body},
    server::{
        convert::{self, Format},
        jobs, json,
        lists::List,
    },
    store::Submission,
};

pub fn submit_seeds() -> Vec<Vec<u8>> {
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

pub fn batch_seeds() -> Vec<Vec<u8>> {
    let items: Vec<_> =
        submit_seeds().iter().filter_map(|seed| SubmitRequest::decode(&seed[..]).ok()).collect();
    vec![BatchSubmitRequest { requests: items }.encode_to_vec()]
}

pub fn stream_seeds() -> Vec<Vec<u8>> {
    let items = submit_seeds().into_iter().enumerate().map(|(n, seed)| StreamSubmitRequest {
        sequence: n as i64,
        request: SubmitRequest::decode(&seed[..]).ok(),
    });
    items.map(|item| item.encode_to_vec()).collect()
}

pub fn submit(bytes: &[u8]) {
    let Ok(request) = SubmitRequest::decode(bytes) else { return };
    // What the call itself looks at.
    let _ =
        convert::format("payload_format", request.payload_format, Format::Readable).map_err(|e| refused(&e));
    item(request);
}

pub fn batch_submit(bytes: &[u8]) {
    let _ = List::requests(5).check(bytes).map_err(|error| refused(&error));
    let Ok(batch) = BatchSubmitRequest::decode(bytes) else { return };
    counted(List::requests, bytes, batch.requests.len());
    for request in batch.requests {
        item(request);
    }
}

/// What was counted is what is decoded.
pub fn counted(list: fn(usize) -> List, message: &[u8], size: usize) {
    assert_eq!(list(size).check(message), Ok(()));
    assert!(size == 0 || list(size - 1).check(message).is_err());
}

pub fn stream_submit(bytes: &[u8]) {
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
    let told = |format| {
        convert::job(
            &Job::accepted(submission.job_id.clone(), submission.spec.clone(), Timestamp(0)),
            View::Full,
            format,
            usize::MAX,
        )
        .spec
    };
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
pub fn moment(time: Timestamp) {
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
pub fn rendered(bytes: &[u8]) {
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
