//! What a run came to, over all its stores.

use std::{collections::BTreeMap, fmt, time::Duration};

use super::{ledger::Ledger, watchers::Watcher, workers::Worker};

#[derive(Default)]
pub struct Totals {
    faults: BTreeMap<&'static str, usize>,
    /// From the start of a process to SERVING.
    pub starts: Vec<Duration>,
    acknowledged: usize,
    outcomes: BTreeMap<&'static str, usize>,
    /// Attempts.
    pub crashed: usize,
    /// Successes that a worker beyond the server was told of.
    by_worker: usize,
    /// Of those workers.
    deaths: usize,
    freezes: usize,
    streams: usize,
    told: usize,
}

impl Totals {
    pub fn fault(&mut self, what: &'static str) {
        *self.faults.entry(what).or_default() += 1;
    }

    pub fn faults(&self) -> usize {
        self.faults.values().sum()
    }

    pub fn longest_recent_start(&self) -> Duration {
        self.starts.iter().rev().take(20).max().copied().unwrap_or(Duration::from_millis(50))
    }

    pub fn count(&mut self, ledger: &Ledger, watchers: &[Watcher], workers: &[Worker]) {
        self.acknowledged += ledger.known.len();
        let runs = ledger.entries.iter().flat_map(|entry| entry.runs.values());
        self.by_worker += runs.filter(|run| run.succeeded.is_some()).count();
        for outcome in
            ledger.entries.iter().flat_map(|entry| entry.runs.values()).flat_map(|run| &run.outcome)
        {
            *self.outcomes.entry(outcome.state.as_str_name()).or_default() += 1;
        }
        self.streams += watchers.iter().map(|watcher| watcher.streams).sum::<usize>();
        self.told += watchers.iter().map(|watcher| watcher.seen.len()).sum::<usize>();
        self.deaths += workers.iter().map(|worker| worker.deaths).sum::<usize>();
        self.freezes += workers.iter().map(|worker| worker.freezes).sum::<usize>();
    }
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut starts = self.starts.clone();
        starts.sort_unstable();
        let at =
            |percent: usize| starts.get((starts.len() * percent / 100).min(starts.len().saturating_sub(1)));
        let [p50, p99, max] = [50, 99, 100].map(|percent| at(percent).copied().unwrap_or_default());
        write!(
            f,
            "{} faults {:?}, {} jobs, {:?}, {} attempts crashed, {} done by workers, which died {} times and froze {} times, \
             {} outcomes told on {} streams, start to SERVING p50 {p50:.1?} p99 {p99:.1?} max {max:.1?}",
            self.faults(),
            self.faults,
            self.acknowledged,
            self.outcomes,
            self.crashed,
            self.by_worker,
            self.deaths,
            self.freezes,
            self.told,
            self.streams,
        )
    }
}
