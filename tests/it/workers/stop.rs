//! The server goes, and comes back.

use jobwire::proto::{WorkerHello, job::State};
use tonic::Code;

use super::{Worker, finish, hello, succeeded, task, workers};
use crate::{
    calls::{Refusal, eventually, get, place, result},
    support::Server,
};

#[tokio::test]
async fn a_worker_is_told_of_a_stop_and_may_finish() {
    let mut server = Server::start();
    let client = server.client().await;
    let (mut busy, mut idle) =
        (Worker::connect(&server, hello("busy", 1)).await, Worker::connect(&server, hello("idle", 0)).await);
    let id = place(&client, task("1")).await;
    let lease = busy.lease().await;
    let calls = workers(&server).await;
    server.signal("TERM");
    idle.drain().await;
    let end = idle.receive().await.expect_err("nothing is held");
    Refusal::read(end).is(Code::Unavailable, "DRAINING");
    busy.drain().await;
    let late = Worker::try_over(calls, hello("late", 1)).await.err().expect("it is refused");
    Refusal::read(late).is(Code::Unavailable, "DRAINING");
    busy.succeed(&lease).await;
    Refusal::read(busy.receive().await.expect_err("it is done")).is(Code::Unavailable, "DRAINING");
    assert_eq!(server.ended().await.code(), Some(0));
    let server = server.restart();
    assert_eq!(get(&server.client().await, &id).await.state(), State::Succeeded);
}

#[tokio::test]
async fn a_worker_is_sent_to_another_stream_when_its_connection_is_old() {
    let server = Server::with("[http2]\nmax_connection_age = \"500ms\"\nconnection_grace = \"20s\"\n");
    let mut old = Worker::connect(&server, hello("w1", 1)).await;
    let client = server.client().await;
    place(&client, task("1")).await;
    let lease = old.lease().await;
    old.drain().await;
    let hello = WorkerHello { held_lease_ids: vec![lease.lease_id.clone()], ..hello("w1", 1) };
    let mut new = Worker::connect(&server, hello).await;
    assert_eq!(new.welcome.lost_lease_ids, [""; 0]);
    // Nothing is held by the old one any more.
    Refusal::read(old.receive().await.expect_err("it is over")).is(Code::Unavailable, "STREAM_ROTATED");
    new.succeed(&lease).await;
}

#[tokio::test]
async fn a_worker_goes_on_after_a_restart() {
    for kill in [true, false] {
        let mut server = Server::with("drain_timeout = \"100ms\"\n");
        let client = server.client().await;
        let mut worker = Worker::connect(&server, hello("w1", 2)).await;
        let (held, sent) = (place(&client, task("1")).await, place(&client, task("2")).await);
        let (lease, other) = (worker.lease().await, worker.lease().await);
        worker.beat(&[&lease, &other]).await;
        if kill {
            server.kill();
        } else {
            server.signal("TERM");
            assert_eq!(server.ended().await.code(), Some(0));
        }
        let mut server = server.restart();
        let client = server.client().await;
        assert_eq!(get(&client, &held).await.state(), State::Running);
        let hello = WorkerHello { held_lease_ids: vec![lease.lease_id.clone()], ..hello("w1", 2) };
        let mut worker = Worker::connect(&server, hello).await;
        assert_eq!(worker.welcome.lost_lease_ids, [""; 0]);
        client
            .clone()
            .cancel_job(jobwire::proto::CancelJobRequest { job_id: sent.clone(), ..Default::default() })
            .await
            .expect("it is cancelled");
        worker.succeed(&lease).await;
        // Sent without a hello that names it: the lease is what counts. It is heard of now, and so is its cancel.
        let ack = worker.finish(finish(&other.lease_id, succeeded(&other, "1").outcome.unwrap())).await;
        assert!(ack.accepted, "{ack:?}");
        // Its answer may have been lost with the next server.
        server.kill();
        let server = server.restart();
        let mut worker = Worker::connect(&server, super::hello("w1", 2)).await;
        worker.succeed(&lease).await;
        let client = server.client().await;
        let done = result(&client, &held).await;
        assert_eq!((done.state(), done.attempt, done.attempts.len()), (State::Succeeded, 1, 0));
    }
}

#[tokio::test]
async fn a_cancel_of_before_the_restart_is_told_after_it() {
    let mut server = Server::start();
    let client = server.client().await;
    let mut worker = Worker::connect(&server, hello("w1", 1)).await;
    let id = place(&client, task("1")).await;
    let lease = worker.lease().await;
    client
        .clone()
        .cancel_job(jobwire::proto::CancelJobRequest { job_id: id.clone(), ..Default::default() })
        .await
        .expect("it is cancelled");
    server.kill();
    let server = server.restart();
    let hello = WorkerHello { held_lease_ids: vec![lease.lease_id.clone()], ..hello("w1", 1) };
    let mut worker = Worker::connect(&server, hello).await;
    assert_eq!(worker.revoked().await.lease_id, lease.lease_id);
    let client = server.client().await;
    worker.finish(super::failed(&lease, "stopped")).await;
    eventually(async || (get(&client, &id).await.state() == State::Cancelled).then_some(())).await;
}
