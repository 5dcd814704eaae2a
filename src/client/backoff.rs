//! When a call may be sent again, and after how long.

use std::time::Duration;

use tonic::Code;

use super::Error;

/// What sending a request twice does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Repeat {
    /// No more than sending it once.
    Harmless,
    /// It might act twice: only a plain refusal is followed by another try.
    Acts,
}

impl Repeat {
    /// Whether the same request may be sent again after `error`.
    pub(super) fn allowed_after(self, error: &Error) -> bool {
        match error.code() {
            Some(Code::Unavailable) => self == Self::Harmless,
            // The deadline is this library's own: the connection may have died without a word.
            Some(Code::DeadlineExceeded) => self == Self::Harmless && error.reason().is_none(),
            Some(Code::ResourceExhausted) => error.reason().is_some() && error.retry_delay().is_some(),
            _ => false,
        }
    }
}

/// Growing pauses with full jitter, so that many clients do not come back in step.
#[derive(Debug)]
pub(super) struct Backoff {
    first: Duration,
    most: Duration,
    next: Duration,
}

impl Backoff {
    pub(super) fn new(first: Duration, most: Duration) -> Self {
        Self { first, most, next: first }
    }

    /// The next pause: what the server asks for, plus the jitter. `jitter` lies in 0..1.
    pub(super) fn pause(&mut self, asked: Option<Duration>, jitter: f64) -> Duration {
        let pause = asked.unwrap_or_default() + self.next.mul_f64(jitter);
        self.next = (self.next * 2).min(self.most);
        pause
    }

    /// Begins anew, after a success.
    pub(super) fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::Status;
    use tonic_types::{ErrorDetails, StatusExt as _};

    fn full(domain: &str) -> Error {
        let mut details = ErrorDetails::with_error_info("QUEUE_FULL", domain, []);
        details.set_retry_info(Some(Duration::from_secs(1)));
        Status::with_error_details(Code::ResourceExhausted, "full", details).into()
    }

    #[test]
    fn repeats_what_is_safe_only() {
        let gone = Error::from(Status::unavailable("gone"));
        assert!(Repeat::Harmless.allowed_after(&gone));
        assert!(!Repeat::Acts.allowed_after(&gone));
        let silent = Error::from(Status::deadline_exceeded("no answer"));
        assert!(Repeat::Harmless.allowed_after(&silent) && !Repeat::Acts.allowed_after(&silent));
        for repeat in [Repeat::Harmless, Repeat::Acts] {
            assert!(repeat.allowed_after(&full("jobwire.v1")));
            assert!(!repeat.allowed_after(&full("proxy.example")));
            assert!(!repeat.allowed_after(&Status::invalid_argument("bad").into()));
            assert!(!repeat.allowed_after(&Status::resource_exhausted("no hint").into()));
        }
    }

    #[test]
    fn pauses_grow_to_a_bound_and_heed_the_server() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(4));
        let pauses: Vec<_> = (0..4).map(|_| backoff.pause(None, 1.0).as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 4]);
        assert_eq!(backoff.pause(Some(Duration::from_secs(10)), 0.0).as_secs(), 10);
        backoff.reset();
        assert_eq!(backoff.pause(None, 1.0).as_secs(), 1);
    }
}
