//! Leases as this replica has granted them. Most attempts end before anybody else changes their jobs: these need not be
//! read again. If somebody has, the move finds another version, and moves nothing.

use std::collections::HashMap;

use parking_lot::Mutex;

use super::rows::LiveRow;
use crate::store::LeaseId;

/// Leases of one generation.
const LEASES: usize = 16_384;

/// Two generations: when the younger one is full, the older one is forgotten. So what never comes back takes no room.
#[derive(Debug, Default)]
pub struct Held(Mutex<Generations>);

#[derive(Debug, Default)]
struct Generations {
    young: HashMap<LeaseId, LiveRow>,
    old: HashMap<LeaseId, LiveRow>,
}

impl Held {
    pub fn keep(&self, leases: impl Iterator<Item = (LeaseId, LiveRow)>) {
        let mut held = self.0.lock();
        for (lease, row) in leases {
            if held.young.len() >= LEASES {
                held.old = std::mem::take(&mut held.young);
            }
            held.young.insert(lease, row);
        }
    }

    pub fn take(&self, lease: LeaseId) -> Option<LiveRow> {
        let mut held = self.0.lock();
        held.young.remove(&lease).or_else(|| held.old.remove(&lease))
    }
}
