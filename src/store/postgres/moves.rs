//! A unit of work: jobs as they were read, what the rules make of them one after the other, and the moves that come of it
//! in the end, as one statement.

use std::{collections::HashMap, sync::Arc};

use super::{
    bundle::Seat,
    database::Database,
    hints::Hint,
    lines::Lines,
    pool::Result,
    rows::{JobRow, get},
    standing::Span,
};
use crate::{
    job::{
        Attempt, Ending, FinalState, JobError, JobSpec, Live, LiveState, Next, Progress, State, Step,
        Timestamp,
    },
    store::{Outcome, Position, written},
};

const MOVE: &str = include_str!("sql/move.sql");

/// A job as the steps before have left it.
#[derive(Clone, Debug)]
pub enum Present {
    Live(Live),
    Final { state: FinalState, run: u32, version: i64 },
}

impl Present {
    pub fn version(&self) -> i64 {
        match self {
            Self::Live(live) => live.version,
            Self::Final { version, .. } => *version,
        }
    }

    pub fn state(&self) -> State {
        match self {
            Self::Live(live) => State::Live(live.state),
            Self::Final { state, .. } => State::Final(*state),
        }
    }

    fn of(row: &JobRow) -> Self {
        match (&row.live, row.job.state) {
            (Some(live), _) => Self::Live(live.live.clone()),
            (None, State::Final(state)) => Self::Final { state, run: row.job.run, version: row.job.version },
            (None, State::Live(_)) => unreachable!("a job without a live row is final"),
        }
    }
}

/// A job of the unit.
#[derive(Debug)]
pub struct Job {
    pub row: JobRow,
    pub present: Present,
    /// What moves it, if anything does.
    change: Option<Change>,
}

impl Job {
    /// The job as the unit leaves it: what follows at once, by other hands, is not told.
    pub fn as_left(&self, lines: &Lines, now: Timestamp) -> Result<crate::job::Job> {
        let job = &self.row.job;
        let (Some(was), Some(change)) = (&self.row.live, &self.change) else { return Ok((**job).clone()) };
        Ok(match (&self.present, &change.ending) {
            (Present::Live(live), _) => crate::job::Job {
                state: State::Live(live.state),
                version: live.version,
                cancel_requested: live.cancel_reason.is_some(),
                next_attempt_time: live.lease.is_none().then_some(live.due),
                ..(**job).clone()
            },
            (Present::Final { version, .. }, Some(ending)) => {
                job.ended(ending, *version, now, was.keep_until(&*lines.get(was.line)?, now), &mut None)
            }
            (Present::Final { .. }, None) => (**job).clone(),
        })
    }

    /// The outcome that this unit has made, if the job is known as its worker got it. `last`: as in
    /// [`crate::job::Job::ended`].
    fn outcome(
        &self,
        lines: &Lines,
        position: Position,
        now: Timestamp,
        last: &mut Option<Arc<JobSpec>>,
    ) -> Option<Outcome> {
        let (was, change) = (self.row.live.as_ref()?, self.change.as_ref()?);
        let (leased, ending) = (change.leased.as_ref()?, change.ending.as_ref()?);
        let keep_until = was.keep_until(&*lines.get(was.line).ok()?, now);
        let job = leased.ended(ending, self.present.version(), now, keep_until, last);
        Some(Outcome { position, job: Arc::new(job) })
    }
}

#[derive(Debug, Default)]
struct Change {
    must_be_over: bool,
    must_be_mine: bool,
    ending: Option<Ending>,
    failure: Option<JobError>,
    progress: Option<Progress>,
    /// The job as its worker got it.
    leased: Option<Arc<crate::job::Job>>,
}

impl Change {
    /// An attempt ended in time, without a failure to remember.
    fn only_ends(&self) -> bool {
        let is_conditional = self.must_be_over || self.must_be_mine;
        self.failure.is_none() && self.progress.is_none() && !is_conditional
    }
}

/// Jobs, in the order in which they were first changed.
#[derive(Debug, Default)]
pub struct Unit {
    jobs: HashMap<i64, Job>,
    changed: Vec<i64>,
}

impl Unit {
    pub fn new(rows: impl IntoIterator<Item = JobRow>) -> Self {
        let jobs = rows.into_iter().map(|row| {
            let present = Present::of(&row);
            (row.num, Job { row, present, change: None })
        });
        Self { jobs: jobs.collect(), changed: Vec::new() }
    }

    pub fn job(&self, num: i64) -> Option<&Job> {
        self.jobs.get(&num)
    }

    pub fn is_changed(&self, num: i64) -> bool {
        self.job(num).is_some_and(|job| job.change.is_some())
    }

    /// Makes of a job what a rule has decided.
    pub fn step(&mut self, num: i64, step: Step) {
        let failure = step.failure;
        match step.next {
            Next::Live(live) => self.live(num, live),
            Next::Final(ending) => self.finish(num, ending),
        }
        if let Some(change) = self.jobs.get_mut(&num).and_then(|job| job.change.as_mut()) {
            change.failure = failure;
        }
    }

