//! Handing out leases.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use super::{
    database::Database,
    hints::Hint,
    lines::Line,
    pool::Result,
    rows::{self, get},
    standing::{Look, Span},
};
use crate::{
    job::{QueueName, Timestamp},
    store::{Claim, LeaseId, Leased, turns::turns},
};

const PEEK: &str = include_str!("sql/peek.sql");
const CLAIM: &str = include_str!("sql/claim.sql");

/// Where the due jobs of a queue may stand, and how many of them to take.
type Turn = (Vec<Span>, usize);

impl Database {
    /// At most so many jobs that the claim asks for, at once.
    pub async fn claim_upto(&self, now: Timestamp, claim: &Claim, wanted: usize) -> Result<Vec<Leased>> {
        if wanted == 0 {
            return Ok(Vec::new());
        }
        self.lines.keep_up(&self.pools.claim).await?;
        let lines = self.lines.matching(|queue, kind| claim.asks_for(queue, kind));
        let look = self.standing.look(lines.iter().map(|line| line.id), claim.wait.is_none());
        let turns = self.turns(now, claim, wanted, &lines, &look).await?;
        if turns.is_empty() {
            return Ok(Vec::new());
        }
        let (mut line, mut turn, mut quotas) = (Vec::new(), Vec::new(), Vec::new());
        let (mut low, mut high) = (Vec::new(), Vec::new());
        for (at, (spans, quota)) in turns.iter().enumerate() {
            for span in spans {
                line.push(span.line);
                turn.push(at as i32);
                quotas.push(*quota as i64);
                low.push(span.low);
                high.push(span.high);
            }
        }
        let bytes = i64::try_from(claim.max_bytes).unwrap_or(i64::MAX);
        let (worker, until) = (claim.worker.as_str(), now.after(claim.lease));
        let number = fastrand::i64(..);
        let found = self
            .pools
            .claim
            .query(
                CLAIM,
                &[
                    &line,
                    &turn,
                    &quotas,
                    &now.0,
                    &bytes,
                    &worker,
                    &self.replica,
                    &until.0,
                    &low,
                    &high,
                    &number,
                    &claim.worker.is_pool(),
                ],
            )
            .await
            .inspect_err(|failure| self.expect_unheard(number, claim.lease, failure))?;
        let (mut leased, mut held) = (Vec::with_capacity(found.len()), Vec::with_capacity(found.len()));
        // Of each turn how far all are taken, here or by others: everywhere, unless there were enough. And of each line the
        // last one's rank.
        let (mut taken, mut last) = (vec![None; turns.len()], HashMap::new());
        let mut bundle = None;
        for row in &found {
            taken[get::<i32>(row, "turn") as usize] = get::<Option<i64>>(row, "upto");
            if get::<Option<i64>>(row, "num").is_none() {
                continue;
            }
            let (mut live, job) = rows::leased(row, &self.lines)?;
            live.seat = rows::seat(row, &mut bundle);
            let line = self.lines.get(live.line)?;
            let lease = LeaseId { job: live.num, fence: live.live.fence };
            last.insert(live.line, live.live.rank());
            leased.push(Leased {
                lease,
                attempt_timeout: job.spec.attempt_timeout.unwrap_or(line.policy.attempt_timeout),
                job: Arc::new(job),
            });
            held.push((lease, live));
        }
        self.held.keep(held.into_iter());
        let sizes = leased.iter().map(|leased| leased.job.spec.payload.size);
        if sizes.sum::<usize>() < claim.max_bytes {
            for ((spans, _), upto) in turns.iter().zip(taken) {
                for span in spans {
                    // Where others were first, it went on behind.
                    let upto = upto.map(|rank| last.get(&span.line).map_or(rank, |&last| rank.max(last)));
                    self.standing.taken(&look, span.line, upto);
                }
            }
        }
        self.news(Hint::default(), leased.iter().map(|leased| leased.job.id.clone()));
        Ok(leased)
    }

    /// Whose turn it is, and for how many jobs.
    async fn turns(
        &self,
        now: Timestamp,
        claim: &Claim,
        wanted: usize,
        lines: &[Arc<Line>],
        look: &Look<'_>,
    ) -> Result<Vec<Turn>> {
        let queue_of: HashMap<i32, &QueueName> = lines.iter().map(|line| (line.id, &line.queue)).collect();
        let mut queues: BTreeMap<&QueueName, Turn> = BTreeMap::new();
        for span in &look.spans {
            let queue = queue_of[&span.line];
            let cap = claim.caps.get(queue).copied().unwrap_or(wanted);
            queues.entry(queue).or_insert((Vec::new(), cap)).0.push(*span);
        }
        queues.retain(|_, (_, cap)| *cap > 0);
        if queues.len() > 1 {
            // Only those that have something, with how much that is.
            let due = self.due_jobs(now, look, wanted).await?;
            queues.retain(|_, (spans, available)| {
                spans.retain(|span| due.contains_key(&span.line));
                let lines: BTreeSet<i32> = spans.iter().map(|span| span.line).collect();
                *available = lines.iter().map(|line| due[line]).sum::<usize>().min(*available);
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

    /// How many due jobs there are in each line that is looked at, up to a number. Lines without any are left out.
    pub async fn due_jobs(
        &self,
        now: Timestamp,
        look: &Look<'_>,
        most: usize,
    ) -> Result<HashMap<i32, usize>> {
        if look.spans.is_empty() || most == 0 {
            return Ok(HashMap::new());
        }
        let lines: Vec<i32> = look.spans.iter().map(|span| span.line).collect();
        let low: Vec<i64> = look.spans.iter().map(|span| span.low).collect();
        let high: Vec<i64> = look.spans.iter().map(|span| span.high).collect();
        let limit = i64::try_from(most).unwrap_or(i64::MAX);
        let found = self.pools.claim.query(PEEK, &[&lines, &now.0, &limit, &low, &high]).await?;
        let mut due: HashMap<i32, usize> = HashMap::new();
        for row in &found {
            *due.entry(get(row, "line")).or_default() += get::<i64>(row, "due") as usize;
        }
        due.retain(|&line, due| {
            if *due == 0 {
                self.standing.taken(look, line, None);
            }
            *due > 0
        });
        Ok(due)
    }
}
