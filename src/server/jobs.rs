//! JobService: each call is checked, handed to the engine, and its answer put on the wire.

use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
    time::Duration,
};

use futures_util::stream::{BoxStream, Empty};
use prost::Message as _;
use tokio::{sync::Semaphore, time::Instant};
use tonic::{Request, Response, Status, Streaming, metadata::MetadataMap};

use super::{
    convert::{Format, filter, format, job, optional_duration, proto_duration, submission, view},
    deadline::Deadline,
    listener::Retire,
    room::Room,
    status::status,
    streams, tokens,
};
use crate::{
    config::Limits,
    engine::{Engine, Pressure},
    job::{Error, JobId, View},
    proto::{self, job_service_server::JobService},
    store::{Cancel, Delete, ListQuery, Retry, Submission, Submitted},
};

/// A method's name on the wire.
pub const BATCH_SUBMIT: &str = "/jobwire.v1.JobService/BatchSubmit";

/// What a wait leaves of the call's deadline for the answer's way back.
const WAY_BACK: Duration = Duration::from_millis(200);

/// Unless the caller says.
const PAGE: usize = 50;
const MAX_PAGE: usize = 1000;

/// Whole outputs: what the store took is small enough to send.
const ANY_SIZE: usize = usize::MAX;

/// Bytes of a reply. A message may have a little more.
const MAX_REPLY: usize = 4_000_000;

/// The service. It answers UNAVAILABLE until there is an engine: the store recovers while the port is open, so that
/// health checks can tell.
#[derive(Clone)]
pub struct JobsApi {
    jobs: Arc<OnceLock<Jobs>>,
    room: Room,
    /// Bytes of items of all streams that wait for their commit.
    streamed: Arc<Semaphore>,
}

impl JobsApi {
    /// `streamed`: bytes that items of all streams may take while they wait for their commit.
    pub fn new(room: Room, streamed: usize) -> Self {
        Self { jobs: Arc::default(), room, streamed: Arc::new(Semaphore::new(streamed)) }
    }

    /// What a call is answered with, if there is room for it.
    fn reply<T: prost::Message>(&self, answer: Result<T, Error>) -> Answer<T> {
        answer.and_then(|reply| self.room.reply(reply)).map_err(status)
    }

    /// From now on calls are served.
    pub fn open(&self, engine: Engine, info: proto::GetServerInfoResponse) {
        // The first one stays; there is no second.
        let _ = self.jobs.set(Jobs { engine, info });
    }

    pub fn engine(&self) -> Result<&Engine, Status> {
        Ok(&self.jobs()?.engine)
    }

    fn jobs(&self) -> Result<&Jobs, Status> {
        self.jobs.get().ok_or_else(|| status(Error::StoreUnavailable("it recovers after a start".into())))
    }
}

/// What the calls do.
struct Jobs {
    engine: Engine,
    /// What GetServerInfo answers.
    info: proto::GetServerInfoResponse,
}

type Answer<T> = Result<Response<T>, Status>;

impl Jobs {
    fn patience(
        &self,
        wait: Option<&prost_types::Duration>,
        deadline: Option<Instant>,
    ) -> Result<Option<Instant>, Error> {
        patience(wait, deadline, self.engine.config().limits.max_wait)
    }

    fn answer(&self, submitted: &Submitted, format: Format) -> proto::SubmitResponse {
        proto::SubmitResponse {
            job: Some(job(&submitted.job, View::Result, format, ANY_SIZE)),
            deduplicated: submitted.deduplicated,
            done: submitted.job.state.is_final(),
            cursor: tokens::cursor(self.engine.log_id(), submitted.position),
        }
    }

    async fn submit(&self, request: Request<proto::SubmitRequest>) -> Result<proto::SubmitResponse, Error> {
        let deadline = Deadline::of(&request);
        let trace = trace_headers(request.metadata());
        let request = request.into_inner();
        let format = format("payload_format", request.payload_format, Format::Readable)?;
        let until = self.patience(request.wait.as_ref(), deadline)?;
        let item = submission(request, &self.engine.config().limits, self.engine.fresh_id(), trace)?;
        if item.check_only {
            return self.check(item, format).await;
        }
        let submitted = match until {
            Some(until) => self.engine.submit_and_wait(item, until).await?,
            None => self.engine.submit_one(item, Pressure::Refuse).await?,
        };
        Ok(self.answer(&submitted, format))
    }

