//! Handing out leases.

use std::{collections::BTreeMap, sync::Arc};

use rusqlite::params;

use super::{
    fresh::Place,
    read,
    recent::Known,
    rows::{self, LiveRow, Result},
    tx::Tx,
};
use crate::{
    job::{Cause, Ending, FinalState, Job, JobError, Lease, QueueName, State, Timestamp},
    store::{Claim, LeaseId, Leased, turns::turns},
};

/// Adds at most `most` jobs to what the claim was given so far.
pub fn claim(
    tx: &mut Tx<'_>,
    now: Timestamp,
    claim: &Claim,
    most: usize,
    given: &mut Vec<Leased>,
) -> Result<()> {
    let mut bytes = given.iter().map(|leased| leased.job.spec.payload.size).sum::<usize>();
    for (lines, quota) in shares(tx, claim, most, given) {
        for num in first_in_line(tx, now, &lines, quota)? {
            if bytes >= claim.max_bytes {
                return Ok(());
            }
            let leased = match tx.fresh.take(num) {
                Some(job) => Some(lease_fresh(tx, now, claim, job)?),
                None => lease(tx, now, claim, num)?,
            };
            if let Some(leased) = leased {
                bytes = bytes.saturating_add(leased.job.spec.payload.size);
                given.push(leased);
            }
        }
    }
    Ok(())
}

/// The queues with due jobs, each with its lines and how many jobs to take: turn by turn, so that a long queue does
/// not keep a short one waiting, and nothing is left idle while any queue has work.
fn shares(tx: &mut Tx<'_>, claim: &Claim, wanted: usize, given: &[Leased]) -> Vec<(Vec<i64>, usize)> {
    let mut queues: BTreeMap<&QueueName, (Vec<i64>, usize)> = BTreeMap::new();
    for line in tx.lines.iter() {
        let queued = line.count(State::QUEUED) as usize;
        if queued > 0 && claim.asks_for(&line.queue, &line.kind) {
            let (lines, available) = queues.entry(&line.queue).or_default();
            lines.push(line.id);
            *available += queued;
        }
    }
    for (queue, (_, available)) in &mut queues {
        if let Some(&cap) = claim.caps.get(*queue) {
            let had = given.iter().filter(|leased| leased.job.spec.queue == **queue).count();
            *available = cap.saturating_sub(had).min(*available);
        }
    }
    let queues: Vec<_> = queues.into_values().filter(|(_, available)| *available > 0).collect();
    let mut queues = turns(queues, wanted);
    if claim.max_bytes < usize::MAX && !queues.is_empty() {
        // Perhaps not enough for all either.
        let first = fastrand::usize(..queues.len());
        queues.rotate_left(first);
    }
    queues
}

/// The jobs of a queue that come first, over all lines asked for. Those whose time is over are left to the next tick.
fn first_in_line(tx: &Tx<'_>, now: Timestamp, lines: &[i64], quota: usize) -> Result<Vec<i64>> {
    let mut first: Vec<Place> = Vec::new();
    let mut written = tx.connection.prepare_cached(
        "SELECT rank, num FROM live INDEXED BY live_ready WHERE line = ?1 AND state = 2 \
         AND (wake IS NULL OR wake > ?3) ORDER BY rank, num LIMIT ?2",
    )?;
    let mut sources = 0;
    for &line in lines {
        let fresh = tx.fresh.count(line);
        if fresh > 0 {
            first.extend(tx.fresh.places(line, now).take(quota));
            sources += 1;
        }
        if tx.lines.get(line)?.count(State::QUEUED) > fresh as u64 {
            let rows =
                written.query_map(params![line, quota as i64, now], |row| Ok((row.get(0)?, row.get(1)?)))?;
            for row in rows {
                first.push(row?);
            }
            sources += 1;
        }
    }
    if sources > 1 {
        first.sort_unstable();
        first.truncate(quota);
    }
    Ok(first.into_iter().map(|(_, num)| num).collect())
}

fn lease(tx: &mut Tx<'_>, now: Timestamp, claim: &Claim, num: i64) -> Result<Option<Leased>> {
    let row = tx.live(num)?.ok_or_else(|| rows::damaged("a job in line"))?;
    let known = tx.recent.get(row.num).map(|(_, fixed)| fixed.clone());
    let fixed = match known.map_or_else(|| read::fixed(tx.connection, row.num, true), |fixed| Ok(Some(fixed)))
    {
        Err(rusqlite::Error::FromSqlConversionFailure(_, _, why)) => {
            let message = format!("{why} is damaged; run `jobwire verify`");
            let error = JobError::new(Cause::Internal, "jobwire.data_loss", &message, false);
            tx.finish(&row, &Ending::without_result(FinalState::Failed, error), now, None)?;
            return Ok(None);
        }
        fixed => fixed?.ok_or_else(|| rows::damaged("a job without its spec"))?,
    };
    let live = row.live.claim(tx.fences.next(), lease_of(now, claim));
    tx.update_live(&row, &live)?;
    let is_new = row.live.version == 1;
    let row = LiveRow { live, ..row };
    let told = match is_new {
        true => fixed.clone().live(&row.live),
        false => read::live_job(tx.connection, fixed.clone(), &row)?,
    };
    hand_out(tx, Box::new((row, fixed)), told.into()).map(Some)
}

/// Leases a job that was accepted in the same transaction.
fn lease_fresh(tx: &mut Tx<'_>, now: Timestamp, claim: &Claim, mut job: Known) -> Result<Leased> {
    let (row, fixed) = &mut *job;
    let lease = lease_of(now, claim);
    let bundled = tx.bundle(row, fixed, &lease);
    let fence = bundled.unwrap_or_else(|| tx.fences.next());
    row.live = row.live.claim(fence, lease);
    tx.insert_leased(row, bundled.is_some())?;
    let told = Arc::new(fixed.clone().live(&row.live));
    hand_out(tx, job, told)
}

fn lease_of(now: Timestamp, claim: &Claim) -> Lease {
    Lease { worker: claim.worker.clone(), started: now, until: now.after(claim.lease) }
}

fn hand_out(tx: &mut Tx<'_>, leased: Known, job: Arc<Job>) -> Result<Leased> {
    let (row, fixed) = &*leased;
    let of_queue = tx.lines.get(row.line)?.policy.attempt_timeout;
    let attempt_timeout = fixed.spec.attempt_timeout.unwrap_or(of_queue);
    let lease = LeaseId { job: row.num, fence: row.live.fence };
    tx.recent.keep(leased);
    Ok(Leased { lease, job, attempt_timeout })
}
