//! What may follow what. Each rule takes a job's present and a command, and says what comes next; the stores
//! only carry it out. [`State`](super::State) draws the transitions.

#[cfg(test)]
mod random_tests;
#[cfg(test)]
mod tests;

use std::time::Duration;

use super::{
    Cause, Ending, Error, FinalState, JobError, JobSpec, LiveState, PRIORITY_STEP, Policy, Report, State,
    Timestamp, WorkerId,
};

/// Names one grant of a lease on a job. Never handed out twice for the same job; 0 is none.
pub type Fence = i64;

/// The part of an unfinished job that changes.
#[derive(Clone, Debug, PartialEq)]
pub struct Live {
    pub state: LiveState,
    pub run: u32,
    /// Attempts begun in this run.
    pub attempt: u32,
    /// Grows with every transition.
    pub version: i64,
    pub priority: i32,
    /// When the job became due, or will.
    pub due: Timestamp,
    /// The first attempt starts by then, or the job is EXPIRED. None once it has started.
    pub start_by: Option<Timestamp>,
    /// The run ends by then, or the job is EXPIRED.
    pub end_by: Option<Timestamp>,
    /// The newest grant that may still report; 0 if none may.
    pub fence: Fence,
    /// Set while RUNNING.
    pub lease: Option<Lease>,
    /// Set once a cancel was asked for while RUNNING.
    pub cancel_reason: Option<String>,
}

/// The right to run one attempt for a time.
#[derive(Clone, Debug, PartialEq)]
pub struct Lease {
    pub worker: WorkerId,
    pub started: Timestamp,
    /// Over, unless renewed.
    pub until: Timestamp,
}

/// What a rule decides.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    pub next: Next,
    /// The attempt ended with this, and counts.
    pub failure: Option<JobError>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Next {
    Live(Live),
    Final(Ending),
}

/// What a cancel leads to.
#[derive(Clone, Debug, PartialEq)]
pub enum Cancelled {
    /// The job is final now.
    Now(Ending),
    /// The worker is to be told; the job is CANCELLED when it gives in, or when its grace is over.
    Asked(Live),
    /// It was asked for before.
    Already,
}

/// What a retry by hand leads to.
#[derive(Clone, Debug, PartialEq)]
pub enum Retried {
    /// A new run of a final job.
    Run(Live),
    /// The rest of the back-off is skipped.
    Now(Live),
}

/// Where a retry by hand finds the job.
#[derive(Clone, Debug)]
pub enum Suspension<'a> {
    Live(&'a Live),
    Final { state: FinalState, run: u32, version: i64 },
}

impl Live {
    /// A job that was just accepted.
    pub fn admit(spec: &JobSpec, now: Timestamp) -> Self {
        Self::begin(spec, spec.due(now), now, 1, 1)
    }

    fn begin(spec: &JobSpec, due: Timestamp, now: Timestamp, run: u32, version: i64) -> Self {
        Self {
            state: if due > now { LiveState::Scheduled } else { LiveState::Queued },
            run,
            attempt: 0,
            version,
            priority: spec.priority,
            due,
            start_by: spec.start_timeout.map(|timeout| due.after(timeout)),
            end_by: spec.total_timeout.map(|timeout| now.after(timeout)),
            fence: 0,
            lease: None,
            cancel_reason: None,
        }
    }

    /// The place in the line: lower comes first. A point of priority is a head start of a minute, so it is fixed
    /// once the job is due and nothing waits for ever.
    pub fn rank(&self) -> i64 {
        self.due.0.saturating_sub(i64::from(self.priority) * PRIORITY_STEP.as_millis() as i64)
    }

    /// When time alone changes something next, the end of the lease aside.
    pub fn wake(&self) -> Option<Timestamp> {
        let due = matches!(self.state, LiveState::Scheduled | LiveState::BackingOff).then_some(self.due);
        [due, self.start_by, self.end_by].into_iter().flatten().min()
    }

    /// QUEUED → RUNNING. The caller has checked that the job is QUEUED.
    pub fn claim(&self, fence: Fence, lease: Lease) -> Self {
        assert_eq!(self.state, LiveState::Queued, "only a queued job can be claimed");
        Self {
            state: LiveState::Running,
            attempt: self.attempt + 1,
            version: self.version + 1,
            start_by: None,
            fence,
            lease: Some(lease),
            ..self.clone()
        }
    }

    /// A worker's report on the attempt that it holds `fence` for.
    ///
    /// A result that comes late still counts while its attempt is the newest: the lease ran out, but nobody else
    /// has begun.
    ///
    /// # Errors
    /// [`Error::LeaseLost`] if the grant is not the newest one, or its attempt was settled already.
    pub fn settle(
        &self,
        fence: Fence,
        report: Report,
        policy: &Policy,
        now: Timestamp,
        jitter: f64,
    ) -> Result<Step, Error> {
        if fence == 0 || fence != self.fence {
            return Err(Error::LeaseLost);
        }
        match report {
            Report::Succeeded(output) => {
                Ok(Step { next: Next::Final(Ending::succeeded(output)), failure: None })
            }
            _ if self.state != LiveState::Running => Err(Error::LeaseLost),
            Report::Failed(error) => Ok(self.fail(error, policy, now, jitter)),
            Report::Released { delay } => Ok(self.release(now, delay)),
        }
    }

