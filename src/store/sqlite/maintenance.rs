//! For those who keep a store: a backup while it serves, and a check of everything in it.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use const_format::formatcp;
use rusqlite::{Connection, params};

use super::{
    done::{Ended, Members, WITH_OUTPUT},
    open::{self, DATABASE, OpenError},
    rows::{self, Result as SqlResult},
};

/// Why a backup or a check could not be made.
#[derive(Debug, thiserror::Error)]
pub enum MaintenanceError {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("{0} exists already: name a new directory, a backup overwrites nothing")]
    Exists(PathBuf),
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error(
        "{dir} is damaged ({problem}), and nothing was taken over: `jobwire verify {dir}` lists all that is wrong; a backup \
         can be taken over instead"
    )]
    Damaged { dir: PathBuf, problem: String },
    #[error("SQLite: {0}")]
    Sqlite(#[from] rusqlite::Error),
}

/// What a backup holds.
#[derive(Clone, Copy, Debug)]
pub struct BackupReport {
    pub jobs: u64,
    pub bytes: u64,
}

/// Copies the store in `data` into the new directory `target`, which `serve` can be pointed at. The server may be
/// running: the copy is one snapshot. It begins a log of its own when it is first served, because its positions would
/// repeat those of the original.
///
/// # Errors
/// `target` exists, `data` holds no store or one that was taken over, or the disk says no. Then there is no `target`.
pub fn backup(data: &Path, target: &Path) -> Result<BackupReport, MaintenanceError> {
    if target.exists() {
        return Err(MaintenanceError::Exists(target.to_owned()));
    }
    let source = open::reader(data, 8 << 20)?;
    // It must not be served a second time by way of a copy.
    open::refuse_moved(data)?;
    let parent = target.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // A copy that is not whole must not be served, least of all in the name of the original's log.
    let unfinished = tempfile::Builder::new()
        .prefix(".jobwire-backup-")
        .permissions(Permissions::from_mode(0o700))
        .tempdir_in(parent)
        .map_err(io(parent))?;
    let report = copy(&source, unfinished.path())?;
    fs::rename(unfinished.path(), target).map_err(io(target))?;
    let _ = unfinished.keep();
    open::sync_directory(parent).map_err(io(parent))?;
    Ok(report)
}

fn copy(source: &Connection, dir: &Path) -> Result<BackupReport, MaintenanceError> {
    let path = dir.join(DATABASE);
    OpenOptions::new().create_new(true).write(true).mode(0o600).open(&path).map_err(io(&path))?;
    source.pragma_update(None, "query_only", false)?;
    source.execute("VACUUM INTO ?1", [path.to_string_lossy()])?;

    let copy = Connection::open(&path)?;
    copy.pragma_update(None, "synchronous", "FULL")?;
    copy.execute("UPDATE meta SET value = NULL WHERE key = 'log_id'", [])?;
    let jobs = copy.query_row("SELECT count(*) FROM job", [], |row| row.get(0))?;
    copy.close().map_err(|(_, error)| error)?;
    // VACUUM INTO syncs nothing.
    File::open(&path).and_then(|file| file.sync_all()).map_err(io(&path))?;
    open::sync_directory(dir).map_err(io(dir))?;
    let bytes = path.metadata().map_err(io(&path))?.len();
    Ok(BackupReport { jobs, bytes })
}

/// What went wrong with a file.
pub fn io(path: &Path) -> impl FnOnce(io::Error) -> MaintenanceError {
    let path = path.to_owned();
    move |source| MaintenanceError::Io { path, source }
}

/// What a check found.
#[derive(Clone, Debug, Default)]
pub struct VerifyReport {
    pub jobs: u64,
    pub unfinished: u64,
    pub outcomes: u64,
    /// One line each, at most [`VerifyReport::MAX_PROBLEMS`]. Empty: all is well.
    pub problems: Vec<String>,
}

impl VerifyReport {
    /// Problems beyond this number are not listed.
    pub const MAX_PROBLEMS: usize = 100;
}

/// Reads everything in the store and compares: pages, checksums of bodies, every job in exactly one state, counts. A
/// server may be running; the check is of one snapshot and changes nothing.
///
/// # Errors
/// `data` holds no store, or it cannot be read at all.
pub fn verify(data: &Path) -> Result<VerifyReport, MaintenanceError> {
    let mut connection = open::reader(data, 32 << 20)?;
    let snapshot = connection.transaction()?;
    let mut report = VerifyReport::default();
    let mut pages = snapshot.prepare(&format!("PRAGMA integrity_check({})", VerifyReport::MAX_PROBLEMS))?;
    for line in pages.query_map([], |row| row.get::<_, String>(0))? {
        let line = line?;
        if line != "ok" {
            report.problems.push(format!("pages: {line}"));
        }
    }
    drop(pages);
    let count = |sql: &str| -> SqlResult<u64> { snapshot.query_row(sql, [], |row| row.get(0)) };
    report.jobs = count("SELECT count(*) FROM job")?;
    report.unfinished = count("SELECT count(*) FROM unfinished")?;
    report.outcomes = count("SELECT count(*) FROM outcome")?;
    check_bodies(&snapshot, &mut report)?;
    check_places(&snapshot, &mut report)?;
    check_counts(&snapshot, &mut report)?;
    report.problems.truncate(VerifyReport::MAX_PROBLEMS);
    Ok(report)
}

