//! Rows of `done`: how runs have ended. Plain successes that come about together share rows where they are alike (see
//! `schema_1.sql`): what a row costs is the most of what an outcome costs.

use std::{
    collections::{BTreeSet, btree_map::Entry},
    sync::Arc,
};

use bytes::Bytes;
use const_format::formatcp;
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::{
    read,
    rows::{self, Result},
    tx::Tx,
};
use crate::{
    job::{Fence, FinalState, Job, Payload, State, Timestamp, WorkerId},
    store::{Outcome, fixed::Fixed},
};

/// Numbers of jobs whose outcomes may share a row, from a multiple of it on. The schema has it too.
const SPAN: i64 = 32;

/// Bytes of the outputs of a row that is shared: with the rest of it they fit into a page.
const ROOM: usize = 3600;

/// The first of the numbers that may share a row with this one, and its bit among theirs.
pub fn place(num: i64) -> (i64, i64) {
    let place = num.rem_euclid(SPAN);
    (num - place, 1 << place)
}

/// Whose outcomes a row holds.
#[derive(Clone, Copy, Debug)]
pub struct Members {
    /// The position of the last one, once it has one. The others are before it.
    pub seq: i64,
    base: i64,
    held: i64,
}

impl Members {
    /// Of a row with the columns `seq`, `base` and `held`.
    pub fn of(row: &Row<'_>) -> Result<Self> {
        let (seq, base, held) = (row.get("seq")?, row.get("base")?, row.get("held")?);
        if !(1..1 << SPAN).contains(&held) {
            return Err(rows::damaged("the members of a row of outcomes"));
        }
        Ok(Self { seq, base, held })
    }

    fn of_one(num: i64) -> Self {
        let (base, held) = place(num);
        Self { seq: 0, base, held }
    }

    pub fn count(&self) -> usize {
        self.held.count_ones() as usize
    }

    /// The position of the first one.
    fn first(&self) -> i64 {
        self.seq - self.count() as i64 + 1
    }

    /// The numbers of the jobs, in order.
    pub fn nums(self) -> impl DoubleEndedIterator<Item = i64> {
        (0..SPAN).filter(move |place| self.held >> place & 1 == 1).map(move |place| self.base + place)
    }

    /// The position of each, and its job's number, in order.
    pub fn outcomes(self) -> impl Iterator<Item = (i64, i64)> {
        (self.first()..).zip(self.nums())
    }

    /// How many stand before this one, if it is a member.
    fn rank(&self, num: i64) -> Option<usize> {
        let (base, bit) = place(num);
        (self.base == base && self.held & bit != 0).then(|| (self.held & (bit - 1)).count_ones() as usize)
    }

    /// The position of this one's outcome, if it is a member.
    pub fn position(&self, num: i64) -> Option<i64> {
        Some(self.first() + self.rank(num)? as i64)
    }
}

/// What is the same for all that share a row.
#[derive(Clone, Debug, PartialEq)]
pub struct Alike {
    pub run: u32,
    pub attempt: u32,
    pub version: i64,
    pub state: FinalState,
    pub fence: Fence,
    pub worker: Option<WorkerId>,
    pub started: Option<Timestamp>,
    pub finished: Timestamp,
    pub keep_until: Timestamp,
    /// JSON.
    pub error: Option<String>,
    pub content_type: Option<String>,
}

/// A row.
#[derive(Clone, Debug)]
pub struct Ended {
    pub members: Members,
    pub alike: Alike,
    /// Of each member; none if they have no output.
    sizes: Vec<usize>,
    /// As `sizes`. Not read for everybody.
    outputs: Vec<Bytes>,
    /// Nothing of it has changed since it was written, as far as that was read.
    pub is_intact: bool,
}

const COLUMNS: &str = "seq, base, held, run, attempt, version, state, fence, worker, started, finished, keep_until, error, \
     content_type, ends";
/// For [`Ended::read`].
pub const WITH_OUTPUT: &str = const_format::concatcp!(COLUMNS, ", output, crc");
/// For [`Ended::read`]. Of `*` SQLite reads all, also what nobody looks at.
pub const WITHOUT_OUTPUT: &str = const_format::concatcp!(COLUMNS, ", length(output) AS size");

