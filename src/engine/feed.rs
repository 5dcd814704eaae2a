//! The end of the feed in memory, shared by all who follow it: watchers and waits.
//!
//! One tailer reads the store when its head moves (and every second, should a wake-up be lost) and appends to a ring
//! of recent outcomes. Followers sleep on the tail, read from the ring, and from the store when they lag behind it.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use parking_lot::RwLock;
use tokio::sync::watch;

use super::waits::Waits;
use crate::{
    job::{Error, JobId},
    store::{FeedStart, Outcome, OutcomePage, Position, Store},
};

/// A look at the store without a wake-up.
const POLL: Duration = Duration::from_secs(1);

/// Outcomes of one read.
const PAGE: usize = 1000;

pub struct Feed {
    store: Arc<dyn Store>,
    ring: RwLock<Ring>,
    tail: watch::Sender<Position>,
}

#[derive(Default)]
struct Ring {
    outcomes: VecDeque<Outcome>,
    /// Where the outcomes of a job are, should it be deleted.
    by_job: HashMap<JobId, Vec<Position>>,
    /// Jobs deleted since the tailer began to read, as [`Feed::forget`] says: what it brings may have them still.
    deleted: HashMap<JobId, Position>,
    /// Every outcome after this position, and up to `end`, is in the ring.
    after: Position,
    end: Position,
    bytes: usize,
    capacity: usize,
}

/// Some outcomes, and how far they reach.
pub struct Stretch {
    pub outcomes: Vec<Outcome>,
    pub upto: Position,
    /// Where the feed begins, if the store was asked. What is in memory has not been dropped.
    pub start: Option<FeedStart>,
}

impl Feed {
    /// `capacity`: bytes of outcomes in the ring, about.
    pub fn new(store: Arc<dyn Store>, capacity: usize) -> Self {
        let head = *store.signals().head.borrow();
        let ring = Ring { after: head, end: head, capacity, ..Ring::default() };
        Self { store, ring: RwLock::new(ring), tail: watch::Sender::new(head) }
    }

    /// Wakes whenever the end of the feed has moved.
    pub fn tail(&self) -> watch::Receiver<Position> {
        self.tail.subscribe()
    }

    /// At most `limit` outcomes after a position.
    pub async fn read(&self, after: Position, limit: usize) -> Result<Stretch, Error> {
        if let Some(stretch) = self.ring.read().read(after, limit) {
            return Ok(stretch);
        }
        let OutcomePage { outcomes, upto, start } = self.store.outcomes(after, limit).await?;
        Ok(Stretch { outcomes, upto, start: Some(start) })
    }

    /// A job was deleted: its outcomes up to a position have left the feed. Later ones are of another job that took
    /// its id.
    pub fn forget(&self, job: &JobId, upto: Position) {
        self.ring.write().forget(job, upto);
    }

    /// Keeps the ring up with the store, and wakes those who wait for one job. Runs until the store fails.
    pub async fn follow(&self, waits: &Waits) {
        let mut head = self.store.signals().head.subscribe();
        loop {
            head.borrow_and_update();
            let end = self.ring.write().begin_read();
            let page = match self.store.outcomes(end, PAGE).await {
                Ok(page) => page,
                Err(error) => {
                    tracing::error!(%error, "the feed cannot be read");
                    if self.store.signals().failed.borrow().is_some() {
                        return;
                    }
                    tokio::time::sleep(POLL).await;
                    continue;
                }
            };
            if page.upto > end {
                self.ring.write().append(&page.outcomes, page.upto);
                self.tail.send_replace(page.upto);
                // Last: whoever is woken and begins to watch finds it in the feed.
                waits.wake(&page.outcomes);
                continue;
            }
            // A lost wake-up costs at most one POLL.
            let _ = tokio::time::timeout(POLL, head.changed()).await;
        }
    }
}

impl Ring {
    fn read(&self, after: Position, limit: usize) -> Option<Stretch> {
        if after < self.after || after > self.end {
            return None;
        }
        let first = self.outcomes.partition_point(|outcome| outcome.position <= after);
        let outcomes: Vec<_> = self.outcomes.range(first..).take(limit).cloned().collect();
        let upto = match outcomes.last() {
            Some(last) if outcomes.len() == limit => last.position,
            _ => self.end,
        };
        Some(Stretch { outcomes, upto, start: None })
    }

    /// The position that the tailer goes on from.
    fn begin_read(&mut self) -> Position {
        self.deleted.clear();
        self.end
    }

