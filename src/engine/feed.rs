//! The end of the feed in memory, shared by all who follow it: watchers and waits.
//!
//! One tailer reads the store when its head moves (and every second, should a wake-up be lost) and appends to a ring
//! of recent outcomes. Followers sleep on the tail, read from the ring, and from the store when they lag behind it.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use parking_lot::RwLock;
use tokio::sync::watch;

use super::waits::Waits;
use crate::{
    job::Error,
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

struct Ring {
    outcomes: VecDeque<Outcome>,
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
        let ring = Ring { outcomes: VecDeque::new(), after: head, end: head, bytes: 0, capacity };
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

    /// Keeps the ring up with the store, and wakes those who wait for one job. Runs until the store fails.
    pub async fn follow(&self, waits: &Waits) {
        let mut head = self.store.signals().head.subscribe();
        loop {
            head.borrow_and_update();
            let end = self.ring.read().end;
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
                waits.wake(&page.outcomes);
                self.ring.write().append(page.outcomes, page.upto);
                self.tail.send_replace(page.upto);
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

    fn append(&mut self, outcomes: Vec<Outcome>, upto: Position) {
        for outcome in outcomes {
            self.bytes += weight(&outcome);
            self.outcomes.push_back(outcome);
        }
        self.end = upto;
        while self.bytes > self.capacity
            && let Some(oldest) = self.outcomes.pop_front()
        {
            self.bytes -= weight(&oldest);
            self.after = oldest.position;
        }
    }
}

/// Bytes of an outcome in memory, about.
fn weight(outcome: &Outcome) -> usize {
    let job = &outcome.job;
    let labels: usize = job.spec.labels.iter().map(|(name, value)| name.len() + value.len() + 96).sum();
    let error = job.error.as_ref().map_or(0, |error| error.message.len() + 128);
    1024 + labels + error + job.output.as_ref().map_or(0, |output| output.size)
}
