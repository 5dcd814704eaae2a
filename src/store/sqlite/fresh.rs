//! Jobs that the open transaction has accepted, that are due at once and have no unique key. While claims wait most of
//! them are leased in the same transaction: then they are written once, as running, and never stand in line in the
//! tables.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::{recent::Known, rows::LiveRow};
use crate::{job::Timestamp, store::fixed::Fixed};

/// Where a job stands in its line: its rank, then its number. The order of the index `live_ready`.
pub type Place = (i64, i64);

#[derive(Debug, Default)]
pub struct Fresh {
    /// By number.
    jobs: BTreeMap<i64, Known>,
    lines: HashMap<i64, BTreeSet<Place>>,
}

fn place(row: &LiveRow) -> Place {
    (row.live.rank(), row.num)
}

impl Fresh {
    pub fn add(&mut self, job: Known) {
        let (row, _) = &*job;
        self.lines.entry(row.line).or_default().insert(place(row));
        self.jobs.insert(row.num, job);
    }

    pub fn get(&self, num: i64) -> Option<&(LiveRow, Fixed)> {
        self.jobs.get(&num).map(|job| &**job)
    }

    pub fn count(&self, line: i64) -> usize {
        self.lines.get(&line).map_or(0, BTreeSet::len)
    }

    /// The places of a line, the first one first. Those whose time is over are left out.
    pub fn places(&self, line: i64, now: Timestamp) -> impl Iterator<Item = Place> {
        let places = self.lines.get(&line).into_iter().flatten().copied();
        places.filter(move |(_, num)| {
            self.get(*num).and_then(|(row, _)| row.live.wake()).is_none_or(|wake| wake > now)
        })
    }

    pub fn take(&mut self, num: i64) -> Option<Known> {
        let job = self.jobs.remove(&num)?;
        let (row, _) = &*job;
        if let Some(places) = self.lines.get_mut(&row.line) {
            places.remove(&place(row));
        }
        Some(job)
    }

    /// Forgets the jobs whose numbers come after `last`.
    pub fn roll_back(&mut self, last: i64) {
        for job in self.jobs.split_off(&(last + 1)).into_values() {
            if let Some(places) = self.lines.get_mut(&job.0.line) {
                places.remove(&place(&job.0));
            }
        }
    }

    /// All of them, in the order of their numbers.
    pub fn into_jobs(self) -> impl Iterator<Item = Known> {
        self.jobs.into_values()
    }
}
