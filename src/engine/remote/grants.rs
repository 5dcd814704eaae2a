//! The register of leases beyond the process.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{Granted, Named, Session, Stopped, failure, settlement};
use crate::{
    job::{Job, JobId, Progress, Report, Timestamp, WorkerId},
    store::{LeaseId, Leased, OnlyIf, ProgressHint, Renewal, Settlement},
};

/// Leases that one look at the time deals with.
const SLICE: usize = 500;

/// Between looks at a lease whose report is on the way to the store.
const REPORTED: Duration = Duration::from_secs(1);

/// All leases that are held beyond the process.
#[derive(Debug, Default)]
pub struct Remote {
    state: Mutex<State>,
    /// There is progress to tell.
    fresh: Notify,
}

#[derive(Debug, Default)]
struct State {
    held: HashMap<LeaseId, Grant>,
    /// When each has to be looked at.
    alarms: BTreeSet<(Timestamp, LeaseId)>,
    /// Jobs with progress.
    by_job: HashMap<JobId, LeaseId>,
    /// With progress that nobody was told of.
    fresh: BTreeSet<LeaseId>,
    /// Never confirmed, and sent over streams that have ended.
    orphans: Orphans,
    /// Who is connected, in the order of their hellos.
    connected: HashMap<WorkerId, Vec<Arc<Session>>>,
}

type Orphans = HashMap<WorkerId, HashSet<LeaseId>>;

/// A lease that a worker holds.
#[derive(Clone, Debug)]
pub struct Grant {
    /// As it was leased, without its input.
    pub job: Arc<Job>,
    /// The newest of the attempt.
    pub progress: Option<Progress>,
    /// Who is told, if it is connected.
    holder: Option<Arc<Session>>,
    /// The worker has named it.
    confirmed: bool,
    /// Its report is on the way to the store.
    reported: bool,
    until: Timestamp,
    /// Was found over; the store has its own way with it.
    over: bool,
    deadline: Timestamp,
    stop: Option<Stop>,
    /// The store knows the progress.
    stored: bool,
    /// Not to be looked at before: the store was asked at that time, and has not ended it.
    again: Timestamp,
    /// As it is in `alarms`.
    alarm: Timestamp,
}

/// An attempt that must stop.
#[derive(Clone, Copy, Debug)]
pub struct Stop {
    pub why: Stopped,
    /// Until then a report counts.
    pub end: Timestamp,
}

/// What the time asks of the store.
#[derive(Debug, Default)]
pub struct Elapsed {
    /// Their leases stay in care until it is known that they are over.
    pub settlements: Vec<Settlement>,
    /// Only for their progress.
    pub renewals: Vec<Renewal>,
    /// There may be more.
    pub more: bool,
}

impl Grant {
    fn new(job: &Job, until: Timestamp, deadline: Timestamp) -> Self {
        Self {
            job: Arc::new(Job { spec: job.spec.omit_payload(), ..job.clone() }),
            progress: None,
            holder: None,
            confirmed: false,
            reported: false,
            until,
            over: false,
            deadline,
            stop: None,
            stored: true,
            again: Timestamp(0),
            alarm: Timestamp(0),
        }
    }

    /// One that a process before this one gave: to be renewed at once.
    pub fn of_before(job: &Job, deadline: Timestamp) -> Self {
        Self { over: true, ..Self::new(job, Timestamp(0), deadline) }
    }

    fn next(&self) -> Timestamp {
        let stop = self.stop.map_or(self.deadline, |stop| stop.end);
        let due = if self.over { stop } else { stop.min(self.until) };
        due.max(self.again)
    }

    fn tell(&self, lease: LeaseId, why: Stopped) {
        if let Some(holder) = &self.holder {
            holder.tell(lease, why);
        }
    }
}

impl State {
    fn insert(&mut self, lease: LeaseId, mut grant: Grant) {
        grant.alarm = grant.next();
        self.alarms.insert((grant.alarm, lease));
        self.held.insert(lease, grant);
    }