    fn append(&mut self, outcomes: &[Outcome], upto: Position) {
        for outcome in outcomes {
            if self.deleted.get(&outcome.job.id).is_some_and(|&upto| outcome.position <= upto) {
                continue;
            }
            self.bytes += weight(outcome);
            self.by_job.entry(outcome.job.id.clone()).or_default().push(outcome.position);
            self.outcomes.push_back(outcome.clone());
        }
        self.end = upto;
        while self.bytes > self.capacity
            && let Some(oldest) = self.outcomes.pop_front()
        {
            self.bytes -= weight(&oldest);
            self.after = oldest.position;
            self.keep_places(&oldest.job.id, |place| place > oldest.position);
        }
    }

    fn forget(&mut self, job: &JobId, upto: Position) {
        self.deleted.insert(job.clone(), upto);
        for place in self.keep_places(job, |place| place > upto) {
            let index = self.outcomes.partition_point(|outcome| outcome.position < place);
            if let Some(gone) = self.outcomes.remove(index) {
                self.bytes -= weight(&gone);
            }
        }
    }

    /// Answers with those that are not kept.
    fn keep_places(&mut self, job: &JobId, kept: impl Fn(Position) -> bool) -> Vec<Position> {
        let Some(places) = self.by_job.remove(job) else { return Vec::new() };
        let (keep, gone): (Vec<_>, Vec<_>) = places.into_iter().partition(|&place| kept(place));
        if !keep.is_empty() {
            self.by_job.insert(job.clone(), keep);
        }
        gone
    }
}

/// Bytes of an outcome in memory, about.
fn weight(outcome: &Outcome) -> usize {
    let job = &outcome.job;
    let labels: usize = job.spec.labels.iter().map(|(name, value)| name.len() + value.len() + 96).sum();
    let error = job.error.as_ref().map_or(0, |error| error.message.len() + 128);
    1024 + labels + error + job.output.as_ref().map_or(0, |output| output.size)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::{FinalState, Job, JobSpec, Kind, Payload, State, Timestamp};

    fn outcome(position: i64, id: &str) -> Outcome {
        let kind: Kind = "echo".parse().unwrap();
        let job = Job {
            id: id.parse().unwrap(),
            spec: Arc::new(JobSpec::new(kind, Payload::none())),
            state: State::Final(FinalState::Succeeded),
            attempt: 1,
            run: 1,
            output: None,
            error: None,
            progress: None,
            cancel_requested: false,
            worker: None,
            submit_time: Timestamp(0),
            next_attempt_time: None,
            start_time: None,
            finish_time: None,
            delete_time: None,
            version: 1,
            trace: Default::default(),
            attempts: Vec::new(),
        };
        Outcome { position: Position(position), job: job.into() }
    }

    fn positions(ring: &Ring) -> Vec<i64> {
        let stretch = ring.read(ring.after, 100).unwrap();
        assert_eq!(stretch.upto, ring.end);
        stretch.outcomes.iter().map(|outcome| outcome.position.0).collect()
    }

    #[test]
    fn a_deleted_job_is_forgotten_and_its_successor_is_not() {
        let mut ring = Ring { capacity: 1 << 20, ..Ring::default() };
        let early: Vec<_> = (1..=3).map(|n| outcome(n, if n == 2 { "b" } else { "a" })).collect();
        ring.append(&early, Position(3));
        ring.forget(&"a".parse().unwrap(), Position(3));
        assert_eq!(positions(&ring), [2]);
        // What was read before the deletion, and what another job of the same id did after it.
        ring.append(&[outcome(3, "a"), outcome(4, "a")], Position(4));
        assert_eq!(positions(&ring), [2, 4]);
        ring.forget(&"a".parse().unwrap(), Position(3));
        assert_eq!(positions(&ring), [2, 4]);
    }

    #[test]
    fn a_full_ring_drops_the_oldest_and_all_that_it_knew_of_them() {
        let mut ring = Ring { capacity: 3 * weight(&outcome(1, "a")), ..Ring::default() };
        ring.append(&(1..=10).map(|n| outcome(n, "a")).collect::<Vec<_>>(), Position(10));
        assert_eq!((positions(&ring), ring.after), (vec![8, 9, 10], Position(7)));
        assert_eq!(ring.by_job[&"a".parse::<JobId>().unwrap()].len(), 3);
        ring.forget(&"a".parse().unwrap(), Position(10));
        assert_eq!((positions(&ring), ring.bytes, ring.by_job.len()), (Vec::<i64>::new(), 0, 0));
    }
}
