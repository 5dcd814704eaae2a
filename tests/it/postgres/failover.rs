//! A primary that is killed, and a standby that takes its place: with all that was acknowledged, or without the end of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use jobwire::proto::{
    FinishJobRequest, GetJobRequest, Job, Lease, LeaseJobsRequest, SubmitRequest, WatchResultsRequest,
    gap::Reason, job::State, watch_results_request::OnGap, watch_results_response::Event,
};
use tokio::time::sleep;
use tonic::Code;

use super::{Cluster, application, connect, schema};
use crate::{
    calls::{Refusal, Watch, eventually, finish, get, place, result},
    support::{Client, Server, jobwire, seconds, submit},
    watch::after,
    workers::{KIND, SHORT, succeeded, task, workers},
};

const IDLE: &str = "[workers]\nconcurrency = 0\n";

fn echo(id: &str) -> SubmitRequest {
    SubmitRequest { job_id: id.into(), ..submit("echo", "1") }
}

/// Waits until a server can use the database again.
async fn recovered(client: &Client) {
    eventually(async || client.clone().submit(submit("echo", "1")).await.ok()).await;
}

/// What was acknowledged, and what was told of the end of jobs.
#[derive(Default)]
struct Ledger {
    accepted: Mutex<BTreeSet<String>>,
    ends: Mutex<BTreeMap<String, String>>,
    stopped: AtomicBool,
    /// Nothing more is accepted.
    complete: AtomicBool,
}

impl Ledger {
    fn ends(&self) -> usize {
        self.ends.lock().unwrap().len()
    }

    /// Submits one job after the other, waits for the ends of some, and takes no refusal for an answer.
    async fn load(self: Arc<Self>, name: usize, clients: [Client; 2]) {
        for n in 0.. {
            if self.stopped.load(Ordering::Relaxed) {
                return;
            }
            let id = format!("job-{name}-{n}");
            let wait = (n % 2 == 0).then(|| seconds(20.0));
            let request = SubmitRequest { request_id: id.clone(), wait, ..echo(&id) };
            let mut tries = 0;
            let reply = loop {
                tries += 1;
                assert!(tries < 1000, "no primary");
                match clients[tries % 2].clone().submit(request.clone()).await.map_err(unavailable) {
                    Ok(reply) => break reply.into_inner(),
                    Err(()) => sleep(Duration::from_millis(20)).await,
                }
            };
            self.accepted.lock().unwrap().insert(id.clone());
            if reply.done {
                self.ends.lock().unwrap().insert(id, words(&reply.job.expect("a job")));
            }
        }
    }

    /// Follows the feed until all have been told, and answers with them in their order.
    async fn watch(self: Arc<Self>, clients: [Client; 2], cursor: String) -> Vec<String> {
        let (mut told, mut cursor, mut tries) = (Vec::new(), cursor, 0);
        loop {
            tries += 1;
            let request = WatchResultsRequest { heartbeat_interval: Some(seconds(1.0)), ..after(&cursor) };
            let opened = clients[tries % 2].clone().watch_results(request).await.map_err(unavailable);
            let Ok(opened) = opened else {
                sleep(Duration::from_millis(20)).await;
                continue;
            };
            let mut watch = Watch::of(opened);
            loop {
                if self.complete.load(Ordering::Relaxed) {
                    let all = self.accepted.lock().unwrap();
                    if told.iter().filter(|id| all.contains(*id)).count() >= all.len() {
                        return told;
                    }
                }
                match watch.next().await.map_err(unavailable) {
                    Ok(Some(Event::Finished(job))) => told.push(job.job_id),
                    Ok(Some(Event::Gap(gap))) => panic!("nothing is lost: {gap:?}"),
                    Ok(Some(_)) => {}
                    Ok(None) | Err(()) => break,
                }
                cursor.clone_from(&watch.cursor);
            }
        }
    }
}

/// The one refusal that is fine while there is no primary.
fn unavailable(status: tonic::Status) {
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
}

fn words(job: &Job) -> String {
    format!("{:?} {} {} {:?} {:?}", job.state(), job.run, job.attempt, job.finish_time, job.output)
}

