//! The stream's own rules, with a worker that behaves.

use std::{
    slice::from_ref,
    time::{Duration, Instant},
};

use jobwire::proto::{
    CancelJobRequest, JobFilter, Lease, SubmitRequest, WatchResultsRequest, WorkRequest, WorkerHeartbeat,
    WorkerHello, finish::Outcome, job::State, job_error::Cause, lease_revoked::Reason, payload::Body,
    watch_results_response::Event, work_request::Message as Said,
};
use tokio::time::sleep;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

use super::{KIND, SHORT, Worker, checkpoint, failed, finish, hello, released, succeeded, task, workers};
use crate::{
    calls::{Refusal, Watch, get, place, reach, result},
    support::{Client, Server, json, seconds},
};

/// A job, and a worker that holds the lease of it.
async fn at_work(server: &Server, client: &Client, request: SubmitRequest) -> (String, Worker, Lease) {
    let mut worker = Worker::connect(server, hello("w1", 10)).await;
    let id = place(client, request).await;
    let lease = worker.lease().await;
    assert_eq!(lease.job.as_ref().unwrap().job_id, id);
    (id, worker, lease)
}

async fn cancel(client: &Client, job_id: &str) {
    let request = CancelJobRequest { job_id: job_id.into(), ..Default::default() };
    client.clone().cancel_job(request).await.expect("it is cancelled");
}

