//! The pool in the server and workers beyond it want the same jobs.

use jobwire::proto::{BatchSubmitRequest, job::State};

use super::{Worker, hello};
use crate::{
    calls::result,
    support::{Server, submit},
};

#[tokio::test]
async fn the_pool_and_workers_share_the_same_kind() {
    let server = Server::start();
    let client = server.client().await;
    let mut hello = hello("w1", 100);
    hello.kinds = vec!["sleep".into()];
    let mut workers =
        [Worker::connect(&server, hello.clone()).await, Worker::connect(&server, hello.clone()).await];
    for worker in &mut workers {
        worker.beat(&[]).await;
    }
    // Their claims wait by now; one commit brings work for all.
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    let requests = (0..30).map(|_| submit("sleep", r#"{"duration":"1ms"}"#)).collect();
    let reply = client.clone().batch_submit(BatchSubmitRequest { requests }).await.unwrap().into_inner();
    for worker in &mut workers {
        for _ in 0..10 {
            let lease = worker.lease().await;
            worker.succeed(&lease).await;
        }
        worker.beat(&[]).await;
        assert_eq!(worker.unasked(), 0);
    }
    let mut by_pool = 0;
    for response in reply.responses {
        let job = result(&client, &response.job.unwrap().job_id).await;
        assert_eq!((job.state(), job.attempt), (State::Succeeded, 1));
        by_pool += usize::from(job.worker_id.starts_with("server-"));
    }
    assert_eq!(by_pool, 10);
}
