//! A disk that fails or is full, under the real program: `faults.c` is preloaded into it.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    time::{Duration, Instant},
};

use jobwire::{
    proto::{GetResultRequest, ListJobsRequest, SubmitRequest, job::State},
    store::sqlite,
};
use tonic::{Code, Status};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_types::StatusExt as _;

use crate::{
    faults::Faults,
    support::{Client, PATIENCE, Server, jobwire, program, seconds, submit, told},
};

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
    let server = faults.server("");
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
    recover(&faults, fault, server, &acknowledged).await;
}

/// It does not wait for what runs any more, and says that it has failed.
#[tokio::test]
async fn a_sync_that_fails_during_a_stop_is_the_last_too() {
    let faults = Faults::new();
    let mut server = faults.server("drain_timeout = \"1h\"\n");
    let client = server.client().await;
    let id = crate::calls::place(&client, submit("sleep", r#"{"duration":"1h"}"#)).await;
    crate::calls::reach(&client, &id, State::Running).await;
    server.signal("TERM");
    crate::calls::eventually(async || server.log().contains("stopping").then_some(())).await;
    faults.begin("sync");
    crate::changes::cancel(&client, &id).await.expect_err("it cannot be written");
    let status = server.ended().await;
    assert!(!status.success(), "{status}");
    faults.end("sync");
}

#[tokio::test]
async fn a_log_that_cannot_be_written_back_is_not_tried_twice() {
    let faults = Faults::new();
    let server = faults.server("[store]\nwal_limit_bytes = 1048576\n");
    let mut client = server.client().await;
    faults.begin("back");
    let large = format!("{:?}", "x".repeat(500_000));
    let mut acknowledged = BTreeSet::new();
    let end = Instant::now() + PATIENCE;
    // Commits go on for as long as their own syncs do, but not after the one of the database has failed.
    while let Ok(reply) = client.submit(submit("echo", &large)).await {
        acknowledged.insert(reply.into_inner().job.expect("a job").job_id);
        assert!(Instant::now() < end, "the server goes on with a disk that has failed");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(acknowledged.len() > 1, "the log has to grow first");
    recover(&faults, "back", server, &acknowledged).await;
}

/// The server leaves by itself; without the fault all that was acknowledged is found.
async fn recover(faults: &Faults, fault: &str, mut server: Server, acknowledged: &BTreeSet<String>) {
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
    let data = server.data();
    let (code, said) = jobwire(&["serve", "--listen", "127.0.0.1:0", "--data", data.to_str().expect("text")]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("is in use by another jobwire") && said.contains("--data"), "{said}");
    assert!(!said.contains("listening on"), "it was never ready: {said}");
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
async fn a_store_of_the_future_is_left_alone() {
    let mut server = Server::start();
    submitted(&mut server.client().await).await.expect("an acknowledgement");
    server.signal("TERM");
    server.ended().await;
    let database = server.data().join("jobwire.db");
    let connection = rusqlite::Connection::open(&database).expect("a database");
    connection.pragma_update(None, "user_version", 99).expect("a version");
    connection.close().expect("a close");
    let before = fs::read(&database).expect("a file");

    let (data, copy) = (server.data(), server.scratch().join("copy"));
    let (data, copy) = (data.to_str().expect("text"), copy.to_str().expect("text"));
    for command in [
        ["serve", "--listen", "127.0.0.1:0", "--data", data].as_slice(),
        &["verify", data],
        &["backup", copy, "--data", data],
    ] {
        let (code, said) = jobwire(command);
        assert_eq!(code, Some(1), "{command:?}: {said}");
        assert!(said.contains("has schema 99") && said.contains("use the newer jobwire"), "{said}");
    }
    assert!(fs::read(&database).expect("a file") == before, "not a byte has changed");
    assert!(!Path::new(copy).exists());
}

/// On a disk that is nearly full no job is taken, but those that were get their results.
#[tokio::test]
async fn a_reserve_is_kept_for_results() {
    let faults = Faults::new();
    let mut server = faults.server("workers.concurrency = 0");
    let mut client = server.client().await;
    let mut waiting = Vec::new();
    for _ in 0..10 {
        waiting.push(submitted(&mut client).await.expect("an acknowledgement"));
    }
    server.kill();
    faults.begin("room");
    let server = server.restart_with("");
    let mut client = server.client().await;
    let refused = submitted(&mut client).await.expect_err("there is no room");
    assert_eq!(refused.get_details_error_info().expect("a reason").reason, "STORE_FULL");
    for job_id in waiting {
        let request = GetResultRequest { job_id, wait: Some(seconds(20.0)), ..Default::default() };
        let reply = client.get_result(request).await.expect("a result").into_inner();
        assert_eq!(reply.job.expect("a job").state(), State::Succeeded);
    }
    faults.end("room");
    let end = Instant::now() + PATIENCE;
    while let Err(refused) = submitted(&mut client).await {
        assert_eq!(refused.get_details_error_info().expect("a reason").reason, "STORE_FULL");
        assert!(Instant::now() < end, "nobody has noticed that there is room again");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_backup_that_fails_leaves_nothing() {
    let faults = Faults::new();
    let server = Server::start();
    submitted(&mut server.client().await).await.expect("an acknowledgement");
    let target = server.scratch().join("backups");
    fs::create_dir(&target).expect("a directory");
    let backup = || {
        let mut command = program();
        command.arg("backup").arg(target.join("monday")).arg("--data").arg(server.data());
        told(command.envs(faults.variables()))
    };
    for fault in ["write", "sync"] {
        faults.begin(fault);
        let (code, said) = backup();
        assert_eq!(code, Some(1), "{fault}: {said}");
        assert!(said.starts_with("error: "), "{said}");
        assert_eq!(fs::read_dir(&target).expect("a directory").count(), 0, "{fault}");
        faults.end(fault);
    }
    assert_eq!(backup().0, Some(0), "the same name can be used afterwards");
    assert!(submitted(&mut server.client().await).await.is_ok(), "the server has not noticed");
}
