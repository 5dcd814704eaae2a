//! Statements that lease and whose answers were lost. If they took effect, nobody runs their jobs.

use std::{collections::HashMap, time::Duration};

use parking_lot::Mutex;

use super::{
    database::Database,
    pool::{Failure, Result},
    rows::get,
};
use crate::{
    job::Timestamp,
    store::{LeaseId, Settlement},
};

const LEASES: &str = "select num, fence from lease where claim = any ($1::int8[]) \
     union all select num, fence from seat where claim = any ($1::int8[])";

/// So many are remembered at most: the leases of others run out.
const UNHEARD: usize = 4096;

/// Leases that are given back at once.
const SLICE: usize = 500;

/// Until when to look for each, by the numbers that were drawn for them.
#[derive(Debug, Default)]
pub struct Unheard(Mutex<HashMap<i64, Timestamp>>);

impl Unheard {
    pub fn expect(&self, claim: i64, until: Timestamp) {
        let mut unheard = self.0.lock();
        if unheard.len() < UNHEARD {
            unheard.insert(claim, until);
        }
    }
}

impl Database {
    /// Remembers a statement that leases, if it failed in a way that does not tell whether it has.
    pub fn expect_unheard(&self, claim: i64, lease: Duration, failure: &Failure) {
        if failure.may_have_worked() {
            // It may have been on its way for longer than its leases last, and take effect only now.
            self.common.unheard.expect(claim, self.last_time().after(lease));
        }
    }

    /// Gives back what was leased unheard: the attempts do not count.
    pub async fn give_back_unheard(&self, now: Timestamp) -> Result<()> {
        let unheard = &self.common.unheard;
        let claims: Vec<i64> = unheard.0.lock().keys().copied().collect();
        if claims.is_empty() {
            return Ok(());
        }
        let found = self.pools.write.query(LEASES, &[&claims]).await?;
        for rows in found.chunks(SLICE) {
            let lease = |row| LeaseId { job: get(row, "num"), fence: get(row, "fence") };
            self.settle_attempts(now, rows.iter().map(|row| Settlement::release(lease(row))).collect())
                .await?;
        }
        // Not before it was looked for once: the database may not have been there meanwhile.
        unheard.0.lock().retain(|_, until| *until > now);
        Ok(())
    }
}
