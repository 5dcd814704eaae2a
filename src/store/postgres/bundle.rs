//! Leases that one statement gave on jobs that it accepted: one row for all of them (see `schema_1.sql`). Most attempts just
//! end, and then there was never more of their leases. Whoever wants anything else puts them into rows of their own first.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use tokio_postgres::Row;

use super::{
    block::{Fill, Slice},
    database::Database,
    moves::{Moved, Unit},
    pool::Result,
    rows::{JobRow, LiveRow, get},
};
use crate::{
    job::{Ending, Fence, FinalState, JobSpec, Live, Payload, Timestamp},
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

/// The parameters of `finish.sql`.
#[derive(Default)]
struct Columns {
    nums: Vec<i64>,
    outputs: Vec<Option<Bytes>>,
    sizes: Vec<i32>,
    rows: Rows,
    keyed: Vec<i64>,
    keyed_fence: Vec<i64>,
}

/// The rows of `done` that they come to, column by column.
#[derive(Default)]
struct Rows {
    beginning: Vec<i32>,
    ending: Vec<i32>,
    fence: Vec<i64>,
    block: Vec<i64>,
    becomes: Vec<i32>,
    line: Vec<i32>,
    bytes: Vec<i64>,
    keep_until: Vec<i64>,
    error: Vec<Option<String>>,
    content_type: Vec<Option<String>>,
}

/// An attempt that only ends.
struct End<'a> {
    fence: Fence,
    row: &'a JobRow,
    was: &'a LiveRow,
    ending: &'a Ending,
    keep_until: i64,
}

impl End<'_> {
    fn size(&self) -> usize {
        self.ending.output.as_ref().map_or(0, |output| output.size)
    }
}

/// Outcomes of one row.
#[derive(Default)]
struct Alike<'a> {
    ends: Vec<End<'a>>,
    fill: Fill,
}

/// Puts together what may be in one row: successes of one block. What did not succeed is found by itself.
fn alike(ends: Vec<End<'_>>) -> Vec<Alike<'_>> {
    let mut rows: Vec<Alike<'_>> = Vec::new();
    let mut open: HashMap<_, usize> = HashMap::new();
    for end in ends {
        let sizes = [size_of::<i64>(), end.size()];
        let succeeded = end.ending.state == FinalState::Succeeded;
        let content_type = end.ending.output.as_ref().map(|output| output.content_type.as_str());
        let key = (end.fence, end.was.block, end.keep_until, content_type);
        let at = open.get(&key).copied().filter(|&at| succeeded && rows[at].fill.has_room(&sizes));
        let at = at.unwrap_or_else(|| {
            rows.push(Alike::default());
            rows.len() - 1
        });
        if succeeded {
            open.insert(key, at);
        }
        rows[at].fill.add(&sizes);
        rows[at].ends.push(end);
    }
    rows
}

impl Columns {
    fn push(&mut self, row: &Alike<'_>) {
        let Some(first) = row.ends.first() else { return };
        let slice = Slice::of(self.nums.len(), row.ends.len());
        let output = first.ending.output.as_ref();
        let r = &mut self.rows;
        r.beginning.push(slice.beginning);
        r.ending.push(slice.ending);
        r.fence.push(first.fence);
        r.block.push(first.was.block);
        r.becomes.push(first.ending.state as i32);
        r.line.push(first.was.line);
        r.bytes.push(row.ends.iter().map(|end| end.row.job.spec.payload.size as i64).sum());
        r.keep_until.push(first.keep_until);
        r.error.push(first.ending.error.as_ref().map(written::error_text));
        r.content_type.push(output.map(|output| output.content_type.clone()));
        for end in &row.ends {
            self.nums.push(end.row.num);
            self.sizes.push(end.size() as i32);
            self.outputs.push(end.ending.output.as_ref().map(Payload::bytes));
            if end.row.job.spec.unique_key.is_some() {
                self.keyed.push(end.row.num);
                self.keyed_fence.push(end.fence);
            }
        }
    }

    /// The positions of the outcomes that were written.
    fn moved(&self, rows: &[Row]) -> Moved {
        let of_row = |row: &Row| {
            let (at, last): (i64, i64) = (get(row, "ord"), get(row, "seq"));
            let at = at as usize - 1;
            let (first, end) = (self.rows.beginning[at] as usize - 1, self.rows.ending[at] as usize);
            let positions = last + 1 - (end - first) as i64..;
            self.nums[first..end].iter().copied().zip(positions.map(Some)).collect::<Vec<_>>()
        };
        Moved(rows.iter().flat_map(of_row).collect())
    }
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
        let mut ends = Vec::new();
        for (seat, end) in unit.seats() {
            let fence = seat.fence();
            let Some((row, ending)) = end.filter(|_| bundles.contains_key(&fence)) else { continue };
            let Some(was) = &row.live else { continue };
            let keep_until = was.keep_until(&*self.lines.get(was.line)?, now).0;
            ends.push(End { fence, row, was, ending, keep_until });
        }
        let mut columns = Columns::default();
        alike(ends).iter().for_each(|row| columns.push(row));
        let fences: Vec<Fence> = bundles.keys().copied().collect();
        let masks: Vec<String> = bundles.values().map(|seats| mask(seats)).collect();
        let outputs: Vec<Option<&[u8]>> = columns.outputs.iter().map(Option::as_deref).collect();
        let (c, r) = (&columns, &columns.rows);
        let rows = self
            .pools
            .write
            .query(
                FINISH,
                &[
                    &fences,
                    &masks,
                    &c.nums,
                    &outputs,
                    &r.beginning,
                    &r.ending,
                    &r.fence,
                    &r.block,
                    &r.becomes,
                    &r.line,
                    &r.bytes,
                    &r.keep_until,
                    &r.error,
                    &r.content_type,
                    &now.0,
                    &c.keyed,
                    &c.keyed_fence,
                    &c.sizes,
                ],
            )
            .await?;
        Ok(columns.moved(&rows))
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
