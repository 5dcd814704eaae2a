//! Jobs that the open transaction has accepted and that are due at once. Most of them are leased in the same
//! transaction: then they are written once, as running, and never stand in line in the tables.

use std::collections::{BTreeMap, HashMap};

use super::{read::Fixed, rows::LiveRow};
use crate::job::Timestamp;

/// Where a job stands in its line: its rank, then its number. The order of the index `live_ready`.
pub type Place = (i64, i64);

#[derive(Debug, Default)]
pub struct Fresh {
    lines: HashMap<i64, BTreeMap<Place, (LiveRow, Fixed)>>,
}

impl Fresh {
    pub fn add(&mut self, row: LiveRow, fixed: Fixed) {
        let place = (row.live.rank(), row.num);
        self.lines.entry(row.line).or_default().insert(place, (row, fixed));
    }

    pub fn count(&self, line: i64) -> usize {
        self.lines.get(&line).map_or(0, BTreeMap::len)
    }

    /// The places of a line, the first one first. Those whose time is over are left out.
    pub fn places(&self, line: i64, now: Timestamp) -> impl Iterator<Item = Place> {
        let jobs = self.lines.get(&line).into_iter().flatten();
        jobs.filter(move |(_, (row, _))| row.live.wake().is_none_or(|wake| wake > now))
            .map(|(&place, _)| place)
    }

    pub fn take(&mut self, line: i64, place: Place) -> Option<(LiveRow, Fixed)> {
        self.lines.get_mut(&line)?.remove(&place)
    }

    pub fn find(&self, num: i64) -> Option<&(LiveRow, Fixed)> {
        self.lines.values().flatten().find(|((_, found), _)| *found == num).map(|(_, job)| job)
    }

    /// Forgets the jobs whose numbers come after `last`.
    pub fn roll_back(&mut self, last: i64) {
        self.lines.values_mut().for_each(|jobs| jobs.retain(|&(_, num), _| num <= last));
    }
}

impl IntoIterator for Fresh {
    type Item = (LiveRow, Fixed);
    type IntoIter = Box<dyn Iterator<Item = Self::Item>>;

    fn into_iter(self) -> Self::IntoIter {
        Box::new(self.lines.into_values().flat_map(BTreeMap::into_values))
    }
}
