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

use super::open::{self, DATABASE, OpenError};
use crate::store::Signals;

/// How often the size of the log is looked at.
const INTERVAL: Duration = Duration::from_millis(250);

/// Size of the log from which writing back pays, bytes.
const WORTHWHILE: u64 = 8 << 20;

/// Runs until it is dropped.
#[derive(Debug)]
pub struct Checkpointer {
    stop: Option<SyncSender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Checkpointer {
    /// `limit`: size of the log above which the writer has to wait until it is emptied.
    /// Fails the store through `signals` when the disk does.
    pub fn start(dir: &Path, limit: u64, signals: Arc<Signals>) -> Result<Self, OpenError> {
        let connection = open::writer(dir, 1 << 20)?;
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
    let mut written = 0;
    while stopped.recv_timeout(INTERVAL) == Err(RecvTimeoutError::Timeout) {
        // By path only: a descriptor of the database's files must not be opened here.
        let size = std::fs::metadata(wal).map_or(0, |metadata| metadata.len());
        let mode = if size > limit {
            "TRUNCATE"
        } else if size > WORTHWHILE && size != written {
            "PASSIVE"
        } else {
            continue;
        };
        match checkpoint(&connection, mode) {
            Ok(_) => written = size,
            Err(error) if passes(&error) => {
                tracing::warn!(%error, mode, "the write-ahead log could not be written back");
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

/// Whether it is safe to try again. After a sync that failed it is not: the next one says that all is well, whatever
/// has become of the pages.
fn passes(error: &rusqlite::Error) -> bool {
    use rusqlite::ErrorCode::{DatabaseBusy, DatabaseLocked, DiskFull};
    matches!(error.sqlite_error_code(), Some(DatabaseBusy | DatabaseLocked | DiskFull))
}

/// Whether all of the log was written back: a busy log is told in the row, not as an error.
pub fn checkpoint(connection: &Connection, mode: &str) -> rusqlite::Result<bool> {
    connection.query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |row| {
        let (busy, log, done): (i64, i64, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
        Ok(busy == 0 && log == done)
    })
}
