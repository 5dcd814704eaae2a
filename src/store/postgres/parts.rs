//! Partitions of `job` and `done`: made ahead of the numbers in use, and dropped as a whole where outcomes go by the
//! thousand. Where they are few, they are removed one by one, as soon as their time is over.
//!
//! Every replica looks after them; who was first is decided by the functions of the schema, under their locks.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_postgres::{GenericClient, Row, error::SqlState};

use super::{
    database::Database,
    pool::{Failure, Result, Step},
    rows::get,
};
use crate::job::Timestamp;

const PARTS: &str = include_str!("sql/parts.sql");
const PACE: &str = include_str!("sql/pace.sql");
const ADD: &str = "select add_part($1, $2, $3)";
const SURVEY: &str = include_str!("sql/survey.sql");
const UNUSED: &str = include_str!("sql/unused.sql");
const CLEAR: &str = include_str!("sql/clear.sql");
const DROP_DONE: &str = "select drop_done($1, $2) as is_dropped";
const DROP_JOB: &str = "select drop_job($1, $2) as is_dropped";
/// A drop that a failover takes back is done again: no standby needs to have it, and nobody waits for one meanwhile.
const LOCALLY: &str = "set local synchronous_commit = local";

/// The narrowest partition, and what all begin at a multiple of.
const NARROWEST: i64 = 1 << 16;

/// The widest.
const WIDEST: i64 = 1 << 32;

/// Partitions beyond the one in use.
const AHEAD: usize = 2;

/// Partitions of a table that are made at a time, at most.
const MOST_MADE: usize = 10;

/// So many hold what is kept, about.
const KEPT: i64 = 8;

/// More of them than this make every statement slower: then the next ones are wider.
const MANY: usize = 24;

/// Outcomes a second from which on they are dropped with their partition.
const VOLUME: i64 = 500;

/// Jobs of an old partition that may move into a smaller one.
const REST: i64 = 1000;

/// How often it is looked for such partitions.
const REST_INTERVAL: Duration = Duration::from_secs(60);

/// Partitions of each table that are dropped at a time.
const DROPS: usize = 4;

/// Rows of one slice, and slices at a time.
const SLICE: i64 = 5000;
const SLICES: usize = 16;

/// The shortest and the longest pause after a partition could not be had.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// How fast numbers are used up.
#[derive(Clone, Copy, Debug)]
struct Pace {
    count: i64,
    millis: i64,
    /// For how long most outcomes are kept, milliseconds.
    retention: i64,
}

/// How wide the next partition is: an eighth of what comes while one outcome is kept, so that about as many hold all that
/// is kept; at most eight times as wide as the last one, because a pace may be a moment's. If there are too many
/// nevertheless, as where some jobs stay for much longer than others, at least twice as wide as the last one.
fn width(last: i64, count: usize, pace: Option<Pace>) -> i64 {
    let kept = pace.filter(|pace| pace.millis > 0).map(|pace| {
        let kept = i128::from(pace.count) * i128::from(pace.retention) / i128::from(pace.millis);
        i64::try_from(kept).unwrap_or(i64::MAX)
    });
    let wanted = kept.map_or(last, |kept| (kept / KEPT).min(8 * last));
    let least = if count > MANY { 2 * last } else { NARROWEST };
    wanted.max(least).clamp(NARROWEST, WIDEST) / NARROWEST * NARROWEST
}

/// Makes partitions until there are enough beyond the numbers in use. Each time it looks anew: others make them too, and
/// what overlaps theirs is not made.
pub async fn make_ahead(client: &impl GenericClient) -> std::result::Result<(), tokio_postgres::Error> {
    for _ in 0..MOST_MADE {
        let mut is_enough = true;
        for row in client.query(PARTS, &[]).await? {
            let (of, position): (&str, i64) = (get(&row, "of"), get(&row, "position"));
            let lows: Vec<i64> = get(&row, "low");
            let parts: Vec<(i64, i64)> = lows.into_iter().zip(get::<Vec<i64>>(&row, "high")).collect();
            if parts.iter().filter(|(_, high)| *high > position).count() <= AHEAD {
                let (low, high) = next(client, of, position, &parts).await?;
                client.execute(ADD, &[&of, &low, &high]).await?;
                is_enough = false;
            }
        }
        if is_enough {
            break;
        }
    }
    Ok(())
}