impl Ended {
    pub fn new(num: i64, alike: Alike, output: Option<Bytes>) -> Self {
        let outputs = Vec::from_iter(output);
        let sizes = outputs.iter().map(Bytes::len).collect();
        Self { members: Members::of_one(num), alike, sizes, outputs, is_intact: true }
    }

    /// Of a row with [`WITH_OUTPUT`] or [`WITHOUT_OUTPUT`].
    pub fn read(row: &Row<'_>, with_output: bool) -> Result<Self> {
        let members = Members::of(row)?;
        let alike = Alike {
            run: row.get("run")?,
            attempt: row.get("attempt")?,
            version: row.get("version")?,
            state: rows::final_state(row.get("state")?)?,
            fence: row.get("fence")?,
            worker: rows::worker(row, "worker")?,
            started: rows::time(row, "started")?,
            finished: Timestamp(row.get("finished")?),
            keep_until: Timestamp(row.get("keep_until")?),
            error: row.get("error")?,
            content_type: row.get("content_type")?,
        };
        // What is wrong with the outputs must not keep anybody from the rest.
        let output = match with_output {
            true => row.get_ref("output")?.as_blob_or_null().ok().flatten().map(Bytes::copy_from_slice),
            false => None,
        };
        let size = match with_output {
            true => output.as_ref().map(Bytes::len),
            false => row.get("size")?,
        };
        let ends = row.get_ref("ends")?.as_str_or_null().ok();
        let sizes = ends
            .and_then(|ends| sizes(size, ends))
            .filter(|sizes| sizes.is_empty() || sizes.len() == members.count());
        let is_intact = sizes.is_some();
        let mut ended =
            Self { members, alike, sizes: sizes.unwrap_or_default(), outputs: Vec::new(), is_intact };
        if let Some(mut output) = output {
            ended.outputs = ended.sizes.iter().map(|&size| output.split_to(size)).collect();
        }
        if with_output {
            ended.is_intact &= Some(ended.crc()) == row.get("crc")?;
        }
        Ok(ended)
    }

    /// The size of a member's output, and the output if it was read.
    fn output(&self, num: i64) -> Option<(usize, Option<Bytes>)> {
        let rank = self.members.rank(num)?;
        let output = self.outputs.get(rank).map(|output| match self.members.count() {
            1 => output.clone(),
            // A part of the row would keep all of it in memory.
            _ => Bytes::copy_from_slice(output),
        });
        Some((*self.sizes.get(rank)?, output))
    }

    /// Takes in the outcome of a job whose number is larger, and may share the row.
    fn add(&mut self, num: i64, output: Option<Bytes>) {
        self.members.held |= place(num).1;
        self.sizes.extend(output.as_ref().map(Bytes::len));
        self.outputs.extend(output);
    }

    fn has_room(&self, output: Option<&Bytes>) -> bool {
        self.sizes.iter().sum::<usize>() + output.map_or(0, Bytes::len) <= ROOM
    }

    /// The others than a member: those before it, and those behind it.
    fn without(self, num: i64) -> impl Iterator<Item = Self> {
        let Members { seq, base, held } = self.members;
        let (_, bit) = place(num);
        let rank = self.members.rank(num).unwrap_or_default();
        let before = Members { seq: self.members.first() + rank as i64 - 1, base, held: held & (bit - 1) };
        let behind = Members { seq, base, held: held & !(bit | (bit - 1)) };
        let parts = [(before, 0..rank), (behind, rank + 1..usize::MAX)];
        parts.into_iter().filter(|(members, _)| members.held != 0).map(move |(members, range)| {
            let part = |at: &usize| range.contains(at);
            Self {
                members,
                alike: self.alike.clone(),
                sizes: self
                    .sizes
                    .iter()
                    .enumerate()
                    .filter(|(at, _)| part(at))
                    .map(|(_, &size)| size)
                    .collect(),
                outputs: self
                    .outputs
                    .iter()
                    .enumerate()
                    .filter(|(at, _)| part(at))
                    .map(|(_, one)| one.clone())
                    .collect(),
                is_intact: self.is_intact,
            }
        })
    }

