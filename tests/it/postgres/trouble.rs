//! A standby that falls silent, and a database that has no room left, or does not answer.

use std::time::Duration;

use jobwire::proto::{FinishJobRequest, LeaseJobsRequest, RenewLeasesRequest, SubmitRequest, job::State};
use tonic::{Code, Request};

use super::{Cluster, connect, schema};
use crate::{
    calls::{Refusal, accept, eventually, finish, get, place},
    support::{Server, submit},
    workers::{KIND, succeeded, task, workers},
};

#[tokio::test]
async fn what_the_standby_does_not_have_is_not_acknowledged() {
    let mut cluster = Cluster::start(&["--standby", "sync"]);
    let url = cluster.schema();
    let server = Server::on_database(&url, "[workers]\nconcurrency = 0\n");
    let client = server.client().await;
    place(&client, task("1")).await;
    cluster.order("pause");
    let request = SubmitRequest { job_id: "late".into(), ..task("2") };
    let submitted = tokio::spawn({
        let client = client.clone();
        async move { accept(&client, request).await }
    });
    let waits = "select count(*) from pg_stat_activity where wait_event = 'SyncRep' and query like '-- Accepts new jobs%'";
    let primary = connect(&url).await;
    eventually(async || {
        let waiting: i64 = primary.query_one(waits, &[]).await.expect("a row").get(0);
        (waiting > 0).then_some(())
    })
    .await;
    assert!(!submitted.is_finished());
    cluster.order("resume");
    assert!(!submitted.await.expect("no panic").deduplicated);
    assert_eq!(get(&client, "late").await.state(), State::Queued);
}

#[tokio::test]
async fn a_claim_that_hangs_keeps_its_place() {
    let url = schema();
    let server = Server::on_database(&url, "[workers]\nconcurrency = 0\nmax_connected = 1\n");
    place(&server.client().await, task("1")).await;
    let worker = workers(&server).await;
    let ask = async || {
        let call =
            LeaseJobsRequest { worker_id: "me".into(), kinds: vec![KIND.into()], ..Default::default() };
        let mut call = Request::new(call);
        call.set_timeout(Duration::from_secs(1));
        worker.clone().lease_jobs(call).await
    };
    let database = connect(&url).await;
    database.batch_execute("begin; lock table ready").await.expect("nobody else holds it for long");
    let late = ask().await.expect_err("there is no answer").code();
    // Whichever side notices first.
    assert!([Code::DeadlineExceeded, Code::Cancelled].contains(&late), "{late}");
    Refusal::of(ask().await).is(Code::ResourceExhausted, "WATCH_LIMIT");
    database.batch_execute("commit").await.expect("it is there");
    eventually(async || ask().await.ok()?.into_inner().leases.pop()).await;
}

#[tokio::test]
async fn a_report_whose_caller_has_gone_is_carried_out_to_its_end() {
    let url = schema();
    let server = Server::on_database(&url, "[workers]\nconcurrency = 0\n");
    let id = place(&server.client().await, task("1")).await;
    let worker = workers(&server).await;
    let request = LeaseJobsRequest { worker_id: "me".into(), kinds: vec![KIND.into()], ..Default::default() };
    let leases = worker.clone().lease_jobs(request).await.expect("the call is fine").into_inner().leases;
    let database = connect(&url).await;
    database.batch_execute("begin; lock table lease").await.expect("nobody else holds it for long");
    let mut call = Request::new(FinishJobRequest { finish: Some(succeeded(&leases[0], "1")) });
    call.set_timeout(Duration::from_secs(1));
    worker.clone().finish_job(call).await.expect_err("there is no answer");
    database.batch_execute("commit").await.expect("it is there");
    let client = server.client().await;
    eventually(async || (get(&client, &id).await.state() == State::Succeeded).then_some(())).await;
    // Nothing is left of the lease.
    let lease_ids = vec![leases[0].lease_id.clone()];
    let request =
        RenewLeasesRequest { worker_id: "me".into(), lease_ids: lease_ids.clone(), ..Default::default() };
    eventually(async || {
        let renewed = worker.clone().renew_leases(request.clone()).await.expect("the call is fine");
        (renewed.into_inner().lost_lease_ids == lease_ids).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_database_that_is_full_takes_no_jobs_but_serves() {
    let server = Server::on_database(&schema(), "");
    let id = place(&server.client().await, task("1")).await;
    let server = again(server, "[store]\nmax_database_bytes = 1000000\n").await;
    let client = server.client().await;
    Refusal::of(client.clone().submit(submit("echo", "1")).await)
        .is(Code::ResourceExhausted, "STORE_FULL")
        .retry_delay();
    let worker = workers(&server).await;
    let request = LeaseJobsRequest { worker_id: "me".into(), kinds: vec![KIND.into()], ..Default::default() };
    let leases = worker.clone().lease_jobs(request).await.expect("the call is fine").into_inner().leases;
    let finish_it = FinishJobRequest { finish: Some(succeeded(&leases[0], "1")) };
    worker.clone().finish_job(finish_it).await.expect("it counts");
    assert_eq!(get(&client, &id).await.state(), State::Succeeded);
    let server = again(server, "").await;
    finish(&server.client().await, submit("echo", "1")).await;
}

async fn again(mut server: Server, config: &str) -> Server {
    server.signal("TERM");
    server.ended().await;
    server.restart_with(config)
}