    /// The job goes on like this.
    pub fn live(&mut self, num: i64, live: Live) {
        self.change(num, |job, _| job.present = Present::Live(live));
    }

    /// The run ends.
    pub fn finish(&mut self, num: i64, ending: Ending) {
        self.change(num, |job, change| {
            if let Present::Live(live) = &job.present {
                job.present =
                    Present::Final { state: ending.state, run: live.run, version: live.version + 1 };
                change.ending = Some(ending);
            }
        });
    }

    /// Leaves this for the next attempt.
    pub fn progress(&mut self, num: i64, progress: Progress) {
        self.change(num, |_, change| change.progress = Some(progress));
    }

    /// This is how the worker of the attempt knows the job: its end is told without another look.
    pub fn leased(&mut self, num: i64, job: Arc<crate::job::Job>) {
        if let Some(change) = self.jobs.get_mut(&num).and_then(|job| job.change.as_mut()) {
            change.leased = Some(job);
        }
    }

    /// Only if its lease is over by then: it may be renewed meanwhile.
    pub fn only_if_over(&mut self, num: i64) {
        self.change(num, |_, change| change.must_be_over = true);
    }

    /// Only if no other process has prolonged its lease: that one knows more of it.
    pub fn only_if_mine(&mut self, num: i64) {
        self.change(num, |_, change| change.must_be_mine = true);
    }

    /// The changed jobs whose leases are in bundles, each with its end if there is nothing else to it.
    pub fn seats(&self) -> impl Iterator<Item = (&Seat, Option<(&JobRow, &Ending)>)> {
        self.changes().filter_map(|(job, change)| {
            let seat = job.row.live.as_ref()?.seat.as_ref().filter(|seat| !seat.is_over())?;
            let ending = change.ending.as_ref().filter(|_| change.only_ends());
            Some((seat, ending.map(|ending| (&job.row, ending))))
        })
    }

    fn changes(&self) -> impl Iterator<Item = (&Job, &Change)> {
        let jobs = self.changed.iter().filter_map(|num| self.jobs.get(num));
        jobs.filter_map(|job| Some((job, job.change.as_ref()?)))
    }

    fn change(&mut self, num: i64, make: impl FnOnce(&mut Job, &mut Change)) {
        let Some(job) = self.jobs.get_mut(&num) else { return };
        let mut change = job.change.take().unwrap_or_else(|| {
            self.changed.push(num);
            Change::default()
        });
        make(job, &mut change);
        job.change = Some(change);
    }
}

/// What was moved, as far as the jobs were still as they had been read.
#[derive(Debug, Default)]
pub struct Moved(pub HashMap<i64, Option<i64>>);

impl Moved {
    pub fn has(&self, num: i64) -> bool {
        self.0.contains_key(&num)
    }
}

/// The parameters of `move.sql`, column by column.
#[derive(Default)]
struct Columns {
    num: Vec<i64>,
    block: Vec<i64>,
    was: Vec<i32>,
    was_version: Vec<i64>,
    must_be_over: Vec<bool>,
    must_be_mine: Vec<bool>,
    becomes: Vec<i32>,
    run: Vec<Option<i32>>,
    attempt: Vec<Option<i32>>,
    version: Vec<Option<i64>>,
    due: Vec<Option<i64>>,
    rank: Vec<Option<i64>>,
    wake: Vec<Option<i64>>,
    start_by: Vec<Option<i64>>,
    end_by: Vec<Option<i64>>,
    fence: Vec<Option<i64>>,
    cancel_reason: Vec<Option<String>>,
    failure: Vec<Option<String>>,
    error: Vec<Option<String>>,
    content_type: Vec<Option<String>>,
    output: Vec<Option<Vec<u8>>>,
    keep_until: Vec<Option<i64>>,
    progress_at: Vec<Option<i64>>,
    fraction: Vec<Option<f64>>,
    note: Vec<Option<String>>,
    details_type: Vec<Option<String>>,
    details: Vec<Option<Vec<u8>>>,
}

