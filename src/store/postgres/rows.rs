//! Between rows and the vocabulary.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use serde::Deserialize;
use tokio_postgres::{
    Row,
    types::{FromSql, FromSqlOwned},
};

use super::{
    bundle::{Bundle, Seat},
    lines::{Line, Lines},
    pool::{Failure, Result},
};
use crate::{
    job::{
        Attempt, FinalState, Job, Lease, Live, LiveState, Payload, Policy, Progress, State, Timestamp, View,
    },
    store::{
        fixed::Fixed,
        written::{self, Damaged},
    },
};

/// The row of an unfinished job.
#[derive(Clone, Debug)]
pub struct LiveRow {
    pub num: i64,
    /// The first number of its block.
    pub block: i64,
    pub line: i32,
    /// None: the queue's.
    pub retention: Option<Duration>,
    pub live: Live,
    /// Where its lease is, if that has no row of its own.
    pub seat: Option<Seat>,
}

impl LiveRow {
    /// When retention removes a job that ends now: by its own word, or its queue's.
    pub fn keep_until(&self, line: &Line, now: Timestamp) -> Timestamp {
        now.after(self.retention.unwrap_or(line.policy.retention))
    }
}

/// A job as `jobs.sql` has it.
#[derive(Clone, Debug)]
pub struct JobRow {
    pub num: i64,
    pub line: i32,
    /// Of the newest grant.
    pub fence: i64,
    /// None once it is final.
    pub live: Option<LiveRow>,
    /// Its place in the feed, if it is final.
    pub seq: Option<i64>,
    pub job: Arc<Job>,
}

impl JobRow {
    /// What holds for the job: its own word over its queue's.
    pub fn policy(&self, line: &Line) -> Policy {
        line.policy.of(&self.job.spec)
    }
}

/// A value of a column. The statements are ours: a column that is missing is a bug that any test of it meets.
pub fn get<'a, T: FromSql<'a>>(row: &'a Row, column: &str) -> T {
    row.get(column)
}

fn some<T: FromSqlOwned>(row: &Row, column: &'static str) -> Result<T> {
    get::<Option<T>>(row, column).ok_or(Failure::Damaged(column))
}

pub fn time(row: &Row, column: &str) -> Option<Timestamp> {
    get::<Option<i64>>(row, column).map(Timestamp)
}

fn parsed<T: std::str::FromStr>(text: &str, what: &'static str) -> Result<T> {
    text.parse().map_err(|_| Failure::Damaged(what))
}

fn number(value: i32) -> u32 {
    value.unsigned_abs()
}

pub fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

pub fn state(number: i32) -> Result<State> {
    State::from_number(number).ok_or(Failure::Damaged("a state"))
}

/// An unfinished job's row, of any statement with these columns.
pub fn live(row: &Row) -> Result<LiveRow> {
    let State::Live(state) = state(some(row, "state")?)? else { return Err(Failure::Damaged("a state")) };
    let worker: Option<&str> = get(row, "worker");
    let lease = match (worker, time(row, "started"), time(row, "until")) {
        (Some(worker), Some(started), Some(until)) => {
            Some(Lease { worker: parsed(worker, "a worker id")?, started, until })
        }
        _ => None,
    };
    if (state == LiveState::Running) != lease.is_some() {
        return Err(Failure::Damaged("a lease"));
    }
    Ok(LiveRow {
        num: some(row, "num")?,
        block: some(row, "block")?,
        line: some(row, "line")?,
        retention: get::<Option<i64>>(row, "retention").map(|ms| Duration::from_millis(ms.unsigned_abs())),
        live: Live {
            state,
            run: number(some(row, "run")?),
            attempt: number(some(row, "attempt")?),
            version: some(row, "version")?,
            priority: some(row, "priority")?,
            due: Timestamp(some(row, "due")?),
            start_by: time(row, "start_by"),
            end_by: time(row, "end_by"),
            fence: some(row, "fence")?,
            lease,
            cancel_reason: get(row, "cancel_reason"),
        },
        seat: None,
    })
}

/// The place of a job in a bundle, of any statement with these columns. `bundle`: the one of the row before.
pub fn seat(row: &Row, bundle: &mut Option<Arc<Bundle>>) -> Option<Seat> {
    let (place, places): (Option<i32>, Option<i32>) = (get(row, "place"), get(row, "places"));
    let (place, places) = (place? as usize, places? as usize);
    let fence = get(row, "fence");
    let known = bundle.take().filter(|bundle| bundle.fence == fence);
    Some(bundle.insert(known.unwrap_or_else(|| Bundle::new(fence, places))).seat(place))
}

/// The fixed part. `content_type` names its column: outcomes have one of their own.
fn fixed(row: &Row, lines: &Lines, content_type: &'static str, body: Option<Bytes>) -> Result<Fixed> {
    let line = lines.get(some(row, "line")?)?;
    let content_type = some(row, content_type)?;
    let size = usize::try_from(some::<i64>(row, "size")?).map_err(|_| Failure::Damaged("a size"))?;
    let payload = Payload { content_type, size, body };
    let options: Option<&str> = get(row, "options");
    let (queue, kind) = (line.queue.clone(), line.kind.clone());
    let (spec, trace) = written::spec(queue, kind, some(row, "priority")?, payload, options)?;
    let id: &str = get::<Option<&str>>(row, "id").ok_or(Failure::Damaged("a job id"))?;
    Ok(Fixed { id: parsed(id, "a job id")?, spec, trace, submitted: Timestamp(some(row, "submitted")?) })
}