    fn remove(&mut self, lease: LeaseId) -> Option<Grant> {
        let grant = self.held.remove(&lease)?;
        self.alarms.remove(&(grant.alarm, lease));
        if self.by_job.get(&grant.job.id) == Some(&lease) {
            self.by_job.remove(&grant.job.id);
        }
        if let Some(holder) = &grant.holder {
            holder.release(lease);
        }
        forget_orphan(&mut self.orphans, &grant, lease);
        Some(grant)
    }

    /// Changes a grant, and when it has to be looked at next.
    fn change<T>(&mut self, lease: LeaseId, change: impl FnOnce(&mut Grant) -> T) -> Option<T> {
        let grant = self.held.get_mut(&lease)?;
        let changed = change(grant);
        let (before, next) = (grant.alarm, grant.next());
        if next != before {
            grant.alarm = next;
            self.alarms.remove(&(before, lease));
            self.alarms.insert((next, lease));
        }
        Some(changed)
    }
}

fn forget_orphan(orphans: &mut Orphans, grant: &Grant, lease: LeaseId) {
    if let Some(worker) = &grant.job.worker
        && let Some(own) = orphans.get_mut(worker)
    {
        own.remove(&lease);
        if own.is_empty() {
            orphans.remove(worker);
        }
    }
}

impl Remote {
    pub fn insert(&self, lease: LeaseId, grant: Grant) {
        let mut state = self.state.lock();
        // Two may have found it at the same time.
        if !state.held.contains_key(&lease) {
            state.insert(lease, grant);
        }
    }

    /// Takes what was just leased into care.
    pub fn grant(
        &self,
        holder: Option<&Arc<Session>>,
        leased: Vec<Leased>,
        duration: Duration,
    ) -> Vec<Granted> {
        let mut state = self.state.lock();
        let granted = leased.into_iter().map(|Leased { lease, job, attempt_timeout }| {
            let started = job.start_time.unwrap_or(job.submit_time);
            let (until, deadline) = (started.after(duration), started.after(attempt_timeout));
            let grant = Grant { holder: holder.cloned(), ..Grant::new(&job, until, deadline) };
            state.insert(lease, grant);
            let sequence = holder.map_or(0, |session| session.take(lease));
            Granted { lease, sequence, job, until, deadline }
        });
        granted.collect()
    }

    /// Drops a lease from care.
    pub fn remove(&self, lease: LeaseId) {
        self.state.lock().remove(lease);
    }

    /// Which of these are still held.
    pub fn held(&self, leases: &[LeaseId]) -> Vec<LeaseId> {
        let state = self.state.lock();
        leases.iter().filter(|lease| state.held.contains_key(lease)).copied().collect()
    }

    /// When a lease ends, and when its attempt is over its time.
    pub fn times(&self, lease: LeaseId) -> Option<(Timestamp, Timestamp)> {
        self.state.lock().held.get(&lease).map(|grant| (grant.until, grant.deadline))
    }

    /// Which of these are not in care.
    pub fn unknown(&self, leases: &HashSet<LeaseId>) -> Vec<LeaseId> {
        let state = self.state.lock();
        leases.iter().filter(|lease| !state.held.contains_key(lease)).copied().collect()
    }

    /// Notes that a worker has named leases, and what of them the store is to renew: not those that were renewed just
    /// now. Those nobody holds are lost.
    pub fn confirm(
        &self,
        holder: Option<&Arc<Session>>,
        named: &HashSet<LeaseId>,
        (now, duration, slack): (Timestamp, Duration, Duration),
        found: &mut Named,
    ) -> Vec<Renewal> {
        let mut state = self.state.lock();
        let State { held, orphans, .. } = &mut *state;
        let until = now.after(duration);
        let mut renewals = Vec::new();
        for &lease in named {
            let Some(grant) = held.get_mut(&lease) else {
                found.lost.push(lease);
                continue;
            };
            grant.confirmed = true;
            if grant.reported {
                // Named until its answer comes: neither held nor lost.
                continue;
            }
            if let Some(holder) = holder
                && !grant.holder.as_ref().is_some_and(|other| Arc::ptr_eq(other, holder))
            {
                holder.adopt(lease);
                if let Some(other) = grant.holder.replace(holder.clone()) {
                    other.release(lease);
                }
                if let Some(stop) = grant.stop {
                    holder.tell(lease, stop.why);
                }
            }
            forget_orphan(orphans, grant, lease);
            if grant.until > until || until.since(grant.until) > slack || !grant.stored {
                let progress = if grant.stored { None } else { grant.progress.clone() };
                grant.stored = true;
                renewals.push(Renewal { lease, until: Some(until), progress });
            }
        }
        renewals
    }

