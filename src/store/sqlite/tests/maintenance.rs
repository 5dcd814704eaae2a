use std::{fs, os::unix::fs::PermissionsExt};

use super::*;
use crate::{
    job::{Filter, State, View},
    store::{
        sqlite::{MaintenanceError, VerifyReport, backup, verify},
        suite::{drawn, ids, job, outcome_ids},
    },
};

/// A store with something of everything.
async fn full() -> World {
    let mut world = World::new(OPEN).await;
    for state in State::ALL.into_iter().rev() {
        world.reach(job(&state.to_string()).request(&state.to_string()), state).await;
    }
    world.retry("FAILED").await.unwrap();
    world.cancel("FAILED").await.unwrap();
    world.reach(drawn("0198c5f0-9d1e-7abc-8def-0123456789ab").priority(100), State::FAILED).await;
    world.delete("EXPIRED").await.unwrap();
    world
}

fn problems(world: &World) -> Vec<String> {
    verify(&world.dir()).unwrap().problems
}

#[tokio::test]
async fn a_sound_store_has_no_problems() {
    let mut world = full().await;
    for _ in 0..2 {
        let VerifyReport { jobs, unfinished, outcomes, problems } = verify(&world.dir()).unwrap();
        assert_eq!((jobs, unfinished, outcomes, problems), (8, 4, 5, vec![]));
        world.reopen().await;
    }
    world.close().await;
    assert_eq!(problems(&world), Vec::<String>::new());
}

#[tokio::test]
async fn a_damaged_body_is_found() {
    let mut world = full().await;
    world.close().await;
    let changed = tamper(&world, "UPDATE job SET payload = x'696f' WHERE id = 'CANCELLED'", []);
    assert_eq!(changed, 1);
    let changed = tamper(&world, "UPDATE done SET output = x'6f757400' WHERE output IS NOT NULL", []);
    assert_eq!(changed, 1);
    let found = problems(&world);
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].contains("payload of job CANCELLED"), "{found:?}");
    assert!(found[1].contains("output of job SUCCEEDED"), "{found:?}");
}

#[tokio::test]
async fn a_byte_on_the_disk_is_found() {
    let mut world = World::new(OPEN).await;
    world.add(job("a").payload("a payload that stands in the file as it is")).await;
    world.close().await;
    let path = world.dir().join(DATABASE);
    let mut bytes = fs::read(&path).unwrap();
    let at = bytes.windows(9).position(|window| window == b"a payload").unwrap();
    bytes[at] ^= 1;
    fs::write(&path, bytes).unwrap();
    assert_eq!(problems(&world), ["the payload of job a does not match its checksum"]);
}

#[tokio::test]
async fn what_does_not_fit_together_is_found() {
    for (sql, problem) in [
        (
            "UPDATE line SET queued = queued + 1",
            "the counts of queue default, kind echo differ from a recount",
        ),
        ("UPDATE line SET bytes = bytes + 1", "the counts of queue default, kind echo differ from a recount"),
        ("DELETE FROM done WHERE state = 7", "is in no state"),
        ("DELETE FROM bundle", "is in no state"),
        ("DELETE FROM job WHERE id = 'SUCCEEDED'", "has an outcome, but is gone"),
        ("DELETE FROM job WHERE id = 'QUEUED'", "is unfinished, but gone"),
        ("DELETE FROM job WHERE id = 'BACKING_OFF'", "failed, but is gone"),
        ("UPDATE done SET run = 1 WHERE run = 2", "has two outcomes of one run"),
        ("UPDATE live SET state = 3 WHERE state = 2", "runs without a lease"),
        (
            "INSERT INTO done (base, held, run, attempt, version, state, fence, finished, keep_until, crc) \
             SELECT num & -32, 1 << (num & 31), 1, 0, 9, 7, 0, 0, 0, 0 FROM live WHERE state = 2",
            "is unfinished in a run that has an outcome",
        ),
    ] {
        let mut world = full().await;
        world.close().await;
        assert!(tamper(&world, sql, []) > 0, "{sql}");
        let found = problems(&world);
        assert!(found.iter().any(|found| found.contains(problem)), "{sql}: {found:?}");
    }
}

#[tokio::test]
async fn problems_are_listed_up_to_a_bound() {
    let mut world = World::new(OPEN).await;
    world.group((0..300).map(|n| job(&format!("job-{n}")))).await.unwrap();
    world.close().await;
    tamper(&world, "UPDATE job SET crc = crc + 1", []);
    assert_eq!(problems(&world).len(), VerifyReport::MAX_PROBLEMS);
}

#[tokio::test]
async fn a_backup_is_a_store_of_its_own() {
    let world = full().await;
    let target = world.dir().with_file_name("copy");
    let report = backup(&world.dir(), &target).unwrap();
    assert_eq!((report.jobs, report.bytes > 0), (8, true));
    let mode = |path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(target.clone()), mode(target.join(DATABASE))), (0o700, 0o600));
    assert_eq!(verify(&target).unwrap().problems, Vec::<String>::new());
    // What comes later is not in it.
    world.cancel("QUEUED").await.unwrap();

    let copy = SqliteStore::open(&target, Arc::default(), world.now).unwrap();
    let log = copy.log_id();
    assert_ne!(log, world.store().log_id());
    for job in world.list(Filter::default()).await {
        let (jobs, _) = copy.get(vec![job.id.clone()], View::Full).await.unwrap();
        let copied = jobs[0].as_ref().unwrap();
        match job.id.as_str() {
            "QUEUED" => assert_eq!(copied.state, State::QUEUED),
            // Whoever ran it works for the original.
            "RUNNING" => assert_eq!(copied.state, State::BACKING_OFF),
            name => assert_eq!(*copied, world.get(name).await),
        }
    }
    copy.close().await;
    drop(copy);
    let copy = SqliteStore::open(&target, Arc::default(), world.now).unwrap();
    assert_eq!(copy.log_id(), log, "drawn once");
    copy.close().await;
    assert_eq!(verify(&target).unwrap().problems, Vec::<String>::new());
    // The original goes on.
    assert_eq!(outcome_ids(&world.feed().await).last().unwrap(), "QUEUED");
    assert_eq!(ids(&world.list(Filter::default()).await).len(), 8);
}

#[tokio::test]
async fn a_backup_overwrites_nothing() {
    let world = full().await;
    for existing in [world.dir(), world.dir().join(DATABASE)] {
        let error = backup(&world.dir(), &existing).unwrap_err();
        assert!(matches!(error, MaintenanceError::Exists(path) if path == existing));
    }
}
