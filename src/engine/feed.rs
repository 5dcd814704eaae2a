//! The end of the feed in memory, shared by all who follow it: watchers and waits.
//!
//! One tailer takes the outcomes that the store hands over after its commits, reads from the store what it does not
//! hand over (looking every second, should a wake-up be lost) if somebody follows its queue, and appends all of them to a
//! ring of recent outcomes. Followers sleep on the tail, read from the ring, and from the store when they lag behind it.

use std::{
    collections::{BTreeMap, HashMap, VecDeque, hash_map::Entry as MapEntry},
    sync::Arc,
    time::Duration,
};

use parking_lot::RwLock;
use tokio::sync::{broadcast, watch};

use super::{
    interest::{Interest, Version},
    waits::Waits,
};
use crate::{
    job::{Error, Job, JobId, Timestamp},
    store::{FeedStart, Outcome, OutcomePage, Position, Queues, Store, weight},
};

/// A look at the store without a wake-up.
const POLL: Duration = Duration::from_secs(1);

/// Outcomes of one read.
const PAGE: usize = 1000;

/// Bytes of outcomes that a follower is given in one read, about: they stay in memory for as long as it is slow.
const PAGE_BYTES: usize = 1 << 20;

/// Messages that are kept because outcomes before theirs are still to be read.
const EARLY: usize = 16;

/// Outcomes of one commit.
type Told = Arc<Vec<Outcome>>;

/// What was handed over too early, by its first position.
type Early = BTreeMap<Position, Told>;

pub struct Feed {
    store: Arc<dyn Store>,
    ring: RwLock<Ring>,
    tail: watch::Sender<Position>,
}

#[derive(Default)]
struct Ring {
    outcomes: VecDeque<Entry>,
    /// The newest outcome of each job that has one in the ring.
    by_job: HashMap<JobId, Newest>,
    /// Jobs that were deleted, as [`Feed::forget`] says, while outcomes up to that position were still to come.
    deleted: HashMap<JobId, Position>,
    /// The same of jobs that were reopened.
    reopened: HashMap<JobId, Position>,
    /// Every outcome after this position, and up to `end`, is in the ring, if its queue has been followed for as long.
    after: Position,
    end: Position,
    interest: Interest,
    bytes: usize,
    capacity: usize,
}

/// Somebody who is told the outcomes of some queues, until it is dropped.
pub struct Follower {
    feed: Arc<Feed>,
    queues: Queues,
    /// Their outcomes after this position are in the ring, unless they have left it.
    pub since: Position,
    /// Wakes whenever the end of the feed has moved.
    pub tail: watch::Receiver<Position>,
}

impl Follower {
    /// At most `limit` outcomes after a position, and perhaps some of other queues among them.
    pub async fn read(&self, after: Position, limit: usize) -> Result<Stretch, Error> {
        if after >= self.since
            && let Some(stretch) = self.feed.ring.read().read(after, limit)
        {
            return Ok(stretch);
        }
        let OutcomePage { outcomes, upto, start } =
            self.feed.store.outcomes(after, limit, &self.queues).await?;
        Ok(Stretch { outcomes, upto, start: Some(start) })
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.feed.ring.write().interest.remove(&self.queues);
    }
}

struct Entry {
    outcome: Outcome,
    /// The outcome of the same job before this one, which may have left the ring.
    before: Option<Position>,
}

