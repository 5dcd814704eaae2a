//! Handing out leases.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use super::{
    database::Database,
    lines::Line,
    pool::Result,
    rows::{self, get},
};
use crate::{
    job::{QueueName, Timestamp},
    store::{Claim, LeaseId, Leased, turns::turns},
};

const PEEK: &str = include_str!("sql/peek.sql");
const CLAIM: &str = include_str!("sql/claim.sql");

/// The lines of a queue that were asked for, and how many jobs to take from them.
type Turn = (Vec<Arc<Line>>, usize);

impl Database {
    /// At most `most` of what the claim wants, at once.
    pub async fn claim_upto(&self, now: Timestamp, claim: &Claim, most: usize) -> Result<Vec<Leased>> {
        let turns = self.turns(now, claim, claim.wanted().min(most)).await?;
        if turns.is_empty() {
            return Ok(Vec::new());
        }
        let (mut lines, mut turn, mut quotas) = (Vec::new(), Vec::new(), Vec::new());
        for (at, (of_queue, quota)) in turns.iter().enumerate() {
            for line in of_queue {
                lines.push(line.id);
                turn.push(at as i32);
                quotas.push(*quota as i64);
            }
        }
        let bytes = i64::try_from(claim.max_bytes).unwrap_or(i64::MAX);
        let until = now.after(claim.lease);
        let found = self
            .pools
            .claim
            .query(
                CLAIM,
                &[&lines, &turn, &quotas, &now.0, &bytes, &claim.worker.as_str(), &self.replica, &until.0],
            )
            .await?;
        let mut leased = Vec::with_capacity(found.len());
        for row in &found {
            let (live, job) = rows::leased(row, &self.lines)?;
            let line = self.lines.get(live.line)?;
            leased.push(Leased {
                lease: LeaseId { job: live.num, fence: live.live.fence },
                attempt_timeout: job.spec.attempt_timeout.unwrap_or(line.policy.attempt_timeout),
                job: Arc::new(job),
            });
        }
        self.news(None, false, leased.iter().map(|leased| leased.job.id.clone()));
        Ok(leased)
    }

    /// Whose turn it is, and for how many jobs.
    async fn turns(&self, now: Timestamp, claim: &Claim, wanted: usize) -> Result<Vec<Turn>> {
        if wanted == 0 {
            return Ok(Vec::new());
        }
        self.lines.keep_up(&self.pools.claim).await?;
        let mut queues: BTreeMap<QueueName, (Vec<Arc<Line>>, usize)> = BTreeMap::new();
        for line in self.lines.matching(|queue, kind| claim.asks_for(queue, kind)) {
            let cap = claim.caps.get(&line.queue).copied().unwrap_or(wanted);
            queues.entry(line.queue.clone()).or_insert((Vec::new(), cap)).0.push(line);
        }
        queues.retain(|_, (_, cap)| *cap > 0);
        if queues.len() > 1 {
            // Only those that have something, with how much that is.
            let lines: Vec<_> = queues.values().flat_map(|(lines, _)| lines).cloned().collect();
            let due = self.due_jobs(now, &lines, wanted).await?;
            queues.retain(|_, (lines, available)| {
                lines.retain(|line| due.contains_key(&line.id));
                *available = lines.iter().map(|line| due[&line.id]).sum::<usize>().min(*available);
                *available > 0
            });
        }
        let mut turns = turns(queues.into_values().collect(), wanted);
        if claim.max_bytes < usize::MAX && !turns.is_empty() {
            // Perhaps not enough bytes for all: another one comes first each time.
            let first = fastrand::usize(..turns.len());
            turns.rotate_left(first);
        }
        Ok(turns)
    }

    /// How many due jobs there are in each of these lines, up to a number. Lines without any are left out.
    pub async fn due_jobs(
        &self,
        now: Timestamp,
        lines: &[Arc<Line>],
        most: usize,
    ) -> Result<HashMap<i32, usize>> {
        if lines.is_empty() || most == 0 {
            return Ok(HashMap::new());
        }
        let ids: Vec<i32> = lines.iter().map(|line| line.id).collect();
        let most = i64::try_from(most).unwrap_or(i64::MAX);
        let found = self.pools.claim.query(PEEK, &[&ids, &now.0, &most]).await?;
        let due = found.iter().map(|row| (get(row, "line"), get::<i64>(row, "due") as usize));
        Ok(due.filter(|&(_, due)| due > 0).collect())
    }
}
