//! The leases that workers of this process hold: told when they are over, and renewed while they are not.

use std::{collections::HashMap, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{
    sync::watch,
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

/// All leases held here.
#[derive(Debug, Default)]
pub struct Leases {
    held: Mutex<HashMap<LeaseId, Entry>>,
}

#[derive(Debug)]
struct Entry {
    job: JobId,
    revoked: watch::Sender<Option<Revocation>>,
    progress: watch::Receiver<Option<Progress>>,
    stored: Option<Progress>,
    renewed: Instant,
}

/// One lease, held until it is dropped.
pub struct Held {
    leases: Arc<Leases>,
    lease: LeaseId,
    revoked: watch::Receiver<Option<Revocation>>,
}

impl Leases {
    /// Takes a lease into care. `progress` is the newest that its attempt tells.
    pub fn hold(
        self: &Arc<Self>,
        lease: LeaseId,
        job: JobId,
        progress: watch::Receiver<Option<Progress>>,
    ) -> Held {
        let (sender, revoked) = watch::channel(None);
        let entry = Entry { job, revoked: sender, progress, stored: None, renewed: Instant::now() };
        self.held.lock().insert(lease, entry);
        Held { leases: self.clone(), lease, revoked }
    }

    /// Tells the holder to stop, if the lease is held here.
    pub fn revoke(&self, lease: LeaseId, why: Revocation) {
        if let Some(entry) = self.held.lock().get(&lease) {
            entry.revoked.send_replace(Some(why));
        }
    }

    /// The newest progress of a job that runs here.
    pub fn progress(&self, job: &JobId) -> Option<Progress> {
        self.held.lock().values().find(|entry| entry.job == *job)?.progress.borrow().clone()
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
            let newest = entry.progress.borrow().clone();
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
    /// Waits until the attempt must stop.
    pub async fn revoked(&mut self) -> Revocation {
        loop {
            if let Some(why) = *self.revoked.borrow_and_update() {
                return why;
            }
            if self.revoked.changed().await.is_err() {
                return Revocation::Lost;
            }
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.leases.held.lock().remove(&self.lease);
    }
}
