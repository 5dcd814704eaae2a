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
        self.of(num).is_some()
    }

    /// The bundle that holds a job.
    fn of(&self, num: i64) -> Option<i64> {
        let (&first, bundle) = self.0.range(..=num).next_back()?;
        let at = usize::try_from(num - first).ok()?;
        bundle.holds.get(at).is_some_and(|holds| *holds).then_some(first)
    }

    /// When the first of their leases is over.
    pub fn until(&self) -> Option<Timestamp> {
        self.0.values().map(|bundle| bundle.until).min()
    }

    /// Takes a job out of the bundle that holds it. Whether that is empty now.
    fn remove(&mut self, first: i64, num: i64) -> bool {
        let Some(bundle) = self.0.get_mut(&first) else { return false };
        bundle.holds[(num - first) as usize] = false;
        bundle.count -= 1;
        let is_empty = bundle.count == 0;
        if is_empty {
            self.0.remove(&first);
        }
        is_empty
    }

    /// One that is old, or whose leases are over.
    fn old(&self, now: Timestamp) -> Option<i64> {
        let is_old = |bundle: &Bundle| bundle.started.0 <= now.0 - AGE || bundle.until <= now;
        self.0.iter().find(|(_, bundle)| is_old(bundle)).map(|(&first, _)| first)
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
        let Some(first) = self.bundles.of(num) else { return Ok(false) };
        if self.bundles.remove(first, num) {
            self.delete_bundle(first)?;
        }
        Ok(true)
    }

    /// Gives a job a row in `live`, if it is in a bundle.
    pub fn unbundle(&mut self, num: i64) -> Result<()> {
        if let Some(first) = self.bundles.of(num) {
            self.give_rows(first, num, num)?;
            self.leave_bundle(num)?;
        }
        Ok(())
    }

    /// Gives up bundles that are old, until about so many jobs have got rows. Whether there are more.
    pub fn unbundle_old(&mut self, now: Timestamp, most: usize) -> Result<bool> {
        let mut count = 0;
        while let Some(first) = self.bundles.old(now) {
            if count >= most {
                return Ok(true);
            }
            if let Some(bundle) = self.bundles.0.remove(&first) {
                count += bundle.count;
                self.give_rows(first, first, bundle.last(first))?;
            }
            self.delete_bundle(first)?;
        }
        Ok(false)
    }

    /// Gives up all bundles that a process before this one has written.
    pub fn unbundle_all(&self) -> Result<()> {
        let mut bundles = self.connection.prepare_cached("SELECT first, last FROM bundle")?;
        let bundles: Vec<(i64, i64)> =
            bundles.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect::<Result<_>>()?;
        for (first, last) in bundles {
            self.give_rows(first, first, last)?;
            self.delete_bundle(first)?;
        }
        Ok(())
    }

    /// To those of a bundle that have these numbers.
    fn give_rows(&self, bundle: i64, low: i64, high: i64) -> Result<()> {
        let sql = const_format::formatcp!(
            "INSERT INTO live ({LIVE_COLUMNS}, rank) SELECT {LIVE_COLUMNS}, rank FROM seat \
             WHERE bundle = ?1 AND num BETWEEN ?2 AND ?3"
        );
        self.connection.prepare_cached(sql)?.execute([bundle, low, high]).map(drop)
    }

    fn delete_bundle(&self, first: i64) -> Result<()> {
        self.connection.prepare_cached("DELETE FROM bundle WHERE first = ?1")?.execute([first]).map(drop)
    }
}