fn check_bodies(connection: &Connection, report: &mut VerifyReport) -> SqlResult<()> {
    let mut found = |what: &str, num| {
        if report.problems.len() < VerifyReport::MAX_PROBLEMS {
            let name = name(connection, num);
            report.problems.push(format!("the {what} of {name} does not match its checksum"));
        }
    };
    let mut statement = connection.prepare("SELECT num, payload, crc FROM job")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        if rows::payload(row).is_err() {
            found("payload", row.get("num")?);
        }
    }
    let mut unreadable = Vec::new();
    let mut statement = connection.prepare(formatcp!("SELECT {WITH_OUTPUT} FROM done"))?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        if Ended::read(row, true).is_ok_and(|ended| ended.is_intact) {
            continue;
        }
        match Members::of(row) {
            Ok(members) => members.nums().for_each(|num| found("output", num)),
            Err(_) => unreadable
                .push(format!("whose outcomes are at position {} is damaged", row.get::<_, i64>("seq")?)),
        }
    }
    unreadable.truncate(VerifyReport::MAX_PROBLEMS);
    report.problems.append(&mut unreadable);
    Ok(())
}

/// An unfinished job has a row in `live`, or a seat in a bundle; any other has an outcome. Nothing is left of a job that
/// is gone.
fn check_places(connection: &Connection, report: &mut VerifyReport) -> SqlResult<()> {
    for (what, sql) in [
        (
            "is in no state",
            "SELECT num FROM job WHERE NOT EXISTS (SELECT 1 FROM live WHERE live.num = job.num) \
             AND NOT EXISTS (SELECT 1 FROM done WHERE base = job.num & -32 AND held >> (job.num & 31) & 1) \
             AND NOT EXISTS (SELECT 1 FROM bundle WHERE job.num BETWEEN first AND last)",
        ),
        (
            "is unfinished, but gone",
            "SELECT num FROM live WHERE NOT EXISTS (SELECT 1 FROM job WHERE job.num = live.num)",
        ),
        (
            "has an outcome, but is gone",
            "SELECT num FROM outcome WHERE NOT EXISTS (SELECT 1 FROM job WHERE job.num = outcome.num)",
        ),
        (
            "failed, but is gone",
            "SELECT num FROM failure WHERE NOT EXISTS (SELECT 1 FROM job WHERE job.num = failure.num)",
        ),
        ("has two outcomes of one run", "SELECT num FROM outcome GROUP BY num, run HAVING count(*) > 1"),
        (
            "is unfinished in a run that has an outcome",
            "SELECT live.num FROM live JOIN done ON base = live.num & -32 AND held >> (live.num & 31) & 1 \
             AND done.run >= live.run",
        ),
        ("runs without a lease", "SELECT num FROM live WHERE (state = 3) <> (until IS NOT NULL)"),
    ] {
        let sql = format!("{sql} LIMIT ?1");
        let mut statement = connection.prepare(&sql)?;
        let nums =
            statement.query_map(params![VerifyReport::MAX_PROBLEMS as i64], |row| row.get::<_, i64>(0))?;
        for num in nums {
            report.problems.push(format!("{} {what}", name(connection, num?)));
        }
    }
    Ok(())
}

fn check_counts(connection: &Connection, report: &mut VerifyReport) -> SqlResult<()> {
    let mut statement = connection.prepare(
        "SELECT queue, kind FROM line LEFT JOIN (SELECT line, count(*) FILTER (WHERE state = 1) AS a, \
         count(*) FILTER (WHERE state = 2) AS b, count(*) FILTER (WHERE state = 3) AS c, \
         count(*) FILTER (WHERE state = 4) AS d, sum(bytes) AS e FROM unfinished GROUP BY line) ON line = id \
         WHERE (scheduled, queued, running, backing_off, bytes) \
         <> (coalesce(a, 0), coalesce(b, 0), coalesce(c, 0), coalesce(d, 0), coalesce(e, 0))",
    )?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let (queue, kind): (String, String) = (row.get(0)?, row.get(1)?);
        report.problems.push(format!("the counts of queue {queue}, kind {kind} differ from a recount"));
    }
    Ok(())
}

fn name(connection: &Connection, num: i64) -> String {
    match super::read::id(connection, num) {
        Ok(Some(id)) => format!("job {id}"),
        _ => format!("job number {num}"),
    }
}
