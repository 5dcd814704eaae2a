//! Many watchers at once, slow ones and dead ones: each gets the whole feed at its own pace, nobody waits for another,
//! and the server's memory stays bounded.

use std::{collections::BTreeSet, fs};

use futures_util::future::join_all;
use jobwire::proto::{
    BatchSubmitRequest, WatchResultsRequest, watch_results_request::Start, watch_results_response::Event,
};

use crate::{
    calls::{Refusal, Watch, eventually, finish},
    support::{Client, Server, submit},
    watch::after,
};

const MIB: u64 = 1 << 20;

/// The most memory that the server has taken so far, bytes.
fn peak_memory(server: &Server) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", server.pid())).expect("the process is there");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
    kib << 10
}

/// Outcomes of this many jobs in one go: their ids.
async fn batch(client: &Client, count: usize) -> Vec<String> {
    let requests = (0..count).map(|_| submit("echo", "1")).collect();
    let reply =
        client.clone().batch_submit(BatchSubmitRequest { requests }).await.expect("accepted").into_inner();
    reply.responses.into_iter().map(|response| response.job.expect("a job").job_id).collect()
}

fn everything() -> WatchResultsRequest {
    WatchResultsRequest { start: Some(Start::Earliest(true)), ..Default::default() }
}

/// The next outcomes. Whoever took too long comes back with the cursor.
async fn follow(server: &Server, watch: &mut Watch, count: usize) -> Vec<String> {
    let mut ids = Vec::new();
    while ids.len() < count {
        match watch.next().await {
            Ok(Some(Event::Finished(job))) => ids.push(job.job_id),
            Ok(Some(_)) => {}
            Ok(None) => panic!("it ended with OK"),
            Err(status) => {
                assert_eq!(Refusal::read(status).reason, "WATCH_STALLED");
                *watch = begin(&server.client().await, after(&watch.cursor)).await;
            }
        }
    }
    ids
}

/// Watches once there is a place.
async fn begin(client: &Client, request: WatchResultsRequest) -> Watch {
    eventually(async || client.clone().watch_results(request.clone()).await.ok().map(Watch::of)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_watchers_see_the_whole_feed_each() {
    const JOBS: usize = 60;
    let server = Server::start();
    let client = server.client().await;
    finish(&client, submit("echo", "1")).await;
    let before = peak_memory(&server);
    let mut watches = Vec::new();
    for _ in 0..10 {
        let client = server.client().await;
        for _ in 0..100 {
            let mut watch = Watch::open(&client, WatchResultsRequest::default()).await;
            watch.checkpoint().await;
            watches.push(watch);
        }
    }
    let ids: BTreeSet<_> = batch(&client, JOBS).await.into_iter().collect();
    let told = join_all(watches.iter_mut().map(|watch| follow(&server, watch, JOBS))).await;
    assert_eq!(told[0].iter().cloned().collect::<BTreeSet<_>>(), ids);
    assert!(told.iter().all(|others| *others == told[0]), "all in the same order");
    let grown = peak_memory(&server) - before;
    assert!(grown < 128 * MIB, "{} KiB for each watcher", (grown >> 10) / 1000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_dead_and_the_slow_hold_up_nobody() {
    const DEAD: usize = 100;
    const JOBS: usize = 200;
    let config = format!(
        "[watch]\nstall_timeout = \"1s\"\nmax_watchers = {}\nring_bytes = 1048576\nbuffer_bytes = 131072\n",
        DEAD + 2
    );
    let server = Server::with(&config);
    let client = server.client().await;
    let large = format!("\"{}\"", "x".repeat(60_000));
    finish(&client, submit("echo", &large)).await;
    let before = peak_memory(&server);
    // Each with a connection of its own: they share nothing but the server.
    let mut dead = Vec::new();
    for _ in 0..DEAD {
        dead.push(Watch::open(&server.client().await, everything()).await);
    }
    let mut slow = Watch::open(&server.client().await, everything()).await;
    let mut seen_slowly = follow(&server, &mut slow, 1).await;
    let mut quick = Watch::open(&server.client().await, everything()).await;
    let mut seen = follow(&server, &mut quick, 1).await;
    for _ in 0..JOBS {
        let id = finish(&client, submit("echo", &large)).await.job_id;
        seen.extend(follow(&server, &mut quick, 1).await);
        assert_eq!(seen.last(), Some(&id), "the quick one is never behind");
    }
    // The slow one has read nothing meanwhile.
    seen_slowly.extend(follow(&server, &mut slow, JOBS).await);
    assert_eq!(seen_slowly, seen);

    // The dead leave by themselves: their places are free again.
    let mut fresh = Vec::new();
    while fresh.len() < DEAD {
        fresh.push(begin(&client, WatchResultsRequest::default()).await);
    }
    let grown = peak_memory(&server) - before;
    // A page that was read, what waits to be sent, and what the connection holds.
    assert!(grown < 2 * MIB * DEAD as u64, "{} KiB for each dead watcher", (grown >> 10) / DEAD as u64);
    drop(dead);
}
