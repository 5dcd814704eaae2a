//! Workers that vanish, freeze, come back, or come too late: the job runs again, with one outcome and each attempt
//! counted once.

use std::{
    slice::from_ref,
    time::{Duration, Instant},
};

use jobwire::proto::{Job, Lease, WorkerHello, job::State, job_error::Cause, work_request::Message as Said};
use tokio::time::{sleep, timeout};
use tonic::Code;

use super::{SHORT, Worker, failed, hello, process::Process, proxy::Proxy, succeeded, task, workers};
use crate::{
    calls::{Refusal, eventually, get, place, reach, result},
    support::{PATIENCE, Server},
};

/// As in `SHORT`.
const LEASE: Duration = Duration::from_secs(2);

fn holding(worker_id: &str, window: i32, held: &[&Lease]) -> WorkerHello {
    let held_lease_ids = held.iter().map(|lease| lease.lease_id.clone()).collect();
    WorkerHello { held_lease_ids, ..hello(worker_id, window) }
}

/// The next lease of a worker that sends its heartbeats meanwhile.
async fn lease_of(worker: &mut Worker) -> Lease {
    let start = Instant::now();
    while worker.unasked() == 0 {
        assert!(start.elapsed() < PATIENCE, "no lease comes");
        sleep(Duration::from_millis(50)).await;
        worker.beat(&[]).await;
    }
    worker.lease().await
}

/// What became of a job after its first attempt was lost to an expired lease.
fn ran_twice(job: &Job) {
    assert_eq!((job.state(), job.attempt, job.run), (State::Succeeded, 2, 1), "{job:?}");
    assert_eq!(job.attempts.len(), 1, "{job:?}");
    assert_eq!(job.attempts[0].error.as_ref().unwrap().cause(), Cause::LeaseExpired);
}

#[tokio::test]
async fn a_killed_worker_costs_one_attempt() {
    let server = Server::with(SHORT);
    let client = server.client().await;
    let id = place(&client, task("1")).await;
    let process = Process::start(&server).await;
    process.signal("KILL");
    let killed = Instant::now();
    let mut other = Worker::connect(&server, hello("w2", 1)).await;
    let lease = lease_of(&mut other).await;
    assert!(killed.elapsed() < LEASE * 2, "{:?}", killed.elapsed());
    assert_eq!(lease.job.as_ref().unwrap().attempt, 2);
    other.succeed(&lease).await;
    ran_twice(&get(&client, &id).await);
}

#[tokio::test]
async fn a_frozen_worker_costs_one_attempt_and_overwrites_nothing() {
    let server = Server::with(SHORT);
    let client = server.client().await;
    let id = place(&client, task("1")).await;
    let mut process = Process::start(&server).await;
    process.signal("STOP");
    let frozen = Instant::now();
    let mut other = Worker::connect(&server, hello("w2", 1)).await;
    let lease = lease_of(&mut other).await;
    assert!(frozen.elapsed() < LEASE * 2, "{:?}", frozen.elapsed());
    other.succeed(&lease).await;
    process.signal("CONT");
    // It finds its stream gone, or its lease.
    eventually(async || process.has_ended().then_some(())).await;
    ran_twice(&get(&client, &id).await);
}

#[tokio::test]
async fn a_frozen_worker_takes_no_more_jobs_away() {
    let server = Server::with(SHORT);
    let client = server.client().await;
    let mut frozen = Worker::connect(&server, hello("w1", 100)).await;
    sleep(Duration::from_secs(1)).await;
    let id = place(&client, task("1")).await;
    let mut other = Worker::connect(&server, hello("w2", 1)).await;
    let lease = lease_of(&mut other).await;
    assert_eq!((&lease.job.as_ref().unwrap().job_id, lease.job.as_ref().unwrap().attempt), (&id, 1));
    other.succeed(&lease).await;
    let end = frozen.receive().await.expect_err("nothing else was said");
    Refusal::read(end).is(Code::Unavailable, "STREAM_ROTATED");
}