    /// Nothing that is told of a member can change unseen, and it cannot pass for another job's.
    fn crc(&self) -> u32 {
        let Alike { run, state, error, content_type, .. } = &self.alike;
        let mut hasher = crc32fast::Hasher::new();
        for number in [self.members.base, self.members.held, i64::from(*run), *state as i64] {
            hasher.update(&number.to_le_bytes());
        }
        let texts = [error, content_type].map(|text| text.as_ref().map(String::as_bytes));
        for part in texts.into_iter().chain(self.outputs.iter().map(|output| Some(&output[..]))) {
            let length = part.map_or(u64::MAX, |part| part.len() as u64);
            hasher.update(&length.to_le_bytes());
            hasher.update(part.unwrap_or_default());
        }
        hasher.finalize()
    }

    fn write(&self, seq: i64, tx: &mut Tx<'_>) -> Result<()> {
        let Self { members, alike, sizes, outputs, .. } = self;
        let ends = (sizes.len() > 1).then(|| ends(sizes));
        let together = (outputs.len() > 1).then(|| outputs.concat());
        let output = together.as_deref().or_else(|| outputs.first().map(|output| &output[..]));
        // What was damaged must not be taken for sound once it is written anew.
        let crc = if self.is_intact { self.crc() } else { !self.crc() };
        tx.statements
            .insert_done
            .get(
                tx.connection,
                "INSERT INTO done (seq, base, held, run, attempt, version, state, fence, worker, started, finished, \
                 keep_until, error, content_type, ends, output, crc) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17)",
            )?
            .execute(params![
                seq,
                members.base,
                members.held,
                alike.run,
                alike.attempt,
                alike.version,
                alike.state as i32,
                alike.fence,
                alike.worker,
                alike.started,
                alike.finished,
                alike.keep_until,
                alike.error,
                alike.content_type,
                ends,
                output,
                crc,
            ])?;
        Ok(())
    }
}

/// JSON: where each output ends in all of them together.
fn ends(sizes: &[usize]) -> String {
    let mut end = 0;
    let ends: Vec<usize> = sizes
        .iter()
        .map(|size| {
            end += size;
            end
        })
        .collect();
    serde_json::json!(ends).to_string()
}

/// Of outputs that have so many bytes together. None: they do not fit together.
fn sizes(size: Option<usize>, ends: Option<&str>) -> Option<Vec<usize>> {
    let Some(size) = size else { return ends.is_none().then(Vec::new) };
    let Some(ends) = ends else { return Some(vec![size]) };
    let ends: Vec<usize> = serde_json::from_str(ends).ok()?;
    let before = std::iter::once(0).chain(ends.iter().copied());
    let sizes: Option<Vec<usize>> =
        ends.iter().zip(before).map(|(end, before)| end.checked_sub(before)).collect();
    sizes.filter(|_| ends.last() == Some(&size))
}

/// Successes of one bundle whose numbers may share a row, and what is told of them.
#[derive(Debug)]
pub struct Group {
    alike: Alike,
    ends: Vec<End>,
}

#[derive(Debug)]
struct End {
    num: i64,
    output: Option<Bytes>,
    told: Option<Arc<Job>>,
}

impl Group {
    /// In the order of their numbers: they ran side by side, which came first says nothing.
    fn write(mut self, tx: &mut Tx<'_>) -> Result<()> {
        self.ends.sort_unstable_by_key(|end| end.num);
        let mut ends = self.ends.into_iter().peekable();
        while let Some(End { num, output, told }) = ends.next() {
            let mut row = Ended::new(num, self.alike.clone(), output);
            tx.tell(told);
            while let Some(End { num, output, told }) =
                ends.next_if(|next| row.has_room(next.output.as_ref()))
            {
                row.add(num, output);
                tx.tell(told);
            }
            row.write(tx.effects.head.0, tx)?;
        }
        Ok(())
    }
}

