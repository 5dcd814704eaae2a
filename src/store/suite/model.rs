//! What a store does, in the most naive way: a list of jobs in memory. It shares nothing with the rules in
//! `crate::job`, so that both can only be wrong in the same way by chance.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use super::*;

/// What was said of a refusal: the variant, and the job that it names.
pub type Refusal = (&'static str, Option<String>);
pub type Answer<T> = Result<T, Refusal>;

pub fn refusal(error: Error) -> Refusal {
    match error {
        Error::RequestIdReused { job_id, .. } => ("request_id reused", Some(job_id)),
        Error::JobDeleted { job_id, .. } => ("job deleted", Some(job_id)),
        Error::JobIdInUse { job_id } => ("job_id in use", Some(job_id)),
        Error::UniqueKeyInUse { job_id, .. } => ("unique_key in use", Some(job_id)),
        Error::QueueFull { .. } => ("queue full", None),
        Error::JobNotFound { job_id } => ("not found", Some(job_id)),
        Error::JobState { job_id, .. } => ("wrong state", Some(job_id)),
        Error::EtagMismatch { job_id, .. } => ("etag mismatch", Some(job_id)),
        Error::LeaseLost => ("lease lost", None),
        other => panic!("nothing was wrong: {other}"),
    }
}

/// A job, whatever became of it.
#[derive(Clone, Debug)]
pub struct Entry {
    pub name: String,
    pub spec: Arc<JobSpec>,
    pub state: State,
    pub run: u32,
    pub attempt: u32,
    pub version: i64,
    pub due: Timestamp,
    pub lease: Option<LeaseId>,
    pub lease_until: Timestamp,
    pub cancelled: bool,
    pub progress: Option<f64>,
    pub output: Option<Payload>,
    pub error: Option<Cause>,
    pub failures: Vec<(u32, u32, Cause)>,
    pub finished: Option<Timestamp>,
    start_by: Option<Timestamp>,
    end_by: Option<Timestamp>,
    removed: bool,
}

/// The end of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct End {
    pub name: String,
    pub run: u32,
    pub state: State,
    job: usize,
    keep_until: Timestamp,
}

#[derive(Clone, Debug)]
struct Request {
    job: usize,
    asked: Submission,
    until: Timestamp,
}

#[derive(Clone, Debug)]
pub struct Model {
    /// In submit order.
    jobs: Vec<Entry>,
    pub feed: Vec<End>,
    pub ended: BTreeMap<State, u64>,
    requests: BTreeMap<Key, Request>,
    limits: Limits,
    retention: Duration,
}

/// Settings of a store.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub max_unfinished: usize,
    /// A request id outlives its job, or the other way round.
    pub window: Duration,
    /// After the first failure.
    pub back_off: Duration,
}

impl Model {
    pub fn new(limits: Limits, retention: Duration) -> Self {
        let (jobs, feed, ended, requests) = Default::default();
        Self { jobs, feed, ended, requests, limits, retention }
    }

    /// Jobs that are there, oldest first.
    pub fn jobs(&self) -> impl DoubleEndedIterator<Item = &Entry> {
        self.jobs.iter().filter(|job| !job.removed)
    }

    pub fn job(&self, name: &str) -> Option<&Entry> {
        self.jobs().find(|job| job.name == name)
    }

    fn place(&self, name: &str) -> Option<usize> {
        self.jobs.iter().position(|job| job.name == name && !job.removed)
    }

    /// All of a group, or the first refusal and its index.
    pub fn submit(
        &mut self,
        now: Timestamp,
        group: &[Submission],
    ) -> Result<Vec<(String, bool)>, (usize, Refusal)> {
        let before = self.clone();
        let mut accepted = Vec::new();
        for (index, submission) in group.iter().enumerate() {
            let unchecked = submission.check_only.then(|| self.clone());
            match self.submit_one(now, submission) {
                Ok(answer) => {
                    accepted.push(answer);
                    if let Some(unchecked) = unchecked {
                        *self = unchecked;
                    }
                }
                Err(refusal) => {
                    *self = before;
                    return Err((index, refusal));
                }
            }
        }
        Ok(accepted)
    }

