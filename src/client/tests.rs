//! The client against a server that misbehaves on purpose.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex},
};

use futures_util::TryStreamExt as _;
use tonic::Streaming;
use tonic_types::{ErrorDetails, StatusExt as _};

use super::*;
use crate::proto::{
    Accepted, CancelJobResponse, Checkpoint, DeleteJobResponse, GetJobResponse, JobFilter, RetryJobResponse,
    job_service_server::{JobService, JobServiceServer},
    stream_submit_response::Verdict,
    watch_results_request::Start,
    watch_results_response::Event,
};

/// What one call, or one watch, is answered with, in turn.
type Watched = Vec<Result<WatchResultsResponse, Status>>;

#[derive(Clone, Default)]
struct Fake {
    submitted: Arc<Mutex<Vec<SubmitRequest>>>,
    submit_errors: Arc<Mutex<VecDeque<Status>>>,
    polls: Arc<Mutex<Vec<GetResultRequest>>>,
    deletes: Arc<Mutex<Vec<DeleteJobRequest>>>,
    retries: Arc<Mutex<u32>>,
    watches: Arc<Mutex<VecDeque<Watched>>>,
    watched: Arc<Mutex<Vec<WatchResultsRequest>>>,
}

#[tonic::async_trait]
impl JobService for Fake {
    type StreamSubmitStream = BoxStream<'static, Result<StreamSubmitResponse, Status>>;
    type WatchResultsStream = BoxStream<'static, Result<WatchResultsResponse, Status>>;

    async fn submit(&self, request: Request<SubmitRequest>) -> Result<Response<SubmitResponse>, Status> {
        self.submitted.lock().unwrap().push(request.into_inner());
        match self.submit_errors.lock().unwrap().pop_front() {
            Some(error) => Err(error),
            None => Ok(Response::new(Default::default())),
        }
    }

    async fn batch_submit(
        &self,
        _: Request<BatchSubmitRequest>,
    ) -> Result<Response<BatchSubmitResponse>, Status> {
        Ok(Response::new(Default::default()))
    }

    async fn stream_submit(
        &self,
        request: Request<Streaming<StreamSubmitRequest>>,
    ) -> Result<Response<Self::StreamSubmitStream>, Status> {
        let verdicts = request.into_inner().map_ok(|item| {
            let job_id = item.request.unwrap_or_default().request_id;
            let accepted = Accepted { job_id, ..Accepted::default() };
            StreamSubmitResponse { sequence: item.sequence, verdict: Some(Verdict::Accepted(accepted)) }
        });
        Ok(Response::new(verdicts.boxed()))
    }

    async fn get_result(
        &self,
        request: Request<GetResultRequest>,
    ) -> Result<Response<GetResultResponse>, Status> {
        let mut polls = self.polls.lock().unwrap();
        polls.push(request.into_inner());
        let retry_after = Some(prost_types::Duration { seconds: 0, nanos: 1_000_000 });
        Ok(Response::new(GetResultResponse {
            done: polls.len() == 3,
            job: Some(Job::default()),
            retry_after,
        }))
    }

    async fn watch_results(
        &self,
        request: Request<WatchResultsRequest>,
    ) -> Result<Response<Self::WatchResultsStream>, Status> {
        self.watched.lock().unwrap().push(request.into_inner());
        let Some(script) = self.watches.lock().unwrap().pop_front() else {
            // Nothing, not even a checkpoint.
            return Ok(Response::new(stream::pending().boxed()));
        };
        Ok(Response::new(stream::iter(script).boxed()))
    }

    async fn get_job(&self, _: Request<GetJobRequest>) -> Result<Response<GetJobResponse>, Status> {
        Ok(Response::new(Default::default()))
    }

    async fn list_jobs(
        &self,
        request: Request<ListJobsRequest>,
    ) -> Result<Response<ListJobsResponse>, Status> {
        let next = match request.into_inner().page_token.as_str() {
            "" => "2",
            "2" => "3",
            _ => "",
        };
        Ok(Response::new(ListJobsResponse {
            next_page_token: next.to_owned(),
            ..ListJobsResponse::default()
        }))
    }

    async fn cancel_job(&self, _: Request<CancelJobRequest>) -> Result<Response<CancelJobResponse>, Status> {
        Ok(Response::new(Default::default()))
    }

    async fn retry_job(&self, _: Request<RetryJobRequest>) -> Result<Response<RetryJobResponse>, Status> {
        *self.retries.lock().unwrap() += 1;
        Err(Status::unavailable("reply lost"))
    }

    async fn delete_job(
        &self,
        request: Request<DeleteJobRequest>,
    ) -> Result<Response<DeleteJobResponse>, Status> {
        let mut deletes = self.deletes.lock().unwrap();
        deletes.push(request.into_inner());
        if deletes.len() == 1 {
            Err(Status::unavailable("reply lost"))
        } else {
            Ok(Response::new(Default::default()))
        }
    }

