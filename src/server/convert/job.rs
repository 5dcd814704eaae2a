use super::{
    payload::{Format, proto_payload},
    time::{proto_duration, proto_timestamp},
};
use crate::{
    job::{Attempt, Error, Job, JobError, JobSpec, Progress, Start, Timestamp, View},
    proto::{self, JobView, job_spec},
};

/// Larger error details than a message should carry do not exist: see `JobError::DETAILS_MAX`.
const ANY_SIZE: usize = usize::MAX;

/// The view that a request asks for; `unspecified` if it does not say.
pub fn view(number: i32, unspecified: View) -> Result<View, Error> {
    match JobView::try_from(number) {
        Ok(JobView::Unspecified) => Ok(unspecified),
        Ok(JobView::Basic) => Ok(View::Basic),
        Ok(JobView::Result) => Ok(View::Result),
        Ok(JobView::Full) => Ok(View::Full),
        Err(_) => Err(Error::invalid("view", format!("{number} is not a known value"))),
    }
}

/// A job as it is sent: with what belongs to the view, and outputs up to `max_output` bytes.
pub fn job(job: &Job, view: View, format: Format, max_output: usize) -> proto::Job {
    let input = if view == View::Full { ANY_SIZE } else { 0 };
    let output = if view == View::Basic { 0 } else { max_output };
    proto::Job {
        job_id: job.id.to_string(),
        spec: Some(spec(&job.spec, format, input)),
        state: job.state.number(),
        attempt: number(job.attempt),
        run: number(job.run),
        output: job.output.as_ref().map(|payload| bodied(payload, format, output)),
        error: job.error.as_ref().map(|error| self::error(error, format)),
        progress: job.progress.as_ref().map(|progress| self::progress(progress, format)),
        cancel_requested: job.cancel_requested,
        worker_id: job.worker.as_ref().map(ToString::to_string).unwrap_or_default(),
        submit_time: Some(proto_timestamp(job.submit_time)),
        next_attempt_time: time(job.next_attempt_time),
        start_time: time(job.start_time),
        finish_time: time(job.finish_time),
        delete_time: time(job.delete_time),
        etag: job.etag(),
        trace_context: job.trace.clone(),
        attempts: match view {
            View::Full => job.attempts.iter().map(|attempt| self::attempt(attempt, format)).collect(),
            _ => Vec::new(),
        },
    }
}

fn spec(spec: &JobSpec, format: Format, max_body: usize) -> proto::JobSpec {
    let duration = |duration: Option<_>| duration.map(proto_duration);
    let retry = &spec.retry;
    proto::JobSpec {
        queue: spec.queue.to_string(),
        kind: spec.kind.to_string(),
        payload: (!spec.payload.is_none()).then(|| bodied(&spec.payload, format, max_body)),
        labels: spec.labels.clone(),
        priority: spec.priority,
        start: match spec.start {
            Start::Now => None,
            Start::Delay(delay) => Some(job_spec::Start::Delay(proto_duration(delay))),
            Start::At(time) => Some(job_spec::Start::StartTime(proto_timestamp(time))),
        },
        start_timeout: duration(spec.start_timeout),
        attempt_timeout: duration(spec.attempt_timeout),
        total_timeout: duration(spec.total_timeout),
        retry: (*retry != Default::default()).then(|| proto::RetryPolicy {
            max_attempts: number(retry.max_attempts.unwrap_or(0)),
            initial_backoff: duration(retry.initial_backoff),
            max_backoff: duration(retry.max_backoff),
            backoff_multiplier: retry.backoff_multiplier.unwrap_or(0.0),
            non_retryable_codes: retry.non_retryable_codes.clone(),
        }),
        retention: duration(spec.retention),
        unique_key: spec.unique_key.as_ref().map(ToString::to_string).unwrap_or_default(),
    }
}

/// `max_body` 0 means none, also of an empty document.
fn bodied(payload: &crate::job::Payload, format: Format, max_body: usize) -> proto::Payload {
    match max_body {
        0 => proto_payload(&payload.omit_body(), format, 0),
        _ => proto_payload(payload, format, max_body),
    }
}

fn error(error: &JobError, format: Format) -> proto::JobError {
    proto::JobError {
        cause: error.cause as i32,
        code: error.code.clone(),
        message: error.message.clone(),
        retryable: error.retryable,
        details: error.details.as_ref().map(|details| proto_payload(details, format, ANY_SIZE)),
        retry_delay: error.retry_delay.map(proto_duration),
    }
}

fn attempt(attempt: &Attempt, format: Format) -> proto::Attempt {
    proto::Attempt {
        run: number(attempt.run),
        attempt: number(attempt.attempt),
        worker_id: attempt.worker.as_ref().map(ToString::to_string).unwrap_or_default(),
        start_time: time(attempt.start_time),
        finish_time: Some(proto_timestamp(attempt.finish_time)),
        error: attempt.error.as_ref().map(|error| self::error(error, format)),
    }
}

pub fn progress(progress: &Progress, format: Format) -> proto::Progress {
    proto::Progress {
        fraction: progress.fraction,
        note: progress.note.clone(),
        details: progress.details.as_ref().map(|details| proto_payload(details, format, ANY_SIZE)),
        update_time: Some(proto_timestamp(progress.update_time)),
    }
}

fn time(time: Option<Timestamp>) -> Option<prost_types::Timestamp> {
    time.map(proto_timestamp)
}

fn number(number: u32) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}
