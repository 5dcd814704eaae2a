//! Claims that meet others, that hang, and whose answers are lost.

use tokio::{
    runtime::Handle,
    sync::Semaphore,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    between::Between,
    replicas::{NOW, Replicas, submit},
    *,
};
use crate::{
    job::{JobId, State, View},
    store::{
        Claim,
        suite::{World, job, leased_ids, secs},
    },
};

/// A claim of one job that waits for it.
fn waiting() -> Claim {
    let wait = World::wait(Arc::new(Semaphore::new(1)), &CancellationToken::new(), None);
    Claim { wait: Some(wait), ..World::wish(1) }
}

async fn attempts(store: &PostgresStore, name: &str) -> (State, u32) {
    let ids: Vec<JobId> = vec![name.parse().unwrap()];
    let job = store.get(ids, View::Basic).await.unwrap().0.remove(0).unwrap();
    (job.state, job.attempt)
}

/// As long as a commit waits for a standby that is gone, for instance.
#[tokio::test]
async fn a_claim_that_hangs_lets_nothing_pile_up() {
    const CLAIMS: usize = 50;
    let replicas = Replicas::new().await;
    let store = replicas.open().await;
    submit(&store, [job("job-0")]).await;
    let other = replicas.schema.connect().await;
    other.batch_execute("begin; lock table ready").await.unwrap();
    let claims: Vec<_> = (0..CLAIMS)
        .map(|_| {
            let store = store.clone();
            tokio::spawn(async move { store.claim(NOW, waiting()).await.unwrap() })
        })
        .collect();
    sleep(secs(1)).await;
    let tasks = || Handle::current().metrics().num_alive_tasks();
    let before = tasks();
    for _ in 0..10 {
        sleep(secs(2) / 10).await;
        store.signals().advance(None, true);
    }
    // The connection for hints may come and go.
    assert!(tasks() < before + 5, "{} tasks instead of {before}", tasks());
    other.batch_execute("commit").await.unwrap();
    submit(&store, (1..CLAIMS).map(|n| job(&format!("job-{n}")))).await;
    for claim in claims {
        let leased = timeout(secs(20), claim).await.expect("there is one for each").unwrap();
        assert_eq!(leased.len(), 1);
    }
}

#[tokio::test]
async fn a_claim_whose_answer_is_lost_does_not_count() {
    let replicas = Replicas::new().await;
    let between = Between::start(replicas.schema.url()).await;
    let store = PostgresStore::open(&between.url, replicas.config.clone(), NOW).await.unwrap();
    submit(&store, [job("heard"), job("unheard").max_attempts(1)]).await;
    let heard = store.claim(NOW, World::wish(1)).await.unwrap();
    assert_eq!(leased_ids(&heard), ["heard"]);
    between.keep_answers_back();
    // By the same worker at the same time.
    let claim = tokio::spawn({
        let store = store.clone();
        async move { store.claim(NOW, World::wish(1)).await }
    });
    let client = replicas.schema.connect().await;
    let leases = async || client.query("select from running", &[]).await.unwrap().len();
    let taken = async {
        while leases().await < 2 {
            sleep(secs(1) / 100).await;
        }
    };
    timeout(secs(10), taken).await.expect("it is leased");
    between.cut();
    claim.await.unwrap().unwrap_err();
    // Until there are connections again, which takes longer than the leases last.
    let late = NOW.after(secs(31));
    while store.tick(late).await.is_err() {
        sleep(secs(1) / 100).await;
    }
    assert_eq!(attempts(&store, "heard").await, (State::BACKING_OFF, 1));
    assert_eq!(attempts(&store, "unheard").await, (State::QUEUED, 0));
    let again = store.claim(late, World::wish(1)).await.unwrap();
    assert_eq!((leased_ids(&again), again[0].job.attempt), (vec!["unheard".into()], 1));
    // What is found is forgotten.
    store.tick(late).await.unwrap();
    assert_eq!(attempts(&store, "unheard").await, (State::RUNNING, 1));
}

/// While somebody else takes what stands first in one line, and whether there is more behind it or not.
#[tokio::test]
async fn what_nobody_has_taken_is_not_forgotten() {
    let replicas = Replicas::new().await;
    let store = replicas.open().await;
    let database = store.database();
    let kinds = ["a", "b"].map(|kind| kind.parse().unwrap()).to_vec();
    let claim = Claim { kinds, wait: waiting().wait, ..World::wish(3) };
    let take = async || leased_ids(&database.claim_upto(NOW, &claim, 3).await.unwrap());
    let b = job("first-of-b").kind("b");
    submit(&store, [job("first-of-a").kind("a"), b]).await;
    assert_eq!(take().await.len(), 2);
    for (round, behind) in [0, 3].into_iter().enumerate() {
        let new = |kind: &str, n, priority| job(&format!("{kind}-{round}-{n}")).kind(kind).priority(priority);
        submit(&store, (0..3).map(|n| new("a", n, 0))).await;
        submit(&store, (0..3).map(|n| new("b", n, -1))).await;
        submit(&store, (0..behind).map(|n| new("a", n + 3, -2))).await;
        let other = replicas.schema.connect().await;
        let first =
            "begin; delete from ready where num in (select num from ready order by rank, num limit 3)";
        other.batch_execute(first).await.unwrap();
        let ids = |kind, from| (from..from + 3).map(|n| format!("{kind}-{round}-{n}")).collect::<Vec<_>>();
        assert_eq!(take().await, ids("a", 3)[..behind]);
        other.batch_execute("commit").await.unwrap();
        let line = database.lines.matching(|_, kind| kind.as_str() == "b").remove(0).id;
        assert_ne!(database.standing.peek([line].into_iter(), false).spans, []);
        assert_eq!(take().await, ids("b", 0));
    }
}

/// That looks at the time come late is no reason to think that nobody could renew a lease.
#[tokio::test]
async fn a_late_tick_ends_what_has_run_out() {
    let mut replicas = Replicas::new().await;
    let workers = &mut Arc::make_mut(&mut replicas.config).workers;
    (workers.lease, workers.heartbeat) = (secs(1) / 20, secs(1) / 100);
    let store = replicas.open().await;
    submit(&store, [job("a")]).await;
    let held = store.claim(NOW, World::wish(1)).await.unwrap().remove(0);
    sleep(secs(1) / 10).await;
    let over = NOW.after(World::wish(1).lease);
    assert_eq!(store.tick(over).await.unwrap().revoked, [held.lease]);
}
