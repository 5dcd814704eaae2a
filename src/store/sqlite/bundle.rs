//! Leases that the pool got as their jobs were accepted share a row, a bundle: most of their jobs end soon after, and then
//! never had a row in `live`. Whoever wants to do anything else with one gives it its row first.

use std::collections::BTreeMap;

use rusqlite::params;

use super::{
    rows::{LIVE_COLUMNS, LiveRow, Result},
    tx::Tx,
};
use crate::{
    job::{Fence, Lease, Timestamp},
    store::fixed::Fixed,
};

/// Milliseconds after which a bundle is given up: what still runs gets rows. So there are few, and none is left when leases
/// are first renewed.
const AGE: i64 = 1000;

/// The bundles that are written, by their first numbers.
#[derive(Debug, Default)]
pub struct Bundles(BTreeMap<i64, Bundle>);

#[derive(Debug)]
struct Bundle {
    started: Timestamp,
    until: Timestamp,
    /// Whether a job is in it, for each number from the first one on.
    holds: Vec<bool>,
    count: usize,
}

impl Bundle {
    fn last(&self, first: i64) -> i64 {
        first + self.holds.len() as i64 - 1
    }
}

impl Bundles {
    pub fn hold(&self, num: i64) -> bool {
        self.0.range(..=num).next_back().is_some_and(|(first, bundle)| {
            usize::try_from(num - first).is_ok_and(|at| bundle.holds.get(at).copied().unwrap_or(false))
        })
    }

    /// When the first of their leases is over.
    pub fn until(&self) -> Option<Timestamp> {
        self.0.values().map(|bundle| bundle.until).min()
    }

    /// Takes a job out, if it is in one. Answers with the bundle that is empty now.
    fn remove(&mut self, num: i64) -> Option<i64> {
        let (&first, bundle) = self.0.range_mut(..=num).next_back()?;
        bundle.holds[(num - first) as usize] = false;
        bundle.count -= 1;
        (bundle.count == 0).then(|| {
            self.0.remove(&first);
            first
        })
    }

    fn first_before(&self, time: Timestamp) -> Option<(i64, i64)> {
        let old = self.0.iter().find(|(_, bundle)| bundle.started <= time);
        old.map(|(&first, bundle)| (first, bundle.last(first)))
    }
}

/// The bundle of the open transaction.
#[derive(Debug)]
pub struct Gathered {
    fence: Fence,
    lease: Lease,
    nums: Vec<i64>,
}

impl Tx<'_> {
    /// The fence of a new lease on a job that this transaction has accepted, if it can be bundled with the others.
    pub fn bundle(&mut self, row: &LiveRow, fixed: &Fixed, lease: &Lease) -> Option<Fence> {
        // The view `seat` makes up what is the same for all of these.
        let alike = row.live.due == fixed.submitted && row.live.end_by.is_none() && row.retention.is_none();
        if !alike || !lease.worker.is_pool() {
            return None;
        }
        let fences = &mut self.fences;
        let gathered = self.gathered.get_or_insert_with(|| Gathered {
            fence: fences.next(),
            lease: lease.clone(),
            nums: Vec::new(),
        });
        (gathered.lease == *lease).then(|| {
            gathered.nums.push(row.num);
            gathered.fence
        })
    }

    /// Writes the bundle of this transaction.
    pub fn land_bundle(&mut self) -> Result<()> {
        let Some(Gathered { fence, lease, nums }) = self.gathered.take() else { return Ok(()) };
        let (Some(&first), Some(&last)) = (nums.iter().min(), nums.iter().max()) else { return Ok(()) };
        self.connection
            .prepare_cached(
                "INSERT INTO bundle (first, last, fence, worker, started, until) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            )?
            .execute(params![first, last, fence, lease.worker, lease.started, lease.until])?;
        let mut holds = vec![false; (last - first) as usize + 1];
        nums.iter().for_each(|num| holds[(num - first) as usize] = true);
        let bundle = Bundle { started: lease.started, until: lease.until, holds, count: nums.len() };
        self.bundles.0.insert(first, bundle);
        Ok(())
    }

    /// The job of a bundle has ended. False if it is in none.
    pub fn leave_bundle(&mut self, num: i64) -> Result<bool> {
        if !self.bundles.hold(num) {
            return Ok(false);
        }
        if let Some(empty) = self.bundles.remove(num) {
            self.delete_bundle(empty)?;
        }
        Ok(true)
    }

    /// Gives a job a row in `live`, if it is in a bundle.
    pub fn unbundle(&mut self, num: i64) -> Result<()> {
        if self.bundles.hold(num) {
            self.give_rows(num, num)?;
            self.leave_bundle(num)?;
        }
        Ok(())
    }

    /// Gives up the bundles that are old.
    pub fn unbundle_old(&mut self, now: Timestamp) -> Result<()> {
        while let Some((first, last)) = self.bundles.first_before(Timestamp(now.0 - AGE)) {
            self.give_rows(first, last)?;
            self.bundles.0.remove(&first);
            self.delete_bundle(first)?;
        }
        Ok(())
    }

    /// Gives up all bundles that a process before this one has written.
    pub fn unbundle_all(&self) -> Result<()> {
        let mut bundles = self.connection.prepare_cached("SELECT first, last FROM bundle")?;
        let bundles: Vec<(i64, i64)> =
            bundles.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect::<Result<_>>()?;
        for (first, last) in bundles {
            self.give_rows(first, last)?;
            self.delete_bundle(first)?;
        }
        Ok(())
    }

    fn give_rows(&self, first: i64, last: i64) -> Result<()> {
        let sql = const_format::formatcp!(
            "INSERT INTO live ({LIVE_COLUMNS}, rank) SELECT {LIVE_COLUMNS}, rank FROM seat WHERE num BETWEEN ?1 AND ?2"
        );
        self.connection.prepare_cached(sql)?.execute([first, last]).map(drop)
    }

    fn delete_bundle(&self, first: i64) -> Result<()> {
        self.connection.prepare_cached("DELETE FROM bundle WHERE first = ?1")?.execute([first]).map(drop)
    }
}
