use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

use super::{span, typed::invalid};
use crate::{job::JobError, worker::Context};

/// The longest sleep.
const MAX: Duration = Duration::from_secs(24 * 3600);

/// Progress is reported so many times, but not more often than each [`MIN_STEP`].
const STEPS: u32 = 100;
const MIN_STEP: Duration = Duration::from_millis(100);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Input {
    /// `"1.5s"`, or seconds as a number; 24 hours at most.
    #[serde(deserialize_with = "span::deserialize")]
    duration: Duration,
}

#[derive(Serialize)]
pub struct Output {
    slept_ms: u64,
}

/// Waits, reports how far it has come, and stops at once when it is cancelled.
pub async fn run(context: Context, input: Input) -> Result<Output, JobError> {
    if input.duration > MAX {
        return Err(invalid(format!(
            "duration: {:?} is more than 24 hours, the longest sleep",
            input.duration
        )));
    }
    let start = Instant::now();
    let step = (input.duration / STEPS).max(MIN_STEP);
    loop {
        let slept = start.elapsed();
        if slept >= input.duration {
            return Ok(Output { slept_ms: slept.as_millis() as u64 });
        }
        context.progress(slept.div_duration_f64(input.duration), "asleep");
        context.unless_stopped(sleep(step.min(input.duration - slept))).await?;
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::handlers::testing::context;

    fn input(duration: serde_json::Value) -> Input {
        serde_json::from_value(json!({ "duration": duration })).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn sleeps_as_long_as_it_is_told() {
        let output = run(context().0, input(json!("40s"))).await.unwrap();
        assert!((40_000..40_100).contains(&output.slept_ms), "{}", output.slept_ms);
        assert!(run(context().0, input(json!(0))).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_cancel_or_the_deadline_ends_it_at_once() {
        let (cancelled_context, cancelled) = context();
        tokio::spawn(async move {
            sleep(Duration::from_millis(1234)).await;
            cancelled.cancel();
        });
        let start = Instant::now();
        assert_eq!(run(cancelled_context, input(json!("1h"))).await.err().unwrap().code, "interrupted");
        assert!(start.elapsed() < Duration::from_secs(2));

        assert_eq!(run(context().0, input(json!("1h"))).await.err().unwrap().code, "interrupted");
        assert!(start.elapsed() < Duration::from_secs(70));
    }

    #[tokio::test]
    async fn a_day_is_the_most() {
        let error = run(context().0, input(json!("24h 1s"))).await.err().unwrap();
        assert_eq!((error.code.as_str(), error.retryable), ("payload.invalid", false));
    }
}
