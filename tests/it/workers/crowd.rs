//! A thousand workers at once.

use std::collections::BTreeMap;

use futures_util::future::join_all;
use jobwire::proto::{BatchSubmitRequest, job::State};

use super::{Worker, hello, task, workers};
use crate::{calls::result, support::Server};

const WORKERS: usize = 1000;

/// A connection carries 200 streams.
const CONNECTIONS: usize = 10;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_workers_each_get_their_share() {
    let server = Server::start();
    let client = server.client().await;
    let mut crowd = Vec::new();
    for connection in 0..CONNECTIONS {
        let calls = workers(&server).await;
        let connecting = (0..WORKERS / CONNECTIONS)
            .map(|n| Worker::over(calls.clone(), hello(&format!("w-{connection}-{n}"), 2)));
        crowd.extend(join_all(connecting).await);
    }
    // All claims wait: one job for each worker, and another one once that is done.
    join_all(crowd.iter_mut().map(|worker| worker.beat(&[]))).await;
    let mut ids = Vec::new();
    for _ in 0..2 {
        let requests = (0..WORKERS).map(|_| task("1")).collect();
        let reply = client.clone().batch_submit(BatchSubmitRequest { requests }).await.unwrap().into_inner();
        ids.extend(reply.responses.into_iter().map(|response| response.job.unwrap().job_id));
        join_all(crowd.iter_mut().map(async |worker| {
            let lease = worker.lease().await;
            worker.succeed(&lease).await;
        }))
        .await;
    }
    assert!(crowd.iter().all(|worker| worker.unasked() == 0));
    let mut by_worker = BTreeMap::<String, usize>::new();
    for id in ids {
        let job = result(&client, &id).await;
        assert_eq!((job.state(), job.attempt), (State::Succeeded, 1));
        *by_worker.entry(job.worker_id).or_default() += 1;
    }
    assert_eq!(by_worker.len(), WORKERS);
    assert!(by_worker.values().all(|&jobs| jobs == 2), "{by_worker:?}");
}
