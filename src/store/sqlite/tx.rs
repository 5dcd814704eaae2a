//! One transaction of the writer: what every command is made of.

use std::{collections::BTreeMap, sync::Arc};

use rusqlite::{CachedStatement, Connection, params};

use super::{
    Shared,
    bundle::{Bundles, Gathered},
    done::{Alike, Ended, Group},
    fresh::Fresh,
    lines::Lines,
    recent::{Known, Recent},
    rows::{LiveRow, Result, as_millis},
};
use crate::{
    config::Config,
    job::{
        Attempt, Ending, Fence, FinalState, Job, JobError, JobId, JobSpec, Live, LiveState, Next, Payload,
        Policy, Progress, State, Step, Timestamp,
    },
    store::{Outcome, Position, written},
};

pub struct Tx<'a> {
    pub connection: &'a Connection,
    /// The time of all that it does, but for claims: positions grow with their times.
    pub now: Timestamp,
    pub statements: Statements<'a>,
    pub config: &'a Config,
    pub lines: &'a mut Lines,
    pub recent: &'a mut Recent,
    pub bundles: &'a mut Bundles,
    pub numbers: &'a mut Numbers,
    pub fences: &'a mut Fences,
    pub shared: &'a Shared,
    pub fresh: Fresh,
    /// Leases on some of those.
    pub gathered: Option<Gathered>,
    /// Outcomes that may share rows, by their fences and the first of the numbers that may. They are not written yet.
    pub ending: BTreeMap<(Fence, i64), Group>,
    pub effects: Effects,
    /// The spec of the last outcome that is told.
    pub told: Option<Arc<JobSpec>>,
    /// Somebody listens to changes.
    pub tell_changes: bool,
    /// Rows whose numbers must not come again were removed.
    pub removed: bool,
}

/// Statements that a transaction carries out for every job.
#[derive(Default)]
pub struct Statements<'a> {
    pub insert_job: Statement<'a>,
    insert_live: Statement<'a>,
    update_live: Statement<'a>,
    delete_live: Statement<'a>,
    pub insert_done: Statement<'a>,
}

/// One that is looked up by its text when it is first needed.
#[derive(Default)]
pub struct Statement<'a>(Option<CachedStatement<'a>>);

impl<'a> Statement<'a> {
    pub fn get(&mut self, connection: &'a Connection, sql: &str) -> Result<&mut CachedStatement<'a>> {
        Ok(match &mut self.0 {
            Some(known) => known,
            none => none.insert(connection.prepare_cached(sql)?),
        })
    }
}

/// What is told after the commit.
#[derive(Default)]
pub struct Effects {
    pub head: Position,
    pub due: bool,
    /// Claims that wait are to be looked at, whatever happened.
    pub look: bool,
    /// Places of the lines whose counts changed.
    pub counted: Vec<usize>,
    pub changed: Vec<JobId>,
    /// The newest outcomes, as far as they are known without reading them.
    pub outcomes: Vec<Outcome>,
}

/// Makes the numbers of jobs: each is given once, also if its job is removed. `meta` keeps what cannot be seen from the
/// tables: the largest numbers when rows were last removed.
#[derive(Debug)]
pub struct Numbers {
    last: i64,
}

impl Numbers {
    pub fn load(connection: &Connection) -> Result<Self> {
        let last = connection.query_row(
            "SELECT max(coalesce((SELECT max(num) FROM job), 0), value) FROM meta WHERE key = 'last_num'",
            [],
            |row| row.get(0),
        )?;
        Ok(Self { last })
    }

    pub fn next(&mut self) -> i64 {
        self.last += 1;
        self.last
    }

    pub fn last(&self) -> i64 {
        self.last
    }
}

/// Makes fences. The upper half is drawn at each start: a fence that was handed out before the power was lost, and
/// whose claim was forgotten with it, never comes again.
#[derive(Debug)]
pub struct Fences {
    last: Fence,
}

impl Fences {
    pub fn new() -> Self {
        Self { last: i64::from(fastrand::u32(1..1 << 31)) << 32 }
    }

    pub fn next(&mut self) -> Fence {
        self.last += 1;
        self.last
    }
}

impl Tx<'_> {
    /// The row of an unfinished job, but for those that are [`Fresh`].
    pub fn live(&self, num: i64) -> Result<Option<LiveRow>> {
        let Some((row, _)) = self.recent.get(num) else { return self.read_live(num) };
        debug_assert_eq!(Some(row), self.read_live(num)?.as_ref());
        Ok(Some(row.clone()))
    }

