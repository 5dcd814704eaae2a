//! Leases that one statement gave on jobs that it accepted: one row for all of them (see `schema_1.sql`). Most attempts just
//! end, and then there was never more of their leases. Whoever wants anything else puts them into rows of their own first.

use std::{
    collections::{BTreeMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use super::{
    database::Database,
    moves::{Moved, Unit},
    pool::Result,
    rows::get,
};
use crate::{
    job::{Fence, JobSpec, Live, Timestamp},
    store::written,
};

const FINISH: &str = include_str!("sql/finish.sql");
const UNBUNDLE: &str = include_str!("sql/unbundle.sql");
const SWEEP: &str = include_str!("sql/sweep.sql");

/// A bundle, as far as it is known here.
#[derive(Debug)]
pub struct Bundle {
    pub fence: Fence,
    /// Jobs that were in it at first.
    pub places: usize,
    /// Its leases have rows of their own.
    is_over: AtomicBool,
}

/// A job's place in a bundle.
#[derive(Clone, Debug)]
pub struct Seat {
    bundle: Arc<Bundle>,
    place: usize,
}

impl Bundle {
    pub fn new(fence: Fence, places: usize) -> Arc<Self> {
        Arc::new(Self { fence, places, is_over: AtomicBool::new(false) })
    }

    pub fn seat(self: &Arc<Self>, place: usize) -> Seat {
        Seat { bundle: self.clone(), place }
    }
}

impl Seat {
    pub fn fence(&self) -> Fence {
        self.bundle.fence
    }

    pub fn is_over(&self) -> bool {
        self.bundle.is_over.load(Ordering::Relaxed)
    }
}

/// Whether the lease of a new job that is due may be in a bundle: there is nothing to say of it but what all have in common.
/// `claim.sql` asks the same of jobs that stand in line.
pub fn may_be_bundled(spec: &JobSpec, live: &Live) -> bool {
    live.end_by.is_none() && spec.retention.is_none()
}

/// The parameters of `finish.sql`, column by column.
#[derive(Default)]
struct Columns {
    num: Vec<i64>,
    fence: Vec<i64>,
    becomes: Vec<i32>,
    line: Vec<i32>,
    bytes: Vec<i64>,
    keep_until: Vec<i64>,
    error: Vec<Option<String>>,
    content_type: Vec<Option<String>>,
    output: Vec<Option<Vec<u8>>>,
}

impl Database {
    /// Ends the jobs of a unit whose attempts only end, in their bundles. Makes rows of the leases of all other bundles that
    /// it has to do with.
    pub async fn finish_in_bundles(&self, now: Timestamp, unit: &Unit) -> Result<Moved> {
        let mut bundles: BTreeMap<Fence, Vec<&Seat>> = BTreeMap::new();
        let mut touched = HashSet::new();
        for (seat, ends) in unit.seats() {
            bundles.entry(seat.fence()).or_default().push(seat);
            if ends.is_none() {
                touched.insert(seat.fence());
            }
        }
        if !touched.is_empty() {
            self.unbundle(&touched.iter().copied().collect::<Vec<_>>()).await?;
            for seat in touched.iter().filter_map(|fence| bundles.remove(fence)).flatten() {
                seat.bundle.is_over.store(true, Ordering::Relaxed);
            }
        }
        if bundles.is_empty() {
            return Ok(Moved::default());
        }
        let mut columns = Columns::default();
        for (seat, ends) in unit.seats() {
            let Some((row, ending)) = ends else { continue };
            let Some(was) = row.live.as_ref().filter(|_| bundles.contains_key(&seat.fence())) else {
                continue;
            };
            let c = &mut columns;
            c.num.push(row.num);
            c.fence.push(seat.fence());
            c.becomes.push(ending.state as i32);
            c.line.push(was.line);
            c.bytes.push(row.job.spec.payload.size as i64);
            c.keep_until.push(was.keep_until(&*self.lines.get(was.line)?, now).0);
            c.error.push(ending.error.as_ref().map(written::error_text));
            c.content_type.push(ending.output.as_ref().map(|output| output.content_type.clone()));
            c.output.push(ending.output.as_ref().map(|output| output.bytes().into()));
        }
        let fences: Vec<Fence> = bundles.keys().copied().collect();
        let masks: Vec<String> = bundles.values().map(|seats| mask(seats)).collect();
        let c = &columns;
        let rows = self
            .pools
            .write
            .query(
                FINISH,
                &[
                    &fences,
                    &masks,
                    &c.num,
                    &c.fence,
                    &c.becomes,
                    &c.line,
                    &c.bytes,
                    &c.keep_until,
                    &c.error,
                    &c.content_type,
                    &c.output,
                    &now.0,
                ],
            )
            .await?;
        Ok(Moved(rows.iter().map(|row| (get(row, "num"), Some(get(row, "seq")))).collect()))
    }

    /// Gives leases that may be in bundles rows of their own.
    pub async fn unbundle(&self, fences: &[Fence]) -> Result<()> {
        self.pools.write.query(UNBUNDLE, &[&fences]).await.map(drop)
    }

    /// Removes bundles that are over.
    pub async fn sweep_bundles(&self) -> Result<()> {
        self.pools.write.query(SWEEP, &[]).await.map(drop)
    }
}

/// The places of one bundle, as the text of its bits.
fn mask(seats: &[&Seat]) -> String {
    let mut bits = vec![b'0'; seats[0].bundle.places];
    seats.iter().for_each(|seat| bits[seat.place] = b'1');
    bits.into_iter().map(char::from).collect()
}
