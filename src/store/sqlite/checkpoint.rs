//! Writes the write-ahead log back into the database, beside the writer: on a connection and a thread of its own, so
//! that no commit pays for it.

use std::{
    path::Path,
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    thread,
    time::Duration,
};

use rusqlite::Connection;

use super::open::{self, DATABASE, OpenError, PAGE_SIZE};
use crate::store::Signals;

/// How often the size of the log is looked at.
const INTERVAL: Duration = Duration::from_millis(250);

/// Size of the log from which writing back pays, bytes.
const WORTHWHILE: u64 = 8 << 20;

/// How long it waits for others. If that is not enough it tries again at the next look.
const PATIENCE: Duration = Duration::from_millis(50);

/// How often what was logged meanwhile is written back before the writer has to wait for the rest: each time it is a
/// fraction of the time before.
const APPROACHES: usize = 3;

/// Runs until it is dropped.
#[derive(Debug)]
pub struct Checkpointer {
    stop: Option<SyncSender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Checkpointer {
    /// `limit`: size of the log above which it begins anew, for which the writer has to wait a moment.
    /// Fails the store through `signals` when the disk does.
    pub fn start(dir: &Path, limit: u64, signals: Arc<Signals>) -> Result<Self, OpenError> {
        let connection = open::writer(dir, 1 << 20)?;
        // While it waits for readers the writer waits too.
        connection
            .busy_timeout(PATIENCE)
            .map_err(|source| OpenError::Sqlite { path: dir.to_owned(), source })?;
        let wal = dir.join(format!("{DATABASE}-wal"));
        let (stop, stopped) = sync_channel(0);
        let thread = thread::Builder::new()
            .name("jobwire-checkpoint".into())
            .spawn(move || run(connection, &wal, limit, &signals, &stopped))
            .map_err(|source| OpenError::Io { path: dir.to_owned(), source })?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Checkpointer {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn run(connection: Connection, wal: &Path, limit: u64, signals: &Signals, stopped: &Receiver<()>) {
    let mut seen = None;
    while stopped.recv_timeout(INTERVAL) == Err(RecvTimeoutError::Timeout) {
        if signals.failed.borrow().is_some() {
            // After a commit that failed nothing is written any more.
            std::mem::forget(connection);
            return;
        }
        // By path only: a descriptor of the database's files must not be opened here. A log that has begun anew grows
        // no more, but it changes.
        let Ok(file) = std::fs::metadata(wal) else { continue };
        let state = (file.len(), file.modified().ok());
        if file.len() <= WORTHWHILE.min(limit) || seen == Some(state) {
            continue;
        }
        match write_back(&connection, limit) {
            Ok(()) => seen = Some(state),
            Err(error) if passes(&error) => {
                tracing::warn!(%error, "the write-ahead log could not be written back");
            }
            Err(error) => {
                signals.fail(&format!("SQLite, writing the log back: {error}"));
                // To close it would be to try again.
                std::mem::forget(connection);
                return;
            }
        }
    }
}

/// Beside the writer as far as that goes. A log beyond the limit begins anew in the same file: to overwrite is quicker
/// than to append.
fn write_back(connection: &Connection, limit: u64) -> rusqlite::Result<()> {
    if checkpoint(connection, "PASSIVE")? > limit {
        for _ in 0..APPROACHES {
            checkpoint(connection, "PASSIVE")?;
        }
        checkpoint(connection, "RESTART")?;
    }
    Ok(())
}

/// Whether it is safe to try again. After a sync that failed it is not: the next one says that all is well, whatever
/// has become of the pages.
fn passes(error: &rusqlite::Error) -> bool {
    use rusqlite::ErrorCode::{DatabaseBusy, DatabaseLocked, DiskFull};
    matches!(error.sqlite_error_code(), Some(DatabaseBusy | DatabaseLocked | DiskFull))
}

/// Writes all of the log back and empties it, as nobody else writes. Waits for those who read.
pub fn empty(connection: &Connection) -> rusqlite::Result<()> {
    let is_busy = || connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get::<_, bool>(0));
    while is_busy()? {
        tracing::warn!(
            "the store is being read by another process, a backup or `jobwire verify`: it is served once that has ended"
        );
    }
    Ok(())
}

/// Bytes in the log afterwards, written back or not. 0 if another checkpoint is under way.
pub fn checkpoint(connection: &Connection, mode: &str) -> rusqlite::Result<u64> {
    // busy, frames in the log (-1 if that is not known), frames written back
    let frames: i64 =
        connection.query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |row| row.get(1))?;
    Ok(frames.max(0).unsigned_abs() * PAGE_SIZE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_that_knows_no_log_is_no_failure() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(DATABASE), "").unwrap();
        let writer = open::writer(dir.path(), 1 << 20).unwrap();
        assert_eq!(checkpoint(&Connection::open_in_memory().unwrap(), "PASSIVE").unwrap(), 0);
        assert!(checkpoint(&writer, "PASSIVE").unwrap() > 0);
    }
}