/// Where the newest outcome of a job is.
struct Newest {
    at: Position,
    /// Up to here its outcomes are history: something happened to the job since.
    history: Position,
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
        let mut ring = Ring { after: head, end: head, capacity, ..Ring::default() };
        if !store.is_shared() {
            // It hands over everything.
            ring.interest.add(&Queues::All, Position(0));
        }
        Self { store, ring: RwLock::new(ring), tail: watch::Sender::new(head) }
    }

    /// The end of the feed in memory.
    pub fn end(&self) -> Position {
        *self.tail.borrow()
    }

    /// Follows some queues. What ends in them from here on is not missed.
    pub fn follower(self: &Arc<Self>, queues: Queues) -> Follower {
        let mut ring = self.ring.write();
        let end = ring.end;
        let since = ring.interest.add(&queues, end);
        drop(ring);
        Follower { feed: self.clone(), queues, since, tail: self.tail.subscribe() }
    }

    /// A job that is final, if its end is in memory and was the last that happened to it.
    pub fn newest(&self, job: &JobId, now: Timestamp) -> Option<Arc<Job>> {
        let job = self.ring.read().newest(job)?;
        job.delete_time.is_none_or(|time| time > now).then_some(job)
    }

    /// A job has changed after its end: its outcomes up to a position are history.
    pub fn reopen(&self, job: &JobId, upto: Position) {
        self.ring.write().reopen(job, upto);
    }

    /// A job was deleted: its outcomes up to a position have left the feed. Later ones are of another job that took
    /// its id.
    pub fn forget(&self, job: &JobId, upto: Position) {
        self.ring.write().forget(job, upto);
    }

    /// Forgets what other processes have deleted, for ever.
    pub async fn forget_others(&self, mut deleted: broadcast::Receiver<Option<(JobId, Position)>>) {
        loop {
            match deleted.recv().await {
                Ok(Some((job, upto))) => self.forget(&job, upto),
                // Nobody knows what: the store does.
                Ok(None) | Err(broadcast::error::RecvError::Lagged(_)) => self.ring.write().clear(),
                Err(broadcast::error::RecvError::Closed) => return,
            }
        }
    }

    /// Keeps the ring up with the store, and wakes those who wait for one job. Runs until the store fails.
    pub async fn follow(&self, waits: &Waits) {
        let mut head = self.store.signals().head.subscribe();
        let mut told = self.store.signals().outcomes.subscribe();
        let mut early = BTreeMap::new();
        loop {
            let known = *head.borrow_and_update();
            let end = self.take(&mut told, &mut early, waits);
            if end >= known && tokio::time::timeout(POLL, head.changed()).await.is_ok() {
                continue;
            }
            // Something was not handed over, or for long there was no wake-up at all.
            let missing = early.first_key_value().map_or(PAGE, |(first, _)| (first.0 - end.0 - 1) as usize);
            let (queues, version) = self.ring.write().interest.queues();
            let page = match self.store.outcomes(end, missing.min(PAGE), &queues).await {
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
            if let Some(lost) = self.store.breaks().find(end) {
                self.restart(lost.resumed);
            } else if page.upto > end {
                self.append(&page.outcomes, page.upto, Some(version), waits);
            }
        }
    }

    /// Appends what the store has handed over, and what came too early before: others may have outcomes in between, which
    /// are read from the store. Answers with the end of the ring.
    fn take(&self, told: &mut broadcast::Receiver<Told>, early: &mut Early, waits: &Waits) -> Position {
        loop {
            match told.try_recv() {
                Ok(outcomes) => {
                    let Some(first) = outcomes.first() else { continue };
                    early.insert(first.position, outcomes);
                }
                Err(broadcast::error::TryRecvError::Lagged(_)) => {}
                Err(_) => break,
            }
        }
        while early.len() > EARLY {
            early.pop_first();
        }
        let mut end = self.ring.read().end;
        while let Some(next) = early.first_entry().filter(|next| next.key().0 <= end.0 + 1) {
            let (first, outcomes) = next.remove_entry();
            if let Some(last) = outcomes.last().filter(|_| first.0 == end.0 + 1) {
                end = last.position;
                self.append(&outcomes, end, None, waits);
            }
        }
        end
    }

    /// The end of the feed is lost, perhaps with outcomes that are in the ring: it begins anew where the feed goes on.
    fn restart(&self, at: Position) {
        let mut ring = self.ring.write();
        let (capacity, interest) = (ring.capacity, std::mem::take(&mut ring.interest));
        *ring = Ring { after: at, end: at, interest, capacity, ..Ring::default() };
        drop(ring);
        self.tail.send_replace(at);
    }

    /// `read_for`: whose outcomes these are, if not everybody's. If there is more interest now, they are read anew.
    fn append(&self, outcomes: &[Outcome], upto: Position, read_for: Option<Version>, waits: &Waits) {
        let mut ring = self.ring.write();
        if read_for.is_some_and(|version| version != ring.interest.version()) {
            return;
        }
        ring.append(outcomes, upto);
        drop(ring);
        self.tail.send_replace(upto);
        // Last: whoever is woken and begins to watch finds it in the feed.
        waits.wake(outcomes);
    }
}

impl Ring {
    fn read(&self, after: Position, limit: usize) -> Option<Stretch> {
        if after < self.after || after > self.end {
            return None;
        }
        let first = self.outcomes.partition_point(|entry| entry.outcome.position <= after);
        let mut bytes = 0;
        let page =
            self.outcomes.range(first..).take(limit).map(|entry| &entry.outcome).take_while(|outcome| {
                let room = bytes < PAGE_BYTES;
                bytes += weight(outcome);
                room
            });
        let outcomes: Vec<_> = page.cloned().collect();
        let upto = match outcomes.last() {
            Some(last) if first + outcomes.len() < self.outcomes.len() => last.position,
            _ => self.end,
        };
        Some(Stretch { outcomes, upto, start: None })
    }

    /// What is asked for is read from the store until there are new outcomes.
    fn clear(&mut self) {
        self.outcomes.clear();
        self.by_job.clear();
        (self.after, self.bytes) = (self.end, 0);
    }

