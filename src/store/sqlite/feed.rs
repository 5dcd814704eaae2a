//! The feed: outcomes in commit order.

use const_format::formatcp;
use rusqlite::{Connection, OptionalExtension, params};

use super::{
    done::{self, Ended, Members, WITH_OUTPUT, place},
    read,
    rows::{self, Result},
};
use crate::{
    job::{Filter, JobId, Timestamp, View},
    store::{FeedStart, Outcome, OutcomePage, Position, Queues, weight::filled_in},
};

/// Outcomes that one call looks at, at most: a page is a short transaction.
const SCAN: usize = 2000;

/// Bytes of one page, about, without what each outcome has. Every watcher that lags behind holds one.
const PAGE_BYTES: usize = 1 << 20;

pub fn start(connection: &Connection) -> Result<i64> {
    connection
        .prepare_cached("SELECT value FROM meta WHERE key = 'feed_start'")?
        .query_row([], |row| row.get(0))
}

fn cut(connection: &Connection) -> Result<Timestamp> {
    connection
        .prepare_cached("SELECT value FROM meta WHERE key = 'feed_cut'")?
        .query_row([], |row| row.get(0).map(Timestamp))
}

/// Where the feed ends in the snapshot.
pub fn head(connection: &Connection) -> Result<Position> {
    connection
        .prepare_cached(
            "SELECT max(coalesce((SELECT max(seq) FROM done), 0), value) FROM meta WHERE key = 'last_seq'",
        )?
        .query_row([], |row| row.get(0).map(Position))
}

pub fn feed_start(connection: &Connection, now: Timestamp) -> Result<FeedStart> {
    let position = start(connection)?;
    let oldest: Option<i64> = connection
        .prepare_cached("SELECT finished FROM done WHERE seq > ?1 ORDER BY seq LIMIT 1")?
        .query_row([position], |row| row.get(0))
        .optional()?;
    Ok(FeedStart { position: Position(position), time: oldest.map_or(now, Timestamp), cut: cut(connection)? })
}

const OUTCOMES: &str = formatcp!("SELECT {WITH_OUTPUT} FROM done WHERE seq > ?1 ORDER BY seq LIMIT ?2");

/// Outcomes after a position.
pub fn outcomes(
    connection: &Connection,
    now: Timestamp,
    after: Position,
    limit: usize,
    queues: &Queues,
) -> Result<OutcomePage> {
    let mut page = OutcomePage { outcomes: Vec::new(), upto: after, start: feed_start(connection, now)? };
    let limit = limit.min(SCAN);
    let (mut looked, mut bytes) = (0, 0);
    let mut statement = connection.prepare_cached(OUTCOMES)?;
    let mut rows = statement.query(params![after.0, limit as i64])?;
    while let Some(row) = rows.next()? {
        // A damaged output must not hold up the feed: it is left out here, and refused to those who ask for it.
        let ended = Ended::read(row, true)?;
        for (seq, num) in ended.members.outcomes().filter(|&(seq, _)| seq > after.0) {
            if bytes >= PAGE_BYTES || looked == limit {
                return Ok(page);
            }
            let fixed = read::fixed(connection, num, false)?
                .ok_or_else(|| rows::damaged("a job without its spec"))?;
            looked += 1;
            page.upto = Position(seq);
            if queues.contain(&fixed.spec.queue) {
                let job = done::job(connection, fixed, &ended, num)?;
                bytes += filled_in(&job);
                page.outcomes.push(Outcome { position: page.upto, job: job.into() });
            }
        }
    }
    if bytes < PAGE_BYTES && looked < limit {
        page.upto = page.upto.max(head(connection)?);
    }
    Ok(page)
}

/// The newest outcome of each job that is final now, from `after` up to `upto`.
pub fn existing(
    connection: &Connection,
    now: Timestamp,
    after: Position,
    upto: Position,
    filter: &Filter,
    limit: usize,
) -> Result<OutcomePage> {
    let limit = limit.min(SCAN);
    let found = if filter.job_ids.is_empty() {
        all_newest(connection, after, upto, limit)?
    } else {
        let mut found = newest_of(connection, filter.job_ids.iter())?;
        found.retain(|&(seq, _)| seq > after.0 && seq <= upto.0);
        found.truncate(limit);
        found
    };
    let mut page = OutcomePage { outcomes: Vec::new(), upto: after, start: feed_start(connection, now)? };
    let (mut bytes, full) = (0, found.len() == limit);
    for (seq, num) in found {
        let job = |view| read::job(connection, num, view);
        let Some(job) = rows::intact(job(View::Result))?.or_else(|_| job(View::Basic))? else { continue };
        page.upto = Position(seq);
        if filter.matches(&job) {
            bytes += filled_in(&job);
            page.outcomes.push(Outcome { position: page.upto, job: job.into() });
        }
        if bytes >= PAGE_BYTES {
            return Ok(page);
        }
    }
    if !full {
        page.upto = upto;
    }
    Ok(page)
}

/// The first positions of newest outcomes of jobs that are final, with their jobs.
fn all_newest(
    connection: &Connection,
    after: Position,
    upto: Position,
    limit: usize,
) -> Result<Vec<(i64, i64)>> {
    let mut statement =
        connection.prepare_cached("SELECT seq, base, held FROM done WHERE seq > ?1 ORDER BY seq")?;
    let mut rows = statement.query([after.0])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        for (seq, num) in Members::of(row)?.outcomes().filter(|&(seq, _)| seq > after.0) {
            if seq > upto.0 || found.len() == limit {
                return Ok(found);
            }
            if newest_position(connection, num)? == Some(seq) {
                found.push((seq, num));
            }
        }
    }
    Ok(found)
}

fn newest_of<'a>(connection: &Connection, ids: impl Iterator<Item = &'a JobId>) -> Result<Vec<(i64, i64)>> {
    let mut found = Vec::new();
    for id in ids {
        if let Some(num) = read::num(connection, id)? {
            found.extend(newest_position(connection, num)?.map(|seq| (seq, num)));
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// Where the outcome of a job is that is final.
fn newest_position(connection: &Connection, num: i64) -> Result<Option<i64>> {
    let (base, bit) = place(num);
    let newest = connection
        .prepare_cached(
            "SELECT seq, base, held FROM done WHERE base = ?1 AND held & ?2 \
             AND NOT EXISTS (SELECT 1 FROM live WHERE num = ?3) ORDER BY base DESC, seq DESC LIMIT 1",
        )?
        .query_row([base, bit, num], Members::of)
        .optional()?;
    Ok(newest.and_then(|members| members.position(num)))
}

/// Positions grow with their times: halves the range until the place is found.
pub fn position_at(connection: &Connection, time: Timestamp) -> Result<Position> {
    let mut statement =
        connection.prepare_cached("SELECT seq, finished FROM done WHERE seq > ?1 ORDER BY seq LIMIT 1")?;
    let (mut low, mut high) = (start(connection)?, head(connection)?.0);
    while low < high {
        let middle = low + (high - low) / 2;
        let next: Option<(i64, i64)> =
            statement.query_row([middle], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
        match next {
            Some((seq, finished)) if finished <= time.0 => low = seq.min(high),
            _ => high = middle,
        }
    }
    Ok(Position(low))
}
