//! Connections that read beside the writer. Each call is one short transaction on a thread that may block.

use std::{path::Path, sync::Arc};

use parking_lot::Mutex;
use rusqlite::{Connection, TransactionBehavior};
use tokio::sync::Semaphore;

use super::{
    open::{self, OpenError},
    rows::{self, Result},
};
use crate::{job::Error, store::Signals};

#[derive(Debug)]
pub struct Readers {
    idle: Arc<Mutex<Vec<Connection>>>,
    permits: Arc<Semaphore>,
    signals: Arc<Signals>,
}

impl Readers {
    /// Fails the store through `signals` when a read shows that its files are damaged or its disk is.
    pub fn open(
        dir: &Path,
        count: usize,
        cache_bytes: usize,
        signals: Arc<Signals>,
    ) -> std::result::Result<Self, OpenError> {
        let connections = (0..count)
            .map(|_| open::reader(dir, cache_bytes / count))
            .collect::<std::result::Result<Vec<_>, _>>()?;
        Ok(Self {
            idle: Arc::new(Mutex::new(connections)),
            permits: Arc::new(Semaphore::new(count)),
            signals,
        })
    }

    /// Runs `read` in a snapshot of its own.
    ///
    /// # Errors
    /// [`Error::DataLoss`] if a body does not match its checksum, [`Error::StoreUnavailable`] for what else SQLite
    /// may say.
    pub async fn call<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Connection) -> Result<T> + Send + 'static,
    ) -> std::result::Result<T, Error> {
        let closed = || Error::StoreUnavailable("it is closed".to_owned());
        let permit = self.permits.clone().acquire_owned().await.map_err(|_| closed())?;
        let (idle, signals) = (self.idle.clone(), self.signals.clone());
        let blocking = tokio::task::spawn_blocking(move || {
            let mut connection = idle.lock().pop().ok_or_else(closed)?;
            let result = connection
                .transaction_with_behavior(TransactionBehavior::Deferred)
                .and_then(|snapshot| read(&snapshot));
            idle.lock().push(connection);
            drop(permit);
            rows::intact(result).map_err(|error| {
                let why = format!("SQLite: {error}");
                if is_damage(&error) {
                    signals.fail(&why);
                }
                Error::StoreUnavailable(why)
            })?
        });
        blocking.await.map_err(|panic| Error::Internal(format!("a read panicked: {panic}")))?
    }

    /// Waits for the reads under way, and closes the connections.
    pub async fn close(&self, count: usize) {
        let all = self.permits.acquire_many(u32::try_from(count).unwrap_or(u32::MAX)).await;
        self.permits.close();
        drop(all);
        self.idle.lock().clear();
    }
}

/// Whether it is the files or the disk that is broken, and not only this read.
fn is_damage(error: &rusqlite::Error) -> bool {
    use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase, SystemIoFailure};
    matches!(error.sqlite_error_code(), Some(DatabaseCorrupt | NotADatabase | SystemIoFailure))
}
