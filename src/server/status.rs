//! The one place where an [`Error`] becomes a gRPC status: code, reason, details. Reasons and metadata keys are part of
//! the contract, texts are not.

use std::{collections::HashMap, time::Duration};

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};
use uuid::Uuid;

use crate::{
    job::{Error, cut},
    proto::Rejection,
};

/// Says whose the reasons are.
pub const DOMAIN: &str = "jobwire.v1";

/// Bytes of a status message: trailers are small.
const MAX_MESSAGE: usize = 1 << 10;

/// Bytes of one value in the details: they may repeat what the caller sent.
const MAX_VALUE: usize = 256;

/// What an error is on the wire.
struct Told {
    code: Code,
    reason: &'static str,
    metadata: Vec<(&'static str, String)>,
    detail: Detail,
}

enum Detail {
    None,
    Field(String),
    Job(String),
    Precondition(String),
    Quota(String),
    Retry(Duration),
}

const JOB: &str = "job";

fn told(error: &Error) -> Told {
    use Code::*;
    let plain = |code, reason| Told { code, reason, metadata: Vec::new(), detail: Detail::None };
    let field = |reason, field: &String| Told {
        detail: Detail::Field(field.clone()),
        ..plain(InvalidArgument, reason)
    };
    let exists = |reason, job_id: &String| Told {
        metadata: vec![("job_id", job_id.clone())],
        detail: Detail::Job(job_id.clone()),
        ..plain(AlreadyExists, reason)
    };
    let unavailable = |reason, seconds| Told {
        detail: Detail::Retry(Duration::from_secs(seconds)),
        ..plain(Unavailable, reason)
    };
    match error {
        Error::Invalid { field: path, .. } => field("INVALID_FIELD", path),
        Error::JsonUnsafe { field: path, .. } => field("JSON_UNSAFE", path),
        Error::BadCursor { field: path } => field("BAD_CURSOR", path),
        Error::BadPageToken => field("BAD_PAGE_TOKEN", &"page_token".to_owned()),
        Error::TooLarge { field: path, limit, size } => Told {
            metadata: vec![("limit", limit.to_string()), ("size", size.to_string())],
            ..field("TOO_LARGE", path)
        },
        Error::JobNotFound { job_id } => Told {
            metadata: vec![("job_id", job_id.clone())],
            detail: Detail::Job(job_id.clone()),
            ..plain(NotFound, "JOB_NOT_FOUND")
        },
        Error::RequestIdReused { job_id, .. } => exists("REQUEST_ID_REUSED", job_id),
        Error::JobIdInUse { job_id } => exists("JOB_ID_IN_USE", job_id),
        Error::UniqueKeyInUse { job_id, .. } => exists("UNIQUE_KEY_IN_USE", job_id),
        Error::JobDeleted { job_id, .. } => exists("JOB_DELETED", job_id),
        Error::JobState { job_id, state, .. } => Told {
            metadata: vec![("job_id", job_id.clone()), ("state", format!("STATE_{state}"))],
            detail: Detail::Precondition(job_id.clone()),
            ..plain(FailedPrecondition, "JOB_STATE")
        },
        Error::LeaseLost => {
            Told { detail: Detail::Precondition(String::new()), ..plain(FailedPrecondition, "LEASE_LOST") }
        }
        Error::EtagMismatch { job_id, etag } => Told {
            metadata: vec![("job_id", job_id.clone()), ("etag", etag.clone())],
            ..plain(Aborted, "ETAG_MISMATCH")
        },
        Error::QueueFull { what, limit } => Told {
            metadata: vec![("limit", limit.to_string())],
            detail: Detail::Quota(what.clone()),
            ..plain(ResourceExhausted, "QUEUE_FULL")
        },
        Error::WatchLimit { what, limit } => Told {
            metadata: vec![("limit", limit.to_string())],
            detail: Detail::Quota((*what).to_owned()),
            ..plain(ResourceExhausted, "WATCH_LIMIT")
        },
        Error::WatchStalled(_) => {
            Told { detail: Detail::Quota("stream".into()), ..plain(ResourceExhausted, "WATCH_STALLED") }
        }
        Error::StoreFull { free, reserve } => Told {
            metadata: vec![("free_bytes", free.to_string()), ("reserve_bytes", reserve.to_string())],
            detail: Detail::Quota("disk".into()),
            ..plain(ResourceExhausted, "STORE_FULL")
        },
        Error::CursorExpired { oldest } => {
            Told { metadata: vec![("oldest_time", rfc3339(oldest.0))], ..plain(OutOfRange, "CURSOR_EXPIRED") }
        }
        Error::LogReplaced { oldest } => {
            Told { metadata: vec![("oldest_time", rfc3339(oldest.0))], ..plain(OutOfRange, "LOG_REPLACED") }
        }
        Error::StoreUnavailable(_) => unavailable("STORE_UNAVAILABLE", 1),
        Error::ReplicaBehind => unavailable("REPLICA_BEHIND", 1),
        Error::Draining => unavailable("DRAINING", 1),
        Error::StreamRotated => unavailable("STREAM_ROTATED", 0),
        Error::InBatch { index, error } => {
            let mut told = told(error);
            told.metadata.push(("index", index.to_string()));
            told
        }
        Error::DeadlineExceeded => plain(DeadlineExceeded, "DEADLINE_EXCEEDED"),
        Error::OriginNotAllowed { .. } => plain(PermissionDenied, "ORIGIN_NOT_ALLOWED"),
        Error::NotSupported(_) => plain(Unimplemented, "NOT_SUPPORTED"),
        Error::DataLoss(_) => plain(Code::DataLoss, "DATA_LOSS"),
        Error::Internal(_) => plain(Code::Internal, "INTERNAL"),
    }
}

/// The status that a call ends with.
pub fn status(error: Error) -> Status {
    let Told { code, reason, metadata, detail } = told(&error);
    let mut details = ErrorDetails::new();
    let metadata: HashMap<String, String> =
        metadata.into_iter().map(|(key, value)| (key.to_owned(), cut(&value, MAX_VALUE))).collect();
    details.set_error_info(reason, DOMAIN, metadata);
    let message = match &error {
        Error::Internal(what) => internal(what, &mut details),
        other => cut(&other.to_string(), MAX_MESSAGE),
    };
    match detail {
        Detail::None => {}
        Detail::Field(path) => {
            details.add_bad_request_violation(cut(&path, MAX_VALUE), message.clone());
        }
        Detail::Job(id) => {
            details.set_resource_info(JOB, cut(&id, MAX_VALUE), "", message.clone());
        }
        Detail::Precondition(id) => {
            details.add_precondition_failure_violation(reason, cut(&id, MAX_VALUE), message.clone());
        }
        Detail::Quota(what) => {
            details.add_quota_failure_violation(cut(&what, MAX_VALUE), message.clone());
            details.set_retry_info(Some(retry_delay(&error)));
        }
        Detail::Retry(delay) => {
            details.set_retry_info(Some(delay));
        }
    }
    Status::with_error_details(code, message, details)
}

/// A refusal that the library made before the call was reached, in the contract's terms; None if there is nothing to
/// add.
pub fn of_library(refusal: &Status) -> Option<Status> {
    let field = || "message".to_owned();
    let limit = super::MAX_MESSAGE as u64;
    match refusal.code() {
        // What came is no message.
        Code::Internal => Some(status(Error::invalid(field(), refusal.message()))),
        Code::OutOfRange => {
            // Its text names the size first.
            let numbers = refusal.message().split(|c: char| !c.is_ascii_digit());
            let size = numbers.filter_map(|number| number.parse().ok()).next().unwrap_or(limit);
            Some(status(Error::TooLarge { field: field(), limit, size }))
        }
        // One that inflates is given up at the limit: how large it is nobody knows. Refusals of our own have details.
        Code::ResourceExhausted if refusal.details().is_empty() => {
            let size = limit + 1;
            Some(status(Error::TooLarge { field: field(), limit, size }))
        }
        Code::Unimplemented => {
            let message = match refusal.message() {
                "" => "there is no such call: reflection and GetServerInfo tell what there is".into(),
                why if refusal.metadata().contains_key("grpc-accept-encoding") => {
                    format!("{why}: send it uncompressed; http2.accept_gzip = true lets the server take gzip")
                }
                why => why.to_owned(),
            };
            Some(status(Error::NotSupported(message)))
        }
        _ => None,
    }
}

/// A bug. The caller gets a name to ask for, the log the rest.
fn internal(what: &str, details: &mut ErrorDetails) -> String {
    let id = Uuid::new_v4().simple().to_string();
    tracing::error!(log_id = id, what, "an internal error");
    details.set_request_info(id.clone(), "");
    format!("an internal error; the server's log has more under log_id {id}")
}

/// When to come again after a refusal for want of room.
fn retry_delay(error: &Error) -> Duration {
    match error {
        Error::StoreFull { .. } => Duration::from_secs(30),
        Error::WatchStalled(_) => Duration::ZERO,
        _ => Duration::from_secs(1),
    }
}

/// The same inside a stream of verdicts.
pub fn rejection(error: &Error) -> Rejection {
    let told = told(error);
    let retry = match &told.detail {
        Detail::Quota(_) => Some(retry_delay(error)),
        Detail::Retry(delay) => Some(*delay),
        _ => None,
    };
    let field = match told.detail {
        Detail::Field(path) => cut(&path, MAX_VALUE),
        _ => String::new(),
    };
    let message = match error {
        Error::Internal(what) => internal(what, &mut ErrorDetails::new()),
        other => cut(&other.to_string(), MAX_MESSAGE),
    };
    Rejection {
        code: told.code as i32,
        reason: told.reason.to_owned(),
        message,
        field,
        retry_delay: retry.and_then(|delay| delay.try_into().ok()),
    }
}

fn rfc3339(millis: i64) -> String {
    prost_types::Timestamp {
        seconds: millis.div_euclid(1000),
        nanos: (millis.rem_euclid(1000) * 1_000_000) as i32,
    }
    .to_string()
}
