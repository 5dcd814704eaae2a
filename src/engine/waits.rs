//! Those who wait for the end of one job.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::{
    job::{Error, Job, JobId},
    store::Outcome,
};

/// Everybody who waits, by job.
#[derive(Debug)]
pub struct Waits {
    by_job: Mutex<HashMap<JobId, Vec<Waiter>>>,
    next: AtomicU64,
    room: Arc<Semaphore>,
    limit: usize,
}

/// A wait's number, and how it is told.
type Waiter = (u64, oneshot::Sender<Arc<Job>>);

/// One wait: for the next outcome of the job that is told. Leaves no trace when dropped.
pub struct Wait<'a> {
    waits: &'a Waits,
    job: JobId,
    number: u64,
    outcome: oneshot::Receiver<Arc<Job>>,
    _room: OwnedSemaphorePermit,
}

impl Waits {
    /// At most `limit` at a time.
    pub fn new(limit: usize) -> Self {
        Self {
            by_job: Mutex::default(),
            next: AtomicU64::new(0),
            room: Arc::new(Semaphore::new(limit)),
            limit,
        }
    }

    /// Begins to wait. No outcome that is told from here on is missed; it may be told late, and be one of before.
    ///
    /// # Errors
    /// [`Error::WatchLimit`] if too many wait already.
    pub fn begin(&self, job: JobId) -> Result<Wait<'_>, Error> {
        let full = |_| Error::WatchLimit { what: "waits", limit: self.limit as u64 };
        let room = self.room.clone().try_acquire_owned().map_err(full)?;
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let outcome = self.register(job.clone(), number);
        Ok(Wait { waits: self, job, number, outcome, _room: room })
    }

    fn register(&self, job: JobId, number: u64) -> oneshot::Receiver<Arc<Job>> {
        let (sender, outcome) = oneshot::channel();
        self.by_job.lock().entry(job).or_default().push((number, sender));
        outcome
    }

    /// Tells the waits for these jobs.
    pub fn wake(&self, outcomes: &[Outcome]) {
        let mut by_job = self.by_job.lock();
        if by_job.is_empty() {
            return;
        }
        for outcome in outcomes {
            for (_, sender) in by_job.remove(&outcome.job.id).unwrap_or_default() {
                // The waiter may just have gone.
                let _ = sender.send(outcome.job.clone());
            }
        }
    }
}

impl Wait<'_> {
    /// The outcome. Never, if the job does not end.
    pub async fn outcome(&mut self) -> Arc<Job> {
        match (&mut self.outcome).await {
            Ok(job) => job,
            Err(_) => std::future::pending().await,
        }
    }

    /// Begins anew, after an outcome that was not the one.
    pub fn renew(&mut self) {
        self.outcome = self.waits.register(self.job.clone(), self.number);
    }
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        let mut by_job = self.waits.by_job.lock();
        if let Some(waiting) = by_job.get_mut(&self.job) {
            waiting.retain(|(number, _)| *number != self.number);
            if waiting.is_empty() {
                by_job.remove(&self.job);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_wait_leaves_no_trace() {
        let waits = Waits::new(2);
        let job: JobId = "a".parse().unwrap();
        let (one, two) = (waits.begin(job.clone()).unwrap(), waits.begin(job.clone()).unwrap());
        assert!(matches!(waits.begin(job.clone()), Err(Error::WatchLimit { limit: 2, .. })));
        drop(one);
        assert_eq!(waits.by_job.lock()[&job].len(), 1);
        drop(two);
        assert!(waits.by_job.lock().is_empty());
        assert!(waits.begin(job).is_ok());
    }
}
