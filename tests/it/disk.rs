//! A disk that fails or is full, under the real program: `faults.c` is preloaded into it.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use jobwire::{
    proto::{JobFilter, ListJobsRequest, SubmitRequest},
    store::sqlite,
};
use tempfile::TempDir;
use tonic::{Code, Status};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_types::StatusExt as _;

use crate::support::{Client, PATIENCE, Server, seconds, submit};

/// Where the control files are, and the library that looks for them.
struct Faults {
    dir: TempDir,
}

impl Faults {
    fn new() -> Self {
        let faults = Self { dir: tempfile::tempdir().expect("a temporary directory") };
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/faults.c");
        let compiled = Command::new("cc")
            .args(["-shared", "-fPIC", "-Wall", "-Werror", "-o"])
            .arg(faults.path("faults.so"))
            .arg(source)
            .arg("-ldl")
            .status();
        assert!(compiled.expect("a C compiler, as SQLite needs one too").success());
        faults
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn server(&self, config: &str) -> Server {
        let text = |name| self.path(name).to_str().expect("text").to_owned();
        let variables = [
            ("LD_PRELOAD", text("faults.so")),
            ("FAULT_SYNC", text("sync")),
            ("FAULT_WRITE", text("write")),
            ("FAULT_LOG", text("log")),
        ];
        let variables: Vec<_> = variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
        Server::with_variables(config, &variables)
    }

    fn begin(&self, fault: &str) {
        fs::write(self.path(fault), "").expect("a control file");
    }

    fn end(&self, fault: &str) {
        fs::remove_file(self.path(fault)).expect("the control file");
    }

    /// Syncs of the database that worked, so far.
    fn syncs(&self) -> usize {
        fs::read(self.path("log")).map_or(0, |log| log.len())
    }
}

#[tokio::test]
async fn a_sync_that_fails_is_the_last() {
    outlive("sync").await;
}

#[tokio::test]
async fn a_full_disk_loses_nothing() {
    outlive("write").await;
}

/// Submits, with the fault from the middle on; restarts without it and counts.
async fn outlive(fault: &str) {
    let faults = Faults::new();
    let mut server = faults.server("");
    let mut client = server.client().await;
    let mut health = HealthClient::new(server.channel().await);
    let watched = health.watch(HealthCheckRequest::default()).await.expect("a health watch");
    let mut watched = watched.into_inner();
    let mut acknowledged = BTreeSet::new();
    for _ in 0..20 {
        acknowledged.insert(submitted(&mut client).await.expect("an acknowledgement"));
    }

    faults.begin(fault);
    let refused = submitted(&mut client).await.expect_err("no acknowledgement that is not on the disk");
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
    if let Some(info) = refused.get_details_error_info() {
        assert_eq!(info.reason, "STORE_UNAVAILABLE");
    }
    // Not one more, whoever asks and however often.
    for _ in 0..10 {
        assert!(submitted(&mut client).await.is_err());
    }
    let gone = tokio::time::timeout(PATIENCE, async {
        loop {
            match watched.message().await {
                Ok(Some(told)) if told.status() == ServingStatus::NotServing => return,
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => return,
            }
        }
    });
    gone.await.expect("health tells, or the port is gone");
    assert!(!server.ended().await.success(), "the process says that it has failed");
    let log = server.log();
    assert!(log.contains("the store has failed"), "{log}");

    faults.end(fault);
    let server = server.restart();
    let report = sqlite::verify(&server.data()).expect("the store can be read");
    assert!(report.problems.is_empty(), "{:?}", report.problems);
    let found = all_ids(&mut server.client().await).await;
    let lost: Vec<_> = acknowledged.difference(&found).collect();
    assert!(lost.is_empty(), "acknowledged and lost: {lost:?}");
    assert!(submitted(&mut server.client().await).await.is_ok(), "work goes on");
}

async fn submitted(client: &mut Client) -> Result<String, Status> {
    let mut request = tonic::Request::new(submit("echo", "1"));
    request.set_timeout(Duration::from_secs(10));
    Ok(client.submit(request).await?.into_inner().job.expect("a job").job_id)
}

async fn all_ids(client: &mut Client) -> BTreeSet<String> {
    let request = ListJobsRequest { page_size: 1000, ..Default::default() };
    let page = client.list_jobs(request).await.expect("a list").into_inner();
    page.jobs.into_iter().map(|job| job.job_id).collect()
}

#[tokio::test]
async fn every_acknowledgement_waits_for_a_sync() {
    let faults = Faults::new();
    // Nothing else writes: no attempts are made.
    let server = faults.server("workers.concurrency = 0");
    let mut client = server.client().await;
    for _ in 0..20 {
        let before = faults.syncs();
        submitted(&mut client).await.expect("an acknowledgement");
        assert!(faults.syncs() > before, "acknowledged without a sync");
    }
}

#[tokio::test]
async fn every_result_that_is_told_was_synced() {
    let faults = Faults::new();
    let server = faults.server("");
    let mut client = server.client().await;
    for _ in 0..10 {
        let before = faults.syncs();
        let request = SubmitRequest { wait: Some(seconds(20.0)), ..submit("echo", "1") };
        assert!(client.submit(request).await.expect("a result").into_inner().done);
        assert!(faults.syncs() >= before + 2, "one for the submit, one for the result");
    }
}

#[tokio::test]
async fn a_directory_has_one_server() {
    let server = Server::start();
    let second = Command::new(env!("CARGO_BIN_EXE_jobwire"))
        .args(["serve", "--listen", "127.0.0.1:0", "--data"])
        .arg(server.data())
        .output()
        .expect("jobwire starts");
    assert!(!second.status.success());
    let said = String::from_utf8_lossy(&second.stderr);
    assert!(said.contains("is in use by another jobwire") && said.contains("--data"), "{said}");
    assert!(second.stdout.is_empty(), "it was never ready");
    // The first one has not noticed.
    assert!(submitted(&mut server.client().await).await.is_ok());
}

#[tokio::test]
async fn nobody_else_can_read_the_store() {
    let server = Server::start();
    submitted(&mut server.client().await).await.expect("an acknowledgement");
    let mode = |path: &Path| fs::metadata(path).expect("a file").permissions().mode() & 0o777;
    assert_eq!(mode(&server.data()), 0o700);
    let files: Vec<_> =
        fs::read_dir(server.data()).expect("a directory").map(|entry| entry.unwrap().path()).collect();
    assert!(files.len() >= 3, "{files:?}");
    for file in files {
        assert_eq!(mode(&file), 0o600, "{file:?}");
    }
}

#[tokio::test]
async fn a_backup_of_a_served_store_begins_a_log_of_its_own() {
    let server = Server::start();
    let mut client = server.client().await;
    let mut last = String::new();
    for _ in 0..50 {
        let request = SubmitRequest { wait: Some(seconds(20.0)), ..submit("echo", "1") };
        last = client.submit(request).await.expect("a result").into_inner().cursor;
    }
    let backup = server.scratch().join("backup");
    let jobwire = |arguments: &[&str]| {
        let output =
            Command::new(env!("CARGO_BIN_EXE_jobwire")).args(arguments).output().expect("jobwire starts");
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr),
        )
    };
    let (data, target) = (server.data(), backup.to_str().expect("text"));
    let data = data.to_str().expect("text");
    let (code, said) = jobwire(&["backup", target, "--data", data]);
    assert_eq!((code, said.contains(r#""jobs":50"#)), (Some(0), true), "{said}");
    let (code, said) = jobwire(&["backup", target, "--data", data]);
    assert_eq!((code, said.contains("exists already")), (Some(1), true), "{said}");
    for dir in [data, target] {
        let (code, said) = jobwire(&["verify", dir]);
        assert_eq!((code, said.contains(r#""jobs":50"#)), (Some(0), true), "{said}");
    }
    let (code, said) = jobwire(&["verify", server.scratch().to_str().expect("text")]);
    assert_eq!((code, said.contains("holds no jobwire store")), (Some(1), true), "{said}");

    let restored = Server::on(&backup);
    let mut client = restored.client().await;
    assert_eq!(all_ids(&mut client).await.len(), 50);
    let start = jobwire::proto::watch_results_request::Start::AfterCursor(last);
    let request = jobwire::proto::WatchResultsRequest { start: Some(start), ..Default::default() };
    let refused = client.watch_results(request).await.expect_err("a cursor of another log");
    assert_eq!(refused.get_details_error_info().expect("a reason").reason, "LOG_REPLACED");
    let filter = JobFilter { kinds: vec!["echo".into()], ..Default::default() };
    let request = ListJobsRequest { filter: Some(filter), page_size: 10, ..Default::default() };
    assert_eq!(client.list_jobs(request).await.expect("a list").into_inner().jobs.len(), 10);
}
