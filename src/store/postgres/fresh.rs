//! Jobs that are leased by the statement that accepts them, because a claim waits for them and nothing else stands in its
//! lines: they are written once, as running, and nobody has to look for them.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use tokio::sync::OwnedSemaphorePermit;

use super::{
    block::Numbers,
    bundle::{Bundle, Seat, may_be_bundled},
    database::Database,
    pool::{Failure, Result},
    rows::LiveRow,
    share::Waiting,
    submit::Accepted,
};
use crate::{
    job::{Lease, LiveState, QueueName, Timestamp},
    store::{LeaseId, Leased, turns::turns},
};

/// Jobs of a batch that go to a claim at once.
pub struct Grant {
    /// As `claim.sql` has it.
    pub claim: i64,
    pub lease: Lease,
    to: Arc<Waiting>,
    slots: OwnedSemaphorePermit,
    /// By place in the batch.
    pub jobs: Vec<usize>,
    /// Those of them whose leases are in a bundle.
    pub bundled: BTreeSet<usize>,
}

impl Database {
    /// What a claim that waits on may have of these jobs, of these lines, now.
    pub fn grant(&self, now: Timestamp, accepted: &[Accepted<'_>], lines: &[i32]) -> Option<Grant> {
        let claims = self.parked.claims();
        let to = claims.iter().find(|one| one.waits_on() && !one.is_answered())?.clone();
        let asked = self.lines.matching(|queue, kind| to.claim.asks_for(queue, kind));
        if !self.standing.is_clear(asked.iter().map(|line| line.id)) {
            return None;
        }
        // What others wait for too is shared out from the table.
        let mut is_only_its: HashMap<_, bool> = HashMap::new();
        let mut queues: BTreeMap<&QueueName, Vec<usize>> = BTreeMap::new();
        for (at, Accepted { submission, live, .. }) in accepted.iter().enumerate() {
            let (queue, kind) = (&submission.spec.queue, &submission.spec.kind);
            let is_due = live.state == LiveState::Queued && live.wake().is_none_or(|wake| wake > now);
            let is_its = *is_only_its.entry(lines[at]).or_insert_with(|| {
                claims.iter().all(|one| one.claim.asks_for(queue, kind) == Arc::ptr_eq(one, &to))
            });
            if is_due && is_its {
                queues.entry(queue).or_default().push(at);
            }
        }
        let count: usize = queues.values().map(Vec::len).sum();
        let wanted = count.min(to.claim.wanted());
        if wanted == 0 {
            return None;
        }
        let slots = to.reserve(wanted)?;
        let queues = queues.into_values().map(|jobs| {
            let due = jobs.len();
            (jobs, due)
        });
        let mut jobs = Vec::with_capacity(wanted);
        for (mut of_queue, quota) in turns(queues.collect(), wanted) {
            of_queue.sort_by_key(|&at| accepted[at].live.rank());
            jobs.extend_from_slice(&of_queue[..quota]);
        }
        let claim = &to.claim;
        // The batch may have waited for a while.
        let until = now.max(self.last_time()).after(claim.lease);
        let lease = Lease { worker: claim.worker.clone(), started: now, until };
        let may_be = |at: &usize| may_be_bundled(&accepted[*at].submission.spec, &accepted[*at].live);
        let bundled = jobs.iter().copied().filter(may_be).collect();
        Some(Grant { claim: fastrand::i64(..), lease, to, slots, jobs, bundled })
    }

    /// It came to nothing, as far as is known: the slots are free again.
    pub fn give_up(&self, grant: Grant, failure: &Failure) {
        self.expect_unheard(grant.claim, grant.to.claim.lease, failure);
        drop(grant.slots);
        grant.to.look_again();
    }

    /// Hands the jobs over, once they are there.
    pub async fn hand_out(
        &self,
        grant: Grant,
        accepted: &[Accepted<'_>],
        lines: &[i32],
        numbers: &Numbers,
    ) -> Result<()> {
        let bundle = numbers.bundle.map(|fence| Bundle::new(fence, grant.bundled.len()));
        let places: HashMap<usize, usize> =
            grant.bundled.iter().enumerate().map(|(place, &at)| (at, place)).collect();
        let mut leased = Vec::with_capacity(grant.jobs.len());
        let mut held = Vec::with_capacity(grant.jobs.len());
        for at in grant.jobs {
            let Accepted { submission, live, fixed, .. } = &accepted[at];
            let num = numbers.num(at);
            let seat = places.get(&at).and_then(|&place| Some(bundle.as_ref()?.seat(place)));
            let fence = seat.as_ref().map(Seat::fence).or_else(|| numbers.fence(num));
            let fence = fence.ok_or(Failure::Damaged("a lease"))?;
            let live = live.claim(fence, grant.lease.clone());
            let lease = LeaseId { job: num, fence };
            let spec = &submission.spec;
            let line = self.lines.get(lines[at])?;
            leased.push(Leased {
                lease,
                attempt_timeout: spec.attempt_timeout.unwrap_or(line.policy.attempt_timeout),
                job: Arc::new(fixed.clone().live(&live)),
            });
            let (block, line, retention) = (numbers.block(at), line.id, spec.retention);
            held.push((lease, LiveRow { num, block, line, retention, live, seat }));
        }
        self.held.keep(held.into_iter());
        let unsent = grant.to.hand_over(leased, grant.slots);
        self.give_back(self.last_time(), &unsent).await;
        Ok(())
    }
}
