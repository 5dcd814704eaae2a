//! The log goes on at another server: played by letting the newest epoch have begun on one that is not there.

use std::collections::BTreeSet;

use futures_util::future::join_all;
use tokio::time::sleep;

use super::{replicas::*, *};
use crate::{
    job::{Error, JobId, View, WorkerId},
    store::{
        Break, Breaks, Claim, Position,
        suite::{World, job, secs},
    },
};

const JUMP: i64 = 1 << 40;

/// Another primary, with all that was on the old one.
const FAILOVER: &str = "update epoch set timeline = timeline - 100000; update replica set server = 'epoch'";

/// The same without the outcomes after a position.
fn without(after: Position) -> String {
    format!("{FAILOVER}; delete from done where seq > {}", after.0)
}

fn breaks(all: &[(i64, i64)]) -> Breaks {
    all.iter().map(|&(ended, resumed)| Break { ended: Position(ended), resumed: Position(resumed) }).collect()
}

/// Runs so many jobs to their end. Answers with the head of the feed.
async fn run(store: &PostgresStore, name: &str, count: usize) -> Position {
    submit(store, (0..count).map(|n| job(&format!("{name}-{n}")))).await;
    let leased = store.claim(NOW, World::wish(count)).await.unwrap();
    assert_eq!(leased.len(), count);
    let settled = store.settle(NOW, leased.iter().map(success).collect()).await.unwrap();
    assert!(settled.iter().all(Result::is_ok), "{settled:?}");
    *store.signals().head.borrow()
}

/// Waits until a store that was cut off can use the database again.
async fn recovered(store: &PostgresStore) {
    while store.feed_start().await.is_err() {
        sleep(secs(0)).await;
    }
}

#[tokio::test]
async fn one_epoch_begins_however_many_come_to_a_new_server() {
    let replicas = Replicas::new().await;
    let old = replicas.open().await;
    assert_eq!(old.breaks(), breaks(&[(0, 0)]));
    let head = run(&old, "old", 3).await;
    old.close().await;
    replicas.schema.execute(FAILOVER).await;
    let stores = join_all((0..6).map(|_| replicas.open())).await;
    let first = *stores[0].signals().head.borrow();
    assert!(first.0 >= JUMP && first.0 % JUMP == 0, "{first:?}");
    for store in &stores {
        assert_eq!(store.breaks(), breaks(&[(0, 0), (head.0, first.0)]));
    }
    // Nothing is given a second time: positions, fences, numbers of jobs.
    let drawn = "select least((select last_value from done_seq), (select last_value from fence),
        (select last_value from job_num)) >= $1";
    let client = replicas.schema.connect().await;
    assert!(client.query_one(drawn, &[&first.0]).await.unwrap().get::<_, bool>(0));
    // A start at the same server begins nothing.
    assert_eq!(replicas.open().await.breaks(), stores[0].breaks());
    assert_eq!(run(&stores[1], "new", 2).await, Position(first.0 + 2));
    assert_eq!(outcomes(&stores[2], Position(0)).await.len(), 5);
}

#[tokio::test]
async fn a_store_that_serves_goes_over_to_the_new_epoch() {
    let replicas = Replicas::new().await;
    let [a, b] = replicas.pair().await;
    let ended = run(&a, "kept", 2).await;
    run(&a, "lost", 2).await;
    let leases = "update lease set until = 1";
    submit(&a, [job("held")]).await;
    let pool = Claim { worker: WorkerId::of_pool("pool").unwrap(), ..World::wish(1) };
    let held = a.claim(NOW, pool).await.unwrap().remove(0);
    replicas.schema.execute(&format!("{}; {leases}", without(ended))).await;
    replicas.schema.cut().await;
    recovered(&a).await;
    recovered(&b).await;
    for store in [&a, &b] {
        let found = store.breaks().find(Position(ended.0 + 1)).unwrap();
        assert_eq!(found.ended, ended);
        assert!(*store.signals().head.borrow() >= found.resumed);
    }
    // The lease had run out, and could not be renewed.
    assert!(a.tick(NOW).await.unwrap().revoked.is_empty());
    assert!(a.settle(NOW, vec![success(&held)]).await.unwrap()[0].is_ok());
    let told: BTreeSet<String> =
        outcomes(&b, Position(0)).await.iter().map(|outcome| outcome.job.id.to_string()).collect();
    assert_eq!(told, ["held", "kept-0", "kept-1"].map(String::from).into());
}

/// Others may have deleted jobs while nobody could listen.
#[tokio::test]
async fn deletions_may_be_missed_over_a_failover() {
    let replicas = Replicas::new().await;
    let store = replicas.open().await;
    let mut deleted = store.signals().deleted.subscribe();
    remove(&store, "a").await;
    hear_of_deletion(&mut deleted).await;
    replicas.schema.execute(FAILOVER).await;
    replicas.schema.cut().await;
    recovered(&store).await;
    let told = tokio::time::timeout(secs(30), deleted.recv()).await;
    assert_eq!(told.expect("it is told"), Ok(None));
}

/// An old primary that nobody has stopped, or a database that was set back behind what this replica knows.
#[tokio::test]
async fn an_older_epoch_is_refused() {
    let replicas = Replicas::new().await;
    let store = replicas.open().await;
    replicas.schema.execute(FAILOVER).await;
    replicas.schema.cut().await;
    recovered(&store).await;
    let known = store.breaks();
    replicas
        .schema
        .execute(
            "create table newest as select * from epoch order by first desc limit 1;
            delete from epoch where first > 0; update epoch set timeline = timeline + 100000",
        )
        .await;
    replicas.schema.cut().await;
    // For longer than it takes to open it anew.
    let end = tokio::time::Instant::now() + 3 * super::super::PAUSE;
    while tokio::time::Instant::now() < end {
        match store.submit(NOW, vec![vec![job("late").into()]]).await {
            Err(Error::StoreUnavailable(_)) => sleep(secs(0)).await,
            other => panic!("it is not the primary: {other:?}"),
        }
    }
    replicas.schema.execute("insert into epoch select * from newest").await;
    recovered(&store).await;
    assert_eq!(store.breaks(), known);
    let missing: Vec<JobId> = vec!["late".parse().unwrap()];
    assert_eq!(store.get(missing, View::Basic).await.unwrap().0, [None]);
}

#[tokio::test]
async fn places_are_counted_over_epochs() {
    let mut replicas = Replicas::new().await;
    let config = Arc::make_mut(&mut replicas.config);
    config.watch.max_events = 3;
    let store = replicas.open().await;
    run(&store, "old", 5).await;
    store.close().await;
    for (name, count, kept) in [("newer", 1, "old-3"), ("newest", 1, "old-4")] {
        replicas.schema.execute(FAILOVER).await;
        let store = replicas.open().await;
        run(&store, name, count).await;
        store.tick(NOW).await.unwrap();
        let start = store.feed_start().await.unwrap().position;
        let page = outcomes(&store, start).await;
        assert_eq!((page.len(), page[0].job.id.as_str()), (3, kept));
        assert_eq!(store.position_at(NOW).await.unwrap(), page[2].position);
        store.close().await;
    }
    // Epochs that the feed has left behind are forgotten with the next one.
    let store = replicas.open().await;
    run(&store, "last", 3).await;
    store.tick(NOW).await.unwrap();
    store.close().await;
    replicas.schema.execute(FAILOVER).await;
    let client = replicas.schema.connect().await;
    replicas.open().await;
    assert_eq!(client.query_one("select count(*) from epoch", &[]).await.unwrap().get::<_, i64>(0), 2);
}
