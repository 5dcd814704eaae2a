//! Jobs that are leased as they are accepted.

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use super::{
    replicas::{NOW, Replicas, submit, success},
    *,
};
use crate::store::{
    Claim, Handover, Leased,
    suite::{World, job, secs},
};

/// A claim that waits on.
pub struct Pool {
    end: CancellationToken,
    handed: mpsc::UnboundedReceiver<Handover>,
    held: Vec<OwnedSemaphorePermit>,
}

impl Pool {
    pub fn start(store: &Arc<PostgresStore>, room: usize) -> Self {
        let (handover, handed) = mpsc::unbounded_channel();
        let end = CancellationToken::new();
        let slots = Arc::new(Semaphore::new(room));
        let wait = World::wait(slots, &end, Some(handover));
        let claim = Claim { wait: Some(wait), ..World::wish(room.max(100)) };
        let store = store.clone();
        tokio::spawn(async move { store.claim(NOW, claim).await });
        Self { end, handed, held: Vec::new() }
    }

    pub async fn next(&mut self) -> Vec<Leased> {
        let handed = tokio::time::timeout(secs(10), self.handed.recv()).await;
        let Handover { leased, slots } = handed.expect("jobs are handed over").expect("it waits");
        self.held.push(slots);
        leased
    }
}

fn names_of(leased: &[Leased]) -> Vec<&str> {
    leased.iter().map(|leased| leased.job.id.as_str()).collect()
}

/// Lets no job stand in line any more.
const NO_LINE: &str =
    "create function refuse() returns trigger language plpgsql as $$ begin raise 'in line'; end $$;
    create trigger refuse before insert on ready for each row execute function refuse()";

#[tokio::test]
async fn a_job_that_is_waited_for_never_stands_in_line() {
    let replicas = Replicas::new().await;
    let store = replicas.open().await;
    let mut pool = Pool::start(&store, 5);
    submit(&store, [job("first")]).await;
    assert_eq!(names_of(&pool.next().await), ["first"]);
    tokio::time::sleep(secs(1) / 20).await;
    replicas.schema.execute(NO_LINE).await;
    submit(&store, [job("a"), job("b").priority(1), job("later").delay(secs(60))]).await;
    let leased = pool.next().await;
    assert_eq!(names_of(&leased), ["b", "a"]);
    submit(&store, [job("c")]).await;
    let more = pool.next().await;
    assert_eq!(names_of(&more), ["c"]);
    let settled = store.settle(NOW, leased.iter().chain(&more).map(success).collect()).await.unwrap();
    assert!(settled.iter().all(Result::is_ok), "{settled:?}");
    pool.end.cancel();
    assert!(pool.handed.recv().await.is_none());
}

#[tokio::test]
async fn what_was_leased_unheard_goes_back_uncounted() {
    let replicas = Replicas::new().await;
    let store = replicas.open().await;
    let mut pool = Pool::start(&store, 3);
    submit(&store, [job("first")]).await;
    pool.next().await;
    tokio::time::sleep(secs(1) / 20).await;
    submit(&store, [job("a").max_attempts(1), job("b")]).await;
    let leased = pool.next().await;
    // As if the answer had been lost. Another statement has come to nothing; the second job has gone on since.
    let client = replicas.schema.connect().await;
    let claim = "select claim from seat join accepted using (num) where id = 'a'";
    let claim: i64 = client.query_one(claim, &[]).await.unwrap().get(0);
    for claim in [claim, !claim] {
        store.database().common.unheard.expect(claim, NOW.after(World::wish(1).lease));
    }
    store.settle(NOW, vec![success(&leased[1])]).await.unwrap();
    store.database().give_back_unheard(NOW).await.unwrap();
    pool.held.clear();
    let again = pool.next().await;
    assert_eq!(names_of(&again), ["a"]);
    assert_eq!((again[0].job.attempt, again[0].job.version), (1, 4));
    assert_ne!(again[0].lease.fence, leased[0].lease.fence);
    store.database().give_back_unheard(NOW).await.unwrap();
    assert!(store.settle(NOW, vec![success(&again[0])]).await.unwrap()[0].is_ok());
}

#[tokio::test]
async fn a_claim_that_waits_for_long_knows_what_time_it_is() {
    let replicas = Replicas::new().await;
    let store = replicas.open().await;
    let mut pool = Pool::start(&store, 9);
    submit(&store, [job("first")]).await;
    pool.next().await;
    // An hour that the machine slept through.
    let later = NOW.after(secs(3600));
    store.tick(later).await.unwrap();
    for id in ["looked-for", "fresh"] {
        let queue = if id == "fresh" { "default" } else { "new" };
        store.submit(later, vec![vec![job(id).queue(queue).into()]]).await.unwrap().remove(0).unwrap();
        let leased = pool.next().await;
        assert_eq!((names_of(&leased), leased[0].job.start_time), (vec![id], Some(later)));
        tokio::time::sleep(secs(1) / 20).await;
    }
}

#[tokio::test]
async fn what_nobody_is_there_to_take_goes_back_uncounted() {
    let replicas = Replicas::new().await;
    let store = replicas.open().await;
    for id in ["looked-for", "fresh"] {
        let mut pool = Pool::start(&store, 9);
        submit(&store, [job(&format!("before-{id}")).queue(id)]).await;
        pool.next().await;
        tokio::time::sleep(secs(1) / 20).await;
        drop(pool.handed);
        let queue = if id == "fresh" { "fresh" } else { "new" };
        submit(&store, [job(id).queue(queue)]).await;
        let back = async {
            loop {
                let leased = store.claim(NOW, World::wish(9)).await.unwrap();
                if !leased.is_empty() {
                    return leased;
                }
                tokio::time::sleep(secs(1) / 100).await;
            }
        };
        let leased = tokio::time::timeout(secs(10), back).await.expect("the job is there again");
        assert_eq!((names_of(&leased), leased[0].job.attempt), (vec![id], 1));
    }
}
