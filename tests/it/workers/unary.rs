//! The same by unary calls.

use std::{slice::from_ref, time::Duration};

use jobwire::proto::{
    CancelJobRequest, FinishJobRequest, FinishJobResponse, Job, JobError, Lease, LeaseJobsRequest,
    LeaseProgress, PayloadFormat, Release, RenewLeasesRequest, RenewLeasesResponse, finish::Outcome,
    job::State, job_error::Cause, lease_revoked::Reason,
};
use tokio::time::{sleep, timeout};
use tonic::{Code, Request, Status};

use super::{KIND, SHORT, Worker, checkpoint, failed, finish, hello, succeeded, task, workers};
use crate::{
    calls::{Refusal, get, place, reach, result},
    support::{PATIENCE, Server, Workers, json, seconds},
};

fn ask(wait: f64) -> LeaseJobsRequest {
    LeaseJobsRequest {
        worker_id: "me".into(),
        kinds: vec![KIND.into()],
        wait: (wait > 0.0).then(|| seconds(wait)),
        ..Default::default()
    }
}

async fn lease(client: &Workers, request: LeaseJobsRequest) -> Vec<Lease> {
    let reply = timeout(PATIENCE, client.clone().lease_jobs(request)).await.expect("an answer");
    reply.expect("the call is fine").into_inner().leases
}

async fn one(client: &Workers) -> Lease {
    lease(client, ask(20.0)).await.pop().expect("a lease")
}

async fn finish_job(client: &Workers, finish: jobwire::proto::Finish) -> Result<Job, Status> {
    let reply = client.clone().finish_job(FinishJobRequest { finish: Some(finish) }).await?;
    let FinishJobResponse { job } = reply.into_inner();
    Ok(job.expect("a job"))
}

async fn renew(client: &Workers, leases: &[&Lease], progress: Vec<LeaseProgress>) -> RenewLeasesResponse {
    let lease_ids = leases.iter().map(|lease| lease.lease_id.clone()).collect();
    let request = RenewLeasesRequest { worker_id: "me".into(), lease_ids, progress, lease_duration: None };
    client.clone().renew_leases(request).await.expect("the call is fine").into_inner()
}