    async fn get_server_info(
        &self,
        _: Request<GetServerInfoRequest>,
    ) -> Result<Response<GetServerInfoResponse>, Status> {
        Ok(Response::new(Default::default()))
    }
}

impl Fake {
    async fn start(&self) -> Client {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let connections = tonic::transport::server::TcpIncoming::from(listener);
        let server = tonic::transport::Server::builder().add_service(JobServiceServer::new(self.clone()));
        tokio::spawn(server.serve_with_incoming(connections));
        Client::connect(&address).await.unwrap()
    }

    fn will_watch(&self, scripts: impl IntoIterator<Item = Watched>) {
        *self.watches.lock().unwrap() = scripts.into_iter().collect();
    }

    fn starts(&self) -> Vec<Option<Start>> {
        self.watched.lock().unwrap().iter().map(|request| request.start.clone()).collect()
    }
}

fn error(code: Code, reason: &str) -> Status {
    error_of(code, reason, &[])
}

fn error_of(code: Code, reason: &str, metadata: &[(&str, &str)]) -> Status {
    let metadata = metadata.iter().map(|&(key, value)| (key.to_owned(), value.to_owned()));
    let mut details =
        ErrorDetails::with_error_info(reason, "jobwire.v1", metadata.collect::<HashMap<_, _>>());
    details.set_retry_info(Some(Duration::from_millis(1)));
    Status::with_error_details(code, "no", details)
}

fn finished(id: &str, cursor: &str) -> Result<WatchResultsResponse, Status> {
    let job = Job { job_id: id.into(), run: 1, ..Job::default() };
    Ok(WatchResultsResponse { cursor: cursor.into(), event: Some(Event::Finished(Box::new(job))) })
}

fn caught_up(cursor: &str) -> Result<WatchResultsResponse, Status> {
    let checkpoint = Checkpoint { caught_up: true, ..Checkpoint::default() };
    Ok(WatchResultsResponse { cursor: cursor.into(), event: Some(Event::Checkpoint(checkpoint)) })
}

fn ids(messages: &[WatchResultsResponse]) -> Vec<&str> {
    let finished = messages.iter().filter_map(|message| match &message.event {
        Some(Event::Finished(job)) => Some(job.job_id.as_str()),
        _ => None,
    });
    finished.collect()
}

fn until_all_done(ids: &[&str]) -> WatchResultsRequest {
    let job_ids = ids.iter().map(|id| (*id).to_owned()).collect();
    let filter = Some(JobFilter { job_ids, ..JobFilter::default() });
    WatchResultsRequest { filter, until_all_done: true, ..WatchResultsRequest::default() }
}

#[tokio::test]
async fn says_where_nobody_answers() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    let error = Client::connect(&address).await.unwrap_err();
    assert!(error.is_unreachable());
    assert!(error.to_string().contains(&address), "{error}");
}

#[tokio::test]
async fn a_submit_is_repeated_with_the_same_request_id() {
    let fake = Fake::default();
    let errors = [Status::unavailable("gone"), error(Code::ResourceExhausted, "QUEUE_FULL")];
    *fake.submit_errors.lock().unwrap() = errors.into();
    fake.start().await.submit(SubmitRequest::default()).await.unwrap();
    let submitted = fake.submitted.lock().unwrap();
    assert_eq!(submitted.len(), 3);
    assert_eq!(Uuid::parse_str(&submitted[0].request_id).unwrap().get_version_num(), 7);
    assert!(submitted.iter().all(|request| request.request_id == submitted[0].request_id));
}

#[tokio::test]
async fn a_refusal_is_passed_on_at_once() {
    let fake = Fake::default();
    *fake.submit_errors.lock().unwrap() = [error(Code::InvalidArgument, "INVALID_FIELD")].into();
    let request = SubmitRequest { request_id: "mine".into(), ..SubmitRequest::default() };
    let refusal = fake.start().await.submit(request).await.unwrap_err();
    assert_eq!(refusal.reason(), Some("INVALID_FIELD"));
    let submitted = fake.submitted.lock().unwrap();
    assert_eq!(submitted.len(), 1);
    assert_eq!(submitted[0].request_id, "mine");
}

#[tokio::test]
async fn a_retry_is_not_sent_twice_but_a_delete_is() {
    let fake = Fake::default();
    let client = fake.start().await;
    assert!(client.retry(RetryJobRequest::default()).await.is_err());
    assert_eq!(*fake.retries.lock().unwrap(), 1);
    client.delete(DeleteJobRequest::default()).await.unwrap();
    let deletes = fake.deletes.lock().unwrap();
    assert_eq!(deletes.iter().map(|request| request.allow_missing).collect::<Vec<_>>(), [false, true]);
}

#[tokio::test]
async fn a_result_is_polled_until_the_job_has_ended() {
    let fake = Fake::default();
    let reply = fake.start().await.result("a", Duration::MAX).await.unwrap();
    assert!(reply.done);
    assert_eq!(fake.polls.lock().unwrap().len(), 3);
}

