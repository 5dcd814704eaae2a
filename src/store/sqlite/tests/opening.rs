use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
};

use super::*;
use crate::{
    job::{Error, View},
    store::{
        Position, Queues,
        sqlite::{OpenError, backup, verify},
        suite::{id, job, secs},
    },
};

const NOW: Timestamp = Timestamp(1_700_000_000_000);

fn open_error(dir: &Path) -> OpenError {
    SqliteStore::open(dir, Arc::default(), NOW).expect_err("the directory must be refused")
}

#[tokio::test]
async fn one_directory_is_for_one_store() {
    let dir = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(dir.path(), Arc::default(), NOW).unwrap();
    assert!(matches!(open_error(dir.path()), OpenError::Locked(path) if path == dir.path()));
    store.close().await;
    drop(store);
    SqliteStore::open(dir.path(), Arc::default(), NOW).unwrap().close().await;
}

#[tokio::test]
async fn a_store_of_the_future_is_refused() {
    let mut world = World::new(OPEN).await;
    world.close().await;
    tamper(&world, "PRAGMA user_version = 99", []);
    let error = open_error(&world.dir());
    assert!(matches!(error, OpenError::Newer { found: 99, .. }), "{error}");
    let error = verify(&world.dir()).unwrap_err().to_string();
    assert!(error.contains("schema 99"), "{error}");
    let error = backup(&world.dir(), &world.dir().with_file_name("copy")).unwrap_err().to_string();
    assert!(error.contains("schema 99"), "{error}");
}

#[test]
fn a_foreign_database_is_refused() {
    for sql in ["CREATE TABLE job (id)", "PRAGMA application_id = 5"] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(DATABASE);
        Connection::open(&path).unwrap().execute_batch(sql).unwrap();
        assert!(matches!(open_error(dir.path()), OpenError::Foreign(_)), "{sql}");
        let error = verify(dir.path()).unwrap_err().to_string();
        assert!(error.contains("not one of jobwire's"), "{sql}: {error}");
    }
}

#[test]
fn what_is_no_database_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(DATABASE), "a text of some length, which is not a database at all").unwrap();
    assert!(matches!(open_error(dir.path()), OpenError::Sqlite { .. }));
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    assert!(matches!(open_error(&file), OpenError::Io { .. }));
}

#[test]
fn only_a_store_can_be_kept() {
    let dir = tempfile::tempdir().unwrap();
    let missing =
        |error: crate::store::sqlite::MaintenanceError| error.to_string().contains("no jobwire store");
    assert!(missing(verify(dir.path()).unwrap_err()));
    assert!(missing(backup(dir.path(), &dir.path().join("copy")).unwrap_err()));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    // A first start that ended before its first transaction.
    fs::write(dir.path().join(DATABASE), "").unwrap();
    assert!(missing(verify(dir.path()).unwrap_err()));
}

#[tokio::test]
async fn files_are_for_their_owner_only() {
    let world = World::new(OPEN).await;
    world.add(job("a")).await;
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&world.dir()), 0o700);
    let mut names = Vec::new();
    for entry in fs::read_dir(world.dir()).unwrap() {
        let path = entry.unwrap().path();
        assert_eq!(mode(&path), 0o600, "{path:?}");
        names.push(path.file_name().unwrap().to_string_lossy().into_owned());
    }
    names.sort();
    assert_eq!(names, ["jobwire.db", "jobwire.db-shm", "jobwire.db-wal", "lock"]);
}

#[tokio::test]
async fn a_close_leaves_one_file() {
    let mut world = World::new(OPEN).await;
    world.add(job("a")).await;
    world.close().await;
    for log in ["jobwire.db-wal", "jobwire.db-shm"] {
        assert!(!world.dir().join(log).exists(), "{log}");
    }
}

/// As systemd's `StateDirectory` may be, or one on a larger disk. The database itself must be none.
#[tokio::test]
async fn links_may_lead_to_the_directory() {
    let dir = tempfile::tempdir().unwrap();
    let (target, link) = (dir.path().join("target"), dir.path().join("link"));
    fs::create_dir(&target).unwrap();
    symlink(&target, &link).unwrap();
    let store = SqliteStore::open(&link, Arc::default(), NOW).unwrap();
    backup(&link, &dir.path().join("copy")).unwrap();
    store.close().await;
    drop(store);
    assert!(verify(&link).unwrap().problems.is_empty());
    fs::rename(target.join(DATABASE), dir.path().join("elsewhere.db")).unwrap();
    symlink(dir.path().join("elsewhere.db"), target.join(DATABASE)).unwrap();
    assert!(matches!(open_error(&link), OpenError::Sqlite { .. }));
}

/// What was logged may be whole only in the page cache: nothing is built on it.
#[tokio::test]
async fn a_store_is_not_served_before_its_log_is_written_back() {
    let mut world = World::new(OPEN).await;
    let dir = world.dir();
    let reader = Connection::open(dir.join(DATABASE)).unwrap();
    world.add(job("a")).await;
    let read = || reader.query_row("SELECT count(*) FROM job", [], |row| row.get::<_, i64>(0)).unwrap();
    reader.execute_batch("BEGIN").unwrap();
    assert_eq!(read(), 1);
    world.add(job("b")).await;
    world.close().await;
    let log = dir.join("jobwire.db-wal");
    let size = || fs::metadata(&log).unwrap().len();
    let before = size();
    let opening = {
        let dir = dir.clone();
        std::thread::spawn(move || SqliteStore::open(&dir, Arc::default(), NOW).unwrap())
    };
    // For longer than SQLite waits by itself.
    tokio::time::sleep(secs(6)).await;
    assert!(!opening.is_finished());
    reader.execute_batch("COMMIT").unwrap();
    assert_eq!(read(), 2);
    let store = tokio::task::spawn_blocking(|| opening.join().unwrap()).await.unwrap();
    assert!(size() < before, "{} {before}", size());
    store.close().await;
}

#[tokio::test]
async fn a_store_that_has_failed_answers_no_more() {
    let mut world = World::new(OPEN).await;
    world.add(job("a")).await;
    let store = world.store();
    let head = store.signals().head.subscribe();
    tamper(&world, "ALTER TABLE live RENAME TO elsewhere", []);
    let unavailable = |error: &Error| matches!(error, Error::StoreUnavailable(why) if why.contains("live"));
    let submit = async || store.submit(world.now, vec![vec![job("b").into()]]).await;
    // The first caller is told why already.
    for _ in 0..2 {
        let error = submit().await.unwrap_err();
        assert!(unavailable(&error), "{error}");
    }
    assert!(store.signals().failed.borrow().as_ref().unwrap().contains("live"));
    assert!(unavailable(&store.tick(world.now).await.unwrap_err()));
    assert!(unavailable(&store.get(vec![id("a")], View::Basic).await.unwrap_err()));
    assert!(unavailable(&store.outcomes(Position(0), 1, &Queues::All).await.unwrap_err()));
    assert!(unavailable(&store.counts().await.unwrap_err()));
    assert!(!head.has_changed().unwrap());
    // What was acknowledged before is still there, what failed is not.
    drop(store);
    world.close().await;
    tamper(&world, "ALTER TABLE elsewhere RENAME TO live", []);
    world.reopen().await;
    assert!(world.find("a", View::Basic).await.is_some());
    assert!(world.find("b", View::Basic).await.is_none());
    world.recount().await;
}
