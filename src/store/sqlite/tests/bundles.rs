//! Leases that share a row: whoever reads or changes one of their jobs does not notice.

use std::{sync::Arc, time::Duration};

use rusqlite::Connection;

use super::OPEN;
use crate::{
    config::Config,
    job::{Filter, JobId, Payload, Report, State, View, WorkerId},
    store::{
        Claim, Leased,
        sqlite::{SqliteStore, backup, open::DATABASE, verify},
        suite::{World, busy, id, job, secs},
    },
};

/// Rows of `bundle`, and of `live`.
fn rows(world: &World) -> (i64, i64) {
    let connection = Connection::open(world.dir().join(DATABASE)).unwrap();
    let count =
        |table| connection.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).unwrap();
    (count("bundle"), count("live"))
}

async fn wanted(world: &World, names: &[&str]) -> Vec<Leased> {
    let leased = world.wanted(names.iter().map(|name| job(name))).await;
    assert_eq!(leased.iter().map(|leased| leased.job.id.as_str()).collect::<Vec<_>>(), names);
    leased
}

async fn ids(world: &World, states: &[State]) -> Vec<JobId> {
    let filter = Filter { states: states.into(), ..Filter::default() };
    world.list(filter).await.into_iter().map(|job| job.id).collect()
}

#[tokio::test]
async fn a_bundle_is_there_until_the_last_of_its_jobs_has_ended() {
    let world = World::new(OPEN).await;
    let leased = wanted(&world, &["a", "b", "c"]).await;
    assert_eq!(rows(&world), (1, 0));
    for (leased, rest) in leased.iter().zip([(1, 0), (1, 0), (0, 0)]) {
        world.succeed(leased).await;
        assert_eq!(rows(&world), rest);
    }
    assert!(world.try_succeed(&leased[0]).await.is_err());
    world.recount().await;
}

#[tokio::test]
async fn whoever_changes_a_job_gives_it_a_row() {
    let mut world = World::new(OPEN).await;
    let names = ["a", "b", "c", "d", "e"];
    let leased = wanted(&world, &names).await;
    world.cancel("a").await.unwrap();
    assert_eq!(rows(&world), (1, 1));
    world.renew(leased[1].lease, secs(60), None).await;
    assert_eq!(rows(&world), (1, 2));
    world.fail(&leased[2], busy()).await;
    world.release(&leased[3], secs(0)).await;
    assert_eq!(rows(&world), (1, 4));
    world.succeed(&leased[4]).await;
    assert_eq!(rows(&world), (0, 4));
    let states = [State::RUNNING, State::RUNNING, State::BACKING_OFF, State::QUEUED, State::SUCCEEDED];
    for (name, state) in names.into_iter().zip(states) {
        assert_eq!(world.state(name).await, state, "{name}");
    }
    world.recount().await;
    // Only one of them was renewed.
    world.pass(secs(31)).await;
    assert_eq!(world.state("a").await, State::CANCELLED);
    world.succeed(&leased[1]).await;
}

#[tokio::test]
async fn jobs_in_bundles_are_listed_in_their_places() {
    let world = World::new(OPEN).await;
    let leased = wanted(&world, &["a", "b"]).await;
    world.add(job("c")).await;
    world.take().await;
    wanted(&world, &["d", "e"]).await;
    world.add(job("f")).await;
    world.succeed(&leased[0]).await;
    assert_eq!(rows(&world), (2, 2));
    let named = |names: &[&str]| names.iter().map(|name| id(name)).collect::<Vec<_>>();
    assert_eq!(ids(&world, &[State::RUNNING]).await, named(&["e", "d", "c", "b"]));
    assert_eq!(ids(&world, &[State::RUNNING, State::QUEUED]).await, named(&["f", "e", "d", "c", "b"]));
    assert_eq!(ids(&world, &[]).await, named(&["f", "e", "d", "c", "b", "a"]));
    assert_eq!(verify(&world.dir()).unwrap().unfinished, 5);
    assert!(verify(&world.dir()).unwrap().problems.is_empty());
}