    /// The answer to a job that is only checked.
    async fn check(&self, item: Submission, format: Format) -> Result<proto::SubmitResponse, Error> {
        let own_id = item.own_id;
        let mut answer = self.answer(&self.engine.check(item).await?, format);
        if !answer.deduplicated {
            // Nothing was committed, and the id would be another one when it is submitted.
            answer.cursor.clear();
            answer.job.iter_mut().filter(|_| !own_id).for_each(|job| job.job_id.clear());
        }
        Ok(answer)
    }

    async fn batch_submit(
        &self,
        request: Request<proto::BatchSubmitRequest>,
    ) -> Result<proto::BatchSubmitResponse, Error> {
        let trace = trace_headers(request.metadata());
        let limits = &self.engine.config().limits;
        // No more than a batch may have: they were counted before.
        let requests = request.into_inner().requests;
        if requests.is_empty() {
            return Err(Error::invalid("requests", "must hold at least one"));
        }
        let mut group = Vec::with_capacity(requests.len());
        let mut formats = Vec::with_capacity(requests.len());
        for (index, request) in requests.into_iter().enumerate() {
            let (item, format) = batch_item(request, limits, self.engine.fresh_id(), trace.clone())
                .map_err(|error| error.within(&format!("requests[{index}].")))?;
            group.push(item);
            formats.push(format);
        }
        let group = self
            .engine
            .submit(group, Pressure::Refuse)
            .await
            .map_err(|(index, error)| error.in_batch(index))?;
        Ok(self.answers(&group, &formats).await)
    }

    /// Jobs that were there already may have more to them than fits a message. Then each is told in short.
    async fn answers(&self, group: &[Submitted], formats: &[Format]) -> proto::BatchSubmitResponse {
        let in_short = || group.iter().map(|submitted| self.answer_in_short(submitted)).collect();
        let responses = self.answers_in_full(group, formats).await.unwrap_or_else(in_short);
        let cursor = responses.first().map(|response| response.cursor.clone()).unwrap_or_default();
        proto::BatchSubmitResponse { responses, cursor }
    }

    /// None if they do not fit a message, or outputs cannot be read: the batch counts all the same.
    async fn answers_in_full(
        &self,
        group: &[Submitted],
        formats: &[Format],
    ) -> Option<Vec<proto::SubmitResponse>> {
        let outputs: usize = group.iter().filter_map(|submitted| submitted.job.lacks_output()).sum();
        if outputs > MAX_REPLY {
            return None;
        }
        let jobs = group.iter().map(|submitted| submitted.job.clone()).collect();
        let jobs = self.engine.with_outputs(jobs).await.ok()?;
        let mut size = 0;
        let mut responses = Vec::with_capacity(group.len());
        for ((submitted, job), &format) in group.iter().zip(jobs).zip(formats) {
            let answer = self.answer(&Submitted { job, ..submitted.clone() }, format);
            size += answer.encoded_len();
            if size > MAX_REPLY {
                return None;
            }
            responses.push(answer);
        }
        Some(responses)
    }

    fn answer_in_short(&self, submitted: &Submitted) -> proto::SubmitResponse {
        let mut answer = self.answer(submitted, Format::Raw);
        shorten(&mut answer);
        answer
    }

    async fn get_result(
        &self,
        request: Request<proto::GetResultRequest>,
    ) -> Result<proto::GetResultResponse, Error> {
        let deadline = Deadline::of(&request);
        let request = request.into_inner();
        let id = job_id(&request.job_id)?;
        let format = format("payload_format", request.payload_format, Format::Readable)?;
        let found = match self.patience(request.wait.as_ref(), deadline)? {
            None => self.engine.get(&id, View::Result).await?,
            Some(until) => self.engine.wait(&id, until).await?,
        };
        let done = found.state.is_final();
        Ok(proto::GetResultResponse {
            done,
            job: Some(job(&found, View::Result, format, ANY_SIZE)),
            retry_after: (!done).then(|| proto_duration(Duration::from_secs(1))),
        })
    }

    async fn get_job(&self, request: proto::GetJobRequest) -> Result<proto::GetJobResponse, Error> {
        let id = job_id(&request.job_id)?;
        let view = view(request.view, View::Result)?;
        let format = format("payload_format", request.payload_format, Format::Readable)?;
        let found = self.engine.get(&id, view).await?;
        Ok(fitting(format, |format| proto::GetJobResponse { job: Some(job(&found, view, format, ANY_SIZE)) }))
    }

