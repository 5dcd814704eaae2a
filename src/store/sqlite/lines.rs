//! The lines that jobs wait in, one for each queue and kind, with their counts. Held in memory by the writer, written
//! back with each transaction that moved a job: counts are kept, never counted.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use rusqlite::{Connection, params};

use super::rows::{self, Result};
use crate::{
    config::Config,
    job::{JobSpec, Kind, Policy, QueueName, State},
    store::LineCounts,
};

const STATES: usize = State::ALL.len();

/// One queue and kind.
#[derive(Clone, Debug)]
pub struct Line {
    pub id: i64,
    pub queue: QueueName,
    pub kind: Kind,
    /// What holds for its jobs unless they say otherwise.
    pub policy: Arc<Policy>,
    /// Its queue's place in [`Lines::queues`].
    at_queue: usize,
    counts: [u64; STATES],
    /// Payloads of unfinished jobs.
    bytes: u64,
}

impl Line {
    /// Jobs in a state; for a final one, all there ever were.
    pub fn count(&self, state: State) -> u64 {
        self.counts[index(state)]
    }

    fn unfinished(&self) -> u64 {
        self.counts[..4].iter().sum()
    }
}

/// All lines.
#[derive(Debug, Default)]
pub struct Lines {
    /// By id: a new one gets a larger one than all before it.
    all: Vec<Line>,
    by_name: HashMap<(QueueName, Kind), usize>,
    /// The line that was last asked for by its names.
    last: usize,
    unfinished: u64,
    bytes: u64,
    /// Unfinished jobs of each queue.
    queues: Vec<u64>,
    queue_by_name: HashMap<QueueName, usize>,
    touched: BTreeSet<usize>,
    journal: Vec<Move>,
}

/// A job that came into a state (or left one).
#[derive(Clone, Copy, Debug)]
struct Move {
    line: usize,
    from: Option<State>,
    to: Option<State>,
    bytes: u64,
}

/// A point that a transaction can go back to.
#[derive(Clone, Copy, Debug)]
pub struct Mark {
    lines: usize,
    moves: usize,
}

