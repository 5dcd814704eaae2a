//! What to run: the flags that `submit` and `run` share, one for each field of a job's spec.

use clap::{Args, ValueEnum};
use prost_types::{Duration, Timestamp};

use super::{
    Error,
    payload::PayloadArgs,
    values::{label, proto_duration, timestamp},
};
use crate::proto::{JobSpec, RetryPolicy, SubmitRequest, job_spec::Start, submit_request};

#[derive(Clone, Debug, Args)]
pub(super) struct SpecArgs {
    /// Which handler runs the job: echo, sleep, http, exec, or one of your own
    kind: String,
    /// The line it waits in
    #[arg(short, long, default_value = "default")]
    queue: String,
    /// Label to find it by; may be repeated
    #[arg(short, long = "label", value_name = "KEY=VALUE", value_parser = label)]
    labels: Vec<(String, String)>,
    /// -100 to 100, higher first; a point is worth a minute in the line
    #[arg(short, long, value_name = "N", default_value_t = 0, allow_negative_numbers = true)]
    priority: i32,
    /// Id of your own choice
    #[arg(long, value_name = "ID")]
    job_id: Option<String>,
    /// Makes it safe to run this command again: the same id gives the same job
    #[arg(long, value_name = "ID")]
    request_id: Option<String>,
    /// At most one unfinished job of the queue holds this key
    #[arg(long, value_name = "KEY")]
    unique_key: Option<String>,
    /// If an unfinished job holds the key
    #[arg(long, value_enum, default_value_t, requires = "unique_key", value_name = "WHAT")]
    on_conflict: OnConflict,
    #[command(flatten)]
    payload: PayloadArgs,
    #[command(flatten)]
    time: TimeArgs,
    #[command(flatten)]
    retry: RetryArgs,
}

#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Time")]
struct TimeArgs {
    /// Start after this long
    #[arg(long, value_name = "DURATION", value_parser = proto_duration, conflicts_with = "at")]
    delay: Option<Duration>,
    /// Start at this time
    #[arg(long, value_name = "TIME", value_parser = timestamp)]
    at: Option<Timestamp>,
    /// Expires unless it starts within this long of being due
    #[arg(long, value_name = "DURATION", value_parser = proto_duration)]
    start_timeout: Option<Duration>,
    /// How long one attempt may take
    #[arg(long, value_name = "DURATION", value_parser = proto_duration)]
    attempt_timeout: Option<Duration>,
    /// Expires unless it ends within this long, over all attempts
    #[arg(long, value_name = "DURATION", value_parser = proto_duration)]
    total_timeout: Option<Duration>,
    /// How long the job and its result are kept
    #[arg(long, value_name = "DURATION", value_parser = proto_duration)]
    retention: Option<Duration>,
}

#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Retries")]
struct RetryArgs {
    /// Attempts in all, the first included
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(1..))]
    max_attempts: Option<i32>,
    /// Longest pause after the first attempt
    #[arg(long, value_name = "DURATION", value_parser = proto_duration)]
    initial_backoff: Option<Duration>,
    /// Longest pause after any attempt
    #[arg(long, value_name = "DURATION", value_parser = proto_duration)]
    max_backoff: Option<Duration>,
    /// How much longer each pause may be
    #[arg(long, value_name = "FACTOR")]
    backoff_multiplier: Option<f64>,
    /// Error code that ends the job at once; may be repeated
    #[arg(long = "non-retryable", value_name = "CODE")]
    non_retryable_codes: Vec<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum OnConflict {
    /// Take that job
    #[default]
    ReturnExisting,
    /// Fail
    Reject,
}

impl SpecArgs {
    /// Reads the payload, and makes the request of all of it.
    pub(super) fn into_request(self) -> Result<SubmitRequest, Error> {
        let payload = self.payload.read()?;
        let on_unique_conflict = match self.on_conflict {
            OnConflict::ReturnExisting => submit_request::OnUniqueConflict::ReturnExisting,
            OnConflict::Reject => submit_request::OnUniqueConflict::Reject,
        };
        let spec = JobSpec {
            queue: self.queue,
            kind: self.kind,
            payload,
            labels: self.labels.into_iter().collect(),
            priority: self.priority,
            start: self.time.delay.map(Start::Delay).or(self.time.at.map(Start::StartTime)),
            start_timeout: self.time.start_timeout,
            attempt_timeout: self.time.attempt_timeout,
            total_timeout: self.time.total_timeout,
            retry: self.retry.into_policy(),
            retention: self.time.retention,
            unique_key: self.unique_key.unwrap_or_default(),
        };
        Ok(SubmitRequest {
            spec: Some(spec),
            job_id: self.job_id.unwrap_or_default(),
            request_id: self.request_id.unwrap_or_default(),
            on_unique_conflict: on_unique_conflict.into(),
            ..SubmitRequest::default()
        })
    }
}

impl RetryArgs {
    fn into_policy(self) -> Option<RetryPolicy> {
        let policy = RetryPolicy {
            max_attempts: self.max_attempts.unwrap_or_default(),
            initial_backoff: self.initial_backoff,
            max_backoff: self.max_backoff,
            backoff_multiplier: self.backoff_multiplier.unwrap_or_default(),
            non_retryable_codes: self.non_retryable_codes,
        };
        (policy != RetryPolicy::default()).then_some(policy)
    }
}
