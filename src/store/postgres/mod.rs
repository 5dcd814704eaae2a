//! The store of many replicas: a PostgreSQL database that all of them share.
//!
//! The rules decide in Rust on what was read; statements in `sql/` move jobs, each only if it is still as it was read
//! ([`moves`]). So no lock outlives a statement, and a replica that freezes holds nobody up. A batch is one statement, one
//! round trip, one transaction. Replicas tell each other what is new by hints ([`listen`]), behind each a slow look.

mod change;
mod claim;
mod feed;
mod held;
mod hints;
mod lines;
mod list;
mod listen;
mod moves;
mod open;
mod pool;
mod read;
mod room;
mod rows;
mod settle;
mod share;
mod standing;
mod submit;
#[cfg(test)]
mod tests;
mod tick;

use std::sync::{
    Arc, Weak,
    atomic::{AtomicBool, AtomicI64, Ordering},
};

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::time::Instant;

pub use open::{Durability, OpenError, connect};

use self::{
    held::Held,
    hints::{Hint, Hints},
    lines::Lines,
    listen::{Listener, Listening},
    pool::{CONNECTIONS, Failure, Pools},
    room::Rooms,
    share::Parked,
    standing::Standing,
};
use super::{
    Cancel, Change, Claim, Delete, FeedStart, GroupReply, LeaseId, Leased, LineCounts, ListPage, ListQuery,
    LogId, OutcomePage, Position, ProgressHint, Renewal, Renewed, Retry, Settlement, Signals, Store,
    Submission, Tick,
};
use crate::{
    config::Config,
    job::{Error, Filter, Job, JobId, Timestamp, View},
};

/// A store in a database.
#[derive(Debug)]
pub struct PostgresStore {
    me: Weak<Self>,
    config: Arc<Config>,
    signals: Arc<Signals>,
    pools: Pools,
    lines: Arc<Lines>,
    room: Rooms,
    held: Held,
    standing: Arc<Standing>,
    hints: Arc<Hints>,
    listener: Mutex<Option<Listener>>,
    /// The number of this process among the replicas.
    replica: i64,
    durability: Durability,
    log_id: LogId,
    lease_key: [u8; 32],
    /// The newest time heard of, milliseconds: what a call without one goes by.
    now: AtomicI64,
    /// Milliseconds that the database's clock is ahead of the machine's.
    ahead: Arc<AtomicI64>,
    kept_house: Mutex<Instant>,
    /// What other processes left behind is looked for once more.
    just_begun: AtomicBool,
    parked: Parked,
}

impl PostgresStore {
    /// Opens the store in the database of a URL, and recovers what processes that are gone have left behind: the attempts
    /// that their pools were running are spent.
    ///
    /// # Errors
    /// The database cannot be reached, will not do, or has been used by a newer version.
    pub async fn open(url: &str, config: Arc<Config>, now: Timestamp) -> Result<Arc<Self>, OpenError> {
        let settings = open::settings(url)?;
        let client = open::connect_with(&settings).await?;
        let durability = open::check(&client).await?;
        open::migrate(&client).await?;
        let (log_id, lease_key) = open::identity(&client).await?;
        drop(client);

        let (signals, hints) = (Arc::new(Signals::new(Position(0))), Arc::new(Hints::default()));
        let ahead = Arc::new(AtomicI64::new(0));
        let (lines, standing) = (Arc::new(Lines::new(config.clone())), Arc::new(Standing::default()));
        let listening = Listening {
            signals: signals.clone(),
            hints: hints.clone(),
            lines: lines.clone(),
            standing: standing.clone(),
            ahead: ahead.clone(),
        };
        let listener = Listener::start(&settings, listening).await?;
        let pools = Pools::new(&settings).map_err(failed)?;
        let store = Arc::new_cyclic(|me| Self {
            me: me.clone(),
            signals,
            pools,
            lines,
            room: Rooms::new(config.clone()),
            held: Held::default(),
            standing,
            hints,
            replica: listener.replica,
            listener: Mutex::new(Some(listener)),
            durability,
            log_id,
            lease_key,
            now: AtomicI64::new(now.0),
            ahead,
            kept_house: Mutex::new(Instant::now()),
            just_begun: AtomicBool::new(true),
            parked: Parked::default(),
            config,
        });
        store.begin(now).await.map_err(failed)?;
        Ok(store)
    }

    async fn begin(&self, now: Timestamp) -> pool::Result<()> {
        self.lines.refresh(&self.pools.write).await?;
        self.keep_house().await?;
        let spent = self.recover(now).await?;
        if spent > 0 {
            tracing::warn!(
                attempts = spent,
                "attempts that ended processes were running are counted as failed"
            );
        }
        let (_, head) = self.bounds().await?;
        self.signals.advance(Some(head), false);
        Ok(())
    }

    /// What the server's settings make of an acknowledgement.
    pub fn durability(&self) -> Durability {
        self.durability
    }

    /// Connections that this replica holds at most.
    pub fn connections(&self) -> usize {
        CONNECTIONS
    }

    /// Milliseconds that the database's clock is ahead of this machine's, kept up to date.
    pub fn ahead(&self) -> Arc<AtomicI64> {
        self.ahead.clone()
    }

    fn last_time(&self) -> Timestamp {
        Timestamp(self.now.load(Ordering::Relaxed))
    }

    fn at(&self, now: Timestamp) {
        self.now.fetch_max(now.0, Ordering::Relaxed);
    }

