//! Jobs that are accepted together, and outcomes that come about together, share rows where they are alike (see
//! `schema_1.sql`): what a row costs is the most of what a job costs.

use std::collections::HashMap;

use tokio_postgres::Row;
use uuid::Uuid;

use super::{rows::get, submit::Accepted};
use crate::{
    job::{Fence, JobId},
    store::Submission,
};

/// Jobs of a block, at most: their numbers are drawn at once (`job_num`), and statements look no further for one.
pub const MOST: usize = 32;

/// Bytes of what differs within a row, about: two rows fit into a page of 8 KiB.
const ROOM: usize = 3600;

/// How far apart servers may have drawn the ids of one block. Whoever looks for one looks through the blocks of that time.
const DRAWN_WITHIN_MS: u64 = 100;

/// What shares a row, in the arrays of a statement: its first and its last place there, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slice {
    pub beginning: i32,
    pub ending: i32,
}

impl Slice {
    pub fn of(first: usize, count: usize) -> Self {
        Self { beginning: first as i32 + 1, ending: (first + count) as i32 }
    }

    /// The place of the first one, from 0.
    pub fn first(self) -> usize {
        self.beginning as usize - 1
    }
}

/// What has been put into a row so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Fill {
    pub count: usize,
    bytes: usize,
}

impl Fill {
    /// Whether one more thing of values of these sizes still fits. The first one always does.
    pub fn has_room(&self, sizes: &[usize]) -> bool {
        self.count == 0 || (self.count < MOST && self.bytes + bytes(sizes) <= ROOM)
    }

    pub fn add(&mut self, sizes: &[usize]) {
        self.count += 1;
        self.bytes += bytes(sizes);
    }
}

/// Each value of an array has its length before it.
fn bytes(sizes: &[usize]) -> usize {
    sizes.iter().map(|size| size + 4).sum()
}

/// The ids of a block that servers have drawn: from the lowest to the highest.
#[derive(Clone, Copy, Debug)]
pub struct Drawn<'a> {
    pub low: &'a JobId,
    pub high: &'a JobId,
}

impl<'a> Drawn<'a> {
    pub fn one(id: &'a JobId) -> Self {
        Self { low: id, high: id }
    }

    /// With one more, if it was drawn at about the same time.
    pub fn with(self, id: &'a JobId) -> Option<Self> {
        let more = Self { low: self.low.min(id), high: self.high.max(id) };
        (more.low.as_str() >= lowest_with(more.high).as_str()).then_some(more)
    }
}

/// A block that is to be written.
#[derive(Clone, Copy, Debug)]
pub struct Block<'a> {
    pub slice: Slice,
    /// None: callers have named the jobs.
    pub drawn: Option<Drawn<'a>>,
}

impl<'a> Block<'a> {
    fn one(at: usize, submission: &'a Submission) -> Self {
        let drawn = (!submission.own_id).then(|| Drawn::one(&submission.job_id));
        Self { slice: Slice::of(at, 1), drawn }
    }

    /// With the next one of the batch, unless that was drawn at another time.
    fn with_next(self, id: &'a JobId) -> Option<Self> {
        let drawn = match self.drawn {
            Some(drawn) => Some(drawn.with(id)?),
            None => None,
        };
        let Slice { beginning, ending } = self.slice;
        Some(Self { slice: Slice { beginning, ending: ending + 1 }, drawn })
    }
}

/// A job's block among those of its batch, from 1, and its place there, from 0.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    pub block: i32,
    pub place: i32,
}

/// The jobs of a batch in blocks.
#[derive(Debug)]
pub struct Blocks<'a> {
    pub blocks: Vec<Block<'a>>,
    /// Of each job of the batch.
    pub places: Vec<Place>,
}

impl<'a> Blocks<'a> {
    pub fn of(jobs: &'a [Accepted<'a>], lines: &[i32], options: &[Option<String>]) -> Self {
        let alike = |at: usize| {
            let submission = jobs[at].submission;
            let spec = &submission.spec;
            (submission.own_id, lines[at], spec.priority, &spec.payload.content_type, &options[at])
        };
        let mut blocks: Vec<Block<'a>> = Vec::new();
        let mut places = Vec::with_capacity(jobs.len());
        let mut fill = Fill::default();
        for (at, job) in jobs.iter().enumerate() {
            let submission = job.submission;
            let sizes = [submission.job_id.as_str().len(), submission.spec.payload.size];
            if let Some(last) = blocks.last_mut()
                && fill.has_room(&sizes)
                && alike(last.slice.first()) == alike(at)
                && let Some(more) = last.with_next(&submission.job_id)
            {
                *last = more;
            } else {
                fill = Fill::default();
                blocks.push(Block::one(at, submission));
            }
            places.push(Place { block: blocks.len() as i32, place: fill.count as i32 });
            fill.add(&sizes);
        }
        Self { blocks, places }
    }
}

