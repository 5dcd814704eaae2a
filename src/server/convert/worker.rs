use std::{
    collections::{BTreeSet, HashSet},
    time::Duration,
};

use prost_types::Duration as ProtoDuration;
use tokio::time::Instant;

use super::{
    job::job,
    payload::{Format, format, payload},
    spec::{labels, request_key},
    time::{optional_duration, proto_duration, proto_timestamp},
};
use crate::{
    config::{Config, Limits},
    engine::{Granted, LeaseRequest, Stopped},
    job::{Cause, Error, JobError, Kind, Progress, QueueName, Report, Timestamp, View, WorkerId, cut},
    proto::{
        self, Finish, LeaseJobsRequest, LeaseProgress, WorkerHello, finish::Outcome, lease_revoked::Reason,
    },
    server::tokens::LeaseKey,
    store::LeaseId,
};

/// Kinds and queues of one worker, each.
const MAX_NAMES: usize = 256;

/// Leases that one message names, more than any worker holds.
const MAX_NAMED: usize = 200_000;

/// Bytes of what is told back of a lease id, more than one of ours has.
const MAX_ID: usize = 128;

/// Characters of `sdk`, for the log.
const MAX_SDK: usize = 128;

/// The shortest lease a caller may ask for.
const MIN_LEASE: Duration = Duration::from_secs(1);

/// What a worker says first, checked.
pub struct Hello {
    pub worker: WorkerId,
    pub kinds: Vec<Kind>,
    pub queues: Vec<QueueName>,
    pub window: usize,
    pub held: Leases,
    pub format: Format,
    pub sdk: String,
}

/// Leases by their texts.
pub struct Leases {
    pub ours: HashSet<LeaseId>,
    /// What is no lease of this store.
    pub others: BTreeSet<String>,
}

/// The first message of a worker.
pub fn hello(hello: WorkerHello, config: &Config, key: &LeaseKey) -> Result<Hello, Error> {
    labels(hello.labels).map_err(|error| error.within("hello."))?;
    Ok(Hello {
        worker: WorkerId::of_program("hello.worker_id", &hello.worker_id)?,
        kinds: kinds("hello.kinds", &hello.kinds)?,
        queues: queues("hello.queues", &hello.queues)?,
        window: window("hello.max_in_flight", hello.max_in_flight, config)?,
        held: named("hello.held_lease_ids", hello.held_lease_ids, key)?,
        format: format("hello.payload_format", hello.payload_format, Format::Raw)?,
        sdk: cut(&hello.sdk, MAX_SDK),
    })
}

/// A call of LeaseJobs. `until`: when its wait ends, if it has one.
pub fn lease_request(
    request: LeaseJobsRequest,
    config: &Config,
    max_bytes: usize,
    until: Option<Instant>,
) -> Result<LeaseRequest, Error> {
    let most = config.limits.max_batch_items;
    let max_jobs = match usize::try_from(request.max_jobs) {
        Ok(0) => 1,
        Ok(jobs) if jobs <= most => jobs,
        _ => return Err(Error::invalid("max_jobs", format!("must be 1 to {most}"))),
    };
    Ok(LeaseRequest {
        worker: WorkerId::of_program("worker_id", &request.worker_id)?,
        kinds: kinds("kinds", &request.kinds)?,
        queues: queues("queues", &request.queues)?,
        max_jobs,
        max_bytes,
        lease: lease_duration(request.lease_duration.as_ref(), config)?,
        request_id: request_key("request_id", &request.request_id)?,
        until,
    })
}

/// How long a lease shall live.
pub fn lease_duration(asked: Option<&prost_types::Duration>, config: &Config) -> Result<Duration, Error> {
    let range = MIN_LEASE..=config.limits.max_attempt_timeout;
    Ok(optional_duration("lease_duration", asked, range)?.unwrap_or(config.workers.lease))
}

fn kinds(field: &str, names: &[String]) -> Result<Vec<Kind>, Error> {
    if names.is_empty() {
        return Err(Error::invalid(field, "must name the kinds of job that the worker runs"));
    }
    bounded(field, names.len(), MAX_NAMES)?;
    let kinds = names.iter().enumerate().map(|(index, name)| Kind::parse(&format!("{field}[{index}]"), name));
    kinds.collect()
}

fn queues(field: &str, names: &[String]) -> Result<Vec<QueueName>, Error> {
    if names.is_empty() {
        return Ok(vec![QueueName::default()]);
    }
    bounded(field, names.len(), MAX_NAMES)?;
    let queues =
        names.iter().enumerate().map(|(index, name)| QueueName::parse(&format!("{field}[{index}]"), name));
    queues.collect()
}

