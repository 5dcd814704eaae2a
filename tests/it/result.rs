//! GetResult and GetJob: one job, now or once it is final.

use std::time::{Duration, Instant};

use jobwire::proto::{
    GetJobRequest, GetResultRequest, JobView, PayloadFormat, SubmitRequest, job::State, payload::Body,
};
use tonic::{Code, Request};

use crate::{
    calls::{Refusal, accept, finish, get, place, reach},
    support::{Client, PATIENCE, Server, seconds, submit},
};

fn wait(job_id: &str, wait: f64) -> GetResultRequest {
    GetResultRequest { job_id: job_id.into(), wait: Some(seconds(wait)), ..Default::default() }
}

#[tokio::test]
async fn a_wait_ends_with_the_job() {
    let server = Server::start();
    let client = server.client().await;
    let id = place(&client, submit("sleep", r#"{"duration":"300ms"}"#)).await;
    let at_once = GetResultRequest { job_id: id.clone(), ..Default::default() };
    let now = client.clone().get_result(at_once).await.unwrap().into_inner();
    assert!(!now.done && now.retry_after.is_some(), "{now:?}");
    let start = Instant::now();
    let end = client.clone().get_result(wait(&id, 45.0)).await.unwrap().into_inner();
    assert!(end.done && end.retry_after.is_none(), "{end:?}");
    assert_eq!(end.job.unwrap().state(), State::Succeeded);
    assert!(start.elapsed() < PATIENCE);
}

#[tokio::test]
async fn a_wait_that_is_over_answers_with_the_present() {
    let server = Server::with("[limits]\nmax_wait = \"300ms\"\n");
    let client = server.client().await;
    let id = place(&client, submit("nobody", "1")).await;
    // The second is cut to what the server allows.
    for asked in [0.1, 3600.0] {
        let start = Instant::now();
        let answer = client.clone().get_result(wait(&id, asked)).await.unwrap().into_inner();
        assert!(!answer.done && answer.retry_after.is_some(), "{answer:?}");
        assert_eq!(answer.job.unwrap().state(), State::Queued);
        assert!(start.elapsed() >= Duration::from_millis(99), "{:?}", start.elapsed());
        assert!(start.elapsed() < PATIENCE);
    }
}

#[tokio::test]
async fn a_wait_leaves_time_for_the_way_back() {
    let server = Server::start();
    let client = server.client().await;
    let id = place(&client, submit("nobody", "1")).await;
    for timeout in ["1500m", "100m"] {
        let mut request = Request::new(wait(&id, 45.0));
        request.metadata_mut().insert("grpc-timeout", timeout.parse().unwrap());
        let start = Instant::now();
        let answer = client.clone().get_result(request).await.unwrap().into_inner();
        assert!(!answer.done, "{answer:?}");
        assert!(start.elapsed() < Duration::from_secs(10), "{timeout}: {:?}", start.elapsed());
    }
}

async fn refused(client: &Client, job_id: &str) -> Refusal {
    let request = GetResultRequest { job_id: job_id.into(), ..Default::default() };
    Refusal::of(client.clone().get_result(request).await)
}

#[tokio::test]
async fn an_unknown_job_is_not_found() {
    let server = Server::start();
    let client = server.client().await;
    for answer in [
        refused(&client, "nowhere").await,
        Refusal::of(client.clone().get_result(wait("nowhere", 10.0)).await),
        Refusal::of(
            client.clone().get_job(GetJobRequest { job_id: "nowhere".into(), ..Default::default() }).await,
        ),
    ] {
        assert_eq!((answer.resource(), answer.metadata["job_id"].as_str()), ("nowhere", "nowhere"));
        answer.is(Code::NotFound, "JOB_NOT_FOUND").says(&["nowhere", "deleted", "retention"]);
    }
    assert_eq!(refused(&client, "").await.is(Code::InvalidArgument, "INVALID_FIELD").field(), "job_id");
}

#[tokio::test]
async fn a_view_says_how_much_is_sent() {
    let server = Server::start();
    let client = server.client().await;
    let id = finish(&client, submit("echo", r#""out""#)).await.job_id;
    let view = |view: JobView, format: PayloadFormat| {
        let request = GetJobRequest { job_id: id.clone(), view: view.into(), payload_format: format.into() };
        let mut client = client.clone();
        async move { client.get_job(request).await.unwrap().into_inner().job.unwrap() }
    };
    let bodies = |job: &jobwire::proto::Job| {
        let input = job.spec.as_ref().unwrap().payload.as_ref().unwrap();
        let output = job.output.as_ref().unwrap();
        assert_eq!((input.size_bytes, output.size_bytes), (5, 5));
        assert_eq!(input.omitted, input.body.is_none());
        (input.body.is_some(), output.body.is_some())
    };
    let format = PayloadFormat::Unspecified;
    assert_eq!(bodies(&view(JobView::Basic, format).await), (false, false));
    assert_eq!(bodies(&view(JobView::Result, format).await), (false, true));
    assert_eq!(bodies(&view(JobView::Unspecified, format).await), (false, true));
    assert_eq!(bodies(&view(JobView::Full, format).await), (true, true));
    let raw = view(JobView::Full, PayloadFormat::Raw).await;
    let stored = Some(Body::Data(br#""out""#.as_slice().into()));
    assert_eq!((raw.output.unwrap().body, raw.spec.unwrap().payload.unwrap().body), (stored.clone(), stored));
}

#[tokio::test]
async fn a_full_view_has_the_history() {
    let server = Server::start();
    let client = server.client().await;
    let job = finish(&client, submit("sleep", r#"{"duration":"bad"}"#)).await;
    let job = get(&client, &job.job_id).await;
    assert_eq!(job.state(), State::Failed);
    let [attempt] = &job.attempts[..] else { panic!("{job:?}") };
    assert_eq!((attempt.run, attempt.attempt), (1, 1));
    assert_eq!(attempt.error, job.error);
    assert!(!job.worker_id.is_empty() && attempt.worker_id == job.worker_id, "{job:?}");
    assert!(attempt.start_time.is_some() && attempt.finish_time.is_some(), "{job:?}");
}

#[tokio::test]
async fn a_running_job_tells_how_far_it_is() {
    let server = Server::start();
    let client = server.client().await;
    let id = place(&client, submit("sleep", r#"{"duration":"1h"}"#)).await;
    reach(&client, &id, State::Running).await;
    let job = crate::calls::reach_when(&client, &id, |job| job.progress.is_some()).await;
    assert_eq!(job.progress.unwrap().note, "asleep");
}

#[tokio::test]
async fn a_repeated_submit_waits_once() {
    let server = Server::with("[limits]\nmax_waits = 1\n");
    let client = server.client().await;
    let wait = Some(seconds(0.1));
    let request = SubmitRequest { request_id: "r".into(), wait, ..submit("nobody", "1") };
    for deduplicated in [false, true] {
        let reply = accept(&client, request.clone()).await;
        assert_eq!((reply.deduplicated, reply.done), (deduplicated, false));
    }
}

#[tokio::test]
async fn too_many_waits_are_refused_and_abandoned_ones_leave() {
    let server = Server::with("[limits]\nmax_waits = 2\n");
    let client = server.client().await;
    let id = place(&client, submit("nobody", "1")).await;
    // Each round leaves two waits behind, each on a connection that is cut.
    for _ in 0..3 {
        let mut waits = Vec::new();
        for _ in 0..2 {
            let mut own = server.client().await;
            let request = wait(&id, 45.0);
            // The look below may be in the way for a moment.
            let held = async move { while own.get_result(request.clone()).await.is_err() {} };
            waits.push(tokio::spawn(held));
        }
        let limit =
            crate::calls::eventually(async || client.clone().get_result(wait(&id, 0.001)).await.err()).await;
        let limit = Refusal::read(limit);
        assert_eq!((limit.quota(), limit.metadata["limit"].as_str()), ("waits", "2"));
        assert!(limit.retry_delay() > Duration::ZERO);
        limit.is(Code::ResourceExhausted, "WATCH_LIMIT").says(&["2 open waits", "try again later"]);
        waits.iter().for_each(|wait| wait.abort());
        crate::calls::eventually(async || client.clone().get_result(wait(&id, 0.001)).await.ok()).await;
    }
}
