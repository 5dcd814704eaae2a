//! Several replicas on one database, at the same time.

use std::{
    collections::{BTreeSet, HashSet},
    time::Duration,
};

use futures_util::future::join_all;
use tokio::sync::broadcast;

use super::{server::Schema, *};
use crate::{
    job::{Cause, Error, Filter, JobId, Payload, Report, State, View},
    store::{
        Cancel, Claim, Delete, OnlyIf, Outcome, Position, Queues, Renewal, Renewed, Settlement, Submission,
        suite::{World, drawn, job, secs},
    },
};

pub const NOW: Timestamp = Timestamp(1_700_000_000_000);

pub struct Replicas {
    pub schema: Schema,
    pub config: Arc<Config>,
}

impl Replicas {
    pub async fn new() -> Self {
        Self { schema: Schema::new().await, config: Arc::new(Config::default()) }
    }

    pub async fn open(&self) -> Arc<PostgresStore> {
        PostgresStore::open(self.schema.url(), self.config.clone(), NOW).await.unwrap()
    }

    pub async fn pair(&self) -> [Arc<PostgresStore>; 2] {
        [self.open().await, self.open().await]
    }
}

/// Gets to know the lines that others have made.
async fn refresh(store: &PostgresStore) {
    let database = store.database();
    database.lines.refresh(&database.pools.read).await.unwrap();
}

pub async fn submit(store: &PostgresStore, new: impl IntoIterator<Item = impl Into<Submission>>) {
    let group = new.into_iter().map(Into::into).collect();
    store.submit(NOW, vec![group]).await.unwrap().remove(0).unwrap();
}

pub fn success(leased: &crate::store::Leased) -> Settlement {
    World::report(leased, Report::Succeeded(Payload::new(Payload::TEXT, "out")))
}

pub async fn outcomes(store: &PostgresStore, mut after: Position) -> Vec<Outcome> {
    let mut all = Vec::new();
    loop {
        let page = store.outcomes(after, 100, &Queues::All).await.unwrap();
        all.extend(page.outcomes);
        if page.upto == after {
            return all;
        }
        after = page.upto;
    }
}

/// Submits, claims and settles small batches until so many jobs are done.
async fn work(store: Arc<PostgresStore>, name: usize, batches: usize) {
    for batch in 0..batches {
        submit(&store, (0..3).map(|n| job(&format!("{name}-{batch}-{n}")))).await;
        let leased = store.claim(NOW, World::wish(3)).await.unwrap();
        let settled = store.settle(NOW, leased.iter().map(success).collect()).await.unwrap();
        assert!(settled.iter().all(Result::is_ok), "{settled:?}");
    }
}

/// Follows the feed as a tailer does, until so many outcomes have come.
async fn follow(store: Arc<PostgresStore>, count: usize) -> Vec<Outcome> {
    let (mut after, mut seen) = (Position(0), Vec::new());
    while seen.len() < count {
        let page = store.outcomes(after, 7, &Queues::All).await.unwrap();
        assert!(page.upto >= after);
        seen.extend(page.outcomes);
        after = page.upto;
        tokio::task::yield_now().await;
    }
    seen
}

/// Positions are drawn before a commit can be seen: whoever follows must still miss none.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_outcome_appears_behind_one_that_was_seen() {
    let replicas = Replicas::new().await;
    let stores = replicas.pair().await;
    const WORKERS: usize = 6;
    const BATCHES: usize = 25;
    let all = WORKERS * BATCHES * 3;
    let tails = stores.iter().map(|store| tokio::spawn(follow(store.clone(), all))).collect::<Vec<_>>();
    let workers = (0..WORKERS).map(|n| tokio::spawn(work(stores[n % 2].clone(), n, BATCHES)));
    for worker in join_all(workers).await {
        worker.unwrap();
    }
    // What one had claimed too much of is left to the others: nothing is.
    for store in &stores {
        let leased = store.claim(NOW, World::wish(all)).await.unwrap();
        store.settle(NOW, leased.iter().map(success).collect()).await.unwrap();
    }
    let feed = outcomes(&stores[0], Position(0)).await;
    let positions = |outcomes: &[Outcome]| outcomes.iter().map(|one| one.position).collect::<Vec<_>>();
    assert_eq!(feed.len(), all);
    assert_eq!(feed.iter().map(|one| one.job.id.clone()).collect::<BTreeSet<_>>().len(), all);
    for tail in tails {
        let seen = tokio::time::timeout(secs(30), tail).await.expect("an outcome was missed").unwrap();
        assert_eq!(positions(&seen), positions(&feed));
    }
    for store in &stores {
        let counts = store.counts().await.unwrap();
        let done: u64 = counts.iter().map(|line| line.by_state[State::SUCCEEDED.number() as usize - 1]).sum();
        let open: u64 = counts.iter().map(|line| line.by_state[..4].iter().sum::<u64>()).sum();
        assert_eq!((done, open), (all as u64, 0));
    }
}

