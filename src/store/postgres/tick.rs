//! What time changes. Every replica does it, each duty a bounded slice: a job that two of them find is moved once.

use std::{sync::atomic::Ordering, time::Duration};

use tokio::time::{Instant, sleep};
use tokio_postgres::{Row, types::ToSql};

use super::{
    database::Database,
    hints::Hint,
    moves::{Present, Unit},
    pool::Result,
    rows::get,
    standing::Span,
};
use crate::{
    job::{Cause, LiveState, Timestamp, View, WorkerId},
    store::{LeaseId, Tick},
};

const PROMOTE: &str = include_str!("sql/promote.sql");
const ELAPSED: &str = include_str!("sql/elapsed.sql");
const NEXT: &str = include_str!("sql/next.sql");
const TRIM: &str = include_str!("sql/trim.sql");
const OUTDATED: &str = include_str!("sql/outdated.sql");
const FORGET: &str = include_str!("sql/forget.sql");
const FOLD: &str = include_str!("sql/fold.sql");
const LOST: &str = include_str!("sql/lost.sql");
const SPARE: &str = include_str!("sql/spare.sql");
const OUTLAST: &str = include_str!("sql/outlast.sql");
/// The same of leases in bundles. It comes first: those that leave theirs meanwhile are found by the other.
const OUTLAST_BUNDLED: &str = "update bundle set until = $2 where until >= $1 and until < $2";
const SIZE: &str = "select pg_database_size(current_database())";

/// Rows of one slice.
const SLICE: i64 = 500;

/// Rows of `tally` that are folded at once, and how often in a row: with many lines each job adds some of its own.
const FOLDED: i64 = 10_000;
const FOLDS: usize = 20;

/// A process whose connections were cut has its sign of life back within it.
const COMEBACK: Duration = Duration::from_millis(500);

/// A database that was away for this part of a lease has kept none from being renewed in time.
const LATE: u32 = 3;

/// A tick that takes longer has waited for a database that does not answer, or that waits for its standby.
const HANG: Duration = Duration::from_secs(5);

/// The one that gave a lease ends it first: others leave it to that one for so many milliseconds.
const DEFERENCE: i64 = 1000;

/// One that has just begun does not know whether the database was away before, and so leaves the leases of others to
/// those that do: within this time they have ticked, and let leases outlast that.
const INITIATION: Duration = Duration::from_secs(5);

/// What need not be done at every tick is done this often.
const HOUSEKEEPING: Duration = Duration::from_secs(1);

/// The last tick that went well, and what came after it.
#[derive(Clone, Copy, Debug)]
pub struct LastTick {
    began: Instant,
    took: Duration,
    /// The one before was out of reach: leases outlasted that.
    outlasted: bool,
    /// Others have failed since.
    failed: bool,
}

impl Default for LastTick {
    fn default() -> Self {
        Self { began: Instant::now(), took: Duration::ZERO, outlasted: false, failed: false }
    }
}

impl Database {
    pub async fn tick_now(&self, now: Timestamp) -> Result<Tick> {
        let last = *self.last_tick.lock();
        let tick = self.tick_after(last, now).await;
        self.last_tick.lock().failed |= tick.is_err();
        tick
    }

    async fn tick_after(&self, last: LastTick, now: Timestamp) -> Result<Tick> {
        let began = Instant::now();
        let silence = began - last.began;
        let was_away = last.failed || last.took > HANG;
        // Not twice in a row: where every tick is slow, leases have to end nevertheless.
        let outlasted = was_away && !last.outlasted && silence > self.config.workers.lease / LATE;
        if outlasted {
            let (since, until) = (now.before(silence).0, now.after(self.config.workers.lease).0);
            self.pools.write.query(OUTLAST_BUNDLED, &[&since, &until]).await?;
            self.pools.write.query(OUTLAST, &[&since, &until]).await?;
        }
        let tick = self.look_at_time(now).await?;
        *self.last_tick.lock() = LastTick { began, took: began.elapsed(), outlasted, failed: false };
        Ok(tick)
    }

