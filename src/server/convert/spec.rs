use std::{collections::BTreeMap, ops::RangeInclusive, sync::Arc, time::Duration};

use super::{
    payload::payload,
    time::{duration_in, optional_duration, timestamp},
};
use crate::{
    config::Limits,
    job::{Error, JobId, JobSpec, Key, Kind, PRIORITY_MAX, Payload, QueueName, RetryOptions, Start},
    proto::{self, job_spec, submit_request::OnUniqueConflict},
    store::Submission,
};

const MAX_LABELS: usize = 64;
const MAX_LABEL_NAME: usize = 63;
const MAX_LABEL_VALUE: usize = 256;
const MAX_ATTEMPTS: u32 = 1000;
const MAX_MULTIPLIER: f64 = 1000.0;
const MAX_CODES: usize = 64;
const MAX_CODE: usize = 128;

/// The shortest time a result is kept: those who wait for it must be able to hear of it.
const MIN_RETENTION: Duration = Duration::from_secs(1);

/// A request to submit. `fresh` is the id for a job that brings none.
pub fn submission(
    request: proto::SubmitRequest,
    limits: &Limits,
    fresh: JobId,
    trace: BTreeMap<String, String>,
) -> Result<Submission, Error> {
    let spec = request.spec.ok_or_else(|| Error::invalid("spec", "is required"))?;
    let spec = Arc::new(self::spec(spec, limits).map_err(|error| error.within("spec."))?);
    let own_id = !request.job_id.is_empty();
    let job_id = if own_id { request.job_id.parse()? } else { fresh };
    let reject_duplicate = match OnUniqueConflict::try_from(request.on_unique_conflict) {
        Ok(OnUniqueConflict::Unspecified | OnUniqueConflict::ReturnExisting) => false,
        Ok(OnUniqueConflict::Reject) => true,
        Err(unknown) => {
            let why = format!("{} is not a known value", unknown.0);
            return Err(Error::invalid("on_unique_conflict", why));
        }
    };
    Ok(Submission {
        job_id,
        own_id,
        caller: String::new(),
        request_id: request_key("request_id", &request.request_id)?,
        spec,
        reject_duplicate,
        check_only: request.validate_only,
        trace,
    })
}

/// A key that may be absent.
pub fn request_key(field: &str, text: &str) -> Result<Option<Key>, Error> {
    if text.is_empty() { Ok(None) } else { Key::parse(field, text).map(Some) }
}

/// What is asked for, checked.
fn spec(spec: proto::JobSpec, limits: &Limits) -> Result<JobSpec, Error> {
    let ahead = Duration::ZERO..=limits.max_delay;
    let positive = |most| Duration::from_millis(1)..=most;
    let timeout = |name: &str, value: Option<&_>, most| optional_duration(name, value, positive(most));
    if !(-PRIORITY_MAX..=PRIORITY_MAX).contains(&spec.priority) {
        let why = format!("{} is out of range: must be -{PRIORITY_MAX} to {PRIORITY_MAX}", spec.priority);
        return Err(Error::invalid("priority", why));
    }
    Ok(JobSpec {
        queue: match spec.queue.as_str() {
            "" => QueueName::default(),
            name => QueueName::parse("queue", name)?,
        },
        kind: Kind::parse("kind", &spec.kind)?,
        payload: match spec.payload {
            None => Payload::none(),
            Some(given) => payload("payload", given, limits.max_payload_bytes)?,
        },
        labels: labels(spec.labels)?,
        priority: spec.priority,
        start: match spec.start {
            None => Start::Now,
            Some(job_spec::Start::Delay(delay)) => Start::Delay(duration_in("delay", &delay, ahead)?),
            Some(job_spec::Start::StartTime(time)) => Start::At(timestamp("start_time", &time)?),
        },
        start_timeout: timeout("start_timeout", spec.start_timeout.as_ref(), limits.max_delay)?,
        attempt_timeout: timeout(
            "attempt_timeout",
            spec.attempt_timeout.as_ref(),
            limits.max_attempt_timeout,
        )?,
        total_timeout: timeout("total_timeout", spec.total_timeout.as_ref(), limits.max_delay)?,
        retry: retry(spec.retry.unwrap_or_default(), limits).map_err(|error| error.within("retry."))?,
        retention: optional_duration(
            "retention",
            spec.retention.as_ref(),
            MIN_RETENTION..=limits.max_retention,
        )?,
        unique_key: request_key("unique_key", &spec.unique_key)?,
    })
}

fn labels(labels: BTreeMap<String, String>) -> Result<BTreeMap<String, String>, Error> {
    if labels.len() > MAX_LABELS {
        return Err(Error::TooLarge {
            field: "labels".into(),
            limit: MAX_LABELS as u64,
            size: labels.len() as u64,
        });
    }
    for (name, value) in &labels {
        let bad = |why: String| Err(Error::invalid(format!("labels[{name:?}]"), why));
        if name.is_empty() || name.len() > MAX_LABEL_NAME || name.chars().any(char::is_control) {
            return bad(format!("a label's name has 1 to {MAX_LABEL_NAME} bytes and no control characters"));
        }
        if value.len() > MAX_LABEL_VALUE || value.chars().any(char::is_control) {
            return bad(format!(
                "a label's value has at most {MAX_LABEL_VALUE} bytes and no control characters"
            ));
        }
    }
    Ok(labels)
}

fn retry(retry: proto::RetryPolicy, limits: &Limits) -> Result<RetryOptions, Error> {
    let backoff: RangeInclusive<Duration> = Duration::ZERO..=limits.max_delay;
    let max_attempts = match u32::try_from(retry.max_attempts) {
        Ok(0) => None,
        Ok(attempts) if attempts <= MAX_ATTEMPTS => Some(attempts),
        _ => return Err(Error::invalid("max_attempts", format!("must be 1 to {MAX_ATTEMPTS}"))),
    };
    let backoff_multiplier = match retry.backoff_multiplier {
        0.0 => None,
        multiplier if (1.0..=MAX_MULTIPLIER).contains(&multiplier) => Some(multiplier),
        _ => return Err(Error::invalid("backoff_multiplier", format!("must be 1 to {MAX_MULTIPLIER}"))),
    };
    let codes = retry.non_retryable_codes;
    if codes.len() > MAX_CODES {
        let (limit, size) = (MAX_CODES as u64, codes.len() as u64);
        return Err(Error::TooLarge { field: "non_retryable_codes".into(), limit, size });
    }
    if let Some(index) = codes.iter().position(|code| code.is_empty() || code.len() > MAX_CODE) {
        let why = format!("a code has 1 to {MAX_CODE} bytes");
        return Err(Error::invalid(format!("non_retryable_codes[{index}]"), why));
    }
    Ok(RetryOptions {
        max_attempts,
        initial_backoff: optional_duration(
            "initial_backoff",
            retry.initial_backoff.as_ref(),
            backoff.clone(),
        )?,
        max_backoff: optional_duration("max_backoff", retry.max_backoff.as_ref(), backoff)?,
        backoff_multiplier,
        non_retryable_codes: codes,
    })
}
