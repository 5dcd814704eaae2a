//! Accepting jobs.

use std::sync::Arc;

use rusqlite::{OptionalExtension, params};

use super::{
    change, read,
    rows::{self, LiveRow, Result},
    tx::Tx,
};
use crate::{
    job::{Error, Job, JobId, JobSpec, Live, LiveState, Timestamp},
    store::{
        GroupReply, Position, Submission, Submitted,
        fixed::Fixed,
        written::{self, fingerprint},
    },
};

pub fn submit(tx: &mut Tx<'_>, now: Timestamp, groups: Vec<Vec<Submission>>) -> Result<Vec<GroupReply>> {
    let before = tx.effects.head;
    groups.into_iter().map(|group| submit_group(tx, now, group, before)).collect()
}

fn submit_group(
    tx: &mut Tx<'_>,
    now: Timestamp,
    group: Vec<Submission>,
    before: Position,
) -> Result<GroupReply> {
    // One item writes nothing before it is accepted.
    let several = group.len() > 1;
    let (mark, last) = (tx.lines.mark(), tx.numbers.last());
    if several {
        tx.connection.prepare_cached("SAVEPOINT batch")?.execute([])?;
    }
    let mut accepted = Vec::with_capacity(group.len());
    for (index, submission) in group.into_iter().enumerate() {
        match submit_one(tx, now, &submission, before)? {
            Ok(submitted) => accepted.push(submitted),
            Err(error) => {
                if several {
                    tx.connection.prepare_cached("ROLLBACK TO batch")?.execute([])?;
                    tx.connection.prepare_cached("RELEASE batch")?.execute([])?;
                    tx.lines.roll_back(mark);
                    tx.fresh.roll_back(last);
                    (last + 1..=tx.numbers.last()).for_each(|num| tx.recent.forget(num));
                }
                return Ok(Err((index, error)));
            }
        }
    }
    if several {
        tx.connection.prepare_cached("RELEASE batch")?.execute([])?;
    }
    Ok(Ok(accepted))
}

fn submit_one(
    tx: &mut Tx<'_>,
    now: Timestamp,
    submission: &Submission,
    before: Position,
) -> Result<std::result::Result<Submitted, Error>> {
    match find(tx, now, submission)? {
        Ok(None) => {}
        Ok(Some(num)) => {
            let job = match present(tx, num)? {
                Ok(job) => job,
                Err(error) => return Ok(Err(error)),
            };
            if !submission.check_only {
                remember(tx, now, submission, num, &job.id)?;
            }
            return Ok(Ok(Submitted { job: job.into(), deduplicated: true, position: before }));
        }
        Err(error) => return Ok(Err(error)),
    }
    if let Some(error) = no_room(tx, &submission.spec) {
        return Ok(Err(error));
    }
    let fixed = Fixed {
        id: submission.job_id.clone(),
        spec: submission.spec.clone(),
        trace: submission.trace.clone(),
        submitted: now,
    };
    let live = match submission.check_only {
        true => Live::admit(&submission.spec, now),
        false => insert(tx, now, submission, fixed.clone())?,
    };
    Ok(Ok(Submitted { job: fixed.live(&live).into(), deduplicated: false, position: before }))
}

/// A job that is there already, without its payload and its output.
fn present(tx: &Tx<'_>, num: i64) -> Result<std::result::Result<Job, Error>> {
    if let Some((row, fixed)) = tx.fresh.get(num) {
        let fixed = Fixed { spec: fixed.spec.omit_payload(), ..fixed.clone() };
        return Ok(Ok(fixed.live(&row.live)));
    }
    change::present(tx, num)
}

/// The job that is there already, by request_id, job_id or unique_key, in this order.
fn find(
    tx: &Tx<'_>,
    now: Timestamp,
    submission: &Submission,
) -> Result<std::result::Result<Option<i64>, Error>> {
    if let Some(request_id) = &submission.request_id {
        let known = tx
            .connection
            .prepare_cached(
                "SELECT num, job_id, asked, own_id FROM request WHERE caller = ?1 AND request_id = ?2 AND until > ?3",
            )?
            .query_row(params![submission.caller, request_id.as_str(), now], |row| {
                let own_id: Option<String> = row.get(3)?;
                Ok((row.get(0)?, row.get::<_, String>(1)?, row.get::<_, Vec<u8>>(2)?, own_id))
            })
            .optional()?;
        if let Some((num, job_id, asked, own_id)) = known {
            let request_id = request_id.to_string();
            let named = submission.job_id.as_str();
            let same_id = !submission.own_id || named == job_id || Some(named) == own_id.as_deref();
            return Ok(if read::id(tx.connection, num)?.is_none() {
                Err(Error::JobDeleted { request_id, job_id })
            } else if !same_id || asked != fingerprint(submission) {
                Err(Error::RequestIdReused { request_id, job_id })
            } else {
                Ok(Some(num))
            });
        }
    }
    if submission.own_id
        && let Some(num) = tx.num(&submission.job_id)?
    {
        return Ok(match rows::intact(is_of(tx, num, &submission.spec))? {
            Ok(true) => Ok(Some(num)),
            Ok(false) => Err(Error::JobIdInUse { job_id: submission.job_id.to_string() }),
            Err(error) => Err(error),
        });
    }
    if let Some(unique_key) = &submission.spec.unique_key
        && let Some(num) = holder(tx, &submission.spec)?
    {
        if submission.reject_duplicate {
            let job_id = read::id(tx.connection, num)?.ok_or_else(|| rows::damaged("a job"))?;
            let (unique_key, job_id) = (unique_key.to_string(), job_id.to_string());
            return Ok(Err(Error::UniqueKeyInUse { unique_key, job_id }));
        }
        return Ok(Ok(Some(num)));
    }
    Ok(Ok(None))
}

