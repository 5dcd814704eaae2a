//! Jobs, and outcomes, that share rows.

use std::collections::BTreeSet;

use super::{
    fresh::Pool,
    parts::{find, list},
    replicas::{NOW, Replicas, outcomes, submit, success},
    *,
};
use crate::{
    job::{Error, Filter, JobError, JobId, NamePattern, Payload, Report, State},
    store::{
        Delete, Position, Queues,
        suite::{New, World, drawn, job, secs},
    },
};

/// Rows of jobs, rows of outcomes, and how many jobs these hold.
const ROWS: &str =
    "select (select count(*) from job), (select count(*) from done), (select count(*) from accepted)";

async fn rows(replicas: &Replicas) -> (i64, i64, i64) {
    let client = replicas.schema.connect().await;
    let row = client.query_one(ROWS, &[]).await.unwrap();
    (row.get(0), row.get(1), row.get(2))
}

fn named(count: usize) -> impl Iterator<Item = New> {
    (0..count).map(|n| job(&format!("job-{n:02}")).payload(format!("in-{n}")))
}

/// Runs all that is due; the outputs are the ids.
async fn run(store: &PostgresStore, count: usize) {
    let leased = store.claim(NOW, World::wish(count)).await.unwrap();
    assert_eq!(leased.len(), count);
    let report = |leased: &crate::store::Leased| {
        let output = Payload::new(Payload::TEXT, leased.job.id.to_string());
        World::report(leased, Report::Succeeded(output))
    };
    let settled = store.settle(NOW, leased.iter().map(report).collect()).await.unwrap();
    assert!(settled.iter().all(Result::is_ok), "{settled:?}");
}

fn of(states: &[State]) -> Filter {
    Filter { states: states.to_vec(), ..Filter::default() }
}

async fn delete(store: &PostgresStore, ids: &[&str]) {
    let delete = |id: &&str| Delete { job_id: id.parse().unwrap(), etag: None, allow_missing: false };
    let deleted = store.delete(NOW, ids.iter().map(delete).collect()).await.unwrap();
    assert!(deleted.iter().all(Result::is_ok), "{deleted:?}");
}

#[tokio::test]
async fn what_is_alike_shares_a_row() {
    let replicas = Replicas::new().await;
    let [store, other] = replicas.pair().await;
    submit(&store, named(30)).await;
    assert_eq!(rows(&replicas).await, (1, 0, 30));
    run(&store, 30).await;
    assert_eq!(rows(&replicas).await, (1, 1, 30));
    // Another queue, a job of its own, more than has room.
    submit(&store, [job("a").queue("else"), job("b").label("x", "y"), job("c").payload(vec![b'-'; 5000])])
        .await;
    submit(&store, (0..33).map(|n| job(&format!("more-{n}")))).await;
    assert_eq!(rows(&replicas).await, (1 + 3 + 2, 1, 66));

    for (n, new) in named(30).enumerate() {
        let found = find(&other, &new.id()).await.unwrap();
        assert_eq!(found.spec.payload.bytes(), format!("in-{n}"));
        assert_eq!(found.output.unwrap().bytes(), new.id());
    }
    assert_eq!(find(&other, "c").await.unwrap().spec.payload.size, 5000);
    assert_eq!(find(&other, "b").await.unwrap().spec.labels.len(), 1);
}

#[tokio::test]
async fn pages_may_end_within_a_row() {
    let replicas = Replicas::new().await;
    let store = replicas.open().await;
    submit(&store, named(30)).await;
    run(&store, 25).await;
    let ids: Vec<String> = named(30).map(|new| new.id()).collect();
    for limit in [1, 7, 24, 25, 100] {
        let mut after = Position(0);
        for chunk in ids[..25].chunks(limit) {
            let page = store.outcomes(after, limit, &Queues::All).await.unwrap();
            let told: Vec<_> = page.outcomes.iter().map(|one| one.job.id.as_str()).collect();
            assert_eq!(told, chunk);
            assert_eq!(page.upto, Position(after.0 + chunk.len() as i64));
            let filter = Filter::default();
            let existing = store.existing(after, page.upto, &filter, limit).await.unwrap();
            assert_eq!(existing.outcomes.len(), chunk.len());
            after = page.upto;
        }
        for (states, count) in [(&[][..], 30), (&[State::SUCCEEDED], 25), (&[State::QUEUED], 5)] {
            let expected = if states == [State::QUEUED] { &ids[25..] } else { &ids[..count] };
            assert_eq!(list(&store, of(states), true, limit).await, expected);
            let reversed: Vec<_> = expected.iter().rev().cloned().collect();
            assert_eq!(list(&store, of(states), false, limit).await, reversed);
        }
    }
}

