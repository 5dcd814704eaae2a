//! What a call can end with instead of a reply.

use std::{collections::BTreeMap, fmt, time::Duration};

use tonic::{Code, Status, TimeoutExpired};
use tonic_types::StatusExt as _;

/// The domain of the errors that jobwire itself gives. Others come from libraries and proxies.
const DOMAIN: &str = "jobwire.v1";

/// Why a call, or a stream, failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address is not one of a server.
    #[error("`{address}` is not the address of a server: {why}")]
    Address {
        /// As it was given.
        address: String,
        /// What is wrong with it.
        why: String,
    },
    /// Nobody answers there.
    #[error("no jobwire server at {address}: {why}")]
    Unreachable {
        /// `http://host:port`.
        address: String,
        /// What the connection failed with.
        why: String,
    },
    /// The call ended with a gRPC status.
    #[error("{0}")]
    Status(Box<Failure>),
    /// A stream brought nothing, not even a checkpoint, for this long.
    #[error("the server has been silent for {} s: the connection is lost, or the server hangs", .0.as_secs())]
    Silent(Duration),
    /// A stream ended before its request was fulfilled.
    #[error("the server ended the stream early")]
    Ended,
    /// A reply lacks what the contract promises.
    #[error("the reply has no `{0}`: is this a jobwire server of this version?")]
    Incomplete(&'static str),
}

/// A gRPC status with the details that jobwire adds to it.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The status code. Libraries and proxies use the same codes: tell causes apart by `reason`.
    pub code: Code,
    /// For people; not part of the contract.
    pub message: String,
    /// The reason of the contract, such as `JOB_NOT_FOUND`. None if the error is not jobwire's own.
    pub reason: Option<String>,
    /// What belongs to the reason, such as a limit that was exceeded.
    pub metadata: BTreeMap<String, String>,
    /// Fields of the request that were refused: path and why.
    pub fields: Vec<(String, String)>,
    /// When the server wants to be asked again.
    pub retry_delay: Option<Duration>,
}

impl Error {
    /// The status code, if a status ended the call.
    pub fn code(&self) -> Option<Code> {
        self.failure().map(|failure| failure.code)
    }

    /// The reason of the contract, such as `JOB_NOT_FOUND`. None if the error is not jobwire's own.
    pub fn reason(&self) -> Option<&str> {
        self.failure().and_then(|failure| failure.reason.as_deref())
    }

    /// One value that belongs to the reason.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.failure().and_then(|failure| failure.metadata.get(key)).map(String::as_str)
    }

    /// When the server wants to be asked again.
    pub fn retry_delay(&self) -> Option<Duration> {
        self.failure().and_then(|failure| failure.retry_delay)
    }

    /// Nobody answered, so nothing is known of the server.
    pub fn is_unreachable(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Status(failure) => failure.code == Code::Unavailable && failure.reason.is_none(),
            _ => false,
        }
    }

    fn failure(&self) -> Option<&Failure> {
        match self {
            Self::Status(failure) => Some(failure),
            _ => None,
        }
    }
}

impl From<Status> for Error {
    fn from(status: Status) -> Self {
        Self::Status(Box::new(Failure::from(status)))
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        let details = status.get_error_details();
        let own = details.error_info().filter(|info| info.domain == DOMAIN);
        let fields = details.bad_request().map(|bad| bad.field_violations.as_slice()).unwrap_or_default();
        Self {
            code: code(&status),
            message: describe(&status),
            reason: own.map(|info| info.reason.clone()),
            metadata: own.map(|info| info.metadata.clone().into_iter().collect()).unwrap_or_default(),
            fields: fields.iter().map(|f| (f.field.clone(), f.description.clone())).collect(),
            retry_delay: details.retry_info().and_then(|info| info.retry_delay),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.reason {
            Some(reason) => write!(f, "{} ({reason})", self.message)?,
            None => write!(f, "{} ({:?})", self.message, self.code)?,
        }
        for (field, why) in &self.fields {
            if !self.message.contains(field.as_str()) || !self.message.contains(why.as_str()) {
                write!(f, "\n  {field}: {why}")?;
            }
        }
        Ok(())
    }
}

/// The code as the gRPC specification has it. The library reports a deadline that it enforced itself as CANCELLED, and a
/// connection that broke under a call as UNKNOWN, INTERNAL or CANCELLED; a status from the other side has no cause here.
fn code(status: &Status) -> Code {
    match status.code() {
        _ if timed_out(status) => Code::DeadlineExceeded,
        Code::Unknown | Code::Internal | Code::Cancelled if causes(status).next().is_some() => {
            Code::Unavailable
        }
        code => code,
    }
}

fn timed_out(status: &Status) -> bool {
    causes(status).any(|cause| cause.is::<TimeoutExpired>())
}

/// The message, with the innermost cause where the library's own words say nothing ("transport error").
fn describe(status: &Status) -> String {
    if timed_out(status) {
        return "no answer before the deadline of the call".to_owned();
    }
    match (causes(status).last(), status.message()) {
        (Some(cause), message) if !message.contains(&cause.to_string()) => format!("{message}: {cause}"),
        (_, message) => message.to_owned(),
    }
}

/// Every error below this one, the innermost last.
pub(super) fn causes<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> impl Iterator<Item = &'a (dyn std::error::Error + 'static)> {
    std::iter::successors(error.source(), |cause| (**cause).source())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic_types::ErrorDetails;

    fn status(domain: &str) -> Status {
        let mut details =
            ErrorDetails::with_error_info("JOB_NOT_FOUND", domain, [("job_id".to_owned(), "a".to_owned())]);
        details.set_retry_info(Some(Duration::from_secs(2)));
        details.add_bad_request_violation("job_id", "is unknown");
        Status::with_error_details(Code::NotFound, "no such job", details)
    }

    #[test]
    fn reads_the_details_of_its_own_errors() {
        let error = Error::from(status(DOMAIN));
        assert_eq!(error.code(), Some(Code::NotFound));
        assert_eq!(error.reason(), Some("JOB_NOT_FOUND"));
        assert_eq!(error.metadata("job_id"), Some("a"));
        assert_eq!(error.retry_delay(), Some(Duration::from_secs(2)));
        assert_eq!(error.to_string(), "no such job (JOB_NOT_FOUND)\n  job_id: is unknown");
    }

    #[test]
    fn takes_no_reason_from_another_domain() {
        let error = Error::from(status("example.org"));
        assert_eq!(error.reason(), None);
        assert_eq!(error.metadata("job_id"), None);
        assert!(!error.is_unreachable());
    }

    #[test]
    fn a_local_deadline_is_a_deadline() {
        let error = Error::from(Status::from_error(Box::new(TimeoutExpired(()))));
        assert_eq!(error.code(), Some(Code::DeadlineExceeded));
    }

    #[test]
    fn a_connection_that_broke_is_unavailable() {
        let broken = std::io::Error::from(std::io::ErrorKind::BrokenPipe);
        let error = Error::from(Status::from_error(Box::new(broken)));
        assert_eq!(error.code(), Some(Code::Unavailable));
        assert_eq!(Error::from(Status::unknown("from a proxy")).code(), Some(Code::Unknown));
    }

    #[test]
    fn unavailable_without_a_reason_means_nobody_is_there() {
        assert!(Error::from(Status::unavailable("tcp connect error")).is_unreachable());
    }
}