#[tokio::test]
async fn a_job_is_leased_renewed_and_finished() {
    let server = Server::start();
    let (jobs, client) = (server.client().await, workers(&server).await);
    let waiting = tokio::spawn({
        let client = client.clone();
        async move { one(&client).await }
    });
    sleep(Duration::from_millis(100)).await;
    let id = place(&jobs, task(r#"{"n":1}"#)).await;
    let held = waiting.await.unwrap();
    let job = held.job.as_ref().unwrap();
    assert_eq!((job.job_id.as_str(), job.worker_id.as_str(), held.sequence), (id.as_str(), "me", 1));

    let step = LeaseProgress {
        lease_id: held.lease_id.clone(),
        progress: Some(checkpoint(0.5, Some(json(r#"{"page":1}"#)))),
    };
    let renewed = renew(&client, &[&held], vec![step]).await;
    assert!(renewed.lost_lease_ids.is_empty() && renewed.revoked.is_empty(), "{renewed:?}");
    assert!(renewed.lease_expire_time.unwrap().seconds >= held.lease_expire_time.unwrap().seconds);
    assert_eq!(get(&jobs, &id).await.progress.unwrap().fraction, 0.5);

    let done = finish_job(&client, succeeded(&held, r#"{"ok":true}"#)).await.unwrap();
    assert_eq!((done.job_id.as_str(), done.state()), (id.as_str(), State::Succeeded));
    // IDEMPOTENT: a repeat is answered alike.
    assert_eq!(finish_job(&client, succeeded(&held, r#"{"ok":true}"#)).await.unwrap(), done);
    let other = finish_job(&client, succeeded(&held, "2")).await;
    Refusal::of(other).is(Code::FailedPrecondition, "LEASE_LOST");
    assert_eq!(renew(&client, &[&held], vec![]).await.lost_lease_ids, from_ref(&held.lease_id));
    assert_eq!(get(&jobs, &id).await.attempt, 1);
}

#[tokio::test]
async fn failures_and_cancels_go_their_way() {
    let server = Server::with(SHORT);
    let (jobs, client) = (server.client().await, workers(&server).await);
    let id = place(&jobs, task("1")).await;
    let held = one(&client).await;
    let backing_off = finish_job(&client, failed(&held, "busy")).await.unwrap();
    assert_eq!(
        (backing_off.job_id.as_str(), backing_off.error.unwrap().code.as_str()),
        (id.as_str(), "busy")
    );
    let held = one(&client).await;
    assert_eq!(held.job.as_ref().unwrap().attempt, 2);
    jobs.clone()
        .cancel_job(CancelJobRequest { job_id: id.clone(), ..Default::default() })
        .await
        .expect("it is cancelled");
    let renewed = renew(&client, &[&held], vec![]).await;
    let [revoked] = &renewed.revoked[..] else { panic!("{renewed:?}") };
    assert_eq!((&revoked.lease_id, revoked.reason()), (&held.lease_id, Reason::Cancelled));
    assert_eq!(result(&jobs, &id).await.error.unwrap().cause(), Cause::Cancelled, "its grace is over");
    Refusal::of(finish_job(&client, succeeded(&held, "1")).await).is(Code::FailedPrecondition, "LEASE_LOST");
}

/// What happened counts for more than how long its worker wants to wait.
#[tokio::test]
async fn a_wait_that_is_too_long_is_cut() {
    let server = Server::with("[limits]\nmax_delay = \"1h\"\n");
    let (jobs, client) = (server.client().await, workers(&server).await);
    place(&jobs, task("1")).await;
    let held = one(&client).await;
    let error = JobError { retryable: true, retry_delay: Some(seconds(1e9)), ..Default::default() };
    let job = finish_job(&client, finish(&held.lease_id, Outcome::Failed(error))).await.unwrap();
    assert_eq!(job.state(), State::BackingOff);
    assert_eq!(job.error.unwrap().retry_delay, Some(seconds(3600.0)));
    place(&jobs, task("2")).await;
    let held = one(&client).await;
    let release = Release { delay: Some(seconds(1e9)), ..Default::default() };
    let job = finish_job(&client, finish(&held.lease_id, Outcome::Released(release))).await.unwrap();
    assert_eq!(job.state(), State::Scheduled);
}

#[tokio::test]
async fn without_jobs_the_answer_is_none_at_the_end_of_the_wait() {
    let server = Server::start();
    let client = workers(&server).await;
    assert!(lease(&client, ask(0.0)).await.is_empty());
    assert!(lease(&client, ask(0.3)).await.is_empty());
    let mut request = Request::new(ask(30.0));
    request.set_timeout(Duration::from_secs(1));
    let reply = client.clone().lease_jobs(request).await.expect("an answer before the deadline");
    assert!(reply.into_inner().leases.is_empty());
}

#[tokio::test]
async fn a_repeat_that_has_less_room_gives_nothing_back_that_is_held() {
    let server = Server::start();
    let (jobs, client) = (server.client().await, workers(&server).await);
    // As values they take five times as many bytes.
    let list = format!("[{}]", ["1"; 90_000].join(","));
    for _ in 0..9 {
        place(&jobs, task(&list)).await;
    }
    let ask = LeaseJobsRequest { max_jobs: 9, request_id: "r".into(), ..ask(0.0) };
    let held = lease(&client, ask.clone()).await;
    assert_eq!(held.len(), 9);
    renew(&client, &held.iter().collect::<Vec<_>>(), vec![]).await;
    let readable = LeaseJobsRequest { payload_format: PayloadFormat::Readable.into(), ..ask };
    assert_eq!(lease(&client, readable).await.len(), 4);
    for held in &held {
        finish_job(&client, succeeded(held, "1")).await.expect("it is held");
    }
}

#[tokio::test]
async fn several_jobs_come_in_one_answer() {
    let server = Server::start();
    let (jobs, client) = (server.client().await, workers(&server).await);
    for n in 0..5 {
        place(&jobs, task(&n.to_string())).await;
    }
    let leases = lease(&client, LeaseJobsRequest { max_jobs: 3, ..ask(0.0) }).await;
    assert_eq!(leases.iter().map(|lease| lease.sequence).collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(lease(&client, LeaseJobsRequest { max_jobs: 9, ..ask(0.0) }).await.len(), 2);
}

#[tokio::test]
async fn an_answer_is_a_message_whatever_the_jobs_hold() {
    let server = Server::start();
    let (jobs, client) = (server.client().await, workers(&server).await);
    let text = format!("{:?}", "x".repeat(1_000_000));
    for _ in 0..9 {
        place(&jobs, task(&text)).await;
    }
    let mut seen = 0;
    while seen < 9 {
        let leases = lease(&client, LeaseJobsRequest { max_jobs: 9, payload_format: 1, ..ask(5.0) }).await;
        assert!(!leases.is_empty(), "{seen} came");
        for held in &leases {
            assert_eq!(held.job.as_ref().unwrap().attempt, 1);
            finish_job(&client, succeeded(held, "1")).await.unwrap();
        }
        seen += leases.len();
    }
}

#[tokio::test]
async fn a_repeat_with_the_same_request_id_is_given_the_same_leases() {
    let server = Server::start();
    let (jobs, client) = (server.client().await, workers(&server).await);
    for n in 0..3 {
        place(&jobs, task(&n.to_string())).await;
    }
    let request = LeaseJobsRequest { request_id: "r1".into(), max_jobs: 2, ..ask(1.0) };
    let first = lease(&client, request.clone()).await;
    assert_eq!(first.len(), 2);
    assert_eq!(lease(&client, request.clone()).await, first);
    finish_job(&client, succeeded(&first[0], "1")).await.unwrap();
    let left = lease(&client, request.clone()).await;
    assert_eq!(left.iter().map(|held| &held.lease_id).collect::<Vec<_>>(), [&first[1].lease_id]);
    // Another worker's request is another one.
    let theirs = lease(&client, LeaseJobsRequest { worker_id: "you".into(), ..request.clone() }).await;
    assert_eq!(theirs.len(), 1);
    // With nothing left of it, it is a new request.
    finish_job(&client, succeeded(&first[1], "1")).await.unwrap();
    assert!(lease(&client, request).await.is_empty());
}

#[tokio::test]
async fn a_call_that_was_given_up_takes_no_job_away() {
    let server = Server::start();
    let (jobs, client) = (server.client().await, workers(&server).await);
    for _ in 0..5 {
        let given_up = timeout(Duration::from_millis(100), client.clone().lease_jobs(ask(30.0))).await;
        assert!(given_up.is_err());
    }
    let id = place(&jobs, task("1")).await;
    let held = one(&client).await;
    let job = held.job.unwrap();
    assert_eq!((job.job_id, job.attempt), (id, 1));
}

#[tokio::test]
async fn a_reply_that_was_lost_is_repeated() {
    let server = Server::start();
    let (jobs, client) = (server.client().await, workers(&server).await);
    let request = LeaseJobsRequest { request_id: "r1".into(), ..ask(30.0) };
    let given_up = timeout(Duration::from_millis(200), client.clone().lease_jobs(request.clone())).await;
    assert!(given_up.is_err());
    // Leased to the call that nobody waits for any more.
    let id = place(&jobs, task("1")).await;
    reach(&jobs, &id, State::Running).await;
    let held = lease(&client, request).await.pop().expect("the lease that was lost");
    finish_job(&client, succeeded(&held, "1")).await.unwrap();
    assert_eq!(result(&jobs, &id).await.attempt, 1);
}

#[tokio::test]
async fn a_repeat_waits_no_longer_than_it_asks_for() {
    let server = Server::start();
    let client = workers(&server).await;
    let request = |wait| LeaseJobsRequest { request_id: "r1".into(), ..ask(wait) };
    assert!(timeout(Duration::from_millis(200), client.clone().lease_jobs(request(30.0))).await.is_err());
    for wait in [0.0, 0.1] {
        let repeat = timeout(Duration::from_secs(10), lease(&client, request(wait)));
        assert_eq!(repeat.await.expect("the first one still waits"), []);
    }
}

#[tokio::test]
async fn a_failure_whose_details_are_too_long_counts_without_them() {
    let server = Server::start();
    let (jobs, client) = (server.client().await, workers(&server).await);
    let id = place(&jobs, task("1")).await;
    let held = one(&client).await;
    let details = Some(json(&format!("{:?}", "x".repeat(2 << 20))));
    let error = JobError { code: "busy".into(), message: "later".into(), details, ..Default::default() };
    finish_job(&client, finish(&held.lease_id, Outcome::Failed(error))).await.unwrap();
    let error = result(&jobs, &id).await.error.expect("an error");
    assert_eq!((error.code.as_str(), error.details), ("busy", None));
}

#[tokio::test]
async fn a_lease_that_is_never_renewed_goes_back_uncounted_and_a_long_one_early() {
    let server = Server::with(SHORT);
    let (jobs, client) = (server.client().await, workers(&server).await);
    place(&jobs, task("1")).await;
    let long = LeaseJobsRequest { lease_duration: Some(seconds(3600.0)), ..ask(20.0) };
    let lost = lease(&client, long).await.pop().unwrap();
    let again = one(&client).await;
    assert_eq!(again.job.as_ref().unwrap().attempt, 1);
    Refusal::of(finish_job(&client, succeeded(&lost, "1")).await).is(Code::FailedPrecondition, "LEASE_LOST");
    finish_job(&client, succeeded(&again, "1")).await.unwrap();
}

#[tokio::test]
async fn a_renewed_lease_lives_as_long_as_was_asked() {
    let server = Server::with(SHORT);
    let (jobs, client) = (server.client().await, workers(&server).await);
    let id = place(&jobs, task("1")).await;
    let held = one(&client).await;
    let request = RenewLeasesRequest {
        lease_ids: vec![held.lease_id.clone()],
        lease_duration: Some(seconds(3600.0)),
        ..Default::default()
    };
    let renewed = client.clone().renew_leases(request).await.unwrap().into_inner();
    let expires = renewed.lease_expire_time.unwrap().seconds;
    assert!(expires - held.lease_expire_time.unwrap().seconds > 3000);
    sleep(Duration::from_secs(3)).await;
    assert_eq!(get(&jobs, &id).await.state(), State::Running);
    finish_job(&client, succeeded(&held, "1")).await.unwrap();
}

/// Shorter than the time between heartbeats, even.
#[tokio::test]
async fn a_short_lease_is_renewed_for_as_long_as_its_worker_says_so() {
    let server = Server::start();
    let (jobs, client) = (server.client().await, workers(&server).await);
    let id = place(&jobs, task("1")).await;
    let short = Some(seconds(2.0));
    let request = LeaseJobsRequest { lease_duration: short, ..ask(20.0) };
    let held = lease(&client, request).await.pop().expect("a lease");
    for _ in 0..16 {
        sleep(Duration::from_millis(250)).await;
        let request = RenewLeasesRequest {
            worker_id: "me".into(),
            lease_ids: vec![held.lease_id.clone()],
            lease_duration: short,
            ..Default::default()
        };
        let renewed = client.clone().renew_leases(request).await.expect("the call is fine").into_inner();
        assert!(renewed.lost_lease_ids.is_empty(), "{renewed:?}");
    }
    let job = finish_job(&client, succeeded(&held, "1")).await.unwrap();
    assert_eq!((job.state(), job.attempt, job.job_id), (State::Succeeded, 1, id));
}

#[tokio::test]
async fn a_stream_may_go_on_with_what_a_call_has_leased() {
    let server = Server::start();
    let (jobs, client) = (server.client().await, workers(&server).await);
    let id = place(&jobs, task("1")).await;
    let held = one(&client).await;
    let mut hello = hello("me", 1);
    hello.held_lease_ids = vec![held.lease_id.clone()];
    let mut worker = Worker::connect(&server, hello).await;
    assert!(worker.welcome.lost_lease_ids.is_empty());
    jobs.clone()
        .cancel_job(CancelJobRequest { job_id: id.clone(), ..Default::default() })
        .await
        .expect("it is cancelled");
    assert_eq!(worker.revoked().await.lease_id, held.lease_id);
}

#[tokio::test]
async fn what_breaks_the_rules_is_refused_in_so_many_words() {
    let server = Server::start();
    let client = workers(&server).await;
    let refused = async |request: LeaseJobsRequest| {
        Refusal::of(client.clone().lease_jobs(request).await)
            .is(Code::InvalidArgument, "INVALID_FIELD")
            .field()
            .to_owned()
    };
    assert_eq!(refused(LeaseJobsRequest { worker_id: String::new(), ..ask(0.0) }).await, "worker_id");
    assert_eq!(refused(LeaseJobsRequest { kinds: vec![], ..ask(0.0) }).await, "kinds");
    assert_eq!(refused(LeaseJobsRequest { max_jobs: -1, ..ask(0.0) }).await, "max_jobs");
    assert_eq!(refused(LeaseJobsRequest { max_jobs: 1001, ..ask(0.0) }).await, "max_jobs");
    assert_eq!(refused(LeaseJobsRequest { request_id: "a b".into(), ..ask(0.0) }).await, "request_id");
    let none = Some(seconds(0.0));
    assert_eq!(refused(LeaseJobsRequest { lease_duration: none, ..ask(0.0) }).await, "lease_duration");
    let missing = client.clone().finish_job(FinishJobRequest { finish: None }).await;
    assert_eq!(Refusal::of(missing).is(Code::InvalidArgument, "INVALID_FIELD").field(), "finish");
    let unnamed = finish_job(&client, finish("", Outcome::Succeeded(json("1")))).await;
    assert_eq!(Refusal::of(unnamed).is(Code::InvalidArgument, "INVALID_FIELD").field(), "finish.lease_id");
    let unknown = finish_job(&client, finish("nonsense", Outcome::Succeeded(json("1")))).await;
    Refusal::of(unknown).is(Code::FailedPrecondition, "LEASE_LOST");
    let step = LeaseProgress {
        lease_id: "nonsense".into(),
        progress: Some(checkpoint(0.5, Some(json(&format!("{:?}", "x".repeat(16 << 10)))))),
    };
    let request = RenewLeasesRequest { progress: vec![step], ..Default::default() };
    let large =
        Refusal::of(client.clone().renew_leases(request).await).is(Code::InvalidArgument, "TOO_LARGE");
    assert_eq!(large.field(), "progress[0].progress.details");
}