    async fn list_jobs(&self, request: proto::ListJobsRequest) -> Result<proto::ListJobsResponse, Error> {
        // A token belongs to one list: another filter or order would make it point anywhere.
        let mut hash = crc32fast::Hasher::new();
        hash.update(&request.filter.as_ref().map(|filter| filter.encode_to_vec()).unwrap_or_default());
        hash.update(&[u8::from(request.oldest_first)]);
        let hash = hash.finalize();
        let limit = match usize::try_from(request.page_size) {
            Ok(0) => PAGE,
            Ok(size) => size.min(MAX_PAGE),
            Err(_) => return Err(Error::invalid("page_size", "must not be negative")),
        };
        let format = format("payload_format", request.payload_format, Format::Readable)?;
        let view = view(request.view, View::Basic)?;
        let query = ListQuery {
            filter: filter(request.filter, self.engine.config().watch.max_filter_ids)?,
            view,
            limit,
            oldest_first: request.oldest_first,
            after: tokens::page_start(&request.page_token, hash)?,
        };
        let page = self.engine.list(query).await?;
        Ok(fitting(format, |format| proto::ListJobsResponse {
            jobs: page.jobs.iter().map(|found| job(found, view, format, ANY_SIZE)).collect(),
            next_page_token: page.next.map(|after| tokens::page_token(hash, after)).unwrap_or_default(),
            cursor: tokens::cursor(self.engine.log_id(), page.position),
        }))
    }

    async fn cancel_job(&self, request: proto::CancelJobRequest) -> Result<proto::CancelJobResponse, Error> {
        const MAX_REASON: usize = 1024;
        let job_id = job_id(&request.job_id)?;
        if request.reason.len() > MAX_REASON || request.reason.contains('\0') {
            return Err(Error::invalid("reason", format!("must be at most {MAX_REASON} bytes, without NUL")));
        }
        let cancel = Cancel { job_id, reason: request.reason, etag: etag(request.etag) };
        let changed = self.engine.cancel(cancel).await?;
        Ok(proto::CancelJobResponse { job: Some(job(&changed, View::Result, Format::Readable, ANY_SIZE)) })
    }

    async fn retry_job(&self, request: proto::RetryJobRequest) -> Result<proto::RetryJobResponse, Error> {
        let ahead = Duration::ZERO..=self.engine.config().limits.max_delay;
        let retry = Retry {
            job_id: job_id(&request.job_id)?,
            delay: optional_duration("delay", request.delay.as_ref(), ahead)?.unwrap_or_default(),
            etag: etag(request.etag),
        };
        let changed = self.engine.retry(retry).await?;
        Ok(proto::RetryJobResponse { job: Some(job(&changed, View::Result, Format::Readable, ANY_SIZE)) })
    }

    async fn delete_job(&self, request: proto::DeleteJobRequest) -> Result<proto::DeleteJobResponse, Error> {
        let job_id = job_id(&request.job_id)?;
        let delete = Delete { job_id, etag: etag(request.etag), allow_missing: request.allow_missing };
        self.engine.delete(delete).await?;
        Ok(proto::DeleteJobResponse {})
    }
}

/// Until when a call may wait.
pub fn patience(
    wait: Option<&prost_types::Duration>,
    deadline: Option<Instant>,
    max_wait: Duration,
) -> Result<Option<Instant>, Error> {
    let Some(wait) = optional_duration("wait", wait, Duration::ZERO..=Duration::MAX)? else {
        return Ok(None);
    };
    let until = Instant::now() + wait.min(max_wait);
    let limit = deadline.and_then(|deadline| deadline.checked_sub(WAY_BACK));
    Ok(Some(limit.map_or(until, |limit| until.min(limit))))
}

/// A reply that fits a message: many documents that swell a little as JSON may together swell too much.
fn fitting<T: prost::Message>(format: Format, reply: impl Fn(Format) -> T) -> T {
    let asked = reply(format);
    if format == Format::Readable && asked.encoded_len() > MAX_REPLY { reply(Format::Text) } else { asked }
}

/// Leaves of a job what callers go on by.
fn shorten(response: &mut proto::SubmitResponse) {
    if let Some(job) = response.job.take() {
        let proto::Job { job_id, state, attempt, run, etag, .. } = job;
        response.job = Some(proto::Job { job_id, state, attempt, run, etag, ..Default::default() });
    }
}

/// Leaves out what may be large of a job.
pub fn leave_bodies_out(job: Option<&mut proto::Job>) {
    let Some(job) = job else { return };
    let attempts = job.attempts.iter_mut().filter_map(|attempt| attempt.error.as_mut());
    let details = attempts.chain(&mut job.error).filter_map(|error| error.details.as_mut());
    for body in details.chain(&mut job.output) {
        (body.body, body.omitted) = (None, true);
    }
}