    /// Notes that a lease was renewed.
    pub fn renewed(&self, lease: LeaseId, until: Timestamp) {
        self.state.lock().change(lease, |grant| (grant.until, grant.over) = (until, false));
    }

    /// What there is to say of leases that were named.
    pub fn report(&self, named: &HashSet<LeaseId>, now: Timestamp, found: &mut Named) {
        let state = self.state.lock();
        for lease in named {
            let Some(grant) = state.held.get(lease) else { continue };
            found.until = Some(found.until.map_or(grant.until, |until| until.min(grant.until)));
            if let Some(stop) = grant.stop {
                found.stopped.push((*lease, stop.why, stop.end.since(now)));
            }
        }
    }

    /// Tells the worker to stop, if the lease is held. A report until `end` still counts.
    pub fn stop(&self, lease: LeaseId, why: Stopped, end: Timestamp) {
        let mut state = self.state.lock();
        if why == Stopped::Expired {
            if let Some(grant) = state.remove(lease) {
                grant.tell(lease, why);
            }
            return;
        }
        state.change(lease, |grant| {
            if grant.stop.is_none() {
                grant.stop = Some(Stop { why, end });
                grant.tell(lease, why);
            }
        });
    }

    /// Notes that a worker is there.
    pub fn attend(&self, session: &Arc<Session>) {
        self.state.lock().connected.entry(session.worker().clone()).or_default().push(session.clone());
    }

    /// Leaves what a session holds without a holder. Takes out of care what was sent over it and not confirmed, if its
    /// worker has a newer stream, and has not named it there.
    pub fn abandon(&self, session: &Arc<Session>) -> Vec<LeaseId> {
        let mut state = self.state.lock();
        let is_replaced = state.leave(session);
        let mut unconfirmed = Vec::new();
        for lease in session.held() {
            let Some(grant) = state.held.get_mut(&lease) else { continue };
            if grant.holder.as_ref().is_some_and(|holder| Arc::ptr_eq(holder, session)) {
                grant.holder = None;
                if !grant.confirmed {
                    unconfirmed.push(lease);
                }
            }
        }
        if is_replaced {
            unconfirmed.iter().for_each(|&lease| drop(state.remove(lease)));
            return unconfirmed;
        }
        if !unconfirmed.is_empty() {
            state.orphans.entry(session.worker().clone()).or_default().extend(unconfirmed);
        }
        Vec::new()
    }

    /// Takes out of care what was sent to a worker over streams that have ended, and that it has not got.
    pub fn take_orphans(&self, worker: &WorkerId, named: &HashSet<LeaseId>) -> Vec<LeaseId> {
        let mut state = self.state.lock();
        let orphans = state.orphans.remove(worker).unwrap_or_default();
        let lost: Vec<_> = orphans.into_iter().filter(|lease| !named.contains(lease)).collect();
        lost.into_iter().filter(|&lease| state.remove(lease).is_some()).collect()
    }

    /// Takes those of the leases out of care that no worker has named yet.
    pub fn take_unconfirmed(&self, leases: &[LeaseId]) -> Vec<LeaseId> {
        let mut state = self.state.lock();
        let unconfirmed = |state: &State, lease| state.held.get(lease).is_some_and(|grant| !grant.confirmed);
        let lost: Vec<_> = leases.iter().filter(|lease| unconfirmed(&state, lease)).copied().collect();
        lost.into_iter().filter(|&lease| state.remove(lease).is_some()).collect()
    }

