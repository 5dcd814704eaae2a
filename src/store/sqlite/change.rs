//! What callers do to a job that is there: cancel, retry, delete.

use rusqlite::OptionalExtension;

use super::{
    done, read,
    rows::{self, LiveRow, Result},
    submit::holder,
    tx::Tx,
};
use crate::{
    job::{Cancelled, Error, Job, JobId, Retried, State, Suspension, Timestamp, View},
    store::{Cancel, Change, Delete, LeaseId, Position, Retry},
};

pub type Answer<T> = std::result::Result<T, Error>;

/// Where a job is.
enum Place {
    Live(LiveRow),
    Done { line: i64, state: crate::job::FinalState, run: u32, version: i64 },
}

pub fn cancel(tx: &mut Tx<'_>, now: Timestamp, cancel: &Cancel) -> Result<Answer<Change>> {
    let (num, place) = match find(tx, &cancel.job_id, cancel.etag.as_deref())? {
        Ok(found) => found,
        Err(error) => return Ok(Err(error)),
    };
    let mut revoke = None;
    if let Place::Live(row) = place {
        match row.live.cancel(&cancel.reason) {
            Cancelled::Now(ending) => tx.finish(&row, &ending, now, None)?,
            Cancelled::Asked(live) => tx.update_live(&row, &live)?,
            Cancelled::Already => {}
        }
        revoke = row.live.lease.map(|_| LeaseId { job: num, fence: row.live.fence });
    }
    Ok(present(tx, num)?.map(|job| Change { job, revoke }))
}

pub fn retry(tx: &mut Tx<'_>, now: Timestamp, retry: &Retry) -> Result<Answer<Change>> {
    let (num, place) = match find(tx, &retry.job_id, retry.etag.as_deref())? {
        Ok(found) => found,
        Err(error) => return Ok(Err(error)),
    };
    let spec = read::spec_without_payload(tx.connection, num)?;
    let suspension = match &place {
        Place::Live(row) => Suspension::Live(&row.live),
        &Place::Done { state, run, version, .. } => Suspension::Final { state, run, version },
    };
    match (suspension.retry(retry.job_id.as_str(), &spec, retry.delay, now), &place) {
        (Err(error), _) => return Ok(Err(error)),
        (Ok(Retried::Now(live)), Place::Live(row)) => tx.update_live(row, &live)?,
        (Ok(Retried::Run(live)), &Place::Done { line, .. }) => {
            if let Some(other) = holder(tx, &spec)? {
                let job_id =
                    read::id(tx.connection, other)?.ok_or_else(|| rows::damaged("a job"))?.to_string();
                let unique_key = spec.unique_key.as_ref().map(ToString::to_string).unwrap_or_default();
                return Ok(Err(Error::UniqueKeyInUse { unique_key, job_id }));
            }
            let row = LiveRow { num, line, bytes: spec.payload.size as i64, retention: spec.retention, live };
            let unique = spec.unique_key.as_ref().map(|key| (spec.queue.as_str(), key.as_str()));
            tx.insert_live(&row, unique)?;
        }
        _ => unreachable!("only a final job gets a new run"),
    }
    Ok(present(tx, num)?.map(|job| Change { job, revoke: None }))
}

pub fn delete(tx: &mut Tx<'_>, delete: &Delete) -> Result<Answer<Position>> {
    match find(tx, &delete.job_id, delete.etag.as_deref())? {
        Err(Error::JobNotFound { .. }) if delete.allow_missing => Ok(Ok(tx.effects.head)),
        Err(error) => Ok(Err(error)),
        Ok((num, Place::Done { .. })) => Ok(rows::intact(remove(tx, num))?.map(|()| tx.effects.head)),
        Ok((_, Place::Live(row))) => Ok(Err(Error::JobState {
            job_id: delete.job_id.to_string(),
            state: State::Live(row.live.state),
            wanted: "a final state: cancel it first",
        })),
    }
}

/// Everything of a final job but its request ids. Nothing of it if an outcome that shares a row is damaged.
pub fn remove(tx: &mut Tx<'_>, num: i64) -> Result<()> {
    tx.removed = true;
    tx.remove_outcomes(num, i64::MAX)?;
    for sql in [
        "DELETE FROM failure WHERE num = ?1",
        "DELETE FROM progress WHERE num = ?1",
        "DELETE FROM job WHERE num = ?1",
    ] {
        tx.connection.prepare_cached(sql)?.execute([num])?;
    }
    Ok(())
}

fn find(tx: &Tx<'_>, id: &JobId, etag: Option<&str>) -> Result<Answer<(i64, Place)>> {
    let Some(num) = tx.num(id)? else { return Ok(Err(Error::JobNotFound { job_id: id.to_string() })) };
    let place = match tx.live(num)? {
        Some(row) => Place::Live(row),
        None => match rows::intact(done(tx, num))? {
            Ok(place) => place,
            Err(error) => return Ok(Err(error)),
        },
    };
    let version = match &place {
        Place::Live(row) => row.live.version,
        Place::Done { version, .. } => *version,
    };
    let present = Job::etag_of(version);
    if etag.is_some_and(|etag| etag != present) {
        return Ok(Err(Error::EtagMismatch { job_id: id.to_string(), etag: present }));
    }
    Ok(Ok((num, place)))
}

fn done(tx: &Tx<'_>, num: i64) -> Result<Place> {
    let line = tx
        .connection
        .prepare_cached("SELECT line FROM job WHERE num = ?1")?
        .query_row([num], |row| row.get(0))
        .optional()?;
    let Some((line, (state, run, version))) = line.zip(done::newest_state(tx.connection, num)?) else {
        return Err(rows::damaged("a job that is in no state"));
    };
    Ok(Place::Done { line, state, run, version })
}

/// A job as it is now, without its payload and its output: the writer copies nothing that is large.
pub fn present(tx: &Tx<'_>, num: i64) -> Result<Answer<Job>> {
    let job = read::job(tx.connection, num, View::Basic);
    rows::intact(job.and_then(|job| job.ok_or_else(|| rows::damaged("a job"))))
}
