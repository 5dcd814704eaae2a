//! Leases that leave the process: held by programs that connect, renewed by their heartbeats, and theirs also while
//! they are not connected.
//!
//! The pool's leases are in [`Leases`](super::Leases); both are claimed, renewed and settled by the same calls of the
//! store. What the pool's attempt does for itself is done here for a worker that may be gone: its time limit, the grace
//! after a cancel, and the way back of a lease that it never confirmed.

mod grants;
mod requests;
mod session;

use std::{collections::HashSet, sync::Arc, time::Duration};

pub use grants::{Elapsed, Remote};
pub use requests::{LeaseRequest, Requests};
pub use session::Session;

use self::grants::Grant;
use super::{BATCH, Engine};
use crate::{
    job::{Cause, Error, Job, JobError, JobId, Progress, Report, Timestamp, View},
    store::{Claim, LeaseId, OnlyIf, Renewal, Renewed, Settlement, Store},
};

/// Why the attempt of a lease must stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// Somebody cancelled the job: a report within the grace still counts.
    Cancelled,
    /// It took longer than its attempt_timeout: a success within the grace still counts.
    Timeout,
    /// The lease is over.
    Expired,
}

/// A lease that a worker was given, with what it needs to know.
#[derive(Clone, Debug)]
pub struct Granted {
    pub lease: LeaseId,
    /// Counts the leases of one stream from 1.
    pub sequence: i64,
    /// With its input.
    pub job: Arc<Job>,
    pub until: Timestamp,
    pub deadline: Timestamp,
}

/// What became of the leases that a worker named.
#[derive(Clone, Debug, Default)]
pub struct Named {
    /// Over: their work is to be dropped.
    pub lost: Vec<LeaseId>,
    /// Held, but their attempts must stop; with the rest of their grace.
    pub stopped: Vec<(LeaseId, Stopped, Duration)>,
    /// When the first of the others ends. None if there are none.
    pub until: Option<Timestamp>,
}

impl Engine {
    /// Connects a worker that still is at work on the leases it names.
    pub async fn connect(&self, session: &Arc<Session>, named: &HashSet<LeaseId>) -> Result<Named, Error> {
        let found = self.renew_named(Some(session), named, self.config().workers.lease).await?;
        // From here on an earlier stream that ends gives back what was not named.
        self.remote().attend(session);
        // What it was sent before its last stream broke, and has not got.
        self.give_back(self.remote().take_orphans(session.worker(), named)).await;
        Ok(found)
    }

    /// The stream of a worker has ended. What it holds stays its own: it may come back.
    pub fn disconnect(&self, session: &Arc<Session>) {
        let lost = self.remote().abandon(session);
        if !lost.is_empty() {
            let engine = self.clone();
            tokio::spawn(async move { engine.give_back(lost).await });
        }
    }

    /// Gives due jobs to a worker.
    pub async fn grant(&self, holder: Option<&Arc<Session>>, claim: Claim) -> Result<Vec<Granted>, Error> {
        let lease = claim.lease;
        let leased = self.claim(claim).await?;
        Ok(self.remote().grant(holder, leased, lease))
    }

    /// Renews what a worker holds. What it has got by `last_sequence` but does not name was lost on the way, unless it
    /// had confirmed it before, and goes back uncounted.
    pub async fn heartbeat(
        &self,
        session: &Arc<Session>,
        named: &HashSet<LeaseId>,
        last_sequence: i64,
    ) -> Result<Named, Error> {
        let unnamed = session.unnamed(named, last_sequence);
        let found = self.renew_named(Some(session), named, self.config().workers.lease).await?;
        self.give_back(self.remote().take_unconfirmed(&unnamed)).await;
        Ok(found)
    }

    /// Renews leases by their names, whoever asks.
    pub async fn renew_named(
        &self,
        holder: Option<&Arc<Session>>,
        named: &HashSet<LeaseId>,
        lease: Duration,
    ) -> Result<Named, Error> {
        self.adopt(named).await?;
        let now = self.clock().now();
        // The lease that is asked for may be shorter than the time between heartbeats.
        let slack = (self.config().workers.heartbeat / 2).min(lease / 8);
        let mut found = Named::default();
        let renewals = self.remote().confirm(holder, named, (now, lease, slack), &mut found);
        for renewals in renewals.chunks(BATCH) {
            self.renew(now, renewals, &mut found).await?;
        }
        self.remote().report(named, now, &mut found);
        Ok(found)
    }