    fn submit_one(&mut self, now: Timestamp, asked: &Submission) -> Answer<(String, bool)> {
        let name = asked.job_id.to_string();
        if let Some(known) = asked.request_id.as_ref().and_then(|id| self.requests.get(id))
            && known.until > now
        {
            let job = &self.jobs[known.job];
            let same_id = !asked.own_id
                || name == job.name
                || (known.asked.own_id && known.asked.job_id == asked.job_id);
            return match (job.removed, same_id && known.asked.spec == asked.spec) {
                (true, _) => Err(("job deleted", Some(job.name.clone()))),
                (false, false) => Err(("request_id reused", Some(job.name.clone()))),
                (false, true) => Ok((job.name.clone(), true)),
            };
        }
        let there = self.place(&name).filter(|_| asked.own_id);
        if there.is_some_and(|at| self.jobs[at].spec != asked.spec) {
            return Err(("job_id in use", Some(name)));
        }
        let holder = self.jobs.iter().position(|job| {
            asked.spec.unique_key.is_some()
                && job.spec.unique_key == asked.spec.unique_key
                && job.spec.queue == asked.spec.queue
                && !job.state.is_final()
        });
        let found = match (there, holder) {
            (Some(at), _) => Some(at),
            (None, Some(at)) if asked.reject_duplicate => {
                return Err(("unique_key in use", Some(self.jobs[at].name.clone())));
            }
            (None, holder) => holder,
        };
        let unfinished = self.jobs.iter().filter(|job| !job.state.is_final()).count();
        if found.is_none() && unfinished >= self.limits.max_unfinished {
            return Err(("queue full", None));
        }
        let at = found.unwrap_or_else(|| {
            self.jobs.push(Entry::new(asked, now));
            self.jobs.len() - 1
        });
        if let Some(id) = &asked.request_id {
            let request = Request { job: at, asked: asked.clone(), until: now.after(self.limits.window) };
            self.requests.insert(id.clone(), request);
        }
        Ok((self.jobs[at].name.clone(), found.is_some()))
    }

    /// Names of due jobs of a queue, in the order in which they are to be handed out.
    pub fn line(&self, queue: &str, now: Timestamp) -> Vec<String> {
        let waits = |job: &&Entry| {
            job.state == State::QUEUED && job.spec.queue.as_str() == queue && !job.is_over(now)
        };
        let mut line: Vec<&Entry> = self.jobs.iter().filter(waits).collect();
        line.sort_by_key(|job| job.due.0 - 60_000 * i64::from(job.spec.priority));
        line.into_iter().map(|job| job.name.clone()).collect()
    }

    /// Whether a job is due whose time is over: it is in nobody's line, but counts as waiting.
    pub fn holds_stale(&self, now: Timestamp) -> bool {
        self.jobs.iter().any(|job| job.state == State::QUEUED && job.is_over(now))
    }

    pub fn claim(&mut self, name: &str, lease: LeaseId, until: Timestamp) {
        let at = self.place(name).unwrap();
        let job = &mut self.jobs[at];
        (job.state, job.attempt, job.version) = (State::RUNNING, job.attempt + 1, job.version + 1);
        (job.lease, job.lease_until, job.start_by) = (Some(lease), until, None);
    }

    pub fn renew(&mut self, lease: LeaseId, until: Timestamp, progress: Option<f64>) -> Renewed {
        let held = |job: &&mut Entry| job.lease == Some(lease) && job.state == State::RUNNING;
        let Some(job) = self.jobs.iter_mut().find(held) else { return Renewed::Lost };
        job.lease_until = until;
        job.progress = progress.or(job.progress);
        if job.cancelled { Renewed::Cancelled } else { Renewed::Held }
    }

