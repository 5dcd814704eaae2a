//! Servers on PostgreSQL: several on one database, and what happens when it goes away. The tests of the services run on it
//! too with `JOBWIRE_TEST_STORE=postgres`.

mod failover;
mod pooler;
mod tls;
mod trouble;

use std::{
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
    sync::{
        LazyLock,
        atomic::{AtomicU32, Ordering},
    },
};

use jobwire::proto::{DeleteJobRequest, GetJobRequest, RetryJobRequest, SubmitRequest, job::State};
use tokio_postgres::{NoTls, config::TargetSessionAttrs, error::SqlState};
use tonic::Code;

use crate::{
    calls::{Refusal, Watch, accept, eventually, finish, get, place, reach, result},
    support::{Server, jobwire, submit},
    watch::after,
};

/// A PostgreSQL that stops when the pipe to it is closed: when it is dropped, or with this process.
pub struct Cluster {
    child: Child,
    said: BufReader<ChildStdout>,
    url: String,
}

impl Cluster {
    /// With these arguments to `tools/postgres.sh serve`.
    pub fn start(arguments: &[&str]) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/postgres.sh");
        let mut child = Command::new(script)
            .arg("serve")
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("tools/postgres.sh can be run");
        let said = BufReader::new(child.stdout.take().expect("stdout is piped"));
        let mut cluster = Self { child, said, url: String::new() };
        cluster.url = cluster.line();
        assert!(cluster.url.starts_with("postgres://"), "no PostgreSQL: see above");
        cluster
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.said.read_line(&mut line).expect("stdout is text");
        line.trim().to_owned()
    }

    /// Has a command carried out that `tools/postgres.sh` takes.
    pub fn order(&mut self, command: &str) {
        let stdin = self.child.stdin.as_mut().expect("stdin is piped");
        writeln!(stdin, "{command}").expect("it serves");
        assert_eq!(self.line(), "ok", "{command}");
    }

    /// The URL of a schema of its own, empty as yet.
    pub fn schema(&self) -> String {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("test_{}", COUNT.fetch_add(1, Ordering::Relaxed));
        execute(&self.url, &format!("create schema {name}"));
        format!("{}?application_name={name}&options=-csearch_path%3D{name}", self.url)
    }
}

impl Cluster {
    /// Takes every connection there is. `cut` ends those of others, over one of them, and answers with how many it found.
    /// They are free again when the answer is dropped.
    pub async fn take_all_connections(
        &self,
        cut: impl AsyncFn(&tokio_postgres::Client) -> usize,
    ) -> Vec<tokio_postgres::Client> {
        let mut held = vec![connect(&self.url).await];
        loop {
            match tokio_postgres::connect(&self.url, NoTls).await {
                Ok((client, connection)) => {
                    tokio::spawn(connection);
                    held.push(client);
                }
                Err(error) => {
                    assert_eq!(error.code(), Some(&SqlState::TOO_MANY_CONNECTIONS), "{error}");
                    // Sessions take a moment to end, and may come back meanwhile.
                    if cut(&held[0]).await == 0 {
                        return held;
                    }
                }
            }
        }
    }
}

/// Lets the servers of PostgreSQL write into a directory.
pub fn give(dir: &Path) {
    // As root they run as somebody else.
    let _ = Command::new("chown").arg("postgres").arg(dir).status();
}