impl Tx<'_> {
    /// Appends an outcome to the feed. `told`: the job, for those who follow the feed.
    pub fn append(&mut self, ended: &Ended, told: Option<Arc<Job>>) -> Result<()> {
        self.tell(told);
        ended.write(self.effects.head.0, self)
    }

    /// Appends a success of a bundle, once [`Tx::land_ended`] is called. Nobody looks for it before that.
    pub fn append_with_others(
        &mut self,
        num: i64,
        alike: Alike,
        output: Option<Bytes>,
        told: Option<Arc<Job>>,
    ) -> Result<()> {
        let end = End { num, output, told };
        match self.ending.entry((alike.fence, place(num).0)) {
            Entry::Vacant(none) => drop(none.insert(Group { alike, ends: vec![end] })),
            Entry::Occupied(mut group) if group.get().alike == alike => group.get_mut().ends.push(end),
            Entry::Occupied(_) => self.append(&Ended::new(num, alike, end.output), end.told)?,
        }
        Ok(())
    }

    /// Writes what shares rows.
    pub fn land_ended(&mut self) -> Result<()> {
        std::mem::take(&mut self.ending).into_values().try_for_each(|group| group.write(self))
    }

    /// The feed has one more outcome.
    fn tell(&mut self, told: Option<Arc<Job>>) {
        let effects = &mut self.effects;
        effects.head.0 += 1;
        effects.outcomes.extend(told.map(|job| Outcome { position: effects.head, job }));
    }

    /// Removes the outcomes of a job up to a position. Those who share a row with one get rows without it. Nothing is
    /// written if it finds damage.
    pub fn remove_outcomes(&mut self, num: i64, upto: i64) -> Result<()> {
        let (base, bit) = place(num);
        let mut found = Vec::new();
        let mut statement = self
            .connection
            .prepare_cached("SELECT seq, base, held FROM done WHERE base = ?1 AND held & ?2 AND seq < ?3")?;
        let mut rows = statement.query(params![base, bit, upto.saturating_add(SPAN)])?;
        while let Some(row) = rows.next()? {
            // If whose it is cannot be known, it is not known to be the job's.
            let Ok(members) = rows::intact(Members::of(row))? else { continue };
            if members.position(num).is_some_and(|seq| seq <= upto) {
                let shared = match members.count() {
                    1 => None,
                    _ => at(self.connection, members.seq)?,
                };
                found.push((members.seq, shared));
            }
        }
        for (seq, shared) in found {
            self.connection.prepare_cached("DELETE FROM done WHERE seq = ?1")?.execute([seq])?;
            for part in shared.into_iter().flat_map(|shared| shared.without(num)) {
                part.write(part.members.seq, self)?;
            }
        }
        Ok(())
    }
}

fn at(connection: &Connection, seq: i64) -> Result<Option<Ended>> {
    connection
        .prepare_cached(formatcp!("SELECT {WITH_OUTPUT} FROM done WHERE seq = ?1"))?
        .query_row([seq], |row| Ended::read(row, true))
        .optional()
}

/// Whose outcomes a row holds, if it is there, and of which run.
pub fn members(connection: &Connection, seq: i64) -> Result<Option<(Members, u32)>> {
    connection
        .prepare_cached("SELECT seq, base, held, run FROM done WHERE seq = ?1")?
        .query_row([seq], |row| Ok((Members::of(row)?, row.get("run")?)))
        .optional()
}

/// When the outcome at a position came about, or if that is gone the last one before it; 0 if there is none.
pub fn finished_at(connection: &Connection, position: i64) -> Result<Timestamp> {
    let find = |sql, seq: i64| {
        let found = |row: &Row<'_>| {
            let before: i64 = row.get::<_, i64>("seq")? - i64::from(row.get::<_, i64>("held")?.count_ones());
            Ok((before, Timestamp(row.get("finished")?)))
        };
        connection.prepare_cached(sql)?.query_row([seq], found).optional()
    };
    let next = find("SELECT seq, held, finished FROM done WHERE seq >= ?1 ORDER BY seq LIMIT 1", position)?;
    let found = match next.filter(|&(before, _)| before < position) {
        None => {
            find("SELECT seq, held, finished FROM done WHERE seq < ?1 ORDER BY seq DESC LIMIT 1", position)?
        }
        next => next,
    };
    Ok(found.map_or(Timestamp(0), |(_, finished)| finished))
}

/// Where the newest outcome of the job with the number `?1 + log2(?2)` is.
const NEWEST: &str = "FROM done WHERE seq = \
     (SELECT seq FROM done WHERE base = ?1 AND held & ?2 ORDER BY base DESC, seq DESC LIMIT 1)";

