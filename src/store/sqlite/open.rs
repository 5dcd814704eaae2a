//! Opening: the directory and its lock, settings that are read back, migrations.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use rusqlite::{Connection, OpenFlags, TransactionBehavior, config::DbConfig};

/// The database, inside the data directory.
pub const DATABASE: &str = "jobwire.db";

/// Bytes.
pub const PAGE_SIZE: u64 = 4096;

const LOCK: &str = "lock";

/// There once the store was taken over by another one; says by which.
pub const MOVED: &str = "moved";

/// "jobw": tells our files from other SQLite databases.
const APPLICATION_ID: i32 = 0x6a6f_6277;

/// Each takes the schema one version further. Never edit one that was released: add the next.
const MIGRATIONS: [&str; 1] = [include_str!("schema_1.sql")];

/// Prepared statements kept per connection: above their number.
const STATEMENTS: usize = 128;

/// Why a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error(
        "{0} is in use by another jobwire: stop that one, or give this one a directory of its own with --data"
    )]
    Locked(PathBuf),
    #[error("{0} holds no jobwire store")]
    Missing(PathBuf),
    #[error(
        "the jobs of {dir} were taken over to {to}: serve them there, with --store; served here too, they would run twice. \
         If nobody serves them there, remove {dir}/{MOVED}"
    )]
    Moved { dir: PathBuf, to: String },
    #[error(
        "{0} is on a network file system ({1}), where its locks and syncs cannot be relied on: use a local disk"
    )]
    Network(PathBuf, &'static str),
    #[error("{0} is an SQLite database, but not one of jobwire's: use another directory")]
    Foreign(PathBuf),
    #[error(
        "{path} has schema {found}, this jobwire knows {MAX_SCHEMA}: use the newer jobwire that wrote it"
    )]
    Newer { path: PathBuf, found: i32 },
    #[error("SQLite did not take the setting {name}: it says {found:?} instead of {wanted:?}")]
    Setting { name: &'static str, wanted: String, found: String },
    #[error("{path}: {source}")]
    Sqlite { path: PathBuf, source: rusqlite::Error },
}

const MAX_SCHEMA: i32 = MIGRATIONS.len() as i32;

fn io(path: &Path) -> impl FnOnce(io::Error) -> OpenError {
    let path = path.to_owned();
    move |source| OpenError::Io { path, source }
}

/// Makes the directory and an empty database if need be, and locks it for the life of the returned file.
///
/// # Errors
/// As [`lock`], and [`OpenError::Moved`] if its jobs are elsewhere.
pub fn lock_directory(dir: &Path) -> Result<File, OpenError> {
    let lock = lock(dir)?;
    refuse_moved(dir)?;
    let database = dir.join(DATABASE);
    if !database.exists() {
        // Only before SQLite opens it: closing a descriptor of ours later would drop SQLite's locks.
        OpenOptions::new().create_new(true).write(true).mode(0o600).open(&database).map_err(io(&database))?;
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(io(dir))?;
    }
    Ok(lock)
}

/// # Errors
/// [`OpenError::Moved`].
pub fn refuse_moved(dir: &Path) -> Result<(), OpenError> {
    match moved_to(dir)? {
        Some(to) => Err(OpenError::Moved { dir: dir.to_owned(), to }),
        None => Ok(()),
    }
}

/// Where the jobs of a directory were taken over to.
pub fn moved_to(dir: &Path) -> Result<Option<String>, OpenError> {
    match fs::read_to_string(dir.join(MOVED)) {
        Ok(to) => Ok(Some(to)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io(&dir.join(MOVED))(error)),
    }
}

/// Makes the directory if need be, and locks it.
///
/// # Errors
/// [`OpenError::Locked`] if another process holds it.
pub fn lock(dir: &Path) -> Result<File, OpenError> {
    make_directory(dir).map_err(io(dir))?;
    refuse_network(dir)?;
    let path = dir.join(LOCK);
    let lock = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path)
        .map_err(io(&path))?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(OpenError::Locked(dir.to_owned())),
        Err(TryLockError::Error(source)) => return Err(OpenError::Io { path, source }),
    }
    Ok(lock)
}

/// Makes a directory and those above it. What is made is there after lost power: a synced file is worth nothing if the
/// way to it is gone.
fn make_directory(dir: &Path) -> io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    make_directory(parent)?;
    match DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists || !dir.is_dir() => Err(error),
        _ => sync_directory(parent),
    }
}

#[cfg(target_os = "linux")]
fn refuse_network(dir: &Path) -> Result<(), OpenError> {
    let stat = rustix::fs::statfs(dir)
        .map_err(|error| OpenError::Io { path: dir.to_owned(), source: error.into() })?;
    // Numbers of statfs(2).
    let network = match stat.f_type as u32 {
        0x6969 => "NFS",
        0x517b | 0xff53_4d42 | 0xfe53_4d42 => "SMB",
        0x5346_414f => "AFS",
        0x0102_1997 => "9p",
        0x00c3_6400 => "Ceph",
        _ => return Ok(()),
    };
    Err(OpenError::Network(dir.to_owned(), network))
}

#[cfg(not(target_os = "linux"))]
fn refuse_network(_: &Path) -> Result<(), OpenError> {
    Ok(())
}

/// The database of a directory that links may lead to. SQLite is to follow none: the file itself must not be one.
fn database(dir: &Path) -> Result<PathBuf, OpenError> {
    Ok(fs::canonicalize(dir).map_err(io(dir))?.join(DATABASE))
}