impl Columns {
    fn push(&mut self, lines: &Lines, job: &Job, change: &Change, now: Timestamp) -> Result<()> {
        let Some(was) = &job.row.live else { return Ok(()) };
        let live = match &job.present {
            Present::Live(live) => Some(live),
            Present::Final { .. } => None,
        };
        let ending = change.ending.as_ref();
        self.num.push(was.num);
        self.block.push(was.block);
        self.was.push(was.live.state as i32);
        self.was_version.push(was.live.version);
        self.must_be_over.push(change.must_be_over);
        self.must_be_mine.push(change.must_be_mine);
        self.becomes.push(job.present.state().number());
        self.run.push(live.map(|live| live.run as i32));
        self.attempt.push(live.map(|live| live.attempt as i32));
        self.version.push(live.map(|live| live.version));
        self.due.push(live.map(|live| live.due.0));
        self.rank.push(live.map(Live::rank));
        self.wake.push(live.and_then(Live::wake).map(|time| time.0));
        self.start_by.push(live.and_then(|live| live.start_by).map(|time| time.0));
        self.end_by.push(live.and_then(|live| live.end_by).map(|time| time.0));
        self.fence.push(live.map(|live| live.fence));
        self.cancel_reason.push(live.and_then(|live| live.cancel_reason.clone()));
        self.failure.push(change.failure.as_ref().map(written::error_text));
        self.error.push(ending.and_then(|ending| ending.error.as_ref()).map(written::error_text));
        let output = ending.and_then(|ending| ending.output.as_ref());
        self.content_type.push(output.map(|output| output.content_type.clone()));
        self.output.push(output.map(|output| output.bytes().into()));
        let line = lines.get(was.line)?;
        self.keep_until.push(ending.map(|_| was.keep_until(&line, now).0));
        let progress = change.progress.as_ref();
        self.progress_at.push(progress.map(|progress| progress.update_time.0));
        self.fraction.push(progress.map(|progress| progress.fraction));
        self.note.push(progress.map(|progress| progress.note.clone()));
        let details = progress.and_then(|progress| progress.details.as_ref());
        self.details_type.push(details.map(|details| details.content_type.clone()));
        self.details.push(details.map(|details| details.bytes().into()));
        Ok(())
    }
}

impl Database {
    /// Carries out a unit: all jobs that are still as they were read are moved, in one transaction; attempts in bundles that
    /// just end in one before it.
    pub async fn carry_out(&self, now: Timestamp, unit: &Unit) -> Result<Moved> {
        let mut moved = self.finish_in_bundles(now, unit).await?;
        self.tell(unit, &moved, now);
        let rest = self.move_rows(now, unit).await?;
        self.tell(unit, &rest, now);
        moved.0.extend(rest.0);
        Ok(moved)
    }

    /// The same of those that have rows of their own.
    async fn move_rows(&self, now: Timestamp, unit: &Unit) -> Result<Moved> {
        let mut columns = Columns::default();
        for (job, change) in unit.changes() {
            let seat = job.row.live.as_ref().and_then(|live| live.seat.as_ref());
            if seat.is_none_or(Seat::is_over) {
                columns.push(&self.lines, job, change, now)?;
            }
        }
        let c = &columns;
        if c.num.is_empty() {
            return Ok(Moved::default());
        }
        let kept = Attempt::KEPT as i32;
        let numbers = self.common.replicas.lock().clone();
        let rows = self
            .pools
            .write
            .query(
                MOVE,
                &[
                    &c.num,
                    &c.was,
                    &c.was_version,
                    &c.must_be_over,
                    &c.becomes,
                    &c.run,
                    &c.attempt,
                    &c.version,
                    &c.due,
                    &c.rank,
                    &c.wake,
                    &c.start_by,
                    &c.end_by,
                    &c.fence,
                    &c.cancel_reason,
                    &c.failure,
                    &c.error,
                    &c.content_type,
                    &c.output,
                    &c.keep_until,
                    &c.progress_at,
                    &c.fraction,
                    &c.note,
                    &c.details_type,
                    &c.details,
                    &now.0,
                    &kept,
                    &c.must_be_mine,
                    &numbers,
                    &c.block,
                ],
            )
            .await?;
        Ok(Moved(rows.iter().map(|row| (get(row, "num"), get(row, "seq"))).collect()))
    }

    /// Tells those who listen what was moved.
    fn tell(&self, unit: &Unit, moved: &Moved, now: Timestamp) {
        if moved.0.is_empty() {
            return;
        }
        let ends = || moved.0.iter().filter_map(|(&num, &seq)| Some((num, Position(seq?))));
        let mut last = None;
        let outcomes =
            ends().map(|(num, position)| unit.job(num)?.outcome(&self.lines, position, now, &mut last));
        // All or none: those who follow the feed must not take a part for the whole.
        if let Some(mut outcomes) = outcomes.collect::<Option<Vec<_>>>() {
            outcomes.sort_unstable_by_key(|outcome| outcome.position);
            self.signals.tell(outcomes);
        }
        let moves = || moved.0.keys().filter_map(|&num| unit.job(num));
        let due = moves()
            .any(|job| matches!(job.present.state(), State::Live(state) if state != LiveState::Running));
        let standing = moves().filter_map(|job| match (&job.present, &job.row.live) {
            (Present::Live(live), Some(row)) if live.state == LiveState::Queued => {
                Some(Span::at(row.line, live.rank()))
            }
            _ => None,
        });
        let head = ends().map(|(_, position)| position).max();
        let changed = moves().filter(|job| !job.present.state().is_final()).map(|job| job.row.job.id.clone());
        self.news(Hint { head, due, ..Hint::standing(standing) }, changed);
    }
}