#[tokio::test]
async fn one_of_a_row_can_leave() {
    let replicas = Replicas::new().await;
    let [store, other] = replicas.pair().await;
    submit(&store, named(10)).await;
    run(&store, 10).await;
    delete(&store, &["job-03", "job-07"]).await;
    assert_eq!(rows(&replicas).await, (1, 1, 8));
    // Nothing of them is kept.
    let client = replicas.schema.connect().await;
    let rest = "select payloads::text || outputs::text from job, done";
    let rest: String = client.query_one(rest, &[]).await.unwrap().get(0);
    let hex = |text: &str| text.bytes().map(|byte| format!("{byte:02x}")).collect::<String>();
    for (kept, gone) in [("job-04", "job-03"), ("in-4", "in-3")] {
        assert!(rest.contains(&hex(kept)) && !rest.contains(&hex(gone)), "{rest}");
    }

    for gone in ["job-03", "job-07"] {
        assert!(find(&other, gone).await.is_none());
    }
    let left = ["job-00", "job-01", "job-02", "job-04", "job-05", "job-06", "job-08", "job-09"];
    let told: Vec<_> = outcomes(&other, Position(0))
        .await
        .iter()
        .map(|one| (one.position.0, one.job.id.to_string()))
        .collect();
    assert_eq!(told.iter().map(|(_, id)| id.as_str()).collect::<Vec<_>>(), left);
    assert_eq!(told.iter().map(|(position, _)| *position).collect::<Vec<_>>(), [1, 2, 3, 5, 6, 7, 9, 10]);
    assert_eq!(list(&other, of(&[State::SUCCEEDED]), true, 3).await, left);
    assert_eq!(list(&other, of(&[]), true, 3).await, left);
    // Its name is free.
    submit(&other, [job("job-03").payload("again")]).await;
    assert_eq!(find(&store, "job-03").await.unwrap().state, State::QUEUED);
    run(&store, 1).await;
    delete(&store, &left).await;
    assert_eq!(rows(&replicas).await, (1, 1, 1));
    delete(&store, &["job-03"]).await;
    assert_eq!(rows(&replicas).await, (0, 0, 0));
}

/// Two that leave a row at the same time both do.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn all_of_a_row_can_leave_at_the_same_time() {
    let replicas = Replicas::new().await;
    let stores = replicas.pair().await;
    submit(&stores[0], named(30)).await;
    run(&stores[0], 30).await;
    let deletes = named(30).enumerate().map(|(n, new)| {
        let store = stores[n % 2].clone();
        tokio::spawn(async move { delete(&store, &[&new.id()]).await })
    });
    for deleted in futures_util::future::join_all(deletes).await {
        deleted.unwrap();
    }
    assert_eq!(rows(&replicas).await, (0, 0, 0));
}

#[tokio::test]
async fn what_fails_has_a_row_of_its_own() {
    let replicas = Replicas::new().await;
    let store = replicas.open().await;
    submit(&store, named(10).map(|new| new.max_attempts(1))).await;
    let leased = store.claim(NOW, World::wish(10)).await.unwrap();
    let reports = leased.iter().enumerate().map(|(n, leased)| match n % 5 {
        0 => World::report(leased, Report::Failed(JobError::permanent("no", "no"))),
        _ => success(leased),
    });
    let settled = store.settle(NOW, reports.collect()).await.unwrap();
    assert!(settled.iter().all(Result::is_ok), "{settled:?}");
    for limit in [1, 9] {
        assert_eq!(list(&store, of(&[State::FAILED]), true, limit).await, ["job-00", "job-05"]);
        assert_eq!(list(&store, of(&[State::FAILED]), false, limit).await, ["job-05", "job-00"]);
        assert_eq!(list(&store, of(&[State::SUCCEEDED]), true, limit).await.len(), 8);
    }
    assert_eq!(outcomes(&store, Position(0)).await.len(), 10);
}

#[tokio::test]
async fn an_id_is_found_among_those_that_were_drawn_at_the_same_time() {
    let replicas = Replicas::new().await;
    let [store, other] = replicas.pair().await;
    let id = |millis: u64| {
        let time =
            uuid::Timestamp::from_unix(uuid::NoContext, millis / 1000, (millis % 1000) as u32 * 1_000_000);
        JobId::from(uuid::Uuid::new_v7(time)).to_string()
    };
    // Of clocks that differ, and one after the other in no order.
    let ids: Vec<String> = [7, 3, 5, 150, 90, 4, 1000, 0].map(|ahead| id(1_700_000_000_000 + ahead)).into();
    submit(&store, ids[..4].iter().map(|id| drawn(id))).await;
    submit(&other, ids[4..].iter().map(|id| drawn(id))).await;
    for id in &ids {
        assert_eq!(find(&other, id).await.unwrap().id.as_str(), id);
        let again = store.submit(NOW, vec![vec![job(id).into()]]).await.unwrap().remove(0).unwrap();
        assert!(again[0].deduplicated);
        let other = store.submit(NOW, vec![vec![job(id).payload("else").into()]]).await.unwrap().remove(0);
        assert!(matches!(other, Err((0, Error::JobIdInUse { .. }))), "{other:?}");
    }
    assert!(find(&store, &id(1_700_000_000_004)).await.is_none());
    assert_eq!(rows(&replicas).await.0, 2 + 3);
}

