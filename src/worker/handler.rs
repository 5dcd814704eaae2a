use std::any::Any;

use async_trait::async_trait;

use super::Context;
use crate::job::{JobError, Payload};

/// The code for one kind of job.
///
/// A handler runs at least once for each job, perhaps at the same time as an earlier attempt that did not notice it
/// was given up: [`Context::job_id`] and [`Context::run`] are there to make its effects idempotent.
///
/// It should watch [`Context::cancelled`]. The future is dropped some time after that token fires, so whatever must
/// not outlive the attempt is to be released by `Drop`.
#[async_trait]
pub trait Handler: Send + Sync + 'static {
    /// Runs one attempt. An error that is not retryable fails the job for good.
    async fn run(&self, context: Context, payload: Payload) -> Result<Payload, JobError>;
}

/// What a handler that panicked has failed with.
pub(crate) fn panic_message(panic: &(dyn Any + Send)) -> String {
    let said = panic.downcast_ref::<&str>().copied().or(panic.downcast_ref::<String>().map(String::as_str));
    format!("the handler panicked: {}", said.unwrap_or("without a message"))
}
