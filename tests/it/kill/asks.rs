//! What is asked for, and how it may end.

use fastrand::Rng;
use jobwire::proto::{
    Job, JobSpec, Payload, PayloadFormat, RetryPolicy, SubmitRequest, job::State, job_spec::Start,
    payload::Body,
};
use prost_types::{Value, value::Kind};
use uuid::Uuid;

use crate::support::{seconds, spec};

/// The label with the number of the request that made a job.
pub const LABEL: &str = "ask";

/// The queue of jobs that run until they are cancelled.
pub const ENDLESS: &str = "endless";

/// Runs again after every crash.
const PERSISTENT: i32 = 1000;

/// A request, and the states that it may end in without being cancelled.
pub struct Ask {
    pub request: SubmitRequest,
    pub ends: &'static [State],
}

impl Ask {
    /// Mostly jobs that end at once and well.
    pub fn draw(rng: &mut Rng, number: usize) -> Self {
        use State::{Expired, Failed, Succeeded};
        let mut attempts = PERSISTENT;
        let (mut spec, ends): (JobSpec, &'static [State]) = match rng.u32(..100) {
            0..=3 => (spec("sleep", "\"never\""), &[Failed]),
            4..=6 => {
                attempts = 2;
                let spec = spec("sleep", "{\"duration\":\"10s\"}");
                (JobSpec { attempt_timeout: Some(seconds(0.01)), ..spec }, &[Failed])
            }
            7..=9 => {
                let spec = spec("sleep", "{\"duration\":\"10s\"}");
                (JobSpec { total_timeout: Some(seconds(0.05)), ..spec }, &[Expired])
            }
            10..=12 => (JobSpec { start_timeout: Some(seconds(0.01)), ..echo(rng) }, &[Expired, Succeeded]),
            13..=16 => {
                attempts = 1;
                (sleep(rng, 20), &[Failed, Succeeded])
            }
            17..=25 => (sleep(rng, 100), &[Succeeded]),
            26..=32 => {
                let start = Start::Delay(seconds(rng.f64()));
                (JobSpec { start: Some(start), ..echo(rng) }, &[Succeeded])
            }
            _ => (echo(rng), &[Succeeded]),
        };
        spec.queue = ["", "a/mail", "a/web", "b"][rng.usize(..4)].into();
        spec.priority = [0, 0, 0, -100, 1, 100][rng.usize(..6)];
        spec.labels.insert("tenant".into(), ["x", "y", "z"][rng.usize(..3)].into());
        let mut ask = Self::of(spec, attempts, number, ends);
        if rng.u8(..10) < 7 {
            ask.request.request_id = Uuid::from_u128(rng.u128(..)).to_string();
        }
        if rng.u8(..10) == 0 {
            ask.request.job_id = format!("own-{number}");
        }
        ask
    }

    /// A job that is under way until it is cancelled.
    pub fn endless(number: usize) -> Self {
        let spec = JobSpec { queue: ENDLESS.into(), priority: 100, ..spec("sleep", "{\"duration\":\"1h\"}") };
        let spec = JobSpec { attempt_timeout: Some(seconds(3600.0)), ..spec };
        Self::of(spec, PERSISTENT, number, &[])
    }

    /// A job that only one of may be unfinished.
    pub fn exclusive(rng: &mut Rng, number: usize) -> Self {
        let mut ask = Self::of(sleep(rng, 600), PERSISTENT, number, &[State::Succeeded]);
        ask.request.request_id = Uuid::from_u128(rng.u128(..)).to_string();
        ask.request.spec.as_mut().expect("a spec").unique_key = "only".into();
        ask
    }

    /// A job that ends well, and that nobody meddles with.
    pub fn steady(rng: &mut Rng, number: usize) -> Self {
        let spec = JobSpec { unique_key: format!("steady-{number}"), ..echo(rng) };
        Self::of(spec, PERSISTENT, number, &[State::Succeeded])
    }

    fn of(mut spec: JobSpec, attempts: i32, number: usize, ends: &'static [State]) -> Self {
        spec.labels.insert(LABEL.into(), number.to_string());
        let backoff = Some(seconds(0.02));
        spec.retry = Some(RetryPolicy {
            max_attempts: attempts,
            initial_backoff: backoff,
            max_backoff: backoff,
            ..Default::default()
        });
        let request = SubmitRequest {
            spec: Some(spec),
            payload_format: PayloadFormat::Raw.into(),
            ..Default::default()
        };
        Self { request, ends }
    }

    /// What was asked for.
    pub fn spec(&self) -> &JobSpec {
        self.request.spec.as_ref().expect("a spec")
    }

    /// An echo gives back what it got.
    pub fn check_output(&self, job: &Job) {
        if self.spec().kind != "echo" || job.state() != State::Succeeded {
            return;
        }
        let Some(Payload { body: Some(Body::Text(sent)), .. }) = &self.spec().payload else {
            panic!("no text")
        };
        let output = job.output.as_ref().expect("an output");
        assert_eq!(output.size_bytes, sent.len() as i64, "{} has another output", job.job_id);
        let same = match &output.body {
            None => output.omitted,
            Some(Body::Data(data)) => data.as_ref() == sent.as_bytes(),
            Some(Body::Json(Value { kind: Some(Kind::StringValue(text)) })) => format!("{text:?}") == *sent,
            Some(_) => false,
        };
        assert!(same, "{} has another output", job.job_id);
    }
}

fn sleep(rng: &mut Rng, longest: u32) -> JobSpec {
    spec("sleep", &format!("{{\"duration\":\"{}ms\"}}", rng.u32(1..=longest)))
}

/// Mostly small.
fn echo(rng: &mut Rng) -> JobSpec {
    let size = match rng.u32(..300) {
        0 => 300_000,
        1..=10 => 5_000,
        _ => rng.usize(..100),
    };
    let text: String = std::iter::repeat_with(|| rng.alphanumeric()).take(size).collect();
    spec("echo", &format!("{text:?}"))
}