    /// Keeps the newest progress of an attempt; its checkpoint outlives reports without one. False if nobody holds the
    /// lease.
    pub fn progress(&self, lease: LeaseId, mut progress: Progress) -> bool {
        let mut state = self.state.lock();
        let State { held, by_job, fresh, orphans, .. } = &mut *state;
        let Some(grant) = held.get_mut(&lease) else { return false };
        let last = grant.progress.take().or_else(|| grant.job.progress.clone());
        progress.details = progress.details.or_else(|| last.and_then(|last| last.details));
        grant.progress = Some(progress);
        (grant.stored, grant.confirmed) = (false, true);
        forget_orphan(orphans, grant, lease);
        by_job.insert(grant.job.id.clone(), lease);
        fresh.insert(lease);
        self.fresh.notify_one();
        true
    }

    /// The newest progress of a job that runs beyond the process.
    pub fn newest_progress(&self, job: &JobId) -> Option<Progress> {
        let state = self.state.lock();
        state.held.get(state.by_job.get(job)?)?.progress.clone()
    }

    /// Progress that nobody was told of, once there is some: the newest of each attempt.
    pub async fn fresh_progress(&self) -> Vec<ProgressHint> {
        loop {
            let told = self.fresh.notified();
            let hints = self.state.lock().take_fresh();
            if !hints.is_empty() {
                return hints;
            }
            told.await;
        }
    }

    /// A report has come. The lease no longer takes a place in its worker's window; what was to be stopped is reported
    /// as that, unless it has succeeded.
    pub fn begin_finish(&self, lease: LeaseId, report: Report, now: Timestamp) -> (Option<Grant>, Report) {
        let mut state = self.state.lock();
        let Some(grant) = state.held.get_mut(&lease) else { return (None, report) };
        (grant.confirmed, grant.reported) = (true, true);
        if let Some(holder) = &grant.holder {
            holder.release(lease);
        }
        // A worker knows the deadline too: it may give in before it is told.
        let is_late = grant.stop.map_or(grant.deadline <= now, |stop| stop.why == Stopped::Timeout);
        let report = match report {
            Report::Failed(_) | Report::Released { .. } if is_late => failure(Stopped::Timeout),
            report => report,
        };
        (Some(grant.clone()), report)
    }

    /// The store could not take its report: it is held as before.
    pub fn not_reported(&self, lease: LeaseId) {
        self.state.lock().change(lease, |grant| {
            grant.reported = false;
            if let Some(holder) = &grant.holder {
                holder.adopt(lease);
            }
        });
    }

    /// What has become due by `now`.
    pub fn elapse(&self, now: Timestamp, grace: Duration) -> Elapsed {
        let mut state = self.state.lock();
        let mut elapsed = Elapsed::default();
        for _ in 0..SLICE {
            let Some(&(alarm, lease)) = state.alarms.first() else { return elapsed };
            if alarm > now {
                return elapsed;
            }
            state.look(lease, now, grace, &mut elapsed);
        }
        Elapsed { more: true, ..elapsed }
    }

    /// The store could not take their progress: it is still to be told.
    pub fn not_stored(&self, leases: impl Iterator<Item = LeaseId>) {
        let mut state = self.state.lock();
        for lease in leases {
            state.change(lease, |grant| (grant.stored, grant.over) = (false, false));
        }
    }
}

impl State {
    fn take_fresh(&mut self) -> Vec<ProgressHint> {
        let fresh = std::mem::take(&mut self.fresh);
        let hints = fresh.iter().filter_map(|lease| {
            let grant = self.held.get(lease)?;
            let Job { id, run, attempt, .. } = &*grant.job;
            let progress = grant.progress.clone()?;
            Some(ProgressHint { job_id: id.clone(), run: *run, attempt: *attempt, progress })
        });
        hints.collect()
    }

    /// Whether the worker has said hello again since.
    fn leave(&mut self, session: &Arc<Session>) -> bool {
        let Some(streams) = self.connected.get_mut(session.worker()) else { return false };
        let Some(at) = streams.iter().position(|other| Arc::ptr_eq(other, session)) else { return false };
        streams.remove(at);
        let is_replaced = at < streams.len();
        if streams.is_empty() {
            self.connected.remove(session.worker());
        }
        is_replaced
    }

