//! What the tests of handlers share.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use serde_json::Value;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{
    job::{JobError, JobSpec, Payload},
    worker::{Context, ContextParts},
};

/// The first attempt of `job-1`, with a minute of time, and what cancels it.
pub fn context() -> (Context, CancellationToken) {
    let parts = ContextParts {
        job_id: "job-1".parse().unwrap(),
        run: 1,
        attempt: 1,
        spec: Arc::new(JobSpec::new("test".parse().unwrap(), Payload::none())),
        trace: BTreeMap::from([(
            "traceparent".into(),
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into(),
        )]),
        deadline: Instant::now() + Duration::from_secs(60),
        last_progress: None,
        clock: Default::default(),
    };
    let context = Context::new(parts);
    let cancelled = context.cancelled().clone();
    (context, cancelled)
}

pub fn json_payload(json: Value) -> Payload {
    Payload::new(Payload::JSON, json.to_string())
}

/// The JSON of an output.
pub fn output(result: Result<Payload, JobError>) -> Value {
    serde_json::from_slice(&result.unwrap().bytes()).unwrap()
}