fn body(row: &Row, column: &str) -> Option<Bytes> {
    get::<Option<&[u8]>>(row, column).map(Bytes::copy_from_slice)
}

/// A leased job, of `claim.sql`.
pub fn leased(row: &Row, lines: &Lines) -> Result<(LiveRow, Job)> {
    let live = live(row)?;
    let fixed = fixed(row, lines, "content_type", body(row, "payload"))?;
    let job = fixed.live_with_past(&live.live, progress(row, "at")?, last_failure(row, live.live.run)?);
    Ok((live, job))
}

/// A job, of `jobs.sql`. None where there is none, or nothing but its row.
pub fn job(row: &Row, lines: &Lines, view: View) -> Result<Option<JobRow>> {
    let Some(num) = get::<Option<i64>>(row, "num") else { return Ok(None) };
    let (is_live, seq): (bool, Option<i64>) = (get(row, "is_live"), get(row, "seq"));
    if !is_live && seq.is_none() {
        return Ok(None);
    }
    let body = body(row, "payload");
    let fixed = fixed(row, lines, "content_type", body)?;
    let (live, mut job) = if is_live {
        let live = LiveRow { seat: seat(row, &mut None), ..live(row)? };
        let (progress, failed) = (progress(row, "progress_at")?, last_failure(row, live.live.run)?);
        let job = fixed.live_with_past(&live.live, progress, failed);
        (Some(live), job)
    } else {
        (None, ended(row, fixed)?)
    };
    if view == View::Full {
        job.attempts = failures(row)?;
    }
    let (line, fence) = (some(row, "line")?, some(row, "fence")?);
    Ok(Some(JobRow { num, line, fence, live, seq, job: job.into() }))
}

/// A final job, of `jobs.sql` or `outcomes.sql`.
fn ended(row: &Row, fixed: Fixed) -> Result<Job> {
    let run = number(some(row, "run")?);
    let output = match get::<Option<String>>(row, "output_type") {
        None => None,
        Some(content_type) => {
            let size = some::<i64>(row, "output_size")?.unsigned_abs() as usize;
            Some(Payload { content_type, size, body: body(row, "output") })
        }
    };
    let state: FinalState = match state(some(row, "state")?)? {
        State::Final(state) => state,
        State::Live(_) => return Err(Failure::Damaged("a job that is in no state")),
    };
    let worker = get::<Option<&str>>(row, "worker").map(|text| parsed(text, "a worker id")).transpose()?;
    let mut job = Job {
        id: fixed.id,
        spec: fixed.spec,
        state: State::Final(state),
        attempt: number(some(row, "attempt")?),
        run,
        output,
        error: get::<Option<&str>>(row, "error").map(written::error).transpose()?,
        progress: None,
        cancel_requested: false,
        worker,
        submit_time: fixed.submitted,
        next_attempt_time: None,
        start_time: time(row, "started"),
        finish_time: time(row, "finished"),
        delete_time: time(row, "keep_until"),
        version: some(row, "version")?,
        trace: fixed.trace,
        attempts: Vec::new(),
    };
    if job.attempt > 0 && job.worker.is_none() {
        // It ended without a lease: while it backed off, or late. The last attempt is told by its failure.
        if let Some(failed) = last_failure(row, run)? {
            job.start_time = failed.start_time;
            job.worker = failed.worker;
        }
    }
    Ok(job)
}

/// An outcome's job, of `outcomes.sql`. None if it was removed.
pub fn outcome(row: &Row, lines: &Lines) -> Result<Option<Job>> {
    if get::<Option<&str>>(row, "id").is_none() {
        return Ok(None);
    }
    ended(row, fixed(row, lines, "input_type", None)?).map(Some)
}

fn progress(row: &Row, at: &'static str) -> Result<Option<Progress>> {
    let Some(update_time) = time(row, at) else { return Ok(None) };
    let details = get::<Option<String>>(row, "details_type")
        .map(|content_type| Payload::new(content_type, body(row, "details").unwrap_or_default()));
    Ok(Some(Progress { fraction: some(row, "fraction")?, note: some(row, "note")?, details, update_time }))
}

/// An attempt that failed, as `failures` has it.
#[derive(Deserialize)]
struct FailureRow {
    run: u32,
    attempt: u32,
    worker: Option<String>,
    started: Option<i64>,
    finished: i64,
    error: String,
}

fn last_failure(row: &Row, run: u32) -> Result<Option<Attempt>> {
    Ok(failures(row)?.pop().filter(|failed| failed.run == run))
}

/// The column `failures`: newest last.
fn failures(row: &Row) -> Result<Vec<Attempt>> {
    let Some(text) = get::<Option<&str>>(row, "failures") else { return Ok(Vec::new()) };
    let rows: Vec<FailureRow> = serde_json::from_str(text).map_err(|_| Damaged("a failure"))?;
    rows.into_iter()
        .map(|row| {
            Ok(Attempt {
                run: row.run,
                attempt: row.attempt,
                worker: row.worker.map(|text| parsed(&text, "a worker id")).transpose()?,
                start_time: row.started.map(Timestamp),
                finish_time: Timestamp(row.finished),
                error: Some(written::error(&row.error)?),
            })
        })
        .collect()
}
