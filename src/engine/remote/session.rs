//! One connected worker, as the engine sees it: its credit, what it holds, and what it is to be told.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    sync::{Notify, Semaphore},
    time::Instant,
};

use super::Stopped;
use crate::{job::WorkerId, store::LeaseId};

/// A worker that is connected. The window bounds what it holds: as many permits are free as it may be given leases.
#[derive(Debug)]
pub struct Session {
    worker: WorkerId,
    slots: Arc<Semaphore>,
    state: Mutex<State>,
    /// There is something to tell.
    told: Notify,
    /// The window or what is in it has changed, or the worker was heard of.
    moved: Notify,
}

#[derive(Debug)]
struct State {
    window: usize,
    /// With their sequence numbers; 0 for those of an earlier stream.
    held: HashMap<LeaseId, i64>,
    last: i64,
    notices: Vec<(LeaseId, Stopped)>,
    heard: Instant,
}

impl Session {
    /// A worker that may hold `window` leases.
    pub fn new(worker: WorkerId, window: usize) -> Arc<Self> {
        let state =
            State { window, held: HashMap::new(), last: 0, notices: Vec::new(), heard: Instant::now() };
        let slots = Arc::new(Semaphore::new(window));
        Arc::new(Self { worker, slots, state: Mutex::new(state), told: Notify::new(), moved: Notify::new() })
    }

    pub fn worker(&self) -> &WorkerId {
        &self.worker
    }

    /// A permit for each lease that the worker may still be given. They are only counted.
    pub fn slots(&self) -> &Arc<Semaphore> {
        &self.slots
    }

    /// The worker said something.
    pub fn hear(&self) {
        self.state.lock().heard = Instant::now();
        self.moved.notify_waiters();
    }

    /// How long ago the worker last said something.
    pub fn silence(&self) -> Duration {
        self.state.lock().heard.elapsed()
    }

    /// Sets the window. What is held beyond a smaller one stays.
    pub fn resize(&self, window: usize) {
        let mut state = self.state.lock();
        state.window = window;
        self.count(&state);
    }

    /// Counts a lease in, and numbers it.
    pub fn take(&self, lease: LeaseId) -> i64 {
        let mut state = self.state.lock();
        state.last += 1;
        let sequence = state.last;
        state.held.insert(lease, sequence);
        self.count(&state);
        sequence
    }

    /// Counts in a lease of an earlier stream.
    pub fn adopt(&self, lease: LeaseId) {
        let mut state = self.state.lock();
        state.held.entry(lease).or_insert(0);
        self.count(&state);
    }

    /// Counts a lease out.
    pub fn release(&self, lease: LeaseId) {
        let mut state = self.state.lock();
        if state.held.remove(&lease).is_some() {
            self.count(&state);
        }
    }

    /// Leases that the worker must have seen by now, as it has seen `last`, but does not name.
    pub fn unnamed(&self, named: &HashSet<LeaseId>, last: i64) -> Vec<LeaseId> {
        let state = self.state.lock();
        let missing =
            state.held.iter().filter(|(lease, sequence)| **sequence <= last && !named.contains(lease));
        missing.map(|(lease, _)| *lease).collect()
    }

    /// All leases that are held.
    pub fn held(&self) -> Vec<LeaseId> {
        self.state.lock().held.keys().copied().collect()
    }

    /// Waits until nothing is held.
    pub async fn idle(&self) {
        loop {
            let moved = self.moved.notified();
            tokio::pin!(moved);
            moved.as_mut().enable();
            if self.state.lock().held.is_empty() {
                return;
            }
            moved.await;
        }
    }

    /// Leaves word that the attempt of a lease must stop.
    pub fn tell(&self, lease: LeaseId, why: Stopped) {
        self.state.lock().notices.push((lease, why));
        self.told.notify_one();
    }

    /// What the worker is to be told next, once there is something.
    pub async fn notices(&self) -> Vec<(LeaseId, Stopped)> {
        loop {
            let told = self.told.notified();
            let notices = std::mem::take(&mut self.state.lock().notices);
            if !notices.is_empty() {
                return notices;
            }
            told.await;
        }
    }

    /// Waits until the worker may be given a lease, and was heard of within `patience`.
    pub async fn ready(&self, patience: Duration) {
        loop {
            let moved = self.moved.notified();
            tokio::pin!(moved);
            moved.as_mut().enable();
            if self.slots.available_permits() > 0 && self.silence() < patience {
                return;
            }
            moved.await;
        }
    }

    /// As many permits as there is room in the window. Nobody takes any, so the difference is all there is to do.
    fn count(&self, state: &State) {
        let wanted = state.window.saturating_sub(state.held.len());
        let free = self.slots.available_permits();
        if wanted > free {
            self.slots.add_permits(wanted - free);
        } else {
            self.slots.forget_permits(free - wanted);
        }
        self.moved.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(job: i64) -> LeaseId {
        LeaseId { job, fence: 1 }
    }

    fn session(window: usize) -> Arc<Session> {
        Session::new("w".parse().unwrap(), window)
    }

    #[test]
    fn a_window_is_absolute() {
        let session = session(3);
        let free = || session.slots().available_permits();
        for job in 1..=2 {
            assert_eq!(session.take(lease(job)), job);
        }
        assert_eq!(free(), 1);
        session.resize(1);
        assert_eq!(free(), 0);
        session.release(lease(1));
        assert_eq!(free(), 0);
        session.release(lease(2));
        session.release(lease(2));
        assert_eq!(free(), 1);
        session.resize(10);
        session.adopt(lease(7));
        session.adopt(lease(7));
        assert_eq!(free(), 9);
    }

    #[test]
    fn what_was_seen_and_is_not_named_is_found() {
        let session = session(10);
        for job in 1..=3 {
            session.take(lease(job));
        }
        let named = HashSet::from([lease(1)]);
        assert_eq!(session.unnamed(&named, 2), [lease(2)]);
        assert_eq!(session.unnamed(&named, 1), []);
    }

    #[tokio::test]
    async fn a_notice_is_told_once() {
        let session = session(1);
        session.tell(lease(1), Stopped::Expired);
        assert_eq!(session.notices().await, [(lease(1), Stopped::Expired)]);
        let more = tokio::time::timeout(Duration::from_millis(20), session.notices()).await;
        assert!(more.is_err(), "{more:?}");
    }
}
