//! The feed: outcomes in commit order.

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::{
    read,
    rows::{self, Result},
};
use crate::{
    job::{Filter, JobId, Timestamp, View},
    store::{FeedStart, Outcome, OutcomePage, Position, Queues, weight::filled_in},
};

/// Rows that one call looks at, at most: a page is a short transaction.
const SCAN: i64 = 2000;

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

const OUTCOMES: &str = "SELECT done.*, length(done.output) AS output_size, job.id, line.queue, line.kind, job.priority, job.submitted, \
     job.content_type AS payload_type, length(job.payload) AS size, job.options \
     FROM done JOIN job USING (num) JOIN line ON line.id = job.line \
     WHERE seq > ?1 ORDER BY seq LIMIT ?2";

/// Outcomes after a position.
pub fn outcomes(
    connection: &Connection,
    now: Timestamp,
    after: Position,
    limit: usize,
    queues: &Queues,
) -> Result<OutcomePage> {
    let mut page = OutcomePage { outcomes: Vec::new(), upto: after, start: feed_start(connection, now)? };
    let limit = i64::try_from(limit).unwrap_or(i64::MAX).min(SCAN);
    let (mut looked, mut bytes) = (0, 0);
    let mut statement = connection.prepare_cached(OUTCOMES)?;
    let mut rows = statement.query(params![after.0, limit])?;
    while bytes < PAGE_BYTES
        && let Some(row) = rows.next()?
    {
        let outcome = outcome(connection, row)?;
        looked += 1;
        page.upto = outcome.position;
        if queues.contain(&outcome.job.spec.queue) {
            bytes += filled_in(&outcome.job);
            page.outcomes.push(outcome);
        }
    }
    if bytes < PAGE_BYTES && looked < limit {
        page.upto = page.upto.max(head(connection)?);
    }
    Ok(page)
}

fn outcome(connection: &Connection, row: &Row<'_>) -> Result<Outcome> {
    let job = |view| read::of_done(connection, read::fixed_row_of_outcome(row)?, row, view);
    // A damaged output must not hold up the feed: it is left out here, and refused to those who ask for it.
    let job = rows::intact(job(View::Result))?.or_else(|_| job(View::Basic))?;
    Ok(Outcome { position: Position(row.get("seq")?), job: job.into() })
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
    let limit = i64::try_from(limit).unwrap_or(i64::MAX).min(SCAN);
    let found = if filter.job_ids.is_empty() {
        let newest = "SELECT seq, num FROM done AS d WHERE seq > ?1 AND seq <= ?2 \
             AND NOT EXISTS (SELECT 1 FROM live WHERE live.num = d.num) \
             AND NOT EXISTS (SELECT 1 FROM done AS e WHERE e.num = d.num AND e.seq > d.seq) ORDER BY seq LIMIT ?3";
        connection
            .prepare_cached(newest)?
            .query_map(params![after.0, upto.0, limit], |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect::<Result<Vec<(i64, i64)>>>()?
    } else {
        let mut found = newest_of(connection, filter.job_ids.iter())?;
        found.retain(|&(seq, _)| seq > after.0 && seq <= upto.0);
        found.truncate(limit as usize);
        found
    };
    let mut page = OutcomePage { outcomes: Vec::new(), upto: after, start: feed_start(connection, now)? };
    let (mut bytes, full) = (0, found.len() as i64 == limit);
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

fn newest_of<'a>(connection: &Connection, ids: impl Iterator<Item = &'a JobId>) -> Result<Vec<(i64, i64)>> {
    let mut found = Vec::new();
    let mut newest = connection.prepare_cached(
        "SELECT seq, num FROM done WHERE num = ?1 AND NOT EXISTS (SELECT 1 FROM live WHERE num = ?1) \
         ORDER BY seq DESC LIMIT 1",
    )?;
    for id in ids {
        if let Some(num) = read::num(connection, id)? {
            found.extend(newest.query_row([num], |row| Ok((row.get(0)?, row.get(1)?))).optional()?);
        }
    }
    found.sort_unstable();
    Ok(found)
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
