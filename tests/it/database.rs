//! Trouble of the database: callers are told to come again, health says so, and all is well when the database is.

use std::{process::Command, time::Duration};

use jobwire::proto::{GetJobRequest, JobSpec, RetryPolicy, SubmitRequest, WorkerHello, job::State};
use tokio::time::timeout;
use tonic::{Code, Status};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus,
    health_client::HealthClient,
};

use crate::{
    calls::{Refusal, Watch, eventually, finish, get, place, reach, result},
    postgres::{Cluster, application, connect, execute, schema},
    support::{Client, PATIENCE, Server, lazy_clients, submit},
    workers::{SHORT, Worker, hello, task},
};

/// A health watch, to be waited on for one status.
struct Health(tonic::Streaming<HealthCheckResponse>);

impl Health {
    async fn of(server: &Server) -> Self {
        let mut client = HealthClient::new(server.channel().await);
        Self(client.watch(HealthCheckRequest::default()).await.expect("it is watched").into_inner())
    }

    async fn becomes(&mut self, status: ServingStatus) {
        let turned = async {
            while self.0.message().await.expect("it goes on").expect("it has no end").status() != status {}
        };
        timeout(PATIENCE, turned).await.unwrap_or_else(|_| panic!("it never became {status:?}"));
    }
}

/// As the contract has it for a store that cannot be reached.
fn is_unavailable(status: Status) {
    let refusal = Refusal::read(status).is(Code::Unavailable, "STORE_UNAVAILABLE");
    assert!(refusal.retry_delay() > Duration::ZERO);
}

/// Repeats a submit until it is accepted, as clients do.
async fn insist(client: &Client, request: SubmitRequest) -> String {
    eventually(async || match client.clone().submit(request.clone()).await {
        Ok(accepted) => Some(accepted.into_inner().job.expect("a job").job_id),
        Err(status) => {
            is_unavailable(status);
            None
        }
    })
    .await
}

fn request(id: &str) -> SubmitRequest {
    SubmitRequest { request_id: id.into(), job_id: id.into(), ..submit("echo", "1") }
}

