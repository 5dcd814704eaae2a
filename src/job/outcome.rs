use std::{fmt::Display, time::Duration};

use super::{FinalState, Payload};

/// Why a job, or one attempt of it, failed.
#[derive(Clone, Debug, PartialEq)]
pub struct JobError {
    pub cause: Cause,
    /// A stable word of the handler's, such as `http.status.503`; at most 128 bytes.
    pub code: String,
    /// For people; at most [`JobError::MESSAGE_MAX`] bytes.
    pub message: String,
    /// Whether another attempt may help.
    pub retryable: bool,
    pub details: Option<Payload>,
    /// From the handler: wait this long instead of the back-off.
    pub retry_delay: Option<Duration>,
}

impl JobError {
    /// Bytes of a message; a longer one is cut.
    pub const MESSAGE_MAX: usize = 8 << 10;
    /// Bytes of details; larger ones are left out.
    pub const DETAILS_MAX: usize = 16 << 10;
    /// Bytes of a code; a longer one is cut.
    pub const CODE_MAX: usize = 128;

    /// An error without details. Code and message are cut to their limits.
    pub fn new(cause: Cause, code: &str, message: &str, retryable: bool) -> Self {
        Self {
            cause,
            code: cut(code, Self::CODE_MAX),
            message: cut(message, Self::MESSAGE_MAX),
            retryable,
            details: None,
            retry_delay: None,
        }
    }

    /// A handler's failure that another attempt may mend.
    ///
    /// There is no conversion from `std::io::Error` and its like: whether to try again is for the handler to say.
    pub fn retryable(code: &str, message: impl Display) -> Self {
        Self::new(Cause::Handler, code, &message.to_string(), true)
    }

    /// A handler's failure that fails the job for good.
    pub fn permanent(code: &str, message: impl Display) -> Self {
        Self::new(Cause::Handler, code, &message.to_string(), false)
    }

    /// Waits this long before the next attempt, instead of the back-off.
    pub fn retry_after(self, delay: Duration) -> Self {
        Self { retry_delay: Some(delay), ..self }
    }

    /// Adds a JSON document that says more.
    pub fn with_details(self, details: &serde_json::Value) -> Self {
        Self { details: Some(Payload::new(Payload::JSON, details.to_string())), ..self }
    }
}

/// At most `max` bytes of a text, without NUL.
pub(crate) fn cut(text: &str, max: usize) -> String {
    let text = text.replace('\0', "\u{fffd}");
    let end = (0..=max.min(text.len())).rev().find(|&end| text.is_char_boundary(end)).unwrap_or(0);
    text[..end].to_owned()
}

/// Who or what made an attempt fail. Set by the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The handler said so.
    Handler = 1,
    /// The handler panicked, or its process died.
    Crash = 2,
    Timeout = 3,
    LeaseExpired = 4,
    Cancelled = 5,
    Expired = 6,
    Internal = 7,
}

impl Cause {
    /// The cause with this number of the contract.
    pub fn from_number(number: i32) -> Option<Self> {
        [
            Self::Handler,
            Self::Crash,
            Self::Timeout,
            Self::LeaseExpired,
            Self::Cancelled,
            Self::Expired,
            Self::Internal,
        ]
        .into_iter()
        .find(|&cause| cause as i32 == number)
    }
}

/// What a worker says of an attempt.
#[derive(Clone, Debug, PartialEq)]
pub enum Report {
    Succeeded(Payload),
    Failed(JobError),
    /// Given back: the attempt does not count. With a delay it waits that long.
    Released {
        delay: Duration,
    },
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Ending {
    pub state: FinalState,
    /// Set for SUCCEEDED.
    pub output: Option<Payload>,
    /// Set for the others.
    pub error: Option<JobError>,
}

impl Ending {
    /// The handler's result.
    pub fn succeeded(output: Payload) -> Self {
        Self { state: FinalState::Succeeded, output: Some(output), error: None }
    }

    /// Any other end.
    pub fn without_result(state: FinalState, error: JobError) -> Self {
        Self { state, output: None, error: Some(error) }
    }
}