    async fn look_at_time(&self, now: Timestamp) -> Result<Tick> {
        let mut tick = Tick::default();
        // Before its leases are found to have run out.
        self.give_back_unheard(now).await?;
        tick.more |= self.elapse(now, &mut tick.revoked).await?;
        tick.more |= self.promote(now).await?;
        tick.more |= self.trim_feed(now).await?;
        tick.more |= self.remove_outdated(now).await?;
        tick.more |= self.forget_requests(now).await?;
        if self.is_time_to_keep_house() {
            self.keep_house().await?;
            self.keep_parts(now).await?;
            self.warn().await?;
            // The server may not have known yet that a process was gone which had been killed just before this one began.
            if self.just_begun.swap(false, Ordering::Relaxed) {
                self.recover(now).await?;
            }
        }
        let next = self.pools.write.query(NEXT, &[&self.replica, &self.deference(now)]).await?;
        tick.next = next.first().and_then(|row| get::<Option<i64>>(row, "next")).map(Timestamp);
        Ok(tick)
    }

    /// Folds the counts, and looks how much room there is.
    pub async fn keep_house(&self) -> Result<()> {
        self.lines.refresh(&self.pools.write).await?;
        self.sweep_bundles().await?;
        for _ in 0..FOLDS {
            let folded = self.pools.write.query(FOLD, &[&FOLDED]).await?;
            if folded.first().is_none_or(|row| get::<i64>(row, "rows") < FOLDED) {
                break;
            }
        }
        self.room.count(&self.lines.counts(&self.pools.read).await?);
        let size: i64 = self.pools.read.query(SIZE, &[]).await?.first().map_or(0, |row| row.get(0));
        self.room.measure(size.unsigned_abs());
        Ok(())
    }

    fn is_time_to_keep_house(&self) -> bool {
        let mut kept = self.kept_house.lock();
        let is_time = kept.elapsed() >= HOUSEKEEPING;
        if is_time {
            *kept = Instant::now();
        }
        is_time
    }

    /// How many milliseconds the leases of others are left to them. None: for as long as this one is new.
    fn deference(&self, now: Timestamp) -> Option<i64> {
        (now >= self.begun.after(INITIATION)).then_some(DEFERENCE)
    }

    /// Limits that have passed, leases that have run out.
    async fn elapse(&self, now: Timestamp, revoked: &mut Vec<LeaseId>) -> Result<bool> {
        let params: [&(dyn ToSql + Sync); 4] = [&now.0, &SLICE, &self.replica, &self.deference(now)];
        let found = self.pools.write.query(ELAPSED, &params).await?;
        if found.is_empty() {
            return Ok(false);
        }
        let nums: Vec<i64> = found.iter().map(|row| get(row, "num")).collect();
        let mut unit = Unit::new(self.jobs(&nums, View::Basic).await?.into_iter().flatten());
        let mut leases = Vec::new();
        for &num in &nums {
            let Some(job) = unit.job(num) else { continue };
            let Present::Live(live) = &job.present else { continue };
            let policy = job.row.policy(&*self.lines.get(job.row.line)?);
            let Some(step) = live.elapse(&policy, now, fastrand::f64()) else { continue };
            let ran_out = live.state == LiveState::Running && live.end_by.is_none_or(|end| end > now);
            leases.extend(live.lease.as_ref().map(|_| LeaseId { job: num, fence: live.fence }));
            unit.step(num, step);
            if ran_out {
                unit.only_if_over(num);
            }
        }
        let moved = self.carry_out(now, &unit).await?;
        revoked.extend(leases.into_iter().filter(|lease| moved.has(lease.job)));
        Ok(nums.len() as i64 >= SLICE)
    }

