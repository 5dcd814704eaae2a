//! Leases that have one row together.

use std::collections::BTreeSet;

use futures_util::future::join_all;

use super::{
    replicas::{NOW, Replicas, outcomes, submit, success},
    *,
};
use crate::{
    job::{Error, Filter, JobError, LiveState, Report, State, View},
    store::{
        Cancel, Leased, ListQuery, Position, Renewal, Renewed,
        suite::{World, job, secs},
    },
};

/// Bundles, jobs that run in them, and leases that have rows of their own.
const ROWS: &str =
    "select (select count(*) from bundle), (select count(*) from seat), (select count(*) from lease)";

async fn rows(replicas: &Replicas) -> (i64, i64, i64) {
    let client = replicas.schema.connect().await;
    let row = client.query_one(ROWS, &[]).await.unwrap();
    (row.get(0), row.get(1), row.get(2))
}

async fn states(store: &PostgresStore, ids: &[&str]) -> Vec<State> {
    let ids = ids.iter().map(|id| id.parse().unwrap()).collect();
    let (found, _) = store.get(ids, View::Basic).await.unwrap();
    found.into_iter().map(|job| job.unwrap().state).collect()
}

async fn listed(store: &PostgresStore, states: &[State]) -> usize {
    let filter = Filter { states: states.to_vec(), ..Filter::default() };
    let query = ListQuery { filter, view: View::Basic, limit: 100, oldest_first: true, after: None };
    store.list(query).await.unwrap().jobs.len()
}

fn cancel(id: &str) -> Vec<Cancel> {
    vec![Cancel { job_id: id.parse().unwrap(), reason: "no".into(), etag: None }]
}

/// Five jobs, leased together.
async fn five(store: &PostgresStore) -> Vec<Leased> {
    submit(store, ["a", "b", "c", "d", "e"].map(job)).await;
    let leased = store.claim(NOW, World::wish(5)).await.unwrap();
    assert_eq!(leased.len(), 5);
    leased
}

#[tokio::test]
async fn leases_that_only_end_are_one_row() {
    let replicas = Replicas::new().await;
    let [store, other] = replicas.pair().await;
    let leased = five(&store).await;
    assert_eq!(rows(&replicas).await, (1, 5, 0));
    assert_eq!(states(&other, &["a", "e"]).await, [State::RUNNING; 2]);
    let running = State::Live(LiveState::Running);
    assert_eq!((listed(&other, &[]).await, listed(&other, &[running]).await), (5, 5));
    let repeat = store.submit(NOW, vec![vec![job("a").into()]]).await.unwrap().remove(0).unwrap();
    assert!(repeat[0].deduplicated);
    let (first, second) = leased.split_at(2);
    for part in [first, second] {
        let settled = store.settle(NOW, part.iter().map(success).collect()).await.unwrap();
        assert!(settled.iter().all(Result::is_ok), "{settled:?}");
        assert_eq!(rows(&replicas).await.2, 0);
    }
    assert_eq!(rows(&replicas).await, (1, 0, 0));
    assert_eq!(states(&other, &["a", "b", "c", "d", "e"]).await, [State::SUCCEEDED; 5]);
    let ended: Vec<_> =
        outcomes(&other, Position(0)).await.iter().map(|one| one.job.id.to_string()).collect();
    assert_eq!(ended, ["a", "b", "c", "d", "e"]);
    store.database().keep_house().await.unwrap();
    assert_eq!(rows(&replicas).await, (0, 0, 0));
}

#[tokio::test]
async fn whatever_else_happens_to_one_gives_all_rows_of_their_own() {
    let replicas = Replicas::new().await;
    let [store, other] = replicas.pair().await;
    let leased = five(&store).await;
    store.settle(NOW, vec![success(&leased[0])]).await.unwrap();
    // Another server, of whose doing the one that leased them knows nothing.
    let changed = other.cancel(NOW, cancel("b")).await.unwrap().remove(0).unwrap();
    assert!(changed.revoke.is_some());
    assert_eq!(rows(&replicas).await, (0, 0, 4));
    let failed = Report::Failed(JobError::retryable("again", "again"));
    let reports = vec![success(&leased[2]), World::report(&leased[3], failed), success(&leased[0])];
    let settled = store.settle(NOW, reports).await.unwrap();
    assert!(settled[0].is_ok() && settled[1].is_ok(), "{settled:?}");
    assert_eq!(settled[2], Err(Error::LeaseLost));
    let renewal = Renewal { lease: leased[4].lease, until: Some(NOW.after(secs(60))), progress: None };
    assert_eq!(store.renew(NOW, vec![renewal]).await.unwrap(), [Renewed::Held]);
    store.tick(NOW.after(secs(31))).await.unwrap();
    let ends = states(&store, &["a", "b", "c", "d", "e"]).await;
    assert_eq!(ends[..1], [State::SUCCEEDED]);
    assert_eq!(ends[1..], [State::CANCELLED, State::SUCCEEDED, State::QUEUED, State::RUNNING]);
}

#[tokio::test]
async fn a_lease_of_a_bundle_that_runs_out_spends_its_attempt() {
    let replicas = Replicas::new().await;
    let [store, other] = replicas.pair().await;
    let leased = five(&store).await;
    store.settle(NOW, vec![success(&leased[0])]).await.unwrap();
    let next = store.tick(NOW).await.unwrap().next.unwrap();
    assert_eq!(next, NOW.after(secs(30)));
    other.tick(NOW.after(secs(32))).await.unwrap();
    let ends = states(&store, &["a", "b", "c", "d", "e"]).await;
    assert_eq!(ends[0], State::SUCCEEDED);
    assert_eq!(ends[1..], [State::BACKING_OFF; 4]);
    let late = store.settle(NOW.after(secs(33)), vec![success(&leased[1])]).await.unwrap();
    assert!(late[0].is_ok(), "nobody else has begun: {late:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn reports_on_one_bundle_at_the_same_time_all_count_once() {
    let replicas = Replicas::new().await;
    let store = replicas.open().await;
    submit(&store, (0..60).map(|n| job(&format!("job-{n}")))).await;
    let leased = store.claim(NOW, World::wish(60)).await.unwrap();
    let reports = leased.iter().chain(&leased).map(|leased| {
        let (store, report) = (store.clone(), success(leased));
        tokio::spawn(async move { store.settle(NOW, vec![report]).await.unwrap().remove(0) })
    });
    let settled: Vec<_> = join_all(reports).await.into_iter().map(Result::unwrap).collect();
    assert_eq!(settled.iter().filter(|settled| settled.is_ok()).count(), 60);
    let ended = outcomes(&store, Position(0)).await;
    assert_eq!(ended.len(), 60);
    assert_eq!(ended.iter().map(|one| one.job.id.clone()).collect::<BTreeSet<_>>().len(), 60);
    assert_eq!(rows(&replicas).await, (1, 0, 0));
}
