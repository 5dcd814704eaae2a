//! SQLite as the store uses it, with nothing around it, on one thread: a loop that puts every job in line, claims and ends
//! it, in the store's tables; and a writer that does what the store does where a pool waits for the jobs.

use std::{
    ops::Range,
    time::{Duration, Instant},
};

use jobwire::bench::Error;
use rusqlite::{Connection, params};
use tempfile::TempDir;

const SCHEMA: &str = include_str!("../../src/store/sqlite/schema_1.sql");
const BATCH: i64 = 500;
/// Outcomes of so many numbers may share a row.
const TOGETHER: i64 = 32;
const NOW: i64 = 1_800_000_000_000;
const PAYLOAD: [u8; 100] = [b'x'; 100];

fn failed(error: rusqlite::Error) -> Error {
    Error::Unexpected(format!("SQLite: {error}"))
}

fn open(dir: &TempDir) -> Result<Connection, rusqlite::Error> {
    let connection = Connection::open(dir.path().join("limit.db"))?;
    connection.execute_batch(
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA cache_size = -32768; PRAGMA temp_store = MEMORY;",
    )?;
    connection.execute_batch(SCHEMA)?;
    connection.execute("INSERT INTO line (queue, kind) VALUES ('default', 'echo')", [])?;
    Ok(connection)
}

/// Jobs a second that are inserted, claimed and completed in batches: inserts and completions synced, claims written.
pub fn lifecycles(duration: Duration) -> Result<f64, Error> {
    let dir = tempfile::tempdir()?;
    let connection = open(&dir).map_err(failed)?;
    let start = Instant::now();
    let mut jobs = 0;
    while start.elapsed() < duration {
        batch(&connection, jobs).map_err(failed)?;
        jobs += BATCH;
    }
    Ok(jobs as f64 / start.elapsed().as_secs_f64())
}

fn batch(connection: &Connection, from: i64) -> Result<(), rusqlite::Error> {
    transaction(connection, "FULL", || insert(connection, from + 1..from + 1 + BATCH))?;
    let mut claimed = Vec::with_capacity(BATCH as usize);
    transaction(connection, "NORMAL", || {
        let mut ready = connection.prepare_cached(
            "SELECT num FROM live WHERE line = 1 AND state = 2 ORDER BY rank, num LIMIT ?1",
        )?;
        for num in ready.query_map([BATCH], |row| row.get::<_, i64>(0))? {
            claimed.push(num?);
        }
        let mut read = connection.prepare_cached("SELECT payload FROM job WHERE num = ?1")?;
        let mut run = connection.prepare_cached(
            "UPDATE live SET state = 3, attempt = 1, version = 2, fence = ?2, worker = 'w', started = ?3, until = ?3 \
             WHERE num = ?1",
        )?;
        for num in &claimed {
            read.query_row([num], |row| row.get::<_, Vec<u8>>(0))?;
            run.execute(params![num, num, NOW])?;
        }
        Ok(())
    })?;
    transaction(connection, "FULL", || end(connection, &claimed))
}

/// Writes jobs as a server does.
pub struct Jobs {
    connection: Connection,
    next: i64,
    running: Range<i64>,
    _dir: TempDir,
}

impl Jobs {
    pub fn new() -> Result<Self, Error> {
        let dir = tempfile::tempdir()?;
        Ok(Self { connection: open(&dir).map_err(failed)?, next: 1, running: 1..1, _dir: dir })
    }

    /// Accepts so many that nobody runs. Of those that a pool waits for, it writes so many as running, in one bundle, and
    /// those of the time before as done.
    pub fn step(&mut self, waiting: usize, running: usize) -> Result<(), Error> {
        let waiting = self.next..self.next + waiting as i64;
        let running = waiting.end..waiting.end + running as i64;
        self.next = running.end;
        let before = std::mem::replace(&mut self.running, running.clone());
        let write = || {
            insert(&self.connection, waiting)?;
            self.connection.prepare_cached("DELETE FROM bundle WHERE first = ?1")?.execute([before.start])?;
            finish(&self.connection, before)?;
            insert_jobs(&self.connection, running.clone())?;
            bundle(&self.connection, running)
        };
        transaction(&self.connection, "FULL", write).map_err(failed)
    }
}

