//! What a worker may take of the server.

use std::{fs, time::Duration};

use jobwire::proto::{LeaseJobsRequest, LeaseProgress, RenewLeasesRequest, WorkerHello};
use tokio::time::sleep;
use tonic::Code;

use super::{KIND, Worker, hello, task, workers};
use crate::{
    calls::{Refusal, place},
    support::{Server, seconds},
};

#[tokio::test]
async fn so_many_may_be_connected() {
    let server = Server::with("[workers]\nmax_connected = 2\n");
    let calls = workers(&server).await;
    let first = Worker::connect(&server, hello("w1", 1)).await;
    let _second = Worker::connect(&server, hello("w2", 1)).await;
    let refused = Worker::try_over(calls.clone(), hello("w3", 1)).await.err().expect("it is refused");
    let refused = Refusal::read(refused).is(Code::ResourceExhausted, "WATCH_LIMIT");
    assert_eq!((refused.metadata["limit"].as_str(), refused.quota()), ("2", "workers"));
    let ask = LeaseJobsRequest {
        worker_id: "w3".into(),
        kinds: vec![KIND.into()],
        wait: Some(seconds(1.0)),
        ..Default::default()
    };
    Refusal::of(calls.clone().lease_jobs(ask.clone()).await).is(Code::ResourceExhausted, "WATCH_LIMIT");
    first.close().await.expect("the end is orderly");
    assert!(calls.clone().lease_jobs(ask).await.expect("there is a place").into_inner().leases.is_empty());
}

#[tokio::test]
async fn a_window_is_no_larger_than_the_server_gives() {
    let server = Server::with("[workers]\nmax_in_flight = 2\n");
    let client = server.client().await;
    for n in 0..4 {
        place(&client, task(&n.to_string())).await;
    }
    let mut worker = Worker::connect(&server, hello("w1", i32::MAX)).await;
    let held = [worker.lease().await, worker.lease().await];
    worker.resize(i32::MAX).await;
    sleep(Duration::from_millis(300)).await;
    worker.beat(&held.each_ref()).await;
    assert_eq!(worker.unasked(), 0);
}

/// It waits for the answers to results, or its window was larger before.
#[tokio::test]
async fn a_worker_may_come_back_with_more_than_it_may_be_given() {
    let mut server = Server::start();
    let client = server.client().await;
    for n in 0..3 {
        place(&client, task(&n.to_string())).await;
    }
    let mut worker = Worker::connect(&server, hello("w1", 3)).await;
    let held = [worker.lease().await, worker.lease().await, worker.lease().await];
    worker.beat(&held.each_ref()).await;
    server.kill();
    let server = server.restart_with("[workers]\nmax_in_flight = 1\n");
    let names = held.map(|lease| lease.lease_id).to_vec();
    let worker = Worker::connect(&server, WorkerHello { held_lease_ids: names, ..hello("w1", 3) }).await;
    assert_eq!(worker.welcome.lost_lease_ids, [""; 0]);
    assert_eq!(worker.unasked(), 0);
    let many = WorkerHello { held_lease_ids: vec!["a".into(); 200_001], ..hello("w2", 1) };
    let refused = Worker::try_over(workers(&server).await, many).await.err().expect("it is refused");
    let refused = Refusal::read(refused).is(Code::InvalidArgument, "TOO_LARGE");
    assert_eq!(refused.field(), "hello.held_lease_ids");
}

#[tokio::test]
async fn progress_is_told_of_no_more_leases_than_are_given() {
    let server = Server::with("[workers]\nmax_in_flight = 2\n");
    let calls = workers(&server).await;
    let step = |n: usize| LeaseProgress { lease_id: format!("{n}").repeat(1000), progress: None };
    let renewal =
        |steps: usize| RenewLeasesRequest { progress: (0..steps).map(step).collect(), ..Default::default() };
    let lost = calls.clone().renew_leases(renewal(2)).await.expect("the call is fine").into_inner();
    assert_eq!(lost.lost_lease_ids, ["0".repeat(128), "1".repeat(128)]);
    let refused = Refusal::of(calls.clone().renew_leases(renewal(3)).await);
    assert_eq!(
        (refused.field(), refused.metadata["limit"].as_str(), refused.metadata["size"].as_str()),
        ("progress", "2", "3")
    );
    refused.is(Code::InvalidArgument, "TOO_LARGE");
}

/// Resident memory of the server, bytes.
fn memory(server: &Server) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", server.pid())).expect("the process is there");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a size");
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
    kib << 10
}

#[tokio::test]
async fn a_worker_that_does_not_read_holds_little() {
    let server = Server::start();
    let client = server.client().await;
    let text = format!("{:?}", "x".repeat(1 << 19));
    for _ in 0..100 {
        place(&client, task(&text)).await;
    }
    let before = memory(&server);
    // It never reads a lease, and has room for all of them: 50 MiB.
    let mut worker = Worker::connect(&server, hello("w1", 1000)).await;
    for _ in 0..20 {
        sleep(Duration::from_millis(100)).await;
    }
    let taken = memory(&server).saturating_sub(before);
    // On PostgreSQL a look at what is due and the buffers of its connection come to 20 MiB.
    assert!(taken < 32 << 20, "{taken} bytes");
    // Those that it reads in the end are all there.
    for _ in 0..100 {
        let lease = worker.lease().await;
        worker.succeed(&lease).await;
    }
}
