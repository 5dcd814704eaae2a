//! Between the messages of the contract and what handlers know.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::{
    job::{Error, JobError, JobId, JobSpec, Kind, Payload, Progress, QueueName, Timestamp},
    proto::{self, Finish, Lease, LeaseProgress, Release, finish::Outcome, payload::Body},
    worker::ContextParts,
};

/// What the handler of a leased job is given.
pub fn task(lease: Lease) -> Result<(ContextParts, Payload), Error> {
    let missing = |field: &str| Error::invalid(field, "is missing");
    let job = lease.job.ok_or_else(|| missing("job"))?;
    let spec = job.spec.ok_or_else(|| missing("job.spec"))?;
    // From the server's clock alone: this machine's may differ.
    let time = lease.attempt_deadline.zip(job.start_time).map(|(end, start)| millis(end) - millis(start));
    let time = time.map_or(Duration::MAX, |millis| Duration::from_millis(millis.max(0).unsigned_abs()));
    let far = Duration::from_secs(365 * 24 * 3600);
    let parts = ContextParts {
        job_id: JobId::parse("job.job_id", &job.job_id)?,
        run: job.run.max(0).unsigned_abs(),
        attempt: job.attempt.max(0).unsigned_abs(),
        spec: Arc::new(JobSpec {
            queue: QueueName::parse("job.spec.queue", &spec.queue)?,
            labels: spec.labels,
            ..JobSpec::new(Kind::parse("job.spec.kind", &spec.kind)?, Payload::none())
        }),
        trace: job.trace_context,
        deadline: Instant::now() + time.min(far),
        last_progress: job.progress.map(progress).transpose()?,
        clock: Arc::default(),
    };
    Ok((parts, spec.payload.map_or_else(|| Ok(Payload::none()), payload)?))
}

fn millis(time: prost_types::Timestamp) -> i64 {
    time.seconds.saturating_mul(1000).saturating_add(i64::from(time.nanos / 1_000_000))
}

fn progress(progress: proto::Progress) -> Result<Progress, Error> {
    Ok(Progress {
        fraction: progress.fraction,
        note: progress.note,
        details: progress.details.map(payload).transpose()?,
        update_time: Timestamp(progress.update_time.map_or(0, millis)),
    })
}

/// As the hello asks for them: bytes.
fn payload(payload: proto::Payload) -> Result<Payload, Error> {
    match payload.body {
        Some(Body::Data(data)) => Ok(Payload::new(payload.content_type, data)),
        Some(Body::Text(text)) => Ok(Payload::new(payload.content_type, text)),
        Some(Body::Json(_)) => Err(Error::invalid("payload", "came in a format that was not asked for")),
        None => Ok(Payload::new(payload.content_type, "")),
    }
}

fn proto_payload(payload: Payload) -> proto::Payload {
    let body = (!payload.is_none()).then(|| Body::Data(payload.bytes()));
    proto::Payload { body, content_type: payload.content_type, ..Default::default() }
}

/// How far an attempt has come.
pub fn step(lease_id: String, progress: Progress) -> LeaseProgress {
    let progress = proto::Progress {
        fraction: progress.fraction,
        note: progress.note,
        details: progress.details.map(proto_payload),
        ..Default::default()
    };
    LeaseProgress { lease_id, progress: Some(progress) }
}

/// What a handler has come to.
pub fn finish(lease_id: String, result: Result<Payload, JobError>) -> Finish {
    let outcome = match result {
        Ok(output) => Outcome::Succeeded(proto_payload(output)),
        Err(error) => Outcome::Failed(proto::JobError {
            code: error.code,
            message: error.message,
            retryable: error.retryable,
            // The server would leave out what is larger.
            details: error.details.filter(|details| details.size <= JobError::DETAILS_MAX).map(proto_payload),
            retry_delay: error.retry_delay.and_then(|delay| delay.try_into().ok()),
            ..Default::default()
        }),
    };
    Finish { lease_id, outcome: Some(outcome) }
}

/// Gives a lease back: the attempt does not count.
pub fn release(lease_id: String, reason: &str) -> Finish {
    let release = Release { reason: reason.into(), ..Default::default() };
    Finish { lease_id, outcome: Some(Outcome::Released(release)) }
}
