//! The pool inside the server: a bounded queue of leases, and a task for each attempt.

use std::time::Duration;

use tokio::{
    sync::mpsc,
    task::{AbortHandle, JoinHandle},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    attempt,
    dispatch::{Assignment, Dispatcher, assignments},
};
use crate::{engine::Engine, handlers::Handlers, job::WorkerId, store::Handover};

/// For as long attempts may take to be given back, their grace included. Longer only takes a store that does not answer.
const GIVING_BACK: Duration = Duration::from_secs(60);

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
        // The slots bound what is on its way here.
        let (handover, handed) = mpsc::unbounded_channel();
        let dispatcher = Dispatcher::new(engine.clone(), worker, kinds, concurrency, sender, handover);
        let attempts = TaskTracker::new();
        let stop = CancellationToken::new();
        let runner = run(engine.clone(), handlers, queue, handed, attempts.clone(), stop.clone());
        Self { attempts, stop, dispatcher: tokio::spawn(dispatcher.run()), runner: tokio::spawn(runner) }
    }

    /// Waits for the attempts that run, then gives back what is left, uncounted. The engine must be draining: nothing
    /// new is claimed.
    pub async fn drain(self, patience: Duration) {
        let Self { attempts, stop, dispatcher, runner } = self;
        let tasks = [dispatcher.abort_handle(), runner.abort_handle()];
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
            if tokio::time::timeout(GIVING_BACK, ended).await.is_err() {
                tracing::error!(
                    "the store does not answer: what is left runs again when its leases are over"
                );
                tasks.iter().for_each(AbortHandle::abort);
            }
        }
    }
}

async fn run(
    engine: Engine,
    handlers: Handlers,
    mut queue: mpsc::Receiver<Assignment>,
    mut handed: mpsc::UnboundedReceiver<Handover>,
    attempts: TaskTracker,
    stop: CancellationToken,
) {
    let begin = |Assignment { leased, slot }: Assignment| {
        // Only kinds that have a handler are claimed.
        if let Some(handler) = handlers.get(&leased.job.spec.kind).cloned() {
            attempts.spawn(attempt::run(engine.clone(), handler, leased, stop.clone(), slot));
        }
    };
    loop {
        tokio::select! {
            Some(assignment) = queue.recv() => begin(assignment),
            Some(handover) = handed.recv() => assignments(handover).for_each(&begin),
            else => return,
        }
    }
}
