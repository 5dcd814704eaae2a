//! Reading jobs. Works on the writer's connection, inside its transaction, and on a reader's.

use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::{
    done,
    rows::{self, LIVE_COLUMNS, LiveRow, Result},
};
use crate::{
    job::{Attempt, Job, JobError, JobId, JobSpec, Payload, Progress, Timestamp, View},
    store::{LeaseId, fixed::Fixed},
};

/// The number of a job. Its row is looked at, not only the index: damage must not make it pass for another.
pub fn num(connection: &Connection, id: &JobId) -> Result<Option<i64>> {
    let found = connection
        .prepare_cached(
            "SELECT job.num, job.id FROM job AS found JOIN job ON job.num = found.num WHERE found.id = ?1",
        )?
        .query_row([id], |row| Ok((row.get(0)?, rows::job_id(row.get_ref(1)?)?)))
        .optional()?;
    match found {
        Some((_, other)) if other != *id => Err(rows::damaged("the index of job ids")),
        found => Ok(found.map(|(num, _)| num)),
    }
}

pub fn id(connection: &Connection, num: i64) -> Result<Option<JobId>> {
    connection
        .prepare_cached("SELECT id FROM job WHERE num = ?1")?
        .query_row([num], |row| rows::job_id(row.get_ref(0)?))
        .optional()
}

const FIXED: &str = "SELECT job.id, queue, kind, priority, submitted, content_type, length(payload) AS size, options \
     FROM job JOIN line ON line.id = job.line WHERE num = ?1";
const FIXED_WITH_PAYLOAD: &str = "SELECT job.id, queue, kind, priority, submitted, content_type, payload, crc, options \
     FROM job JOIN line ON line.id = job.line WHERE num = ?1";

pub fn fixed(connection: &Connection, num: i64, with_payload: bool) -> Result<Option<Fixed>> {
    let sql = if with_payload { FIXED_WITH_PAYLOAD } else { FIXED };
    connection.prepare_cached(sql)?.query_row([num], |row| fixed_row(row, with_payload)).optional()
}

fn fixed_row(row: &Row<'_>, with_payload: bool) -> Result<Fixed> {
    let content_type: String = row.get("content_type")?;
    let payload = if with_payload {
        Payload::new(content_type, rows::payload(row)?)
    } else {
        Payload { content_type, size: row.get("size")?, body: None }
    };
    fixed_of(row, payload)
}

fn fixed_of(row: &Row<'_>, payload: Payload) -> Result<Fixed> {
    let (queue, kind) = rows::names(row)?;
    let options = row.get_ref("options")?;
    let (spec, trace) = rows::spec(queue, kind, row.get("priority")?, payload, options.as_str_or_null()?)?;
    Ok(Fixed {
        id: rows::job_id(row.get_ref("id")?)?,
        spec,
        trace,
        submitted: Timestamp(row.get("submitted")?),
    })
}

pub fn spec_without_payload(connection: &Connection, num: i64) -> Result<Arc<JobSpec>> {
    Ok(fixed(connection, num, false)?.ok_or_else(|| rows::damaged("a job without its spec"))?.spec)
}

/// The row of an unfinished job that has one.
pub fn live(connection: &Connection, num: i64) -> Result<Option<LiveRow>> {
    let sql = const_format::concatcp!("SELECT ", LIVE_COLUMNS, " FROM live WHERE num = ?1");
    connection.prepare_cached(sql)?.query_row([num], rows::live_row).optional()
}

/// What would be the row of a job that is in a bundle.
pub fn seat(connection: &Connection, num: i64) -> Result<Option<LiveRow>> {
    let sql = const_format::concatcp!(
        "SELECT ",
        LIVE_COLUMNS,
        " FROM seat WHERE num = ?1 AND bundle = (SELECT max(first) FROM bundle WHERE first <= ?1)"
    );
    connection.prepare_cached(sql)?.query_row([num], rows::live_row).optional()
}

