//! What clients know. Every message about a job is entered here, and must agree with all that was known before.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use fastrand::Rng;
use jobwire::proto::{Job, SubmitRequest, SubmitResponse, job::State};
use parking_lot::Mutex;

use super::asks::{Ask, ENDLESS, LABEL};

/// Everything that was asked of one store, by number.
#[derive(Default)]
pub struct Ledger {
    pub entries: Vec<Entry>,
    /// Numbers of the jobs that are known, in the order in which they became so.
    pub known: Vec<usize>,
    by_id: HashMap<String, usize>,
    /// Numbers of requests that were sent, and not answered.
    pub unanswered: Vec<usize>,
    /// The newest job with the unique key.
    exclusive: Option<String>,
    /// Jobs whose end is to be watched for, after a cursor.
    pub awaited: Vec<(String, String)>,
    /// There are several servers. One that stops gives back what runs, uncounted; one that is cut off is taken for dead.
    pub servers_stop: bool,
}

pub type Shared = Arc<Mutex<Ledger>>;

/// One request to submit, and what came of it.
pub struct Entry {
    pub ask: Ask,
    pub fate: Fate,
    pub cancel_sent: bool,
    pub retries_sent: i32,
    pub deletion: Deletion,
    /// What is known of each run.
    pub runs: BTreeMap<i32, Run>,
}

impl Entry {
    /// The job that was made, as far as is known.
    pub fn job_id(&self) -> Option<&str> {
        match &self.fate {
            Fate::Job(job_id) => Some(job_id),
            Fate::Unanswered | Fate::Refused => None,
        }
    }

    /// Whether a repeat is known for one. Without a request id a deleted job would be made again.
    pub fn is_repeatable(&self) -> bool {
        let request = &self.ask.request;
        !request.request_id.is_empty() || !request.job_id.is_empty() && self.deletion == Deletion::None
    }
}

#[derive(Clone, Debug, PartialEq)]
pub enum Fate {
    /// No answer: there may be a job.
    Unanswered,
    /// There is a job.
    Job(String),
    /// There is none, and never will be.
    Refused,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Deletion {
    None,
    /// No answer: the job may be gone.
    Sent,
    Acknowledged,
}

#[derive(Default)]
pub struct Run {
    /// This attempt has begun.
    pub attempt: i32,
    /// A cancel was acknowledged: no attempt after this one.
    pub last: Option<i32>,
    /// The newest attempt that a worker was given, and when; and the newest that one has confirmed.
    given: Option<Grant>,
    confirmed: Option<Grant>,
    /// The success of this attempt was acknowledged to its worker.
    pub succeeded: Option<i32>,
    pub outcome: Option<Outcome>,
}

/// An attempt, and when a lease of it was given.
type Grant = (i32, Option<i128>);

fn grant(job: &Job) -> Grant {
    let nanos =
        |time: prost_types::Timestamp| i128::from(time.seconds) * 1_000_000_000 + i128::from(time.nanos);
    (job.attempt, job.start_time.map(nanos))
}

impl Run {
    /// An attempt that a worker has confirmed is not given to another one. One that is not comes back, and is given anew.
    fn is_given_once(&self) -> bool {
        match (self.given, self.confirmed) {
            (Some(given), Some(confirmed)) => given.0 != confirmed.0 || given.1 <= confirmed.1,
            _ => true,
        }
    }

    /// The success that a worker was told of is the outcome.
    fn agree(&self, job_id: &str) {
        if let (Some(attempt), Some(outcome)) = (self.succeeded, &self.outcome) {
            let ended = (outcome.state, outcome.attempt);
            assert_eq!(ended, (State::Succeeded, attempt), "{job_id} did not end as its worker was told");
        }
    }
}

/// What must never change again.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    pub state: State,
    pub attempt: i32,
    finish_time: Option<prost_types::Timestamp>,
    output_bytes: Option<i64>,
    error: Option<(i32, String, String)>,
}

impl Outcome {
    fn of(job: &Job) -> Self {
        let error = job.error.as_ref().map(|error| (error.cause, error.code.clone(), error.message.clone()));
        Self {
            state: job.state(),
            attempt: job.attempt,
            finish_time: job.finish_time,
            output_bytes: job.output.as_ref().map(|output| output.size_bytes),
            error,
        }
    }
}

pub fn is_final(state: State) -> bool {
    matches!(state, State::Succeeded | State::Failed | State::Cancelled | State::Expired)
}

impl Ledger {
    /// Enters a request that is about to be sent.
    pub fn ask(&mut self, draw: impl FnOnce(usize) -> Ask) -> (usize, SubmitRequest) {
        let number = self.entries.len();
        let ask = draw(number);
        let request = ask.request.clone();
        self.entries.push(Entry {
            ask,
            fate: Fate::Unanswered,
            cancel_sent: false,
            retries_sent: 0,
            deletion: Deletion::None,
            runs: BTreeMap::new(),
        });
        self.unanswered.push(number);
        (number, request)
    }

    /// A submit was acknowledged. False if another job holds its unique key.
    pub fn acknowledge(&mut self, number: usize, reply: &SubmitResponse) -> bool {
        let job = reply.job.as_ref().expect("a job");
        self.saw(job);
        self.accept(number, &job.job_id, reply.deduplicated)
    }