    async fn renew(&self, now: Timestamp, renewals: &[Renewal], found: &mut Named) -> Result<(), Error> {
        let leases = renewals.iter().map(|renewal| renewal.lease);
        let renewed = self.0.store.renew(now, renewals.to_vec()).await;
        let renewed = renewed.inspect_err(|_| self.remote().not_stored(leases))?;
        assert_eq!(renewed.len(), renewals.len(), "one answer for each renewal");
        let grace = now.after(self.config().workers.grace);
        for (&Renewal { lease, until, .. }, renewed) in renewals.iter().zip(renewed) {
            if let (Renewed::Held | Renewed::Cancelled, Some(until)) = (&renewed, until) {
                self.remote().renewed(lease, until);
            }
            match renewed {
                Renewed::Held => {}
                Renewed::Cancelled => {
                    self.remote().stop(lease, Stopped::Cancelled, grace);
                }
                Renewed::Lost => {
                    self.remote().remove(lease);
                    found.lost.push(lease);
                }
            }
        }
        Ok(())
    }

    /// Takes into care what a process before this one handed out.
    pub async fn adopt(&self, named: &HashSet<LeaseId>) -> Result<(), Error> {
        let unknown = self.remote().unknown(named);
        for unknown in unknown.chunks(BATCH) {
            let jobs = self.0.store.leased(unknown.to_vec(), false).await?;
            for (&lease, job) in unknown.iter().zip(jobs) {
                if let Some(job) = job {
                    let deadline = self.deadline(&job);
                    self.remote().insert(lease, Grant::of_before(&job, deadline));
                }
            }
        }
        Ok(())
    }

    /// When the attempt that runs now is over its time.
    fn deadline(&self, job: &Job) -> Timestamp {
        let timeout = job.spec.attempt_timeout;
        let timeout = timeout.unwrap_or_else(|| self.config().queue_policy(&job.spec.queue).attempt_timeout);
        job.start_time.unwrap_or(self.clock().now()).after(timeout)
    }

    /// Gives leases back that nobody works on, as far as is known here: their attempts do not count.
    pub async fn give_back(&self, leases: Vec<LeaseId>) {
        if leases.is_empty() {
            return;
        }
        let released = |lease| Settlement { only_if: OnlyIf::Own, ..Settlement::release(lease) };
        let given = self.settle_all(leases.into_iter().map(released).collect()).await;
        for given in given.unwrap_or_else(|error| vec![Err(error)]) {
            match given {
                // Its worker was faster, perhaps at another server.
                Ok(()) | Err(Error::LeaseLost) => {}
                Err(error) => tracing::error!(%error, "a lease could not be given back"),
            }
        }
    }

    /// How far the attempt of a lease has come. False if nobody holds it.
    pub fn report_progress(&self, lease: LeaseId, progress: Progress) -> bool {
        self.remote().progress(lease, progress)
    }

    /// Takes leases back out of care that no worker has confirmed.
    pub fn take_unconfirmed(&self, leases: &[LeaseId]) -> Vec<LeaseId> {
        self.remote().take_unconfirmed(leases)
    }

    /// Takes the report of a worker beyond the process: from now on the lease is none that the worker holds. The future
    /// carries it out, and answers once it is durable. A repeat of the report that ended the job counts as well.
    ///
    /// # Errors
    /// [`Error::LeaseLost`] if the lease is over: drop the result.
    pub fn finish(
        &self,
        lease: LeaseId,
        report: Report,
    ) -> impl Future<Output = Result<(), Error>> + Send + use<> {
        let engine = self.clone();
        let (grant, report) = self.remote().begin_finish(lease, report, self.clock().now());
        async move {
            let settlement = Settlement {
                progress: grant.as_ref().and_then(|grant| grant.progress.clone()),
                ..settlement(lease, report.clone(), grant.map(|grant| grant.job))
            };
            let settled = engine.settle(settlement).await;
            match &settled {
                Ok(()) | Err(Error::LeaseLost) => engine.remote().remove(lease),
                // Its worker reports again, and holds it until then.
                Err(_) => engine.remote().not_reported(lease),
            }
            match settled {
                Err(Error::LeaseLost) if engine.has_counted(lease, &report).await? => Ok(()),
                other => other,
            }
        }
    }

