//! What clients have asked for, and what they were told: each with the length of the record at that moment.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Mutex,
};

use jobwire::{
    job::{self, State},
    proto::{self, SubmitRequest, payload::Body},
};

use super::trace::Recorder;

/// A job and one of its runs.
pub type Run = (String, u32);

/// How a run ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    state: i32,
    attempt: u32,
    /// Milliseconds since 1970.
    finished: i64,
    output: Vec<u8>,
    error: Option<(String, String)>,
}

impl From<&proto::Job> for Outcome {
    fn from(job: &proto::Job) -> Self {
        let finished = job.finish_time.expect("a final job has ended");
        Self {
            state: job.state,
            attempt: job.attempt as u32,
            finished: finished.seconds * 1000 + i64::from(finished.nanos) / 1_000_000,
            output: match job.output.as_ref().and_then(|output| output.body.clone()) {
                None => Vec::new(),
                Some(Body::Data(bytes)) => bytes.into(),
                Some(other) => panic!("not the stored bytes: {other:?}"),
            },
            error: job.error.as_ref().map(|error| (error.code.clone(), error.message.clone())),
        }
    }
}

impl From<&job::Job> for Outcome {
    fn from(job: &job::Job) -> Self {
        Self {
            state: job.state.number(),
            attempt: job.attempt,
            finished: job.finish_time.expect("a final job has ended").0,
            output: job.output.as_ref().map(|output| output.bytes().into()).unwrap_or_default(),
            error: job.error.as_ref().map(|error| (error.code.clone(), error.message.clone())),
        }
    }
}

/// Something that was told, and must hold from then on.
#[derive(Clone, Debug)]
pub enum Fact {
    Accepted(String),
    /// By the answer of a call.
    Ended(Run, Outcome),
    /// By a watch from the beginning of the feed.
    Watched(Run, Outcome),
    Cancelled(String),
    /// The job is in this run, or a later one.
    Retried(Run),
    /// May be gone from here on.
    DeleteAsked(String),
    Deleted(String),
}

/// Of all clients together.
#[derive(Default)]
pub struct Ledger {
    plans: Mutex<BTreeMap<String, SubmitRequest>>,
    facts: Mutex<Vec<(u64, Fact)>>,
}

impl Ledger {
    /// What was known before the record begins. The feed is watched from its beginning again.
    pub fn of(plans: &BTreeMap<String, SubmitRequest>, known: &Known) -> Self {
        let ended = known.ended.clone().into_iter().map(|(run, outcome)| Fact::Ended(run, outcome));
        let facts = ended
            .chain(known.accepted.iter().cloned().map(Fact::Accepted))
            .chain(known.cancelled.iter().cloned().map(Fact::Cancelled))
            .chain(known.runs.clone().into_iter().map(Fact::Retried))
            .chain(known.deleting.iter().cloned().map(Fact::DeleteAsked))
            .chain(known.deleted.iter().cloned().map(Fact::Deleted));
        Self { plans: plans.clone().into(), facts: Mutex::new(facts.map(|fact| (0, fact)).collect()) }
    }

    /// Notes what will be asked for.
    pub fn plan(&self, request: &SubmitRequest) {
        self.plans.lock().unwrap().insert(request.job_id.clone(), request.clone());
    }

    /// Notes what has been told.
    pub fn note(&self, recorder: &Recorder, fact: Fact) {
        let mut facts = self.facts.lock().unwrap();
        facts.push((recorder.now(), fact));
    }

    /// The job, and its end if it has one.
    pub fn note_job(&self, recorder: &Recorder, job: &proto::Job) {
        self.note(recorder, Fact::Accepted(job.job_id.clone()));
        if State::from_number(job.state).expect("a state").is_final() {
            let run = (job.job_id.clone(), job.run as u32);
            self.note(recorder, Fact::Ended(run, job.into()));
        }
    }

    pub fn plans(&self) -> BTreeMap<String, SubmitRequest> {
        self.plans.lock().unwrap().clone()
    }

    /// In the order of their places.
    pub fn facts(&self) -> Vec<(u64, Fact)> {
        self.facts.lock().unwrap().clone()
    }
}

/// All that holds at one place of the record.
#[derive(Clone, Debug, Default)]
pub struct Known {
    pub accepted: BTreeSet<String>,
    pub ended: BTreeMap<Run, Outcome>,
    pub watched: Vec<Run>,
    pub cancelled: BTreeSet<String>,
    pub runs: BTreeMap<String, u32>,
    pub deleting: BTreeSet<String>,
    pub deleted: BTreeSet<String>,
}

impl Known {
    pub fn learn(&mut self, fact: &Fact) {
        match fact.clone() {
            Fact::Accepted(id) => drop(self.accepted.insert(id)),
            Fact::Ended(run, outcome) => self.end(run, outcome),
            Fact::Watched(run, outcome) => {
                self.watched.push(run.clone());
                self.end(run, outcome);
            }
            Fact::Cancelled(id) => drop(self.cancelled.insert(id)),
            Fact::Retried((id, run)) => drop(self.runs.insert(id, run)),
            Fact::DeleteAsked(id) => drop(self.deleting.insert(id)),
            Fact::Deleted(id) => drop(self.deleted.insert(id)),
        }
    }

    fn end(&mut self, run: Run, outcome: Outcome) {
        if let Some(before) = self.ended.insert(run.clone(), outcome.clone()) {
            assert_eq!(before, outcome, "{run:?} was told twice, and not the same");
        }
    }
}
