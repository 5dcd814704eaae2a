//! The feed: outcomes in commit order.

use std::time::Duration;

use tokio_postgres::Row;

use super::{
    database::Database,
    pool::{Failure, Result},
    rows::{self, JobRow, get},
};
use crate::{
    job::{Filter, JobId, Timestamp, View},
    store::{FeedStart, Outcome, OutcomePage, Position, Queues},
};

const OUTCOMES: &str = include_str!("sql/outcomes.sql");
const NEWEST: &str = include_str!("sql/newest.sql");
const FEED: &str = include_str!("sql/feed.sql");
const AFTER: &str = "select seq, finished from done where seq > $1 order by seq limit 1";
const BEFORE: &str = include_str!("sql/before.sql");

/// Rows that one call looks at, at most: a page is a short statement.
const SCAN: usize = 2000;

/// How far outcomes may be out of order: batches are on their way for a while, and clocks differ.
const DISORDER: Duration = Duration::from_secs(60);

/// Outcomes of which one statement looks at the times.
const STRIDE: i64 = 10_000;

/// Bytes of outputs on one page, about. Every watcher that lags behind holds one.
const PAGE_BYTES: i64 = 1 << 20;

impl Database {
    pub async fn outcomes_after(
        &self,
        after: Position,
        limit: usize,
        queues: &Queues,
    ) -> Result<OutcomePage> {
        if *queues == Queues::Only([].into()) {
            let (start, head) = self.bounds().await?;
            return Ok(OutcomePage { outcomes: Vec::new(), upto: head.max(after), start });
        }
        let limit = limit.min(SCAN) as i64;
        let (lines, newest) = self.lines.of_queues(queues);
        let found =
            self.pools.read.query(OUTCOMES, &[&after.0, &limit, &PAGE_BYTES, &lines, &newest]).await?;
        self.know_lines(&found).await?;
        let first = found.first().ok_or(Failure::Damaged("the feed"))?;
        let mut page = OutcomePage { outcomes: Vec::new(), upto: after, start: self.start_of(first) };
        let mut told = 0;
        for row in &found {
            let Some(seq) = get::<Option<i64>>(row, "place").map(Position) else { continue };
            told += 1;
            page.upto = seq;
            if let Some(job) = rows::outcome(row, &self.lines)?.filter(|job| queues.contain(&job.spec.queue))
            {
                page.outcomes.push(Outcome { position: seq, job: job.into() });
            }
        }
        if told == get::<i64>(first, "wanted") {
            let is_last = get::<i64>(first, "looked") < limit;
            let seen = if is_last { Some(get(first, "head")) } else { get(first, "seen") };
            page.upto = seen.map_or(page.upto, |seen| page.upto.max(Position(seen)));
        }
        Ok(page)
    }

    fn start_of(&self, row: &Row) -> FeedStart {
        FeedStart {
            position: Position(get(row, "start")),
            time: rows::time(row, "oldest").unwrap_or_else(|| self.last_time()),
            cut: Timestamp(get(row, "cut")),
        }
    }

    /// Where the feed begins and ends.
    pub async fn bounds(&self) -> Result<(FeedStart, Position)> {
        let found = self.pools.read.query(FEED, &[]).await?;
        let row = found.first().ok_or(Failure::Damaged("the feed"))?;
        Ok((self.start_of(row), Position(get(row, "head"))))
    }

    /// The newest outcome of each job that is final now, from `after` up to `upto`.
    pub async fn newest_outcomes(
        &self,
        after: Position,
        upto: Position,
        filter: &Filter,
        limit: usize,
    ) -> Result<OutcomePage> {
        let limit = limit.min(SCAN);
        let (start, _) = self.bounds().await?;
        let mut found = if filter.job_ids.is_empty() {
            let rows = self.pools.read.query(NEWEST, &[&after.0, &upto.0, &(limit as i64)]).await?;
            rows.iter().map(|row| (get(row, "seq"), get(row, "num"))).collect()
        } else {
            self.newest_of(&filter.job_ids.iter().cloned().collect::<Vec<_>>()).await?
        };
        found.retain(|&(seq, _)| seq > after.0 && seq <= upto.0);
        let is_full = found.len() >= limit;
        found.truncate(limit);
        let nums: Vec<i64> = found.iter().map(|&(_, num)| num).collect();
        let jobs = self.jobs_within(&nums, View::Result, PAGE_BYTES as usize).await?;
        let mut page = OutcomePage { outcomes: Vec::new(), upto: after, start };
        let is_whole = jobs.len() == found.len();
        for ((seq, _), row) in found.into_iter().zip(jobs) {
            page.upto = Position(seq);
            if let Some(JobRow { job, .. }) =
                row.filter(|row| row.seq == Some(seq) && filter.matches(&row.job))
            {
                page.outcomes.push(Outcome { position: page.upto, job });
            }
        }
        if is_whole && !is_full {
            page.upto = upto;
        }
        Ok(page)
    }

    async fn newest_of(&self, ids: &[JobId]) -> Result<Vec<(i64, i64)>> {
        let jobs = self.jobs_by_id(ids, View::Basic).await?.jobs;
        let mut found: Vec<_> =
            jobs.into_iter().flatten().filter_map(|row| Some((row.seq?, row.num))).collect();
        found.sort_unstable();
        Ok(found)
    }

    /// Times grow with their positions, but for some disorder: halves the range until a place is found that no later outcome
    /// can be before, and goes on from there.
    pub async fn position_of(&self, time: Timestamp) -> Result<Position> {
        let (start, head) = self.bounds().await?;
        let (mut low, mut high) = (start.position.0, head.0);
        let certain = time.before(DISORDER);
        while low < high {
            let middle = low + (high - low) / 2;
            let next = self.pools.read.query(AFTER, &[&middle]).await?;
            match next.first() {
                Some(row) if get::<i64>(row, "finished") <= certain.0 => {
                    low = get::<i64>(row, "seq").min(high);
                }
                _ => high = middle,
            }
        }
        loop {
            let next = self.pools.read.query(BEFORE, &[&low, &head.0, &STRIDE, &time.0]).await?;
            let row = next.first().ok_or(Failure::Damaged("the feed"))?;
            low = get::<Option<i64>>(row, "upto").unwrap_or(low);
            if get::<i64>(row, "outcomes") < STRIDE {
                return Ok(Position(low));
            }
        }
    }
}
