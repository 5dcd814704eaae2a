//! From the embedded store to PostgreSQL: all that is kept, under the numbers that cursors, etags and leases refer to. So
//! these stay valid.

use std::{error::Error, path::Path};

use bytes::BytesMut;
use rusqlite::types::Value;
use tokio_postgres::types::{IsNull, Kind, ToSql, Type, to_sql_checked};

use super::{
    LogId,
    postgres::{OpenError, Target},
    sqlite::{MaintenanceError, Stopped, VerifyReport},
};
use crate::config::StoreUrl;

/// The columns that all rows of unfinished jobs have, in both stores.
const LIVE: &str = "num, line, state, run, attempt, version, priority, due, rank, wake, start_by, end_by, bytes, \
     retention, fence";

/// Whether a job's id is a UUID of version 7, which servers draw.
const IS_DRAWN: &str = "(typeof(id) <> 'text' AND hex(substr(id, 7, 1)) LIKE '7%')";
const IF_DRAWN: &str = const_format::concatcp!("CASE WHEN ", IS_DRAWN, " THEN id END AS job_id");

/// Each table of PostgreSQL with its columns, and the query for them in SQLite where it is not of the same names.
const TABLES: [(&str, &str, Option<&str>); 11] = [
    (
        "line",
        "id, queue, kind, scheduled, queued, running, backing_off, succeeded, failed, cancelled, expired, bytes",
        None,
    ),
    (
        "job",
        "first, ids, line, priority, submitted, content_type, payloads, sizes, options, low, high",
        // A block of its own for each.
        Some(const_format::concatcp!(
            "SELECT num, id AS job_id, line, priority, submitted, content_type, payload, length(payload), options, ",
            IF_DRAWN,
            ", ",
            IF_DRAWN,
            " FROM job"
        )),
    ),
    (
        "own",
        "id, num",
        Some(const_format::concatcp!("SELECT id AS job_id, num FROM job WHERE NOT ", IS_DRAWN)),
    ),
    ("ready", LIVE, Some(const_format::concatcp!("SELECT ", LIVE, " FROM live WHERE state = 2"))),
    ("waiting", LIVE, Some(const_format::concatcp!("SELECT ", LIVE, " FROM live WHERE state IN (1, 4)"))),
    (
        "lease",
        const_format::concatcp!(LIVE, ", worker, started, until, cancel_reason, replica"),
        // Granted by the process that is gone: see `import.sql`.
        Some(const_format::concatcp!(
            "SELECT ",
            LIVE,
            ", worker, started, until, cancel_reason, 0 FROM live WHERE state = 3 UNION ALL SELECT ",
            LIVE,
            ", worker, started, until, cancel_reason, 0 FROM seat"
        )),
    ),
    (
        "uniq",
        "queue, key, num",
        Some("SELECT unique_queue, unique_key, num FROM live WHERE unique_key IS NOT NULL"),
    ),
    (
        "done",
        "seq, block, nums, run, attempt, version, state, line, fence, worker, started, finished, keep_until, error, \
         content_type, outputs, sizes",
        Some(
            "SELECT seq, num, num, run, attempt, version, state, job.line, fence, worker, started, finished, keep_until, error, \
             outcome.content_type, output, coalesce(length(output), 0) FROM outcome JOIN job USING (num)",
        ),
    ),
    ("failure", "num, run, attempt, worker, started, finished, error", None),
    ("progress", "num, at, fraction, note, content_type, details", None),
    ("request", "caller, request_id, num, job_id, asked, own_id, until", None),
];

/// What a store is called, and where its numbers have come to: the next ones are beyond.
#[derive(Clone, Debug)]
pub struct Origin {
    /// None: a backup, which begins a log of its own.
    pub log_id: Option<LogId>,
    /// None: it was never served.
    pub lease_key: Option<[u8; 32]>,
    pub feed_start: i64,
    /// Milliseconds.
    pub feed_cut: i64,
    pub last_num: i64,
    pub last_seq: i64,
}