/// The same with a crash of the primary that starts again: that is no failover.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_acknowledged_outlives_the_primary() {
    for failover in [true, false] {
        let mut cluster = Cluster::start(&["--standby", "sync"]);
        let url = cluster.schema();
        // What was leased when the answer was cut off is run again soon.
        let servers = [Server::on_database(&url, SHORT), Server::on_database(&url, SHORT)];
        assert!(servers[0].log().contains("by a synchronous standby"), "{}", servers[0].log());
        let clients = [servers[0].client().await, servers[1].client().await];
        let mut start = Watch::open(&clients[0], WatchResultsRequest::default()).await;
        start.checkpoint().await;
        let ledger = Arc::<Ledger>::default();
        let load: Vec<_> = (0..6).map(|n| tokio::spawn(ledger.clone().load(n, clients.clone()))).collect();
        let watches: Vec<_> = (0..2)
            .map(|n| {
                let mut clients = clients.clone();
                clients.rotate_left(n);
                tokio::spawn(ledger.clone().watch(clients, start.cursor.clone()))
            })
            .collect();
        let reach = async |count: usize| {
            eventually(async || (ledger.ends() >= count).then_some(())).await;
        };
        reach(100).await;
        cluster.order("kill");
        cluster.order(if failover { "promote" } else { "start" });
        reach(ledger.ends() + 100).await;
        if !failover {
            cluster.order("restart");
            reach(ledger.ends() + 100).await;
        }
        ledger.stopped.store(true, Ordering::Relaxed);
        for task in load {
            task.await.unwrap();
        }
        ledger.complete.store(true, Ordering::Relaxed);

        let accepted = ledger.accepted.lock().unwrap().clone();
        let ends = ledger.ends.lock().unwrap().clone();
        for id in &accepted {
            let job = result(&clients[0], id).await;
            assert_eq!(job.state(), State::Succeeded, "{job:?}");
            assert!(ends.get(id).is_none_or(|end| *end == words(&job)), "{job:?} is not {:?}", ends[id]);
        }
        let mut orders = Vec::new();
        for watch in watches {
            let mut told = watch.await.unwrap();
            told.retain(|id| accepted.contains(id));
            assert_eq!(told.len(), accepted.len(), "once each");
            orders.push(told);
        }
        assert_eq!(orders[0], orders[1]);
        for server in &servers {
            let log = server.log();
            assert_eq!(log.contains("has failed over, with all outcomes"), failover, "{log}");
            assert!(!log.contains("lacks the end"), "{log}");
        }
    }
}

/// The next message but for the checkpoints.
async fn told(watch: &mut Watch) -> Event {
    loop {
        match watch.event().await {
            Event::Checkpoint(_) => {}
            other => return other,
        }
    }
}

async fn lease(server: &Server, worker_id: &str) -> Lease {
    let request = LeaseJobsRequest {
        worker_id: worker_id.into(),
        kinds: vec![KIND.into()],
        wait: Some(seconds(20.0)),
        ..Default::default()
    };
    let leased = workers(server).await.lease_jobs(request).await.expect("the call is fine").into_inner();
    leased.leases.into_iter().next().expect("a lease")
}

async fn finish_lease(server: &Server, lease: &Lease) -> Result<(), tonic::Status> {
    let request = FinishJobRequest { finish: Some(succeeded(lease, "1")) };
    workers(server).await.finish_job(request).await.map(drop)
}

