//! Room for more: how many jobs are unfinished, and how many bytes they take, against the limits.
//!
//! Far from a limit an estimate will do: what the database said last, and what was accepted here since. Near it a batch
//! asks for exact numbers, and others of this replica wait until it is done; other replicas may still overshoot by what
//! they accept at that moment.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use parking_lot::Mutex;
use tokio::sync::{Mutex as AsyncMutex, MutexGuard};

use super::lines::{Counted, Lines};
use crate::{
    config::Config,
    job::{Error, JobSpec, Kind, QueueName},
    store::Submission,
};

/// Unfinished jobs.
#[derive(Clone, Debug, Default)]
struct Backlog {
    jobs: u64,
    bytes: u64,
    /// Of queues that have a limit of their own.
    by_queue: HashMap<QueueName, u64>,
}

impl Backlog {
    fn add(&mut self, spec: &JobSpec) {
        self.jobs += 1;
        self.bytes += spec.payload.size as u64;
        if let Some(jobs) = self.by_queue.get_mut(&spec.queue) {
            *jobs += 1;
        }
    }

    fn remove(&mut self, spec: &JobSpec) {
        self.jobs -= 1;
        self.bytes -= spec.payload.size as u64;
        if let Some(jobs) = self.by_queue.get_mut(&spec.queue) {
            *jobs -= 1;
        }
    }
}

/// What is known of the room in the database.
#[derive(Debug)]
pub struct Rooms {
    config: Arc<Config>,
    backlog: Mutex<Backlog>,
    /// Bytes that the database may still grow by.
    free: AtomicU64,
    turn: AsyncMutex<()>,
}

impl Rooms {
    pub fn new(config: Arc<Config>) -> Self {
        Self { config, backlog: Mutex::default(), free: u64::MAX.into(), turn: AsyncMutex::default() }
    }

    /// Takes over what the database says.
    pub fn count(&self, lines: &[Counted]) {
        let limited = self.config.queues.iter().filter(|(_, queue)| queue.max_unfinished.is_some());
        let mut backlog = Backlog {
            by_queue: limited.filter_map(|(name, _)| Some((name.parse().ok()?, 0))).collect(),
            ..Backlog::default()
        };
        for line in lines {
            backlog.jobs += line.unfinished();
            backlog.bytes += line.bytes;
            if let Some(jobs) = backlog.by_queue.get_mut(&line.counts.queue) {
                *jobs += line.unfinished();
            }
        }
        *self.backlog.lock() = backlog;
    }

    /// Takes over the size of the database, bytes.
    pub fn measure(&self, size: u64) {
        let most = self.config.store.max_database_bytes.unwrap_or(u64::MAX);
        self.free.store(most.saturating_sub(size), Ordering::Relaxed);
    }

    /// Whether these might come near a limit.
    pub fn is_near(&self, items: &[&Submission]) -> bool {
        let limits = &self.config.limits;
        let (jobs, bytes) =
            (items.len() as u64, items.iter().map(|item| item.spec.payload.size as u64).sum());
        let near = |there: u64, more: u64, limit: u64| there.saturating_add(more) > limit / 4 * 3;
        let backlog = self.backlog.lock();
        near(backlog.jobs, jobs, limits.max_unfinished)
            || near(backlog.bytes, bytes, limits.max_unfinished_bytes)
            || items.iter().any(|item| {
                let limit = self.config.queues.get(item.spec.queue.as_str()).and_then(|q| q.max_unfinished);
                let there = backlog.by_queue.get(&item.spec.queue).copied().unwrap_or(0);
                limit.is_some_and(|limit| near(there, jobs, limit))
            })
    }

    /// One after the other.
    pub async fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().await
    }

    /// For one batch.
    pub fn as_of_now<'a>(&'a self, lines: &'a Lines) -> Room<'a> {
        Room {
            config: &self.config,
            free: self.free.load(Ordering::Relaxed),
            backlog: self.backlog.lock().clone(),
            lines,
            new_lines: Vec::new(),
            taken: Vec::new(),
        }
    }

    /// These were accepted.
    pub fn take(&self, specs: &[&JobSpec]) {
        let mut backlog = self.backlog.lock();
        specs.iter().for_each(|spec| backlog.add(spec));
    }
}

/// The room as one batch finds it, and fills it.
pub struct Room<'a> {
    config: &'a Config,
    free: u64,
    backlog: Backlog,
    lines: &'a Lines,
    new_lines: Vec<(QueueName, Kind)>,
    taken: Vec<Arc<JobSpec>>,
}

/// A point that a batch can go back to.
#[derive(Clone, Copy, Debug)]
pub struct Mark {
    lines: usize,
    taken: usize,
}

impl Room<'_> {
    /// # Errors
    /// There is none for this one.
    pub fn admit(&self, item: &Submission) -> Result<(), Error> {
        let (limits, spec) = (&self.config.limits, &item.spec);
        let reserve = self.config.store.reserve_bytes;
        if self.free < reserve {
            return Err(Error::StoreFull { free: self.free, reserve });
        }
        let full = |what: &str, limit| Err(Error::QueueFull { what: what.to_owned(), limit });
        if self.lines.len() + self.new_lines.len() >= limits.max_lines && !self.knows(spec) {
            return full("the list of queues and kinds", limits.max_lines as u64);
        }
        if self.backlog.jobs >= limits.max_unfinished {
            return full("the server's backlog of jobs", limits.max_unfinished);
        }
        if self.backlog.bytes + spec.payload.size as u64 > limits.max_unfinished_bytes {
            return full("the server's backlog of payload bytes", limits.max_unfinished_bytes);
        }
        let limit = self.config.queues.get(spec.queue.as_str()).and_then(|queue| queue.max_unfinished);
        match (limit, self.backlog.by_queue.get(&spec.queue)) {
            (Some(limit), Some(&jobs)) if jobs >= limit => full(&format!("queue {}", spec.queue), limit),
            _ => Ok(()),
        }
    }

    fn knows(&self, spec: &JobSpec) -> bool {
        let is_same = |(queue, kind)| (queue, kind) == (&spec.queue, &spec.kind);
        // Jobs that come together are mostly of one line.
        self.taken.last().is_some_and(|last| is_same((&last.queue, &last.kind)))
            || self.lines.of(spec).is_some()
            || self.new_lines.iter().any(|(queue, kind)| is_same((queue, kind)))
    }

    pub fn take(&mut self, item: &Submission) {
        if !self.knows(&item.spec) {
            self.new_lines.push((item.spec.queue.clone(), item.spec.kind.clone()));
        }
        self.backlog.add(&item.spec);
        self.taken.push(item.spec.clone());
    }

    pub fn mark(&self) -> Mark {
        Mark { lines: self.new_lines.len(), taken: self.taken.len() }
    }

    /// Gives back what was taken since.
    pub fn roll_back(&mut self, mark: Mark) {
        self.new_lines.truncate(mark.lines);
        for spec in self.taken.drain(mark.taken..) {
            self.backlog.remove(&spec);
        }
    }
}
