//! The leases that workers of this process hold: told when they are over, and renewed while they are not.

use std::{collections::HashMap, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{
    sync::{Notify, oneshot},
    time::{Instant, MissedTickBehavior},
};

use super::clock::Clock;
use crate::{
    job::{JobId, Progress},
    store::{LeaseId, Renewal, Renewed, Store},
};

/// Why an attempt must stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Revocation {
    /// Somebody cancelled the job: a report still counts.
    Cancelled,
    /// The attempt is settled without it: nobody wants its result.
    Lost,
}

/// How far an attempt has come: only the newest is kept. Each attempt has one, and most never tell anything.
#[derive(Debug, Default)]
pub struct NewestProgress {
    newest: Mutex<Newest>,
    told: Notify,
}

#[derive(Debug, Default)]
struct Newest {
    progress: Option<Progress>,
    is_new: bool,
}

impl NewestProgress {
    pub fn get(&self) -> Option<Progress> {
        self.newest.lock().progress.clone()
    }

    /// The same, once: none if it was taken before.
    pub fn take_new(&self) -> Option<Progress> {
        let mut newest = self.newest.lock();
        std::mem::take(&mut newest.is_new).then(|| newest.progress.clone())?
    }

    /// Makes a newer one of the one there is.
    pub fn tell(&self, newer: impl FnOnce(Option<Progress>) -> Progress) {
        let mut newest = self.newest.lock();
        let last = newest.progress.take();
        *newest = Newest { progress: Some(newer(last)), is_new: true };
        drop(newest);
        self.told.notify_one();
    }

    /// Waits until something was told since the last wait. For one waiter.
    pub async fn told(&self) {
        self.told.notified().await;
    }
}

/// All leases held here.
#[derive(Debug, Default)]
pub struct Leases {
    held: Mutex<HashMap<LeaseId, Entry>>,
}

#[derive(Debug)]
struct Entry {
    job: JobId,
    revoked: Option<oneshot::Sender<Revocation>>,
    progress: Arc<NewestProgress>,
    stored: Option<Progress>,
    renewed: Instant,
}

/// One lease, held until it is dropped.
pub struct Held {
    leases: Arc<Leases>,
    lease: LeaseId,
    revoked: oneshot::Receiver<Revocation>,
}

impl Leases {
    /// Takes a lease into care. `progress` is the newest that its attempt tells.
    pub fn hold(self: &Arc<Self>, lease: LeaseId, job: JobId, progress: Arc<NewestProgress>) -> Held {
        let (sender, revoked) = oneshot::channel();
        let entry = Entry { job, revoked: Some(sender), progress, stored: None, renewed: Instant::now() };
        self.held.lock().insert(lease, entry);
        Held { leases: self.clone(), lease, revoked }
    }

    /// Tells the holder to stop, if the lease is held here. The first word counts.
    pub fn revoke(&self, lease: LeaseId, why: Revocation) {
        if let Some(revoked) = self.held.lock().get_mut(&lease).and_then(|entry| entry.revoked.take()) {
            // Its attempt may have just ended.
            let _ = revoked.send(why);
        }
    }

    /// The newest progress of a job that runs here.
    pub fn progress(&self, job: &JobId) -> Option<Progress> {
        self.held.lock().values().find(|entry| entry.job == *job)?.progress.get()
    }

    /// Renews, forever, what is held for longer than `every`, and stores new progress.
    pub async fn keep(&self, store: &dyn Store, clock: &Clock, every: Duration, lease: Duration) {
        let mut beat = tokio::time::interval(every / 2);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            beat.tick().await;
            let renewals = self.due(every, clock, lease);
            if renewals.is_empty() {
                continue;
            }
            let leases: Vec<_> = renewals.iter().map(|renewal| renewal.lease).collect();
            match store.renew(clock.now(), renewals).await {
                Ok(renewed) => {
                    for (lease, renewed) in leases.into_iter().zip(renewed) {
                        match renewed {
                            Renewed::Held => {}
                            Renewed::Cancelled => self.revoke(lease, Revocation::Cancelled),
                            Renewed::Lost => self.revoke(lease, Revocation::Lost),
                        }
                    }
                }
                Err(error) => {
                    tracing::error!(%error, "leases could not be renewed");
                    self.renew_soon(&leases, every);
                }
            }
        }
    }

    fn due(&self, every: Duration, clock: &Clock, lease: Duration) -> Vec<Renewal> {
        let (now, until) = (Instant::now(), clock.now().after(lease));
        let mut held = self.held.lock();
        let due = held.iter_mut().filter(|(_, entry)| now.duration_since(entry.renewed) >= every);
        due.map(|(&lease, entry)| {
            entry.renewed = now;
            let newest = entry.progress.get();
            let progress = if newest == entry.stored { None } else { newest.clone() };
            entry.stored = newest;
            Renewal { lease, until: Some(until), progress }
        })
        .collect()
    }

    /// What could not be renewed is due at the next beat, with its progress.
    fn renew_soon(&self, leases: &[LeaseId], every: Duration) {
        let mut held = self.held.lock();
        for lease in leases {
            if let Some(entry) = held.get_mut(lease) {
                entry.stored = None;
                entry.renewed = entry.renewed.checked_sub(every).unwrap_or(entry.renewed);
            }
        }
    }
}

impl Held {
    /// Waits until the attempt must stop. Answers once.
    pub async fn revoked(&mut self) -> Revocation {
        (&mut self.revoked).await.unwrap_or(Revocation::Lost)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.leases.held.lock().remove(&self.lease);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::Timestamp;

    #[tokio::test]
    async fn what_was_told_twice_is_new_once() {
        let progress = NewestProgress::default();
        let at =
            |fraction| Progress { fraction, note: String::new(), details: None, update_time: Timestamp(0) };
        progress.tell(|_| at(0.1));
        progress.told().await;
        progress.tell(|last| at(last.unwrap().fraction + 0.4));
        assert_eq!(progress.take_new(), Some(at(0.5)));
        progress.told().await;
        assert_eq!((progress.take_new(), progress.get()), (None, Some(at(0.5))));
    }
}
