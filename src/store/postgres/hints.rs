//! What is to be told to other replicas, collected until the listener's connection tells it.
//!
//! That jobs are due and how far the feed has come concerns all of them. What a watcher may hear of jobs beside their
//! outcomes goes to replicas that have such watchers, and have said so.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    sync::Arc,
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::{sync::Notify, time::Instant};

use super::standing::{Span, by_line};
use crate::{
    job::{JobId, Payload, Progress, Timestamp},
    store::{Position, ProgressHint, Signals},
};

/// Bytes of one note. PostgreSQL takes 8,000.
const NOTE: usize = 7900;

/// Lines that one hint names. With more it only says that there are jobs.
const LINES: usize = 100;

/// Notes of one round for watchers, and jobs that wait to be told of: what is more is lost, as hints may be.
const NOTES: usize = 16;
const MAX_JOBS: usize = 1024;

/// What a commit means to others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hint {
    /// The feed has come so far.
    pub head: Option<Position>,
    /// Jobs may be due, or be so soon.
    pub due: bool,
    /// Those that are stand here,
    pub standing: Vec<Span>,
    /// or anywhere.
    pub anywhere: bool,
}

impl Hint {
    /// Jobs stand in line that did not before.
    pub fn standing(spans: impl Iterator<Item = Span>) -> Self {
        let standing = by_line(spans);
        Self { due: !standing.is_empty(), standing, ..Self::default() }
    }

    /// Jobs may be due anywhere.
    pub fn anywhere() -> Self {
        Self { due: true, anywhere: true, ..Self::default() }
    }

    fn join(&mut self, other: Self) {
        self.head = self.head.max(other.head);
        self.due |= other.due;
        self.standing = by_line(self.standing.drain(..).chain(other.standing));
        self.anywhere |= other.anywhere;
        if self.standing.len() > LINES {
            self.anywhere = true;
            self.standing.clear();
        }
    }
}

/// Head, 1 if jobs may be due, 1 if they may be anywhere, and for each span three numbers.
impl fmt::Display for Hint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let head = self.head.map_or(0, |head| head.0);
        write!(f, "{head} {} {}", u8::from(self.due), u8::from(self.anywhere))?;
        self.standing.iter().try_for_each(|span| write!(f, " {} {} {}", span.line, span.low, span.high))
    }
}

/// Of a replica that says more than we know, that jobs may be due anywhere.
impl From<&[i64]> for Hint {
    fn from(numbers: &[i64]) -> Self {
        let [head, due, anywhere, spans @ ..] = numbers else { return Self::anywhere() };
        let standing = spans.chunks(3).map(|span| match *span {
            [line, low, high] => Some(Span { line: i32::try_from(line).ok()?, low, high }),
            _ => None,
        });
        match standing.collect() {
            Some(standing) => {
                Self { head: Some(Position(*head)), due: *due != 0, standing, anywhere: *anywhere != 0 }
            }
            None => Self::anywhere(),
        }
    }
}

#[derive(Debug, Default)]
pub struct Hints {
    pending: Mutex<Pending>,
    /// Replicas with watchers, and until when that is believed.
    watching: Mutex<HashMap<i64, Instant>>,
    pub wake: Notify,
}

#[derive(Debug, Default)]
struct Pending {
    hint: Hint,
    changed: HashSet<JobId>,
    progress: HashMap<JobId, Arc<ProgressHint>>,
}

/// All that there is to tell at one time.
#[derive(Debug)]
pub struct Round {
    pub hint: Hint,
    /// For replicas that have watchers.
    pub notes: Vec<String>,
}

/// One line of a note.
#[derive(Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
enum Told {
    Changed(String),
    Progress(Step),
}

#[derive(Deserialize, Serialize)]
struct Step {
    job: String,
    run: u32,
    attempt: u32,
    at: i64,
    fraction: f64,
    note: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    details: Option<(String, String)>,
}

impl Hints {
    pub fn post(&self, hint: Hint) {
        if hint != Hint::default() {
            self.pending.lock().hint.join(hint);
            self.wake.notify_one();
        }
    }

    /// A job has changed without an outcome.
    pub fn post_changed(&self, job: JobId) {
        let mut pending = self.pending.lock();
        if pending.changed.len() < MAX_JOBS {
            pending.changed.insert(job);
            self.wake.notify_one();
        }
    }

    /// The newest progress of a job counts.
    pub fn post_progress(&self, hint: Arc<ProgressHint>) {
        let mut pending = self.pending.lock();
        if pending.progress.len() < MAX_JOBS {
            pending.progress.insert(hint.job_id.clone(), hint);
            self.wake.notify_one();
        }
    }

    /// A replica has said that it has watchers.
    pub fn watches(&self, replica: i64, believed: Duration) {
        self.watching.lock().insert(replica, Instant::now() + believed);
    }

    /// Whether any replica has watchers.
    pub fn is_watched(&self) -> bool {
        self.watching.lock().values().any(|until| Instant::now() < *until)
    }

    /// Replicas that have watchers.
    pub fn watching(&self) -> Vec<i64> {
        let mut watching = self.watching.lock();
        watching.retain(|_, until| Instant::now() < *until);
        watching.keys().copied().collect()
    }

    pub fn take(&self) -> Round {
        let Pending { hint, changed, progress } = std::mem::take(&mut *self.pending.lock());
        let changed = changed.into_iter().map(|job| Told::Changed(job.to_string()));
        let lines = changed.chain(progress.values().map(|hint| told(hint)));
        Round { hint, notes: notes(lines) }
    }
}