/// Whether a job is one of this spec. Its payload is read only if all else is the same, its size too.
fn is_of(tx: &Tx<'_>, num: i64, spec: &JobSpec) -> Result<bool> {
    let is = |spec: &JobSpec, with_payload| -> Result<bool> {
        let fixed = read::fixed(tx.connection, num, with_payload)?;
        Ok(fixed.is_some_and(|fixed| *fixed.spec == *spec))
    };
    Ok(is(&spec.omit_payload(), false)? && is(spec, true)?)
}

/// The unfinished job that holds the unique key of a spec.
pub fn holder(tx: &Tx<'_>, spec: &JobSpec) -> Result<Option<i64>> {
    let Some(unique_key) = &spec.unique_key else { return Ok(None) };
    tx.connection
        .prepare_cached(
            "SELECT num FROM live WHERE unique_queue = ?1 AND unique_key = ?2 AND unique_key IS NOT NULL",
        )?
        .query_row(params![spec.queue.as_str(), unique_key.as_str()], |row| row.get(0))
        .optional()
}

fn remember(tx: &Tx<'_>, now: Timestamp, submission: &Submission, num: i64, job_id: &JobId) -> Result<()> {
    let Some(request_id) = &submission.request_id else { return Ok(()) };
    // The first answer counts: a repeat does not prolong it. One that is over is replaced.
    tx.connection
        .prepare_cached(
            "INSERT INTO request VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) ON CONFLICT DO UPDATE SET num = excluded.num, \
             job_id = excluded.job_id, asked = excluded.asked, own_id = excluded.own_id, until = excluded.until \
             WHERE until <= ?8",
        )?
        .execute(params![
            submission.caller,
            request_id.as_str(),
            num,
            job_id.as_str(),
            fingerprint(submission),
            submission.own_id.then(|| submission.job_id.as_str()),
            now.after(tx.config.limits.request_id_window),
            now,
        ])?;
    Ok(())
}

fn no_room(tx: &Tx<'_>, spec: &Arc<JobSpec>) -> Option<Error> {
    let limits = &tx.config.limits;
    let reserve = tx.config.store.reserve_bytes;
    let free = tx.shared.free_bytes();
    if free < reserve {
        return Some(Error::StoreFull { free, reserve });
    }
    let full = |what: &str, limit| Some(Error::QueueFull { what: what.to_owned(), limit });
    if !tx.lines.known(spec) && tx.lines.len() >= limits.max_lines {
        return full("the list of queues and kinds", limits.max_lines as u64);
    }
    let (jobs, bytes) = tx.lines.backlog();
    if jobs >= limits.max_unfinished {
        return full("the server's backlog of jobs", limits.max_unfinished);
    }
    if bytes + spec.payload.size as u64 > limits.max_unfinished_bytes {
        return full("the server's backlog of payload bytes", limits.max_unfinished_bytes);
    }
    let limit = tx.config.queues.get(spec.queue.as_str())?.max_unfinished?;
    if tx.lines.unfinished_of(&spec.queue) < limit {
        return None;
    }
    full(&format!("queue {}", spec.queue), limit)
}

fn insert(tx: &mut Tx<'_>, now: Timestamp, submission: &Submission, fixed: Fixed) -> Result<Live> {
    let spec = &submission.spec;
    let line = tx.lines.of(tx.connection, tx.config, spec)?;
    let payload = spec.payload.bytes();
    let num = tx.numbers.next();
    tx.statements
        .insert_job
        .get(
            tx.connection,
            "INSERT INTO job (num, id, line, priority, submitted, content_type, payload, crc, options) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
        )?
        .execute(params![
            num,
            submission.job_id,
            line,
            spec.priority,
            now,
            spec.payload.content_type,
            &payload[..],
            crc32fast::hash(&payload),
            written::options(spec, &submission.trace),
        ])?;
    let live = Live::admit(spec, now);
    let row =
        LiveRow { num, line, bytes: payload.len() as i64, retention: spec.retention, live: live.clone() };
    let job = Box::new((row, fixed));
    match &spec.unique_key {
        None if live.state == LiveState::Queued => tx.line_up(job)?,
        key => {
            tx.insert_live(&job.0, key.as_ref().map(|key| (spec.queue.as_str(), key.as_str())))?;
            tx.recent.keep(job);
        }
    }
    remember(tx, now, submission, num, &submission.job_id)?;
    Ok(live)
}
