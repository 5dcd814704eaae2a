//! Claims that wait for jobs. One look for all of them: what there is, is divided evenly among those who may have it.

use std::{
    collections::HashMap,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    sync::{Mutex as AsyncMutex, Notify, OwnedSemaphorePermit, oneshot},
    time::sleep,
};

use super::{database::Database, lines::Line, pool::Result};
use crate::{
    job::{Kind, QueueName, Timestamp},
    store::{Claim, ClaimWait, Handover, Leased, Settlement},
};

/// Those who wait look by themselves this often, a quarter more or less, should a hint be lost.
const POLL: Duration = Duration::from_millis(250);

type Reply = oneshot::Sender<Result<Vec<Leased>>>;

/// Claims without an answer yet, the oldest first.
#[derive(Debug, Default)]
pub struct Parked {
    claims: Mutex<Vec<Arc<Waiting>>>,
    turn: AsyncMutex<()>,
    /// A look waits for its turn: it will see what those see that are asked for meanwhile.
    is_next: AtomicBool,
}

#[derive(Debug)]
pub struct Waiting {
    pub claim: Claim,
    reply: Mutex<Option<Reply>>,
    /// Jobs were handed over: there may be more.
    handed_over: Notify,
}

impl Parked {
    pub fn claims(&self) -> Vec<Arc<Waiting>> {
        self.claims.lock().clone()
    }

    /// Answers all with what there is: nothing.
    pub fn release(&self) {
        for waiting in std::mem::take(&mut *self.claims.lock()) {
            // It was given nothing.
            waiting.answer(Ok(Vec::new()));
        }
    }
}

impl Waiting {
    /// `known`: the newest time that was heard of.
    fn now(&self, known: Timestamp) -> Timestamp {
        self.claim.wait.as_ref().map_or(known, |wait| wait.now.0().max(known))
    }

    fn is_over(&self) -> bool {
        self.claim.wait.as_ref().is_none_or(|wait| wait.end.is_cancelled())
    }

    pub fn is_answered(&self) -> bool {
        self.reply.lock().is_none()
    }

    /// Answers with what nobody is there any more to take.
    fn answer(&self, leased: Result<Vec<Leased>>) -> Vec<Leased> {
        let unsent = match self.reply.lock().take() {
            Some(reply) => reply.send(leased).err(),
            None => Some(leased),
        };
        unsent.and_then(Result::ok).unwrap_or_default()
    }

    /// Whether it is given jobs without being answered.
    pub fn waits_on(&self) -> bool {
        self.claim.wait.as_ref().is_some_and(|wait| wait.handover.is_some())
    }

    /// The slots of so many jobs that it may be handed. None if there is no room, or if it does not wait on.
    pub fn reserve(&self, jobs: usize) -> Option<OwnedSemaphorePermit> {
        let wait = self.claim.wait.as_ref().filter(|wait| wait.handover.is_some())?;
        wait.slots.clone().try_acquire_many_owned(u32::try_from(jobs).ok()?).ok()
    }

    /// Gives it jobs, each with a slot, while it waits on. Answers as above.
    pub fn hand_over(&self, leased: Vec<Leased>, slots: OwnedSemaphorePermit) -> Vec<Leased> {
        let Some(handover) = self.claim.wait.as_ref().and_then(|wait| wait.handover.as_ref()) else {
            return leased;
        };
        let Err(unsent) = handover.send(Handover { leased, slots }) else {
            self.look_again();
            return Vec::new();
        };
        // It waits for nothing any more.
        self.answer(Ok(Vec::new()));
        unsent.0.leased
    }

    /// There may be more for it, once it has room.
    pub fn look_again(&self) {
        self.handed_over.notify_one();
    }
}

/// What a claim gets. If it waits on, with a slot for each.
#[derive(Default)]
struct Given {
    leased: Vec<Leased>,
    slots: Option<OwnedSemaphorePermit>,
}

impl Given {
    fn add(&mut self, more: Self) {
        self.leased.extend(more.leased);
        match (&mut self.slots, more.slots) {
            (Some(slots), Some(more)) => slots.merge(more),
            (none, more) => *none = more.or(none.take()),
        }
    }
}

impl Database {
    /// Leases, once there are jobs or the wait has ended.
    pub async fn wait_for_jobs(&self, claim: Claim, wait: &ClaimWait) -> Result<Vec<Leased>> {
        let (reply, mut answer) = oneshot::channel();
        let mut due = self.signals.due.subscribe();
        let waiting = Arc::new(Waiting { claim, reply: Mutex::new(Some(reply)), handed_over: Notify::new() });
        self.parked.claims.lock().push(waiting.clone());
        loop {
            due.borrow_and_update();
            self.look();
            // Who waits on is looked for again once there is room.
            let is_full = waiting.waits_on() && wait.slots.available_permits() == 0;
            tokio::select! {
                biased;
                leased = &mut answer => return leased.unwrap_or(Ok(Vec::new())),
                () = wait.end.cancelled() => {
                    self.look();
                    return answer.await.unwrap_or(Ok(Vec::new()));
                }
                room = wait.slots.acquire(), if is_full => drop(room),
                () = waiting.handed_over.notified(), if !is_full => {}
                _ = due.changed(), if !is_full => {}
                () = sleep(POLL.mul_f64(0.75 + fastrand::f64() / 2.0)), if !is_full => {}
            }
        }
    }