/// Makes partitions for all numbers that another store has used.
pub async fn make_upto(
    client: &impl GenericClient,
    of: &str,
    last: i64,
) -> std::result::Result<(), tokio_postgres::Error> {
    let width = (last / KEPT / NARROWEST + 1) * NARROWEST;
    for low in (0..=last).step_by(usize::try_from(width).unwrap_or(usize::MAX)) {
        client.execute(ADD, &[&of, &low, &(low + width)]).await?;
    }
    Ok(())
}

/// The next partition. Numbers go on far beyond the last one in a new epoch.
async fn next(
    client: &impl GenericClient,
    of: &str,
    position: i64,
    parts: &[(i64, i64)],
) -> std::result::Result<(i64, i64), tokio_postgres::Error> {
    let (last, end) = parts.last().map_or((NARROWEST, 0), |(low, high)| (high - low, *high));
    let low = end.max(position / NARROWEST * NARROWEST);
    // The pace since the partition before the one in use, if there is one in this epoch.
    let at = parts.partition_point(|(_, high)| *high <= position);
    let since = match (at.checked_sub(1).map(|before| parts[before]), parts.get(at)) {
        (Some(before), Some(present)) if before.1 == present.0 => Some(before.0),
        (_, present) => present.map(|present| present.0),
    };
    let pace = match since {
        Some(since) => pace(&client.query_one(PACE, &[&of, &since]).await?),
        None => None,
    };
    Ok((low, low + width(last, parts.len(), pace)))
}

fn pace(row: &Row) -> Option<Pace> {
    Some(Pace {
        count: get::<Option<i64>>(row, "count")?,
        millis: get::<Option<i64>>(row, "millis")?,
        retention: get::<Option<i64>>(row, "retention")?,
    })
}

/// A partition of `done`.
#[derive(Clone, Copy, Debug)]
struct Outcomes {
    low: i64,
    high: i64,
    /// No more will come.
    is_closed: bool,
    /// When the first outcome is to be removed, and when it was made.
    first: Option<(i64, i64)>,
    /// When the last one is to be removed.
    last: i64,
    /// Some are not the first ones of their jobs.
    has_reruns: bool,
}

/// What becomes of a partition of `done`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// Its outcomes are removed one by one, as soon as their time is over.
    Rows,
    /// Its outcomes wait for the last one of them.
    Wait,
    Drop,
}

impl Outcomes {
    fn of(row: &Row) -> Self {
        let first = get::<Option<i64>>(row, "first_until");
        Self {
            low: get(row, "low"),
            high: get(row, "high"),
            is_closed: get(row, "is_closed"),
            first: first.and_then(|until| Some((until, get::<Option<i64>>(row, "first_finished")?))),
            last: get::<Option<i64>>(row, "last_until").unwrap_or_default(),
            has_reruns: get(row, "has_reruns"),
        }
    }

    /// Outcomes wait for others only where they are many, and not for longer than a quarter of the time that they were
    /// kept for. If the time of all of them is over, none has to wait.
    fn fate(&self, now: Timestamp) -> Fate {
        let Some((until, finished)) = self.first.filter(|_| self.is_closed) else {
            return if self.is_closed { Fate::Drop } else { Fate::Rows };
        };
        let late = self.last - until;
        let is_much = (self.high - self.low) * 1000 / VOLUME >= late;
        if self.last <= now.0 && !self.has_reruns {
            Fate::Drop
        } else if is_much && late <= (until - finished) / 4 {
            Fate::Wait
        } else {
            Fate::Rows
        }
    }
}

