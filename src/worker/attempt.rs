//! Attempts, from their leases to their settlement.

use std::{panic::AssertUnwindSafe, pin::Pin, sync::Arc, task::Poll, time::Duration};

use futures_util::{FutureExt as _, future::BoxFuture, poll};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{Context, ContextParts, Handler, dispatch::Assignment, panic_message};
use crate::{
    config::Limits,
    engine::{Engine, Held, NewestProgress, Revocation},
    job::{Cause, Error, Job, JobError, Payload, Progress, Report},
    store::{LeaseId, Leased, OnlyIf, ProgressHint, Settlement},
};

/// Watchers hear of progress this often at most.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

/// Between attempts to tell a store that cannot be reached.
const SETTLE_AGAIN: Duration = Duration::from_millis(500);

/// For so long a task begins one attempt after the other.
const TURN: Duration = Duration::from_millis(1);

/// Before a job whose turn did not come stands in line again.
const NEXT_TURN: Duration = Duration::from_secs(1);

/// What is to be reported, if anything: nobody wants the result of a lost lease.
type Verdict = Option<Report>;

/// What a handler has returned, or how it panicked.
type Ended = std::thread::Result<Result<Payload, JobError>>;

/// A handler that runs.
type Work = Pin<Box<dyn Future<Output = Ended> + Send>>;

/// Runs handlers and settles what comes of them. Those that have nothing to wait for are run one after the other and
/// settled together; each of the others goes on as one of `attempts`, by itself. `stop` is the end of the server's
/// patience: attempts are then given back. A slot is freed when its handler has ended, whatever the store still has to do.
pub fn run(
    engine: Engine,
    assignments: Vec<(Arc<dyn Handler>, Assignment)>,
    stop: CancellationToken,
    attempts: TaskTracker,
) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        let mut ended = Vec::with_capacity(assignments.len());
        let turn = Instant::now();
        let mut assignments = assignments.into_iter();
        while let Some((handler, Assignment { leased, slot })) = assignments.next() {
            let attempt = Attempt::begin(&engine, leased);
            let mut work = attempt.work(handler);
            match poll!(&mut work) {
                Poll::Ready(result) => {
                    let report = attempt.ended(result);
                    ended.push((attempt, report));
                }
                Poll::Pending => {
                    let (engine, stop) = (engine.clone(), stop.clone());
                    attempts.spawn(go_on(engine, attempt, work, stop, slot));
                }
            }
            if turn.elapsed() >= TURN {
                // These compute: other threads may have some.
                for assignment in assignments.by_ref() {
                    let one = run(engine.clone(), vec![assignment], stop.clone(), attempts.clone());
                    attempts.spawn(one);
                }
            }
        }
        settle(&engine, ended).await;
    })
}

/// Runs a handler that has to wait for something to its end, and settles what comes of it.
async fn go_on(
    engine: Engine,
    mut attempt: Attempt,
    work: Work,
    stop: CancellationToken,
    slot: impl Send + 'static,
) {
    let verdict = attempt.wait_for(&engine, work, stop).await;
    drop(slot);
    settle(&engine, verdict.map(|report| (attempt, report)).into_iter().collect()).await;
}

/// Tells the store, again for as long as it cannot be reached: no lease ends meanwhile.
async fn settle(engine: &Engine, ended: Vec<(Attempt, Report)>) {
    if ended.is_empty() {
        return;
    }
    let (attempts, settlements): (Vec<_>, Vec<_>) = ended
        .into_iter()
        .map(|(attempt, report)| {
            let settlement = attempt.settlement(bounded(report, &engine.config().limits));
            (attempt, settlement)
        })
        .unzip();
    let settled = loop {
        match engine.settle_all(settlements.clone()).await {
            Err(Error::StoreUnavailable(_)) => tokio::select! {
                why = engine.store_failed() => break Err(Error::StoreUnavailable(why.to_string())),
                () = sleep(SETTLE_AGAIN) => {}
            },
            settled => break settled,
        }
    };
    let settled = settled.unwrap_or_else(|error| vec![Err(error); attempts.len()]);
    for (Attempt { job, .. }, settled) in attempts.iter().zip(settled) {
        match settled {
            Ok(()) => {}
            Err(Error::LeaseLost) => {
                tracing::info!(job_id = %job.id, attempt = job.attempt, "a result came too late")
            }
            Err(error) => tracing::error!(job_id = %job.id, %error, "a result could not be stored"),
        }
    }
}

/// A lease whose handler runs, or has ended. Held until it is dropped.
struct Attempt {
    lease: LeaseId,
    job: Arc<Job>,
    context: Context,
    held: Held,
}

impl Attempt {
    fn begin(engine: &Engine, Leased { lease, job, attempt_timeout }: Leased) -> Self {
        let parts = ContextParts {
            job_id: job.id.clone(),
            run: job.run,
            attempt: job.attempt,
            spec: job.spec.clone(),
            trace: job.trace.clone(),
            deadline: Instant::now() + attempt_timeout,
            last_progress: job.progress.clone(),
            clock: engine.clock().clone(),
        };
        let context = Context::new(parts);
        let held = engine.leases().hold(lease, job.id.clone(), context.newest_progress().clone());
        Self { lease, job, context, held }
    }