    /// The lease ran out, or its holder died: the attempt is spent.
    pub fn lose(&self, cause: Cause, message: &str, policy: &Policy, now: Timestamp, jitter: f64) -> Step {
        let code = match cause {
            Cause::Crash => "jobwire.crash",
            _ => "jobwire.lease_expired",
        };
        let mut step = self.fail(JobError::new(cause, code, message, true), policy, now, jitter);
        if let Next::Live(live) = &mut step.next {
            live.fence = self.fence;
        }
        step
    }

    fn fail(&self, error: JobError, policy: &Policy, now: Timestamp, jitter: f64) -> Step {
        if let Some(reason) = &self.cancel_reason {
            return Step { next: Next::Final(cancelled(reason)), failure: None };
        }
        let next = match policy.delay(self.attempt, &error, jitter) {
            None => Next::Final(Ending::without_result(FinalState::Failed, error.clone())),
            Some(delay) => Next::Live(Self {
                state: LiveState::BackingOff,
                due: now.after(delay),
                ..self.without_lease()
            }),
        };
        Step { next, failure: Some(error) }
    }

    fn release(&self, now: Timestamp, delay: Duration) -> Step {
        let next = match &self.cancel_reason {
            Some(reason) => Next::Final(cancelled(reason)),
            None => Next::Live(Self {
                state: if delay.is_zero() { LiveState::Queued } else { LiveState::Scheduled },
                attempt: self.attempt - 1,
                due: if delay.is_zero() { self.due } else { now.after(delay) },
                ..self.without_lease()
            }),
        };
        Step { next, failure: None }
    }

    fn without_lease(&self) -> Self {
        Self { version: self.version + 1, fence: 0, lease: None, ..self.clone() }
    }

    /// Whether no lease lasts beyond `now`.
    pub fn is_over(&self, now: Timestamp) -> bool {
        self.lease.as_ref().is_none_or(|lease| lease.until <= now)
    }

    /// What time alone has changed by `now`; None if nothing has.
    pub fn elapse(&self, policy: &Policy, now: Timestamp, jitter: f64) -> Option<Step> {
        if passed(self.end_by, now) {
            return Some(expired("total_timeout", "the job was not done within its total_timeout"));
        }
        if passed(self.start_by, now) {
            return Some(expired("start_timeout", "no worker took the job within its start_timeout"));
        }
        match (self.state, &self.lease) {
            (LiveState::Scheduled | LiveState::BackingOff, _) if self.due <= now => Some(Step {
                next: Next::Live(Self {
                    state: LiveState::Queued,
                    version: self.version + 1,
                    ..self.clone()
                }),
                failure: None,
            }),
            (LiveState::Running, Some(lease)) if lease.until <= now => {
                let message = format!("worker {} did not renew its lease", lease.worker);
                Some(self.lose(Cause::LeaseExpired, &message, policy, now, jitter))
            }
            _ => None,
        }
    }

    /// A cancel. `grace` is what a running attempt gets to give in.
    pub fn cancel(&self, reason: &str) -> Cancelled {
        match self.state {
            LiveState::Running if self.cancel_reason.is_some() => Cancelled::Already,
            LiveState::Running => Cancelled::Asked(Self {
                version: self.version + 1,
                cancel_reason: Some(reason.to_owned()),
                ..self.clone()
            }),
            _ => Cancelled::Now(cancelled(reason)),
        }
    }
}

impl Suspension<'_> {
    /// RetryJob: a new run of a job that ended without success, or the end of a back-off.
    ///
    /// # Errors
    /// [`Error::JobState`] in any other state.
    pub fn retry(
        &self,
        job_id: &str,
        spec: &JobSpec,
        delay: Duration,
        now: Timestamp,
    ) -> Result<Retried, Error> {
        match *self {
            Self::Final { state, run, version } if state != FinalState::Succeeded => {
                Ok(Retried::Run(Live::begin(spec, now.after(delay), now, run + 1, version + 1)))
            }
            Self::Live(live) if live.state == LiveState::BackingOff => {
                let due = now.after(delay);
                let state = if delay.is_zero() { LiveState::Queued } else { LiveState::BackingOff };
                Ok(Retried::Now(Live { state, due, version: live.version + 1, ..live.clone() }))
            }
            Self::Final { state, .. } => Err(refused(job_id, State::Final(state))),
            Self::Live(live) => Err(refused(job_id, State::Live(live.state))),
        }
    }
}

fn refused(job_id: &str, state: State) -> Error {
    Error::JobState { job_id: job_id.to_owned(), state, wanted: "FAILED, CANCELLED, EXPIRED or BACKING_OFF" }
}

fn passed(limit: Option<Timestamp>, now: Timestamp) -> bool {
    limit.is_some_and(|limit| limit <= now)
}

fn cancelled(reason: &str) -> Ending {
    let message = if reason.is_empty() { "cancelled" } else { reason };
    Ending::without_result(
        FinalState::Cancelled,
        JobError::new(Cause::Cancelled, "jobwire.cancelled", message, false),
    )
}

fn expired(what: &str, message: &str) -> Step {
    let error = JobError::new(Cause::Expired, &format!("jobwire.{what}"), message, false);
    Step { next: Next::Final(Ending::without_result(FinalState::Expired, error)), failure: None }
}
