//! The store of many replicas: a PostgreSQL database that all of them share.
//!
//! The rules decide in Rust on what was read; statements in `sql/` move jobs, each only if it is still as it was read
//! ([`moves`]). So no lock outlives a statement, and a replica that freezes holds nobody up. A batch is one statement, one
//! round trip, one transaction; of a batch of moves, attempts that just end are one by themselves ([`bundle`]). Replicas tell
//! each other what is new by hints ([`listen`]), behind each a slow look.
//!
//! When a standby takes the primary's place, the database is opened anew ([`epoch`]).

mod block;
mod bundle;
mod change;
mod claim;
mod database;
mod epoch;
mod feed;
mod fresh;
mod held;
mod hints;
mod import;
mod insert;
mod lines;
mod link;
mod list;
mod listen;
mod moves;
mod open;
mod parts;
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
mod unheard;
mod warnings;

use std::{
    sync::{
        Arc, Weak,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use parking_lot::{Mutex, RwLock};
use tokio::{sync::Notify, task::JoinHandle, time::sleep};

pub use epoch::new_log;
pub use import::Target;
pub use open::{Durability, OpenError, connect, migrate_schema};

use self::{
    database::{Common, Database},
    link::Link,
    pool::CONNECTIONS,
    unheard::Unheard,
};
use super::{
    Breaks, Cancel, Change, Claim, Delete, FeedStart, GroupReply, LeaseId, Leased, LineCounts, ListPage,
    ListQuery, LogId, OutcomePage, Position, ProgressHint, Queues, Renewal, Renewed, Retry, Settlement,
    Signals, Store, Submission, Tick,
};
use crate::{
    config::Config,
    job::{Error, Filter, Job, JobId, Timestamp, View},
};

/// Between attempts to open a database that has failed over.
const PAUSE: Duration = Duration::from_millis(500);

/// A store in a database.
#[derive(Debug)]
pub struct PostgresStore {
    common: Arc<Common>,
    /// As it is in the present epoch.
    database: RwLock<Arc<Database>>,
    lease_key: [u8; 32],
    keeper: Mutex<Option<JoinHandle<()>>>,
}

impl PostgresStore {
    /// Opens the store in the database of a URL, and recovers what processes that are gone have left behind: the attempts
    /// that their pools were running are spent.
    ///
    /// # Errors
    /// The database cannot be reached, will not do, or has been used by a newer version.
    pub async fn open(url: &str, config: Arc<Config>, now: Timestamp) -> Result<Arc<Self>, OpenError> {
        let common = Arc::new(Common {
            config,
            link: Link::of(url)?,
            signals: Arc::new(Signals::new(Position(0))),
            now: AtomicI64::new(now.0),
            ahead: Arc::default(),
            moved: Arc::default(),
            unheard: Unheard::default(),
            replicas: Mutex::default(),
        });
        let database = Database::open(&common, None, now).await?.ok_or(OpenError::Moved)?;
        database.tell_head().await?;
        let lease_key = database.lease_key;
        let database = RwLock::new(database);
        let store = Arc::new(Self { common, database, lease_key, keeper: Mutex::default() });
        let keeper = tokio::spawn(keep(Arc::downgrade(&store), store.common.moved.clone()));
        *store.keeper.lock() = Some(keeper);
        Ok(store)
    }

    fn database(&self) -> Arc<Database> {
        self.database.read().clone()
    }

    /// Opens the database anew if its log is in another epoch. Until that has succeeded no session is accepted.
    async fn reopen(&self) {
        let old = self.database();
        let known = *self.common.signals.head.borrow();
        let now = self.common.time();
        match Database::open(&self.common, Some(old.epoch), now).await {
            Ok(None) => {}
            Ok(Some(new)) => {
                match new.breaks.find(known) {
                    Some(lost) => tracing::warn!(
                        ended = lost.ended.0,
                        known = known.0,
                        "the database has failed over and lacks the end of its log: outcomes up to `known` were told of, and \
                         those after `ended` are lost, with whatever else happened then. Who has heard of them is told \
                         LOG_REPLACED"
                    ),
                    None => tracing::warn!(
                        "the database has failed over, with all outcomes that were known of here"
                    ),
                }
                tracing::warn!("{}", new.durability);
                *self.database.write() = new.clone();
                old.close();
                if let Err(error) = new.tell_head().await {
                    tracing::debug!(%error, "the end of the feed will be told by the listener");
                }
            }
            Err(error) => {
                tracing::warn!(%error, "the database has failed over, and cannot be used yet");
                sleep(PAUSE).await;
                self.common.moved.notify_one();
            }
        }
    }

    /// What the server's settings make of an acknowledgement.
    pub fn durability(&self) -> Durability {
        self.database().durability
    }

    /// Whether others can read what is said to the database.
    pub fn is_encrypted(&self) -> bool {
        self.database().is_encrypted
    }

    /// Connections that this replica holds at most.
    pub fn connections(&self) -> usize {
        CONNECTIONS
    }

    /// Milliseconds that the database's clock is ahead of this machine's, kept up to date.
    pub fn ahead(&self) -> Arc<AtomicI64> {
        self.common.ahead.clone()
    }

    fn at(&self, now: Timestamp) {
        self.common.now.fetch_max(now.0, Ordering::Relaxed);
    }
}

/// Looks after the epoch for as long as the store is there.
async fn keep(store: Weak<PostgresStore>, moved: Arc<Notify>) {
    loop {
        moved.notified().await;
        let Some(store) = store.upgrade() else { return };
        store.reopen().await;
    }
}

#[async_trait]
impl Store for PostgresStore {
    async fn submit(&self, now: Timestamp, groups: Vec<Vec<Submission>>) -> Result<Vec<GroupReply>, Error> {
        self.at(now);
        self.database().submit_groups(now, groups).await.map_err(|failure| match failure.is_full() {
            true => Error::StoreFull { free: 0, reserve: self.common.config.store.reserve_bytes },
            false => failure.into(),
        })
    }

    async fn claim(&self, now: Timestamp, claim: Claim) -> Result<Vec<Leased>, Error> {
        self.at(now);
        let leased = match claim.wait.clone() {
            Some(wait) => self.database().wait_for_jobs(claim, &wait).await?,
            None => self.database().claim_upto(now, &claim, claim.wanted()).await?,
        };
        Ok(leased)
    }

    async fn renew(&self, now: Timestamp, renewals: Vec<Renewal>) -> Result<Vec<Renewed>, Error> {
        self.at(now);
        Ok(self.database().renew_leases(renewals).await?)
    }

    async fn settle(
        &self,
        now: Timestamp,
        settlements: Vec<Settlement>,
    ) -> Result<Vec<Result<(), Error>>, Error> {
        self.at(now);
        Ok(self.database().settle_attempts(now, settlements).await?)
    }

    async fn cancel(
        &self,
        now: Timestamp,
        cancels: Vec<Cancel>,
    ) -> Result<Vec<Result<Change, Error>>, Error> {
        self.at(now);
        Ok(self.database().cancel_jobs(now, cancels).await?)
    }

    async fn retry(&self, now: Timestamp, retries: Vec<Retry>) -> Result<Vec<Result<Change, Error>>, Error> {
        self.at(now);
        Ok(self.database().retry_jobs(now, retries).await?)
    }

    async fn delete(
        &self,
        now: Timestamp,
        deletes: Vec<Delete>,
    ) -> Result<Vec<Result<Position, Error>>, Error> {
        self.at(now);
        Ok(self.database().delete_jobs(deletes).await?)
    }

    async fn tick(&self, now: Timestamp) -> Result<Tick, Error> {
        self.at(now);
        Ok(self.database().tick_now(now).await?)
    }

    async fn leased(&self, leases: Vec<LeaseId>, with_input: bool) -> Result<Vec<Option<Job>>, Error> {
        Ok(self.database().leased_jobs(&leases, with_input).await?)
    }

    async fn lease_job(&self, lease: LeaseId) -> Result<Option<(JobId, bool)>, Error> {
        Ok(self.database().job_of_lease(lease).await?)
    }

    async fn get(&self, ids: Vec<JobId>, view: View) -> Result<(Vec<Option<Job>>, Position), Error> {
        let found = self.database().jobs_by_id(&ids, view).await?;
        Ok((
            found.jobs.into_iter().map(|row| row.map(|row| Arc::unwrap_or_clone(row.job))).collect(),
            found.head,
        ))
    }

    async fn list(&self, query: ListQuery) -> Result<ListPage, Error> {
        Ok(self.database().list_jobs(&query).await?)
    }

    async fn outcomes(&self, after: Position, limit: usize, queues: &Queues) -> Result<OutcomePage, Error> {
        Ok(self.database().outcomes_after(after, limit, queues).await?)
    }

    async fn existing(
        &self,
        after: Position,
        upto: Position,
        filter: &Filter,
        limit: usize,
    ) -> Result<OutcomePage, Error> {
        Ok(self.database().newest_outcomes(after, upto, filter, limit).await?)
    }

    async fn position_at(&self, time: Timestamp) -> Result<Position, Error> {
        Ok(self.database().position_of(time).await?)
    }

    async fn feed_start(&self) -> Result<FeedStart, Error> {
        Ok(self.database().bounds().await?.0)
    }

    async fn counts(&self) -> Result<Vec<LineCounts>, Error> {
        let database = self.database();
        let counted = database.lines.counts(&database.pools.read).await?;
        Ok(counted.into_iter().map(|line| line.counts).collect())
    }

    fn breaks(&self) -> Breaks {
        self.database().breaks.clone()
    }

    fn is_shared(&self) -> bool {
        true
    }

    fn lease_key(&self) -> [u8; 32] {
        self.lease_key
    }

    fn log_id(&self) -> LogId {
        self.database().log_id()
    }

    fn signals(&self) -> &Signals {
        &self.common.signals
    }

    fn tell_progress(&self, hint: Arc<ProgressHint>) {
        self.database().tell_progress(hint);
    }

    async fn close(&self) {
        if let Some(keeper) = self.keeper.lock().take() {
            keeper.abort();
        }
        let database = self.database();
        let listener = database.listener.lock().take();
        if let Some(listener) = listener {
            listener.close().await;
        }
        database.close();
    }
}
