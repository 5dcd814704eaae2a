//! What time changes. Each duty does a bounded slice and says whether there is more.

use rusqlite::{OptionalExtension, params};

use super::{
    change,
    done::{self, place},
    rows::{self, Result},
    tx::Tx,
};
use crate::{
    job::{Cause, Timestamp},
    store::{LeaseId, Tick},
};

/// Rows of one slice: a slice holds up the writer for a few milliseconds.
const SLICE: i64 = 500;

/// Ends what is over by `now`. That happens `at` a time that may be later: the store has been told of it meanwhile.
pub fn tick(tx: &mut Tx<'_>, now: Timestamp, at: Timestamp) -> Result<Tick> {
    let mut tick = Tick::default();
    tick.more |= tx.unbundle_old(now, SLICE as usize)?;
    let due = "SELECT num FROM live WHERE wake IS NOT NULL AND wake <= ?1 ORDER BY wake LIMIT ?2";
    let expired = "SELECT num FROM live WHERE state = 3 AND until <= ?1 ORDER BY until LIMIT ?2";
    for sql in [due, expired] {
        let nums = slice(tx, sql, now)?;
        tick.more |= nums.len() as i64 == SLICE;
        for num in nums {
            tick.revoked.extend(elapse(tx, num, now, at)?);
        }
    }
    tick.more |= trim_feed(tx, now)?;
    tick.more |= remove_jobs(tx, now)?;
    tick.more |= forget_requests(tx, now)?;
    tick.next = next(tx)?;
    // A claim whose wake-up was lost, or whose worker has more room now, is found here.
    tx.effects.look = true;
    Ok(tick)
}

/// Every attempt that a process before this one was running is spent: a job that kills the server must not loop. Those
/// of workers beyond it go on: their leases live long enough for them to come back.
pub fn recover(tx: &mut Tx<'_>, now: Timestamp) -> Result<usize> {
    tx.unbundle_all()?;
    let nums: Vec<i64> = tx
        .connection
        .prepare_cached("SELECT num FROM live WHERE state = 3 ORDER BY until")?
        .query_map([], |row| row.get(0))?
        .collect::<Result<_>>()?;
    let mut spent = 0;
    for num in nums {
        let row = tx.live(num)?.ok_or_else(|| rows::damaged("a running job"))?;
        if row.live.lease.as_ref().is_some_and(|lease| !lease.worker.is_pool()) {
            tx.connection
                .prepare_cached("UPDATE live SET until = max(until, ?2) WHERE num = ?1")?
                .execute(params![num, now.after(tx.config.workers.lease)])?;
            continue;
        }
        spent += 1;
        let policy = tx.policy(&row)?;
        let message = "the server ended while the attempt ran";
        let step = row.live.lose(Cause::Crash, message, &policy, now, fastrand::f64());
        tx.apply(&row, &step, now, None)?;
    }
    Ok(spent)
}

fn slice(tx: &Tx<'_>, sql: &str, now: Timestamp) -> Result<Vec<i64>> {
    tx.connection.prepare_cached(sql)?.query_map(params![now, SLICE], |row| row.get(0))?.collect()
}

fn elapse(tx: &mut Tx<'_>, num: i64, now: Timestamp, at: Timestamp) -> Result<Option<LeaseId>> {
    // Gone or changed since it was found: by the step before.
    let Some(row) = tx.live(num)? else { return Ok(None) };
    let policy = tx.policy(&row)?;
    let Some(step) = row.live.elapse(&policy, now, fastrand::f64()) else { return Ok(None) };
    tx.apply(&row, &step, at, None)?;
    Ok(row.live.lease.map(|_| LeaseId { job: num, fence: row.live.fence }))
}

/// Moves the beginning of the feed past outcomes that are too old, or too many.
fn trim_feed(tx: &Tx<'_>, now: Timestamp) -> Result<bool> {
    let start = super::feed::start(tx.connection)?;
    let oldest_kept = now.before(tx.config.watch.retention);
    let (mut by_age, mut old) = (start, 0);
    let mut statement = tx
        .connection
        .prepare_cached("SELECT seq, finished FROM done WHERE seq > ?1 ORDER BY seq LIMIT ?2")?;
    let mut rows = statement.query(params![start, SLICE])?;
    while let Some(row) = rows.next()?
        && Timestamp(row.get(1)?) <= oldest_kept
    {
        by_age = row.get(0)?;
        old += 1;
    }
    let by_size = tx.effects.head.0 - i64::try_from(tx.config.watch.max_events).unwrap_or(i64::MAX);
    let moved = by_age.max(by_size);
    if moved > start {
        let cut = done::finished_at(tx.connection, moved)?;
        tx.connection
            .prepare_cached(
                "UPDATE meta SET value = iif(key = 'feed_start', ?1, max(value, ?2)) \
                 WHERE key IN ('feed_start', 'feed_cut')",
            )?
            .execute(params![moved, cut])?;
    }
    Ok(old == SLICE)
}

/// Retention: outcomes whose time is over, and with the last of its outcomes the job.
fn remove_jobs(tx: &mut Tx<'_>, now: Timestamp) -> Result<bool> {
    let rows = slice(tx, "SELECT seq FROM done WHERE keep_until <= ?1 ORDER BY keep_until LIMIT ?2", now)?;
    let all = rows.len() as i64 == SLICE;
    let mut removed = 0;
    for seq in rows {
        if removed >= SLICE {
            return Ok(true);
        }
        let (members, run) = match rows::intact(done::members(tx.connection, seq))? {
            Ok(Some(found)) => found,
            // Gone already, with a newer one.
            Ok(None) => continue,
            Err(error) => {
                tracing::error!(seq, %error, "outcomes cannot be removed; run `jobwire verify`");
                continue;
            }
        };
        tx.removed = true;
        tx.connection.prepare_cached("DELETE FROM done WHERE seq = ?1")?.execute([seq])?;
        for (seq, num) in members.outcomes() {
            // Older ones go with it, or the job would be back in its state of before.
            if run > 1 {
                tx.remove_outcomes(num, seq)?;
            }
            let (base, bit) = place(num);
            let needed: bool = tx
                .connection
                .prepare_cached(
                    "SELECT EXISTS (SELECT 1 FROM live WHERE num = ?1) \
                     OR EXISTS (SELECT 1 FROM done WHERE base = ?2 AND held & ?3)",
                )?
                .query_row([num, base, bit], |row| row.get(0))?;
            if !needed {
                change::remove(tx, num)?;
            }
            removed += 1;
        }
    }
    Ok(all && removed > 0)
}

fn forget_requests(tx: &Tx<'_>, now: Timestamp) -> Result<bool> {
    let gone = tx
        .connection
        .prepare_cached(
            "DELETE FROM request WHERE (caller, request_id) IN \
             (SELECT caller, request_id FROM request WHERE until <= ?1 ORDER BY until LIMIT ?2)",
        )?
        .execute(params![now, SLICE])?;
    Ok(gone as i64 == SLICE)
}

fn next(tx: &Tx<'_>) -> Result<Option<Timestamp>> {
    let first = |sql| -> Result<Option<i64>> {
        tx.connection.prepare_cached(sql)?.query_row([], |row| row.get(0)).optional()
    };
    let wake = first("SELECT wake FROM live WHERE wake IS NOT NULL ORDER BY wake LIMIT 1")?;
    let until = first("SELECT until FROM live WHERE state = 3 ORDER BY until LIMIT 1")?;
    let of_bundles = tx.bundles.until().map(|until| until.0);
    Ok([wake, until, of_bundles].into_iter().flatten().min().map(Timestamp))
}
