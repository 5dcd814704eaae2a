use std::{collections::BTreeMap, sync::Arc, time::Duration};

use super::{Key, Kind, Payload, QueueName, RetryOptions, Timestamp};

/// Priorities go from minus this to plus this; higher comes first.
pub const PRIORITY_MAX: i32 = 100;

/// What one point of priority is worth in the line.
pub const PRIORITY_STEP: Duration = Duration::from_secs(60);

/// What was asked for. Never changes once accepted.
#[derive(Clone, Debug, PartialEq)]
pub struct JobSpec {
    pub queue: QueueName,
    pub kind: Kind,
    pub payload: Payload,
    pub labels: BTreeMap<String, String>,
    /// `-PRIORITY_MAX..=PRIORITY_MAX`.
    pub priority: i32,
    pub start: Start,
    /// From being due to the start of the first attempt.
    pub start_timeout: Option<Duration>,
    /// One attempt.
    pub attempt_timeout: Option<Duration>,
    /// From submit to a final state, over all attempts of a run.
    pub total_timeout: Option<Duration>,
    pub retry: RetryOptions,
    /// How long the job is kept after it is final.
    pub retention: Option<Duration>,
    /// At most one unfinished job for each queue and key.
    pub unique_key: Option<Key>,
}

impl JobSpec {
    /// The same without the body of its payload.
    pub fn omit_payload(&self) -> Arc<Self> {
        Arc::new(Self {
            queue: self.queue.clone(),
            kind: self.kind.clone(),
            payload: self.payload.omit_body(),
            labels: self.labels.clone(),
            priority: self.priority,
            start: self.start,
            start_timeout: self.start_timeout,
            attempt_timeout: self.attempt_timeout,
            total_timeout: self.total_timeout,
            retry: self.retry.clone(),
            retention: self.retention,
            unique_key: self.unique_key.clone(),
        })
    }

    /// As [`JobSpec::omit_payload`], or the `last` one if it says the same: jobs that end one after the other are often
    /// alike.
    pub fn omit_payload_like(&self, last: &mut Option<Arc<Self>>) -> Arc<Self> {
        match last {
            Some(last) if last.is_like(self) => last.clone(),
            last => last.insert(self.omit_payload()).clone(),
        }
    }

    /// Whether all is the same but the bodies of the payloads.
    fn is_like(&self, other: &Self) -> bool {
        let Self {
            queue,
            kind,
            payload,
            labels,
            priority,
            start,
            start_timeout,
            attempt_timeout,
            total_timeout,
            retry,
            retention,
            unique_key,
        } = self;
        *queue == other.queue
            && *kind == other.kind
            && payload.size == other.payload.size
            && payload.content_type == other.payload.content_type
            && *labels == other.labels
            && *priority == other.priority
            && *start == other.start
            && *start_timeout == other.start_timeout
            && *attempt_timeout == other.attempt_timeout
            && *total_timeout == other.total_timeout
            && *retry == other.retry
            && *retention == other.retention
            && *unique_key == other.unique_key
    }

    /// A job of `kind` in the default queue, due at once, everything else left to the queue.
    pub fn new(kind: Kind, payload: Payload) -> Self {
        Self {
            queue: QueueName::default(),
            kind,
            payload,
            labels: BTreeMap::new(),
            priority: 0,
            start: Start::Now,
            start_timeout: None,
            attempt_timeout: None,
            total_timeout: None,
            retry: RetryOptions::default(),
            retention: None,
            unique_key: None,
        }
    }

    /// When the first attempt is due, for a job that is accepted at `now`.
    pub fn due(&self, now: Timestamp) -> Timestamp {
        match self.start {
            Start::Now => now,
            Start::Delay(delay) => now.after(delay),
            Start::At(at) => at.max(now),
        }
    }
}

/// When the first attempt is due.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Start {
    #[default]
    Now,
    /// After the submit.
    Delay(Duration),
    At(Timestamp),
}