    fn newest(&self, job: &JobId) -> Option<Arc<Job>> {
        let newest = self.by_job.get(job).filter(|newest| newest.at > newest.history)?;
        self.index(newest.at).map(|index| self.outcomes[index].outcome.job.clone())
    }

    fn index(&self, at: Position) -> Option<usize> {
        self.outcomes.binary_search_by_key(&at, |entry| entry.outcome.position).ok()
    }

    fn reopen(&mut self, job: &JobId, upto: Position) {
        if let Some(newest) = self.by_job.get_mut(job) {
            newest.history = newest.history.max(upto);
        }
        if upto > self.end {
            self.reopened.insert(job.clone(), upto);
        }
    }

    fn append(&mut self, outcomes: &[Outcome], upto: Position) {
        for outcome in outcomes {
            if self.deleted.get(&outcome.job.id).is_some_and(|&upto| outcome.position <= upto) {
                continue;
            }
            self.bytes += weight(outcome);
            let at = outcome.position;
            let mut before = None;
            let newest = self.by_job.entry(outcome.job.id.clone());
            let newest = newest.and_modify(|newest| before = Some(std::mem::replace(&mut newest.at, at)));
            let newest = newest.or_insert(Newest { at, history: Position(0) });
            if let Some(&upto) = self.reopened.get(&outcome.job.id) {
                newest.history = newest.history.max(upto);
            }
            self.outcomes.push_back(Entry { outcome: outcome.clone(), before });
        }
        self.end = upto;
        self.deleted.retain(|_, late| *late > upto);
        self.reopened.retain(|_, late| *late > upto);
        while self.bytes > self.capacity
            && let Some(Entry { outcome: oldest, .. }) = self.outcomes.pop_front()
        {
            self.bytes -= weight(&oldest);
            self.after = oldest.position;
            if let MapEntry::Occupied(newest) = self.by_job.entry(oldest.job.id.clone())
                && newest.get().at == oldest.position
            {
                newest.remove();
            }
        }
    }

    fn forget(&mut self, job: &JobId, upto: Position) {
        if upto > self.end {
            self.deleted.insert(job.clone(), upto);
        }
        let mut next = self.by_job.get(job).map(|newest| newest.at);
        if next.is_some_and(|newest| newest <= upto) {
            self.by_job.remove(job);
        }
        while let Some(index) = next.and_then(|at| self.index(at)) {
            next = self.outcomes[index].before;
            if self.outcomes[index].outcome.position <= upto
                && let Some(Entry { outcome: gone, .. }) = self.outcomes.remove(index)
            {
                self.bytes -= weight(&gone);
            }
        }
    }
}

