//! The embedded store: one SQLite database in a directory of its own.
//!
//! One thread writes ([`writer`]), with group commit and a full sync; a few connections read beside it ([`readers`]);
//! a duty of its own writes the log back ([`checkpoint`]).

mod bundle;
mod change;
mod checkpoint;
mod claim;
mod done;
mod export;
mod feed;
mod fresh;
mod lines;
mod list;
mod maintenance;
mod open;
mod read;
mod readers;
mod recent;
mod rows;
mod settle;
mod share;
mod submit;
#[cfg(test)]
mod tests;
mod tick;
mod tx;
mod writer;

use std::{
    fs::File,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    thread,
};

use async_trait::async_trait;
use parking_lot::Mutex;
use ring::rand::{SecureRandom as _, SystemRandom};
use rusqlite::Connection;

pub use export::Stopped;
pub use maintenance::{BackupReport, MaintenanceError, VerifyReport, backup, verify};
pub use open::OpenError;

use self::{
    checkpoint::Checkpointer,
    lines::Lines,
    readers::Readers,
    tx::Tx,
    writer::{Durable, State, Work, Writer},
};
use super::{
    Breaks, Cancel, Change, Claim, Delete, FeedStart, GroupReply, LeaseId, Leased, LineCounts, ListPage,
    ListQuery, LogId, OutcomePage, Position, Queues, Renewal, Renewed, Retry, Settlement, Signals, Store,
    Submission, Tick,
};
use crate::{
    config::Config,
    job::{Error, Filter, Job, JobId, Timestamp, View},
};

/// How often the free space is looked at, commits aside, milliseconds.
const FREE_SPACE_INTERVAL: i64 = 500;

/// One part in so many of the page cache is the writer's. It reads little again, and SQLite goes through all of it at each
/// commit that has split pages.
const WRITER_SHARE: usize = 16;

/// A store in a directory.
#[derive(Debug)]
pub struct SqliteStore {
    config: Arc<Config>,
    signals: Arc<Signals>,
    shared: Arc<Shared>,
    log_id: LogId,
    lease_key: [u8; 32],
    readers: Readers,
    threads: Mutex<Option<Threads>>,
    writer: Mutex<Option<Arc<Writer>>>,
    /// When the free space was last looked at.
    looked: AtomicI64,
    dir: PathBuf,
    /// Keeps other processes out for as long as it is open.
    _lock: File,
}

#[derive(Debug)]
struct Threads {
    writer: thread::JoinHandle<()>,
    checkpointer: Checkpointer,
}

/// What the writer shows to others.
#[derive(Debug)]
pub struct Shared {
    free_bytes: AtomicU64,
    /// The newest time heard of, milliseconds: what a call without one goes by.
    now: AtomicI64,
    counts: Mutex<Vec<LineCounts>>,
}

impl Shared {
    /// Free bytes on the file system, as of lately.
    pub fn free_bytes(&self) -> u64 {
        self.free_bytes.load(Ordering::Relaxed)
    }

    /// Hears of a time, and gives the newest one.
    fn at(&self, now: Timestamp) -> Timestamp {
        Timestamp(self.now.fetch_max(now.0, Ordering::Relaxed)).max(now)
    }

    /// The newest time heard of.
    pub fn now(&self) -> Timestamp {
        Timestamp(self.now.load(Ordering::Relaxed))
    }

    fn update_counts(&self, lines: &Lines, places: &[usize]) {
        let mut counts = self.counts.lock();
        for &at in places {
            // A new line is always the next one.
            if at == counts.len() {
                counts.push(lines.counts_at(at));
            } else {
                counts[at] = lines.counts_at(at);
            }
        }
    }
}