/// How many leases a worker may hold: what it asks for, and not more than the server gives anybody.
pub fn window(field: &str, number: i32, config: &Config) -> Result<usize, Error> {
    let window = usize::try_from(number).map_err(|_| Error::invalid(field, "must not be negative"))?;
    Ok(window.min(config.workers.max_in_flight))
}

/// Leases that a worker names: more than it may be given, if it waits for the answers to results, or if its window was
/// larger before.
pub fn named(field: &str, texts: Vec<String>, key: &LeaseKey) -> Result<Leases, Error> {
    bounded(field, texts.len(), MAX_NAMED)?;
    let mut leases = Leases { ours: HashSet::new(), others: BTreeSet::new() };
    for text in texts {
        match key.lease(&text) {
            Some(lease) => drop(leases.ours.insert(lease)),
            None => drop(leases.others.insert(cut(&text, MAX_ID))),
        }
    }
    Ok(leases)
}

fn bounded(field: &str, size: usize, limit: usize) -> Result<(), Error> {
    if size <= limit {
        return Ok(());
    }
    Err(Error::TooLarge { field: field.into(), limit: limit as u64, size: size as u64 })
}

/// How far an attempt has come, as its worker says.
pub fn step(field: &str, step: LeaseProgress, now: Timestamp) -> Result<(String, Progress), Error> {
    let progress = step.progress.unwrap_or_default();
    let at = |name: &str| format!("{field}.progress.{name}");
    let fraction = if progress.fraction.is_nan() { 0.0 } else { progress.fraction.clamp(0.0, 1.0) };
    let details = progress.details.map(|details| payload(&at("details"), details, Progress::DETAILS_MAX));
    let progress = Progress {
        fraction,
        note: cut(&progress.note, Progress::NOTE_MAX),
        details: details.transpose()?.filter(|details| !details.is_none()),
        update_time: now,
    };
    Ok((cut(&step.lease_id, MAX_ID), progress))
}

/// The outcome of an attempt, as its worker says.
pub fn report(finish: Finish, limits: &Limits) -> Result<Report, Error> {
    match finish.outcome {
        None => Err(Error::invalid("finish.outcome", "must be one of succeeded, failed and released")),
        Some(Outcome::Succeeded(output)) => {
            payload("finish.succeeded", output, limits.max_output_bytes).map(Report::Succeeded)
        }
        Some(Outcome::Failed(error)) => failed(error, limits).map(Report::Failed),
        Some(Outcome::Released(release)) => {
            let delay = ahead("finish.released.delay", release.delay.as_ref(), limits)?;
            Ok(Report::Released { delay: delay.unwrap_or_default() })
        }
    }
}

/// How long to wait before the next attempt. What happened counts for more than a wish that is too long: that is cut.
fn ahead(field: &str, delay: Option<&ProtoDuration>, limits: &Limits) -> Result<Option<Duration>, Error> {
    let delay = optional_duration(field, delay, Duration::ZERO..=Duration::MAX)?;
    Ok(delay.map(|delay| delay.min(limits.max_delay)))
}

/// An error without details that are larger than they may be, for the same reason.
fn failed(error: proto::JobError, limits: &Limits) -> Result<JobError, Error> {
    let details = error
        .details
        .map(|details| payload("finish.failed.details", details, usize::MAX))
        .transpose()?
        .filter(|details| !details.is_none() && details.size <= JobError::DETAILS_MAX);
    let retry_delay = ahead("finish.failed.retry_delay", error.retry_delay.as_ref(), limits)?;
    Ok(JobError {
        details,
        retry_delay,
        ..JobError::new(Cause::Handler, &error.code, &error.message, error.retryable)
    })
}

/// A lease as it is sent.
pub fn lease(granted: &Granted, key: &LeaseKey, format: Format) -> proto::Lease {
    proto::Lease {
        lease_id: key.text(granted.lease),
        sequence: granted.sequence,
        job: Some(job(&granted.job, View::Full, format, usize::MAX)),
        lease_expire_time: Some(proto_timestamp(granted.until)),
        attempt_deadline: Some(proto_timestamp(granted.deadline)),
    }
}

/// The texts of leases that are over, and of what never was one.
pub fn lost(lost: &[LeaseId], others: BTreeSet<String>, key: &LeaseKey) -> Vec<String> {
    lost.iter().map(|lease| key.text(*lease)).chain(others).collect()
}

/// Tells a worker to stop.
pub fn revoked(lease_id: String, why: Stopped, grace: Duration) -> proto::LeaseRevoked {
    let reason = match why {
        Stopped::Cancelled => Reason::Cancelled,
        Stopped::Timeout => Reason::Timeout,
        Stopped::Expired => Reason::Expired,
    };
    proto::LeaseRevoked { lease_id, reason: reason.into(), grace: Some(proto_duration(grace)) }
}
