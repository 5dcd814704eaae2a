use std::{collections::BTreeMap, sync::Arc};

use super::{Ending, JobError, JobId, JobSpec, Payload, State, Timestamp, WorkerId};

/// How much of a job a reader wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum View {
    /// No bodies.
    Basic,
    /// The body of the output too.
    Result,
    /// Everything: input, output and the history of attempts.
    Full,
}

/// A job as it was at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Job {
    pub id: JobId,
    pub spec: Arc<JobSpec>,
    pub state: State,
    /// Attempts begun in this run.
    pub attempt: u32,
    /// 1, plus one for every retry by hand.
    pub run: u32,
    pub output: Option<Payload>,
    /// The final failure, or that of the latest attempt that failed.
    pub error: Option<JobError>,
    pub progress: Option<Progress>,
    pub cancel_requested: bool,
    /// Who runs it now, or ran it last.
    pub worker: Option<WorkerId>,
    pub submit_time: Timestamp,
    pub next_attempt_time: Option<Timestamp>,
    /// When the newest attempt began.
    pub start_time: Option<Timestamp>,
    pub finish_time: Option<Timestamp>,
    /// When retention removes it.
    pub delete_time: Option<Timestamp>,
    /// Grows with every transition.
    pub version: i64,
    /// The W3C trace headers of the Submit call.
    pub trace: BTreeMap<String, String>,
    /// Newest last, at most [`Attempt::KEPT`]. Only in [`View::Full`].
    pub attempts: Vec<Attempt>,
}

#[cfg(any(test, fuzzing))]
impl Job {
    /// A job just accepted, for tests.
    pub fn accepted(id: JobId, spec: Arc<JobSpec>, submit_time: Timestamp) -> Self {
        Self {
            id,
            spec,
            state: State::QUEUED,
            attempt: 0,
            run: 1,
            output: None,
            error: None,
            progress: None,
            cancel_requested: false,
            worker: None,
            submit_time,
            next_attempt_time: None,
            start_time: None,
            finish_time: None,
            delete_time: None,
            version: 1,
            trace: BTreeMap::new(),
            attempts: Vec::new(),
        }
    }
}

impl Job {
    /// The text that changes with every transition.
    pub fn etag(&self) -> String {
        Self::etag_of(self.version)
    }

    /// The etag of a job with this version.
    pub fn etag_of(version: i64) -> String {
        format!("{version:x}")
    }

    /// The bytes of its output, if this view leaves them out.
    pub fn lacks_output(&self) -> Option<usize> {
        self.output.as_ref().filter(|output| output.body.is_none()).map(|output| output.size)
    }

    /// The job at the end of its run, in [`View::Result`]. `last`: see [`JobSpec::omit_payload_like`].
    pub fn ended(
        &self,
        ending: &Ending,
        version: i64,
        finish: Timestamp,
        delete: Timestamp,
        last: &mut Option<Arc<JobSpec>>,
    ) -> Self {
        Self {
            id: self.id.clone(),
            spec: self.spec.omit_payload_like(last),
            state: State::Final(ending.state),
            attempt: self.attempt,
            run: self.run,
            output: ending.output.clone(),
            error: ending.error.clone(),
            progress: None,
            cancel_requested: false,
            worker: self.worker.clone(),
            submit_time: self.submit_time,
            next_attempt_time: None,
            start_time: self.start_time,
            finish_time: Some(finish),
            delete_time: Some(delete),
            version,
            trace: self.trace.clone(),
            attempts: Vec::new(),
        }
    }
}

/// One try that failed.
#[derive(Clone, Debug, PartialEq)]
pub struct Attempt {
    pub run: u32,
    pub attempt: u32,
    pub worker: Option<WorkerId>,
    pub start_time: Option<Timestamp>,
    pub finish_time: Timestamp,
    pub error: Option<JobError>,
}

impl Attempt {
    /// How many a job remembers.
    pub const KEPT: usize = 20;
}

/// How far an attempt has come.
#[derive(Clone, Debug, PartialEq)]
pub struct Progress {
    /// 0 to 1.
    pub fraction: f64,
    /// At most [`Progress::NOTE_MAX`] bytes.
    pub note: String,
    /// A checkpoint, at most [`Progress::DETAILS_MAX`] bytes: handed to the next attempt.
    pub details: Option<Payload>,
    pub update_time: Timestamp,
}

impl Progress {
    pub const NOTE_MAX: usize = 1 << 10;
    pub const DETAILS_MAX: usize = 16 << 10;
}