    /// Looks what there is for those who wait. In a task of its own: whoever asked for it may go away. A look may take as
    /// long as the database does, so there are never more than one and the next.
    fn look(&self) {
        if self.parked.is_next.swap(true, Ordering::AcqRel) {
            return;
        }
        let me = Weak::clone(&self.me);
        tokio::spawn(async move {
            let Some(store) = me.upgrade() else { return };
            let _turn = store.parked.turn.lock().await;
            store.parked.is_next.swap(false, Ordering::AcqRel);
            store.serve().await;
        });
    }

    /// Gives the claims what there is for them, and answers those that wait no longer.
    async fn serve(&self) {
        let claims = self.parked.claims();
        let (mut served, mut unsent) = (Vec::new(), Vec::new());
        for (waiting, given) in claims.iter().zip(self.share(&claims).await) {
            match given {
                Ok(Given { leased, slots: Some(slots) }) if !leased.is_empty() => {
                    unsent.extend(waiting.hand_over(leased, slots));
                    served.push(waiting.clone());
                    if waiting.is_over() {
                        waiting.answer(Ok(Vec::new()));
                    }
                }
                Ok(Given { leased, .. }) if leased.is_empty() && !waiting.is_over() => {}
                given => unsent.extend(waiting.answer(given.map(|given| given.leased))),
            }
        }
        {
            let mut parked = self.parked.claims.lock();
            parked.retain(|waiting| !waiting.is_answered());
            // Whoever was given something is last in line.
            parked.sort_by_key(|waiting| served.iter().any(|served| Arc::ptr_eq(served, waiting)));
        }
        self.give_back(self.last_time(), &unsent).await;
    }

    /// What each claim gets, at its place. The first in line leaves something for those behind it: what there is, is
    /// divided evenly among those who may have it, and what somebody does not need goes to the others.
    async fn share(&self, waiting: &[Arc<Waiting>]) -> Vec<Result<Given>> {
        if let [only] = waiting {
            return vec![self.give(only.now(self.last_time()), only, &only.claim, usize::MAX).await];
        }
        let mut given: Vec<Result<Given>> = waiting.iter().map(|_| Ok(Given::default())).collect();
        let Some(now) = waiting.first().map(|one| one.now(self.last_time())) else { return given };
        let wanted: usize = waiting.iter().map(|one| one.claim.wanted()).sum();
        let looked = async {
            self.lines.keep_up(&self.pools.claim).await?;
            let asked =
                |queue: &QueueName, kind: &Kind| waiting.iter().any(|one| one.claim.asks_for(queue, kind));
            let lines = self.lines.matching(asked);
            let look = self.standing.peek(lines.iter().map(|line| line.id), false);
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
            given[at] = self.give(now, &waiting[at], claim, most).await;
            self.taken(&mut due, &given[at]);
        }
        for at in hungry {
            let claim = &waiting[at].claim;
            let Ok(had) = &mut given[at] else { continue };
            // The slots of those that are handed over are taken already.
            let answered = if had.slots.is_some() { 0 } else { had.leased.len() };
            let most = claim.wanted().saturating_sub(answered);
            if most > 0 && available(&lines, &due, claim) > 0 {
                // What was given already is given, whatever becomes of the rest.
                let more = self.give(now, &waiting[at], &claim.beside(&had.leased), most).await;
                self.taken(&mut due, &more);
                had.add(more.unwrap_or_default());
            }
        }
        given
    }

    /// Leases at most `most` jobs for a claim, or for what is left of it.
    async fn give(&self, now: Timestamp, waiting: &Waiting, claim: &Claim, most: usize) -> Result<Given> {
        let (mut wanted, mut reserved) = (claim.wanted().min(most), None);
        while waiting.waits_on() && reserved.is_none() {
            // Somebody else may have had some of its slots in between.
            wanted = claim.wanted().min(most);
            reserved = waiting.reserve(wanted);
        }
        let leased = self.claim_upto(now, claim, wanted).await?;
        let slots = reserved.as_mut().and_then(|slots| slots.split(leased.len()));
        Ok(Given { leased, slots })
    }

    /// Gives back what was leased for somebody who is not there any more, uncounted. If that fails, the leases run out.
    pub async fn give_back(&self, now: Timestamp, leased: &[Leased]) {
        if leased.is_empty() {
            return;
        }
        let back = leased.iter().map(|leased| Settlement::release(leased.lease)).collect();
        if let Err(error) = self.settle_attempts(now, back).await {
            tracing::warn!(%error, jobs = leased.len(), "jobs that nobody runs wait for their leases to run out");
        }
    }

    fn taken(&self, due: &mut HashMap<i32, usize>, given: &Result<Given>) {
        for leased in given.iter().flat_map(|given| &given.leased) {
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