    fn read_live(&self, num: i64) -> Result<Option<LiveRow>> {
        match self.bundles.hold(num) {
            true => super::read::seat(self.connection, num),
            false => super::read::live(self.connection, num),
        }
    }

    /// The number of a job.
    pub fn num(&self, id: &JobId) -> Result<Option<i64>> {
        super::read::num(self.connection, id)
    }

    /// What holds for a job: its own word over its queue's.
    pub fn policy(&self, row: &LiveRow) -> Result<Policy> {
        let line = self.lines.get(row.line)?;
        let spec = match self.recent.get(row.num) {
            Some((_, fixed)) => fixed.spec.clone(),
            None => super::read::spec_without_payload(self.connection, row.num)?,
        };
        Ok(line.policy.of(&spec))
    }

    pub fn insert_live(&mut self, row: &LiveRow, unique: Option<(&str, &str)>) -> Result<()> {
        self.write_live(row, unique)?;
        self.moved(row.num, row.line, None, State::Live(row.live.state), row.bytes)
    }

    /// Puts a job in line that is due and has no unique key. It reaches the table when it is leased, or at the end of
    /// the transaction.
    pub fn line_up(&mut self, job: Known) -> Result<()> {
        let LiveRow { num, line, bytes, .. } = job.0;
        self.fresh.add(job);
        self.moved(num, line, None, State::QUEUED, bytes)
    }

    /// Leases a job that [`Fresh::take`] has given. `bundled`: see [`Tx::bundle`].
    pub fn insert_leased(&mut self, row: &LiveRow, bundled: bool) -> Result<()> {
        if !bundled {
            self.write_live(row, None)?;
        }
        self.moved(row.num, row.line, Some(State::QUEUED), State::Live(row.live.state), row.bytes)
    }

    /// Writes the jobs that nobody has leased yet.
    pub fn land(&mut self) -> Result<()> {
        for job in std::mem::take(&mut self.fresh).into_jobs() {
            self.write_live(&job.0, None)?;
            self.recent.keep(job);
        }
        Ok(())
    }

    fn write_live(&mut self, row: &LiveRow, unique: Option<(&str, &str)>) -> Result<()> {
        let LiveRow { num, line, bytes, retention, live } = row;
        let lease = live.lease.as_ref();
        self.statements
            .insert_live
            .get(
                self.connection,
                "INSERT INTO live (num, line, state, run, attempt, version, priority, due, rank, wake, start_by, end_by, \
                 bytes, retention, fence, worker, started, until, unique_queue, unique_key) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20)",
            )?
            .execute(params![
                num,
                line,
                live.state as i32,
                live.run,
                live.attempt,
                live.version,
                live.priority,
                live.due,
                live.rank(),
                live.wake(),
                live.start_by,
                live.end_by,
                bytes,
                retention.map(as_millis),
                live.fence,
                lease.map(|lease| &lease.worker),
                lease.map(|lease| lease.started),
                lease.map(|lease| lease.until),
                unique.map(|(queue, _)| queue),
                unique.map(|(_, key)| key),
            ])?;
        Ok(())
    }

    pub fn update_live(&mut self, row: &LiveRow, live: &Live) -> Result<()> {
        self.unbundle(row.num)?;
        let lease = live.lease.as_ref();
        self.statements
            .update_live
            .get(
                self.connection,
                "UPDATE live SET state = ?2, run = ?3, attempt = ?4, version = ?5, due = ?6, rank = ?7, wake = ?8, \
                 start_by = ?9, end_by = ?10, fence = ?11, worker = ?12, started = ?13, until = ?14, cancel_reason = ?15 \
                 WHERE num = ?1",
            )?
            .execute(params![
                row.num,
                live.state as i32,
                live.run,
                live.attempt,
                live.version,
                live.due,
                live.rank(),
                live.wake(),
                live.start_by,
                live.end_by,
                live.fence,
                lease.map(|lease| &lease.worker),
                lease.map(|lease| lease.started),
                lease.map(|lease| lease.until),
                live.cancel_reason,
            ])?;
        self.recent.update(row.num, live);
        self.moved(row.num, row.line, Some(State::Live(row.live.state)), State::Live(live.state), row.bytes)
    }

    /// Carries out what a rule has decided. `leased`: the job as its worker got it, if that is known.
    pub fn apply(&mut self, row: &LiveRow, step: &Step, now: Timestamp, leased: Option<&Job>) -> Result<()> {
        if let Some(error) = &step.failure {
            self.record_failure(row, error, now)?;
        }
        match &step.next {
            Next::Live(live) => self.update_live(row, live),
            Next::Final(ending) => self.finish(row, ending, now, leased),
        }
    }

