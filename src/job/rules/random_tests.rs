//! Random lives of one job, beside a naive model that keeps plain facts instead of the rules' own terms.

use std::{collections::HashSet, time::Duration};

use proptest::{collection::vec, option, prelude::*};

use super::{
    tests::{SECOND, at, lease, policy, spec},
    *,
};
use crate::{
    job::{Payload, Start},
    reached::{Met, explore},
};

#[derive(Clone, Debug)]
enum Command {
    /// Seconds pass.
    Wait(u8),
    Claim,
    /// A report under the fence that is so many grants old.
    Report(usize, Said),
    Crash,
    Cancel,
    Retry(u8),
}

#[derive(Clone, Copy, Debug)]
enum Said {
    Success,
    Failure,
    Permanent,
    Release(u8),
}

fn command() -> impl Strategy<Value = Command> {
    let said = prop_oneof![
        2 => Just(Said::Success),
        4 => Just(Said::Failure),
        1 => Just(Said::Permanent),
        2 => (0u8..3).prop_map(Said::Release),
    ];
    prop_oneof![
        4 => (0u8..40).prop_map(Command::Wait),
        6 => Just(Command::Claim),
        5 => (0usize..3, said).prop_map(|(age, said)| Command::Report(age, said)),
        1 => Just(Command::Crash),
        1 => Just(Command::Cancel),
        2 => (0u8..3).prop_map(Command::Retry),
    ]
}

/// What the rules say, as a store would keep it.
enum Kept {
    Live(Live),
    Final { state: FinalState, run: u32, version: i64 },
}

struct Job {
    spec: JobSpec,
    kept: Kept,
    grants: Vec<Fence>,
}

/// What anybody would say.
#[derive(Debug)]
struct Model {
    state: State,
    run: u32,
    attempt: u32,
    changes: i64,
    /// When the run was asked for, and when its first attempt was due.
    began: i64,
    first_due: i64,
    due: i64,
    /// An attempt of this run has started.
    started: bool,
    lease_until: i64,
    cancelled: bool,
    /// The newest grant, while its success would still count.
    open: Option<Fence>,
}

/// Seconds.
fn secs(duration: Option<Duration>) -> i64 {
    duration.map_or(i64::MAX / 2, |duration| duration.as_secs() as i64)
}

impl Model {
    fn begin(run: u32, changes: i64, now: i64, delay: i64) -> Self {
        Self {
            state: if delay > 0 { State::SCHEDULED } else { State::QUEUED },
            run,
            attempt: 0,
            changes,
            began: now,
            first_due: now + delay,
            due: now + delay,
            started: false,
            lease_until: 0,
            cancelled: false,
            open: None,
        }
    }

    fn enter(&mut self, state: State) {
        self.state = state;
        self.changes += 1;
    }

    fn wait(&mut self, spec: &JobSpec, now: i64) {
        let late = now >= self.began + secs(spec.total_timeout)
            || (!self.started && now >= self.first_due + secs(spec.start_timeout));
        match self.state {
            State::Final(_) => {}
            _ if late => self.enter(State::EXPIRED),
            State::SCHEDULED | State::BACKING_OFF if now >= self.due => self.enter(State::QUEUED),
            State::RUNNING if now >= self.lease_until => self.spend(now),
            _ => {}
        }
    }

    /// The attempt came to nothing, and counts.
    fn spend(&mut self, now: i64) {
        if self.cancelled {
            return self.enter(State::CANCELLED);
        }
        if self.attempt == 3 {
            return self.enter(State::FAILED);
        }
        self.due = now + [4, 8][self.attempt as usize - 1];
        self.enter(State::BACKING_OFF);
    }

    /// Whether the report is taken.
    fn report(&mut self, fence: Fence, said: Said, now: i64) -> bool {
        let open = !self.state.is_final() && self.open == Some(fence);
        let taken = open && (self.state == State::RUNNING || matches!(said, Said::Success));
        if !taken {
            return false;
        }
        self.open = None;
        match said {
            Said::Success => self.enter(State::SUCCEEDED),
            Said::Failure => self.spend(now),
            _ if self.cancelled => self.enter(State::CANCELLED),
            Said::Permanent => self.enter(State::FAILED),
            Said::Release(delay) => {
                self.attempt -= 1;
                if delay > 0 {
                    self.due = now + i64::from(delay);
                }
                self.enter(if delay > 0 { State::SCHEDULED } else { State::QUEUED });
            }
        }
        true
    }

    fn retry(&mut self, delay: i64, now: i64) -> bool {
        match self.state {
            State::FAILED | State::CANCELLED | State::EXPIRED => {
                *self = Self::begin(self.run + 1, self.changes + 1, now, delay);
            }
            State::BACKING_OFF => {
                self.due = now + delay;
                self.enter(if delay > 0 { State::BACKING_OFF } else { State::QUEUED });
            }
            _ => return false,
        }
        true
    }
}

