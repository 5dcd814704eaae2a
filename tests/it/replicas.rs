//! Several servers on one database, and those who go from one to the other.

use std::time::Duration;

use jobwire::proto::{Lease, SubmitRequest, WorkerHello, job::State};
use tokio::time::sleep;

use crate::{
    calls::{get, place, reach_when},
    postgres::schema,
    support::Server,
    workers::{SHORT, Worker, checkpoint, hello, task},
};

/// Its hello to another server, where it goes on with this.
fn hello_again(lease: &Lease) -> WorkerHello {
    WorkerHello { held_lease_ids: vec![lease.lease_id.clone()], ..hello("w1", 1) }
}

/// Two leases long, with a heartbeat now and then.
async fn goes_on_with(worker: &mut Worker, lease: &Lease) {
    for _ in 0..8 {
        sleep(Duration::from_millis(500)).await;
        let ack = worker.beat(&[lease]).await;
        assert!(ack.lost_lease_ids.is_empty(), "{ack:?}");
    }
}

/// The server that gave it never heard of it again, and would give it to somebody else.
#[tokio::test]
async fn a_lease_that_was_confirmed_elsewhere_is_not_given_back() {
    let url = schema();
    let (a, b) = (Server::on_database(&url, SHORT), Server::on_database(&url, SHORT));
    let client = b.client().await;
    let mut worker = Worker::connect(&a, hello("w1", 1)).await;
    let id = place(&client, task("1")).await;
    let lease = worker.lease().await;
    drop(worker);
    let mut worker = Worker::connect(&b, hello_again(&lease)).await;
    goes_on_with(&mut worker, &lease).await;
    worker.succeed(&lease).await;
    let job = get(&client, &id).await;
    assert_eq!((job.state(), job.attempt, job.attempts.len()), (State::Succeeded, 1, 0), "{job:?}");
}

/// The server that was told of progress stores it late, and knows nothing of the lease's new end.
#[tokio::test]
async fn progress_told_elsewhere_does_not_end_a_lease() {
    let url = schema();
    let (a, b) = (Server::on_database(&url, SHORT), Server::on_database(&url, SHORT));
    let (there, client) = (a.client().await, b.client().await);
    let mut worker = Worker::connect(&a, hello("w1", 1)).await;
    let id = place(&client, SubmitRequest { job_id: "a".into(), ..task("1") }).await;
    let lease = worker.lease().await;
    worker.beat(&[&lease]).await;
    worker.progress(&lease, checkpoint(0.5, None)).await;
    reach_when(&there, &id, |job| job.progress.is_some()).await;
    drop(worker);
    let mut worker = Worker::connect(&b, hello_again(&lease)).await;
    goes_on_with(&mut worker, &lease).await;
    assert_eq!(get(&client, &id).await.progress.expect("it is stored").fraction, 0.5);
    worker.succeed(&lease).await;
    let job = get(&client, &id).await;
    assert_eq!((job.state(), job.attempt, job.attempts.len()), (State::Succeeded, 1, 0), "{job:?}");
}