    pub fn settle(
        &mut self,
        now: Timestamp,
        lease: LeaseId,
        report: &Report,
        progress: Option<f64>,
    ) -> Answer<()> {
        let lost = Err(("lease lost", None));
        let holds = |job: &Entry| job.lease == Some(lease) && !job.state.is_final();
        let Some(at) = self.jobs.iter().position(holds) else { return lost };
        if let Report::Succeeded(output) = report {
            self.jobs[at].output = Some(output.clone());
            self.end(now, at, State::SUCCEEDED, None);
            return Ok(());
        }
        if self.jobs[at].state != State::RUNNING {
            return lost;
        }
        match report {
            Report::Failed(error) => {
                let back_off = self.limits.back_off * 2u32.pow(self.jobs[at].attempt - 1);
                self.fail(now, at, Cause::Handler, error.retryable, back_off);
                self.jobs[at].lease = None;
            }
            _ if self.jobs[at].cancelled => self.end(now, at, State::CANCELLED, Some(Cause::Cancelled)),
            Report::Released { delay } => {
                let job = &mut self.jobs[at];
                (job.attempt, job.version, job.lease) = (job.attempt - 1, job.version + 1, None);
                job.state = if delay.is_zero() { State::QUEUED } else { State::SCHEDULED };
                job.due = if delay.is_zero() { job.due } else { now.after(*delay) };
            }
            Report::Succeeded(_) => unreachable!(),
        }
        let job = &mut self.jobs[at];
        if !job.state.is_final() {
            job.progress = progress.or(job.progress);
        }
        Ok(())
    }

    fn fail(&mut self, now: Timestamp, at: usize, cause: Cause, retryable: bool, back_off: Duration) {
        let job = &mut self.jobs[at];
        if job.cancelled {
            return self.end(now, at, State::CANCELLED, Some(Cause::Cancelled));
        }
        job.failures.push((job.run, job.attempt, cause));
        if !retryable || job.attempt >= job.spec.retry.max_attempts.unwrap() {
            return self.end(now, at, State::FAILED, Some(cause));
        }
        (job.state, job.version, job.due) = (State::BACKING_OFF, job.version + 1, now.after(back_off));
        job.error = Some(cause);
    }

    fn end(&mut self, now: Timestamp, at: usize, state: State, error: Option<Cause>) {
        let job = &mut self.jobs[at];
        (job.state, job.version, job.error, job.finished) = (state, job.version + 1, error, Some(now));
        (job.lease, job.cancelled, job.progress) = (None, false, None);
        let keep_until = now.after(self.retention);
        self.feed.push(End { name: job.name.clone(), run: job.run, state, job: at, keep_until });
        *self.ended.entry(state).or_default() += 1;
    }

    fn find(&self, name: &str, etag: &Option<String>) -> Answer<usize> {
        let at = self.place(name).ok_or_else(|| ("not found", Some(name.to_owned())))?;
        match etag {
            Some(etag) if *etag != Job::etag_of(self.jobs[at].version) => {
                Err(("etag mismatch", Some(name.to_owned())))
            }
            _ => Ok(at),
        }
    }

    /// The lease that must be told to stop.
    pub fn cancel(&mut self, now: Timestamp, cancel: &Cancel) -> Answer<Option<LeaseId>> {
        let at = self.find(cancel.job_id.as_str(), &cancel.etag)?;
        let job = &mut self.jobs[at];
        if job.state == State::RUNNING {
            job.version += i64::from(!job.cancelled);
            job.cancelled = true;
            return Ok(job.lease);
        }
        if !job.state.is_final() {
            self.end(now, at, State::CANCELLED, Some(Cause::Cancelled));
        }
        Ok(None)
    }

    pub fn retry(&mut self, now: Timestamp, retry: &Retry) -> Answer<()> {
        let at = self.find(retry.job_id.as_str(), &retry.etag)?;
        let due = now.after(retry.delay);
        let wait = !retry.delay.is_zero();
        if self.jobs[at].state == State::BACKING_OFF {
            let job = &mut self.jobs[at];
            job.state = if wait { State::BACKING_OFF } else { State::QUEUED };
            (job.due, job.version) = (due, job.version + 1);
            return Ok(());
        }
        if !matches!(self.jobs[at].state, State::FAILED | State::CANCELLED | State::EXPIRED) {
            return Err(("wrong state", Some(self.jobs[at].name.clone())));
        }
        let spec = &self.jobs[at].spec;
        let holds = |job: &&Entry| {
            spec.unique_key.is_some()
                && job.spec.unique_key == spec.unique_key
                && job.spec.queue == spec.queue
                && !job.state.is_final()
        };
        if let Some(holder) = self.jobs.iter().find(holds) {
            return Err(("unique_key in use", Some(holder.name.clone())));
        }
        let job = &mut self.jobs[at];
        job.state = if wait { State::SCHEDULED } else { State::QUEUED };
        (job.run, job.attempt, job.version, job.due) = (job.run + 1, 0, job.version + 1, due);
        (job.error, job.finished) = (None, None);
        job.start_clocks(now);
        Ok(())
    }