    fn record_failure(&self, row: &LiveRow, error: &JobError, now: Timestamp) -> Result<()> {
        let lease = row.live.lease.as_ref();
        self.connection
            .prepare_cached("INSERT OR REPLACE INTO failure VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)")?
            .execute(params![
                row.num,
                row.live.run,
                row.live.attempt,
                lease.map(|lease| &lease.worker),
                lease.map(|lease| lease.started),
                now,
                written::error_text(error),
            ])?;
        if row.live.attempt as usize > Attempt::KEPT || row.live.run > 1 {
            self.connection
                .prepare_cached(
                    "DELETE FROM failure WHERE num = ?1 AND (run, attempt) <= (SELECT run, attempt FROM failure \
                     WHERE num = ?1 ORDER BY run DESC, attempt DESC LIMIT 1 OFFSET ?2)",
                )?
                .execute(params![row.num, Attempt::KEPT as i64])?;
        }
        Ok(())
    }

    /// When retention removes a job that ends now: by its own word, or its queue's.
    fn keep_until(&self, row: &LiveRow, now: Timestamp) -> Result<Timestamp> {
        Ok(now.after(row.retention.unwrap_or(self.lines.get(row.line)?.policy.retention)))
    }

    /// Ends a run: its outcome is appended to the feed. A plain success is written by [`Tx::land_ended`].
    pub fn finish(
        &mut self,
        row: &LiveRow,
        ending: &Ending,
        now: Timestamp,
        leased: Option<&Job>,
    ) -> Result<()> {
        let live = &row.live;
        let lease = live.lease.as_ref();
        let keep_until = self.keep_until(row, now)?;
        self.recent.forget(row.num);
        let was_bundled = self.leave_bundle(row.num)?;
        if !was_bundled {
            let sql = "DELETE FROM live WHERE num = ?1";
            self.statements.delete_live.get(self.connection, sql)?.execute([row.num])?;
        }
        let alike = Alike {
            run: live.run,
            attempt: live.attempt,
            version: live.version + 1,
            state: ending.state,
            fence: live.fence,
            worker: lease.map(|lease| lease.worker.clone()),
            started: lease.map(|lease| lease.started),
            finished: now,
            keep_until,
            error: ending.error.as_ref().map(written::error_text),
            content_type: ending.output.as_ref().map(|output| output.content_type.clone()),
        };
        let output = ending.output.as_ref().map(Payload::bytes);
        let told =
            leased.map(|job| job.ended(ending, live.version + 1, now, keep_until, &mut self.told).into());
        match was_bundled && ending.state == FinalState::Succeeded {
            true => self.append_with_others(row.num, alike, output, told)?,
            false => self.append(&Ended::new(row.num, alike, output), told)?,
        }
        if live.version > 1 && !was_bundled {
            self.connection.prepare_cached("DELETE FROM progress WHERE num = ?1")?.execute([row.num])?;
        }
        self.moved(row.num, row.line, Some(State::Live(live.state)), State::Final(ending.state), row.bytes)
    }

    /// Keeps the numbers of rows that were removed from coming again.
    pub fn save_numbers(&self) -> Result<()> {
        if self.removed {
            self.connection
                .prepare_cached(
                    "UPDATE meta SET value = iif(key = 'last_num', ?1, ?2) WHERE key IN ('last_num', 'last_seq')",
                )?
                .execute([self.numbers.last, self.effects.head.0])?;
        }
        Ok(())
    }

    pub fn store_progress(&self, num: i64, progress: &Progress) -> Result<()> {
        let details = progress.details.as_ref();
        self.connection
            .prepare_cached("INSERT OR REPLACE INTO progress VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?
            .execute(params![
                num,
                progress.update_time,
                progress.fraction,
                progress.note,
                details.map(|details| details.content_type.as_str()),
                details.map(|details| details.bytes()).as_deref(),
            ])?;
        Ok(())
    }

    /// A job came into a state: counts it, and remembers whom to tell.
    fn moved(&mut self, num: i64, line: i64, from: Option<State>, to: State, bytes: i64) -> Result<()> {
        if from != Some(to) {
            self.lines.shift(line, from, Some(to), bytes.unsigned_abs())?;
        }
        // A running job can only wait for its lease, which the engine looks after.
        self.effects.due |= matches!(to, State::Live(state) if state != LiveState::Running);
        if self.tell_changes && !to.is_final() {
            self.effects.changed.extend(super::read::id(self.connection, num)?);
        }
        Ok(())
    }
}