#[tokio::test]
async fn what_runs_for_longer_gets_a_row() {
    let mut world = World::new(OPEN).await;
    let leased = wanted(&world, &["a", "b", "c"]).await;
    world.succeed(&leased[1]).await;
    let before = [world.get("a").await, world.get("c").await];
    world.pass(secs(2)).await;
    assert_eq!(rows(&world), (0, 2));
    assert_eq!([world.get("a").await, world.get("c").await], before);
    world.succeed(&leased[0]).await;
    // It is noticed that nobody renews the other.
    world.pass(secs(29)).await;
    assert_eq!(world.state("c").await, State::BACKING_OFF);
    assert_eq!(rows(&world), (0, 1));
    world.recount().await;
}

#[tokio::test]
async fn leases_that_are_over_sooner_end_in_time() {
    let mut world = World::new(OPEN).await;
    let lease = Duration::from_millis(300);
    world.wanted_by(Claim { lease, ..World::wish(1) }, [job("a")]).await;
    let tick = world.pass(Duration::from_millis(299)).await;
    assert_eq!((rows(&world), tick.next), ((1, 0), Some(world.now.after(Duration::from_millis(1)))));
    world.pass(Duration::from_millis(1)).await;
    assert_eq!(world.state("a").await, State::BACKING_OFF);
}

#[tokio::test]
async fn what_the_rows_of_a_bundle_do_not_say_has_rows() {
    let world = World::new(OPEN).await;
    let limited = job("limited").spec(|spec| spec.total_timeout = Some(secs(60)));
    let kept = job("kept").spec(|spec| spec.retention = Some(secs(60)));
    let urgent = job("urgent").spec(|spec| spec.priority = 3);
    let to_begin = job("to-begin").spec(|spec| spec.start_timeout = Some(secs(5)));
    let leased = world.wanted([limited, kept, urgent, to_begin]).await;
    assert_eq!((leased.len(), rows(&world)), (4, (1, 2)));
    world.recount().await;
    for leased in &leased {
        world.settle(World::report(leased, Report::Succeeded(Payload::none()))).await.unwrap();
    }
    assert_eq!(rows(&world), (0, 0));
    let kept = world.get("kept").await;
    assert_eq!(kept.delete_time.unwrap().since(kept.finish_time.unwrap()), secs(60));
}

#[tokio::test]
async fn only_the_pool_has_bundles() {
    let world = World::new(OPEN).await;
    let worker = WorkerId::of_program("worker", "far").unwrap();
    assert_eq!(world.wanted_by(Claim { worker, ..World::wish(1) }, [job("a")]).await.len(), 1);
    assert_eq!(rows(&world), (0, 1));
}

#[tokio::test]
async fn the_attempts_of_a_bundle_are_spent_when_its_process_is_gone() {
    let mut world = World::new(OPEN).await;
    let leased = wanted(&world, &["a", "b"]).await;
    world.succeed(&leased[0]).await;
    let copy = world.dir().with_file_name("copy");
    backup(&world.dir(), &copy).unwrap();
    let copy = SqliteStore::open(&copy, Arc::new(Config::default()), world.now).unwrap();
    assert_eq!(rows(&world), (1, 0));
    world.reopen().await;
    assert_eq!(rows(&world), (0, 1));
    for store in [world.store(), copy] {
        let jobs = store.get(vec![id("a"), id("b")], View::Full).await.unwrap().0;
        let jobs: Vec<_> = jobs.into_iter().flatten().collect();
        assert_eq!([jobs[0].state, jobs[1].state], [State::SUCCEEDED, State::BACKING_OFF]);
        assert_eq!((jobs[1].attempt, jobs[1].attempts.len()), (1, 1));
    }
    world.recount().await;
    assert!(verify(&world.dir()).unwrap().problems.is_empty());
}
