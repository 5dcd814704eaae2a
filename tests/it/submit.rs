//! Submit: what is stored, what is answered, and the three ideas of "the same job".

use jobwire::proto::{
    CancelJobRequest, DeleteJobRequest, JobSpec, ListJobsRequest, Payload, PayloadFormat, SubmitRequest,
    job::State, job_spec::Start, payload::Body, submit_request::OnUniqueConflict,
};
use tonic::{Code, Request};

use crate::{
    calls::{Refusal, accept, finish, get, place, reach, result},
    support::{Server, json, seconds, spec, submit, value},
};

#[tokio::test]
async fn a_wait_answers_with_the_outcome() {
    let server = Server::start();
    let client = server.client().await;
    let job = finish(&client, submit("echo", r#"{"hello":"world"}"#)).await;
    assert_eq!((job.state(), job.attempt, job.run), (State::Succeeded, 1, 1));
    let payload = job.spec.as_ref().and_then(|spec| spec.payload.as_ref()).unwrap();
    assert!(payload.omitted && payload.size_bytes == 17, "{payload:?}");
    assert!(format!("{:?}", value(job.output.as_ref())).contains("world"));
    assert!(job.finish_time.is_some() && job.delete_time.is_some() && !job.etag.is_empty(), "{job:?}");
    assert!(uuid::Uuid::parse_str(&job.job_id).unwrap().get_version_num() == 7);
}

#[tokio::test]
async fn without_a_wait_the_job_is_answered_as_it_is() {
    let server = Server::start();
    let client = server.client().await;
    let answer = accept(&client, submit("nobody", "1")).await;
    assert!(!answer.done && !answer.deduplicated && !answer.cursor.is_empty(), "{answer:?}");
    assert_eq!(answer.job.unwrap().state(), State::Queued);
    let answer = accept(&client, SubmitRequest { wait: Some(seconds(0.05)), ..submit("nobody", "1") }).await;
    assert!(!answer.done, "{answer:?}");
}

#[tokio::test]
async fn everything_asked_for_is_kept() {
    let server = Server::start();
    let client = server.client().await;
    let asked = JobSpec {
        queue: "acme/mail".into(),
        labels: [("tenant".to_owned(), "acme".to_owned())].into(),
        priority: -7,
        start: Some(Start::Delay(seconds(3600.0))),
        start_timeout: Some(seconds(60.0)),
        attempt_timeout: Some(seconds(2.5)),
        total_timeout: Some(seconds(7200.0)),
        retry: Some(jobwire::proto::RetryPolicy {
            max_attempts: 3,
            initial_backoff: Some(seconds(0.5)),
            max_backoff: Some(seconds(4.0)),
            backoff_multiplier: 1.5,
            non_retryable_codes: vec!["smtp.refused".into()],
        }),
        retention: Some(seconds(600.0)),
        unique_key: "once".into(),
        ..spec("nobody", r#"{"a": 1}"#)
    };
    let mut request = Request::new(SubmitRequest { spec: Some(asked.clone()), ..Default::default() });
    let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    request.metadata_mut().insert("traceparent", parent.parse().unwrap());
    let id = client.clone().submit(request).await.unwrap().into_inner().job.unwrap().job_id;
    let job = get(&client, &id).await;
    let stored = job.spec.clone().unwrap();
    assert_eq!(JobSpec { payload: None, ..stored.clone() }, JobSpec { payload: None, ..asked });
    assert!(matches!(stored.payload.unwrap().body, Some(Body::Json(_))));
    assert_eq!(job.state(), State::Scheduled);
    assert_eq!(job.trace_context["traceparent"], parent);
}

#[tokio::test]
async fn the_same_request_id_gives_the_same_job() {
    let server = Server::start();
    let client = server.client().await;
    let request = SubmitRequest { request_id: "r-1".into(), ..submit("echo", "1") };
    let first = finish(&client, request.clone()).await;
    let again = accept(&client, request.clone()).await;
    assert!(again.deduplicated && again.done, "{again:?}");
    assert_eq!(again.job.unwrap().job_id, first.job_id);

    let other = SubmitRequest { request_id: "r-1".into(), ..submit("echo", "2") };
    let refused = Refusal::of(client.clone().submit(other).await);
    assert_eq!(refused.resource(), first.job_id);
    assert_eq!(refused.metadata["job_id"], first.job_id);
    refused.is(Code::AlreadyExists, "REQUEST_ID_REUSED").says(&[
        "r-1",
        &first.job_id,
        "use a new request_id",
    ]);

    client
        .clone()
        .delete_job(DeleteJobRequest { job_id: first.job_id.clone(), ..Default::default() })
        .await
        .unwrap();
    let refused = Refusal::of(client.clone().submit(request).await);
    assert_eq!(refused.resource(), first.job_id);
    refused.is(Code::AlreadyExists, "JOB_DELETED").says(&["r-1", "removed", "use a new request_id"]);
}

#[tokio::test]
async fn the_same_job_id_gives_the_same_job() {
    let server = Server::start();
    let client = server.client().await;
    let request = SubmitRequest { job_id: "health-1".into(), ..submit("echo", "1") };
    assert_eq!(finish(&client, request.clone()).await.job_id, "health-1");
    assert!(accept(&client, request).await.deduplicated);
    let other = SubmitRequest { job_id: "health-1".into(), ..submit("echo", "2") };
    let refused = Refusal::of(client.clone().submit(other).await);
    assert_eq!((refused.resource(), refused.metadata["job_id"].as_str()), ("health-1", "health-1"));
    refused.is(Code::AlreadyExists, "JOB_ID_IN_USE").says(&[
        "health-1",
        "another spec",
        "use another job_id",
    ]);
}

fn unique(payload: &str) -> SubmitRequest {
    let spec = JobSpec { unique_key: "nightly".into(), ..spec("nobody", payload) };
    SubmitRequest { spec: Some(spec), ..Default::default() }
}

#[tokio::test]
async fn one_unfinished_job_holds_a_unique_key() {
    let server = Server::start();
    let client = server.client().await;
    let first = place(&client, unique("1")).await;
    let again = accept(&client, unique("2")).await;
    assert!(again.deduplicated);
    assert_eq!(again.job.unwrap().job_id, first);

    let reject = OnUniqueConflict::Reject.into();
    let refused =
        Refusal::of(client.clone().submit(SubmitRequest { on_unique_conflict: reject, ..unique("2") }).await);
    assert_eq!(refused.resource(), first);
    refused.is(Code::AlreadyExists, "UNIQUE_KEY_IN_USE").says(&["nightly", &first, "cancel it"]);

    let mut elsewhere = unique("2");
    elsewhere.spec.as_mut().unwrap().queue = "other".into();
    assert!(!accept(&client, elsewhere).await.deduplicated);

    let cancel = CancelJobRequest { job_id: first, ..Default::default() };
    client.clone().cancel_job(cancel).await.unwrap();
    assert!(!accept(&client, SubmitRequest { on_unique_conflict: reject, ..unique("3") }).await.deduplicated);
}

#[tokio::test]
async fn a_job_that_is_only_checked_is_not_stored() {
    let server = Server::start();
    let client = server.client().await;
    let check = SubmitRequest { validate_only: true, ..submit("echo", "1") };
    let answer = accept(&client, check.clone()).await;
    let job = answer.job.unwrap();
    assert_eq!((job.job_id.as_str(), answer.done, answer.cursor.as_str()), ("", false, ""));
    let named = accept(&client, SubmitRequest { job_id: "mine".into(), ..check }).await;
    assert_eq!(named.job.unwrap().job_id, "mine");

    // The store is asked as well.
    let kept = accept(&client, SubmitRequest { job_id: "kept".into(), ..submit("nobody", "1") }).await;
    let again = SubmitRequest { validate_only: true, job_id: "kept".into(), ..submit("nobody", "1") };
    let answer = accept(&client, again).await;
    assert!(answer.deduplicated && answer.job.unwrap().etag == kept.job.unwrap().etag);
    let other = SubmitRequest { validate_only: true, job_id: "kept".into(), ..submit("nobody", "2") };
    Refusal::of(client.clone().submit(other).await).is(Code::AlreadyExists, "JOB_ID_IN_USE");

    let bad = SubmitRequest { validate_only: true, ..submit("not a kind", "1") };
    let refused = Refusal::of(client.clone().submit(bad).await);
    assert_eq!(refused.field(), "spec.kind");
    let listed = client.clone().list_jobs(ListJobsRequest::default()).await.unwrap().into_inner();
    assert_eq!(listed.jobs.len(), 1, "{listed:?}");
}

#[tokio::test]
async fn a_delay_holds_a_job_back() {
    let server = Server::start();
    let client = server.client().await;
    let later = |start| {
        let spec = JobSpec { start: Some(start), ..spec("echo", "1") };
        SubmitRequest { spec: Some(spec), ..Default::default() }
    };
    let answer = accept(&client, later(Start::Delay(seconds(0.6)))).await;
    let job = answer.job.unwrap();
    assert_eq!(job.state(), State::Scheduled);
    let due = job.next_attempt_time.unwrap();
    let done = result(&client, &job.job_id).await;
    let started = done.start_time.unwrap();
    assert!((started.seconds, started.nanos) >= (due.seconds, due.nanos), "{done:?}");

    let past = prost_types::Timestamp { seconds: 1_000_000_000, nanos: 0 };
    assert_eq!(finish(&client, later(Start::StartTime(past))).await.state(), State::Succeeded);
    let far = prost_types::Timestamp { seconds: 4_000_000_000, nanos: 0 };
    let id = place(&client, later(Start::StartTime(far))).await;
    let job = get(&client, &id).await;
    assert_eq!((job.state(), job.next_attempt_time), (State::Scheduled, Some(far)));
}

#[tokio::test]
async fn higher_priority_goes_first_but_waits_in_the_same_line() {
    let server = Server::with("[workers]\nconcurrency = 1\n");
    let client = server.client().await;
    let blocker = place(&client, submit("sleep", r#"{"duration":"500ms"}"#)).await;
    reach(&client, &blocker, State::Running).await;
    let mut placed = Vec::new();
    for priority in [-1, 0, 100, 1] {
        // Times are kept in milliseconds: jobs of one slot that take longer cannot begin in the same one.
        let spec = JobSpec { priority, ..spec("sleep", r#"{"duration":"5ms"}"#) };
        placed.push(place(&client, SubmitRequest { spec: Some(spec), ..Default::default() }).await);
    }
    let mut started = Vec::new();
    for id in &placed {
        let job = result(&client, id).await;
        let time = job.start_time.unwrap();
        started.push(((time.seconds, time.nanos), job.spec.unwrap().priority));
    }
    started.sort();
    let order: Vec<_> = started.iter().map(|&(_, priority)| priority).collect();
    assert_eq!(order, [100, 1, 0, -1], "{started:?}");
}

#[tokio::test]
async fn payloads_come_back_as_they_were() {
    let server = Server::start();
    let client = server.client().await;
    let bodies = [
        (Body::Text("ümläut\n".into()), "text/plain"),
        (Body::Data(vec![0, 255, 7].into()), "application/octet-stream"),
        (Body::Text("9007199254740993".into()), "application/json"),
        (Body::Data(vec![0xff].into()), "image/png"),
    ];
    for (body, content_type) in bodies {
        let payload =
            Payload { body: Some(body.clone()), content_type: content_type.into(), ..Default::default() };
        let spec = JobSpec { kind: "echo".into(), payload: Some(payload), ..Default::default() };
        let job = finish(&client, SubmitRequest { spec: Some(spec), ..Default::default() }).await;
        let output = job.output.unwrap();
        assert_eq!((output.body, output.content_type.as_str()), (Some(body), content_type));
    }
    let raw = SubmitRequest { payload_format: PayloadFormat::Raw.into(), ..submit("echo", "[1]") };
    let output = finish(&client, raw).await.output.unwrap();
    assert_eq!(output.body, Some(Body::Data(b"[1]".as_slice().into())));
    let none = JobSpec { kind: "echo".into(), ..Default::default() };
    let job = finish(&client, SubmitRequest { spec: Some(none), ..Default::default() }).await;
    assert_eq!(job.state(), State::Succeeded);
}

#[tokio::test]
async fn json_that_swells_on_the_wire_goes_out_as_text() {
    let server = Server::start();
    let client = server.client().await;
    let text = format!("[{}0]", "0,".repeat(400_000));
    let payload = Payload { ..json(&text) };
    let swollen = JobSpec { kind: "echo".into(), payload: Some(payload), ..Default::default() };
    let job = finish(&client, SubmitRequest { spec: Some(swollen), ..Default::default() }).await;
    assert_eq!(job.output.unwrap().body, Some(Body::Text(text.clone())));
    let job = get(&client, &job.job_id).await;
    assert_eq!(job.spec.unwrap().payload.unwrap().body, Some(Body::Text(text)));
}

#[tokio::test]
async fn extremes_are_taken_as_they_are() {
    let server = Server::start();
    let client = server.client().await;
    let last = prost_types::Timestamp { seconds: 253_402_300_799, nanos: 999_000_000 };
    let first = prost_types::Timestamp { seconds: -62_135_596_800, nanos: 0 };
    let year = Some(seconds(366.0 * 24.0 * 3600.0));
    let extreme = |priority, time| JobSpec {
        queue: "q".repeat(128),
        priority,
        start: Some(Start::StartTime(time)),
        start_timeout: year,
        total_timeout: year,
        attempt_timeout: Some(seconds(24.0 * 3600.0)),
        retention: Some(seconds(90.0 * 24.0 * 3600.0)),
        unique_key: "!~".repeat(64),
        ..spec("echo", "1")
    };
    let request = |spec| SubmitRequest { spec: Some(spec), ..Default::default() };
    let far = place(&client, SubmitRequest { job_id: "~".repeat(128), ..request(extreme(-100, last)) }).await;
    let job = get(&client, &far).await;
    assert_eq!((job.state(), job.next_attempt_time), (State::Scheduled, Some(last)));
    client.clone().cancel_job(CancelJobRequest { job_id: far, ..Default::default() }).await.unwrap();
    let early = finish(&client, request(extreme(100, first))).await;
    assert_eq!(early.state(), State::Succeeded);
    let shown = get(&client, &early.job_id).await.spec.unwrap().start;
    assert_eq!(shown, Some(Start::StartTime(first)));
}
