//! Claims that wait for jobs. One look for all of them: what there is, is divided evenly among those who may have it.

use std::{
    collections::HashMap,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    sync::{Mutex as AsyncMutex, oneshot},
    time::{Instant, sleep},
};

use super::{database::Database, lines::Line, pool::Result};
use crate::{
    job::{Kind, QueueName, Timestamp},
    store::{Claim, ClaimWait, Leased},
};

/// Those who wait look by themselves this often, a quarter more or less, should a hint be lost.
const POLL: Duration = Duration::from_millis(250);

/// Claims without an answer yet, the oldest first.
#[derive(Debug, Default)]
pub struct Parked {
    claims: Mutex<Vec<Waiting>>,
    turn: AsyncMutex<()>,
    /// Looks that were asked for, and how many of them the last look has answered.
    asked: AtomicU64,
    answered: AtomicU64,
}

#[derive(Debug)]
struct Waiting {
    claim: Claim,
    since: (Timestamp, Instant),
    reply: oneshot::Sender<Result<Vec<Leased>>>,
}

impl Parked {
    /// Answers all with what there is: nothing.
    pub fn release(&self) {
        for waiting in std::mem::take(&mut *self.claims.lock()) {
            // Nobody may be there any more to take it.
            drop(waiting.reply.send(Ok(Vec::new())));
        }
    }
}

impl Waiting {
    fn now(&self) -> Timestamp {
        self.since.0.after(self.since.1.elapsed())
    }

    fn is_over(&self) -> bool {
        self.claim.wait.as_ref().is_none_or(|wait| wait.end.is_cancelled())
    }
}

impl Database {
    /// Leases, once there are jobs or the wait has ended.
    pub async fn wait_for_jobs(&self, now: Timestamp, claim: Claim, wait: &ClaimWait) -> Result<Vec<Leased>> {
        let (reply, mut answer) = oneshot::channel();
        let mut due = self.signals.due.subscribe();
        self.parked.claims.lock().push(Waiting { claim, since: (now, Instant::now()), reply });
        loop {
            due.borrow_and_update();
            self.look();
            tokio::select! {
                biased;
                leased = &mut answer => return leased.unwrap_or(Ok(Vec::new())),
                () = wait.end.cancelled() => {
                    self.look();
                    return answer.await.unwrap_or(Ok(Vec::new()));
                }
                _ = due.changed() => {}
                () = sleep(POLL.mul_f64(0.75 + fastrand::f64() / 2.0)) => {}
            }
        }
    }

    /// Looks what there is for those who wait. In a task of its own: whoever asked for it may go away.
    fn look(&self) {
        let asked = self.parked.asked.fetch_add(1, Ordering::Relaxed) + 1;
        let me = Weak::clone(&self.me);
        tokio::spawn(async move {
            let Some(store) = me.upgrade() else { return };
            let _turn = store.parked.turn.lock().await;
            // Asked for before the last look began: that one has seen it.
            if store.parked.answered.load(Ordering::Relaxed) < asked {
                let upto = store.parked.asked.load(Ordering::Relaxed);
                store.parked.answered.store(upto, Ordering::Relaxed);
                store.serve().await;
            }
        });
    }

    /// Answers the claims that there is something for, and those that wait no longer.
    async fn serve(&self) {
        let waiting: Vec<Waiting> = std::mem::take(&mut *self.parked.claims.lock());
        let given = self.share(&waiting).await;
        let mut left = Vec::new();
        for (waiting, leased) in waiting.into_iter().zip(given) {
            match leased {
                Ok(leased) if leased.is_empty() && !waiting.is_over() => left.push(waiting),
                // Nobody may be there any more to take it.
                leased => drop(waiting.reply.send(leased)),
            }
        }
        self.parked.claims.lock().splice(0..0, left);
    }

    /// What each claim gets, at its place. The first in line leaves something for those behind it: what there is, is
    /// divided evenly among those who may have it, and what somebody does not need goes to the others.
    async fn share(&self, waiting: &[Waiting]) -> Vec<Result<Vec<Leased>>> {
        if let [only] = waiting {
            return vec![self.claim_upto(only.now(), &only.claim, usize::MAX).await];
        }
        let mut given: Vec<Result<Vec<Leased>>> = waiting.iter().map(|_| Ok(Vec::new())).collect();
        let Some(now) = waiting.iter().map(Waiting::now).max() else { return given };
        let wanted: usize = waiting.iter().map(|one| one.claim.wanted()).sum();
        let looked = async {
            self.lines.keep_up(&self.pools.claim).await?;
            let asked =
                |queue: &QueueName, kind: &Kind| waiting.iter().any(|one| one.claim.asks_for(queue, kind));
            let lines = self.lines.matching(asked);
            let look = self.standing.look(lines.iter().map(|line| line.id), false);
            let due = self.due_jobs(now, &look, wanted).await?;
            Ok((lines, due))
        };
        let (lines, mut due) = match looked.await {
            Ok(found) => found,
            Err(failure) => {
                // Told to one of them: the others go on waiting.
                if let Some(first) = given.first_mut() {
                    *first = Err(failure);
                }
                return given;
            }
        };
        let hungry: Vec<usize> = (0..waiting.len())
            .filter(|&at| waiting[at].claim.wanted() > 0 && available(&lines, &due, &waiting[at].claim) > 0)
            .collect();
        for (served, &at) in hungry.iter().enumerate() {
            let claim = &waiting[at].claim;
            let most = available(&lines, &due, claim).div_ceil(hungry.len() - served);
            given[at] = self.claim_upto(now, claim, most).await;
            self.taken(&mut due, &given[at]);
        }
        for at in hungry {
            let claim = &waiting[at].claim;
            let Ok(leased) = &mut given[at] else { continue };
            let most = claim.wanted().saturating_sub(leased.len());
            if most > 0 && available(&lines, &due, claim) > 0 {
                // What was given already is given, whatever becomes of the rest.
                let more = self.claim_upto(now, &claim.beside(leased), most).await;
                self.taken(&mut due, &more);
                leased.extend(more.unwrap_or_default());
            }
        }
        given
    }

    fn taken(&self, due: &mut HashMap<i32, usize>, leased: &Result<Vec<Leased>>) {
        for leased in leased.iter().flatten() {
            if let Some(left) = self.lines.of(&leased.job.spec).and_then(|line| due.get_mut(&line)) {
                *left = left.saturating_sub(1);
            }
        }
    }
}

/// Jobs in line that a claim may have.
fn available(lines: &[Arc<Line>], due: &HashMap<i32, usize>, claim: &Claim) -> usize {
    let its_own = lines.iter().filter(|line| claim.asks_for(&line.queue, &line.kind));
    its_own.filter_map(|line| due.get(&line.id)).sum()
}
