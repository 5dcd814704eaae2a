//! Jobs that the writer has just had in its hands. It is the only one that writes, so what it knows of them is what the
//! tables hold, and most jobs are claimed and settled soon after: they need not be read again.

use std::collections::HashMap;

use super::rows::LiveRow;
use crate::{
    job::{Live, Timestamp},
    store::fixed::Fixed,
};

/// Jobs of one generation.
const JOBS: usize = 8192;

/// Bytes of their payloads.
const BYTES: usize = 4 << 20;

/// Two generations of unfinished jobs: when the younger one is full, the older one is forgotten.
#[derive(Debug, Default)]
pub struct Recent {
    young: Generation,
    old: Generation,
}

#[derive(Debug, Default)]
struct Generation {
    jobs: HashMap<i64, (LiveRow, Fixed)>,
    bytes: usize,
}

impl Recent {
    pub fn get(&self, num: i64) -> Option<&(LiveRow, Fixed)> {
        self.young.jobs.get(&num).or_else(|| self.old.jobs.get(&num))
    }

    /// A job as it is in the tables now.
    pub fn keep(&mut self, row: LiveRow, fixed: Fixed) {
        if self.young.jobs.len() >= JOBS || self.young.bytes >= BYTES {
            self.old = std::mem::take(&mut self.young);
        }
        self.old.jobs.remove(&row.num);
        self.young.bytes += fixed.spec.payload.size;
        self.young.jobs.insert(row.num, (row, fixed));
    }

    /// Its changing part is another one now.
    pub fn update(&mut self, num: i64, live: &Live) {
        if let Some(row) = self.row(num) {
            row.live = live.clone();
        }
    }

    pub fn renew(&mut self, num: i64, until: Timestamp) {
        if let Some(lease) = self.row(num).and_then(|row| row.live.lease.as_mut()) {
            lease.until = until;
        }
    }

    fn row(&mut self, num: i64) -> Option<&mut LiveRow> {
        let entry = self.young.jobs.get_mut(&num).or_else(|| self.old.jobs.get_mut(&num));
        entry.map(|(row, _)| row)
    }

    /// It is unfinished no more, or was rolled back.
    pub fn forget(&mut self, num: i64) {
        if self.young.jobs.remove(&num).is_none() {
            self.old.jobs.remove(&num);
        }
    }
}