    fn work(&self, handler: Arc<dyn Handler>) -> Work {
        let (context, payload) = (self.context.clone(), self.job.spec.payload.clone());
        // A handler that panics before its first await must be caught too.
        Box::pin(AssertUnwindSafe(async move { handler.run(context, payload).await }).catch_unwind())
    }

    fn settlement(&self, report: Report) -> Settlement {
        Settlement {
            lease: self.lease,
            report,
            only_if: OnlyIf::Held,
            jitter: fastrand::f64(),
            progress: self.context.newest_progress().get(),
            job: Some(self.job.clone()),
        }
    }

    async fn wait_for(&mut self, engine: &Engine, mut work: Work, stop: CancellationToken) -> Verdict {
        let grace = engine.config().workers.grace;
        loop {
            tokio::select! {
                biased;
                result = &mut work => return Some(self.ended(result)),
                () = self.context.timed_out() => {
                    self.context.cancelled().cancel();
                    return Some(self.report_timeout(timeout(grace, &mut work).await.ok()));
                }
                why = self.held.revoked() => {
                    self.context.cancelled().cancel();
                    let late = timeout(grace, &mut work).await;
                    return match why {
                        Revocation::Cancelled => Some(self.report_late(late.ok(), Cause::Cancelled, "the job was cancelled")),
                        Revocation::Lost => None,
                    };
                }
                () = stop.cancelled() => {
                    self.context.cancelled().cancel();
                    // A handler that is just done may say so.
                    let late = timeout(Duration::from_millis(100), &mut work).await;
                    return match late {
                        Ok(Ok(Ok(output))) => Some(Report::Succeeded(output)),
                        _ => Some(Report::Released { delay: Duration::ZERO }),
                    };
                }
                newest = next_progress(self.context.newest_progress()) => self.tell(engine, newest),
            }
        }
    }

    fn ended(&self, result: Ended) -> Report {
        // Handlers know the deadline too: one that gives in to it has not failed by itself.
        match Instant::now() < self.context.deadline() {
            true => self.report(result),
            false => self.report_timeout(Some(result)),
        }
    }

    fn report(&self, result: Ended) -> Report {
        match result {
            Ok(Ok(output)) => Report::Succeeded(output),
            Ok(Err(error)) => Report::Failed(error),
            Err(panic) => {
                let message = panic_message(&*panic);
                tracing::error!(job_id = %self.job.id, kind = %self.job.spec.kind, message, "an attempt panicked");
                Report::Failed(JobError::new(Cause::Crash, "jobwire.panic", &message, true))
            }
        }
    }

    fn report_timeout(&self, result: Option<Ended>) -> Report {
        match self.report_late(result, Cause::Timeout, "the attempt took longer than its attempt_timeout") {
            Report::Failed(_) if self.context.waited_in_vain() => Report::Released { delay: NEXT_TURN },
            report => report,
        }
    }

    /// Success within the grace still counts; anything else is what the attempt was stopped for.
    fn report_late(&self, result: Option<Ended>, cause: Cause, message: &str) -> Report {
        match result {
            Some(Ok(Ok(output))) => Report::Succeeded(output),
            _ => {
                let code =
                    if cause == Cause::Timeout { "jobwire.attempt_timeout" } else { "jobwire.cancelled" };
                Report::Failed(JobError::new(cause, code, message, true))
            }
        }
    }

    fn tell(&self, engine: &Engine, progress: Progress) {
        let (job_id, run, attempt) = (self.job.id.clone(), self.job.run, self.job.attempt);
        engine.tell_progress(ProgressHint { job_id, run, attempt, progress });
    }
}

async fn next_progress(progress: &NewestProgress) -> Progress {
    loop {
        progress.told().await;
        sleep(PROGRESS_INTERVAL).await;
        if let Some(newest) = progress.take_new() {
            return newest;
        }
    }
}

/// Holds a handler to the limits of what a job may carry.
fn bounded(report: Report, limits: &Limits) -> Report {
    let max_output = limits.max_output_bytes;
    match report {
        Report::Succeeded(output) if output.size > max_output => {
            let message = format!(
                "the output has {} bytes, more than the {max_output} that are allowed: store it elsewhere and return a \
                 reference, or raise limits.max_output_bytes",
                output.size
            );
            Report::Failed(JobError::new(Cause::Handler, "jobwire.output_too_large", &message, false))
        }
        Report::Failed(mut error) => {
            error.details = error.details.filter(|details| details.size <= JobError::DETAILS_MAX);
            error.retry_delay = error.retry_delay.map(|delay| delay.min(limits.max_delay));
            Report::Failed(error)
        }
        other => other,
    }
}