/// A job as it is in the snapshot.
pub fn job(connection: &Connection, num: i64, view: View) -> Result<Option<Job>> {
    let Some(fixed) = fixed(connection, num, view == View::Full)? else { return Ok(None) };
    let mut job = if let Some(row) = live(connection, num)? {
        live_job(connection, fixed, &row)?
    } else if let Some(job) = done_job(connection, num, &fixed, view)? {
        job
    } else {
        let row = seat(connection, num)?.ok_or_else(|| rows::damaged("a job that is in no state"))?;
        live_job(connection, fixed, &row)?
    };
    if view == View::Full {
        job.attempts = attempts(connection, num)?;
    }
    Ok(Some(job))
}

/// The job of a lease that is not over, without its history.
pub fn leased(connection: &Connection, lease: &LeaseId, with_input: bool) -> Result<Option<Job>> {
    let live = match live(connection, lease.job)? {
        None => seat(connection, lease.job)?,
        live => live,
    };
    let Some(row) = live.filter(|row| row.live.fence == lease.fence && row.live.lease.is_some()) else {
        return Ok(None);
    };
    let Some(fixed) = fixed(connection, lease.job, with_input)? else { return Ok(None) };
    live_job(connection, fixed, &row).map(Some)
}

/// The job of a lease, and whether it was the newest one when the job ended.
pub fn lease_job(connection: &Connection, lease: LeaseId) -> Result<Option<(JobId, bool)>> {
    let Some(id) = id(connection, lease.job)? else { return Ok(None) };
    let ended = done::newest(connection, lease.job, false)?;
    Ok(Some((id, ended.is_some_and(|ended| ended.alike.fence == lease.fence))))
}

/// An unfinished job, without its history.
pub fn live_job(connection: &Connection, fixed: Fixed, row: &LiveRow) -> Result<Job> {
    // A released attempt is not counted, but may have left progress.
    Ok(match row.live.version > 1 {
        true => {
            let failed = latest_failure(connection, row.num, row.live.run)?;
            fixed.live_with_past(&row.live, progress(connection, row.num)?, failed)
        }
        false => fixed.live(&row.live),
    })
}

fn done_job(connection: &Connection, num: i64, fixed: &Fixed, view: View) -> Result<Option<Job>> {
    let Some(ended) = done::newest(connection, num, view != View::Basic)? else { return Ok(None) };
    match ended.is_intact || view == View::Basic {
        true => done::job(connection, fixed.clone(), &ended, num).map(Some),
        false => Err(rows::damaged("the output of a job")),
    }
}

pub fn progress(connection: &Connection, num: i64) -> Result<Option<Progress>> {
    connection
        .prepare_cached("SELECT * FROM progress WHERE num = ?1")?
        .query_row([num], rows::progress)
        .optional()
}

pub fn latest_failure(connection: &Connection, num: i64, run: u32) -> Result<Option<Attempt>> {
    connection
        .prepare_cached("SELECT * FROM failure WHERE num = ?1 AND run = ?2 ORDER BY attempt DESC LIMIT 1")?
        .query_row(params![num, run], attempt)
        .optional()
}

fn attempts(connection: &Connection, num: i64) -> Result<Vec<Attempt>> {
    connection
        .prepare_cached("SELECT * FROM failure WHERE num = ?1 ORDER BY run, attempt LIMIT ?2")?
        .query_map(params![num, Attempt::KEPT as i64], attempt)?
        .collect()
}

fn attempt(row: &Row<'_>) -> Result<Attempt> {
    let error: JobError = rows::error(row.get_ref("error")?.as_str()?)?;
    Ok(Attempt {
        run: row.get("run")?,
        attempt: row.get("attempt")?,
        worker: rows::worker(row, "worker")?,
        start_time: rows::time(row, "started")?,
        finish_time: Timestamp(row.get("finished")?),
        error: Some(error),
    })
}