/// Some jobs by their blocks and places, column by column.
pub fn named(places: &[Place], jobs: &[usize]) -> (Vec<i32>, Vec<i32>) {
    jobs.iter().map(|&at| (places[at].block, places[at].place)).unzip()
}

/// The numbers of a batch that was written, and the fences of its leases: what `submit.sql` answers.
#[derive(Debug)]
pub struct Numbers {
    places: Vec<Place>,
    /// Of each block.
    firsts: Vec<i64>,
    pub bundle: Option<Fence>,
    leases: HashMap<i64, Fence>,
}

impl Numbers {
    pub fn of(rows: &[Row], places: Vec<Place>) -> Self {
        let (blocks, leases): (Vec<&Row>, Vec<&Row>) =
            rows.iter().partition(|row| get::<Option<i64>>(row, "ord").is_some());
        let mut firsts = vec![0; blocks.len()];
        blocks.iter().for_each(|row| firsts[get::<i64>(row, "ord") as usize - 1] = get(row, "num"));
        let bundle = blocks.first().and_then(|row| get(row, "fence"));
        let leases = leases.into_iter().map(|row| (get(row, "num"), get(row, "fence")));
        Self { places, firsts, bundle, leases: leases.collect() }
    }

    /// The first number of a job's block.
    pub fn block(&self, at: usize) -> i64 {
        self.firsts[self.places[at].block as usize - 1]
    }

    pub fn num(&self, at: usize) -> i64 {
        self.block(at) + i64::from(self.places[at].place)
    }

    /// The fence of a lease that has a row of its own.
    pub fn fence(&self, num: i64) -> Option<Fence> {
        self.leases.get(&num).copied()
    }
}

/// What the lowest id of a block is not below that has this one.
pub fn lowest_with(id: &JobId) -> String {
    let Some(uuid) = uuid_v7(id) else { return id.to_string() };
    let millis = (uuid.as_u128() >> 80) as u64;
    let earliest = u128::from(millis.saturating_sub(DRAWN_WITHIN_MS)) << 80;
    Uuid::from_u128(earliest).hyphenated().to_string()
}

/// Whether a server may have drawn it. Callers may name it nevertheless.
pub fn is_drawn(id: &JobId) -> bool {
    uuid_v7(id).is_some()
}

fn uuid_v7(id: &JobId) -> Option<Uuid> {
    let uuid = Uuid::try_parse(id.as_str()).ok()?;
    (uuid.get_version_num() == 7 && JobId::from(uuid) == *id).then_some(uuid)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> JobId {
        JobId::from(Uuid::new_v7(uuid::Timestamp::from_unix(
            uuid::NoContext,
            millis / 1000,
            (millis % 1000 * 1_000_000) as u32,
        )))
    }

    #[test]
    fn a_block_has_ids_of_about_the_same_time() {
        let now = 1_700_000_000_000;
        let [id, soon, later] = [now, now + DRAWN_WITHIN_MS, now + DRAWN_WITHIN_MS + 1].map(at);
        for (low, high) in [(&id, &soon), (&soon, &later)] {
            for (first, second) in [(low, high), (high, low)] {
                let drawn = Drawn::one(first).with(second).unwrap();
                assert_eq!((drawn.low, drawn.high), (low, high));
                assert!(lowest_with(high).as_str() <= low.as_str());
            }
        }
        assert!(Drawn::one(&id).with(&later).is_none() && Drawn::one(&later).with(&id).is_none());
    }

    #[test]
    fn an_id_that_is_no_time_is_alone() {
        let [a, b]: [JobId; 2] = ["a", "b"].map(|id| id.parse().unwrap());
        assert!(Drawn::one(&a).with(&b).is_none() && Drawn::one(&a).with(&a).is_some());
    }

    #[test]
    fn a_row_is_half_a_page() {
        let mut fill = Fill::default();
        assert!(fill.has_room(&[1 << 20, 36]));
        while fill.has_room(&[100, 36]) {
            fill.add(&[100, 36]);
        }
        assert_eq!(fill.count, ROOM / 144);
        let mut empty = Fill::default();
        while empty.has_room(&[0]) {
            empty.add(&[0]);
        }
        assert_eq!(empty.count, MOST);
    }
}
