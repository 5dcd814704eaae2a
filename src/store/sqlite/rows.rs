//! Between rows and the vocabulary: the only place that knows how things are written down.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use rusqlite::{
    Row, RowIndex, ToSql,
    types::{FromSqlError, ToSqlOutput, Type, Value, ValueRef},
};
use uuid::Uuid;

use crate::{
    job::{
        Error, FinalState, JobError, JobId, JobSpec, Kind, Lease, Live, LiveState, Payload, Progress,
        QueueName, State, Timestamp, WorkerId,
    },
    store::written::{self, Damaged},
};

pub type Result<T> = rusqlite::Result<T>;

/// What SQLite holds is not what we wrote.
pub fn damaged(what: impl Into<String>) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(0, Type::Null, FromSqlError::Other(what.into().into()).into())
}

/// Keeps what is damaged apart from what else SQLite may say: it is refused by itself, and does not fail the store.
pub fn intact<T>(read: Result<T>) -> Result<std::result::Result<T, Error>> {
    match read {
        Ok(value) => Ok(Ok(value)),
        Err(rusqlite::Error::FromSqlConversionFailure(_, _, what)) => {
            Ok(Err(Error::DataLoss(what.to_string())))
        }
        // A text that is none, or another type of value than was written.
        Err(
            other @ (rusqlite::Error::Utf8Error(..)
            | rusqlite::Error::InvalidColumnType(..)
            | rusqlite::Error::IntegralValueOutOfRange(..)),
        ) => Ok(Err(Error::DataLoss(other.to_string()))),
        Err(other) => Err(other),
    }
}

impl ToSql for JobId {
    fn to_sql(&self) -> Result<ToSqlOutput<'_>> {
        Ok(match uuid_of(self.as_str()) {
            Some(uuid) => ToSqlOutput::Owned(Value::Blob(uuid.into_bytes().to_vec())),
            None => ToSqlOutput::Borrowed(ValueRef::Text(self.as_str().as_bytes())),
        })
    }
}

/// Only the usual form in lower case: any other must come back as it was given.
fn uuid_of(text: &str) -> Option<Uuid> {
    let uuid = Uuid::try_parse(text).ok()?;
    (uuid.as_hyphenated().encode_lower(&mut Uuid::encode_buffer()) == text).then_some(uuid)
}

pub fn job_id(value: ValueRef<'_>) -> Result<JobId> {
    let text = match value {
        ValueRef::Blob(bytes) => Uuid::from_slice(bytes).map_err(|_| damaged("a job id"))?.to_string(),
        other => other.as_str()?.to_owned(),
    };
    text.parse().map_err(|_| damaged("a job id"))
}

impl ToSql for Timestamp {
    fn to_sql(&self) -> Result<ToSqlOutput<'_>> {
        Ok(self.0.into())
    }
}

impl ToSql for WorkerId {
    fn to_sql(&self) -> Result<ToSqlOutput<'_>> {
        Ok(self.as_str().into())
    }
}

pub fn time(row: &Row<'_>, column: impl RowIndex) -> Result<Option<Timestamp>> {
    Ok(row.get::<_, Option<i64>>(column)?.map(Timestamp))
}

pub fn worker(row: &Row<'_>, column: impl RowIndex) -> Result<Option<WorkerId>> {
    let text: Option<String> = row.get(column)?;
    text.map(|text| text.parse().map_err(|_| damaged("a worker id"))).transpose()
}

pub fn names(row: &Row<'_>) -> Result<(QueueName, Kind)> {
    let queue = row.get_ref("queue")?.as_str()?.parse().map_err(|_| damaged("a queue name"))?;
    let kind = row.get_ref("kind")?.as_str()?.parse().map_err(|_| damaged("a kind"))?;
    Ok((queue, kind))
}

/// The row of an unfinished job.
#[derive(Clone, Debug, PartialEq)]
pub struct LiveRow {
    pub num: i64,
    pub line: i64,
    /// Size of the payload.
    pub bytes: i64,
    /// None: the queue's.
    pub retention: Option<Duration>,
    pub live: Live,
}

pub const LIVE_COLUMNS: &str = "num, line, state, run, attempt, version, priority, due, start_by, end_by, bytes, \
     retention, fence, worker, started, until, cancel_reason";

/// A row of [`LIVE_COLUMNS`]. By their places: it is read for every attempt, and names are looked up one by one.
pub fn live_row(row: &Row<'_>) -> Result<LiveRow> {
    let lease = match (worker(row, 13)?, time(row, 14)?, time(row, 15)?) {
        (Some(worker), Some(started), Some(until)) => Some(Lease { worker, started, until }),
        _ => None,
    };
    let State::Live(state) = state(row.get(2)?)? else { return Err(damaged("a state")) };
    if (state == LiveState::Running) != lease.is_some() {
        return Err(damaged("a lease"));
    }
    Ok(LiveRow {
        num: row.get(0)?,
        line: row.get(1)?,
        bytes: row.get(10)?,
        retention: row.get::<_, Option<i64>>(11)?.map(millis),
        live: Live {
            state,
            run: row.get(3)?,
            attempt: row.get(4)?,
            version: row.get(5)?,
            priority: row.get(6)?,
            due: Timestamp(row.get(7)?),
            start_by: time(row, 8)?,
            end_by: time(row, 9)?,
            fence: row.get(12)?,
            lease,
            cancel_reason: row.get(16)?,
        },
    })
}

pub fn state(number: i32) -> Result<State> {
    State::from_number(number).ok_or_else(|| damaged("a state"))
}

pub fn final_state(number: i32) -> Result<FinalState> {
    match state(number)? {
        State::Final(state) => Ok(state),
        State::Live(_) => Err(damaged("a final state")),
    }
}

fn millis(number: i64) -> Duration {
    Duration::from_millis(number.unsigned_abs())
}

pub fn as_millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// The payload of a row of `job`, checked against its checksum.
pub fn payload(row: &Row<'_>) -> Result<Bytes> {
    let bytes = row.get_ref("payload")?.as_blob()?;
    if Some(crc32fast::hash(bytes)) != row.get("crc")? {
        return Err(damaged("the payload of a job"));
    }
    Ok(Bytes::copy_from_slice(bytes))
}

/// As [`written::spec`].
pub fn spec(
    queue: QueueName,
    kind: Kind,
    priority: i32,
    payload: Payload,
    options: Option<&str>,
) -> Result<(Arc<JobSpec>, BTreeMap<String, String>)> {
    Ok(written::spec(queue, kind, priority, payload, options)?)
}

/// As [`written::error`].
pub fn error(text: &str) -> Result<JobError> {
    Ok(written::error(text)?)
}

impl From<Damaged> for rusqlite::Error {
    fn from(Damaged(what): Damaged) -> Self {
        damaged(what)
    }
}

pub fn progress(row: &Row<'_>) -> Result<Progress> {
    let content_type: Option<String> = row.get("content_type")?;
    let details = match content_type {
        Some(content_type) => {
            Some(Payload::new(content_type, Bytes::copy_from_slice(row.get_ref("details")?.as_blob()?)))
        }
        None => None,
    };
    Ok(Progress {
        fraction: row.get("fraction")?,
        note: row.get("note")?,
        details,
        update_time: Timestamp(row.get("at")?),
    })
}
