//! Every transition of the state table, as seen from outside. Those of a stop are in `stop`, those by hand in `changes`.

use jobwire::proto::{
    GetJobRequest, Job, JobSpec, RetryPolicy, SubmitRequest, WatchResultsRequest, job::State,
    job_error::Cause, job_spec::Start, watch_results_request::Start as From,
};
use tonic::Code;

use crate::{
    calls::{Refusal, Watch, eventually, finish, get, place, reach, reach_when, result},
    flaky::Flaky,
    support::{Server, seconds, spec, submit},
};

const LONG: &str = r#"{"duration":"1h"}"#;

/// A submit of a kind, with a spec changed by hand.
fn with(kind: &str, payload: &str, change: impl FnOnce(&mut JobSpec)) -> SubmitRequest {
    let mut spec = spec(kind, payload);
    change(&mut spec);
    SubmitRequest { spec: Some(spec), ..Default::default() }
}

fn failed(job: &Job, state: State, cause: Cause, code: &str) {
    let error = job.error.as_ref().unwrap_or_else(|| panic!("no error: {job:?}"));
    assert_eq!((job.state(), error.cause(), error.code.as_str()), (state, cause, code), "{job:?}");
    assert!(job.output.is_none() && !error.message.is_empty(), "{job:?}");
}

#[tokio::test]
async fn the_timer_queues_what_was_scheduled() {
    let server = Server::start();
    let client = server.client().await;
    let id = place(&client, with("nobody", "1", |spec| spec.start = Some(Start::Delay(seconds(0.3))))).await;
    let scheduled = get(&client, &id).await;
    assert_eq!(scheduled.state(), State::Scheduled);
    let queued = reach(&client, &id, State::Queued).await;
    assert_eq!(queued.attempt, 0);
    assert_ne!(queued.etag, scheduled.etag);
}

#[tokio::test]
async fn a_lease_makes_it_run_and_a_result_ends_it() {
    let server = Server::start();
    let client = server.client().await;
    let id = place(&client, submit("sleep", r#"{"duration":"400ms"}"#)).await;
    let running = reach(&client, &id, State::Running).await;
    assert_eq!((running.attempt, running.run), (1, 1));
    assert!(running.start_time.is_some() && !running.worker_id.is_empty() && running.finish_time.is_none());
    let done = result(&client, &id).await;
    assert_eq!((done.state(), done.attempt), (State::Succeeded, 1));
    assert_eq!((done.worker_id, done.error), (running.worker_id, None));
}

#[tokio::test]
async fn a_failure_backs_off_and_success_may_follow() {
    let flaky = Flaky::new();
    let server = Server::with(&flaky.config());
    let client = server.client().await;
    let mut job = flaky.job(0.2);
    job.spec.as_mut().unwrap().retry.as_mut().unwrap().max_attempts = 1000;
    let id = place(&client, job).await;
    let waiting = reach_when(&client, &id, |job| job.state() == State::BackingOff).await;
    assert_eq!(waiting.error.as_ref().unwrap().cause(), Cause::Handler);
    assert!(waiting.next_attempt_time.is_some() && waiting.error.unwrap().retryable);
    flaky.mend();
    let done = result(&client, &id).await;
    assert_eq!((done.state(), done.run), (State::Succeeded, 1));
    assert!(done.attempt >= 2 && done.error.is_none(), "{done:?}");
    let history = get(&client, &id).await.attempts;
    assert!(history.iter().any(|attempt| attempt.error.is_some()), "{history:?}");
}

#[tokio::test]
async fn the_last_attempt_fails_the_job() {
    let flaky = Flaky::new();
    let server = Server::with(&flaky.config());
    let client = server.client().await;
    let job = finish(&client, flaky.job(0.01)).await;
    assert_eq!((job.state(), job.attempt), (State::Failed, 3));
    assert_eq!(get(&client, &job.job_id).await.attempts.len(), 3);
}

#[tokio::test]
async fn what_will_not_get_better_fails_at_once() {
    let flaky = Flaky::new();
    let server = Server::with(&flaky.config());
    let client = server.client().await;
    let job = finish(&client, submit("sleep", "\"x\"")).await;
    failed(&job, State::Failed, Cause::Handler, "payload.invalid");
    let code = finish(&client, flaky.job(0.01)).await.error.unwrap().code;
    let mut hopeless = flaky.job(0.01);
    hopeless.spec.as_mut().unwrap().retry.as_mut().unwrap().non_retryable_codes = vec![code];
    assert_eq!(finish(&client, hopeless).await.attempt, 1);
}

#[tokio::test]
async fn an_attempt_that_takes_too_long_is_spent() {
    let server = Server::with("[workers]\ngrace = \"100ms\"\n");
    let client = server.client().await;
    let job = with("sleep", LONG, |spec| {
        spec.attempt_timeout = Some(seconds(0.2));
        spec.retry =
            Some(RetryPolicy { max_attempts: 2, initial_backoff: Some(seconds(0.01)), ..Default::default() });
    });
    let job = finish(&client, job).await;
    failed(&job, State::Failed, Cause::Timeout, "jobwire.attempt_timeout");
    assert_eq!(job.attempt, 2);
}

#[tokio::test]
async fn an_attempt_whose_turn_does_not_come_is_not_spent() {
    let server =
        Server::with("[exec.commands.nap]\nprogram = \"/bin/sleep\"\nargs = [\"1.2\"]\nconcurrency = 1\n");
    let client = server.client().await;
    // The second gets its turn too late to be done within two seconds of its lease, the third none at all.
    let nap = || {
        with("exec", r#"{"command":"nap"}"#, |spec| {
            spec.attempt_timeout = Some(seconds(2.0));
            spec.retry = Some(RetryPolicy { max_attempts: 1, ..Default::default() });
        })
    };
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(place(&client, nap()).await);
    }
    for id in ids {
        let done = result(&client, &id).await;
        assert_eq!((done.state(), done.attempt), (State::Succeeded, 1), "{done:?}");
    }
}

