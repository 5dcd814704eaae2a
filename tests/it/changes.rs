//! CancelJob, RetryJob and DeleteJob, in each state, and by etag. GetServerInfo.

use std::time::{Duration, Instant};

use jobwire::proto::{
    CancelJobRequest, DeleteJobRequest, GetJobRequest, GetServerInfoRequest, Job, JobSpec, RetryJobRequest,
    SubmitRequest, job::State, job_error::Cause, job_spec::Start,
};
use tonic::{Code, Request, Status};

use crate::{
    calls::{Refusal, finish, get, place, reach, result},
    flaky::Flaky,
    postgres,
    support::{Client, Server, seconds, spec, submit},
};

pub async fn cancel(client: &Client, job_id: &str) -> Result<Job, Status> {
    let request =
        CancelJobRequest { job_id: job_id.into(), reason: "not needed".into(), ..Default::default() };
    Ok(client.clone().cancel_job(request).await?.into_inner().job.expect("a job"))
}

pub async fn retry(client: &Client, job_id: &str) -> Result<Job, Status> {
    let request = RetryJobRequest { job_id: job_id.into(), ..Default::default() };
    Ok(client.clone().retry_job(request).await?.into_inner().job.expect("a job"))
}

pub async fn delete(client: &Client, job_id: &str) -> Result<(), Status> {
    let request = DeleteJobRequest { job_id: job_id.into(), ..Default::default() };
    client.clone().delete_job(request).await.map(drop)
}

pub fn scheduled() -> SubmitRequest {
    let spec = JobSpec { start: Some(Start::Delay(seconds(3600.0))), ..spec("echo", "1") };
    SubmitRequest { spec: Some(spec), ..Default::default() }
}

fn is_cancelled(job: &Job) {
    assert_eq!(job.state(), State::Cancelled);
    let error = job.error.as_ref().unwrap();
    assert_eq!((error.cause(), error.message.as_str()), (Cause::Cancelled, "not needed"));
}

#[tokio::test]
async fn what_waits_is_cancelled_at_once() {
    let flaky = Flaky::new();
    let server = Server::with(&flaky.config());
    let client = server.client().await;
    let queued = place(&client, submit("nobody", "1")).await;
    let later = place(&client, scheduled()).await;
    let backing_off = place(&client, flaky.job(3600.0)).await;
    reach(&client, &backing_off, State::BackingOff).await;
    for id in [queued, later, backing_off] {
        is_cancelled(&cancel(&client, &id).await.unwrap());
        let again = cancel(&client, &id).await.unwrap();
        is_cancelled(&again);
        assert_eq!(get(&client, &id).await.etag, again.etag);
    }
}

