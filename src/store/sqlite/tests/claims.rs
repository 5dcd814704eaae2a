//! Claims that wait in the writer beside each other.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{Semaphore, mpsc},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::OPEN;
use crate::{
    job::WorkerId,
    store::{
        Claim, Handover,
        suite::{World, job},
    },
};

#[tokio::test]
async fn what_comes_one_by_one_is_for_all_in_turn() {
    let world = World::new(OPEN).await;
    let end = CancellationToken::new();
    let (handover, mut handed) = mpsc::unbounded_channel();
    let wait = |handover| World::wait(Semaphore::new(10).into(), &end, handover);
    let ask = |claim| {
        let (store, now) = (world.store(), world.now);
        tokio::spawn(async move { store.claim(now, claim).await.unwrap() })
    };
    let pool = ask(Claim { wait: Some(wait(Some(handover))), ..World::wish(10) });
    tokio::task::yield_now().await;
    let worker = WorkerId::of_program("worker", "far").unwrap();
    let far = ask(Claim { worker, wait: Some(wait(None)), ..World::wish(10) });
    tokio::task::yield_now().await;
    for name in ["a", "b"] {
        world.add(job(name)).await;
    }
    assert_eq!(handed.recv().await.unwrap().leased[0].job.id.as_str(), "a");
    assert_eq!(far.await.unwrap()[0].job.id.as_str(), "b");
    end.cancel();
    assert!(pool.await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn room_that_comes_while_jobs_are_leased_is_used() {
    const SLOTS: usize = 200;
    const JOBS: usize = 2000;
    let world = World::new(OPEN).await;
    world.group((0..JOBS).map(|n| job(&format!("job-{n}")))).await.unwrap();
    let (handover, mut handed) = mpsc::unbounded_channel();
    let (slots, end) = (Arc::new(Semaphore::new(SLOTS)), CancellationToken::new());
    let wait = Some(World::wait(slots, &end, Some(handover)));
    let (store, now) = (world.store(), world.now);
    let claim = tokio::spawn(async move { store.claim(now, Claim { wait, ..World::wish(SLOTS) }).await });
    let mut taken = 0;
    while taken < JOBS {
        // Nothing is written, and no tick looks after them.
        let next = timeout(Duration::from_secs(10), handed.recv()).await;
        let Handover { leased, mut slots } = next.expect("there is room").unwrap();
        taken += leased.len();
        while let Some(slot) = slots.split(1) {
            drop(slot);
            std::thread::sleep(Duration::from_micros(10));
        }
    }
    end.cancel();
    assert!(claim.await.unwrap().unwrap().is_empty());
}