impl Job {
    fn apply(&mut self, next: Next) {
        self.kept = match (next, &self.kept) {
            (Next::Live(live), _) => Kept::Live(live),
            (Next::Final(ending), Kept::Live(live)) => {
                Kept::Final { state: ending.state, run: live.run, version: live.version + 1 }
            }
            (Next::Final(_), Kept::Final { .. }) => panic!("it had ended"),
        };
    }

    fn live(&self) -> Option<&Live> {
        match &self.kept {
            Kept::Live(live) => Some(live),
            Kept::Final { .. } => None,
        }
    }

    fn wait(&mut self, now: Timestamp) {
        while let Some(step) = self.live().and_then(|live| live.elapse(&policy(), now, 1.0)) {
            self.apply(step.next);
        }
    }

    fn claim(&mut self, now: Timestamp) -> bool {
        let Some(live) = self.live().filter(|live| live.state == LiveState::Queued) else { return false };
        let fence = self.grants.len() as Fence + 1;
        let live = live.claim(fence, lease(now));
        self.grants.push(fence);
        self.kept = Kept::Live(live);
        true
    }

    fn report(&mut self, fence: Fence, said: Said, now: Timestamp) -> bool {
        let report = match said {
            Said::Success => Report::Succeeded(Payload::none()),
            Said::Failure => Report::Failed(JobError::retryable("busy", "")),
            Said::Permanent => Report::Failed(JobError::permanent("bad", "")),
            Said::Release(delay) => Report::Released { delay: u32::from(delay) * SECOND },
        };
        let Some(live) = self.live() else { return false };
        match live.settle(fence, report, &policy(), now, 1.0) {
            Ok(step) => self.apply(step.next),
            Err(error) => {
                assert_eq!(error, Error::LeaseLost);
                return false;
            }
        }
        true
    }

    fn crash(&mut self, now: Timestamp) -> bool {
        let Some(live) = self.live().filter(|live| live.state == LiveState::Running) else { return false };
        self.apply(live.lose(Cause::Crash, "", &policy(), now, 1.0).next);
        true
    }

    fn cancel(&mut self) {
        match self.live().map(|live| live.cancel("enough")) {
            Some(Cancelled::Now(ending)) => self.apply(Next::Final(ending)),
            Some(Cancelled::Asked(live)) => self.kept = Kept::Live(live),
            Some(Cancelled::Already) | None => {}
        }
    }

    fn retry(&mut self, delay: u8, now: Timestamp) -> bool {
        let of = match &self.kept {
            Kept::Live(live) => Suspension::Live(live),
            &Kept::Final { state, run, version } => Suspension::Final { state, run, version },
        };
        match of.retry("job", &self.spec, u32::from(delay) * SECOND, now) {
            Ok(Retried::Run(live) | Retried::Now(live)) => {
                self.kept = Kept::Live(live);
                true
            }
            Err(_) => false,
        }
    }
}

/// Carries out a command in both, and says whether they agree that it was taken.
fn carry_out(job: &mut Job, model: &mut Model, command: &Command, seconds: &mut i64) -> (bool, bool) {
    if let Command::Wait(passed) = command {
        *seconds += i64::from(*passed);
    }
    let (seconds, now) = (*seconds, at(*seconds));
    match *command {
        Command::Wait(_) => {
            job.wait(now);
            model.wait(&job.spec, seconds);
            (true, true)
        }
        Command::Claim => {
            let taken = model.state == State::QUEUED;
            if taken {
                model.enter(State::RUNNING);
                model.attempt += 1;
                (model.started, model.lease_until) = (true, seconds + 30);
                model.open = Some(job.grants.len() as Fence + 1);
            }
            (job.claim(now), taken)
        }
        Command::Report(age, said) => {
            let fence = job.grants.iter().rev().nth(age).copied().unwrap_or(0);
            (job.report(fence, said, now), model.report(fence, said, seconds))
        }
        Command::Crash => {
            let taken = model.state == State::RUNNING;
            if taken {
                model.spend(seconds);
            }
            (job.crash(now), taken)
        }
        Command::Cancel => {
            match model.state {
                State::RUNNING if !model.cancelled => {
                    model.cancelled = true;
                    model.changes += 1;
                }
                State::RUNNING | State::Final(_) => {}
                _ => model.enter(State::CANCELLED),
            }
            job.cancel();
            (true, true)
        }
        Command::Retry(delay) => (job.retry(delay, now), model.retry(i64::from(delay), seconds)),
    }
}

