//! The pool inside the server: a bounded queue of leases, and a task for each attempt.

use std::time::Duration;

use tokio::{sync::mpsc, task::JoinHandle};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    attempt,
    dispatch::{Assignment, Dispatcher},
};
use crate::{engine::Engine, handlers::Handlers, job::WorkerId};

/// Runs jobs in this process.
pub struct Pool {
    attempts: TaskTracker,
    stop: CancellationToken,
    dispatcher: JoinHandle<()>,
    runner: JoinHandle<()>,
}

impl Pool {
    /// Starts to claim and run jobs of the kinds that there are handlers for.
    pub fn start(engine: &Engine, handlers: Handlers, worker: WorkerId) -> Self {
        let concurrency = engine.config().workers.concurrency;
        let kinds = handlers.kinds().cloned().collect();
        let (sender, queue) = mpsc::channel(concurrency.max(1));
        let dispatcher = Dispatcher::new(engine.clone(), worker, kinds, concurrency, sender);
        let attempts = TaskTracker::new();
        let stop = CancellationToken::new();
        let runner = run(engine.clone(), handlers, queue, attempts.clone(), stop.clone());
        Self { attempts, stop, dispatcher: tokio::spawn(dispatcher.run()), runner: tokio::spawn(runner) }
    }

    /// Waits for the attempts that run, then gives back what is left, uncounted. The engine must be draining: nothing
    /// new is claimed.
    pub async fn drain(self, patience: Duration) {
        let Self { attempts, stop, dispatcher, runner } = self;
        let ended = async {
            // The dispatcher hands over what it has just claimed, and hangs up; then the runner has started the last.
            let _ = dispatcher.await;
            let _ = runner.await;
            attempts.close();
            attempts.wait().await;
        };
        tokio::pin!(ended);
        if tokio::time::timeout(patience, &mut ended).await.is_err() {
            tracing::warn!(attempts = attempts.len(), "attempts that still run are given back");
            stop.cancel();
            ended.await;
        }
    }
}

async fn run(
    engine: Engine,
    handlers: Handlers,
    mut queue: mpsc::Receiver<Assignment>,
    attempts: TaskTracker,
    stop: CancellationToken,
) {
    while let Some(Assignment { leased, slot }) = queue.recv().await {
        // Only kinds that have a handler are claimed.
        let Some(handler) = handlers.get(&leased.job.spec.kind).cloned() else { continue };
        attempts.spawn(attempt::run(engine.clone(), handler, leased, stop.clone(), slot));
    }
}