/// The connection that writes. Brings the schema up to date.
pub fn writer(dir: &Path, cache_bytes: usize) -> Result<Connection, OpenError> {
    let path = database(dir)?;
    let sqlite = |source| OpenError::Sqlite { path: path.clone(), source };
    let flags =
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_NOFOLLOW;
    let mut connection = Connection::open_with_flags(&path, flags).map_err(sqlite)?;
    // Until a table exists or WAL is on; afterwards it is ignored.
    set(&path, &connection, "page_size", &PAGE_SIZE.to_string())?;
    set(&path, &connection, "journal_mode", "wal")?;
    set(&path, &connection, "synchronous", "2")?;
    // A duty of its own writes the log back, so that no commit pays for it.
    set(&path, &connection, "wal_autocheckpoint", "0")?;
    set(&path, &connection, "journal_size_limit", "67108864")?;
    #[cfg(target_os = "macos")]
    set(&path, &connection, "fullfsync", "1")?;
    common(&path, &connection, cache_bytes)?;
    migrate(&path, &mut connection)?;
    Ok(connection)
}

/// A connection that only reads. The schema must be there.
pub fn reader(dir: &Path, cache_bytes: usize) -> Result<Connection, OpenError> {
    if !dir.join(DATABASE).exists() {
        return Err(OpenError::Missing(dir.to_owned()));
    }
    let path = database(dir)?;
    let flags =
        OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_NOFOLLOW;
    let connection = Connection::open_with_flags(&path, flags)
        .map_err(|source| OpenError::Sqlite { path: path.clone(), source })?;
    set(&path, &connection, "query_only", "1")?;
    if schema(&path, &connection)? == 0 {
        return Err(OpenError::Missing(dir.to_owned()));
    }
    common(&path, &connection, cache_bytes)?;
    Ok(connection)
}

fn common(path: &Path, connection: &Connection, cache_bytes: usize) -> Result<(), OpenError> {
    set(path, connection, "foreign_keys", "0")?;
    set(path, connection, "cell_size_check", "1")?;
    set(path, connection, "trusted_schema", "0")?;
    // A read error would become a SIGBUS.
    set(path, connection, "mmap_size", "0")?;
    set(path, connection, "temp_store", "2")?;
    set(path, connection, "cache_size", &format!("-{}", (cache_bytes >> 10).max(512)))?;
    // Or every statement with a bound LIMIT is planned anew at every execution.
    connection
        .set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)
        .map_err(|source| OpenError::Sqlite { path: path.to_owned(), source })?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    Ok(())
}

/// Sets a pragma and reads it back: SQLite answers OK to settings that it does not take.
fn set(path: &Path, connection: &Connection, name: &'static str, wanted: &str) -> Result<(), OpenError> {
    let sqlite = |source| OpenError::Sqlite { path: path.to_owned(), source };
    let text = |sql: String| -> rusqlite::Result<Option<String>> {
        let mut statement = connection.prepare(&sql)?;
        let mut rows = statement.query([])?;
        let Some(row) = rows.next()? else { return Ok(None) };
        Ok(Some(match row.get_ref(0)? {
            rusqlite::types::ValueRef::Integer(number) => number.to_string(),
            other => other.as_str().unwrap_or_default().to_owned(),
        }))
    };
    text(format!("PRAGMA {name} = {wanted}")).map_err(sqlite)?;
    // No answer at all: the build leaves the feature out (mmap on some systems).
    let found = text(format!("PRAGMA {name}")).map_err(sqlite)?.unwrap_or_else(|| wanted.to_owned());
    if found == wanted { Ok(()) } else { Err(OpenError::Setting { name, wanted: wanted.to_owned(), found }) }
}

fn migrate(path: &Path, connection: &mut Connection) -> Result<(), OpenError> {
    let sqlite = |source| OpenError::Sqlite { path: path.to_owned(), source };
    let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(sqlite)?;
    let done = schema(path, &tx)?;
    for migration in &MIGRATIONS[done..] {
        tx.execute_batch(migration).map_err(sqlite)?;
    }
    tx.pragma_update(None, "user_version", MAX_SCHEMA).map_err(sqlite)?;
    tx.pragma_update(None, "application_id", APPLICATION_ID).map_err(sqlite)?;
    tx.commit().map_err(sqlite)
}

/// How many of the migrations a database has seen; none if it is new.
///
/// # Errors
/// It is not one of ours, or of a later version.
fn schema(path: &Path, connection: &Connection) -> Result<usize, OpenError> {
    let sqlite = |source| OpenError::Sqlite { path: path.to_owned(), source };
    let number = |name| connection.pragma_query_value(None, name, |row| row.get::<_, i32>(0));
    let found = number("user_version").map_err(sqlite)?;
    let owner = number("application_id").map_err(sqlite)?;
    let empty = connection
        .query_row("SELECT count(*) = 0 FROM sqlite_schema", [], |row| row.get(0))
        .map_err(sqlite)?;
    if owner != APPLICATION_ID && !(owner == 0 && empty) {
        return Err(OpenError::Foreign(path.to_owned()));
    }
    let done = usize::try_from(found).ok().filter(|&done| done <= MIGRATIONS.len());
    done.ok_or_else(|| OpenError::Newer { path: path.to_owned(), found })
}

/// Free bytes on the file system of `dir`.
pub fn free_bytes(dir: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(dir)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Makes the entries of a directory durable.
pub fn sync_directory(dir: &Path) -> io::Result<()> {
    fs::File::open(dir)?.sync_all()
}
