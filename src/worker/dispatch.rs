//! Hands due jobs to the pool: as many as it has room for, from the queues that may run more.

use std::{collections::HashMap, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::{
    engine::Engine,
    job::{Kind, QueueName, WorkerId},
    store::{Claim, Handover, Leased},
};

/// A look at the store without a wake-up.
const POLL: Duration = Duration::from_secs(1);

/// Leases of one claim.
const MOST: usize = 500;

/// A lease with its place in the pool.
pub struct Assignment {
    pub leased: Leased,
    pub slot: Slot,
}

/// One of the attempts that may run at the same time. Free again when dropped.
pub struct Slot {
    _in_queue: Option<Busy>,
    _permit: OwnedSemaphorePermit,
}

/// What a waiting claim was given beside its answer. Only where queues have no limits: then no claim waits.
pub fn assignments(handover: Handover) -> impl Iterator<Item = Assignment> {
    let Handover { leased, mut slots } = handover;
    leased.into_iter().map_while(move |leased| {
        let slot = Slot { _in_queue: None, _permit: slots.split(1)? };
        Some(Assignment { leased, slot })
    })
}

/// One of the attempts of a queue, where queues have limits.
struct Busy {
    running: Arc<Mutex<HashMap<QueueName, usize>>>,
    queue: QueueName,
}

impl Drop for Busy {
    fn drop(&mut self) {
        let mut running = self.running.lock();
        if let Some(count) = running.get_mut(&self.queue) {
            *count -= 1;
            if *count == 0 {
                running.remove(&self.queue);
            }
        }
    }
}

/// Claims jobs for the pool of this process.
pub struct Dispatcher {
    engine: Engine,
    worker: WorkerId,
    kinds: Vec<Kind>,
    slots: Arc<Semaphore>,
    /// Attempts that run, by queue, if queues have limits.
    running: Arc<Mutex<HashMap<QueueName, usize>>>,
    pool: mpsc::Sender<Vec<Assignment>>,
    handover: mpsc::UnboundedSender<Handover>,
}

impl Dispatcher {
    /// `concurrency`: attempts that run at the same time. `handover` leads to the same pool.
    pub fn new(
        engine: Engine,
        worker: WorkerId,
        kinds: Vec<Kind>,
        concurrency: usize,
        pool: mpsc::Sender<Vec<Assignment>>,
        handover: mpsc::UnboundedSender<Handover>,
    ) -> Self {
        let slots = Arc::new(Semaphore::new(concurrency));
        Self { engine, worker, kinds, slots, running: Arc::default(), pool, handover }
    }

    /// Runs until the engine drains or the store fails.
    pub async fn run(self) {
        let mut due = self.engine.due();
        loop {
            // The first one free: how many there are counts when the jobs are handed out.
            tokio::select! {
                () = self.engine.drained() => return,
                free = self.slots.acquire() => drop(free),
            }
            due.borrow_and_update();
            let claim = self.claim();
            let limit = claim.wanted();
            let leased = match self.engine.claim(claim).await {
                Ok(leased) => leased,
                Err(error) => {
                    tracing::error!(%error, "no jobs are claimed");
                    // For good, or until the store can be reached again.
                    tokio::select! {
                        () = self.engine.drained() => return,
                        _ = self.engine.store_failed() => return,
                        () = tokio::time::sleep(POLL) => continue,
                    }
                }
            };
            let found = leased.len();
            // There are as many: nobody else takes any.
            let Ok(mut permits) = self.slots.clone().acquire_many_owned(found as u32).await else { return };
            let assignments = leased.into_iter().map_while(|leased| {
                let slot = self.occupy(&leased.job.spec.queue, permits.split(1)?);
                Some(Assignment { leased, slot })
            });
            if self.pool.send(assignments.collect()).await.is_err() {
                return;
            }
            // A claim that may wait is asked again at once, unless the store does not let it wait.
            let is_idle = if self.limits_queues() { found < limit } else { found == 0 };
            if is_idle {
                tokio::select! {
                    () = self.engine.drained() => return,
                    _ = due.changed() => {}
                    // Also when a queue at its limit has room again.
                    () = tokio::time::sleep(if self.limits_queues() { POLL / 50 } else { POLL }) => {}
                }
            }
        }
    }

    fn claim(&self) -> Claim {
        let config = self.engine.config();
        // What a queue may still run is only known now: a claim with such limits is not left to wait.
        let wait = (!self.limits_queues())
            .then(|| self.engine.claim_wait(self.slots.clone(), self.handover.clone()));
        let running = self.running.lock();
        let caps = config.queues.iter().filter_map(|(queue, settings)| {
            let queue = QueueName::parse("queues", queue).ok()?;
            let busy = running.get(&queue).copied().unwrap_or(0);
            Some((queue, settings.concurrency?.saturating_sub(busy)))
        });
        Claim {
            worker: self.worker.clone(),
            queues: None,
            kinds: self.kinds.clone(),
            limit: if wait.is_some() { MOST } else { self.slots.available_permits().min(MOST) },
            max_bytes: usize::MAX,
            caps: caps.collect(),
            lease: config.workers.lease,
            wait,
        }
    }

    fn limits_queues(&self) -> bool {
        self.engine.config().queues.values().any(|queue| queue.concurrency.is_some())
    }

    fn occupy(&self, queue: &QueueName, permit: OwnedSemaphorePermit) -> Slot {
        let in_queue = self.limits_queues().then(|| {
            *self.running.lock().entry(queue.clone()).or_default() += 1;
            Busy { running: self.running.clone(), queue: queue.clone() }
        });
        Slot { _in_queue: in_queue, _permit: permit }
    }
}