/// How the newest run of a job has ended, its number, and the job's version.
pub fn newest_state(connection: &Connection, num: i64) -> Result<Option<(FinalState, u32, i64)>> {
    let (base, bit) = place(num);
    connection
        .prepare_cached(formatcp!("SELECT seq, base, held, state, run, version {NEWEST}"))?
        .query_row([base, bit], |row| {
            Members::of(row)?;
            Ok((rows::final_state(row.get("state")?)?, row.get("run")?, row.get("version")?))
        })
        .optional()
}

/// The row with the newest outcome of a job.
pub fn newest(connection: &Connection, num: i64, with_output: bool) -> Result<Option<Ended>> {
    let sql = match with_output {
        true => formatcp!("SELECT {WITH_OUTPUT} {NEWEST}"),
        false => formatcp!("SELECT {WITHOUT_OUTPUT} {NEWEST}"),
    };
    let (base, bit) = place(num);
    let ended = connection
        .prepare_cached(sql)?
        .query_row([base, bit], |row| Ended::read(row, with_output))
        .optional()?;
    match ended {
        Some(ended) if ended.members.position(num).is_none() => Err(rows::damaged("the index of outcomes")),
        ended => Ok(ended),
    }
}

/// The job of a member; without its output if that is damaged.
pub fn job(connection: &Connection, fixed: Fixed, ended: &Ended, num: i64) -> Result<Job> {
    let Alike { run, attempt, version, state, finished, keep_until, .. } = ended.alike;
    let (size, body) = match ended.output(num) {
        Some((size, body)) => (size, body.filter(|_| ended.is_intact)),
        // There is one, but where it ends is not known.
        None => (0, None),
    };
    let output = ended.alike.content_type.clone().map(|content_type| Payload { content_type, size, body });
    let mut job = Job {
        id: fixed.id,
        spec: fixed.spec,
        state: State::Final(state),
        attempt,
        run,
        output,
        error: ended.alike.error.as_deref().map(rows::error).transpose()?,
        progress: None,
        cancel_requested: false,
        worker: ended.alike.worker.clone(),
        submit_time: fixed.submitted,
        next_attempt_time: None,
        start_time: ended.alike.started,
        finish_time: Some(finished),
        delete_time: Some(keep_until),
        version,
        trace: fixed.trace,
        attempts: Vec::new(),
    };
    if job.attempt > 0 && job.worker.is_none() {
        // It ended without a lease: while it backed off, or late. The last attempt is told by its failure.
        if let Some(failed) = read::latest_failure(connection, num, run)? {
            job.start_time = failed.start_time;
            job.worker = failed.worker;
        }
    }
    Ok(job)
}

/// The newest jobs that have outcomes, or the oldest ones, beyond a number; `most` of them and perhaps a few more.
pub fn nums(
    connection: &Connection,
    only_unsuccessful: bool,
    beyond: Option<i64>,
    oldest_first: bool,
    most: usize,
) -> Result<Vec<i64>> {
    let source = match only_unsuccessful {
        true => "done INDEXED BY done_unsuccessful WHERE state <> 5 AND base",
        false => "done INDEXED BY done_base WHERE base",
    };
    let (compare, order, from) =
        if oldest_first { (">=", "ASC", i64::MIN) } else { ("<=", "DESC", i64::MAX) };
    let mut statement = connection.prepare_cached(&format!(
        "SELECT seq, base, held FROM {source} {compare} ?1 ORDER BY base {order}"
    ))?;
    let mut rows = statement.query([beyond.map_or(from, |num| place(num).0)])?;
    let mut nums = BTreeSet::new();
    let mut last = None;
    while let Some(row) = rows.next()? {
        let members = Members::of(row)?;
        // Whole groups of numbers: the rows of one are in no order.
        if nums.len() >= most && last != Some(members.base) {
            break;
        }
        last = Some(members.base);
        nums.extend(members.nums().filter(|&num| match (beyond, oldest_first) {
            (None, _) => true,
            (Some(beyond), true) => num > beyond,
            (Some(beyond), false) => num < beyond,
        }));
    }
    Ok(if oldest_first { nums.into_iter().collect() } else { nums.into_iter().rev().collect() })
}