impl SqliteStore {
    /// Opens the store in `dir`, which is made if need be, and recovers what a process before this one left behind:
    /// the attempts that its pool was running are spent.
    ///
    /// # Errors
    /// The directory is in use, not ours, of a newer version, on a network file system, or cannot be written to.
    pub fn open(dir: &Path, config: Arc<Config>, now: Timestamp) -> Result<Arc<Self>, OpenError> {
        let lock = open::lock_directory(dir)?;
        let sqlite = |source| OpenError::Sqlite { path: dir.to_owned(), source };
        let of_writer = config.store.cache_bytes / WRITER_SHARE;
        let connection = open::writer(dir, of_writer)?;
        // After a sync that failed a log may be whole only in the page cache: written back before anything is built
        // on it.
        checkpoint::empty(&connection).map_err(sqlite)?;
        let log_id = log_id(&connection).map_err(sqlite)?;
        let lease_key = lease_key(&connection).map_err(sqlite)?;
        let lines = Lines::load(&connection, &config).map_err(sqlite)?;
        let head = feed::head(&connection).map_err(sqlite)?;
        let now = now.max(newest_time(&connection).map_err(sqlite)?);

        let signals = Arc::new(Signals::new(head));
        let free = open::free_bytes(dir).map_err(|source| OpenError::Io { path: dir.to_owned(), source })?;
        let shared =
            Arc::new(Shared { free_bytes: free.into(), now: now.0.into(), counts: lines.counts().into() });
        let readers =
            Readers::open(dir, config.store.readers, config.store.cache_bytes - of_writer, signals.clone())?;
        let checkpointer = Checkpointer::start(dir, config.store.wal_limit_bytes, signals.clone())?;
        let mut state =
            State::new(connection, config.clone(), lines, signals.clone(), shared.clone()).map_err(sqlite)?;
        let recovered = state.now(|tx| tick::recover(tx, now)).map_err(sqlite)?;
        if recovered > 0 {
            tracing::warn!(
                attempts = recovered,
                "attempts that the last process was running are counted as failed"
            );
        }
        let (writer, thread) = Writer::start(state);
        Ok(Arc::new(Self {
            config,
            signals,
            shared,
            log_id,
            lease_key,
            readers,
            threads: Mutex::new(Some(Threads { writer: thread, checkpointer })),
            writer: Mutex::new(Some(Arc::new(writer))),
            looked: AtomicI64::new(now.0),
            dir: dir.to_owned(),
            _lock: lock,
        }))
    }

    /// Carries out `run`, at a time that is not before any other that the store was told: outcomes are in the order of their
    /// times.
    async fn write<T: Send + 'static>(
        &self,
        now: Timestamp,
        weight: usize,
        durable: Durable,
        run: impl FnOnce(&mut Tx<'_>, Timestamp) -> rows::Result<T> + Send + 'static,
    ) -> Result<T, Error> {
        self.write_as(Work::Any, now, weight, durable, run).await
    }

    async fn write_as<T: Send + 'static>(
        &self,
        work: Work,
        now: Timestamp,
        weight: usize,
        durable: Durable,
        run: impl FnOnce(&mut Tx<'_>, Timestamp) -> rows::Result<T> + Send + 'static,
    ) -> Result<T, Error> {
        self.at(now);
        self.writer()?.call(weight, durable, work, move |tx| run(tx, tx.now)).await
    }

    fn writer(&self) -> Result<Arc<Writer>, Error> {
        let writer = self.writer.lock().clone();
        writer.ok_or_else(|| Error::StoreUnavailable("it is closed".to_owned()))
    }

    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Connection) -> rows::Result<T> + Send + 'static,
    ) -> Result<T, Error> {
        self.check_failed()?;
        self.readers.call(read).await
    }

    fn check_failed(&self) -> Result<(), Error> {
        match &*self.signals.failed.borrow() {
            Some(why) => Err(Error::StoreUnavailable(why.to_string())),
            None => Ok(()),
        }
    }

    /// Remembers the time, and looks at the free space now and then.
    fn at(&self, now: Timestamp) {
        self.shared.at(now);
        let looked = self.looked.load(Ordering::Relaxed);
        if (now.0 - looked).abs() >= FREE_SPACE_INTERVAL
            && self.looked.compare_exchange(looked, now.0, Ordering::Relaxed, Ordering::Relaxed).is_ok()
            && let Ok(free) = open::free_bytes(&self.dir)
        {
            self.shared.free_bytes.store(free, Ordering::Relaxed);
        }
    }

    /// The latest time that the store has seen, in a process before this one too: time must not go back behind it.
    pub fn last_time(&self) -> Timestamp {
        self.shared.now()
    }
}

