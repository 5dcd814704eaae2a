//! BatchSubmit: all or none.

use jobwire::proto::{
    BatchSubmitRequest, BatchSubmitResponse, CancelJobRequest, FinishJobRequest, Job, JobSpec,
    LeaseJobsRequest, ListJobsRequest, SubmitRequest, WatchResultsRequest, submit_request::OnUniqueConflict,
    watch_results_request::Start,
};
use tonic::{Code, Status};

use crate::{
    calls::{Refusal, Watch, accept, finish, place, result},
    floods::peak,
    support::{Client, Server, seconds, spec, submit},
    workers::{KIND, succeeded, task, workers},
};

async fn batch(client: &Client, requests: Vec<SubmitRequest>) -> Result<BatchSubmitResponse, Status> {
    Ok(client.clone().batch_submit(BatchSubmitRequest { requests }).await?.into_inner())
}

async fn stored(client: &Client) -> usize {
    client.clone().list_jobs(ListJobsRequest::default()).await.unwrap().into_inner().jobs.len()
}

#[tokio::test]
async fn a_batch_is_accepted_as_a_whole() {
    let server = Server::start();
    let client = server.client().await;
    let requests = (0..1000).map(|n| submit("echo", &n.to_string())).collect();
    let answer = batch(&client, requests).await.unwrap();
    assert_eq!(answer.responses.len(), 1000);
    assert!(!answer.cursor.is_empty());
    let mut watch = Watch::open(
        &client,
        WatchResultsRequest { start: Some(Start::AfterCursor(answer.cursor)), ..Default::default() },
    )
    .await;
    let mut left: Vec<_> = answer.responses.into_iter().map(|one| one.job.unwrap().job_id).collect();
    while !left.is_empty() {
        let job = watch.finished().await;
        left.retain(|id| *id != job.job_id);
    }
}

#[tokio::test]
async fn a_repeated_batch_gives_the_same_jobs() {
    let server = Server::start();
    let client = server.client().await;
    let item = |n: u32| SubmitRequest { request_id: format!("r-{n}"), ..submit("echo", &n.to_string()) };
    let first = batch(&client, (0..3).map(item).collect()).await.unwrap();
    let again = batch(&client, (0..4).map(item).collect()).await.unwrap();
    let told: Vec<_> = again.responses.iter().map(|one| one.deduplicated).collect();
    assert_eq!(told, [true, true, true, false]);
    let id = |one: &jobwire::proto::SubmitResponse| one.job.as_ref().unwrap().job_id.clone();
    assert_eq!(id(&first.responses[2]), id(&again.responses[2]));
    // Twice in one batch is once.
    let twice = batch(&client, vec![item(9), item(9)]).await.unwrap();
    assert_eq!(id(&twice.responses[0]), id(&twice.responses[1]));
    assert!(twice.responses[1].deduplicated);
}

#[tokio::test]
async fn one_bad_item_refuses_the_batch_and_is_named() {
    let server = Server::start();
    let client = server.client().await;
    let good = || submit("echo", "1");
    let wait = SubmitRequest { wait: Some(seconds(1.0)), ..good() };
    let check = SubmitRequest { validate_only: true, ..good() };
    let format = SubmitRequest { payload_format: 77, ..good() };
    let priority = SubmitRequest { spec: Some(JobSpec { priority: 101, ..spec("echo", "1") }), ..good() };
    for (bad, field) in [
        (submit("", "1"), "requests[1].spec.kind"),
        (wait, "requests[1].wait"),
        (check, "requests[1].validate_only"),
        (format, "requests[1].payload_format"),
        (priority, "requests[1].spec.priority"),
        (SubmitRequest { spec: None, ..good() }, "requests[1].spec"),
        (SubmitRequest { job_id: "a b".into(), ..good() }, "requests[1].job_id"),
    ] {
        let refused = Refusal::of(batch(&client, vec![good(), bad]).await);
        assert_eq!(refused.field(), field);
        refused.is(Code::InvalidArgument, "INVALID_FIELD");
    }
    assert_eq!(stored(&client).await, 0);
}

#[tokio::test]
async fn what_the_store_refuses_names_its_item_too() {
    let server = Server::start();
    let client = server.client().await;
    finish(&client, SubmitRequest { job_id: "taken".into(), ..submit("echo", "1") }).await;
    let held = JobSpec { unique_key: "key".into(), ..spec("nobody", "1") };
    let held = SubmitRequest { spec: Some(held), ..Default::default() };
    let holder = place(&client, held.clone()).await;
    let reject = OnUniqueConflict::Reject.into();
    let good = || submit("echo", "1");
    for (bad, reason, resource) in [
        (SubmitRequest { job_id: "taken".into(), ..submit("echo", "2") }, "JOB_ID_IN_USE", "taken"),
        (SubmitRequest { on_unique_conflict: reject, ..held }, "UNIQUE_KEY_IN_USE", &holder),
    ] {
        let refused = Refusal::of(batch(&client, vec![good(), good(), bad]).await);
        assert_eq!((refused.resource(), refused.metadata["index"].as_str()), (resource, "2"));
        refused.is(Code::AlreadyExists, reason).says(&["requests[2]"]);
    }
    assert_eq!(stored(&client).await, 2);
}

