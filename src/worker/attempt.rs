//! One attempt, from its lease to its settlement.

use std::{
    panic::AssertUnwindSafe,
    pin::{Pin, pin},
    sync::Arc,
    task::Poll,
    time::Duration,
};

use futures_util::{FutureExt as _, poll};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::{Context, ContextParts, Handler, panic_message};
use crate::{
    config::Limits,
    engine::{Engine, Held, NewestProgress, Revocation},
    job::{Cause, Error, Job, JobError, Payload, Progress, Report},
    store::{Leased, OnlyIf, ProgressHint, Settlement},
};

/// Watchers hear of progress this often at most.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

/// Between attempts to tell a store that cannot be reached.
const SETTLE_AGAIN: Duration = Duration::from_millis(500);

/// Before a job whose turn did not come stands in line again.
const NEXT_TURN: Duration = Duration::from_secs(1);

/// What is to be reported, if anything: nobody wants the result of a lost lease.
type Verdict = Option<Report>;

/// What a handler has returned, or how it panicked.
type Ended = std::thread::Result<Result<Payload, JobError>>;

/// Runs a handler and settles what comes of it. `stop` is the end of the server's patience: the attempt is then given
/// back. `slot` is freed when the handler has ended, whatever the store still has to do.
pub async fn run(
    engine: Engine,
    handler: Arc<dyn Handler>,
    leased: Leased,
    stop: CancellationToken,
    slot: impl Send + 'static,
) {
    let Leased { lease, job, attempt_timeout } = leased;
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
    let progress = context.newest_progress().clone();
    let held = engine.leases().hold(lease, job.id.clone(), progress.clone());
    let attempt = Attempt { engine: &engine, job: &job, context, stop, held };
    let verdict = attempt.supervise(handler).await;
    drop(slot);

    let Some(report) = verdict else { return };
    let report = bounded(report, &engine.config().limits);
    let settlement = Settlement {
        lease,
        report,
        only_if: OnlyIf::Held,
        jitter: fastrand::f64(),
        progress: progress.get(),
        job: Some(job.clone()),
    };
    match settle(&engine, settlement).await {
        Ok(()) => {}
        Err(Error::LeaseLost) => {
            tracing::info!(job_id = %job.id, attempt = job.attempt, "a result came too late")
        }
        Err(error) => tracing::error!(job_id = %job.id, %error, "a result could not be stored"),
    }
}

/// Tells the store, again for as long as it cannot be reached: no lease ends meanwhile.
async fn settle(engine: &Engine, settlement: Settlement) -> Result<(), Error> {
    loop {
        match engine.settle(settlement.clone()).await {
            Err(Error::StoreUnavailable(_)) => tokio::select! {
                why = engine.store_failed() => return Err(Error::StoreUnavailable(why.to_string())),
                () = sleep(SETTLE_AGAIN) => {}
            },
            settled => return settled,
        }
    }
}

struct Attempt<'a> {
    engine: &'a Engine,
    job: &'a Job,
    context: Context,
    stop: CancellationToken,
    held: Held,
}

impl Attempt<'_> {
    async fn supervise(self, handler: Arc<dyn Handler>) -> Verdict {
        let (context, payload) = (self.context.clone(), self.job.spec.payload.clone());
        // A handler that panics before its first await must be caught too.
        let mut work =
            pin!(AssertUnwindSafe(async move { handler.run(context, payload).await }).catch_unwind());
        match poll!(&mut work) {
            Poll::Ready(result) => Some(self.ended(result)),
            // By itself, so that little is set up for those that have nothing to wait for.
            Poll::Pending => Box::pin(self.wait_for(work)).await,
        }
    }

    async fn wait_for(mut self, mut work: Pin<&mut impl Future<Output = Ended>>) -> Verdict {
        let grace = self.engine.config().workers.grace;
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
                () = self.stop.cancelled() => {
                    self.context.cancelled().cancel();
                    // A handler that is just done may say so.
                    let late = timeout(Duration::from_millis(100), &mut work).await;
                    return match late {
                        Ok(Ok(Ok(output))) => Some(Report::Succeeded(output)),
                        _ => Some(Report::Released { delay: Duration::ZERO }),
                    };
                }
                newest = next_progress(self.context.newest_progress()) => self.tell(newest),
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

    fn tell(&self, progress: Progress) {
        let (job_id, run, attempt) = (self.job.id.clone(), self.job.run, self.job.attempt);
        self.engine.tell_progress(ProgressHint { job_id, run, attempt, progress });
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