impl Lines {
    pub fn load(connection: &Connection, config: &Config) -> Result<Self> {
        let mut lines = Self::default();
        let mut statement = connection.prepare("SELECT * FROM line ORDER BY id")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let (queue, kind) = rows::names(row)?;
            let mut counts = [0; STATES];
            for (column, count) in counts.iter_mut().enumerate() {
                *count = row.get(3 + column)?;
            }
            lines.add(config, row.get("id")?, queue, kind, counts, row.get("bytes")?);
        }
        Ok(lines)
    }

    fn add(
        &mut self,
        config: &Config,
        id: i64,
        queue: QueueName,
        kind: Kind,
        counts: [u64; STATES],
        bytes: u64,
    ) {
        let at = self.all.len();
        self.by_name.insert((queue.clone(), kind.clone()), at);
        let at_queue = *self.queue_by_name.entry(queue.clone()).or_insert_with(|| {
            self.queues.push(0);
            self.queues.len() - 1
        });
        let policy = Arc::new(config.queue_policy(&queue));
        let line = Line { id, queue, kind, policy, at_queue, counts, bytes };
        self.unfinished += line.unfinished();
        self.bytes += bytes;
        self.queues[at_queue] += line.unfinished();
        self.all.push(line);
    }

    /// The line of a spec; a new one is written at once.
    pub fn of(&mut self, connection: &Connection, config: &Config, spec: &JobSpec) -> Result<i64> {
        if let Some(at) = self.find(spec) {
            self.last = at;
            return Ok(self.all[at].id);
        }
        connection
            .prepare_cached("INSERT INTO line (queue, kind) VALUES (?1, ?2)")?
            .execute(params![spec.queue.as_str(), spec.kind.as_str()])?;
        let id = connection.last_insert_rowid();
        self.add(config, id, spec.queue.clone(), spec.kind.clone(), [0; STATES], 0);
        Ok(id)
    }

    pub fn known(&self, spec: &JobSpec) -> bool {
        self.find(spec).is_some()
    }

    fn find(&self, spec: &JobSpec) -> Option<usize> {
        // Jobs of one line often come one after the other.
        if self.all.get(self.last).is_some_and(|line| line.queue == spec.queue && line.kind == spec.kind) {
            return Some(self.last);
        }
        self.by_name.get(&(spec.queue.clone(), spec.kind.clone())).copied()
    }

    pub fn get(&self, id: i64) -> Result<&Line> {
        Ok(&self.all[self.place(id)?])
    }

    fn place(&self, id: i64) -> Result<usize> {
        self.all.binary_search_by_key(&id, |line| line.id).map_err(|_| rows::damaged("the line of a job"))
    }

    pub fn iter(&self) -> impl Iterator<Item = &Line> {
        self.all.iter()
    }

    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Unfinished jobs, and the bytes of their payloads.
    pub fn backlog(&self) -> (u64, u64) {
        (self.unfinished, self.bytes)
    }

    pub fn unfinished_of(&self, queue: &QueueName) -> u64 {
        self.queue_by_name.get(queue).map_or(0, |&at| self.queues[at])
    }

    /// Counts a job's move from one state to another. `bytes` is the size of its payload.
    pub fn shift(&mut self, id: i64, from: Option<State>, to: Option<State>, bytes: u64) -> Result<()> {
        let line = self.place(id)?;
        let step = Move { line, from, to, bytes };
        self.apply(step);
        self.journal.push(step);
        Ok(())
    }

    fn apply(&mut self, Move { line: at, from, to, bytes }: Move) {
        let line = &mut self.all[at];
        if let Some(state) = from
            && !state.is_final()
        {
            line.counts[index(state)] -= 1;
        }
        if let Some(state) = to {
            line.counts[index(state)] += 1;
        }
        let was = from.is_some_and(|state| !state.is_final());
        let is = to.is_some_and(|state| !state.is_final());
        let of_queue = &mut self.queues[line.at_queue];
        if is && !was {
            line.bytes += bytes;
            self.bytes += bytes;
            self.unfinished += 1;
            *of_queue += 1;
        } else if was && !is {
            line.bytes -= bytes;
            self.bytes -= bytes;
            self.unfinished -= 1;
            *of_queue -= 1;
        }
        self.touched.insert(at);
    }

    pub fn mark(&self) -> Mark {
        Mark { lines: self.all.len(), moves: self.journal.len() }
    }

    /// Forgets what a savepoint of the database that was rolled back had done: only new jobs and new lines.
    pub fn roll_back(&mut self, mark: Mark) {
        for Move { line, from, to, bytes } in self.journal.split_off(mark.moves).into_iter().rev() {
            assert!(from.is_none(), "only a submit is rolled back");
            self.apply(Move { line, from: to, to: None, bytes });
        }
        let gone = self.all.split_off(mark.lines);
        if !gone.is_empty() {
            // Queues came with their first lines, and leave with them: or names stay that are in no line.
            let queues = self.all.iter().map(|line| line.at_queue + 1).max().unwrap_or(0);
            self.queues.truncate(queues);
            self.queue_by_name.retain(|_, at| *at < queues);
        }
        for line in gone {
            self.by_name.remove(&(line.queue, line.kind));
        }
        self.touched.retain(|&at| at < mark.lines);
    }

    /// Writes the counts that changed since the last time, and says where.
    pub fn save(&mut self, connection: &Connection) -> Result<Vec<usize>> {
        self.journal.clear();
        let mut statement = connection.prepare_cached(
            "UPDATE line SET scheduled = ?2, queued = ?3, running = ?4, backing_off = ?5, succeeded = ?6, failed = ?7, \
             cancelled = ?8, expired = ?9, bytes = ?10 WHERE id = ?1",
        )?;
        let touched: Vec<usize> = std::mem::take(&mut self.touched).into_iter().collect();
        for &at in &touched {
            let Line { id, counts: c, bytes, .. } = &self.all[at];
            statement.execute(params![id, c[0], c[1], c[2], c[3], c[4], c[5], c[6], c[7], bytes])?;
        }
        Ok(touched)
    }

    pub fn counts(&self) -> Vec<LineCounts> {
        (0..self.all.len()).map(|at| self.counts_at(at)).collect()
    }

    pub fn counts_at(&self, at: usize) -> LineCounts {
        let line = &self.all[at];
        LineCounts { queue: line.queue.clone(), kind: line.kind.clone(), by_state: line.counts }
    }
}

fn index(state: State) -> usize {
    state.number() as usize - 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::Payload;

    #[test]
    fn what_is_rolled_back_leaves_no_names() {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute("CREATE TABLE line (id INTEGER PRIMARY KEY, queue, kind)", []).unwrap();
        let (config, mut lines) = (Config::default(), Lines::default());
        let spec = |queue: &str, kind: &str| {
            let spec = JobSpec::new(kind.parse().unwrap(), Payload::none());
            JobSpec { queue: queue.parse().unwrap(), ..spec }
        };
        let accept = |lines: &mut Lines, spec: &JobSpec| {
            let line = lines.of(&connection, &config, spec).unwrap();
            lines.shift(line, None, Some(State::QUEUED), 1).unwrap();
        };
        accept(&mut lines, &spec("kept", "a"));
        let mark = lines.mark();
        for kind in ["a", "b"] {
            accept(&mut lines, &spec("kept", kind));
            accept(&mut lines, &spec("gone", kind));
        }
        lines.roll_back(mark);
        assert_eq!((lines.len(), lines.backlog()), (1, (1, 1)));
        assert_eq!((&lines.queues, lines.queue_by_name.len()), (&vec![1], 1));
    }
}