#[tokio::test]
async fn what_the_server_says_is_lost() {
    let server = Server::with(SHORT);
    let client = server.client().await;
    let proxy = Proxy::before(&server).await;
    let mut worker = Worker::over(proxy.workers().await, hello("w1", 1)).await;
    let first = place(&client, task("1")).await;
    let lease = lease_of(&mut worker).await;
    worker.succeed(&lease).await;
    proxy.cut_to_worker();
    // Leased, and lost on the way.
    let id = place(&client, task("2")).await;
    reach(&client, &id, State::Running).await;
    assert!(timeout(Duration::from_millis(300), worker.lease()).await.is_err());
    // Its heartbeats get through, but name nothing: once it comes by another way, what was lost is found.
    drop(worker);
    let mut worker = Worker::connect(&server, hello("w1", 1)).await;
    let again = lease_of(&mut worker).await;
    assert_eq!((&again.job.as_ref().unwrap().job_id, again.job.as_ref().unwrap().attempt), (&id, 1));
    worker.succeed(&again).await;
    for id in [first, id] {
        let job = result(&client, &id).await;
        assert_eq!((job.state(), job.attempt, job.attempts.len()), (State::Succeeded, 1, 0));
    }
}

#[tokio::test]
async fn what_the_worker_says_is_lost() {
    let server = Server::with(SHORT);
    let client = server.client().await;
    let proxy = Proxy::before(&server).await;
    let mut worker = Worker::over(proxy.workers().await, hello("w1", 1)).await;
    let id = place(&client, task("1")).await;
    let lease = lease_of(&mut worker).await;
    worker.beat(&[&lease]).await;
    proxy.cut_to_server();
    worker.say(Said::Finish(succeeded(&lease, "\"from beyond\""))).await;
    let cut = Instant::now();
    let mut other = Worker::connect(&server, hello("w2", 1)).await;
    let next = lease_of(&mut other).await;
    assert!(cut.elapsed() < LEASE * 2, "{:?}", cut.elapsed());
    // The first comes back by another way, too late.
    let mut late = Worker::connect(&server, holding("w1", 0, &[&lease])).await;
    assert_eq!(late.welcome.lost_lease_ids, from_ref(&lease.lease_id));
    let ack = late.finish(succeeded(&lease, "\"from beyond\"")).await;
    assert_eq!(ack.rejection.unwrap().reason, "LEASE_LOST");
    assert_eq!(get(&client, &id).await.state(), State::Running);
    other.succeed(&next).await;
    ran_twice(&get(&client, &id).await);
}

#[tokio::test]
async fn a_worker_that_reconnects_in_time_goes_on() {
    let server = Server::with(SHORT);
    let client = server.client().await;
    let mut worker = Worker::connect(&server, hello("w1", 1)).await;
    let id = place(&client, task("1")).await;
    let lease = lease_of(&mut worker).await;
    for _ in 0..3 {
        drop(worker);
        sleep(LEASE / 4).await;
        worker = Worker::connect(&server, holding("w1", 1, &[&lease])).await;
        assert_eq!(worker.welcome.lost_lease_ids, [""; 0]);
        // It takes its place in the window.
        worker.beat(&[&lease]).await;
    }
    place(&client, task("2")).await;
    sleep(Duration::from_millis(300)).await;
    worker.beat(&[&lease]).await;
    assert_eq!(worker.unasked(), 0);
    worker.succeed(&lease).await;
    let job = result(&client, &id).await;
    assert_eq!((job.state(), job.attempt, job.attempts.len()), (State::Succeeded, 1, 0));
    lease_of(&mut worker).await;
}

#[tokio::test]
async fn a_new_stream_takes_over_while_the_old_one_is_still_there() {
    let server = Server::start();
    let client = server.client().await;
    let mut old = Worker::connect(&server, hello("w1", 1)).await;
    place(&client, task("1")).await;
    let lease = old.lease().await;
    let mut new = Worker::connect(&server, holding("w1", 1, &[&lease])).await;
    // The window of the old one is free again; nobody told it to stop what goes on.
    let id = place(&client, task("2")).await;
    assert_eq!(old.lease().await.job.unwrap().job_id, id);
    old.close().await.expect("the end is orderly");
    new.succeed(&lease).await;
}