/// As few notes as there must be.
fn notes(lines: impl Iterator<Item = Told>) -> Vec<String> {
    let mut notes: Vec<String> = Vec::new();
    for line in lines.filter_map(|line| serde_json::to_string(&line).ok()).filter(|line| line.len() <= NOTE) {
        if let Some(note) = notes.last_mut().filter(|note| note.len() + 1 + line.len() <= NOTE) {
            note.push('\n');
            note.push_str(&line);
        } else if notes.len() < NOTES {
            notes.push(line);
        } else {
            break;
        }
    }
    notes
}

/// Large details stay where they are: they are of use to the next attempt, which gets them from the store.
fn told(hint: &ProgressHint) -> Told {
    let Progress { fraction, note, details, update_time } = &hint.progress;
    let details = details.as_ref().filter(|details| details.size < NOTE / 2);
    Told::Progress(Step {
        job: hint.job_id.to_string(),
        run: hint.run,
        attempt: hint.attempt,
        at: update_time.0,
        fraction: *fraction,
        note: note.clone(),
        details: details.map(|details| (details.content_type.clone(), STANDARD.encode(details.bytes()))),
    })
}

/// Passes on what another replica has told.
pub fn hear(note: &str, signals: &Signals) {
    for line in note.lines() {
        // One that cannot be read is from a replica that says more than we know. Nobody may be listening.
        match serde_json::from_str(line) {
            Ok(Told::Changed(job)) => drop(job.parse().map(|job| signals.changed.send(job))),
            Ok(Told::Progress(step)) => drop(heard(step).map(|hint| signals.progress.send(hint.into()))),
            Err(_) => {}
        }
    }
}

fn heard(step: Step) -> Option<ProgressHint> {
    let details = match step.details {
        Some((content_type, body)) => Some(Payload::new(content_type, STANDARD.decode(body).ok()?)),
        None => None,
    };
    let (fraction, note, update_time) = (step.fraction, step.note, Timestamp(step.at));
    let progress = Progress { fraction, note, details, update_time };
    Some(ProgressHint { job_id: step.job.parse().ok()?, run: step.run, attempt: step.attempt, progress })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hint(job: &str, note: &str, details: Option<Payload>) -> Arc<ProgressHint> {
        let progress = Progress { fraction: 0.5, note: note.into(), details, update_time: Timestamp(7) };
        ProgressHint { job_id: job.parse().unwrap(), run: 2, attempt: 3, progress }.into()
    }

    #[test]
    fn what_is_told_is_heard() {
        let (hints, signals) = (Hints::default(), Signals::new(Position(0)));
        let (mut changed, mut progress) = (signals.changed.subscribe(), signals.progress.subscribe());
        let sent = hint("b", "half\nof it", Some(Payload::new(Payload::BYTES, vec![0, 255, 10])));
        hints.post_changed("a".parse().unwrap());
        hints.post_progress(hint("b", "older", None));
        hints.post_progress(sent.clone());
        let Round { hint, notes } = hints.take();
        assert_eq!(hint, Hint::default());
        assert_eq!(notes.len(), 1);
        hear(&notes[0], &signals);
        assert_eq!(changed.try_recv().unwrap().as_str(), "a");
        let heard = progress.try_recv().unwrap();
        assert_eq!((&heard.job_id, heard.run, heard.attempt), (&sent.job_id, 2, 3));
        assert_eq!(heard.progress, sent.progress);
        assert!(progress.try_recv().is_err() && hints.take().notes.is_empty());
        hear("more than we know\n{\"changed\":\"\"}", &signals);
        assert!(changed.try_recv().is_err());
    }

    #[test]
    fn a_hint_is_read_as_it_was_written() {
        let read = |hint: &Hint| {
            let text = hint.to_string();
            Hint::from(&text.split(' ').map(|number| number.parse().unwrap()).collect::<Vec<_>>()[..])
        };
        let mut hint = Hint::standing(
            [(1, 5), (1, -7), (3, i64::MAX)].map(|(line, rank)| Span::at(line, rank)).into_iter(),
        );
        hint.head = Some(Position(9));
        hint.standing.sort_by_key(|span| span.line);
        assert_eq!(hint.standing, [Span { line: 1, low: -7, high: 5 }, Span::at(3, i64::MAX)]);
        assert_eq!(read(&hint), hint);
        assert!(read(&Hint::anywhere()).anywhere);
        assert!(Hint::from(&[1, 1, 0, 5][..]).anywhere);
        hint.join(Hint::standing((0..).map(|line| Span::at(line, 0)).take(2 * LINES)));
        assert!(hint.due && hint.anywhere && hint.to_string().len() < NOTE);
    }

    #[test]
    fn notes_are_bounded() {
        let hints = Hints::default();
        let large = Payload::new(Payload::BYTES, vec![0; Progress::DETAILS_MAX]);
        for n in 0..2 * MAX_JOBS {
            hints.post_changed(format!("job-{n}").parse().unwrap());
            hints.post_progress(hint(
                &format!("job-{n}"),
                &"\u{1}".repeat(Progress::NOTE_MAX),
                Some(large.clone()),
            ));
        }
        let notes = hints.take().notes;
        assert_eq!(notes.len(), NOTES);
        assert!(notes.iter().all(|note| note.len() <= NOTE && !note.is_empty()));
    }
}
