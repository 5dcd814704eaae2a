//! The lines that jobs wait in, one for each queue and kind, as far as this replica knows them. They are never removed
//! and never change, but for their counts, which the database keeps.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use parking_lot::RwLock;
use tokio_postgres::Row;

use super::{
    pool::{Connections, Failure, Result},
    rows::get,
};
use crate::{
    config::Config,
    job::{JobSpec, Kind, Policy, QueueName, State},
    store::{LineCounts, Queues},
};

const COUNTS: &str = include_str!("sql/counts.sql");
const MAKE: &str = include_str!("sql/lines.sql");
const NEWER: &str = "select id, queue, kind from line where id > $1 order by id";

const STATES: usize = State::ALL.len();

/// One queue and kind.
#[derive(Debug)]
pub struct Line {
    pub id: i32,
    pub queue: QueueName,
    pub kind: Kind,
    /// What holds for its jobs unless they say otherwise.
    pub policy: Policy,
}

/// Lines with an id, and all of them.
#[derive(Debug)]
pub struct Lines {
    config: Arc<Config>,
    known: RwLock<Known>,
    heard: AtomicBool,
}

#[derive(Debug, Default)]
struct Known {
    by_id: HashMap<i32, Arc<Line>>,
    by_name: HashMap<(QueueName, Kind), i32>,
    newest: i32,
}

/// A line's counts.
#[derive(Clone, Debug)]
pub struct Counted {
    pub counts: LineCounts,
    /// Payloads of unfinished jobs.
    pub bytes: u64,
}

impl Counted {
    pub fn unfinished(&self) -> u64 {
        self.counts
            .by_state
            .iter()
            .zip(State::ALL)
            .filter(|(_, state)| !state.is_final())
            .map(|(n, _)| n)
            .sum()
    }
}

impl Lines {
    pub fn new(config: Arc<Config>) -> Self {
        Self { config, known: RwLock::default(), heard: AtomicBool::new(false) }
    }

    /// Gets to know the lines that other replicas have made since.
    pub async fn refresh(&self, connections: &Connections) -> Result<()> {
        let newest = self.known.read().newest;
        let rows = connections.query(NEWER, &[&newest]).await?;
        if !rows.is_empty() {
            let mut known = self.known.write();
            for row in rows {
                let (queue, kind) = names(&row)?;
                let (id, policy) = (get(&row, "id"), self.config.queue_policy(&queue));
                known.by_name.insert((queue.clone(), kind.clone()), id);
                known.by_id.insert(id, Arc::new(Line { id, queue, kind, policy }));
                known.newest = known.newest.max(id);
            }
        }
        Ok(())
    }

    /// Another replica has said that there are jobs: perhaps in a line that it has made.
    pub fn heard(&self) {
        self.heard.store(true, Ordering::Relaxed);
    }

    /// Refreshes if anything was heard since the last time.
    pub async fn keep_up(&self, connections: &Connections) -> Result<()> {
        if self.heard.swap(false, Ordering::Relaxed) {
            self.refresh(connections).await?;
        }
        Ok(())
    }

    /// The lines of these specs. Makes those that are not there, and gets to know them.
    pub async fn make(&self, connections: &Connections, specs: &[&JobSpec]) -> Result<Vec<i32>> {
        let lines = self.of_each(specs);
        let missing: Vec<_> = specs.iter().zip(&lines).filter(|(_, line)| line.is_none()).collect();
        if missing.is_empty() {
            return Ok(lines.into_iter().flatten().collect());
        }
        let queues: Vec<&str> = missing.iter().map(|(spec, _)| spec.queue.as_str()).collect();
        let kinds: Vec<&str> = missing.iter().map(|(spec, _)| spec.kind.as_str()).collect();
        connections.query(MAKE, &[&queues, &kinds]).await?;
        self.refresh(connections).await?;
        let made = self.of_each(specs).into_iter();
        made.map(|line| line.ok_or(Failure::Damaged("the lines"))).collect()
    }

    /// Jobs that come together are mostly of one line.
    fn of_each(&self, specs: &[&JobSpec]) -> Vec<Option<i32>> {
        let mut lines: Vec<Option<i32>> = Vec::with_capacity(specs.len());
        for (at, spec) in specs.iter().enumerate() {
            let before = at.checked_sub(1).map(|before| specs[before]);
            let is_same =
                before.is_some_and(|before| (&before.queue, &before.kind) == (&spec.queue, &spec.kind));
            lines.push(if is_same { lines[at - 1] } else { self.of(spec) });
        }
        lines
    }

    /// The line of a spec, if it is known.
    pub fn of(&self, spec: &JobSpec) -> Option<i32> {
        self.known.read().by_name.get(&(spec.queue.clone(), spec.kind.clone())).copied()
    }

    /// # Errors
    /// It is not known: whoever got its id from a row refreshes first.
    pub fn get(&self, id: i32) -> Result<Arc<Line>> {
        self.known.read().by_id.get(&id).cloned().ok_or(Failure::Damaged("the line of a job"))
    }

    /// Whether all of these are known.
    pub fn know(&self, mut ids: impl Iterator<Item = i32>) -> bool {
        let known = self.known.read();
        ids.all(|id| known.by_id.contains_key(&id))
    }

    pub fn len(&self) -> usize {
        self.known.read().by_id.len()
    }

    /// The lines of queues and kinds that are asked for.
    pub fn matching(&self, wanted: impl Fn(&QueueName, &Kind) -> bool) -> Vec<Arc<Line>> {
        let known = self.known.read();
        known.by_id.values().filter(|line| wanted(&line.queue, &line.kind)).cloned().collect()
    }

    /// The lines of some queues, or None for all, and the newest one that is known: later ones may be of these queues too.
    pub fn of_queues(&self, queues: &Queues) -> (Option<Vec<i32>>, i32) {
        let known = self.known.read();
        let of = |queue| queues.contain(queue);
        let lines = (*queues != Queues::All)
            .then(|| known.by_id.values().filter(|line| of(&line.queue)).map(|line| line.id).collect());
        (lines, known.newest)
    }

    /// All lines with their counts, exact as of now.
    pub async fn counts(&self, connections: &Connections) -> Result<Vec<Counted>> {
        let rows = connections.query(COUNTS, &[]).await?;
        rows.iter().map(counted).collect()
    }
}

fn names(row: &Row) -> Result<(QueueName, Kind)> {
    let queue = get::<&str>(row, "queue").parse().map_err(|_| Failure::Damaged("a queue name"))?;
    let kind = get::<&str>(row, "kind").parse().map_err(|_| Failure::Damaged("a kind"))?;
    Ok((queue, kind))
}

fn counted(row: &Row) -> Result<Counted> {
    let (queue, kind) = names(row)?;
    let count = |at: usize| u64::try_from(row.get::<_, i64>(at)).map_err(|_| Failure::Damaged("a count"));
    let mut by_state = [0; STATES];
    for (at, number) in by_state.iter_mut().enumerate() {
        *number = count(at + 3)?;
    }
    Ok(Counted { counts: LineCounts { queue, kind, by_state }, bytes: count(3 + STATES)? })
}