    /// Whether a report is what its job has ended with: its answer was lost, and it came again.
    async fn has_counted(&self, lease: LeaseId, report: &Report) -> Result<bool, Error> {
        let Some((id, true)) = self.0.store.lease_job(lease).await? else { return Ok(false) };
        let job = match self.get(&id, View::Result).await {
            Err(Error::JobNotFound { .. }) => return Ok(false),
            job => job?,
        };
        Ok(match report {
            Report::Succeeded(output) => job.output.as_ref() == Some(output),
            Report::Failed(error) => job.error.as_ref() == Some(error),
            Report::Released { .. } => false,
        })
    }

    /// The job that a lease was given on.
    pub async fn lease_job(&self, lease: LeaseId) -> Result<Option<JobId>, Error> {
        Ok(self.0.store.lease_job(lease).await?.map(|(id, _)| id))
    }

    /// What the texts of leases are signed with.
    pub fn lease_key(&self) -> [u8; 32] {
        self.0.store.lease_key()
    }
}

/// What time changes for leases beyond the process. To be called before the store's own [`Store::tick`], which spends
/// attempts whose leases are over.
pub async fn elapse(
    store: &dyn Store,
    remote: &Remote,
    now: Timestamp,
    grace: Duration,
) -> Result<(), Error> {
    loop {
        let Elapsed { settlements, renewals, more } = remote.elapse(now, grace);
        if !settlements.is_empty() {
            settle(store, remote, now, settlements).await?;
        }
        if !renewals.is_empty() {
            let leases: Vec<_> = renewals.iter().map(|renewal| renewal.lease).collect();
            store.renew(now, renewals).await.inspect_err(|_| remote.not_stored(leases.into_iter()))?;
        }
        if !more {
            return Ok(());
        }
    }
}

/// Ends attempts whose time is over. What the store does not know to be over yet stays in care.
async fn settle(
    store: &dyn Store,
    remote: &Remote,
    now: Timestamp,
    settlements: Vec<Settlement>,
) -> Result<(), Error> {
    let asked: Vec<_> = settlements.iter().map(|settlement| (settlement.lease, settlement.only_if)).collect();
    let mut refused = Vec::new();
    for ((lease, only_if), settled) in asked.into_iter().zip(store.settle(now, settlements).await?) {
        match (only_if, settled) {
            // It has been prolonged: by its worker, or because nobody could be reached for a while.
            (OnlyIf::OwnAndOver, Err(_)) => refused.push(lease),
            (OnlyIf::OwnAndOver, Ok(())) => remote.stop(lease, Stopped::Expired, now),
            _ => remote.remove(lease),
        }
    }
    if !refused.is_empty() {
        let jobs = store.leased(refused.clone(), false).await?;
        let gone = refused.into_iter().zip(jobs).filter(|(_, job)| job.is_none());
        gone.for_each(|(lease, _)| remote.remove(lease));
    }
    Ok(())
}

/// Watchers hear of the progress of one attempt this often at most.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

/// Tells watchers how far attempts have come, for ever.
pub async fn tell_progress(engine: &Engine) {
    loop {
        for hint in engine.remote().fresh_progress().await {
            engine.tell_progress(hint);
        }
        tokio::time::sleep(PROGRESS_INTERVAL).await;
    }
}

fn settlement(lease: LeaseId, report: Report, job: Option<Arc<Job>>) -> Settlement {
    Settlement { lease, report, only_if: OnlyIf::Held, jitter: fastrand::f64(), progress: None, job }
}

/// What an attempt is spent with that was stopped and has not given in.
fn failure(why: Stopped) -> Report {
    let (cause, code, message) = match why {
        Stopped::Timeout => {
            (Cause::Timeout, "jobwire.attempt_timeout", "the attempt took longer than its attempt_timeout")
        }
        Stopped::Cancelled => (Cause::Cancelled, "jobwire.cancelled", "the job was cancelled"),
        Stopped::Expired => (Cause::LeaseExpired, "jobwire.lease_expired", "the lease was not renewed"),
    };
    Report::Failed(JobError::new(cause, code, message, true))
}
