//! The jobs that are submitted, and how their outcomes are recognised: each payload begins with a number.

use uuid::Uuid;

use crate::proto::{
    JobFilter, JobSpec, Payload, PayloadFormat, SubmitRequest, WatchResultsRequest, WorkerHello,
    payload::Body,
};

/// What only the workers of a run take.
const WORKED: &str = "bench.worked";

/// A queue of this run alone.
#[derive(Clone)]
pub struct Queue {
    name: String,
    payload: usize,
}

impl Queue {
    pub fn new(payload: usize) -> Self {
        Self { name: format!("bench/{}", Uuid::now_v7()), payload: payload.max(size_of::<u64>()) }
    }

    /// A job that ends at once with its payload as output.
    pub fn echo(&self, number: u64) -> SubmitRequest {
        self.job("echo", number)
    }

    /// A job for a worker of this run.
    pub fn worked(&self, number: u64) -> SubmitRequest {
        self.job(WORKED, number)
    }

    /// A job of a kind that nobody runs.
    pub fn waiting(&self, number: u64) -> SubmitRequest {
        self.job("bench.nobody", number)
    }

    /// The first message of a worker that runs the jobs of [`Queue::worked`], `window` at a time.
    pub fn hello(&self, window: u16) -> WorkerHello {
        WorkerHello {
            worker_id: format!("bench-{}", Uuid::now_v7()),
            kinds: vec![WORKED.into()],
            queues: vec![self.name.clone()],
            max_in_flight: window.into(),
            sdk: concat!("jobwire-bench/", env!("CARGO_PKG_VERSION")).into(),
            payload_format: PayloadFormat::Raw.into(),
            ..Default::default()
        }
    }

    fn job(&self, kind: &str, number: u64) -> SubmitRequest {
        let mut data = vec![b'x'; self.payload];
        data[..size_of::<u64>()].copy_from_slice(&number.to_le_bytes());
        let payload = Payload { body: Some(Body::Data(data.into())), ..Default::default() };
        let spec = JobSpec {
            kind: kind.into(),
            queue: self.name.clone(),
            payload: Some(payload),
            ..Default::default()
        };
        SubmitRequest { spec: Some(spec), ..Default::default() }
    }

    /// Watches every outcome from now on, bodies as they are.
    pub fn watch(&self) -> WatchResultsRequest {
        WatchResultsRequest {
            filter: Some(JobFilter { queues: vec![self.name.clone()], ..Default::default() }),
            payload_format: PayloadFormat::Raw.into(),
            ..Default::default()
        }
    }
}

/// The number in the output of an echo job.
pub fn number(output: &[u8]) -> Option<u64> {
    Some(u64::from_le_bytes(output.first_chunk().copied()?))
}
