//! Those who watch all the time, with interruptions: the union of their streams is the feed, from where they began.

use std::time::Duration;

use fastrand::Rng;
use jobwire::proto::{
    JobFilter, PayloadFormat, WatchResultsRequest, job::State, watch_results_request::Start,
    watch_results_response::Event,
};
use tokio::time::sleep;

use super::{
    clients::{Moment, Session, answer},
    ledger::Entry,
};
use crate::support::seconds;

/// A job and its run.
pub type Key = (String, i32);

/// What somebody watches for: as the server is asked, and as it is meant.
struct Interest {
    filter: fn() -> JobFilter,
    meant: fn(&Entry, State) -> bool,
}

static INTERESTS: [Interest; 5] = [
    Interest { filter: JobFilter::default, meant: |_, _| true },
    Interest {
        filter: || JobFilter { queues: vec!["a/*".into()], ..Default::default() },
        meant: |entry, _| entry.ask.spec().queue.starts_with("a/"),
    },
    Interest {
        filter: || JobFilter { kinds: vec!["sleep".into()], ..Default::default() },
        meant: |entry, _| entry.ask.spec().kind == "sleep",
    },
    Interest {
        filter: || JobFilter {
            states: vec![State::Failed.into(), State::Cancelled.into()],
            ..Default::default()
        },
        meant: |_, state| matches!(state, State::Failed | State::Cancelled),
    },
    Interest {
        filter: || JobFilter { labels: [("tenant".into(), "x".into())].into(), ..Default::default() },
        meant: |entry, _| entry.ask.spec().labels.get("tenant").is_some_and(|tenant| tenant == "x"),
    },
];

pub struct Watcher {
    interest: &'static Interest,
    /// Else it begins with what is new.
    from_the_beginning: bool,
    /// Where to go on; None before the first message.
    cursor: Option<String>,
    /// What it was told, in order.
    pub seen: Vec<Key>,
    pub streams: usize,
}

impl Watcher {
    /// One of each interest, and one that begins now.
    pub fn all() -> Vec<Self> {
        let now = Self::new(&INTERESTS[0], false);
        INTERESTS.iter().map(|interest| Self::new(interest, true)).chain([now]).collect()
    }

    /// One that comes when all is over, and reads the whole feed.
    pub fn of_the_end() -> Self {
        Self::new(&INTERESTS[0], true)
    }

    fn new(interest: &'static Interest, from_the_beginning: bool) -> Self {
        Self { interest, from_the_beginning, cursor: None, seen: Vec::new(), streams: 0 }
    }

    pub fn is_about(&self, entry: &Entry, state: State) -> bool {
        (self.interest.meant)(entry, state)
    }

    /// It began with the feed, and not later.
    pub fn must_know_all(&self) -> bool {
        self.from_the_beginning
    }

    /// Watches until all is over, or, with `to_the_end`, until there is nothing more.
    pub async fn watch(mut self, mut session: Session, to_the_end: bool) -> Self {
        while session.goes_on() {
            let request = self.request(&mut session.rng, to_the_end);
            self.streams += 1;
            if let Some(mut messages) = answer(session.client().watch_results(request).await, &[]) {
                while let Some(Some(message)) = session.next(&mut messages, &[]).await {
                    let end = match &message.event {
                        Some(Event::Finished(job)) => {
                            session.reached(Moment::Ended);
                            session.ledger().saw(job);
                            self.seen.push((job.job_id.clone(), job.run));
                            false
                        }
                        Some(Event::Checkpoint(checkpoint)) => to_the_end && checkpoint.caught_up,
                        Some(Event::Gap(gap)) => panic!("a gap: {gap:?}"),
                        _ => false,
                    };
                    if !message.cursor.is_empty() {
                        self.cursor = Some(message.cursor);
                    }
                    if end {
                        return self;
                    }
                    if !to_the_end && rests(&mut session.rng).await {
                        break;
                    }
                }
            }
            sleep(Duration::from_millis(1)).await;
        }
        self
    }

    fn request(&self, rng: &mut Rng, to_the_end: bool) -> WatchResultsRequest {
        let start = match &self.cursor {
            Some(cursor) => Some(Start::AfterCursor(cursor.clone())),
            None => self.from_the_beginning.then_some(Start::Earliest(true)),
        };
        WatchResultsRequest {
            filter: Some((self.interest.filter)()),
            start,
            include_progress: !to_the_end && rng.bool(),
            include_transitions: !to_the_end && rng.bool(),
            heartbeat_interval: Some(seconds(1.0)),
            payload_format: PayloadFormat::Raw.into(),
            max_inline_output_bytes: [None, Some(0), Some(50), Some(i32::MAX)][rng.usize(..4)],
            ..Default::default()
        }
    }
}

/// Now and then takes its time, or leaves the stream.
async fn rests(rng: &mut Rng) -> bool {
    match rng.u32(..400) {
        0..=1 => true,
        2..=4 => {
            sleep(Duration::from_millis(rng.u64(..200))).await;
            false
        }
        _ => false,
    }
}