/// What a replica knows of the partitions.
#[derive(Debug, Default)]
pub struct Parts {
    /// Where partitions of `done` begin whose outcomes are not removed one by one.
    spared: Mutex<Vec<i64>>,
    pause: Mutex<Pause>,
    looked_for_rest: Mutex<Option<Instant>>,
}

/// Each attempt to have a partition in vain makes others wait for a moment: the next one waits longer.
#[derive(Debug, Default)]
struct Pause {
    length: Duration,
    until: Option<Instant>,
}

impl Pause {
    fn begin(&mut self) {
        self.length = (2 * self.length).clamp(PAUSES.0, PAUSES.1);
        self.until = Some(Instant::now() + self.length);
    }
}

impl Parts {
    /// Where partitions begin whose outcomes are not removed one by one.
    pub fn spared(&self) -> Vec<i64> {
        self.spared.lock().clone()
    }

    fn may_drop(&self) -> bool {
        let pause = self.pause.lock();
        pause.until.is_none_or(|until| until <= Instant::now())
    }

    /// How much may be left of a partition that is looked for now.
    fn rest(&self) -> i64 {
        let mut looked = self.looked_for_rest.lock();
        let is_time = looked.is_none_or(|looked| looked.elapsed() >= REST_INTERVAL);
        if is_time {
            *looked = Some(Instant::now());
        }
        if is_time { REST } else { 0 }
    }
}

impl Database {
    /// Makes partitions ahead, and drops those that are over, a few at a time.
    pub async fn keep_parts(&self, now: Timestamp) -> Result<()> {
        match self.pools.write.make_ahead().await {
            // Somebody is at it.
            Err(failure) if failure.is_locked() => {}
            made => made?,
        }
        let rows = self.pools.write.query(SURVEY, &[]).await?;
        let fates: Vec<_> = rows.iter().map(Outcomes::of).map(|part| (part.low, part.fate(now))).collect();
        let spared = fates.iter().filter(|(_, fate)| *fate != Fate::Rows);
        *self.parts.spared.lock() = spared.map(|(low, _)| *low).collect();
        if !self.parts.may_drop() {
            return Ok(());
        }
        for (low, _) in fates.iter().filter(|(_, fate)| *fate == Fate::Drop).take(DROPS) {
            self.drop_part(Step { sql: DROP_DONE, params: &[low, &now.0] }).await?;
        }
        self.drop_jobs(self.parts.rest()).await
    }

    /// Drops partitions of `job` of which nothing is left, or replaces those of which there is no more than this.
    async fn drop_jobs(&self, most: i64) -> Result<()> {
        let mut drops = 0;
        for row in self.pools.write.query(UNUSED, &[&(most + 1)]).await? {
            let (low, high, rest): (i64, i64, i64) = (get(&row, "low"), get(&row, "high"), get(&row, "rest"));
            if !self.parts.may_drop() || rest > most || (rest == 0 && !self.clear(low, high).await?) {
                continue;
            }
            drops += usize::from(self.drop_part(Step { sql: DROP_JOB, params: &[&low, &most] }).await?);
            if drops == DROPS {
                break;
            }
        }
        Ok(())
    }