/// When the last thing happened that is on record.
fn newest_time(connection: &Connection) -> rusqlite::Result<Timestamp> {
    connection.query_row(
        "SELECT max(coalesce((SELECT submitted FROM job ORDER BY num DESC LIMIT 1), 0), \
         coalesce((SELECT finished FROM done ORDER BY seq DESC LIMIT 1), 0), \
         coalesce((SELECT max(started) FROM live WHERE state = 3), 0), \
         coalesce((SELECT max(started) FROM bundle), 0))",
        [],
        |row| row.get(0).map(Timestamp),
    )
}

/// Draws the name of a new log if this store has none: it is new, or a backup.
fn log_id(connection: &Connection) -> rusqlite::Result<LogId> {
    connection.execute(
        "UPDATE meta SET value = ?1 WHERE key = 'log_id' AND value IS NULL",
        [i64::from_ne_bytes(fastrand::u64(..).to_ne_bytes())],
    )?;
    let id: i64 =
        connection.query_row("SELECT value FROM meta WHERE key = 'log_id'", [], |row| row.get(0))?;
    Ok(LogId(u64::from_ne_bytes(id.to_ne_bytes())))
}

/// Draws the key if this store has none: it is new, or older than leases that leave the process.
fn lease_key(connection: &Connection) -> rusqlite::Result<[u8; 32]> {
    let mut drawn = [0; 32];
    let none = |_| rusqlite::Error::ToSqlConversionFailure("the system has no random numbers".into());
    SystemRandom::new().fill(&mut drawn).map_err(none)?;
    connection.execute("INSERT OR IGNORE INTO meta VALUES ('lease_key', ?1)", [drawn])?;
    connection.query_row("SELECT value FROM meta WHERE key = 'lease_key'", [], |row| row.get(0))
}

#[async_trait]
impl Store for SqliteStore {
    async fn submit(&self, now: Timestamp, groups: Vec<Vec<Submission>>) -> Result<Vec<GroupReply>, Error> {
        let weight = groups.iter().map(Vec::len).sum();
        self.write_as(Work::Submit, now, weight, Durable::Synced, |tx, now| submit::submit(tx, now, groups))
            .await
    }

    async fn claim(&self, now: Timestamp, claim: Claim) -> Result<Vec<Leased>, Error> {
        self.at(now);
        self.writer()?.claim(claim).await
    }

    async fn renew(&self, now: Timestamp, renewals: Vec<Renewal>) -> Result<Vec<Renewed>, Error> {
        self.write(now, renewals.len(), Durable::Written, |tx, _| settle::renew(tx, renewals)).await
    }

    async fn settle(
        &self,
        now: Timestamp,
        settlements: Vec<Settlement>,
    ) -> Result<Vec<Result<(), Error>>, Error> {
        let weight = settlements.len();
        self.write_as(Work::Settle, now, weight, Durable::Synced, |tx, now| {
            settle::settle(tx, now, settlements)
        })
        .await
    }

    async fn cancel(
        &self,
        now: Timestamp,
        cancels: Vec<Cancel>,
    ) -> Result<Vec<Result<Change, Error>>, Error> {
        self.write(now, cancels.len(), Durable::Synced, move |tx, now| {
            cancels.iter().map(|cancel| change::cancel(tx, now, cancel)).collect()
        })
        .await
    }