/// A standby that was held back: what was acknowledged meanwhile is lost, and whoever has heard of it is told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_end_of_the_log_is_told() {
    let mut cluster = Cluster::start(&["--standby", "async"]);
    let url = cluster.schema();
    let config = "[workers]\nlease = \"2s\"\nheartbeat = \"500ms\"\n[watch]\nmax_events = 100\n";
    let (mut a, b) = (Server::on_database(&url, config), Server::on_database(&url, config));
    let (one, other) = (a.client().await, b.client().await);
    let mut early = Watch::open(&one, WatchResultsRequest::default()).await;
    early.checkpoint().await;
    for id in ["before-1", "before-2"] {
        finish(&one, echo(id)).await;
        early.finished().await;
    }
    let remote = place(&one, task("1")).await;
    cluster.order("pause");

    // Lost, and told: outcomes, a lease, a job in a line of its own.
    let mut late = Watch::open(&one, after(&early.cursor)).await;
    for id in ["lost-1", "lost-2", "lost-3"] {
        finish(&one, echo(id)).await;
        assert_eq!(late.finished().await.job_id, id);
    }
    let held = lease(&a, "first").await;
    let mut elsewhere = SubmitRequest { job_id: "elsewhere".into(), ..submit("none", "1") };
    elsewhere.spec.as_mut().unwrap().queue = "lost".into();
    place(&one, elsewhere.clone()).await;
    cluster.order("kill");
    cluster.order("promote");
    // The other one first: it begins the epoch.
    recovered(&other).await;
    recovered(&one).await;

    // Whoever had not heard of it goes on without a word, and is told no lost outcome, whatever is in memory.
    for (n, client) in [&one, &other].into_iter().enumerate() {
        finish(client, echo(&format!("after-{n}"))).await;
        let mut watch = Watch::open(client, after(&early.cursor)).await;
        let seen = eventually(async || {
            let job = watch.finished().await.job_id;
            assert!(!job.starts_with("lost"), "{job} is lost");
            (job == format!("after-{n}")).then_some(())
        });
        seen.await;
        let mut gone = client.clone();
        let lost = gone.get_job(GetJobRequest { job_id: "lost-1".into(), ..Default::default() }).await;
        Refusal::of(lost).is(Code::NotFound, "JOB_NOT_FOUND");
    }
    // Whoever had, is told: at both, and at one that knows nothing of it by itself.
    let continued = WatchResultsRequest { on_gap: OnGap::Continue.into(), ..after(&late.cursor) };
    for round in 0..2 {
        for client in [&a.client().await, &other] {
            let refused = Refusal::of(client.clone().watch_results(after(&late.cursor)).await);
            refused.is(Code::OutOfRange, "LOG_REPLACED").says(&["list again"]);
            let mut watch = Watch::open(client, continued.clone()).await;
            let Event::Gap(gap) = told(&mut watch).await else { panic!("no gap") };
            assert_eq!((gap.reason(), gap.missed_events), (Reason::LogReplaced, 0));
            // All that came after, from the first on, and the same place is good from then on.
            let mut seen = Vec::new();
            while !seen.contains(&"after-1".to_owned()) {
                seen.push(watch.finished().await.job_id);
            }
            assert!(seen.contains(&"after-0".to_owned()), "{seen:?}");
            let mut again = Watch::open(client, after(&watch.cursor)).await;
            assert!(again.replay().await.is_empty());
        }
        if round == 0 {
            a.signal("TERM");
            a.ended().await;
            a = a.restart();
        }
    }
    for server in [&a, &b] {
        let log = server.log();
        assert!(log.contains("lacks the end of its log"), "{log}");
    }

    // The lease is not known, and no other has its number.
    let one = a.client().await;
    let second = lease(&b, "second").await;
    assert_eq!(second.job.as_ref().unwrap().job_id, remote);
    Refusal::of(finish_lease(&a, &held).await).is(Code::FailedPrecondition, "LEASE_LOST");
    finish_lease(&b, &second).await.expect("it is held");
    assert_eq!(result(&one, &remote).await.worker_id, "second");
}

/// Lines that were made in the lost end are made anew; those that are known in memory are not trusted.
#[tokio::test]
async fn what_is_known_of_a_lost_line_is_forgotten() {
    let mut cluster = Cluster::start(&["--standby", "async"]);
    let url = cluster.schema();
    let (a, b) = (Server::on_database(&url, IDLE), Server::on_database(&url, IDLE));
    let (one, other) = (a.client().await, b.client().await);
    let of_queue = |id: &str, queue: &str| {
        let mut request = echo(id);
        request.spec.as_mut().unwrap().queue = queue.into();
        request
    };
    place(&one, of_queue("first", "first")).await;
    cluster.order("pause");
    place(&one, of_queue("lost", "lost")).await;
    cluster.order("kill");
    cluster.order("promote");
    recovered(&other).await;
    for n in 0..40 {
        place(&other, of_queue(&format!("other-{n}"), &format!("other-{n}"))).await;
    }
    recovered(&one).await;
    place(&one, of_queue("again", "lost")).await;
    for client in [&one, &other] {
        assert_eq!(get(client, "again").await.spec.unwrap().queue, "lost");
        assert_eq!(get(client, "other-7").await.spec.unwrap().queue, "other-7");
    }
}

