//! Jobs, put together from what every store keeps of them.

use std::{collections::BTreeMap, sync::Arc};

use crate::job::{Attempt, Job, JobId, JobSpec, Live, Progress, State, Timestamp};

/// What never changes of a job.
#[derive(Clone, Debug)]
pub struct Fixed {
    pub id: JobId,
    pub spec: Arc<JobSpec>,
    pub trace: BTreeMap<String, String>,
    pub submitted: Timestamp,
}

impl Fixed {
    /// An unfinished job that has no past.
    pub fn live(self, live: &Live) -> Job {
        let lease = live.lease.as_ref();
        Job {
            id: self.id,
            spec: self.spec,
            state: State::Live(live.state),
            attempt: live.attempt,
            run: live.run,
            output: None,
            error: None,
            progress: None,
            cancel_requested: live.cancel_reason.is_some(),
            worker: lease.map(|lease| lease.worker.clone()),
            submit_time: self.submitted,
            next_attempt_time: lease.is_none().then_some(live.due),
            start_time: lease.map(|lease| lease.started),
            finish_time: None,
            delete_time: None,
            version: live.version,
            trace: self.trace,
            attempts: Vec::new(),
        }
    }

    /// An unfinished job with what its past left behind: progress, and the last failure of its run.
    pub fn live_with_past(self, live: &Live, progress: Option<Progress>, failed: Option<Attempt>) -> Job {
        let mut job = Job { progress, ..self.live(live) };
        if let Some(failed) = failed {
            job.error = failed.error;
            job.start_time = job.start_time.or(failed.start_time);
            job.worker = job.worker.or(failed.worker);
        }
        job
    }
}
