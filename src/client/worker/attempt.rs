//! One attempt: its handler, and what it tells meanwhile.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures_util::FutureExt as _;
use tokio::sync::mpsc;

use crate::{
    job::{JobError, Payload},
    worker::{Context, Handler, panic_message},
};

/// Progress is sent this often at most; watchers hear of it no more often.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

/// What comes of attempts, by the lease's id.
pub enum Event {
    Progress(String),
    Done(String, Result<Payload, JobError>),
    /// A result is to be sent once more.
    Again(String),
}

/// Runs a handler to its end.
pub async fn run(
    lease_id: String,
    handler: Arc<dyn Handler>,
    context: Context,
    payload: Payload,
    events: mpsc::Sender<Event>,
) {
    let (cancelled, own) = (context.cancelled().clone(), context.clone());
    let mut work =
        AssertUnwindSafe(async move { handler.run(context, payload).await }).catch_unwind().boxed();
    let result = loop {
        tokio::select! {
            biased;
            result = &mut work => break result,
            // Nobody may be there to say so.
            () = own.timed_out(), if !cancelled.is_cancelled() => {
                cancelled.cancel();
                continue;
            }
            () = own.newest_progress().told() => {}
        }
        // Nobody hears once the worker has ended.
        let _ = events.send(Event::Progress(lease_id.clone())).await;
        if let Ok(result) = tokio::time::timeout(PROGRESS_INTERVAL, &mut work).await {
            break result;
        }
    };
    let result = result.unwrap_or_else(|panic| {
        let message = panic_message(&*panic);
        tracing::error!(lease_id, message, "an attempt panicked");
        Err(JobError::retryable("jobwire.panic", message))
    });
    let _ = events.send(Event::Done(lease_id, result)).await;
}