    async fn promote(&self, now: Timestamp) -> Result<bool> {
        let is_heard = self.is_watched();
        let found = self.pools.write.query(PROMOTE, &[&now.0, &SLICE, &is_heard]).await?;
        let changed = found.iter().filter_map(|row| get::<Option<&str>>(row, "id")?.parse().ok());
        let standing = found.iter().map(|row| Span::at(get(row, "line"), get(row, "rank")));
        self.news(Hint::standing(standing), changed);
        Ok(found.len() as i64 == SLICE)
    }

    async fn trim_feed(&self, now: Timestamp) -> Result<bool> {
        let oldest = now.before(self.config.watch.retention);
        let most = i64::try_from(self.config.watch.max_events).unwrap_or(i64::MAX);
        let found = self.pools.write.query(TRIM, &[&oldest.0, &most, &SLICE]).await?;
        Ok(found.first().is_some_and(|row| get::<i64>(row, "old") == SLICE))
    }

    /// Retention: outcomes whose time is over, and with the last of its outcomes the job. For where they are many see
    /// [`Database::keep_parts`].
    async fn remove_outdated(&self, now: Timestamp) -> Result<bool> {
        let spared = self.parts.spared();
        let found = self.pools.write.query(OUTDATED, &[&now.0, &SLICE, &spared]).await?;
        // Older ones go with it, or the job would be back in its state of before.
        let removals: Vec<_> = found.iter().map(|row| (get(row, "num"), get(row, "upto"), None)).collect();
        self.remove(&removals).await?;
        Ok(found.iter().map(|row| get::<i64>(row, "outcomes")).sum::<i64>() >= SLICE)
    }

    async fn forget_requests(&self, now: Timestamp) -> Result<bool> {
        let found = self.pools.write.query(FORGET, &[&now.0, &SLICE]).await?;
        Ok(found.first().is_some_and(|row| get::<i64>(row, "forgotten") == SLICE))
    }

    /// Attempts that pools of processes were running that are gone are spent: a job that kills its server must not loop.
    /// Those of other workers go on: their leases live long enough for them to come back. Answers with how many were
    /// spent.
    pub async fn recover(&self, now: Timestamp) -> Result<usize> {
        let (mut lost, others) = self.look_for_lost().await?;
        if !lost.is_empty() {
            sleep(COMEBACK).await;
            let (still, _) = self.look_for_lost().await?;
            lost.retain(|lease| still.contains(lease));
        }
        let lost: Vec<i64> = lost.into_iter().map(|lease| lease.job).collect();
        for nums in lost.chunks(SLICE as usize) {
            let mut unit = Unit::new(self.jobs(nums, View::Basic).await?.into_iter().flatten());
            for &num in nums {
                let Some(job) = unit.job(num) else { continue };
                let Present::Live(live) = &job.present else { continue };
                let policy = job.row.policy(&*self.lines.get(job.row.line)?);
                let message = "the server ended while the attempt ran";
                let step = live.lose(Cause::Crash, message, &policy, now, fastrand::f64());
                unit.step(num, step);
            }
            self.carry_out(now, &unit).await?;
        }
        let until = now.after(self.config.workers.lease);
        self.pools.write.query(SPARE, &[&others, &until.0]).await?;
        Ok(lost.len())
    }

    /// Leases of pools that are proven to be gone; jobs that other workers hold, granted by processes that are gone.
    async fn look_for_lost(&self) -> Result<(Vec<LeaseId>, Vec<i64>)> {
        let found = self.pools.write.query(LOST, &[]).await?;
        let is_pool = |row: &Row| get::<&str>(row, "worker").parse::<WorkerId>().is_ok_and(|id| id.is_pool());
        let (pools, others): (Vec<&Row>, Vec<&Row>) = found.iter().partition(|row| is_pool(row));
        let proven = pools.into_iter().filter(|row| get(row, "proven"));
        let lost = proven.map(|row| LeaseId { job: get(row, "num"), fence: get(row, "fence") });
        Ok((lost.collect(), others.into_iter().map(|row| get(row, "num")).collect()))
    }
}