/// Why a store was not taken over.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    #[error(transparent)]
    Source(#[from] MaintenanceError),
    #[error(transparent)]
    Target(#[from] OpenError),
    #[error(
        "the connection was lost at the very end ({0}), and nobody knows whether the store was taken over: run this again, \
         which finds out"
    )]
    Unknown(OpenError),
}

/// Takes over the store in `from`, which no server may have open, into an empty database. `tell` hears how many rows of how
/// many are there. Once this is done, `from` can no longer be served; its database is as it was.
///
/// # Errors
/// The source is in use, damaged or none; the target is not empty, or cannot be used. A target that was not finished is
/// served by nobody. Run again, this finds out what has become of the first time.
pub async fn migrate(
    from: &Path,
    to: &StoreUrl,
    mut tell: impl FnMut(u64, u64),
) -> Result<VerifyReport, MigrateError> {
    let stopped = Stopped::open(from)?;
    let queries = TABLES.map(|(table, columns, query)| {
        (table, columns, query.map_or_else(|| format!("SELECT {columns} FROM {table}"), str::to_owned))
    });
    let mut all = 0;
    for (.., query) in &queries {
        all += stopped.count(query)?;
    }
    let origin = stopped.origin()?;
    let target = Target::open(to.reveal()).await?;
    if let Some(before) = stopped.moved_to() {
        if target.holds(&origin) {
            return Ok(stopped.report().clone());
        }
        if before != to.to_string() || !target.was_broken_off() {
            return Err(stopped.refusal(before).into());
        }
    }
    let import = target.begin(&origin).await?;
    let mut done = 0;
    for (table, columns, query) in &queries {
        let mut copy = Box::pin(import.copy(table, columns).await?);
        let copied = stopped
            .each(query, async |values| {
                let cells: Vec<Cell> = values.into_iter().map(Cell).collect();
                copy.as_mut().write_raw(&cells).await.map_err(OpenError::from)?;
                done += 1;
                tell(done, all);
                Ok::<_, MigrateError>(())
            })
            .await;
        copied?;
        copy.as_mut().finish().await.map_err(OpenError::from)?;
    }
    import.settle(&origin).await?;
    // First, so that there is no moment at which both could be served.
    stopped.mark(&to.to_string())?;
    match import.commit().await {
        Ok(()) => Ok(stopped.report().clone()),
        Err(error) if error.is_refusal() => {
            stopped.unmark()?;
            Err(error.into())
        }
        Err(error) => Err(MigrateError::Unknown(error)),
    }
}

/// A value of SQLite, on its way into a column of PostgreSQL: if that is of arrays, as the only one of its own.
#[derive(Debug)]
struct Cell(Value);

impl ToSql for Cell {
    fn to_sql(&self, ty: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        if matches!(ty.kind(), Kind::Array(_)) {
            return [self].as_slice().to_sql(ty, out);
        }
        match (&self.0, ty) {
            (Value::Null, _) => Ok(IsNull::Yes),
            (Value::Integer(number), &Type::INT4) => i32::try_from(*number)?.to_sql(ty, out),
            (Value::Integer(number), &Type::INT8) => number.to_sql(ty, out),
            (Value::Real(number), &Type::FLOAT8) => number.to_sql(ty, out),
            (Value::Text(text), &Type::TEXT) => text.to_sql(ty, out),
            (Value::Blob(bytes), &Type::BYTEA) => bytes.to_sql(ty, out),
            (value, ty) => Err(format!("{:?} does not fit into {ty}", value.data_type()).into()),
        }
    }

    fn accepts(ty: &Type) -> bool {
        let ty = match ty.kind() {
            Kind::Array(member) => member,
            _ => ty,
        };
        [Type::INT4, Type::INT8, Type::FLOAT8, Type::TEXT, Type::BYTEA].contains(ty)
    }

    to_sql_checked!();
}
