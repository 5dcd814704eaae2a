//! Several servers on one PostgreSQL, which share all that clients do among them, and faults of every sort: of a server, of
//! its connections, of the database.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use fastrand::Rng;
use tokio::{task::block_in_place, time::sleep};
use tokio_postgres::Client as Connection;

use super::{course::Course, settings, totals::Totals};
use crate::{
    database::SmallDisk,
    postgres::{Cluster, application, connect},
    support::Server,
};

/// Faults of one run, unless JOBWIRE_TEST_KILLS says.
const FAULTS: usize = 10;

/// Short: a server freezes for longer.
const LEASES: &[&str] = &[
    "lease = \"300ms\"\nheartbeat = \"50ms\"",
    "lease = \"1s\"\nheartbeat = \"100ms\"",
    "lease = \"2s\"\nheartbeat = \"200ms\"",
];

const LONGEST_FREEZE: Duration = Duration::from_millis(2500);

const VERIFY: &str = include_str!("verify.sql");

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_whoever_fails() {
    let disks = SmallDisk::mount(1).map(|_| "--disks");
    if disks.is_none() {
        eprintln!("no file system can be mounted here: a full disk is not tried");
    }
    let arguments: Vec<_> = ["--standby", "sync"].into_iter().chain(disks).collect();
    let mut cluster = Cluster::start(&arguments);
    super::run(FAULTS, async |rng, faults, totals| {
        Fleet::start(rng, &mut cluster, disks.is_some(), totals).run(faults, totals).await
    })
    .await;
}

struct Fleet<'a> {
    course: Course,
    cluster: &'a mut Cluster,
    /// Whether its disk can be filled.
    disks: bool,
    url: String,
    servers: Vec<Server>,
    addresses: Vec<String>,
    /// A transaction that nobody ends.
    idle: Option<Connection>,
}

impl<'a> Fleet<'a> {
    fn start(mut rng: Rng, cluster: &'a mut Cluster, disks: bool, totals: &mut Totals) -> Self {
        let url = cluster.schema();
        let servers: Vec<_> = (0..rng.usize(2..=3)).map(|_| Server::replica(&url)).collect();
        let addresses = servers.iter().map(|server| server.address().to_owned()).collect();
        let mut fleet =
            Self { course: Course::new(rng, 2), cluster, disks, url, servers, addresses, idle: None };
        fleet.course.ledger.lock().servers_stop = true;
        (0..fleet.servers.len()).for_each(|at| fleet.start_again(at, totals));
        fleet
    }

    fn start_again(&mut self, at: usize, totals: &mut Totals) {
        let settings = settings::draw(&mut self.course.rng, LEASES);
        let begin = Instant::now();
        block_in_place(|| self.servers[at].start_again(&settings));
        totals.starts.push(begin.elapsed());
    }

    async fn run(mut self, faults: usize, totals: &mut Totals) {
        for _ in 0..faults {
            self.course.check(&self.addresses).await;
            let load = self.course.load(&self.addresses);
            self.course.wait_to_strike(&load).await;
            let what = self.fault(totals).await;
            totals.fault(what);
            // The others go on, and so does it.
            sleep(Duration::from_millis(self.course.rng.u64(..300))).await;
            self.course.unload(load, false).await;
        }
        for at in 0..self.servers.len() {
            self.servers[at].kill();
            block_in_place(|| {
                self.servers[at].start_again("[workers]\nlease = \"1s\"\nheartbeat = \"100ms\"\n")
            });
        }
        self.course.end(&self.addresses, totals, async || verify(&self.url).await).await;
    }

    /// Something bad, and its end. Answers with its name.
    async fn fault(&mut self, totals: &mut Totals) -> &'static str {
        let at = self.course.rng.usize(..self.servers.len());
        match self.course.rng.u8(..24) {
            0..=5 => {
                self.servers[at].kill();
                self.pause(1000).await;
                self.start_again(at, totals);
                "kill -9"
            }
            6..=8 => {
                self.servers[at].signal("STOP");
                sleep(LONGEST_FREEZE.mul_f64(self.course.rng.f64())).await;
                self.servers[at].signal("CONT");
                "freeze"
            }
            9..=12 => {
                self.servers[at].signal("TERM");
                let status = self.servers[at].ended().await;
                assert!(status.success(), "{status}:\n{}", self.servers[at].log());
                self.start_again(at, totals);
                "stop"
            }
            13..=15 => {
                let share = self.course.rng.f64();
                let pids = self.backends().await;
                let some = pids.into_iter().filter(|_| self.course.rng.f64() <= share);
                let some = some.map(|pid| pid.to_string()).collect::<Vec<_>>().join(",");
                let cut =
                    format!("select pg_terminate_backend(pid) from unnest(array[{some}]::int[]) as u (pid)");
                connect(&self.url).await.batch_execute(&cut).await.expect("PostgreSQL answers");
                "connections cut"
            }
            16 => {
                // The server takes down all others with it, and recovers by itself.
                if let Some(pid) = self.backends().await.first() {
                    let _ = Command::new("kill").args(["-KILL", &pid.to_string()]).status();
                }
                "crash within PostgreSQL"
            }
            17 => {
                self.order(&["kill", "start"]);
                "crash of PostgreSQL"
            }
            18 => {
                self.order(&["kill", "promote"]);
                self.pause(300).await;
                self.order(&["rejoin"]);
                "failover"
            }
            19 => {
                self.order(&["restart"]);
                "restart of PostgreSQL"
            }
            20 => {
                let cut =
                    "select pg_terminate_backend(pid) from pg_stat_activity where application_name = $1";
                let name = application(&self.url);
                let held = self.cluster.take_all_connections(async |others| {
                    others.query(cut, &[&name]).await.expect("PostgreSQL answers").len()
                });
                let held = held.await;
                self.pause(1500).await;
                drop(held);
                "connections taken"
            }
            21 | 22 if self.disks => {
                self.order(&["fill"]);
                self.pause(2500).await;
                self.order(&["clear"]);
                "disk full"
            }
            _ => {
                let idle = connect(&self.url).await;
                let hold = "begin isolation level repeatable read; select count(*) from job; select pg_current_xact_id()";
                idle.batch_execute(hold).await.expect("PostgreSQL answers");
                self.idle = Some(idle);
                "transaction left open"
            }
        }
    }

    fn order(&mut self, commands: &[&str]) {
        block_in_place(|| commands.iter().for_each(|command| self.cluster.order(command)));
    }

    async fn pause(&mut self, millis: u64) {
        sleep(Duration::from_millis(self.course.rng.u64(..millis))).await;
    }

    /// The processes of PostgreSQL that serve ours, in any order.
    async fn backends(&mut self) -> Vec<i32> {
        let sql = "select pid from pg_stat_activity where application_name = $1";
        let name = application(&self.url);
        let rows = connect(&self.url).await.query(sql, &[&name]).await.expect("PostgreSQL answers");
        let mut pids: Vec<i32> = rows.iter().map(|row| row.get(0)).collect();
        self.course.rng.shuffle(&mut pids);
        pids
    }
}

/// Everything in a store, once nothing moves.
pub async fn verify(url: &str) {
    let found = connect(url).await.query(VERIFY, &[]).await.expect("PostgreSQL answers");
    let found: Vec<(&str, i64)> = found.iter().map(|row| (row.get(0), row.get(1))).collect();
    assert!(found.is_empty(), "{found:?}");
}