#[tokio::test]
async fn what_nobody_takes_in_time_expires() {
    let server = Server::start();
    let client = server.client().await;
    let job = finish(&client, with("nobody", "1", |spec| spec.start_timeout = Some(seconds(0.2)))).await;
    failed(&job, State::Expired, Cause::Expired, "jobwire.start_timeout");
    assert_eq!((job.attempt, job.run), (0, 1));
    // Once it has started, that limit is over.
    let job = with("sleep", r#"{"duration":"600ms"}"#, |spec| spec.start_timeout = Some(seconds(0.3)));
    assert_eq!(finish(&client, job).await.state(), State::Succeeded);
}

#[tokio::test]
async fn what_is_not_done_in_time_expires_in_any_state() {
    let flaky = Flaky::new();
    let config = format!("[workers]\nconcurrency = 1\n{}", flaky.config());
    let server = Server::with(&config);
    let client = server.client().await;
    let limited =
        |kind: &str, payload: &str| with(kind, payload, |spec| spec.total_timeout = Some(seconds(0.4)));
    let mut scheduled = limited("echo", "1");
    scheduled.spec.as_mut().unwrap().start = Some(Start::Delay(seconds(3600.0)));
    let mut backing_off = flaky.job(3600.0);
    backing_off.spec.as_mut().unwrap().total_timeout = Some(seconds(0.4));
    for job in [scheduled, limited("nobody", "1"), backing_off, limited("sleep", LONG)] {
        let job = finish(&client, job).await;
        failed(&job, State::Expired, Cause::Expired, "jobwire.total_timeout");
    }
    // The one place in the pool is free again.
    assert_eq!(finish(&client, submit("echo", "1")).await.state(), State::Succeeded);
}

#[tokio::test]
async fn a_crash_of_the_server_spends_the_attempt() {
    let mut server = Server::start();
    let client = server.client().await;
    let retry = |max_attempts| {
        let policy = RetryPolicy { max_attempts, initial_backoff: Some(seconds(0.01)), ..Default::default() };
        with("sleep", LONG, |spec| spec.retry = Some(policy))
    };
    let (once, twice) = (place(&client, retry(1)).await, place(&client, retry(2)).await);
    let queued = place(&client, submit("nobody", "1")).await;
    for id in [&once, &twice] {
        reach(&client, id, State::Running).await;
    }
    server.kill();
    let server = server.restart();
    let client = server.client().await;
    failed(&get(&client, &once).await, State::Failed, Cause::Crash, "jobwire.crash");
    let again = reach_when(&client, &twice, |job| job.state() == State::Running).await;
    assert_eq!((again.attempt, again.attempts[0].error.as_ref().unwrap().cause()), (2, Cause::Crash));
    assert_eq!(get(&client, &queued).await.state(), State::Queued);
}

#[tokio::test]
async fn a_frozen_server_goes_on_where_it_was() {
    let server = Server::with("[workers]\nlease = \"1s\"\nheartbeat = \"200ms\"\n");
    let client = server.client().await;
    let id = place(&client, submit("sleep", r#"{"duration":"500ms"}"#)).await;
    reach(&client, &id, State::Running).await;
    server.signal("STOP");
    tokio::time::sleep(std::time::Duration::from_millis(1200)).await;
    server.signal("CONT");
    // Whether its lease ran out or its report came first: it ends once, with a result.
    assert_eq!(result(&client, &id).await.state(), State::Succeeded);
}

#[tokio::test]
async fn an_output_that_is_too_large_fails_the_job() {
    let server = Server::with("[limits]\nmax_output_bytes = 10\n");
    let client = server.client().await;
    assert_eq!(finish(&client, submit("echo", "1234567890")).await.state(), State::Succeeded);
    let job = finish(&client, submit("echo", "12345678901")).await;
    failed(&job, State::Failed, Cause::Handler, "jobwire.output_too_large");
}

#[tokio::test]
async fn retention_removes_a_job_but_not_its_request_id() {
    let server = Server::start();
    let client = server.client().await;
    let mut job = with("echo", "1", |spec| spec.retention = Some(seconds(1.0)));
    job.request_id = "once".into();
    let id = finish(&client, job.clone()).await.job_id;
    let request = GetJobRequest { job_id: id, ..Default::default() };
    let gone = eventually(async || client.clone().get_job(request.clone()).await.err()).await;
    Refusal::read(gone).is(Code::NotFound, "JOB_NOT_FOUND");
    Refusal::of(client.clone().submit(job).await).is(Code::AlreadyExists, "JOB_DELETED");
    let earliest = WatchResultsRequest { start: Some(From::Earliest(true)), ..Default::default() };
    assert!(Watch::open(&client, earliest).await.replay().await.is_empty());
}

#[tokio::test]
async fn a_queue_runs_as_many_as_it_may() {
    let server = Server::with("[queues.narrow]\nconcurrency = 1\n");
    let client = server.client().await;
    let narrow = || with("sleep", LONG, |spec| spec.queue = "narrow".into());
    let first = place(&client, narrow()).await;
    reach(&client, &first, State::Running).await;
    let second = place(&client, narrow()).await;
    // Meanwhile other queues go on.
    assert_eq!(finish(&client, submit("echo", "1")).await.state(), State::Succeeded);
    assert_eq!(get(&client, &second).await.state(), State::Queued);
    crate::changes::cancel(&client, &first).await.unwrap();
    reach(&client, &second, State::Running).await;
}