    pub fn delete(&mut self, delete: &Delete) -> Answer<()> {
        let at = match self.find(delete.job_id.as_str(), &delete.etag) {
            Err(("not found", _)) if delete.allow_missing => return Ok(()),
            found => found?,
        };
        if !self.jobs[at].state.is_final() {
            return Err(("wrong state", Some(self.jobs[at].name.clone())));
        }
        self.jobs[at].removed = true;
        self.feed.retain(|end| end.job != at);
        Ok(())
    }

    /// What time changes; the leases that are over. Jobs that lost theirs are due when the store says, by chance.
    pub fn tick(&mut self, now: Timestamp, due: impl Fn(&str) -> Option<Timestamp>) -> BTreeSet<i64> {
        let mut revoked = BTreeSet::new();
        for at in 0..self.jobs.len() {
            let job = &mut self.jobs[at];
            let running = job.state == State::RUNNING;
            if !job.state.is_final() && job.is_over(now) {
                revoked.extend(job.lease.filter(|_| running).map(|lease| lease.fence));
                self.end(now, at, State::EXPIRED, Some(Cause::Expired));
            } else if matches!(job.state, State::SCHEDULED | State::BACKING_OFF) && job.due <= now {
                (job.state, job.version) = (State::QUEUED, job.version + 1);
            } else if running && job.lease_until <= now {
                revoked.extend(job.lease.map(|lease| lease.fence));
                self.lose(now, at, Cause::LeaseExpired, &due);
                let job = &mut self.jobs[at];
                if job.state == State::BACKING_OFF && job.due <= now {
                    // The draw was nothing.
                    (job.state, job.version) = (State::QUEUED, job.version + 1);
                }
            }
        }
        let over: Vec<End> = self.feed.iter().filter(|end| end.keep_until <= now).cloned().collect();
        self.feed.retain(|end| end.keep_until > now);
        for End { job, .. } in over {
            let kept = self.feed.iter().any(|end| end.job == job);
            self.jobs[job].removed |= self.jobs[job].state.is_final() && !kept;
        }
        revoked
    }

    /// The process that ran them is gone.
    pub fn crash(&mut self, now: Timestamp, due: impl Fn(&str) -> Option<Timestamp>) {
        for at in 0..self.jobs.len() {
            if self.jobs[at].state == State::RUNNING {
                self.lose(now, at, Cause::Crash, &due);
            }
        }
    }

    fn lose(&mut self, now: Timestamp, at: usize, cause: Cause, due: &impl Fn(&str) -> Option<Timestamp>) {
        let longest = self.limits.back_off * 2u32.pow(self.jobs[at].attempt - 1);
        self.fail(now, at, cause, true, longest);
        let job = &mut self.jobs[at];
        if job.state == State::BACKING_OFF {
            let told = due(&job.name).expect("a job that backs off knows its next attempt");
            assert!(
                now <= told && told <= job.due,
                "a back-off until {told:?}, not in {now:?}..={:?}",
                job.due
            );
            job.due = told;
        }
    }
}

impl Entry {
    fn new(asked: &Submission, now: Timestamp) -> Self {
        let Start::Delay(delay) = asked.spec.start else { panic!("jobs of the model have a delay") };
        let mut job = Self {
            name: asked.job_id.to_string(),
            spec: asked.spec.clone(),
            state: if delay.is_zero() { State::QUEUED } else { State::SCHEDULED },
            run: 1,
            attempt: 0,
            version: 1,
            due: now.after(delay),
            lease: None,
            lease_until: now,
            cancelled: false,
            progress: None,
            output: None,
            error: None,
            failures: Vec::new(),
            finished: None,
            start_by: None,
            end_by: None,
            removed: false,
        };
        job.start_clocks(now);
        job
    }

    fn start_clocks(&mut self, now: Timestamp) {
        self.start_by = self.spec.start_timeout.map(|timeout| self.due.after(timeout));
        self.end_by = self.spec.total_timeout.map(|timeout| now.after(timeout));
    }

    fn is_over(&self, now: Timestamp) -> bool {
        [self.start_by, self.end_by].into_iter().flatten().any(|by| by <= now)
    }
}