    /// Tells those who listen, here and at other replicas, what has come of a commit.
    fn news(&self, hint: Hint, changed: impl Iterator<Item = JobId>) {
        self.standing.tell(&hint.standing);
        self.signals.advance(hint.head, hint.due);
        self.hints.post(hint);
        let (here, elsewhere) = (self.signals.changed.receiver_count() > 0, self.hints.is_watched());
        if here || elsewhere {
            for job in changed {
                if elsewhere {
                    self.hints.post_changed(job.clone());
                }
                // Only hints: without a listener, or with a slow one, they are lost.
                let _ = self.signals.changed.send(job);
            }
        }
    }

    /// Whether somebody may want to hear of changes.
    fn is_watched(&self) -> bool {
        self.signals.changed.receiver_count() > 0 || self.hints.is_watched()
    }
}

fn failed(failure: Failure) -> OpenError {
    match failure {
        Failure::Postgres(error) => OpenError::Postgres(error),
        other => OpenError::Store(other.into()),
    }
}

#[async_trait]
impl Store for PostgresStore {
    async fn submit(&self, now: Timestamp, groups: Vec<Vec<Submission>>) -> Result<Vec<GroupReply>, Error> {
        self.at(now);
        self.submit_groups(now, groups).await.map_err(|failure| match failure.is_full() {
            true => Error::StoreFull { free: 0, reserve: self.config.store.reserve_bytes },
            false => failure.into(),
        })
    }

    async fn claim(&self, now: Timestamp, claim: Claim) -> Result<Vec<Leased>, Error> {
        self.at(now);
        let leased = match claim.wait.clone() {
            Some(wait) => self.wait_for_jobs(now, claim, &wait).await?,
            None => self.claim_upto(now, &claim, usize::MAX).await?,
        };
        Ok(leased)
    }

    async fn renew(&self, now: Timestamp, renewals: Vec<Renewal>) -> Result<Vec<Renewed>, Error> {
        self.at(now);
        Ok(self.renew_leases(renewals).await?)
    }

    async fn settle(
        &self,
        now: Timestamp,
        settlements: Vec<Settlement>,
    ) -> Result<Vec<Result<(), Error>>, Error> {
        self.at(now);
        Ok(self.settle_attempts(now, settlements).await?)
    }

    async fn cancel(
        &self,
        now: Timestamp,
        cancels: Vec<Cancel>,
    ) -> Result<Vec<Result<Change, Error>>, Error> {
        self.at(now);
        Ok(self.cancel_jobs(now, cancels).await?)
    }

    async fn retry(&self, now: Timestamp, retries: Vec<Retry>) -> Result<Vec<Result<Change, Error>>, Error> {
        self.at(now);
        Ok(self.retry_jobs(now, retries).await?)
    }

    async fn delete(&self, now: Timestamp, deletes: Vec<Delete>) -> Result<Vec<Result<(), Error>>, Error> {
        self.at(now);
        Ok(self.delete_jobs(deletes).await?)
    }

    async fn tick(&self, now: Timestamp) -> Result<Tick, Error> {
        self.at(now);
        Ok(self.tick_now(now).await?)
    }

    async fn leased(&self, leases: Vec<LeaseId>, with_input: bool) -> Result<Vec<Option<Job>>, Error> {
        Ok(self.leased_jobs(&leases, with_input).await?)
    }

    async fn lease_job(&self, lease: LeaseId) -> Result<Option<(JobId, bool)>, Error> {
        Ok(self.job_of_lease(lease).await?)
    }

    async fn get(&self, ids: Vec<JobId>, view: View) -> Result<(Vec<Option<Job>>, Position), Error> {
        let found = self.jobs_by_id(&ids, view).await?;
        Ok((found.jobs.into_iter().map(|row| row.map(|row| row.job)).collect(), found.head))
    }

    async fn list(&self, query: ListQuery) -> Result<ListPage, Error> {
        Ok(self.list_jobs(&query).await?)
    }

    async fn outcomes(&self, after: Position, limit: usize) -> Result<OutcomePage, Error> {
        Ok(self.outcomes_after(after, limit).await?)
    }

    async fn existing(
        &self,
        after: Position,
        upto: Position,
        filter: &Filter,
        limit: usize,
    ) -> Result<OutcomePage, Error> {
        Ok(self.newest_outcomes(after, upto, filter, limit).await?)
    }

    async fn position_at(&self, time: Timestamp) -> Result<Position, Error> {
        Ok(self.position_of(time).await?)
    }

    async fn feed_start(&self) -> Result<FeedStart, Error> {
        Ok(self.bounds().await?.0)
    }

    async fn counts(&self) -> Result<Vec<LineCounts>, Error> {
        let counted = self.lines.counts(&self.pools.read).await?;
        Ok(counted.into_iter().map(|line| line.counts).collect())
    }

    fn is_shared(&self) -> bool {
        true
    }

    fn lease_key(&self) -> [u8; 32] {
        self.lease_key
    }

    fn log_id(&self) -> LogId {
        self.log_id
    }

    fn signals(&self) -> &Signals {
        &self.signals
    }

    fn tell_progress(&self, hint: Arc<ProgressHint>) {
        if self.hints.is_watched() {
            self.hints.post_progress(hint.clone());
        }
        let _ = self.signals.progress.send(hint);
    }

    async fn close(&self) {
        self.pools.close();
        drop(self.listener.lock().take());
    }
}