/// Bytes of an outcome in memory, about.
fn weight(outcome: &Outcome) -> usize {
    weight::weight(&outcome.job)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        job::{FinalState, JobSpec, Kind, Payload, State},
        store::sqlite::SqliteStore,
    };

    fn outcome(position: i64, id: &str) -> Outcome {
        let kind: Kind = "echo".parse().unwrap();
        let spec = Arc::new(JobSpec::new(kind, Payload::none()));
        let job = Job {
            state: State::Final(FinalState::Succeeded),
            ..Job::accepted(id.parse().unwrap(), spec, Timestamp(0))
        };
        Outcome { position: Position(position), job: job.into() }
    }

    fn positions(ring: &Ring) -> Vec<i64> {
        let stretch = ring.read(ring.after, 100).unwrap();
        assert_eq!(stretch.upto, ring.end);
        stretch.outcomes.iter().map(|outcome| outcome.position.0).collect()
    }

    #[tokio::test]
    async fn what_comes_too_early_waits_for_what_is_before_it() {
        let dir = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(dir.path(), Arc::default(), Timestamp(0)).unwrap();
        let (feed, waits, mut early) = (Feed::new(store.clone(), 1 << 20), Waits::new(1), Early::new());
        let mut told = store.signals().outcomes.subscribe();
        let mut take = |first: i64, last: i64| {
            store.signals().tell((first..=last).map(|n| outcome(n, &n.to_string())).collect());
            feed.take(&mut told, &mut early, &waits).0
        };
        assert_eq!(take(1, 2), 2);
        assert_eq!(take(7, 8), 2);
        assert_eq!(take(5, 6), 2);
        assert_eq!(take(3, 4), 8);
        // Read from the store meanwhile.
        assert_eq!(take(10, 11), 8);
        feed.append(&[outcome(9, "9"), outcome(10, "10")], Position(10), None, &waits);
        assert_eq!(take(13, 13), 10);
        feed.append(&[outcome(11, "11"), outcome(12, "12")], Position(12), None, &waits);
        assert_eq!(take(14, 14), 14);
        assert!(early.is_empty());
        assert_eq!(positions(&feed.ring.read()), (1..=14).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn a_page_that_was_read_for_fewer_followers_is_read_anew() {
        let dir = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(dir.path(), Arc::default(), Timestamp(0)).unwrap();
        let (feed, waits) = (Arc::new(Feed::new(store, 1 << 20)), Waits::new(1));
        // As where servers share a store.
        feed.ring.write().interest = Interest::default();
        let (queues, version) = feed.ring.write().interest.queues();
        assert_eq!(queues, Queues::Only([].into()));
        feed.append(&[], Position(5), Some(version), &waits);
        let queue = Queues::from(&"default".parse().unwrap());
        let follower = feed.follower(queue);
        assert_eq!(follower.since, Position(5));
        feed.append(&[], Position(9), Some(version), &waits);
        assert_eq!(*follower.tail.borrow(), Position(5));
        let (_, version) = feed.ring.write().interest.queues();
        feed.append(&[outcome(8, "a")], Position(9), Some(version), &waits);
        assert_eq!(*follower.tail.borrow(), Position(9));
        // What it has not followed from the beginning is in the store, not in memory.
        let stretch = follower.read(Position(5), 10).await.unwrap();
        assert_eq!((stretch.outcomes.len(), stretch.start), (1, None));
        assert!(follower.read(Position(4), 10).await.unwrap().start.is_some());
    }

    #[test]
    fn a_deleted_job_is_forgotten_and_its_successor_is_not() {
        let mut ring = Ring { capacity: 1 << 20, ..Ring::default() };
        ring.append(&[outcome(1, "a"), outcome(2, "b")], Position(2));
        ring.forget(&"a".parse().unwrap(), Position(3));
        assert_eq!(positions(&ring), [2]);
        // What was handed over before the deletion, and what another job of the same id did after it.
        ring.append(&[outcome(3, "a"), outcome(4, "a")], Position(4));
        assert_eq!(positions(&ring), [2, 4]);
        ring.forget(&"a".parse().unwrap(), Position(3));
        assert_eq!(positions(&ring), [2, 4]);
    }

    #[test]
    fn a_job_that_was_reopened_is_final_again_with_its_next_outcome() {
        let mut ring = Ring { capacity: 1 << 20, ..Ring::default() };
        let newest = |ring: &Ring| ring.newest(&"a".parse().unwrap()).is_some();
        assert!(!newest(&ring));
        ring.append(&[outcome(1, "a")], Position(1));
        assert!(newest(&ring));
        ring.reopen(&"a".parse().unwrap(), Position(1));
        assert!(!newest(&ring));
        ring.append(&[outcome(2, "a")], Position(2));
        assert!(newest(&ring));
        // The store knew of its end, and of what followed, before the ring did.
        ring.reopen(&"a".parse().unwrap(), Position(3));
        ring.append(&[outcome(3, "a")], Position(3));
        assert!(!newest(&ring));
        ring.append(&[outcome(4, "a")], Position(4));
        assert!(newest(&ring));
    }

    #[test]
    fn one_read_gives_no_more_than_a_page() {
        let mut ring = Ring { capacity: usize::MAX, ..Ring::default() };
        let count = 3 * PAGE_BYTES / weight(&outcome(1, "a")) / 2;
        ring.append(&(1..=count as i64).map(|n| outcome(n, "a")).collect::<Vec<_>>(), Position(count as i64));
        let page = ring.read(Position(0), usize::MAX).unwrap();
        assert_eq!(page.outcomes.iter().map(weight).sum::<usize>().next_multiple_of(PAGE_BYTES), PAGE_BYTES);
        assert_eq!(page.outcomes.last().unwrap().position, page.upto);
        let rest = ring.read(page.upto, usize::MAX).unwrap();
        assert_eq!((page.outcomes.len() + rest.outcomes.len(), rest.upto), (count, ring.end));
        assert_eq!(ring.read(Position(0), 10).unwrap().upto, Position(10));
    }

    #[test]
    fn a_full_ring_drops_the_oldest_and_all_that_it_knew_of_them() {
        let mut ring = Ring { capacity: 3 * weight(&outcome(1, "a")), ..Ring::default() };
        ring.append(&(1..=10).map(|n| outcome(n, "a")).collect::<Vec<_>>(), Position(10));
        assert_eq!((positions(&ring), ring.after), (vec![8, 9, 10], Position(7)));
        assert_eq!(ring.by_job[&"a".parse::<JobId>().unwrap()].at, Position(10));
        ring.forget(&"a".parse().unwrap(), Position(10));
        assert_eq!((positions(&ring), ring.bytes, ring.by_job.len()), (Vec::<i64>::new(), 0, 0));
    }
}
