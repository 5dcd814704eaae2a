//! How specs and errors are written down, in every store alike: JSON of what is seldom set.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::Submission;
use crate::job::{Cause, JobError, JobSpec, Key, Kind, Payload, QueueName, RetryOptions, Start, Timestamp};

/// What a store holds is not what was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Damaged(pub &'static str);

type Result<T> = std::result::Result<T, Damaged>;

/// The parts of a spec that are seldom set, as JSON. NULL if none is.
#[derive(Default, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
struct Options {
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    labels: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    delay: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    start_time: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    start_timeout: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    attempt_timeout: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    total_timeout: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retention: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    unique_key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_attempts: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    initial_backoff: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_backoff: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    backoff_multiplier: Option<f64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    non_retryable_codes: Vec<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    trace: BTreeMap<String, String>,
}

fn whole_millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The JSON for the `options` column.
pub fn options(spec: &JobSpec, trace: &BTreeMap<String, String>) -> Option<String> {
    let options = Options {
        labels: spec.labels.clone(),
        delay: match spec.start {
            Start::Delay(delay) => Some(whole_millis(delay)),
            _ => None,
        },
        start_time: match spec.start {
            Start::At(at) => Some(at.0),
            _ => None,
        },
        start_timeout: spec.start_timeout.map(whole_millis),
        attempt_timeout: spec.attempt_timeout.map(whole_millis),
        total_timeout: spec.total_timeout.map(whole_millis),
        retention: spec.retention.map(whole_millis),
        unique_key: spec.unique_key.as_ref().map(|key| key.as_str().to_owned()),
        max_attempts: spec.retry.max_attempts,
        initial_backoff: spec.retry.initial_backoff.map(whole_millis),
        max_backoff: spec.retry.max_backoff.map(whole_millis),
        backoff_multiplier: spec.retry.backoff_multiplier,
        non_retryable_codes: spec.retry.non_retryable_codes.clone(),
        trace: trace.clone(),
    };
    if options == Options::default() {
        return None;
    }
    Some(serde_json::to_string(&options).expect("text and numbers are always JSON"))
}

/// A spec and the trace headers beside it.
pub fn spec(
    queue: QueueName,
    kind: Kind,
    priority: i32,
    payload: Payload,
    options: Option<&str>,
) -> Result<(Arc<JobSpec>, BTreeMap<String, String>)> {
    let Some(text) = options else {
        return Ok((Arc::new(JobSpec { queue, priority, ..JobSpec::new(kind, payload) }), BTreeMap::new()));
    };
    let options: Options = serde_json::from_str(text).map_err(|_| Damaged("the options of a job"))?;
    let unique_key = options
        .unique_key
        .map(|key| Key::parse("unique_key", &key).map_err(|_| Damaged("a unique key")))
        .transpose()?;
    let spec = JobSpec {
        queue,
        kind,
        payload,
        priority,
        labels: options.labels,
        start: match (options.delay, options.start_time) {
            (Some(delay), _) => Start::Delay(Duration::from_millis(delay)),
            (None, Some(at)) => Start::At(Timestamp(at)),
            (None, None) => Start::Now,
        },
        start_timeout: options.start_timeout.map(Duration::from_millis),
        attempt_timeout: options.attempt_timeout.map(Duration::from_millis),
        total_timeout: options.total_timeout.map(Duration::from_millis),
        retry: RetryOptions {
            max_attempts: options.max_attempts,
            initial_backoff: options.initial_backoff.map(Duration::from_millis),
            max_backoff: options.max_backoff.map(Duration::from_millis),
            backoff_multiplier: options.backoff_multiplier,
            non_retryable_codes: options.non_retryable_codes,
        },
        retention: options.retention.map(Duration::from_millis),
        unique_key,
    };
    Ok((Arc::new(spec), options.trace))
}

/// A job error as JSON.
#[derive(Deserialize, Serialize)]
struct ErrorRow {
    cause: i32,
    code: String,
    message: String,
    retryable: bool,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    details: Option<DetailsRow>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    retry_delay: Option<u64>,
}

#[derive(Deserialize, Serialize)]
struct DetailsRow {
    content_type: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    text: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    base64: Option<String>,
}

pub fn error_text(error: &JobError) -> String {
    let row = ErrorRow {
        cause: error.cause as i32,
        code: error.code.clone(),
        message: error.message.clone(),
        retryable: error.retryable,
        details: error.details.as_ref().map(|details| {
            let content_type = details.content_type.clone();
            match String::from_utf8(details.bytes().into()) {
                Ok(text) => DetailsRow { content_type, text: Some(text), base64: None },
                Err(bytes) => {
                    DetailsRow { content_type, text: None, base64: Some(STANDARD.encode(bytes.into_bytes())) }
                }
            }
        }),
        retry_delay: error.retry_delay.map(whole_millis),
    };
    serde_json::to_string(&row).expect("text and numbers are always JSON")
}

pub fn error(text: &str) -> Result<JobError> {
    let bad = || Damaged("an error");
    let row: ErrorRow = serde_json::from_str(text).map_err(|_| bad())?;
    let details = match row.details {
        None => None,
        Some(DetailsRow { content_type, text: Some(text), .. }) => Some(Payload::new(content_type, text)),
        Some(DetailsRow { content_type, base64, .. }) => {
            let bytes = STANDARD.decode(base64.unwrap_or_default()).map_err(|_| bad())?;
            Some(Payload::new(content_type, bytes))
        }
    };
    Ok(JobError {
        cause: Cause::from_number(row.cause).ok_or_else(bad)?,
        code: row.code,
        message: row.message,
        retryable: row.retryable,
        details,
        retry_delay: row.retry_delay.map(Duration::from_millis),
    })
}

/// Of the spec that was asked for, in 16 bytes. The job that it led to may have been
/// asked for in other words, if it was found by its unique key.
pub fn fingerprint(submission: &Submission) -> [u8; 16] {
    let Submission { spec, .. } = submission;
    let options = options(spec, &BTreeMap::new()).unwrap_or_default();
    let (priority, payload) = (spec.priority.to_string(), spec.payload.bytes());
    let parts = [spec.queue.as_str(), spec.kind.as_str(), &priority, &options, &spec.payload.content_type];
    let mut text: Vec<u8> = parts.join("\0").into_bytes();
    text.push(0);
    text.extend_from_slice(&payload);
    Uuid::new_v5(&Uuid::NAMESPACE_OID, &text).into_bytes()
}
