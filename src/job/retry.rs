use std::time::Duration;

use super::{JobError, JobSpec};

/// What a job says of its retries; what is absent comes from its queue.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RetryOptions {
    /// Attempts in all, the first included.
    pub max_attempts: Option<u32>,
    pub initial_backoff: Option<Duration>,
    pub max_backoff: Option<Duration>,
    /// At least 1.
    pub backoff_multiplier: Option<f64>,
    /// Values of [`JobError::code`] that end the job at once.
    pub non_retryable_codes: Vec<String>,
}

/// What holds for a job: its own word, else its queue's, else the server's.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// At least 1.
    pub max_attempts: u32,
    pub initial_backoff: Duration,
    pub max_backoff: Duration,
    /// At least 1.
    pub backoff_multiplier: f64,
    pub non_retryable_codes: Vec<String>,
    pub attempt_timeout: Duration,
    pub retention: Duration,
}

impl Policy {
    /// What holds for a job: `self` is its queue's.
    pub fn of(&self, spec: &JobSpec) -> Self {
        let retry = &spec.retry;
        Self {
            max_attempts: retry.max_attempts.unwrap_or(self.max_attempts),
            initial_backoff: retry.initial_backoff.unwrap_or(self.initial_backoff),
            max_backoff: retry.max_backoff.unwrap_or(self.max_backoff),
            backoff_multiplier: retry.backoff_multiplier.unwrap_or(self.backoff_multiplier),
            non_retryable_codes: retry.non_retryable_codes.clone(),
            attempt_timeout: spec.attempt_timeout.unwrap_or(self.attempt_timeout),
            retention: spec.retention.unwrap_or(self.retention),
        }
    }

    /// How long to wait after attempt number `attempt` failed with `error`; None if it was the last.
    ///
    /// The wait is the handler's own `retry_delay`, else drawn between nothing and an exponential bound ("full
    /// jitter": Brooker, *Exponential Backoff And Jitter*, 2015). `jitter` is the draw, 0 up to 1.
    pub fn delay(&self, attempt: u32, error: &JobError, jitter: f64) -> Option<Duration> {
        let last = attempt >= self.max_attempts;
        if last || !error.retryable || self.non_retryable_codes.contains(&error.code) {
            return None;
        }
        Some(error.retry_delay.unwrap_or_else(|| {
            let seconds = self.bound(attempt) * jitter.clamp(0.0, 1.0);
            Duration::try_from_secs_f64(seconds).unwrap_or(self.max_backoff).min(self.max_backoff)
        }))
    }

    /// The longest back-off after attempt number `attempt`, which counts from 1, in seconds.
    fn bound(&self, attempt: u32) -> f64 {
        let exponent = i32::try_from(attempt.saturating_sub(1)).unwrap_or(i32::MAX);
        // Not infinite: infinitely often nothing is not a number.
        let growth = self.backoff_multiplier.powi(exponent).min(f64::MAX);
        (self.initial_backoff.as_secs_f64() * growth).min(self.max_backoff.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::job::Cause;

    fn policy() -> Policy {
        Policy {
            max_attempts: 5,
            initial_backoff: Duration::from_secs(1),
            max_backoff: Duration::from_secs(6),
            backoff_multiplier: 2.0,
            non_retryable_codes: vec!["http.status.404".into()],
            attempt_timeout: Duration::from_secs(300),
            retention: Duration::from_secs(86_400),
        }
    }

    fn error() -> JobError {
        JobError::new(Cause::Handler, "http.status.503", "busy", true)
    }

    #[test]
    fn bounds_double_up_to_the_maximum() {
        let delays: Vec<_> = (1..5).map(|n| policy().delay(n, &error(), 1.0).unwrap().as_secs()).collect();
        assert_eq!(delays, [1, 2, 4, 6]);
    }

    #[test]
    fn the_last_attempt_and_hopeless_errors_end_it() {
        assert_eq!(policy().delay(5, &error(), 0.5), None);
        assert_eq!(policy().delay(1, &JobError { retryable: false, ..error() }, 0.5), None);
        assert_eq!(policy().delay(1, &JobError { code: "http.status.404".into(), ..error() }, 0.5), None);
    }

    #[test]
    fn the_handlers_own_delay_wins() {
        let error = JobError { retry_delay: Some(Duration::from_secs(90)), ..error() };
        assert_eq!(policy().delay(1, &error, 0.0), Some(Duration::from_secs(90)));
    }

    #[test]
    fn no_back_off_stays_none_after_any_number_of_attempts() {
        let policy = Policy { max_attempts: u32::MAX, initial_backoff: Duration::ZERO, ..policy() };
        for attempt in [1, 2, 1024, 1025, 1_000_000] {
            assert_eq!(policy.delay(attempt, &error(), 1.0), Some(Duration::ZERO), "{attempt}");
        }
    }

    #[test]
    fn a_back_off_without_a_maximum_is_no_panic() {
        let policy = Policy { max_attempts: u32::MAX, max_backoff: Duration::MAX, ..policy() };
        assert!(policy.delay(u32::MAX - 1, &error(), 1.0).is_some());
    }

    proptest! {
        #[test]
        fn a_delay_never_exceeds_its_maximum(
            attempt in 1u32.., multiplier in 1.0f64..1e9, initial in 0u64..1 << 40, jitter in 0.0f64..1.0,
        ) {
            let policy = Policy {
                max_attempts: u32::MAX,
                backoff_multiplier: multiplier,
                initial_backoff: Duration::from_millis(initial),
                ..policy()
            };
            if let Some(delay) = policy.delay(attempt, &error(), jitter) {
                prop_assert!(delay <= policy.max_backoff);
            }
        }
    }
}