#[tokio::test]
async fn a_batch_has_one_to_a_thousand_items() {
    let server = Server::with("[limits]\nmax_batch_items = 3\n");
    let client = server.client().await;
    let refused = Refusal::of(batch(&client, vec![submit("echo", "1"); 4]).await);
    assert_eq!(
        (refused.field(), refused.metadata["limit"].as_str(), refused.metadata["size"].as_str()),
        ("requests", "3", "4")
    );
    refused.is(Code::InvalidArgument, "TOO_LARGE");
    let refused = Refusal::of(batch(&client, Vec::new()).await);
    assert_eq!(refused.field(), "requests");
    let answer = batch(&client, vec![submit("echo", "1"); 3]).await.unwrap();
    for one in answer.responses {
        result(&client, &one.job.unwrap().job_id).await;
    }
}

#[tokio::test]
async fn an_answer_fits_a_message_whatever_was_there_already() {
    let server = Server::start();
    let client = server.client().await;
    let large = format!("\"{}\"", "x".repeat(900_000));
    let item = |n: u32| SubmitRequest { job_id: format!("large-{n}"), ..submit("echo", &large) };
    for n in 0..4 {
        finish(&client, item(n)).await;
    }
    let item = |n: u32| SubmitRequest { request_id: format!("key-{n}"), ..item(n) };
    for n in 0..4 {
        place(&client, item(n)).await;
    }
    let held: Vec<_> = (0..5)
        .map(|n| {
            let labels = (0..64).map(|label| (format!("label-{label}"), "x".repeat(256))).collect();
            let spec = JobSpec { unique_key: format!("k-{n}"), labels, ..spec("nobody", "1") };
            SubmitRequest { spec: Some(spec), ..Default::default() }
        })
        .collect();
    batch(&client, held).await.unwrap();
    // Few bytes ask for many: each of these names a job with large labels.
    let again = (0..1000)
        .map(|n| {
            let spec = JobSpec { unique_key: format!("k-{}", n % 5), ..spec("nobody", "1") };
            SubmitRequest { spec: Some(spec), ..Default::default() }
        })
        .collect();
    let answer = batch(&client, again).await.unwrap();
    assert!(
        answer
            .responses
            .iter()
            .all(|one| one.deduplicated && one.job.as_ref().is_some_and(|job| !job.job_id.is_empty()))
    );
    let repeated = SubmitRequest { wait: None, ..item(0) };
    assert!(batch(&client, vec![repeated]).await.unwrap().responses[0].done);
}

#[tokio::test]
async fn repeats_show_outputs_where_a_message_has_room_for_all() {
    let server = Server::start();
    let (client, workers) = (server.client().await, workers(&server).await);
    let item = SubmitRequest { job_id: "large".into(), request_id: "r".into(), ..task("1") };
    place(&client, item.clone()).await;
    let ask = LeaseJobsRequest {
        worker_id: "me".into(),
        kinds: vec![KIND.into()],
        wait: Some(seconds(10.0)),
        ..Default::default()
    };
    let lease = workers.clone().lease_jobs(ask).await.unwrap().into_inner().leases.remove(0);
    let finish = succeeded(&lease, &format!("\"{}\"", "x".repeat(900_000)));
    workers.clone().finish_job(FinishJobRequest { finish: Some(finish) }).await.unwrap();

    let shown = |job: &Option<Job>| {
        let output = job.as_ref().and_then(|job| job.output.as_ref()).expect("an output");
        assert!(output.body.is_some() && output.size_bytes == 900_002, "{output:.100?}");
    };
    for repeat in [item.clone(), SubmitRequest { validate_only: true, ..item.clone() }] {
        let repeated = accept(&client, repeat).await;
        assert!(repeated.deduplicated && repeated.done);
        shown(&repeated.job);
    }
    let cancel = CancelJobRequest { job_id: "large".into(), ..Default::default() };
    shown(&client.clone().cancel_job(cancel).await.unwrap().into_inner().job);
    let four = batch(&client, vec![item.clone(); 4]).await.unwrap();
    four.responses.iter().for_each(|one| shown(&one.job));

    let before = peak(&server);
    for _ in 0..3 {
        let many = batch(&client, vec![item.clone(); 1000]).await.unwrap();
        assert!(many.responses.iter().all(|one| one.deduplicated && one.done));
        assert!(many.responses.iter().all(|one| one.job.as_ref().is_some_and(|job| job.output.is_none())));
    }
    let growth = peak(&server) - before;
    assert!(growth < 64 << 20, "{growth} bytes");
}
