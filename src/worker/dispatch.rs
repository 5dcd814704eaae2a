//! Hands due jobs to the pool: as many as it has room for, from the queues that may run more.

use std::{collections::HashMap, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::{
    engine::Engine,
    job::{Kind, QueueName, WorkerId},
    store::{Claim, Leased},
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
    running: Arc<Mutex<HashMap<QueueName, usize>>>,
    queue: QueueName,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Slot {
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
    /// Attempts that run, by queue.
    running: Arc<Mutex<HashMap<QueueName, usize>>>,
    pool: mpsc::Sender<Assignment>,
}

impl Dispatcher {
    /// `concurrency`: attempts that run at the same time.
    pub fn new(
        engine: Engine,
        worker: WorkerId,
        kinds: Vec<Kind>,
        concurrency: usize,
        pool: mpsc::Sender<Assignment>,
    ) -> Self {
        let slots = Arc::new(Semaphore::new(concurrency));
        Self { engine, worker, kinds, slots, running: Arc::default(), pool }
    }

    /// Runs until the engine drains or the store fails.
    pub async fn run(self) {
        let mut due = self.engine.due();
        loop {
            let Some(permits) = self.free_slots().await else { return };
            due.borrow_and_update();
            let limit = permits.len();
            let leased = match self.engine.claim(self.claim(limit)).await {
                Ok(leased) => leased,
                Err(error) => {
                    tracing::error!(%error, "no more jobs are claimed");
                    return;
                }
            };
            let more = leased.len() == limit;
            for (leased, permit) in leased.into_iter().zip(permits) {
                let slot = self.occupy(&leased.job.spec.queue, permit);
                if self.pool.send(Assignment { leased, slot }).await.is_err() {
                    return;
                }
            }
            if !more {
                tokio::select! {
                    () = self.engine.drained() => return,
                    _ = due.changed() => {}
                    // Also when a queue at its limit has room again.
                    () = tokio::time::sleep(if self.limits_queues() { POLL / 50 } else { POLL }) => {}
                }
            }
        }
    }

    /// All free slots, at least one; None once the engine drains.
    async fn free_slots(&self) -> Option<Vec<OwnedSemaphorePermit>> {
        let first = tokio::select! {
            () = self.engine.drained() => return None,
            permit = self.slots.clone().acquire_owned() => permit.ok()?,
        };
        let mut permits = vec![first];
        while permits.len() < MOST
            && let Ok(permit) = self.slots.clone().try_acquire_owned()
        {
            permits.push(permit);
        }
        Some(permits)
    }

    fn claim(&self, limit: usize) -> Claim {
        let config = self.engine.config();
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
            limit,
            caps: caps.collect(),
            lease: config.workers.lease,
        }
    }

    fn limits_queues(&self) -> bool {
        self.engine.config().queues.values().any(|queue| queue.concurrency.is_some())
    }

    fn occupy(&self, queue: &QueueName, permit: OwnedSemaphorePermit) -> Slot {
        *self.running.lock().entry(queue.clone()).or_default() += 1;
        Slot { running: self.running.clone(), queue: queue.clone(), _permit: permit }
    }
}