#[tokio::test]
async fn a_result_without_a_wait_is_asked_for_once() {
    let fake = Fake::default();
    let reply = fake.start().await.result("a", Duration::ZERO).await.unwrap();
    assert!(!reply.done);
    assert_eq!(fake.polls.lock().unwrap()[0].wait, None);
    assert_eq!(fake.polls.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn pages_are_listed_to_the_end() {
    let pages: Vec<_> =
        Fake::default().start().await.list(ListJobsRequest::default()).try_collect().await.unwrap();
    assert_eq!(pages.len(), 3);
}

#[tokio::test]
async fn a_reply_without_its_job_is_an_error() {
    let client = Fake::default().start().await;
    assert!(matches!(client.get(GetJobRequest::default()).await, Err(Error::Incomplete("job"))));
}

#[tokio::test]
async fn a_stream_of_submits_has_a_verdict_for_each() {
    let client = Fake::default().start().await;
    let items =
        (0..1000).map(|sequence| StreamSubmitRequest { sequence, request: Some(SubmitRequest::default()) });
    let verdicts = client.stream_submit(stream::iter(items)).await.unwrap();
    let verdicts: Vec<_> = verdicts.try_collect().await.unwrap();
    assert_eq!(verdicts.len(), 1000);
    assert!(
        verdicts.iter().all(|v| matches!(&v.verdict, Some(Verdict::Accepted(a)) if !a.job_id.is_empty()))
    );
}

#[tokio::test]
async fn a_watch_goes_on_from_its_cursor_and_ends_when_all_is_done() {
    let fake = Fake::default();
    fake.will_watch([
        vec![Err(error(Code::Unavailable, "STREAM_ROTATED"))],
        vec![finished("a", "c0"), caught_up("c1"), Err(Status::unknown("connection reset"))],
        vec![finished("b", "c2"), Err(error(Code::ResourceExhausted, "WATCH_STALLED"))],
        vec![finished("c", "c3")],
    ]);
    let messages: Vec<_> =
        fake.start().await.watch(until_all_done(&["a", "b", "c"])).try_collect().await.unwrap();
    assert_eq!(ids(&messages), ["a", "b", "c"]);
    let after = |cursor: &str| Some(Start::AfterCursor(cursor.to_owned()));
    assert_eq!(fake.starts(), [None, None, after("c1"), after("c2")]);
    let asked: Vec<_> =
        fake.watched.lock().unwrap().iter().map(|r| r.filter.clone().unwrap().job_ids.len()).collect();
    assert_eq!(asked, [3, 3, 3, 3]);
}

/// The job runs again, or it was removed: the server knows.
#[tokio::test]
async fn only_the_server_knows_that_all_is_done() {
    let fake = Fake::default();
    fake.will_watch([
        vec![caught_up("c0"), finished("a", "c1"), Err(Status::unknown("connection reset"))],
        vec![finished("a", "c2"), Err(Status::unknown("connection reset"))],
        vec![Err(error_of(Code::NotFound, "JOB_NOT_FOUND", &[("job_id", "a")]))],
    ]);
    let messages: Vec<_> = fake.start().await.watch(until_all_done(&["a"])).try_collect().await.unwrap();
    assert_eq!(ids(&messages), ["a", "a"]);
    assert_eq!(fake.starts().len(), 3);
}

#[tokio::test]
async fn a_watch_without_an_end_is_not_ended_by_the_server() {
    let fake = Fake::default();
    fake.will_watch([
        vec![caught_up("c1")],
        vec![finished("a", "c2"), Err(error(Code::OutOfRange, "CURSOR_EXPIRED"))],
    ]);
    let mut messages = fake.start().await.watch(WatchResultsRequest::default());
    assert_eq!(messages.next().await.unwrap().unwrap().cursor, "c1");
    assert_eq!(messages.next().await.unwrap().unwrap().cursor, "c2");
    assert_eq!(messages.next().await.unwrap().unwrap_err().reason(), Some("CURSOR_EXPIRED"));
    assert!(messages.next().await.is_none());
    assert_eq!(fake.starts(), [None, Some(Start::AfterCursor("c1".into()))]);
}

#[tokio::test]
async fn a_silent_server_is_left_for_a_new_stream() {
    let fake = Fake::default();
    let mut request = until_all_done(&["a"]);
    request.heartbeat_interval = Some(prost_types::Duration { seconds: 1, nanos: 0 });
    let mut messages = fake.start().await.watch(request);
    let script = fake.clone();
    tokio::spawn(async move {
        sleep(Duration::from_secs(1)).await;
        script.will_watch([vec![finished("a", "c1")]]);
    });
    let began = Instant::now();
    let message = messages.next().await.unwrap().unwrap();
    assert_eq!(ids(&[message]), ["a"]);
    assert!(began.elapsed() >= Duration::from_secs(3));
    assert_eq!(fake.starts().len(), 2);
}