#[tokio::test]
async fn what_a_worker_never_got_goes_back_when_it_reconnects() {
    // The lease would live for 30 s.
    let server = Server::start();
    let client = server.client().await;
    let mut worker = Worker::connect(&server, hello("w1", 2)).await;
    for n in 0..2 {
        place(&client, task(&n.to_string())).await;
    }
    let (kept, lost) = (worker.lease().await, worker.lease().await);
    drop(worker);
    // Whether the server has seen the end of the stream before or not.
    let mut worker = Worker::connect(&server, holding("w1", 2, &[&kept])).await;
    let again = worker.lease().await;
    let (job, before) = (again.job.as_ref().unwrap(), lost.job.as_ref().unwrap());
    assert_eq!((&job.job_id, job.attempt), (&before.job_id, 1));
    let ack = worker.finish(succeeded(&lost, "0")).await;
    assert_eq!(ack.rejection.unwrap().reason, "LEASE_LOST");
    worker.succeed(&kept).await;
    worker.succeed(&again).await;
    // Also with the same result: another lease has it.
    let ack = worker.finish(succeeded(&lost, "1")).await;
    assert_eq!(ack.rejection.unwrap().reason, "LEASE_LOST");
}

#[tokio::test]
async fn what_is_left_on_an_old_stream_goes_back_when_that_ends() {
    let server = Server::start();
    let client = server.client().await;
    let mut old = Worker::connect(&server, hello("w1", 1)).await;
    place(&client, task("1")).await;
    let lost = old.lease().await;
    let mut new = Worker::connect(&server, hello("w1", 1)).await;
    old.close().await.expect("the end is orderly");
    let again = new.lease().await;
    assert_eq!(again.job.as_ref().unwrap().attempt, 1);
    assert_ne!(again.lease_id, lost.lease_id);
}

#[tokio::test]
async fn what_was_never_confirmed_does_not_count() {
    let server = Server::with(SHORT);
    let client = server.client().await;
    let mut silent = Worker::connect(&server, hello("w1", 1)).await;
    let id = place(&client, task("1")).await;
    let lost = silent.lease().await;
    let mut other = Worker::connect(&server, hello("w2", 1)).await;
    let lease = lease_of(&mut other).await;
    assert_eq!(lease.job.as_ref().unwrap().attempt, 1);
    let mut late = Worker::connect(&server, hello("w1", 0)).await;
    let ack = late.finish(succeeded(&lost, "0")).await;
    assert_eq!(ack.rejection.unwrap().reason, "LEASE_LOST");
    other.succeed(&lease).await;
    let job = get(&client, &id).await;
    assert_eq!((job.state(), job.attempt, job.attempts.len()), (State::Succeeded, 1, 0));
}

#[tokio::test]
async fn a_late_success_counts_until_the_next_attempt() {
    let config = SHORT.replace("10ms", "5m");
    let server = Server::with(&config);
    let client = server.client().await;
    let mut worker = Worker::connect(&server, hello("w1", 1)).await;
    let (id, other) = (place(&client, task("1")).await, task("2"));
    let lease = lease_of(&mut worker).await;
    worker.beat(&[&lease]).await;
    drop(worker);
    reach(&client, &id, State::BackingOff).await;
    let mut worker = Worker::connect(&server, holding("w1", 0, &[&lease])).await;
    assert_eq!(worker.welcome.lost_lease_ids, from_ref(&lease.lease_id));
    let ack = worker.finish(failed(&lease, "busy")).await;
    assert_eq!(ack.rejection.unwrap().reason, "LEASE_LOST", "the attempt is spent already");
    worker.succeed(&lease).await;
    let job = get(&client, &id).await;
    assert_eq!((job.state(), job.attempt, job.attempts.len()), (State::Succeeded, 1, 1));
    place(&client, other).await;
}

#[tokio::test]
async fn a_call_in_time_is_as_good_as_a_stream() {
    let server = Server::with(SHORT);
    let client = server.client().await;
    let mut worker = Worker::connect(&server, hello("w1", 1)).await;
    let id = place(&client, task("1")).await;
    let lease = lease_of(&mut worker).await;
    drop(worker);
    let mut calls = workers(&server).await;
    for _ in 0..6 {
        let request = jobwire::proto::RenewLeasesRequest {
            lease_ids: vec![lease.lease_id.clone()],
            ..Default::default()
        };
        let renewed = calls.renew_leases(request).await.unwrap().into_inner();
        assert_eq!(renewed.lost_lease_ids, [""; 0]);
        sleep(LEASE / 4).await;
    }
    assert_eq!(get(&client, &id).await.state(), State::Running);
}