/// Jobs that wait.
fn insert(connection: &Connection, mut nums: Range<i64>) -> Result<(), rusqlite::Error> {
    insert_jobs(connection, nums.clone())?;
    let mut live = connection.prepare_cached(
        "INSERT INTO live (num, line, state, run, attempt, version, priority, due, rank, bytes, fence) \
         VALUES (?1, 1, 2, 1, 0, 1, 0, ?2, ?2, 100, 0)",
    )?;
    nums.try_for_each(|num| live.execute(params![num, NOW]).map(drop))
}

fn insert_jobs(connection: &Connection, mut nums: Range<i64>) -> Result<(), rusqlite::Error> {
    let mut job = connection.prepare_cached(
        "INSERT INTO job (id, line, priority, submitted, content_type, payload, crc, options) \
         VALUES (?1, 1, 0, ?2, 'application/octet-stream', ?3, 7, NULL)",
    )?;
    nums.try_for_each(|num| job.execute(params![id(num), NOW, PAYLOAD]).map(drop))
}

fn bundle(connection: &Connection, nums: Range<i64>) -> Result<(), rusqlite::Error> {
    if nums.is_empty() {
        return Ok(());
    }
    connection
        .prepare_cached(
            "INSERT INTO bundle (first, last, fence, worker, started, until) \
             VALUES (?1, ?2, ?1, 'w', ?3, ?3)",
        )?
        .execute(params![nums.start, nums.end - 1, NOW])
        .map(drop)
}

/// Jobs that stood in line: each has an outcome with a row of its own.
fn end(connection: &Connection, nums: &[i64]) -> Result<(), rusqlite::Error> {
    let mut end = connection.prepare_cached("DELETE FROM live WHERE num = ?1")?;
    for num in nums {
        end.execute([num])?;
        done(connection, *num..num + 1)?;
    }
    Ok(())
}

/// Jobs of a bundle: their outcomes share rows.
fn finish(connection: &Connection, nums: Range<i64>) -> Result<(), rusqlite::Error> {
    let mut from = nums.start;
    while from < nums.end {
        let to = nums.end.min(from - from % TOGETHER + TOGETHER);
        done(connection, from..to)?;
        from = to;
    }
    Ok(())
}

/// The row of some outcomes.
fn done(connection: &Connection, nums: Range<i64>) -> Result<(), rusqlite::Error> {
    let count = nums.clone().count();
    let base = nums.start - nums.start % TOGETHER;
    let held = nums.map(|num| 1 << (num - base)).sum::<i64>();
    let ends: Vec<usize> = (1..=count).map(|n| n * PAYLOAD.len()).collect();
    connection
        .prepare_cached(
            "INSERT INTO done (base, held, run, attempt, version, state, fence, worker, started, finished, keep_until, \
             content_type, ends, output, crc) \
             VALUES (?1, ?2, 1, 1, 3, 5, 1, 'w', ?3, ?3, ?3, 'application/octet-stream', ?4, ?5, 7)",
        )?
        .execute(params![base, held, NOW, (count > 1).then(|| format!("{ends:?}")), PAYLOAD.repeat(count)])
        .map(drop)
}

fn id(num: i64) -> [u8; 16] {
    uuid::Builder::from_unix_timestamp_millis(num as u64, &[7; 10]).into_uuid().into_bytes()
}

fn transaction(
    connection: &Connection,
    synchronous: &str,
    run: impl FnOnce() -> Result<(), rusqlite::Error>,
) -> Result<(), rusqlite::Error> {
    connection.execute_batch(&format!("PRAGMA synchronous = {synchronous}; BEGIN IMMEDIATE"))?;
    run()?;
    connection.execute_batch("COMMIT")
}

/// Half of the commits of one small synced write were faster, in microseconds.
pub fn commit_micros() -> Result<f64, Error> {
    let dir = tempfile::tempdir()?;
    let connection = open(&dir).map_err(failed)?;
    let mut times = Vec::new();
    for _ in 0..1000 {
        let start = Instant::now();
        connection.execute("UPDATE meta SET value = value + 1 WHERE key = 'syncs'", []).map_err(failed)?;
        times.push(start.elapsed());
    }
    times.sort();
    Ok(times[times.len() / 2].as_secs_f64() * 1e6)
}