    /// Removes what is left beside `job` of jobs that are not there any more. Whether nothing is left.
    async fn clear(&self, low: i64, high: i64) -> Result<bool> {
        for _ in 0..SLICES {
            let found = self.pools.write.query(CLEAR, &[&low, &high, &SLICE]).await?;
            if found.first().is_none_or(|row| get::<i64>(row, "cleared") == 0) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether it was dropped. If that cannot be now, later.
    async fn drop_part(&self, drop: Step<'_>) -> Result<bool> {
        if !self.parts.may_drop() {
            return Ok(false);
        }
        let steps = [Step { sql: LOCALLY, params: &[] }, drop];
        match self.pools.write.transaction(&steps).await {
            Ok(rows) => {
                *self.parts.pause.lock() = Pause::default();
                Ok(rows.first().is_some_and(|row| get(row, "is_dropped")))
            }
            Err(failure) if failure.state().is_some() => {
                if !failure.is_locked() {
                    tracing::warn!(%failure, "a partition cannot be dropped: the database keeps what it holds");
                }
                self.parts.pause.lock().begin();
                Ok(false)
            }
            Err(failure) => Err(failure),
        }
    }
}

impl Failure {
    /// Somebody held a lock for longer than was waited.
    pub fn is_locked(&self) -> bool {
        self.state() == Some(&SqlState::LOCK_NOT_AVAILABLE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 3_600_000;

    fn pace(count: i64, millis: i64, retention: i64) -> Option<Pace> {
        Some(Pace { count, millis, retention })
    }

    #[test]
    fn a_partition_is_an_eighth_of_what_is_kept() {
        let day = 24 * HOUR;
        // 30,000 a second: at first the pace is not trusted.
        assert_eq!(width(NARROWEST, 3, pace(60_000, 2000, day)), 8 * NARROWEST);
        let kept = 30_000 * 86_400;
        let wide = width(1 << 28, 10, pace(60_000, 2000, day));
        assert!((kept / 8 - NARROWEST..=kept / 8).contains(&wide), "{wide}");
        // It has got quiet.
        assert_eq!(width(1 << 28, 10, pace(10, 60_000, day)), NARROWEST);
        // It is not known.
        for unknown in [None, pace(0, 0, day), pace(1000, 0, day)] {
            assert_eq!(width(3 * NARROWEST, 10, unknown), 3 * NARROWEST);
        }
        // Too many of them.
        assert_eq!(width(3 * NARROWEST, MANY + 1, pace(10, 60_000, day)), 6 * NARROWEST);
        assert_eq!(width(WIDEST, MANY + 1, pace(i64::MAX, 1, i64::MAX)), WIDEST);
    }

    #[test]
    fn many_outcomes_wait_for_the_last_one() {
        // Made within 100 s at 655 a second, and kept for ten minutes.
        let part = |finished: i64, last: i64| Outcomes {
            low: 0,
            high: NARROWEST,
            is_closed: true,
            first: Some((finished + HOUR / 6, finished)),
            last: last + HOUR / 6,
            has_reruns: false,
        };
        let much = part(0, 100_000);
        assert_eq!(much.fate(Timestamp(0)), Fate::Wait);
        assert_eq!(much.fate(Timestamp(much.last - 1)), Fate::Wait);
        assert_eq!(much.fate(Timestamp(much.last)), Fate::Drop);
        assert_eq!(Outcomes { has_reruns: true, ..much }.fate(Timestamp(much.last)), Fate::Wait);
        // Too few, more may come, or one is kept for longer than the others.
        let few = part(0, 140_000);
        assert_eq!(few.fate(Timestamp(few.last - 1)), Fate::Rows);
        assert_eq!(few.fate(Timestamp(few.last)), Fate::Drop);
        assert_eq!(Outcomes { is_closed: false, ..much }.fate(Timestamp(HOUR)), Fate::Rows);
        let mixed = Outcomes { high: 100 * NARROWEST, last: much.last + HOUR, ..much };
        assert_eq!(mixed.fate(Timestamp(mixed.last - 1)), Fate::Rows);
        assert_eq!(Outcomes { has_reruns: true, ..mixed }.fate(Timestamp(mixed.last)), Fate::Rows);
        let empty = Outcomes { first: None, ..much };
        assert_eq!(empty.fate(Timestamp(0)), Fate::Drop);
        assert_eq!(Outcomes { is_closed: false, ..empty }.fate(Timestamp(0)), Fate::Rows);
    }
}
