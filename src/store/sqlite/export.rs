//! A store that nobody serves, as rows for another store to take over.

use std::{
    fs::{self, File, OpenOptions},
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use rusqlite::{
    Connection,
    types::{Value, ValueRef},
};

use super::{
    maintenance::{MaintenanceError, VerifyReport, io, verify},
    open::{self, DATABASE, MOVED, OpenError},
    rows,
};
use crate::store::{LogId, migrate::Origin};

/// Bytes of SQLite's page cache.
const CACHE: usize = 8 << 20;

/// A store that is sound, and that nobody else can open for as long as this lives.
#[derive(Debug)]
pub struct Stopped {
    dir: PathBuf,
    connection: Connection,
    report: VerifyReport,
    moved_to: Option<String>,
    _lock: File,
}

impl Stopped {
    /// Locks the store in `dir`, and reads all of it once as [`verify`] does.
    ///
    /// # Errors
    /// There is none, it is in use, or it is damaged.
    pub fn open(dir: &Path) -> Result<Self, MaintenanceError> {
        if !dir.join(DATABASE).exists() {
            return Err(OpenError::Missing(dir.to_owned()).into());
        }
        let lock = open::lock(dir)?;
        let moved_to = open::moved_to(dir)?;
        let report = verify(dir)?;
        if let Some(problem) = report.problems.first() {
            return Err(MaintenanceError::Damaged { dir: dir.to_owned(), problem: problem.clone() });
        }
        let connection = open::reader(dir, CACHE)?;
        Ok(Self { dir: dir.to_owned(), connection, report, moved_to, _lock: lock })
    }

    /// What was found in it.
    pub fn report(&self) -> &VerifyReport {
        &self.report
    }

    /// Where it was taken over to before, or was about to be.
    pub fn moved_to(&self) -> Option<&str> {
        self.moved_to.as_deref()
    }

    /// That somebody else serves its jobs, or may.
    pub fn refusal(&self, to: &str) -> MaintenanceError {
        OpenError::Moved { dir: self.dir.clone(), to: to.to_owned() }.into()
    }

    /// What it is called, and where its numbers have come to.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn origin(&self) -> Result<Origin, MaintenanceError> {
        let meta = |key| -> Result<Option<Value>, MaintenanceError> {
            let sql = "SELECT max(value) FROM meta WHERE key = ?1";
            Ok(self.connection.query_row(sql, [key], |row| row.get(0))?)
        };
        let number = |key| match meta(key)? {
            Some(Value::Integer(number)) => Ok(number),
            _ => Err(MaintenanceError::from(rows::damaged(key))),
        };
        let newest = |sql| -> Result<i64, MaintenanceError> {
            Ok(self.connection.query_row(sql, [], |row| row.get(0))?)
        };
        Ok(Origin {
            log_id: match meta("log_id")? {
                Some(Value::Integer(id)) => Some(LogId(u64::from_ne_bytes(id.to_ne_bytes()))),
                _ => None,
            },
            lease_key: match meta("lease_key")? {
                Some(Value::Blob(key)) => key.try_into().ok(),
                _ => None,
            },
            feed_start: number("feed_start")?,
            feed_cut: number("feed_cut")?,
            last_num: number("last_num")?.max(newest("SELECT coalesce(max(num), 0) FROM job")?),
            last_seq: number("last_seq")?.max(newest("SELECT coalesce(max(seq), 0) FROM done")?),
        })
    }

    /// How many rows a query has.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn count(&self, query: &str) -> Result<u64, MaintenanceError> {
        let count = format!("SELECT count(*) FROM ({query})");
        Ok(self.connection.query_row(&count, [], |row| row.get(0))?)
    }

    /// Hands over the rows of a query one by one. Columns `job_id` come as text.
    ///
    /// # Errors
    /// It cannot be read, or as `take` says.
    pub async fn each<E: From<MaintenanceError>>(
        &self,
        query: &str,
        mut take: impl AsyncFnMut(Vec<Value>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut statement = self.connection.prepare(query).map_err(MaintenanceError::from)?;
        let is_id: Vec<bool> = statement.column_names().map(|name| name == "job_id").collect();
        let mut found = statement.query([]).map_err(MaintenanceError::from)?;
        while let Some(row) = found.next().map_err(MaintenanceError::from)? {
            let value = |at| match row.get_ref(at)? {
                ValueRef::Null => Ok(Value::Null),
                written if is_id[at] => Ok(Value::Text(rows::job_id(written)?.to_string())),
                value => Ok(Value::try_from(value)?),
            };
            let values: rows::Result<Vec<Value>> = (0..is_id.len()).map(value).collect();
            take(values.map_err(MaintenanceError::from)?).await?;
        }
        Ok(())
    }

    /// Keeps it from being served: a file in its directory says where its jobs are now.
    ///
    /// # Errors
    /// The disk says no.
    pub fn mark(&self, moved_to: &str) -> Result<(), MaintenanceError> {
        let path = self.dir.join(MOVED);
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(io(&path))?;
        let written = file.write_all(moved_to.as_bytes()).and_then(|()| file.sync_all());
        // There is no room for more than its name, say.
        written.inspect_err(|_| drop(fs::remove_file(&path))).map_err(io(&path))?;
        open::sync_directory(&self.dir).map_err(io(&self.dir))
    }

    /// Takes [`Stopped::mark`] back.
    ///
    /// # Errors
    /// The disk says no.
    pub fn unmark(&self) -> Result<(), MaintenanceError> {
        let path = self.dir.join(MOVED);
        fs::remove_file(&path).map_err(io(&path))
    }
}