/// A replica that has reached an old primary, which nobody has stopped, says so to those who have heard of more.
#[tokio::test]
async fn a_cursor_from_ahead_is_waited_for() {
    let mut cluster = Cluster::start(&["--standby", "async"]);
    let url = cluster.schema();
    let behind = Server::on_database(&url, "");
    finish(&behind.client().await, submit("echo", "1")).await;
    cluster.order("pause");
    cluster.order("promote");
    let (hosts, rest) = url.split_once(',').unwrap();
    let scheme = hosts.rsplit_once('@').unwrap().0;
    let ahead = Server::on_database(&format!("{scheme}@{rest}"), "");
    let (one, other) = (behind.client().await, ahead.client().await);
    let mut watch = Watch::open(&other, WatchResultsRequest::default()).await;
    watch.checkpoint().await;
    finish(&other, echo("new")).await;
    watch.finished().await;

    let begin = Instant::now();
    let refused = Refusal::of(one.clone().watch_results(after(&watch.cursor)).await);
    assert!(!refused.retry_delay().is_zero());
    refused.is(Code::Unavailable, "REPLICA_BEHIND").says(&["another server"]);
    assert!(begin.elapsed() >= Duration::from_secs(5));
    // With the old primary gone it finds the new one.
    cluster.order("rejoin");
    recovered(&one).await;
    let mut found = Watch::open(&one, after(&watch.cursor)).await;
    finish(&other, echo("newer")).await;
    eventually(async || (found.finished().await.job_id == "newer").then_some(())).await;
}

/// An old primary that comes back and knows nothing of the new one is named first in the URL.
#[tokio::test]
async fn an_old_primary_is_passed_over() {
    let mut cluster = Cluster::start(&["--standby", "async"]);
    let url = cluster.schema();
    let server = Server::on_database(&url, "");
    let client = server.client().await;
    finish(&client, submit("echo", "1")).await;
    cluster.order("kill");
    cluster.order("promote");
    recovered(&client).await;
    place(&client, echo("new")).await;
    cluster.order("revive");
    let (hosts, rest) = url.split_once(',').unwrap();
    let new = connect(&format!("{}@{rest}", hosts.rsplit_once('@').unwrap().0)).await;
    let cut = "select pg_terminate_backend(pid) from pg_stat_activity where application_name = $1";
    new.query(cut, &[&application(&url)]).await.expect("PostgreSQL answers");
    recovered(&client).await;
    place(&client, echo("newer")).await;
    get(&client, "new").await;
    let placed = new.query_one("select count(*) from accepted where id in ('new', 'newer')", &[]).await;
    assert_eq!(placed.expect("PostgreSQL answers").get::<_, i64>(0), 2);
    assert!(server.log().contains("Stop it"), "{}", server.log());
}

/// After a restore from a dump an operator says so. Nothing is lost here: cursors are refused all the same.
#[tokio::test]
async fn a_new_log_refuses_the_cursors_of_the_old_one() {
    let url = schema();
    let mut server = Server::on_database(&url, "");
    let client = server.client().await;
    let mut watch = Watch::open(&client, WatchResultsRequest::default()).await;
    watch.checkpoint().await;
    finish(&client, echo("old")).await;
    watch.finished().await;
    let (code, said) = jobwire(&["new-log", "--store", &url]);
    assert!(code == Some(1) && said.contains("servers use the database (1): stop them"), "{said}");
    server.signal("TERM");
    server.ended().await;
    let (code, said) = jobwire(&["new-log", "--store", &url]);
    assert!(code == Some(0) && said.contains("\"log_id\":\""), "{said}");

    let (code, said) = jobwire(&["new-log", "--store", &schema()]);
    assert!(code == Some(1) && said.contains("holds no jobwire store"), "{said}");

    let (server, other) = (server.restart(), Server::on_database(&url, ""));
    let client = server.client().await;
    let refused = Refusal::of(client.clone().watch_results(after(&watch.cursor)).await);
    refused.is(Code::OutOfRange, "LOG_REPLACED");
    let mut fresh = Watch::open(&client, WatchResultsRequest::default()).await;
    fresh.checkpoint().await;
    finish(&other.client().await, echo("new")).await;
    assert_eq!(fresh.finished().await.job_id, "new");
    let resumed = Watch::open(&other.client().await, after(&fresh.cursor)).await.replay().await;
    assert!(resumed.is_empty(), "{resumed:?}");
    assert_eq!(get(&client, "old").await.state(), State::Succeeded);
}