#[tokio::test]
async fn a_worker_runs_a_job() {
    let server = Server::start();
    let client = server.client().await;
    let (id, mut worker, lease) = at_work(&server, &client, task(r#"{"n":1}"#)).await;
    assert_eq!(worker.welcome.lease_duration.unwrap().seconds, 30);
    assert_eq!(worker.welcome.heartbeat_interval.unwrap().seconds, 5);
    assert!(!worker.welcome.instance_id.is_empty());
    let job = lease.job.clone().unwrap();
    assert_eq!((job.state(), job.attempt, job.run, job.worker_id.as_str()), (State::Running, 1, 1, "w1"));
    let payload = job.spec.unwrap().payload.unwrap();
    assert_eq!(payload.content_type, "application/json");
    assert_eq!(payload.body, Some(Body::Data(br#"{"n":1}"#.to_vec().into())), "RAW is the default");
    let (expires, deadline) = (lease.lease_expire_time.unwrap(), lease.attempt_deadline.unwrap());
    let started = job.start_time.unwrap();
    assert_eq!((expires.seconds - started.seconds, deadline.seconds - started.seconds), (30, 300));

    let ack = worker.beat(&[&lease]).await;
    assert!(ack.lost_lease_ids.is_empty() && ack.lease_expire_time.unwrap().seconds >= expires.seconds);
    let ack = worker.finish(succeeded(&lease, r#"{"done":true}"#)).await;
    assert!(ack.accepted, "{ack:?}");
    let done = result(&client, &id).await;
    assert_eq!((done.state(), done.attempt, done.worker_id.as_str()), (State::Succeeded, 1, "w1"));
    // A repeat, as after an answer that was lost.
    let ack = worker.finish(succeeded(&lease, r#"{"done":true}"#)).await;
    assert!(ack.accepted, "{ack:?}");
    let ack = worker.finish(succeeded(&lease, "2")).await;
    assert_eq!(ack.rejection.unwrap().reason, "LEASE_LOST");
    assert_eq!(get(&client, &id).await.output, done.output);
    worker.close().await.expect("the end is orderly");
}

#[tokio::test]
async fn a_worker_gets_its_kinds_and_queues_only() {
    let server = Server::start();
    let client = server.client().await;
    let mut other = task("1");
    other.spec.as_mut().unwrap().queue = "mail".into();
    place(&client, other.clone()).await;
    place(&client, crate::support::submit("else", "1")).await;
    let mut hello = hello("w1", 10);
    let mut worker = Worker::connect(&server, hello.clone()).await;
    hello.queues = vec!["mail".into()];
    let mut mail = Worker::connect(&server, hello).await;
    assert_eq!(mail.lease().await.job.unwrap().spec.unwrap().queue, "mail");
    let id = place(&client, task("2")).await;
    assert_eq!(worker.lease().await.job.unwrap().job_id, id);
    for worker in [&mut worker, &mut mail] {
        worker.beat_with(vec![], 0).await;
        assert_eq!((worker.unasked(), worker.last), (0, 1));
    }
}

#[tokio::test]
async fn a_readable_format_is_json() {
    let server = Server::start();
    let client = server.client().await;
    let hello = WorkerHello { payload_format: 1, ..hello("w1", 1) };
    let mut worker = Worker::connect(&server, hello).await;
    place(&client, task("7")).await;
    let payload = worker.lease().await.job.unwrap().spec.unwrap().payload;
    assert_eq!(
        crate::support::value(payload.as_ref()).kind,
        Some(prost_types::value::Kind::NumberValue(7.0))
    );
}

#[tokio::test]
async fn credit_is_respected() {
    let server = Server::start();
    let client = server.client().await;
    let mut worker = Worker::connect(&server, hello("w1", 2)).await;
    for n in 0..6 {
        place(&client, task(&n.to_string())).await;
    }
    let (one, two) = (worker.lease().await, worker.lease().await);
    quiet(&mut worker, &[&one, &two]).await;
    worker.succeed(&one).await;
    let three = worker.lease().await;
    quiet(&mut worker, &[&two, &three]).await;
    worker.resize(0).await;
    worker.succeed(&two).await;
    worker.succeed(&three).await;
    quiet(&mut worker, &[]).await;
    worker.resize(3).await;
    let rest = [worker.lease().await, worker.lease().await, worker.lease().await];
    quiet(&mut worker, &rest.each_ref()).await;
    for lease in &rest {
        worker.succeed(lease).await;
    }
}

/// Nothing comes for as long as something would take that should come.
async fn quiet(worker: &mut Worker, held: &[&Lease]) {
    for _ in 0..3 {
        sleep(Duration::from_millis(150)).await;
        worker.beat(held).await;
    }
    assert_eq!(worker.unasked(), 0);
}

#[tokio::test]
async fn a_cancel_reaches_the_worker_by_itself() {
    let server = Server::start();
    let client = server.client().await;
    let (id, mut worker, lease) = at_work(&server, &client, task("1")).await;
    let start = Instant::now();
    cancel(&client, &id).await;
    let revoked = worker.revoked().await;
    // No heartbeat was sent that could have asked: only the end of patience is measured.
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    assert_eq!((&revoked.lease_id, revoked.reason()), (&lease.lease_id, Reason::Cancelled));
    assert_eq!(revoked.grace.unwrap().seconds, 10);
    assert!(worker.finish(failed(&lease, "stopped")).await.accepted);
    let job = result(&client, &id).await;
    assert_eq!((job.state(), job.error.unwrap().cause()), (State::Cancelled, Cause::Cancelled));
}

#[tokio::test]
async fn a_success_within_the_grace_of_a_cancel_counts() {
    let server = Server::start();
    let client = server.client().await;
    let (id, mut worker, lease) = at_work(&server, &client, task("1")).await;
    cancel(&client, &id).await;
    worker.revoked().await;
    worker.succeed(&lease).await;
    assert_eq!(result(&client, &id).await.state(), State::Succeeded);
}

#[tokio::test]
async fn a_cancel_ends_with_its_grace() {
    let server = Server::with("[workers]\ngrace = \"300ms\"\n");
    let client = server.client().await;
    let (id, mut worker, lease) = at_work(&server, &client, task("1")).await;
    cancel(&client, &id).await;
    worker.revoked().await;
    assert_eq!(result(&client, &id).await.state(), State::Cancelled);
    assert_eq!(worker.beat(&[&lease]).await.lost_lease_ids, from_ref(&lease.lease_id));
    let ack = worker.finish(succeeded(&lease, "1")).await;
    assert_eq!(ack.rejection.unwrap().reason, "LEASE_LOST");
}

#[tokio::test]
async fn an_attempt_that_takes_too_long_is_spent_after_its_grace() {
    for succeeds in [false, true] {
        let server = Server::with("[workers]\ngrace = \"1s\"\n[defaults]\nmax_attempts = 1\n");
        let client = server.client().await;
        let mut request = task("1");
        request.spec.as_mut().unwrap().attempt_timeout = Some(seconds(0.3));
        let (id, mut worker, lease) = at_work(&server, &client, request).await;
        let revoked = worker.revoked().await;
        assert_eq!((&revoked.lease_id, revoked.reason()), (&lease.lease_id, Reason::Timeout));
        assert_eq!(get(&client, &id).await.state(), State::Running, "the grace is not over");
        if succeeds {
            worker.succeed(&lease).await;
        }
        let job = result(&client, &id).await;
        match succeeds {
            true => assert_eq!(job.state(), State::Succeeded),
            false => assert_eq!((job.state(), job.error.unwrap().cause()), (State::Failed, Cause::Timeout)),
        }
    }
}

#[tokio::test]
async fn giving_back_does_not_evade_the_attempt_timeout() {
    let server = Server::with("[defaults]\nmax_attempts = 1\n");
    let client = server.client().await;
    let mut request = task("1");
    request.spec.as_mut().unwrap().attempt_timeout = Some(seconds(0.3));
    let (id, mut worker, lease) = at_work(&server, &client, request).await;
    worker.revoked().await;
    assert!(worker.finish(released(&lease)).await.accepted);
    assert_eq!(result(&client, &id).await.error.unwrap().cause(), Cause::Timeout);
}

#[tokio::test]
async fn reports_lead_where_the_pools_do() {
    let server = Server::with(SHORT);
    let client = server.client().await;
    let (id, mut worker, lease) = at_work(&server, &client, task("1")).await;
    assert!(worker.finish(released(&lease)).await.accepted);
    let again = worker.lease().await;
    assert_eq!(again.job.as_ref().unwrap().attempt, 1, "a release does not count");
    assert!(worker.finish(failed(&again, "busy")).await.accepted);
    let repeated = worker.finish(failed(&again, "busy")).await.rejection.unwrap();
    assert_eq!(repeated.reason, "LEASE_LOST", "the attempt is settled");
    let last = worker.lease().await;
    let job = last.job.clone().unwrap();
    assert_eq!((job.attempt, job.error.unwrap().code.as_str()), (2, "busy"));
    let mut hopeless = failed(&last, "wrong");
    if let Some(Outcome::Failed(error)) = &mut hopeless.outcome {
        (error.retryable, error.cause) = (false, Cause::Internal.into());
        error.details = Some(json(r#"{"why":"it is"}"#));
    }
    // The last one also when it is repeated.
    assert!(worker.finish(hopeless.clone()).await.accepted);
    assert!(worker.finish(hopeless).await.accepted);
    let job = result(&client, &id).await;
    assert_eq!((job.state(), job.attempt), (State::Failed, 2));
    let error = job.error.unwrap();
    assert_eq!(
        (error.cause(), error.code.as_str(), error.details.is_some()),
        (Cause::Handler, "wrong", true)
    );
}

#[tokio::test]
async fn leases_that_nobody_holds_are_lost_and_nothing_else() {
    let server = Server::start();
    let client = server.client().await;
    let (id, mut worker, lease) = at_work(&server, &client, task("1")).await;
    // A signature that is not ours.
    let mut forged = lease.lease_id.clone();
    forged.replace_range(forged.len() - 4.., "AAAA");
    let mut liar =
        Worker::connect(&server, WorkerHello { worker_id: "liar".into(), ..hello("liar", 1) }).await;
    let named = vec![forged.clone(), "x".repeat(1000), String::new()];
    let lost = liar.beat_with(named, 7).await.lost_lease_ids;
    assert!(lost.len() == 3 && lost.contains(&forged), "{lost:?}");
    for name in [&forged, "nonsense"] {
        liar.say(Said::Progress(jobwire::proto::LeaseProgress {
            lease_id: name.into(),
            progress: Some(checkpoint(0.5, None)),
        }))
        .await;
        let revoked = liar.revoked().await;
        assert_eq!((revoked.lease_id.as_str(), revoked.reason()), (name, Reason::Expired));
        let ack = liar.finish(finish(name, Outcome::Succeeded(json("666")))).await;
        assert_eq!(ack.rejection.unwrap().reason, "LEASE_LOST");
    }
    assert!(worker.beat(&[&lease]).await.lost_lease_ids.is_empty());
    assert_eq!(get(&client, &id).await.progress, None);
    worker.succeed(&lease).await;
}

#[tokio::test]
async fn progress_reaches_watchers_and_the_next_attempt() {
    let server = Server::with(SHORT);
    let client = server.client().await;
    let request = WatchResultsRequest {
        include_progress: true,
        filter: Some(JobFilter { kinds: vec![KIND.into()], ..Default::default() }),
        ..Default::default()
    };
    let mut watch = Watch::open(&client, request).await;
    watch.replay().await;
    let (id, mut worker, lease) = at_work(&server, &client, task("1")).await;
    worker.progress(&lease, checkpoint(0.01, Some(json(r#"{"page":7}"#)))).await;
    // A flood, of which only the newest counts.
    for n in 2..=1000 {
        worker.progress(&lease, checkpoint(f64::from(n) / 1000.0, None)).await;
    }
    worker.beat(&[&lease]).await;
    let shown = get(&client, &id).await.progress.unwrap();
    assert_eq!(
        (shown.fraction, shown.details.is_some()),
        (1.0, true),
        "a checkpoint outlives plain progress"
    );
    let mut told = 0;
    loop {
        let Event::Progress(hint) = watch.event().await else { continue };
        assert_eq!((hint.job_id.as_str(), hint.attempt), (id.as_str(), 1));
        told += 1;
        if hint.progress.unwrap().fraction == 1.0 {
            break;
        }
    }
    assert!(told < 500, "{told} of 1000 were told one by one");
    assert!(worker.finish(failed(&lease, "busy")).await.accepted);
    let next = worker.lease().await.job.unwrap();
    let progress = next.progress.unwrap();
    assert_eq!((next.attempt, progress.fraction), (2, 1.0));
    assert_eq!(progress.details.unwrap().body, Some(Body::Data(br#"{"page":7}"#.to_vec().into())));
}

#[tokio::test]
async fn progress_that_was_not_stored_yet_outlives_an_expired_lease() {
    let server = Server::with(SHORT);
    let client = server.client().await;
    let (_, worker, lease) = at_work(&server, &client, task("1")).await;
    worker.progress(&lease, checkpoint(0.5, Some(json("5")))).await;
    let mut other = Worker::connect(&server, hello("w2", 1)).await;
    let next = loop {
        other.beat(&[]).await;
        if other.unasked() > 0 {
            break other.lease().await.job.unwrap();
        }
        sleep(Duration::from_millis(100)).await;
    };
    assert_eq!((next.attempt, next.progress.unwrap().fraction), (2, 0.5));
    assert_eq!(next.error.unwrap().cause(), Cause::LeaseExpired);
}

#[tokio::test]
async fn what_breaks_the_rules_is_refused_in_so_many_words() {
    let server = Server::start();
    let client = workers(&server).await;
    let refused = async |hello: WorkerHello| {
        let refused = Worker::try_over(client.clone(), hello).await.err().expect("it is refused");
        Refusal::read(refused).is(Code::InvalidArgument, "INVALID_FIELD").field().to_owned()
    };
    assert_eq!(refused(hello("", 1)).await, "hello.worker_id");
    assert_eq!(refused(hello("a b", 1)).await, "hello.worker_id");
    assert_eq!(refused(hello("w", -1)).await, "hello.max_in_flight");
    assert_eq!(refused(WorkerHello { kinds: vec![], ..hello("w", 1) }).await, "hello.kinds");
    assert_eq!(refused(WorkerHello { queues: vec!["A".into()], ..hello("w", 1) }).await, "hello.queues[0]");
    assert_eq!(refused(WorkerHello { payload_format: 9, ..hello("w", 1) }).await, "hello.payload_format");

    let first = WorkRequest { message: Some(Said::Heartbeat(WorkerHeartbeat::default())) };
    let stream = tokio_stream::iter([first]);
    let mut replies = client.clone().work(stream).await.expect("headers").into_inner();
    let end = replies.message().await.expect_err("it is refused");
    assert_eq!(Refusal::read(end).is(Code::InvalidArgument, "INVALID_FIELD").field(), "hello");
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    drop(sender);
    let mut replies = client.clone().work(ReceiverStream::new(receiver)).await.expect("headers").into_inner();
    assert!(replies.message().await.expect("it just ends").is_none());

    let mut twice = Worker::connect(&server, hello("w", 1)).await;
    twice.say(Said::Hello(hello("w", 1))).await;
    let end = twice.receive().await.expect_err("it is refused");
    assert_eq!(Refusal::read(end).is(Code::InvalidArgument, "INVALID_FIELD").field(), "hello");
}

#[tokio::test]
async fn an_output_that_is_too_large_is_refused_and_the_lease_stays() {
    let server = Server::with("[limits]\nmax_output_bytes = 100\n");
    let client = server.client().await;
    let (id, mut worker, lease) = at_work(&server, &client, task("1")).await;
    let ack = worker.finish(succeeded(&lease, &format!("{:?}", "x".repeat(100)))).await;
    let rejection = ack.rejection.unwrap();
    assert_eq!((rejection.reason.as_str(), rejection.field.as_str()), ("TOO_LARGE", "finish.succeeded"));
    let ack = worker.finish(jobwire::proto::Finish { outcome: None, ..succeeded(&lease, "1") }).await;
    assert_eq!(ack.rejection.unwrap().field, "finish.outcome");
    assert!(worker.beat(&[&lease]).await.lost_lease_ids.is_empty());
    worker.succeed(&lease).await;
    assert_eq!(result(&client, &id).await.state(), State::Succeeded);
}

#[tokio::test]
async fn a_lease_that_was_lost_on_the_way_is_found_by_its_sequence() {
    let server = Server::start();
    let client = server.client().await;
    let (_, mut worker, lost) = at_work(&server, &client, task("1")).await;
    // As if it had not come, although the server sent it.
    worker.beat_with(vec![], 1).await;
    let again = worker.lease().await;
    assert_ne!(again.lease_id, lost.lease_id);
    assert_eq!(again.job.as_ref().unwrap().attempt, 1);
    let ack = worker.finish(succeeded(&lost, "0")).await;
    assert_eq!(ack.rejection.unwrap().reason, "LEASE_LOST");
    // One on its way is left alone, and so is one that was confirmed.
    worker.beat_with(vec![], 1).await;
    worker.beat(&[&again]).await;
    worker.beat_with(vec![], 2).await;
    worker.succeed(&again).await;
}

#[tokio::test]
async fn unfinished_business_counts_after_the_last_word() {
    let server = Server::start();
    let client = server.client().await;
    let (id, worker, lease) = at_work(&server, &client, task("1")).await;
    worker.say(Said::Finish(succeeded(&lease, "1"))).await;
    worker.close().await.expect("the end is orderly");
    assert_eq!(reach(&client, &id, State::Succeeded).await.attempt, 1);
}

/// A worker names what it has reported until the answer comes.
#[tokio::test]
async fn what_was_reported_is_not_lost() {
    let server = Server::start();
    let client = server.client().await;
    let mut worker = Worker::connect(&server, hello("w1", 100)).await;
    for n in 0..50 {
        place(&client, task(&n.to_string())).await;
        let lease = worker.lease().await;
        worker.beat(&[&lease]).await;
        worker.say(Said::Finish(succeeded(&lease, "1"))).await;
        let named = vec![lease.lease_id.clone()];
        worker.say(Said::Heartbeat(WorkerHeartbeat { lease_ids: named, last_lease_sequence: 0 })).await;
        let ack = worker.finished(&lease).await;
        assert!(ack.accepted, "{ack:?}");
    }
}

#[tokio::test]
async fn services_are_told_apart_in_health_and_reflection() {
    let server = Server::start();
    let mut health = tonic_health::pb::health_client::HealthClient::new(server.channel().await);
    let service = "jobwire.v1.WorkerService".to_owned();
    let status = health.check(tonic_health::pb::HealthCheckRequest { service }).await.unwrap().into_inner();
    assert_eq!(status.status(), tonic_health::pb::health_check_response::ServingStatus::Serving);
}
