use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
    time::Duration,
};

use serde::Serialize;
use tokio::{
    sync::AcquireError,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use crate::{
    engine::{Clock, NewestProgress},
    job::{JobError, JobId, JobSpec, Kind, Payload, Progress, QueueName, cut},
};

/// What a handler knows of its attempt, and how it reports progress. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Context(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    parts: ContextParts,
    /// Made when it is first asked for: most attempts end without.
    cancelled: OnceLock<CancellationToken>,
    progress: Arc<NewestProgress>,
    /// How long the attempt stood in line before its turn came; None if it did not come.
    waited: OnceLock<Option<Duration>>,
}

/// What a [`Context`] is made of.
#[derive(Clone, Debug)]
pub struct ContextParts {
    pub job_id: JobId,
    pub run: u32,
    /// Attempts begun in this run, this one included.
    pub attempt: u32,
    pub spec: Arc<JobSpec>,
    /// The W3C trace headers of the Submit call.
    pub trace: BTreeMap<String, String>,
    /// When the attempt times out, unless it has to stand in line first.
    pub deadline: Instant,
    /// What the attempt before this one reported last.
    pub last_progress: Option<Progress>,
    pub clock: Arc<Clock>,
}

impl Context {
    /// The context of one attempt.
    pub fn new(parts: ContextParts) -> Self {
        let (cancelled, progress) = (OnceLock::new(), Arc::default());
        Self(Arc::new(Inner { parts, cancelled, progress, waited: OnceLock::new() }))
    }

    /// What the attempt reports.
    pub(crate) fn newest_progress(&self) -> &Arc<NewestProgress> {
        &self.0.progress
    }

    /// The same in every attempt and run.
    pub fn job_id(&self) -> &JobId {
        &self.0.parts.job_id
    }

    /// 1, plus one for every retry by hand.
    pub fn run(&self) -> u32 {
        self.0.parts.run
    }

    /// 1 for the first attempt of the run.
    pub fn attempt(&self) -> u32 {
        self.0.parts.attempt
    }

    pub fn queue(&self) -> &QueueName {
        &self.0.parts.spec.queue
    }

    pub fn kind(&self) -> &Kind {
        &self.0.parts.spec.kind
    }

    pub fn labels(&self) -> &BTreeMap<String, String> {
        &self.0.parts.spec.labels
    }

    /// The W3C trace headers of the Submit call, by lower-case name.
    pub fn trace(&self) -> &BTreeMap<String, String> {
        &self.0.parts.trace
    }

    /// When the attempt times out. The time that it stood in line for a place is not counted.
    pub fn deadline(&self) -> Instant {
        self.0.parts.deadline + self.0.waited.get().copied().flatten().unwrap_or_default()
    }

    /// Fires when the attempt is to stop: the job was cancelled, its time is over, or the server stops.
    pub fn cancelled(&self) -> &CancellationToken {
        self.0.cancelled.get_or_init(CancellationToken::new)
    }

    /// Waits until the attempt is to stop, or its deadline has passed.
    pub async fn stopped(&self) {
        tokio::select! {
            () = self.cancelled().cancelled() => {}
            () = self.timed_out() => {}
        }
    }

    /// Waits until the deadline has passed.
    pub(crate) async fn timed_out(&self) {
        // It moves when the attempt's turn comes.
        while Instant::now() < self.deadline() {
            sleep_until(self.deadline()).await;
        }
    }

    /// Awaits `work`, and drops it unfinished if the attempt is to stop first: then the error is
    /// [`Context::interrupted`].
    pub async fn unless_stopped<T>(&self, work: impl Future<Output = T>) -> Result<T, JobError> {
        tokio::select! {
            done = work => Ok(done),
            () = self.stopped() => Err(self.interrupted()),
        }
    }

    /// Stands in line for what the attempt needs before it can do anything. Ends as [`Context::unless_stopped`] does. The
    /// first such wait takes none of the attempt's time; later ones are part of the work.
    pub(crate) async fn in_line<T>(
        &self,
        turn: impl Future<Output = Result<T, AcquireError>>,
    ) -> Result<T, JobError> {
        let start = Instant::now();
        let turn = tokio::select! {
            biased;
            // A turn that comes with the end comes too late.
            () = self.stopped() => Err(self.interrupted()),
            turn = turn => Ok(turn),
        };
        self.0.waited.get_or_init(|| turn.is_ok().then(|| start.elapsed()));
        // Fails only if a semaphore was closed, which is never done.
        turn?.map_err(|_| self.interrupted())
    }

    /// Whether the attempt was to stop before its turn came: it has done nothing.
    pub(crate) fn waited_in_vain(&self) -> bool {
        self.0.waited.get() == Some(&None)
    }

    /// What a handler may return once it was told to stop. What becomes of the job does not depend on it.
    pub fn interrupted(&self) -> JobError {
        JobError::retryable(
            "interrupted",
            "stopped before it was done: the job was cancelled, its time is over, or the server stops",
        )
    }

    /// What the attempt before this one reported last, with its checkpoint.
    pub fn last_progress(&self) -> Option<&Progress> {
        self.0.parts.last_progress.as_ref()
    }