#[tokio::test]
async fn what_runs_is_stopped_within_a_second() {
    let server = Server::start();
    let client = server.client().await;
    let id = place(&client, submit("sleep", r#"{"duration":"1h"}"#)).await;
    reach(&client, &id, State::Running).await;
    let start = Instant::now();
    let told = cancel(&client, &id).await.unwrap();
    assert!(told.cancel_requested || told.state() == State::Cancelled, "{told:?}");
    is_cancelled(&result(&client, &id).await);
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_final_job_is_answered_as_it_is() {
    let server = Server::start();
    let client = server.client().await;
    let done = finish(&client, submit("echo", "1")).await;
    assert_eq!(cancel(&client, &done.job_id).await.unwrap(), done);
}

#[tokio::test]
async fn a_retry_is_a_new_run_of_what_did_not_succeed() {
    let server = Server::start();
    let client = server.client().await;
    let failed = finish(&client, submit("sleep", "1")).await.job_id;
    let job = retry(&client, &failed).await.unwrap();
    assert_eq!((job.run, job.attempt), (2, 0));
    let again = result(&client, &failed).await;
    assert_eq!((again.state(), again.run, again.attempt), (State::Failed, 2, 1));
    assert_eq!(get(&client, &failed).await.attempts.len(), 2);

    let cancelled = place(&client, submit("nobody", "1")).await;
    cancel(&client, &cancelled).await.unwrap();
    let request = RetryJobRequest { job_id: cancelled, delay: Some(seconds(3600.0)), ..Default::default() };
    let job = client.clone().retry_job(request).await.unwrap().into_inner().job.unwrap();
    assert_eq!((job.state(), job.run, job.error), (State::Scheduled, 2, None));
}

#[tokio::test]
async fn a_retry_ends_a_back_off() {
    let flaky = Flaky::new();
    let server = Server::with(&flaky.config());
    let client = server.client().await;
    let id = place(&client, flaky.job(3600.0)).await;
    reach(&client, &id, State::BackingOff).await;
    flaky.mend();
    assert_eq!(retry(&client, &id).await.unwrap().run, 1);
    let job = result(&client, &id).await;
    assert_eq!((job.state(), job.run, job.attempt), (State::Succeeded, 1, 2));
}

#[tokio::test]
async fn the_wrong_state_is_refused() {
    let server = Server::start();
    let client = server.client().await;
    let succeeded = finish(&client, submit("echo", "1")).await.job_id;
    let queued = place(&client, submit("nobody", "1")).await;
    let later = place(&client, scheduled()).await;
    let running = place(&client, submit("sleep", r#"{"duration":"1h"}"#)).await;
    reach(&client, &running, State::Running).await;
    for (id, state, retried) in [
        (&succeeded, "STATE_SUCCEEDED", true),
        (&queued, "STATE_QUEUED", true),
        (&later, "STATE_SCHEDULED", true),
        (&running, "STATE_RUNNING", true),
        (&queued, "STATE_QUEUED", false),
        (&later, "STATE_SCHEDULED", false),
        (&running, "STATE_RUNNING", false),
    ] {
        let refused = match retried {
            true => Refusal::of(retry(&client, id).await),
            false => Refusal::of(delete(&client, id).await),
        };
        assert_eq!((&refused.metadata["job_id"], refused.metadata["state"].as_str()), (id, state));
        let violation = &refused.details.precondition_failure().unwrap().violations[0];
        assert_eq!((violation.r#type.as_str(), &violation.subject), ("JOB_STATE", id));
        refused.is(Code::FailedPrecondition, "JOB_STATE").says(&[id, "needs"]);
    }
}

#[tokio::test]
async fn a_deleted_job_is_gone() {
    let server = Server::start();
    let client = server.client().await;
    let id = finish(&client, submit("echo", "1")).await.job_id;
    delete(&client, &id).await.unwrap();
    let gone = GetJobRequest { job_id: id.clone(), ..Default::default() };
    Refusal::of(client.clone().get_job(gone).await).is(Code::NotFound, "JOB_NOT_FOUND");
    Refusal::of(delete(&client, &id).await).is(Code::NotFound, "JOB_NOT_FOUND");
    let again = DeleteJobRequest { job_id: id, allow_missing: true, ..Default::default() };
    client.clone().delete_job(again).await.unwrap();
}

#[tokio::test]
async fn unknown_jobs_are_not_found() {
    let server = Server::start();
    let client = server.client().await;
    for refused in [
        Refusal::of(cancel(&client, "nowhere").await),
        Refusal::of(retry(&client, "nowhere").await),
        Refusal::of(delete(&client, "nowhere").await),
    ] {
        assert_eq!(refused.resource(), "nowhere");
        refused.is(Code::NotFound, "JOB_NOT_FOUND");
    }
}

#[tokio::test]
async fn an_etag_guards_against_what_happened_meanwhile() {
    let server = Server::start();
    let client = server.client().await;
    let job = finish(&client, submit("sleep", "1")).await;
    let (id, etag) = (job.job_id, job.etag);
    let retry = RetryJobRequest { job_id: id.clone(), etag: etag.clone(), ..Default::default() };
    client.clone().retry_job(retry.clone()).await.unwrap();
    let now = result(&client, &id).await.etag;
    let cancel = CancelJobRequest { job_id: id.clone(), etag: etag.clone(), ..Default::default() };
    let delete = DeleteJobRequest { job_id: id.clone(), etag, ..Default::default() };
    for refused in [
        Refusal::of(client.clone().retry_job(retry).await),
        Refusal::of(client.clone().cancel_job(cancel).await),
        Refusal::of(client.clone().delete_job(delete).await),
    ] {
        assert_eq!((&refused.metadata["job_id"], &refused.metadata["etag"]), (&id, &now));
        refused.is(Code::Aborted, "ETAG_MISMATCH").says(&[&id, &now, "read it again"]);
    }
    let delete = DeleteJobRequest { job_id: id, etag: now, ..Default::default() };
    client.clone().delete_job(delete).await.unwrap();
}

#[tokio::test]
async fn a_call_hears_the_name_that_its_caller_gave_it() {
    let server = Server::start();
    let client = server.client().await;
    let named = || {
        let mut request = Request::new(GetJobRequest { job_id: "nothing".into(), ..Default::default() });
        request.metadata_mut().insert("x-request-id", "call-7".parse().unwrap());
        request
    };
    let status = client.clone().get_job(named()).await.unwrap_err();
    assert_eq!(status.metadata().get("x-request-id").unwrap(), "call-7");
    let request = named().map(|_| GetServerInfoRequest {});
    let answer = client.clone().get_server_info(request).await.unwrap();
    assert_eq!(answer.metadata().get("x-request-id").unwrap(), "call-7");
    let answer = client.clone().get_server_info(GetServerInfoRequest {}).await.unwrap();
    assert_eq!(answer.metadata().get("x-request-id"), None);
}

#[tokio::test]
async fn a_server_tells_what_it_is() {
    let server = Server::with("[limits]\nmax_batch_items = 7\n[watch]\nretention = \"2h\"\n");
    let client = server.client().await;
    let info = client.clone().get_server_info(GetServerInfoRequest {}).await.unwrap().into_inner();
    assert_eq!(info.version, env!("CARGO_PKG_VERSION"));
    assert!(!info.instance_id.is_empty() && !info.log_id.is_empty());
    let store = if postgres::is_asked_for() { "store:postgres" } else { "store:sqlite" };
    for feature in [store, "grpc-web", "workers", "kind:echo", "kind:sleep", "kind:http"] {
        assert!(info.features.iter().any(|known| known == feature), "{feature}: {:?}", info.features);
    }
    let limits = info.limits.unwrap();
    assert_eq!(
        (limits.max_payload_bytes, limits.max_message_bytes, limits.max_batch_items),
        (1 << 20, 4 << 20, 7)
    );
    assert_eq!(limits.watch_retention, Some(seconds(7200.0)));
    assert_eq!(limits.max_wait, Some(seconds(45.0)));
}