fn batch_item(
    request: proto::SubmitRequest,
    limits: &Limits,
    fresh: JobId,
    trace: BTreeMap<String, String>,
) -> Result<(Submission, Format), Error> {
    only_in_submit(&request)?;
    let format = format("payload_format", request.payload_format, Format::Readable)?;
    Ok((submission(request, limits, fresh, trace)?, format))
}

/// An item of a batch or a stream cannot wait, nor be checked alone.
pub fn only_in_submit(request: &proto::SubmitRequest) -> Result<(), Error> {
    let refused = |field| Err(Error::invalid(field, "works in Submit only"));
    if request.wait.is_some() {
        return refused("wait");
    }
    if request.validate_only {
        return refused("validate_only");
    }
    Ok(())
}

fn job_id(text: &str) -> Result<JobId, Error> {
    text.parse()
}

fn etag(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}

/// The W3C trace headers, as far as they are sound.
pub fn trace_headers(metadata: &MetadataMap) -> BTreeMap<String, String> {
    const MAX_HEADER: usize = 512;
    ["traceparent", "tracestate"]
        .into_iter()
        .filter_map(|name| {
            let value = metadata.get(name)?.to_str().ok()?;
            (value.len() <= MAX_HEADER).then(|| (name.to_owned(), value.to_owned()))
        })
        .collect()
}

#[tonic::async_trait]
impl JobService for JobsApi {
    type StreamSubmitStream = BoxStream<'static, Result<proto::StreamSubmitResponse, Status>>;
    type WatchResultsStream = Empty<Result<proto::WatchResultsResponse, Status>>;

    async fn submit(&self, request: Request<proto::SubmitRequest>) -> Answer<proto::SubmitResponse> {
        let answer = self.jobs()?.submit(request).await.map_err(status)?;
        Ok(self.room.reply_at_least(answer, |reply| leave_bodies_out(reply.job.as_mut())))
    }

    async fn batch_submit(
        &self,
        request: Request<proto::BatchSubmitRequest>,
    ) -> Answer<proto::BatchSubmitResponse> {
        let answer = self.jobs()?.batch_submit(request).await.map_err(status)?;
        Ok(self.room.reply_at_least(answer, |all| all.responses.iter_mut().for_each(shorten)))
    }

    async fn stream_submit(
        &self,
        request: Request<Streaming<proto::StreamSubmitRequest>>,
    ) -> Answer<Self::StreamSubmitStream> {
        let trace = trace_headers(request.metadata());
        let ends = (Deadline::of(&request), Retire::of(&request));
        let engine = self.jobs()?.engine.clone();
        Ok(Response::new(streams::submits(engine, request.into_inner(), trace, self.streamed.clone(), ends)))
    }

    async fn get_result(
        &self,
        request: Request<proto::GetResultRequest>,
    ) -> Answer<proto::GetResultResponse> {
        self.reply(self.jobs()?.get_result(request).await)
    }

    async fn watch_results(
        &self,
        _: Request<proto::WatchResultsRequest>,
    ) -> Answer<Self::WatchResultsStream> {
        Err(status(Error::Internal("WatchResults is answered by `Watches`".into())))
    }

    async fn get_job(&self, request: Request<proto::GetJobRequest>) -> Answer<proto::GetJobResponse> {
        self.reply(self.jobs()?.get_job(request.into_inner()).await)
    }

    async fn list_jobs(&self, request: Request<proto::ListJobsRequest>) -> Answer<proto::ListJobsResponse> {
        self.reply(self.jobs()?.list_jobs(request.into_inner()).await)
    }

    async fn cancel_job(
        &self,
        request: Request<proto::CancelJobRequest>,
    ) -> Answer<proto::CancelJobResponse> {
        let answer = self.jobs()?.cancel_job(request.into_inner()).await.map_err(status)?;
        Ok(self.room.reply_at_least(answer, |reply| leave_bodies_out(reply.job.as_mut())))
    }

    async fn retry_job(&self, request: Request<proto::RetryJobRequest>) -> Answer<proto::RetryJobResponse> {
        let answer = self.jobs()?.retry_job(request.into_inner()).await.map_err(status)?;
        Ok(self.room.reply_at_least(answer, |reply| leave_bodies_out(reply.job.as_mut())))
    }

    async fn delete_job(
        &self,
        request: Request<proto::DeleteJobRequest>,
    ) -> Answer<proto::DeleteJobResponse> {
        self.jobs()?.delete_job(request.into_inner()).await.map(Response::new).map_err(status)
    }

    async fn get_server_info(
        &self,
        _request: Request<proto::GetServerInfoRequest>,
    ) -> Answer<proto::GetServerInfoResponse> {
        Ok(Response::new(self.jobs()?.info.clone()))
    }
}