impl Drop for Cluster {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// One for all tests of this process.
static CLUSTER: LazyLock<Cluster> = LazyLock::new(|| Cluster::start(&[]));

/// Whether servers keep their jobs in PostgreSQL.
pub fn is_asked_for() -> bool {
    std::env::var("JOBWIRE_TEST_STORE").is_ok_and(|store| store == "postgres")
}

/// The URL of a schema of its own, empty as yet.
pub fn schema() -> String {
    CLUSTER.schema()
}

/// What the servers of a schema call themselves.
pub fn application(url: &str) -> &str {
    let (_, name) = url.split_once("application_name=").expect("the URL of a schema");
    name.split('&').next().expect("there is a first part")
}

/// A connection of a test's own to the primary, once there is one.
pub async fn connect(url: &str) -> tokio_postgres::Client {
    let url = url.replace("application_name=", "application_name=test_of_");
    let mut config: tokio_postgres::Config = url.parse().expect("a URL");
    config.target_session_attrs(TargetSessionAttrs::ReadWrite);
    let (client, connection) = eventually(async || config.connect(NoTls).await.ok()).await;
    tokio::spawn(connection);
    client
}

/// Executes statements, whether the test has a runtime or not.
pub fn execute(url: &str, sql: &str) {
    let (url, sql) = (url.to_owned(), sql.to_owned());
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let work = move || {
        runtime().block_on(async {
            connect(&url).await.batch_execute(&sql).await.expect("the statement is sound");
        });
    };
    std::thread::spawn(work).join().expect("no panic");
}

#[tokio::test]
async fn replicas_share_jobs_and_the_feed() {
    let url = schema();
    let (a, b) = (Server::on_database(&url, ""), Server::on_database(&url, "[workers]\nconcurrency = 0\n"));
    let (one, other) = (a.client().await, b.client().await);
    // Submitted where nothing runs, awaited there, run at the other.
    let done = finish(&other, SubmitRequest { job_id: "a".into(), ..submit("echo", "1") }).await;
    assert_eq!(done.state(), State::Succeeded);
    assert_eq!(get(&one, "a").await.etag, done.etag);
    // A cursor of one is good at the other at once.
    let mut watch = Watch::open(&one, Default::default()).await;
    watch.checkpoint().await;
    let mut seen = Vec::new();
    for n in 0..20 {
        place(&other, SubmitRequest { job_id: format!("job-{n:02}"), ..submit("echo", "1") }).await;
        seen.push(watch.finished().await.job_id);
        watch = Watch::open([&one, &other][n % 2], after(&watch.cursor)).await;
    }
    assert_eq!(seen, (0..20).map(|n| format!("job-{n:02}")).collect::<Vec<_>>());
    // A name is taken for both.
    let again = accept(&one, SubmitRequest { job_id: "a".into(), ..submit("echo", "1") }).await;
    assert!(again.deduplicated);
    let refused = one.clone().submit(SubmitRequest { job_id: "a".into(), ..submit("echo", "2") }).await;
    Refusal::of(refused).is(Code::AlreadyExists, "JOB_ID_IN_USE");
}

/// What one has in memory does not hide what another has changed.
#[tokio::test]
async fn a_job_is_the_same_at_every_replica() {
    let url = schema();
    let idle = "[workers]\nconcurrency = 0\n";
    let (a, b) = (Server::on_database(&url, idle), Server::on_database(&url, idle));
    let (one, other) = (a.client().await, b.client().await);
    for id in ["again", "gone"] {
        place(&one, SubmitRequest { job_id: id.into(), ..submit("echo", "1") }).await;
        crate::changes::cancel(&one, id).await.unwrap();
        assert_eq!(result(&one, id).await.state(), State::Cancelled);
    }
    let retry = RetryJobRequest { job_id: "again".into(), ..Default::default() };
    other.clone().retry_job(retry).await.unwrap();
    assert_eq!(get(&one, "again").await.state(), State::Queued);
    let delete = DeleteJobRequest { job_id: "gone".into(), ..Default::default() };
    other.clone().delete_job(delete).await.unwrap();
    let gone = GetJobRequest { job_id: "gone".into(), ..Default::default() };
    let missing = one.clone().get_job(gone).await;
    Refusal::of(missing).is(Code::NotFound, "JOB_NOT_FOUND");
}

#[tokio::test]
async fn what_a_killed_replica_was_running_is_run_by_another() {
    let url = schema();
    let config = "[workers]\nlease = \"2s\"\nheartbeat = \"500ms\"\n";
    let mut killed = Server::on_database(&url, config);
    let long = SubmitRequest { job_id: "long".into(), ..submit("sleep", r#"{"duration":"3s"}"#) };
    let client = killed.client().await;
    place(&client, long).await;
    reach(&client, "long", State::Running).await;
    let other = Server::on_database(&url, config);
    killed.kill();
    let client = other.client().await;
    let job = result(&client, "long").await;
    assert_eq!((job.state(), job.attempt), (State::Succeeded, 2));
}

#[tokio::test]
async fn a_database_that_goes_away_is_missed_and_found_again() {
    let url = schema();
    let server = Server::on_database(&url, "");
    let client = server.client().await;
    finish(&client, submit("echo", "1")).await;
    let name = application(&url);
    let cut =
        format!("select pg_terminate_backend(pid) from pg_stat_activity where application_name = '{name}'");
    for round in 0..3 {
        execute(&url, &cut);
        let request =
            SubmitRequest { request_id: format!("request-{round}"), ..submit("echo", &round.to_string()) };
        // Whether the call meets a connection that was cut or not: a repeat with the same request_id is safe.
        let accepted = eventually(async || match client.clone().submit(request.clone()).await {
            Ok(accepted) => Some(accepted.into_inner().job.unwrap().job_id),
            Err(status) => {
                Refusal::read(status).is(Code::Unavailable, "STORE_UNAVAILABLE").retry_delay();
                None
            }
        });
        let id = accepted.await;
        assert_eq!(result(&client, &id).await.state(), State::Succeeded);
    }
}

#[test]
fn a_database_of_a_newer_jobwire_is_refused() {
    let url = schema();
    drop(Server::on_database(&url, ""));
    execute(&url, "update jobwire set version = 7");
    let (code, said) = jobwire(&["serve", "--listen", "127.0.0.1:0", "--store", &url]);
    assert_ne!(code, Some(0));
    assert!(said.contains("has schema 7") && said.contains("newer"), "{said}");
}

#[test]
fn a_server_says_what_its_acknowledgements_are_worth_and_no_password() {
    let url = schema();
    let named = url.replace("jobwire@", "jobwire:secret@");
    let said = Server::on_database(&named, "").log();
    let warned = said.lines().any(|line| line.contains("WARN") && line.contains("no synchronous standby"));
    assert!(warned && said.contains("jobwire:***@"), "{said}");
    assert!(!said.contains("secret"), "{said}");
    let said = Server::on_database(&format!("{named}%20-csynchronous_commit%3Doff"), "").log();
    assert!(said.contains("WARN") && said.contains("synchronous_commit is off"), "{said}");
    let (_, shown) =
        crate::support::told(crate::support::program().args(["config", "show"]).env("JOBWIRE_STORE", &named));
    assert!(shown.contains("store.url") && !shown.contains("secret"), "{shown}");
}