    /// Reports how far the attempt has come: `fraction` from 0 to 1, `note` up to [`Progress::NOTE_MAX`] bytes; what
    /// is beyond is cut. Never blocks; only the newest report is kept. The newest checkpoint stays with it.
    pub fn progress(&self, fraction: f64, note: &str) {
        self.report(fraction, note, None);
    }

    /// Like [`Context::progress`], with a checkpoint that is handed to the next attempt: see
    /// [`Context::last_progress`].
    ///
    /// Fails with `checkpoint.invalid` if `details` cannot be written as JSON of at most
    /// [`Progress::DETAILS_MAX`] bytes.
    pub fn checkpoint(&self, fraction: f64, note: &str, details: impl Serialize) -> Result<(), JobError> {
        let invalid = |why: String| JobError::permanent("checkpoint.invalid", why);
        let json = serde_json::to_vec(&details)
            .map_err(|error| invalid(format!("the checkpoint cannot be written as JSON: {error}")))?;
        if json.len() > Progress::DETAILS_MAX {
            return Err(invalid(format!(
                "the checkpoint has {} bytes, more than the {} that are allowed: keep a reference to the data instead",
                json.len(),
                Progress::DETAILS_MAX
            )));
        }
        self.report(fraction, note, Some(Payload::new(Payload::JSON, json)));
        Ok(())
    }

    fn report(&self, fraction: f64, note: &str, details: Option<Payload>) {
        let fraction = if fraction.is_nan() { 0.0 } else { fraction.clamp(0.0, 1.0) };
        let note = cut(note, Progress::NOTE_MAX);
        self.0.progress.tell(|newest| {
            let checkpoint = newest.or_else(|| self.last_progress().cloned()).and_then(|p| p.details);
            let details = details.or(checkpoint);
            Progress { fraction, note, details, update_time: self.0.parts.clock.now() }
        });
    }
}

#[cfg(test)]
mod tests {
    use tokio::{sync::Semaphore, time::sleep};

    use super::*;

    fn context(last_progress: Option<Progress>) -> Context {
        let spec = JobSpec::new("echo".parse().unwrap(), Payload::none());
        let parts = ContextParts {
            job_id: "job-1".parse().unwrap(),
            run: 1,
            attempt: 2,
            spec: Arc::new(spec),
            trace: BTreeMap::new(),
            deadline: Instant::now() + Duration::from_secs(60),
            last_progress,
            clock: Arc::default(),
        };
        Context::new(parts)
    }

    fn newest(context: &Context) -> Progress {
        context.newest_progress().get().unwrap()
    }

    #[test]
    fn only_the_newest_progress_is_kept_within_its_limits() {
        let context = context(None);
        context.progress(0.1, "first");
        context.progress(f64::NAN, "second");
        assert_eq!(newest(&context).fraction, 0.0);
        context.progress(7.0, &"ü".repeat(Progress::NOTE_MAX));
        let progress = newest(&context);
        assert_eq!(progress.fraction, 1.0);
        assert_eq!(progress.note.len(), Progress::NOTE_MAX);
        assert_eq!(progress.details, None);
    }

    #[test]
    fn a_checkpoint_outlives_plain_progress_and_attempts() {
        let first = context(None);
        first.checkpoint(0.5, "half", [1, 2]).unwrap();
        first.progress(0.6, "more");
        let last = newest(&first);
        assert_eq!(last.details, Some(Payload::new(Payload::JSON, "[1,2]")));

        let second = context(Some(last.clone()));
        assert_eq!(second.last_progress(), Some(&last));
        second.progress(0.1, "again");
        assert_eq!(newest(&second).details, last.details);
    }

    #[tokio::test(start_paused = true)]
    async fn standing_in_line_takes_no_time_of_the_attempt() {
        let (context, line) = (context(None), Arc::new(Semaphore::new(0)));
        let end = context.deadline();
        let come = async {
            sleep(Duration::from_secs(40)).await;
            line.add_permits(1);
        };
        let (place, ()) = tokio::join!(context.in_line(line.clone().acquire_owned()), come);
        assert!(place.is_ok() && !context.waited_in_vain());
        assert_eq!((context.deadline() - end).as_secs(), 40);

        // It has its minute, and one more wait is part of that.
        let start = Instant::now();
        assert_eq!(context.in_line(line.acquire_owned()).await.unwrap_err().code, "interrupted");
        assert_eq!(start.elapsed().as_secs(), 60);
        assert!(!context.waited_in_vain());
    }

    #[tokio::test(start_paused = true)]
    async fn a_turn_that_does_not_come_is_known() {
        let context = context(None);
        assert!(!context.waited_in_vain());
        let never = Arc::new(Semaphore::new(0)).acquire_owned();
        assert_eq!(context.in_line(never).await.unwrap_err().code, "interrupted");
        assert!(context.waited_in_vain());
    }

    #[test]
    fn a_checkpoint_that_is_too_large_is_refused() {
        let context = context(None);
        let error = context.checkpoint(0.5, "", "x".repeat(Progress::DETAILS_MAX)).unwrap_err();
        assert_eq!(error.code, "checkpoint.invalid");
        assert!(!error.retryable);
        assert!(context.newest_progress().get().is_none());
    }
}
