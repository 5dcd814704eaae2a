//! Jobs that the writer has just had in its hands. It is the only one that writes, so what it knows of them is what the
//! tables hold, and most jobs are claimed and settled soon after: they need not be read again.

use std::collections::HashMap;

use super::rows::LiveRow;
use crate::{
    job::{Live, Timestamp},
    store::{fixed::Fixed, weight::asked},
};

/// Jobs of one generation.
const JOBS: usize = 8192;

/// Bytes of what was asked for.
const BYTES: usize = 4 << 20;

/// An unfinished job, all of it. In a box, because it goes from hand to hand.
pub type Known = Box<(LiveRow, Fixed)>;

/// Two generations of unfinished jobs: when the younger one is full, the older one is forgotten.
#[derive(Debug, Default)]
pub struct Recent {
    young: Generation,
    old: Generation,
}

#[derive(Debug, Default)]
struct Generation {
    jobs: HashMap<i64, Known>,
    bytes: usize,
}

impl Recent {
    pub fn get(&self, num: i64) -> Option<&(LiveRow, Fixed)> {
        self.young.jobs.get(&num).or_else(|| self.old.jobs.get(&num)).map(|job| &**job)
    }

    /// A job as it is in the tables now.
    pub fn keep(&mut self, job: Known) {
        let (row, fixed) = &*job;
        let num = row.num;
        self.forget(num);
        if self.young.jobs.len() >= JOBS || self.young.bytes >= BYTES {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.bytes += asked(&fixed.spec, &fixed.trace);
        self.young.jobs.insert(num, job);
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
        entry.map(|job| &mut job.0)
    }

    /// It is unfinished no more, or was rolled back.
    pub fn forget(&mut self, num: i64) {
        match self.young.jobs.remove(&num) {
            Some(job) => self.young.bytes -= asked(&job.1.spec, &job.1.trace),
            None => drop(self.old.jobs.remove(&num)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        job::{JobSpec, Payload},
        store::sqlite::rows::LiveRow,
    };

    fn kept(num: i64) -> Known {
        let mut spec = JobSpec::new("echo".parse().unwrap(), Payload::none());
        spec.labels = [("name".to_owned(), "x".repeat(10_000))].into();
        let live = Live::admit(&spec, Timestamp(0));
        let fixed = Fixed {
            id: num.to_string().parse().unwrap(),
            spec: spec.into(),
            trace: Default::default(),
            submitted: Timestamp(0),
        };
        Box::new((LiveRow { num, line: 1, bytes: 0, retention: None, live }, fixed))
    }

    #[test]
    fn a_job_counts_once_for_as_long_as_it_is_kept() {
        let mut recent = Recent::default();
        for num in [1, 2, 1, 1] {
            recent.keep(kept(num));
        }
        assert!((20_000..21_000).contains(&recent.young.bytes), "{}", recent.young.bytes);
        recent.forget(1);
        recent.forget(2);
        assert_eq!(recent.young.bytes, 0);
        for num in 0..10_000 {
            recent.keep(kept(num));
        }
        assert!(recent.young.bytes + recent.old.bytes <= 2 * BYTES + 20_000);
        assert!(recent.get(9_999).is_some() && recent.get(0).is_none());
    }
}