/// Also when somebody else's transaction, which has written, stays open.
#[tokio::test]
async fn the_feed_waits_for_nobodys_transaction() {
    let replicas = Replicas::new().await;
    let [a, b] = replicas.pair().await;
    let other = replicas.schema.connect().await;
    other.batch_execute("create table other (n int); begin; insert into other values (1)").await.unwrap();
    work(a.clone(), 1, 2).await;
    assert_eq!(outcomes(&b, Position(0)).await.len(), 6);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn one_job_comes_of_one_name() {
    let replicas = Replicas::new().await;
    let stores = replicas.pair().await;
    for round in 0..15 {
        let named = [
            drawn(&format!("{round}-drawn")).request(&format!("request-{round}")),
            job(&format!("own-{round}")),
            drawn(&format!("{round}-held")).unique(&format!("key-{round}")),
        ];
        for new in named {
            let tries = (0..6).map(|n| {
                let (store, new) = (stores[n % 2].clone(), new.clone());
                tokio::spawn(async move {
                    let mut submission: Submission = new.into();
                    if !submission.own_id {
                        submission.job_id = format!("{}-{n}", submission.job_id).parse().unwrap();
                    }
                    let group = store.submit(NOW, vec![vec![submission]]).await.unwrap().remove(0).unwrap();
                    (group[0].job.id.clone(), group[0].deduplicated)
                })
            });
            let answers: Vec<_> = join_all(tries).await.into_iter().map(Result::unwrap).collect();
            assert!(answers.iter().all(|(id, _)| *id == answers[0].0), "{answers:?}");
            assert_eq!(answers.iter().filter(|(_, deduplicated)| !deduplicated).count(), 1, "{answers:?}");
        }
    }
    let filter = Filter::default();
    let query =
        crate::store::ListQuery { filter, view: View::Basic, limit: 1000, oldest_first: false, after: None };
    assert_eq!(stores[0].list(query).await.unwrap().jobs.len(), 45);
}

/// A report, its repeat elsewhere, a cancel and the end of the lease: one of them ends the job, and only one.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_run_ends_once() {
    let replicas = Replicas::new().await;
    let [a, b] = replicas.pair().await;
    for round in 0..30 {
        let name = format!("job-{round}");
        submit(&a, [job(&name).max_attempts(1)]).await;
        let leased = a.claim(NOW, World::wish(1)).await.unwrap().remove(0);
        let settle = |store: Arc<PostgresStore>| {
            let settlement = success(&leased);
            tokio::spawn(async move { store.settle(NOW, vec![settlement]).await.unwrap().remove(0) })
        };
        let cancel = Cancel { job_id: name.parse().unwrap(), reason: "enough".into(), etag: None };
        let (first, second) = (settle(a.clone()), settle(b.clone()));
        let cancelled = tokio::spawn({
            let b = b.clone();
            async move { b.cancel(NOW, vec![cancel]).await.unwrap().remove(0).map(drop) }
        });
        let late = tokio::spawn({
            let a = a.clone();
            async move { a.tick(NOW.after(secs(31))).await.map(drop) }
        });
        let settled = [first.await.unwrap(), second.await.unwrap()];
        cancelled.await.unwrap().unwrap();
        late.await.unwrap().unwrap();
        assert!(settled.iter().filter(|settled| settled.is_ok()).count() <= 1, "{settled:?}");
        assert!(settled.iter().all(|settled| matches!(settled, Ok(()) | Err(Error::LeaseLost))));
        let ends = outcomes(&a, Position(0)).await;
        assert_eq!(ends.iter().filter(|end| end.job.id.as_str() == name).count(), 1);
        let state = ends.iter().find(|end| end.job.id.as_str() == name).unwrap().job.state;
        assert_eq!(state == State::SUCCEEDED, settled.iter().any(Result::is_ok), "{state}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_job_is_leased_twice() {
    let replicas = Replicas::new().await;
    let stores = replicas.pair().await;
    submit(&stores[0], (0..300).map(|n| job(&format!("job-{n}")).queue(["one", "two"][n % 2]))).await;
    refresh(&stores[1]).await;
    let claims = (0..40).map(|n| {
        let store = stores[n % 2].clone();
        tokio::spawn(async move { store.claim(NOW, World::wish(10)).await.unwrap() })
    });
    let mut leased: Vec<_> = join_all(claims).await.into_iter().flat_map(Result::unwrap).collect();
    leased.extend(stores[0].claim(NOW, World::wish(300)).await.unwrap());
    assert_eq!(leased.len(), 300);
    assert_eq!(leased.iter().map(|one| one.job.id.clone()).collect::<BTreeSet<_>>().len(), 300);
    assert_eq!(leased.iter().map(|one| one.lease).collect::<HashSet<_>>().len(), 300);
}

/// The replica that gave a lease does not know that its worker has confirmed it elsewhere.
#[tokio::test]
async fn a_lease_that_was_confirmed_elsewhere_does_not_go_back_uncounted() {
    let replicas = Replicas::new().await;
    let [a, b] = replicas.pair().await;
    submit(&a, [job("confirmed"), job("unconfirmed"), job("not-got")]).await;
    let leased = a.claim(NOW, World::wish(3)).await.unwrap();
    let renewal = Renewal { lease: leased[0].lease, until: Some(NOW.after(secs(40))), progress: None };
    assert_eq!(b.renew(NOW, vec![renewal]).await.unwrap(), [Renewed::Held]);
    let back = [&leased[0], &leased[2]]
        .map(|leased| Settlement { only_if: OnlyIf::Own, ..Settlement::release(leased.lease) });
    assert_eq!(a.settle(NOW, back.to_vec()).await.unwrap(), [Err(Error::LeaseLost), Ok(())]);
    let late = NOW.after(secs(41));
    let back = leased[..2].iter().map(|leased| Settlement {
        only_if: OnlyIf::OwnAndOver,
        job: Some(leased.job.clone()),
        ..Settlement::release(leased.lease)
    });
    assert_eq!(a.settle(late, back.collect()).await.unwrap(), [Err(Error::LeaseLost), Ok(())]);
    b.tick(late).await.unwrap();
    let attempts = async |name: &str| {
        let found = a.get(vec![name.parse().unwrap()], View::Basic).await.unwrap().0.remove(0).unwrap();
        (found.state, found.attempt)
    };
    assert_eq!(attempts("confirmed").await, (State::BACKING_OFF, 1));
    for name in ["unconfirmed", "not-got"] {
        assert_eq!(attempts(name).await, (State::QUEUED, 0));
    }
}

/// A batch may be on its way for a while, and clocks differ a little.
#[tokio::test]
async fn outcomes_that_are_out_of_order_are_after_their_time() {
    let replicas = Replicas::new().await;
    let store = replicas.open().await;
    let run = async |name: &str, seconds| {
        submit(&store, (0..3).map(|n| job(&format!("{name}-{n}")))).await;
        let leased = store.claim(NOW, World::wish(3)).await.unwrap();
        let now = NOW.after(secs(seconds));
        assert!(store.settle(now, leased.iter().map(success).collect()).await.unwrap()[0].is_ok());
        *store.signals().head.borrow()
    };
    let position = async |seconds| store.position_at(NOW.after(secs(seconds))).await.unwrap();
    let first = run("first", 0).await;
    run("ahead", 110).await;
    run("behind", 100).await;
    let last = run("last", 120).await;
    assert_eq!(position(0).await, first);
    assert_eq!(position(105).await, first);
    assert_eq!(position(110).await, Position(last.0 - 3));
    assert_eq!(position(120).await, last);
}

#[tokio::test]
async fn what_many_have_tallied_is_folded() {
    let replicas = Replicas::new().await;
    let store = replicas.open().await;
    submit(&store, [job("a")]).await;
    let many = "insert into tally (line, failed) select id, 1 from line, generate_series(1, 25000)";
    replicas.schema.execute(many).await;
    store.database().keep_house().await.unwrap();
    let client = replicas.schema.connect().await;
    assert_eq!(client.query("select from tally", &[]).await.unwrap().len(), 0);
    let counts = store.counts().await.unwrap().remove(0);
    assert_eq!(counts.by_state[State::FAILED.number() as usize - 1], 25_000);
}

#[tokio::test]
async fn a_replica_hears_of_what_another_commits() {
    let replicas = Replicas::new().await;
    let [a, b] = replicas.pair().await;
    let (mut due, mut head) = (b.signals().due.subscribe(), b.signals().head.subscribe());
    submit(&a, [job("a")]).await;
    tokio::time::timeout(secs(4), due.changed()).await.expect("a hint that jobs are due").unwrap();
    let leased = a.claim(NOW, World::wish(1)).await.unwrap();
    a.settle(NOW, leased.iter().map(success).collect()).await.unwrap();
    tokio::time::timeout(secs(4), head.changed()).await.expect("a hint of the feed").unwrap();
    assert_eq!(*head.borrow(), *a.signals().head.borrow());
}

pub async fn remove(store: &PostgresStore, name: &str) -> Position {
    submit(store, [job(name)]).await;
    let job_id: JobId = name.parse().unwrap();
    let cancel = Cancel { job_id: job_id.clone(), reason: String::new(), etag: None };
    store.cancel(NOW, vec![cancel]).await.unwrap().remove(0).unwrap();
    let delete = Delete { job_id, etag: None, allow_missing: false };
    store.delete(NOW, vec![delete]).await.unwrap().remove(0).unwrap()
}

/// Skips that something may have been missed before.
pub async fn hear_of_deletion(
    deleted: &mut broadcast::Receiver<Option<(JobId, Position)>>,
) -> (JobId, Position) {
    let told = async {
        loop {
            if let Some(told) = deleted.recv().await.unwrap() {
                return told;
            }
        }
    };
    tokio::time::timeout(secs(4), told).await.expect("a deletion")
}

#[tokio::test]
async fn what_was_deleted_is_told_before_a_replica_ends() {
    let replicas = Replicas::new().await;
    let [a, b] = replicas.pair().await;
    let mut deleted = b.signals().deleted.subscribe();
    for name in ["first", "last"] {
        let at = remove(&a, name).await;
        if name == "last" {
            a.close().await;
        }
        assert_eq!(hear_of_deletion(&mut deleted).await, (name.parse().unwrap(), at));
    }
}

/// It may have been killed before it could tell what it had deleted.
#[tokio::test]
async fn a_replica_that_begins_lets_others_ask_the_store() {
    let replicas = Replicas::new().await;
    let a = replicas.open().await;
    let mut deleted = a.signals().deleted.subscribe();
    remove(&a, "a").await;
    hear_of_deletion(&mut deleted).await;
    let _b = replicas.open().await;
    let told = tokio::time::timeout(secs(4), deleted.recv()).await;
    assert_eq!(told.expect("it is told"), Ok(None));
}

/// It does not know whether the database was away, and others are about to let their leases outlast that.
#[tokio::test]
async fn a_replica_that_has_just_begun_leaves_the_leases_of_others_to_them() {
    let replicas = Replicas::new().await;
    let a = replicas.open().await;
    submit(&a, [job("a")]).await;
    let leased =
        a.claim(NOW, Claim { worker: "w".parse().unwrap(), ..World::wish(1) }).await.unwrap().remove(0);
    let late = NOW.after(secs(60));
    let b = PostgresStore::open(replicas.schema.url(), replicas.config.clone(), late).await.unwrap();
    let next = b.tick(late).await.unwrap();
    assert_eq!((next.revoked, next.next), (vec![], None));
    let next = b.tick(late.after(secs(60))).await.unwrap();
    assert_eq!(next.revoked, [leased.lease]);
}

#[tokio::test]
async fn connections_that_were_cut_are_made_again() {
    let replicas = Replicas::new().await;
    let [a, b] = replicas.pair().await;
    submit(&a, [job("before")]).await;
    replicas.schema.cut().await;
    let again = async |store: &PostgresStore, name: &str| {
        for _ in 0..100 {
            match store.submit(NOW, vec![vec![job(name).into()]]).await {
                Ok(replies) => return replies,
                Err(error) => assert!(matches!(error, Error::StoreUnavailable(_)), "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("it does not come back");
    };
    assert!(again(&a, "after").await[0].is_ok());
    assert!(b.signals().failed.borrow().is_none());
    // Hints too.
    let mut due = b.signals().due.subscribe();
    for n in 0.. {
        again(&a, &format!("more-{n}")).await[0].as_ref().unwrap();
        if tokio::time::timeout(Duration::from_millis(200), due.changed()).await.is_ok() {
            break;
        }
        assert!(n < 100, "no hint any more");
    }
    // And the sign of life: nobody takes it for gone.
    refresh(&b).await;
    let leased = b.claim(NOW, World::wish(1)).await.unwrap().remove(0);
    replicas.schema.wait_for_locks(2).await;
    let c = replicas.open().await;
    let (jobs, _) = c.get(vec![leased.job.id.clone()], View::Basic).await.unwrap();
    assert_eq!(jobs[0].as_ref().unwrap().state, State::RUNNING);
}

#[tokio::test]
async fn only_what_a_dead_process_was_running_is_spent() {
    let replicas = Replicas::new().await;
    let [a, b] = replicas.pair().await;
    submit(&a, [job("of-a"), job("of-b"), job("of-w")]).await;
    a.claim(NOW, World::wish(1)).await.unwrap();
    refresh(&b).await;
    b.claim(NOW, World::wish(1)).await.unwrap();
    let theirs = Claim { worker: "w1".parse().unwrap(), ..World::wish(1) };
    b.claim(NOW, theirs).await.unwrap();
    drop(b);
    replicas.schema.wait_for_locks(1).await;
    let c = replicas.open().await;
    let ids = ["of-a", "of-b", "of-w"].map(|id| id.parse().unwrap()).to_vec();
    let (jobs, _) = c.get(ids, View::Result).await.unwrap();
    let states: Vec<_> = jobs.iter().flatten().map(|job| job.state).collect();
    assert_eq!(states, [State::RUNNING, State::BACKING_OFF, State::RUNNING]);
    assert_eq!(jobs[1].as_ref().unwrap().error.as_ref().unwrap().cause, Cause::Crash);
}

#[tokio::test]
async fn a_process_whose_connections_are_cut_is_not_gone() {
    let replicas = Replicas::new().await;
    let a = replicas.open().await;
    submit(&a, [job("a")]).await;
    a.claim(NOW, World::wish(1)).await.unwrap();
    let client = replicas.schema.connect().await;
    let replica = a.database().replica;
    let cut = async {
        let holder = "select pg_terminate_backend(pid) from pg_locks \
             where locktype = 'advisory' and classid = 'replica'::regclass::oid and objid = $1::int8::oid";
        for _ in 0..50 {
            client.query(holder, &[&replica]).await.unwrap();
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let (b, ()) = tokio::join!(replicas.open(), cut);
    let (jobs, _) = b.get(vec!["a".parse().unwrap()], View::Basic).await.unwrap();
    assert_eq!(jobs[0].as_ref().unwrap().state, State::RUNNING);
}