    async fn retry(&self, now: Timestamp, retries: Vec<Retry>) -> Result<Vec<Result<Change, Error>>, Error> {
        self.write(now, retries.len(), Durable::Synced, move |tx, now| {
            retries.iter().map(|retry| change::retry(tx, now, retry)).collect()
        })
        .await
    }

    async fn delete(
        &self,
        now: Timestamp,
        deletes: Vec<Delete>,
    ) -> Result<Vec<Result<Position, Error>>, Error> {
        self.write(now, deletes.len(), Durable::Synced, move |tx, _| {
            deletes.iter().map(|delete| change::delete(tx, delete)).collect()
        })
        .await
    }

    async fn tick(&self, now: Timestamp) -> Result<Tick, Error> {
        self.write(now, 1, Durable::Synced, move |tx, at| tick::tick(tx, now, at)).await
    }

    async fn leased(&self, leases: Vec<LeaseId>, with_input: bool) -> Result<Vec<Option<Job>>, Error> {
        self.read(move |connection| {
            leases.iter().map(|lease| read::leased(connection, lease, with_input)).collect()
        })
        .await
    }

    async fn lease_job(&self, lease: LeaseId) -> Result<Option<(JobId, bool)>, Error> {
        self.read(move |connection| read::lease_job(connection, lease)).await
    }

    async fn get(&self, ids: Vec<JobId>, view: View) -> Result<(Vec<Option<Job>>, Position), Error> {
        self.read(move |connection| {
            let mut jobs = Vec::with_capacity(ids.len());
            for id in &ids {
                jobs.push(match read::num(connection, id)? {
                    Some(num) => read::job(connection, num, view)?,
                    None => None,
                });
            }
            Ok((jobs, feed::head(connection)?))
        })
        .await
    }

    async fn list(&self, query: ListQuery) -> Result<ListPage, Error> {
        self.read(move |connection| list::list(connection, &query)).await
    }

    async fn outcomes(&self, after: Position, limit: usize, queues: &Queues) -> Result<OutcomePage, Error> {
        let (now, queues) = (self.shared.now(), queues.clone());
        self.read(move |connection| feed::outcomes(connection, now, after, limit, &queues)).await
    }

    async fn existing(
        &self,
        after: Position,
        upto: Position,
        filter: &Filter,
        limit: usize,
    ) -> Result<OutcomePage, Error> {
        let (now, filter) = (self.shared.now(), filter.clone());
        self.read(move |connection| feed::existing(connection, now, after, upto, &filter, limit)).await
    }

    async fn position_at(&self, time: Timestamp) -> Result<Position, Error> {
        self.read(move |connection| feed::position_at(connection, time)).await
    }

    fn breaks(&self) -> Breaks {
        Breaks::default()
    }

    async fn feed_start(&self) -> Result<FeedStart, Error> {
        let now = self.shared.now();
        self.read(move |connection| feed::feed_start(connection, now)).await
    }

    async fn counts(&self) -> Result<Vec<LineCounts>, Error> {
        self.check_failed()?;
        Ok(self.shared.counts.lock().clone())
    }

    fn is_shared(&self) -> bool {
        false
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

    /// Readers first: the connection that closes last removes the write-ahead log, and only the writer may.
    async fn close(&self) {
        self.readers.close(self.config.store.readers).await;
        let threads = self.threads.lock().take();
        let commands = self.writer.lock().take();
        if let Some(Threads { writer, checkpointer }) = threads {
            let joined = tokio::task::spawn_blocking(move || {
                // One after the other: the last connection that closes writes the log back, and of two that close at
                // once each takes the other for the last.
                drop(checkpointer);
                drop(commands);
                writer.join().is_err()
            });
            if joined.await.unwrap_or(true) {
                tracing::error!("the writer's thread ended with a panic");
            }
        }
    }
}
