//! Several servers on one database, and those who go from one to the other.

use std::{
    collections::BTreeSet,
    process::Command,
    time::{Duration, Instant},
};

use jobwire::proto::{
    DeleteJobRequest, JobFilter, Lease, SubmitRequest, WatchResultsRequest, WorkerHello, job::State,
    watch_results_request::Start, watch_results_response::Event,
};
use tokio::time::{sleep, timeout};

use crate::{
    calls::{Watch, eventually, finish, get, place, reach, reach_when, result},
    postgres::{Cluster, connect, schema},
    support::{PATIENCE, Server, submit},
    watch::after,
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

/// A worker takes its lease along to another server. `comes_back`: to the first one too, without naming it there.
async fn take_a_lease_along(comes_back: bool) {
    let url = schema();
    let (a, b) = (Server::on_database(&url, SHORT), Server::on_database(&url, SHORT));
    let client = b.client().await;
    let mut worker = Worker::connect(&a, hello("w1", 1)).await;
    let id = place(&client, task("1")).await;
    let lease = worker.lease().await;
    drop(worker);
    let mut worker = Worker::connect(&b, hello_again(&lease)).await;
    let mut at_first = None;
    if comes_back {
        at_first = Some(Worker::connect(&a, hello("w1", 1)).await);
    }
    goes_on_with(&mut worker, &lease).await;
    worker.succeed(&lease).await;
    drop(at_first);
    let job = get(&client, &id).await;
    assert_eq!((job.state(), job.attempt, job.attempts.len()), (State::Succeeded, 1, 0), "{job:?}");
}

/// The server that gave it never heard of it again, and would give it to somebody else.
#[tokio::test]
async fn a_lease_that_was_confirmed_elsewhere_is_not_given_back() {
    take_a_lease_along(false).await;
}

/// That server has reason to think that the lease was lost on its way.
#[tokio::test]
async fn a_lease_that_is_held_at_another_server_is_not_given_back() {
    take_a_lease_along(true).await;
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

/// Transitions and progress come from where the work is. The first may be missed: that somebody watches is heard of first.
#[tokio::test]
async fn hints_reach_those_who_watch_at_another_server() {
    let url = schema();
    let (idle, busy) =
        (Server::on_database(&url, "[workers]\nconcurrency = 0\n"), Server::on_database(&url, ""));
    let request =
        WatchResultsRequest { include_progress: true, include_transitions: true, ..Default::default() };
    let mut watch = Watch::open(&idle.client().await, request).await;
    watch.replay().await;
    let client = busy.client().await;
    let mut told = BTreeSet::new();
    let all = async {
        while told.len() < 2 {
            let id = place(&client, submit("sleep", r#"{"duration":"500ms"}"#)).await;
            loop {
                match watch.event().await {
                    Event::Changed(job) if job.state() == State::Running => {
                        assert_eq!(job.job_id, id);
                        told.insert("transition");
                    }
                    Event::Progress(hint) => {
                        assert_eq!((hint.job_id.as_str(), hint.run, hint.attempt), (id.as_str(), 1, 1));
                        told.insert("progress");
                    }
                    Event::Finished(job) => {
                        assert_eq!(job.job_id, id);
                        break;
                    }
                    _ => {}
                }
            }
        }
    };
    timeout(PATIENCE, all).await.expect("both are told");
}

/// A server reads what others finish only where somebody follows it. Whoever comes later has missed nothing.
#[tokio::test]
async fn outcomes_of_other_servers_reach_whoever_follows_their_queue() {
    let url = schema();
    let (idle, busy) =
        (Server::on_database(&url, "[workers]\nconcurrency = 0\n"), Server::on_database(&url, ""));
    let (here, there) = (idle.client().await, busy.client().await);
    let of = |queue: &str, request: WatchResultsRequest| WatchResultsRequest {
        filter: Some(JobFilter { queues: vec![queue.into()], ..Default::default() }),
        ..request
    };
    let done = async |queues: [&str; 2], name: &str| {
        for n in 0..10 {
            for queue in queues {
                let mut job = SubmitRequest { job_id: format!("{queue}-{name}-{n}"), ..submit("echo", "1") };
                job.spec.as_mut().expect("a spec").queue = queue.into();
                finish(&there, job).await;
            }
        }
    };
    let ids = |queue: &str, name: &str| (0..10).map(|n| format!("{queue}-{name}-{n}")).collect::<Vec<_>>();
    let told = async |watch: &mut Watch| {
        let mut told = Vec::new();
        while told.len() < 10 {
            told.push(watch.finished().await.job_id);
        }
        told
    };

    let mut x = Watch::open(&here, of("x", WatchResultsRequest::default())).await;
    x.replay().await;
    let start = x.cursor.clone();
    done(["x", "y"], "first").await;
    assert_eq!(told(&mut x).await, ids("x", "first"));
    // Nobody had followed it when its outcomes came.
    let mut late = Watch::open(&here, of("y", after(&start))).await;
    assert_eq!(told(&mut late).await, ids("y", "first"));
    let mut y = Watch::open(&here, of("y", after(&late.cursor))).await;
    done(["x", "y"], "second").await;
    for (watch, queue) in [(&mut late, "y"), (&mut y, "y"), (&mut x, "x")] {
        assert_eq!(told(watch).await, ids(queue, "second"));
    }
    // Together they are everything, and so is what somebody reads who has no filter.
    let mut all = Watch::open(&here, after(&start)).await;
    assert_eq!(all.replay().await.len(), 40);
    done(["z", "x"], "third").await;
    for (watch, queue) in [(&mut x, "x"), (&mut Watch::open(&here, of("z", after(&start))).await, "z")] {
        assert_eq!(told(watch).await, ids(queue, "third"));
    }
    // A wait follows the queue of its job, or it would last until its next look, after 5 s.
    eventually(async || {
        let mut job = submit("sleep", r#"{"duration":"200ms"}"#);
        job.spec.as_mut().expect("a spec").queue = "w".into();
        let begin = Instant::now();
        finish(&here, job).await;
        (begin.elapsed() < Duration::from_secs(4)).then_some(())
    })
    .await;
}

/// The database forgets its locks when one of its processes crashes, and knows of nobody then: that proves no death.
#[tokio::test]
async fn a_server_that_the_database_has_forgotten_is_not_taken_for_dead() {
    let cluster = Cluster::start(&[]);
    let url = cluster.schema();
    let server = Server::on_database(&url, "");
    let client = server.client().await;
    let id = place(&client, submit("sleep", r#"{"duration":"3s"}"#)).await;
    reach(&client, &id, State::Running).await;
    // It cannot take its lock again yet.
    server.signal("STOP");
    let crashed = connect(&url).await;
    let pid: i32 = crashed.query_one("select pg_backend_pid()", &[]).await.unwrap().get(0);
    assert!(Command::new("kill").args(["-KILL", &pid.to_string()]).status().unwrap().success());
    eventually(async || crashed.is_closed().then_some(())).await;
    let other = Server::on_database(&url, "[workers]\nconcurrency = 0\n");
    assert_eq!(get(&other.client().await, &id).await.state(), State::Running);
    server.signal("CONT");
    result(&other.client().await, &id).await;
    let job = get(&other.client().await, &id).await;
    assert_eq!((job.state(), job.attempt, job.attempts.len()), (State::Succeeded, 1, 0), "{job:?}");
}

/// A server has the newest outcomes in memory. Those of a job that is deleted at another one leave that too.
#[tokio::test]
async fn what_is_deleted_at_another_server_is_told_no_more() {
    let url = schema();
    let (a, b) = (Server::on_database(&url, ""), Server::on_database(&url, ""));
    let (one, other) = (a.client().await, b.client().await);
    let mut watch = Watch::open(&other, Default::default()).await;
    watch.replay().await;
    let gone = finish(&one, submit("echo", "1")).await.job_id;
    let stays = finish(&one, submit("echo", "2")).await.job_id;
    // By then it is in the memory of both.
    assert_eq!([watch.finished().await.job_id, watch.finished().await.job_id], [gone.clone(), stays.clone()]);
    let delete = DeleteJobRequest { job_id: gone, ..Default::default() };
    one.clone().delete_job(delete).await.unwrap();
    let left = async || {
        let start = Some(Start::Earliest(true));
        Watch::open(&other, WatchResultsRequest { start, ..Default::default() }).await.replay().await
    };
    eventually(async || (left().await == [stays.clone()]).then_some(())).await;
}