/// What both say of the job: state, run, attempt, version.
fn agree(job: &Job, model: &Model) -> Result<(), TestCaseError> {
    let told = match &job.kept {
        Kept::Live(live) => {
            prop_assert_eq!(live.attempt, model.attempt);
            prop_assert_eq!(live.cancel_reason.is_some(), model.cancelled);
            prop_assert_eq!(live.lease.is_some(), live.state == LiveState::Running);
            if live.state != LiveState::Running {
                prop_assert_eq!(live.due, at(model.due));
            }
            prop_assert!(live.attempt <= policy().max_attempts);
            (State::Live(live.state), live.run, live.version)
        }
        &Kept::Final { state, run, version } => (State::Final(state), run, version),
    };
    prop_assert_eq!(told, (model.state, model.run, model.changes));
    Ok(())
}

/// Every transition of the contract, and every refusal.
const EXPECTED: [&str; 34] = [
    "SCHEDULED -> QUEUED by Wait",
    "SCHEDULED -> EXPIRED by Wait",
    "SCHEDULED -> CANCELLED by Cancel",
    "QUEUED -> RUNNING by Claim",
    "QUEUED -> EXPIRED by Wait",
    "QUEUED -> CANCELLED by Cancel",
    // Its lease ran out, and nobody else has begun.
    "QUEUED -> SUCCEEDED by Report",
    "RUNNING -> SUCCEEDED by Report",
    "RUNNING -> BACKING_OFF by Report",
    "RUNNING -> BACKING_OFF by Wait",
    "RUNNING -> BACKING_OFF by Crash",
    "RUNNING -> FAILED by Report",
    "RUNNING -> FAILED by Wait",
    "RUNNING -> FAILED by Crash",
    "RUNNING -> QUEUED by Report",
    "RUNNING -> SCHEDULED by Report",
    "RUNNING -> CANCELLED by Report",
    "RUNNING -> CANCELLED by Wait",
    "RUNNING -> CANCELLED by Crash",
    "RUNNING -> EXPIRED by Wait",
    "BACKING_OFF -> QUEUED by Wait",
    "BACKING_OFF -> QUEUED by Retry",
    "BACKING_OFF -> EXPIRED by Wait",
    "BACKING_OFF -> CANCELLED by Cancel",
    "BACKING_OFF -> SUCCEEDED by Report",
    "FAILED -> QUEUED by Retry",
    "FAILED -> SCHEDULED by Retry",
    "CANCELLED -> QUEUED by Retry",
    "EXPIRED -> QUEUED by Retry",
    "Report refused in RUNNING",
    "Report refused in SUCCEEDED",
    "Retry refused in SCHEDULED",
    "Retry refused in RUNNING",
    "Retry refused in SUCCEEDED",
];

/// The time to the first attempt, and the limits, in seconds.
type Times = (u64, Option<u64>, Option<u64>);

fn live(
    (commands, (delay, start_timeout, total_timeout)): (Vec<Command>, Times),
) -> Result<Met, TestCaseError> {
    let spec = JobSpec {
        start: Start::Delay(Duration::from_secs(delay)),
        start_timeout: start_timeout.map(Duration::from_secs),
        total_timeout: total_timeout.map(Duration::from_secs),
        ..spec()
    };
    let mut seconds = 0;
    let mut model = Model::begin(1, 1, seconds, delay as i64);
    let kept = Kept::Live(Live::admit(&spec, at(seconds)));
    let mut job = Job { spec, kept, grants: Vec::new() };
    let (mut counted, mut met) = (HashSet::new(), Met::new());
    agree(&job, &model)?;
    for command in &commands {
        let (before, version) = (model.state, model.changes);
        let open = model.open;
        let (taken, expected) = carry_out(&mut job, &mut model, command, &mut seconds);
        prop_assert_eq!(taken, expected, "{:?} in {}", command, before);
        agree(&job, &model)?;
        let name = format!("{command:?}");
        let name = name.split('(').next().unwrap_or_default();
        if model.state != before {
            prop_assert!(model.changes > version, "a transition without a new version");
            met.insert(format!("{before} -> {} by {name}", model.state));
        }
        if !taken {
            met.insert(format!("{name} refused in {before}"));
        }
        if before.is_final() && model.state != before {
            prop_assert!(matches!(command, Command::Retry(_)), "{:?} changed a final job", command);
        }
        if taken && matches!(command, Command::Report(..)) {
            prop_assert!(counted.insert(open), "a grant counted twice");
        }
    }
    Ok(met)
}

#[test]
fn any_life_goes_as_the_model_says() {
    let times = (0u64..20, option::of(1u64..60), option::of(1u64..200));
    explore(5000, &(vec(command(), 1..60), times), &EXPECTED, live);
}
