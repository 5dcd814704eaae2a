use std::time::Duration;

use super::{State, Timestamp};

/// Why a call was not carried out. Each variant is a reason of the contract's error table; the server turns it
/// into a status in one place. A job that fails is not an `Error`: see [`JobError`](super::JobError).
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Error {
    #[error("{field}: {why}")]
    Invalid { field: String, why: String },
    #[error("{field}: {why}; send the document as `text` with content_type application/json instead")]
    JsonUnsafe { field: String, why: String },
    #[error("the cursor is not one of this service: pass it on exactly as it was received")]
    BadCursor { field: String },
    #[error(
        "this server knows of nothing yet that came after the cursor: the database that it has reached is behind, or the \
         cursor is not one of this service; try again, perhaps at another server"
    )]
    ReplicaBehind,
    #[error(
        "the page token is not one of this list: pass it on exactly as it was received, with the same filter"
    )]
    BadPageToken,
    #[error("{field}: {size} is more than the {limit} that are allowed")]
    TooLarge { field: String, limit: u64, size: u64 },
    #[error("no job {job_id:?}: it never was, was deleted, or its retention is over")]
    JobNotFound { job_id: String },
    #[error(
        "request_id {request_id:?} was used for another spec, which made job {job_id}: use a new request_id"
    )]
    RequestIdReused { request_id: String, job_id: String },
    #[error("job_id {job_id:?} is taken by a job with another spec: use another job_id")]
    JobIdInUse { job_id: String },
    #[error("unfinished job {job_id} holds unique_key {unique_key:?}: wait for it, or cancel it")]
    UniqueKeyInUse { unique_key: String, job_id: String },
    #[error(
        "job {job_id} of request_id {request_id:?} was removed since: use a new request_id to run it again"
    )]
    JobDeleted { request_id: String, job_id: String },
    #[error("job {job_id} is {state}; this needs {wanted}")]
    JobState { job_id: String, state: State, wanted: &'static str },
    #[error("the lease is over: the attempt was given up, or another one has begun; drop its result")]
    LeaseLost,
    #[error("job {job_id} has changed since: its etag is {etag} now; read it again and decide anew")]
    EtagMismatch { job_id: String, etag: String },
    #[error(
        "{what} is full: {limit} is the limit; try again later, or raise it in the server's configuration"
    )]
    QueueFull { what: String, limit: u64 },
    #[error("{limit} open {what} are the limit of this server: close some, or try again later")]
    WatchLimit { what: &'static str, limit: u64 },
    #[error(
        "the stream took nothing for {0:?} while data waited: read faster, or watch less; resume with the last cursor"
    )]
    WatchStalled(Duration),
    #[error(
        "the store has no room for new jobs: {free} bytes are free and {reserve} are kept back; make room, or try again later"
    )]
    StoreFull { free: u64, reserve: u64 },
    #[error("outcomes after this cursor are no longer kept: list again, then watch from the list's cursor")]
    CursorExpired { oldest: Timestamp },
    #[error(
        "the store was reset or restored since this cursor, or has failed over without its last outcomes: list again, then watch from the list's cursor"
    )]
    LogReplaced { oldest: Timestamp },
    #[error(
        "the store cannot be reached: {0}; whether the call took effect is unknown, a repeat with the same request_id is safe"
    )]
    StoreUnavailable(String),
    #[error("the server is stopping and takes no new work: try again, another instance may answer")]
    Draining,
    #[error(
        "the stream has reached its age, nothing was heard on it for too long, or the server is stopping: come back with the last cursor, or with the items that have no verdict"
    )]
    StreamRotated,
    #[error("the deadline of the call has passed")]
    DeadlineExceeded,
    #[error(
        "pages of {origin} may not call: if they should, add it to web.allowed_origins in the server's settings"
    )]
    OriginNotAllowed { origin: String },
    #[error("{0}")]
    NotSupported(String),
    #[error(
        "{0} does not match its checksum and is not handed out: restore a backup (`jobwire verify DIR` lists all that is wrong with \
         an embedded store)"
    )]
    DataLoss(String),
    /// What is wrong with one item of a batch.
    #[error("requests[{index}]: {error}")]
    InBatch { index: usize, error: Box<Error> },
    /// A bug. The text goes to the log only.
    #[error("{0}")]
    Internal(String),
}

impl Error {
    /// The same for an item of a batch, if it is about that item.
    pub fn in_batch(self, index: usize) -> Self {
        match self {
            Self::RequestIdReused { .. }
            | Self::JobIdInUse { .. }
            | Self::UniqueKeyInUse { .. }
            | Self::JobDeleted { .. } => Self::InBatch { index, error: Box::new(self) },
            other => other,
        }
    }

    /// The same, where its field is part of a larger message: `path` leads to that part, as `spec.` does.
    pub fn within(mut self, path: &str) -> Self {
        if let Self::Invalid { field, .. }
        | Self::JsonUnsafe { field, .. }
        | Self::BadCursor { field }
        | Self::TooLarge { field, .. } = &mut self
        {
            field.insert_str(0, path);
        }
        self
    }

    /// A field that is not as it must be.
    pub fn invalid(field: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Invalid { field: field.into(), why: why.into() }
    }
}