/// So many blocks in one statement that their numbers are too far apart for a bundle.
#[tokio::test]
async fn leases_of_very_many_blocks_have_rows_of_their_own() {
    const COUNT: usize = 2100;
    let replicas = Replicas::new().await;
    let store = replicas.open().await;
    let mut pool = Pool::start(&store, COUNT + 1);
    submit(&store, [job("first")]).await;
    pool.next().await;
    tokio::time::sleep(secs(1) / 20).await;
    submit(
        &store,
        (0..COUNT).map(|n| job(&format!("job-{n}")).priority(n as i32 % 2).payload(vec![1; n % 3])),
    )
    .await;
    let mut leased = Vec::new();
    while leased.len() < COUNT {
        leased.extend(pool.next().await);
    }
    let client = replicas.schema.connect().await;
    let leases: i64 = client.query_one("select count(*) from lease", &[]).await.unwrap().get(0);
    assert_eq!(leases, COUNT as i64);
    let settled = store.settle(NOW, leased.iter().map(success).collect()).await.unwrap();
    assert!(settled.iter().all(Result::is_ok));
    let ended = outcomes(&store, Position(0)).await;
    assert_eq!(ended.iter().map(|one| one.job.id.clone()).collect::<BTreeSet<_>>().len(), COUNT);
}

/// What was taken over has blocks of one job each, and numbers without gaps.
#[tokio::test]
async fn a_list_of_what_was_taken_over_is_whole() {
    let replicas = Replicas::new().await;
    let store = replicas.open().await;
    submit(&store, [job("first"), job("else").queue("else")]).await;
    run(&store, 2).await;
    // More than one page looks at; the last one is of the second line.
    let fill = "
        insert into job select n, array['taken-' || n], 1 + n / 12999, 0, 1, 't', array['in'::bytea], array[2], null, null, null
          from generate_series(1000, 12999) n;
        insert into own select 'taken-' || n, n from generate_series(1000, 12999) n;
        insert into done select n, n, array[n], 1, 1, 3, 5, 1 + n / 12999, 1, null, 1, 1, 9e15, null, 't', array['out'::bytea],
          array[3] from generate_series(1000, 12999) n";
    replicas.schema.execute(fill).await;
    let filter = Filter { queues: vec![NamePattern::Exact("else".into())], ..Filter::default() };
    for states in [vec![], vec![State::SUCCEEDED]] {
        for oldest_first in [true, false] {
            let filter = Filter { states: states.clone(), ..filter.clone() };
            let mut all = list(&store, filter, oldest_first, 10).await;
            all.sort_unstable();
            assert_eq!(all, ["else", "taken-12999"], "{states:?} {oldest_first}");
        }
    }
}

/// The cut of a feed that begins within a row is the time of that row.
#[tokio::test]
async fn a_feed_may_begin_within_a_row() {
    let mut config = Config::default();
    config.watch.max_events = 5;
    let replicas = Replicas { config: Arc::new(config), ..Replicas::new().await };
    let store = replicas.open().await;
    submit(&store, named(10)).await;
    run(&store, 10).await;
    store.tick(NOW).await.unwrap();
    let start = store.feed_start().await.unwrap();
    assert_eq!((start.position, start.cut), (Position(5), NOW));
    let page = store.outcomes(start.position, 100, &Queues::All).await.unwrap();
    assert_eq!(page.outcomes.len(), 5);
}

/// Large bodies stay where they are until somebody wants them.
#[tokio::test]
async fn a_page_reads_no_more_outputs_than_it_has() {
    const SIZE: usize = 1 << 20;
    const COUNT: usize = 12;
    let replicas = Replicas::new().await;
    let store = replicas.open().await;
    submit(&store, (0..COUNT).map(|n| job(&format!("large-{n}")))).await;
    let report = |leased: &crate::store::Leased| {
        let noise: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..)).take(SIZE).collect();
        World::report(leased, Report::Succeeded(Payload::new(Payload::TEXT, noise)))
    };
    for leased in &store.claim(NOW, World::wish(COUNT)).await.unwrap() {
        assert!(store.settle(NOW, vec![report(leased)]).await.unwrap()[0].is_ok());
    }
    store.close().await;
    let before = chunks(&replicas, 0).await;
    let store = replicas.open().await;
    let page = store.outcomes(Position(0), 100, &Queues::All).await.unwrap();
    assert_eq!((page.outcomes.len(), page.upto), (1, Position(1)));
    assert_eq!(list(&store, of(&[]), true, 100).await.len(), COUNT);
    store.close().await;
    // A body is in more than 500 of them, each of which is looked at a few times.
    let read = chunks(&replicas, before).await - before;
    assert!(read < 500 * COUNT as i64, "{read}");
}

/// Blocks of bodies and of their indexes that were read so far: sessions tell when they end, or a second later.
async fn chunks(replicas: &Replicas, before: i64) -> i64 {
    let client = replicas.schema.connect().await;
    let read = "select coalesce(sum(toast_blks_read + toast_blks_hit), 0)::int8
        from pg_statio_user_tables where schemaname = current_schema()";
    let mut last = before;
    loop {
        tokio::time::sleep(secs(1)).await;
        let now: i64 = client.query_one(read, &[]).await.unwrap().get(0);
        if now == last && now > before {
            return now;
        }
        last = now;
    }
}
