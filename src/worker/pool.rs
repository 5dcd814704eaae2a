//! The pool inside the server: a bounded queue of leases, and tasks for their attempts.

use std::time::Duration;

use tokio::{
    runtime::Handle,
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

/// Attempts that one task begins, at most.
const TOGETHER: usize = 16;

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
        let (sender, queue) = mpsc::channel(1);
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
    mut queue: mpsc::Receiver<Vec<Assignment>>,
    mut handed: mpsc::UnboundedReceiver<Handover>,
    attempts: TaskTracker,
    stop: CancellationToken,
) {
    // Some for each thread, so that none has nothing to do while another has much.
    let shares = 4 * Handle::current().metrics().num_workers();
    loop {
        let came: Vec<Assignment> = tokio::select! {
            Some(came) = queue.recv() => came,
            Some(handover) = handed.recv() => assignments(handover).collect(),
            else => return,
        };
        let size = came.len().div_ceil(shares).min(TOGETHER);
        // Only kinds that have a handler are claimed.
        let mut begun = came.into_iter().filter_map(|assignment| {
            Some((handlers.get(&assignment.leased.job.spec.kind)?.clone(), assignment))
        });
        loop {
            let some: Vec<_> = begun.by_ref().take(size).collect();
            if some.is_empty() {
                break;
            }
            attempts.spawn(attempt::run(engine.clone(), some, stop.clone(), attempts.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::time::sleep;

    use super::*;
    use crate::{
        config::Config,
        engine::{Clock, Pressure},
        job::{FinalState, JobError, Payload, State, View},
        store::{sqlite::SqliteStore, suite::job},
        worker::Context,
    };

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn attempts_that_begin_together_end_each_in_its_own_way() {
        const EACH: usize = 100;
        let (dir, config, clock) =
            (tempfile::tempdir().unwrap(), Arc::new(Config::default()), Clock::default());
        let store = SqliteStore::open(dir.path(), config.clone(), clock.now()).unwrap();
        let engine = Engine::start(config.clone(), store, clock);
        let mut handlers = Handlers::builtin(&config).unwrap();
        handlers.add("panics", async |_: Context, _: ()| -> Result<(), JobError> { panic!("oh") }).unwrap();
        handlers
            .add("fails", async |_: Context, _: ()| Err::<(), _>(JobError::permanent("no", "no")))
            .unwrap();
        let waits = async |_: Context, _: ()| {
            sleep(Duration::from_millis(20)).await;
            Ok::<_, JobError>("waited")
        };
        handlers.add("waits", waits).unwrap();

        let kinds = ["echo", "panics", "fails", "waits"];
        let all: Vec<_> = (0..EACH).flat_map(|n| kinds.map(|kind| (kind, format!("{kind}-{n}")))).collect();
        let submission = |(kind, id): &(&str, String)| {
            job(id)
                .kind(kind)
                .max_attempts(1)
                .spec(|spec| spec.payload = Payload::new(Payload::JSON, "null"))
                .into()
        };
        engine.submit(all.iter().map(submission).collect(), Pressure::Wait).await.unwrap();
        // All of them are claimed at once.
        let pool = Pool::start(&engine, handlers, WorkerId::of_pool("p").unwrap());
        for (kind, id) in &all {
            let id = id.parse().unwrap();
            let job = loop {
                let job = engine.get(&id, View::Result).await.unwrap();
                if job.state.is_final() {
                    break job;
                }
                sleep(Duration::from_millis(5)).await;
            };
            let output = job.output.as_ref().map(|output| output.bytes().to_vec());
            let code = job.error.as_ref().map(|error| error.code.as_str());
            let expected = match *kind {
                "echo" => (FinalState::Succeeded, Some(b"null".to_vec()), None),
                "waits" => (FinalState::Succeeded, Some(b"\"waited\"".to_vec()), None),
                "panics" => (FinalState::Failed, None, Some("jobwire.panic")),
                _ => (FinalState::Failed, None, Some("no")),
            };
            assert_eq!((job.state, output, code), (State::Final(expected.0), expected.1, expected.2), "{id}");
        }
        engine.drain();
        pool.drain(Duration::from_secs(5)).await;
        engine.close().await;
    }
}