#[tokio::test]
async fn a_database_that_is_down_is_waited_for() {
    let mut cluster = Cluster::start(&[]);
    let url = cluster.schema();
    cluster.order("stop");
    let mut server = Server::replica(&url);
    server.begin();
    let (client, _) = lazy_clients(server.address());
    // Once its port is open.
    let refused = eventually(async || {
        client.clone().submit(request("early")).await.err().filter(|status| !status.details().is_empty())
    });
    is_unavailable(refused.await);
    let mut health = Health::of(&server).await;
    health.becomes(ServingStatus::NotServing).await;
    cluster.order("start");
    let server = server.serves().await;
    health.becomes(ServingStatus::Serving).await;
    assert_eq!(finish(&client, request("first")).await.state(), State::Succeeded);

    // And while it serves. What runs goes on.
    let long = submit("sleep", r#"{"duration":"3s"}"#);
    let id = place(&client, long).await;
    reach(&client, &id, State::Running).await;
    cluster.order("stop");
    health.becomes(ServingStatus::NotServing).await;
    is_unavailable(client.clone().submit(request("second")).await.expect_err("there is no database"));
    let missed = client.clone().get_job(GetJobRequest { job_id: id.clone(), ..Default::default() }).await;
    is_unavailable(missed.expect_err("there is no database"));
    cluster.order("start");
    health.becomes(ServingStatus::Serving).await;
    let job = result(&client, &id).await;
    assert_eq!((job.state(), job.attempt), (State::Succeeded, 1), "{job:?}");
    assert_eq!(result(&client, &insist(&client, request("second")).await).await.state(), State::Succeeded);
    drop(server);

    // One that waits can be told to leave.
    cluster.order("stop");
    let mut waits = Server::replica(&url);
    waits.begin();
    eventually(async || waits.log().contains("trying again").then_some(())).await;
    waits.signal("TERM");
    assert!(waits.ended().await.success());
}

/// Nobody could renew a lease meanwhile.
#[tokio::test]
async fn an_outage_spends_no_attempt() {
    let mut cluster = Cluster::start(&[]);
    let url = cluster.schema();
    let server = Server::on_database(&url, SHORT);
    let client = server.client().await;
    let mut health = Health::of(&server).await;
    let mut worker = Worker::connect(&server, hello("w1", 1)).await;
    let unheard = |name| WorkerHello { kinds: vec!["unheard".into()], ..hello(name, 1) };
    let mut deaf = Worker::connect(&server, unheard("w2")).await;
    let once = |request: SubmitRequest| {
        let retry = Some(RetryPolicy { max_attempts: 1, ..Default::default() });
        SubmitRequest { spec: request.spec.map(|spec| JobSpec { retry, ..spec }), ..request }
    };
    let here = place(&client, once(submit("sleep", r#"{"duration":"1s"}"#))).await;
    let longer = place(&client, once(submit("sleep", r#"{"duration":"7s"}"#))).await;
    let elsewhere = place(&client, once(task("1"))).await;
    let lease = worker.lease().await;
    worker.beat(&[&lease]).await;
    let never_begun = place(&client, once(submit("unheard", "1"))).await;
    deaf.lease().await;
    reach(&client, &longer, State::Running).await;
    cluster.order("stop");
    // Twice as long as a lease.
    tokio::time::sleep(Duration::from_secs(4)).await;
    cluster.order("start");
    health.becomes(ServingStatus::NotServing).await;
    health.becomes(ServingStatus::Serving).await;
    let again = WorkerHello { held_lease_ids: vec![lease.lease_id.clone()], ..hello("w1", 1) };
    Worker::connect(&server, again).await.succeed(&lease).await;
    let mut hears = Worker::connect(&server, unheard("w3")).await;
    let lease = hears.lease().await;
    hears.succeed(&lease).await;
    for id in [here, longer, elsewhere, never_begun] {
        let job = result(&client, &id).await;
        assert_eq!((job.state(), job.attempt), (State::Succeeded, 1), "{job:?}");
    }
}

#[tokio::test]
async fn a_database_without_a_free_connection_is_waited_for() {
    let cluster = Cluster::start(&[]);
    let url = cluster.schema();
    let server = Server::on_database(&url, "");
    let client = server.client().await;
    let mut health = Health::of(&server).await;
    finish(&client, request("before")).await;
    // Others take all there are, and those of the server are cut.
    let held = cluster.take_all_connections(async |others| {
        let cut = "select pg_terminate_backend(pid) from pg_stat_activity where application_name = $1";
        others.query(cut, &[&application(&url)]).await.expect("it is cut").len()
    });
    let held = held.await;
    health.becomes(ServingStatus::NotServing).await;
    is_unavailable(client.clone().submit(request("refused")).await.expect_err("there is no connection"));
    drop(held);
    health.becomes(ServingStatus::Serving).await;
    assert_eq!(result(&client, &insist(&client, request("refused")).await).await.state(), State::Succeeded);
}

/// All that a server has are held up by somebody else's lock.
#[tokio::test]
async fn calls_are_told_when_the_connections_of_a_server_are_used_up() {
    let url = schema();
    let server = Server::on_database(&url, "");
    let client = server.client().await;
    let mut health = Health::of(&server).await;
    let id = finish(&client, request("before")).await.job_id;
    let other = connect(&url).await;
    other.batch_execute("begin; lock table job, lease, ready in access exclusive mode").await.unwrap();
    let calls: Vec<_> = (0..12)
        .map(|_| {
            let (mut client, job_id) = (client.clone(), id.clone());
            tokio::spawn(async move { client.get_job(GetJobRequest { job_id, ..Default::default() }).await })
        })
        .collect();
    health.becomes(ServingStatus::NotServing).await;
    // Those that have no connection are told after a while; the others wait for their answers.
    let mut open = Vec::new();
    let mut told = 0;
    let all = async {
        let mut calls: futures_util::stream::FuturesUnordered<_> = calls.into_iter().collect();
        while told < 6 {
            match futures_util::StreamExt::next(&mut calls).await.expect("there are more").expect("no panic")
            {
                Ok(_) => panic!("the table is locked"),
                Err(status) => is_unavailable(status),
            }
            told += 1;
        }
        open.extend(calls);
    };
    timeout(PATIENCE, all).await.expect("they are told");
    other.batch_execute("rollback").await.unwrap();
    health.becomes(ServingStatus::Serving).await;
    for call in open {
        match call.await.expect("no panic") {
            Ok(reply) => assert_eq!(reply.into_inner().job.expect("a job").job_id, id),
            Err(status) => is_unavailable(status),
        }
    }
    assert_eq!(result(&client, &insist(&client, request("after")).await).await.state(), State::Succeeded);
}

/// It keeps old rows from being removed, and numbers that it has drawn open: the feed goes on all the same.
#[tokio::test]
async fn a_transaction_that_is_left_open_holds_up_nobody() {
    let url = schema();
    let servers = [Server::on_database(&url, ""), Server::on_database(&url, "")];
    let client = servers[0].client().await;
    finish(&client, request("before")).await;
    let other = connect(&url).await;
    let open = "begin isolation level repeatable read; select nextval('done_seq'); select count(*) from done; \
                insert into tally (line) select id from line limit 1";
    other.batch_execute(open).await.unwrap();
    let mut watch = Watch::open(&servers[1].client().await, Default::default()).await;
    watch.replay().await;
    for n in 0..20 {
        let id = finish(&client, request(&format!("job-{n}"))).await.job_id;
        assert_eq!(watch.finished().await.job_id, id);
    }
    other.batch_execute("rollback").await.unwrap();
}

/// A file system of its own, in memory.
pub struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    /// None where one may not be mounted.
    pub fn mount(megabytes: u32) -> Option<Self> {
        let dir = tempfile::Builder::new().prefix("jobwire-disk-").tempdir().expect("a temporary directory");
        let options = format!("size={megabytes}m,mode=0777");
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", &options, "none"]).arg(dir.path()).output();
        mounted.is_ok_and(|output| output.status.success()).then(|| Self(dir))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.0.path()).status();
    }
}

#[tokio::test]
async fn a_full_disk_takes_no_jobs_and_recovers() {
    let Some(disk) = SmallDisk::mount(16) else {
        return eprintln!("no file system can be mounted here: a full disk was not tried");
    };
    let cluster = Cluster::start(&[]);
    let url = cluster.schema();
    let space = disk.0.path().join("space");
    std::fs::create_dir(&space).unwrap();
    crate::postgres::give(&space);
    execute(&url, &format!("create tablespace small location '{}'", space.display()));
    let server = Server::on_database(&format!("{url}%20-cdefault_tablespace%3Dsmall"), "");
    let client = server.client().await;
    finish(&client, request("before")).await;
    // Bytes that no compression makes fewer.
    let large = |n: usize| {
        let text: String = std::iter::repeat_with(fastrand::alphanumeric).take(500_000).collect();
        SubmitRequest { job_id: format!("large-{n}"), ..submit("nobody", &format!("{text:?}")) }
    };
    let mut taken = Vec::new();
    let refused = loop {
        match client.clone().submit(large(taken.len())).await {
            Ok(accepted) => taken.push(accepted.into_inner().job.unwrap().job_id),
            Err(status) => break Refusal::read(status),
        }
        assert!(taken.len() < 100, "it is never full");
    };
    assert!(!taken.is_empty());
    assert!(refused.is(Code::ResourceExhausted, "STORE_FULL").retry_delay() > Duration::ZERO);
    for id in &taken {
        assert_eq!(get(&client, id).await.state(), State::Queued);
    }
    // There is room again.
    let grown = Command::new("mount").args(["-o", "remount,size=64m"]).arg(disk.0.path()).status();
    assert!(grown.expect("mount runs").success());
    let id = eventually(async || {
        let accepted = client.clone().submit(request("after")).await.ok()?;
        Some(accepted.into_inner().job?.job_id)
    });
    assert_eq!(result(&client, &id.await).await.state(), State::Succeeded);
    drop((server, cluster));
}