    fn look(&mut self, lease: LeaseId, now: Timestamp, grace: Duration, elapsed: &mut Elapsed) {
        let Some(grant) = self.held.get(&lease) else { return };
        if grant.reported {
            // That came in time, however long the store takes.
            self.change(lease, |grant| grant.again = now.after(REPORTED));
            return;
        }
        let job = Some(grant.job.clone());
        let settlement = if let Some(stop) = grant.stop.filter(|stop| stop.end <= now) {
            let spent = settlement(lease, failure(stop.why), job);
            Settlement { progress: grant.progress.clone(), ..spent }
        } else if !grant.over && grant.until <= now && !grant.confirmed {
            // Its worker may have confirmed it at another server.
            let back = Report::Released { delay: Duration::ZERO };
            Settlement { only_if: OnlyIf::OwnAndOver, ..settlement(lease, back, job) }
        } else {
            self.warn(lease, now, grace, elapsed);
            return;
        };
        elapsed.settlements.push(settlement);
        self.change(lease, |grant| grant.again = Timestamp(now.0 + 1));
    }

    /// Tells the worker that its time is over, and notes that the lease is.
    fn warn(&mut self, lease: LeaseId, now: Timestamp, grace: Duration, elapsed: &mut Elapsed) {
        self.change(lease, |grant| {
            if grant.stop.is_none() && grant.deadline <= now {
                grant.stop = Some(Stop { why: Stopped::Timeout, end: now.after(grace) });
                grant.tell(lease, Stopped::Timeout);
            }
            if !grant.over && grant.until <= now {
                // The next tick spends the attempt; its progress is for the next one.
                grant.over = true;
                if let Some(progress) = grant.progress.clone().filter(|_| !grant.stored) {
                    let renewal = Renewal { lease, until: None, progress: Some(progress) };
                    elapsed.renewals.push(renewal);
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::{JobSpec, Payload};

    const NOW: Timestamp = Timestamp(1_000_000);
    const LEASE: LeaseId = LeaseId { job: 1, fence: 1 };

    /// One lease, whose attempt may take a minute.
    fn held(session: &Arc<Session>) -> Remote {
        let remote = Remote::default();
        let spec = JobSpec::new("k".parse().unwrap(), Payload::none());
        let job = Job { start_time: Some(NOW), ..Job::accepted("a".parse().unwrap(), spec.into(), NOW) };
        let leased = Leased { lease: LEASE, job: job.into(), attempt_timeout: Duration::from_secs(60) };
        remote.grant(Some(session), vec![leased], Duration::from_secs(3600));
        remote
    }

    fn session() -> Arc<Session> {
        Session::new("w".parse().unwrap(), 1)
    }

    fn succeeded() -> Report {
        Report::Succeeded(Payload::none())
    }

    #[test]
    fn a_report_that_the_store_could_not_take_leaves_its_lease_in_the_window() {
        let session = session();
        let remote = held(&session);
        let free = || session.slots().available_permits();
        assert_eq!(free(), 0);
        remote.begin_finish(LEASE, succeeded(), NOW);
        assert_eq!(free(), 1);
        remote.not_reported(LEASE);
        assert_eq!(free(), 0);
    }

    #[test]
    fn a_report_that_came_in_time_is_not_overtaken() {
        let session = session();
        let remote = held(&session);
        let grace = Duration::from_secs(10);
        let (late, over) = (NOW.after(Duration::from_secs(61)), NOW.after(Duration::from_secs(80)));
        assert!(remote.elapse(late, grace).settlements.is_empty());
        remote.begin_finish(LEASE, succeeded(), late);
        assert!(remote.elapse(over, grace).settlements.is_empty());
        remote.not_reported(LEASE);
        let later = over.after(REPORTED);
        assert_eq!(remote.elapse(later, grace).settlements.len(), 1);
    }
}