    /// The same of a job with the unique key. If it is a new one: the one before it.
    pub fn acknowledge_exclusive(&mut self, number: usize, reply: SubmitResponse) -> Option<String> {
        let new = self.acknowledge(number, &reply) && !reply.deduplicated;
        if new { self.exclusive.replace(reply.job?.job_id) } else { None }
    }

    /// The same, of an answer without the job.
    pub fn accept(&mut self, number: usize, job_id: &str, deduplicated: bool) -> bool {
        self.unanswered.retain(|&unanswered| unanswered != number);
        if self.by_id.get(job_id).is_some_and(|&known| known != number) {
            let entry = &mut self.entries[number];
            assert!(deduplicated && !entry.ask.spec().unique_key.is_empty(), "{job_id} answers two requests");
            assert_eq!(entry.fate, Fate::Unanswered);
            entry.fate = Fate::Refused;
            return false;
        }
        self.learn(number, job_id);
        true
    }

    /// A submit was refused. It may be there all the same if it was sent before.
    pub fn refuse(&mut self, number: usize) {
        self.unanswered.retain(|&unanswered| unanswered != number);
        let entry = &mut self.entries[number];
        assert_eq!(entry.fate, Fate::Unanswered, "request {number} is refused, but has a job");
        entry.fate = Fate::Refused;
    }

    fn learn(&mut self, number: usize, job_id: &str) {
        let entry = &mut self.entries[number];
        match &entry.fate {
            Fate::Job(known) => assert_eq!(known, job_id, "request {number} has two jobs"),
            Fate::Refused => panic!("request {number} was refused, and has the job {job_id}"),
            Fate::Unanswered => {
                entry.fate = Fate::Job(job_id.to_owned());
                entry.runs.entry(1).or_default();
                self.by_id.insert(job_id.to_owned(), number);
                self.known.push(number);
            }
        }
    }

    /// Enters what a message says of a job.
    pub fn saw(&mut self, job: &Job) {
        let spec = job.spec.as_ref().expect("a spec");
        let number = spec.labels.get(LABEL).and_then(|text| text.parse::<usize>().ok());
        let number = number.filter(|&number| number < self.entries.len());
        let number = number.unwrap_or_else(|| panic!("nobody asked for {job:?}"));
        self.learn(number, &job.job_id);
        let entry = &mut self.entries[number];
        assert!((1..=1 + entry.retries_sent).contains(&job.run), "nobody asked for this run: {job:?}");
        let ended = is_final(job.state());
        if ended {
            let cancelled = entry.cancel_sent && job.state() == State::Cancelled;
            assert!(cancelled || entry.ask.ends.contains(&job.state()), "cannot end so: {job:?}");
            entry.ask.check_output(job);
        }
        let run = entry.runs.entry(job.run).or_default();
        assert!(
            run.last.is_none_or(|last| job.attempt <= last),
            "cancelled in {:?}, and went on: {job:?}",
            run.last
        );
        if ended {
            let counted = run.attempt - i32::from(self.servers_stop);
            assert!(counted <= job.attempt, "attempt {} had begun: {job:?}", run.attempt);
            let outcome = Outcome::of(job);
            let known = run.outcome.get_or_insert_with(|| outcome.clone());
            assert_eq!(*known, outcome, "the outcome of {} has changed", job.job_id);
            run.agree(&job.job_id);
        }
        if ended || job.state() == State::Running {
            run.attempt = run.attempt.max(job.attempt);
        }
    }

    /// A worker was given a lease.
    pub fn leased(&mut self, job: &Job) {
        self.saw(job);
        let run = self.of(&job.job_id).runs.get_mut(&job.run).expect("it was seen");
        run.given = run.given.max(Some(grant(job)));
        assert!(run.is_given_once(), "another worker is at it: {job:?}");
    }

    /// A worker has named a lease, and was not told that it is lost.
    pub fn confirmed(&mut self, job: &Job) {
        let run = self.of(&job.job_id).runs.get_mut(&job.run).expect("it was leased");
        run.confirmed = run.confirmed.max(Some(grant(job)));
        assert!(run.is_given_once(), "another worker was given it: {job:?}");
    }

    /// The success of an attempt was acknowledged to its worker.
    pub fn succeeded(&mut self, job_id: &str, run: i32, attempt: i32) {
        let run = self.of(job_id).runs.get_mut(&run).expect("it was leased");
        assert!(run.succeeded.is_none(), "two attempts of {job_id} have succeeded");
        run.succeeded = Some(attempt);
        run.agree(job_id);
    }

    /// A cancel was acknowledged with this.
    pub fn cancelled(&mut self, job: &Job) {
        self.saw(job);
        let run = self.of(&job.job_id).runs.get_mut(&job.run).expect("it was seen");
        run.last = Some(run.last.map_or(job.attempt, |last| last.min(job.attempt)));
    }

    /// The entry of a job.
    pub fn of(&mut self, job_id: &str) -> &mut Entry {
        &mut self.entries[self.by_id[job_id]]
    }

    /// Any job without a unique key, rather a new one.
    pub fn any(&self, rng: &mut Rng) -> Option<String> {
        let newest = self.known.len().saturating_sub(if rng.bool() { 20 } else { self.known.len() });
        let number = *rng.choice(&self.known[newest..])?;
        let entry = &self.entries[number];
        let spec = entry.ask.spec();
        entry.job_id().filter(|_| spec.unique_key.is_empty() && spec.queue != ENDLESS).map(str::to_owned)
    }
}
