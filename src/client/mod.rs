//! A client for programs: the calls of `JobService` with deadlines, safe repeats, and watches that resume; and a
//! [`Worker`] that runs jobs.
//!
//! Requests and replies are the messages of the contract, [`crate::proto`].
//!
//! ```no_run
//! use futures_util::StreamExt;
//! use jobwire::{client::Client, proto::{JobSpec, SubmitRequest, WatchResultsRequest}};
//!
//! # async fn example() -> Result<(), jobwire::client::Error> {
//! let client = Client::connect("127.0.0.1:50051").await?;
//! let spec = JobSpec { kind: "echo".into(), ..JobSpec::default() };
//! let reply = client.submit(SubmitRequest { spec: Some(spec), ..SubmitRequest::default() }).await?;
//! let mut watch = client.watch(WatchResultsRequest::default());
//! while let Some(message) = watch.next().await {
//!     println!("{:?}", message?);
//! }
//! # Ok(())
//! # }
//! ```

mod address;
mod backoff;
mod error;
mod resume;
mod watch;
mod worker;

use std::time::Duration;

use futures_util::stream::{self, BoxStream, Stream, StreamExt as _};
use tokio::time::{Instant, sleep};
use tonic::{
    Request, Response, Status,
    codec::CompressionEncoding,
    transport::{Channel, Endpoint},
};
use uuid::Uuid;

pub(crate) use self::address::normalise;
use self::backoff::{Backoff, Repeat};
pub use self::{
    error::{Error, Failure},
    worker::Worker,
};
use crate::proto::{
    BatchSubmitRequest, BatchSubmitResponse, CancelJobRequest, DeleteJobRequest, GetJobRequest,
    GetResultRequest, GetResultResponse, GetServerInfoRequest, GetServerInfoResponse, Job, ListJobsRequest,
    ListJobsResponse, RetryJobRequest, StreamSubmitRequest, StreamSubmitResponse, SubmitRequest,
    SubmitResponse, WatchResultsRequest, WatchResultsResponse, job_service_client::JobServiceClient,
};
pub use tonic::Code;

type Rpc = JobServiceClient<Channel>;

/// Bytes of one message, both ways.
const MAX_MESSAGE_BYTES: usize = 4 << 20;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Faster pings than this are not promised to be welcome.
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// The deadline of a call, beyond the `wait` it asks for.
const CALL_TIMEOUT: Duration = Duration::from_secs(15);
/// One step of a long poll. Servers may answer sooner, with `done = false`.
const POLL: Duration = Duration::from_secs(40);
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Tries of one call in all, with about 6 s of pauses between them.
const MAX_TRIES: u32 = 8;

/// Of these, with no answer at all: each takes as long as a call may.
const MAX_SILENT_TRIES: u32 = 3;
/// A server that wants to be left alone for longer is not asked again.
const LONGEST_RETRY_DELAY: Duration = Duration::from_secs(30);
/// How long waits and watches go on trying without a single reply before they pass the error on.
const PATIENCE: Duration = Duration::from_secs(600);

/// A connection to one server. Clones share it.
#[derive(Clone, Debug)]
pub struct Client {
    unary: Rpc,
    /// Streams have a connection of their own: once the streams of a connection are used up, further calls
    /// on it hang.
    streams: Rpc,
}

impl Client {
    /// Connects to `http://host:port`, or `host:port`; without a port, to 50051.
    ///
    /// # Errors
    /// [`Error::Address`] if that is no address, [`Error::Unreachable`] if nobody answers within 5 s.
    pub async fn connect(address: &str) -> Result<Self, Error> {
        let endpoint = endpoint(address)?;
        let unary = connect(&endpoint).await?;
        Ok(Self { unary: rpc(unary), streams: rpc(endpoint.connect_lazy()) })
    }

    /// Compresses requests with gzip. A server takes them only if its `http2.accept_gzip` is set.
    pub fn gzip(self) -> Self {
        let Self { unary, streams } = self;
        Self {
            unary: unary.send_compressed(CompressionEncoding::Gzip),
            streams: streams.send_compressed(CompressionEncoding::Gzip),
        }
    }

    /// Stores a job. Durable when this returns.
    ///
    /// Fills in `request_id` if it is empty, so that a repeat after a lost reply does not make a second job.
    /// With `wait`, the reply comes when the job has ended or the time is up, whichever is first.
    pub async fn submit(&self, mut request: SubmitRequest) -> Result<SubmitResponse, Error> {
        fill_request_id(&mut request);
        let wait = request.wait.and_then(|wait| Duration::try_from(wait).ok()).unwrap_or_default();
        let deadline = CALL_TIMEOUT.saturating_add(wait.min(POLL));
        self.call(Repeat::Harmless, |mut rpc, _| {
            let request = timed(request.clone(), deadline);
            async move { rpc.submit(request).await }
        })
        .await
    }

    /// Stores up to 1000 jobs, all or none. Fills in each `request_id` that is empty.
    pub async fn batch_submit(&self, mut request: BatchSubmitRequest) -> Result<BatchSubmitResponse, Error> {
        request.requests.iter_mut().for_each(fill_request_id);
        self.call(Repeat::Harmless, |mut rpc, _| {
            let request = timed(request.clone(), CALL_TIMEOUT);
            async move { rpc.batch_submit(request).await }
        })
        .await
    }

    /// Stores any number of jobs; each is answered by one verdict, in any order, once it is durable or refused.
    ///
    /// Requests are taken no faster than the server and the reader of the verdicts keep up. A stream that broke is
    /// not repeated: send what has no verdict again, with a `request_id` that you chose yourself.
    pub async fn stream_submit(
        &self,
        requests: impl Stream<Item = StreamSubmitRequest> + Send + 'static,
    ) -> Result<BoxStream<'static, Result<StreamSubmitResponse, Error>>, Error> {
        let requests = requests.map(|mut item| {
            item.request.iter_mut().for_each(fill_request_id);
            item
        });
        let verdicts = self.streams.clone().stream_submit(requests).await?.into_inner();
        Ok(verdicts.map(|verdict| verdict.map_err(Error::from)).boxed())
    }

    /// The outcome of a job: waits until it has ended, or for as long as `wait` says. [`Duration::MAX`]: for ever.
    ///
    /// A job that has not ended by then is a reply with `done = false`, no error. Outlives restarts of the server, up to
    /// 10 minutes without a single reply.
    pub async fn result(&self, job_id: &str, wait: Duration) -> Result<GetResultResponse, Error> {
        let end = Instant::now().checked_add(wait);
        let over = || end.is_some_and(|end| Instant::now() >= end);
        let mut replied = Instant::now();
        loop {
            let left = end.map_or(POLL, |end| end.saturating_duration_since(Instant::now()).min(POLL));
            let asked = Instant::now();
            let reply = match self.poll(job_id, left).await {
                Ok(reply) => reply,
                Err(error)
                    if Repeat::Harmless.allowed_after(&error) && !over() && replied.elapsed() < PATIENCE =>
                {
                    tracing::warn!(%error, "lost the server, asking again");
                    sleep(error.retry_delay().unwrap_or_default().min(left)).await;
                    continue;
                }
                Err(error) => return Err(error),
            };
            replied = Instant::now();
            if reply.done || over() {
                return Ok(reply);
            }
            // A server that does not hold replies says when to ask again.
            if let Some(pause) = reply.retry_after.and_then(|d| Duration::try_from(d).ok())
                && asked.elapsed() < left / 2
            {
                sleep(pause.min(left)).await;
            }
        }
    }

    async fn poll(&self, job_id: &str, wait: Duration) -> Result<GetResultResponse, Error> {
        let request = GetResultRequest {
            job_id: job_id.to_owned(),
            wait: prost_types::Duration::try_from(wait).ok().filter(|_| !wait.is_zero()),
            ..GetResultRequest::default()
        };
        self.call(Repeat::Harmless, |mut rpc, _| {
            let request = timed(request.clone(), wait + CALL_TIMEOUT);
            async move { rpc.get_result(request).await }
        })
        .await
    }

    /// One job, as much of it as `view` asks for.
    pub async fn get(&self, request: GetJobRequest) -> Result<Job, Error> {
        let reply = self.call(Repeat::Harmless, |mut rpc, _| {
            let request = timed(request.clone(), CALL_TIMEOUT);
            async move { rpc.get_job(request).await }
        });
        reply.await?.job.ok_or(Error::Incomplete("job"))
    }

    /// The jobs that match, page by page, from `page_token` on to the end.
    pub fn list(&self, request: ListJobsRequest) -> BoxStream<'static, Result<ListJobsResponse, Error>> {
        let client = self.clone();
        stream::unfold(Some(request), move |request| {
            let client = client.clone();
            async move {
                let mut request = request?;
                let page = client.page(&request).await;
                let next =
                    page.as_ref().ok().map(|page| page.next_page_token.clone()).filter(|t| !t.is_empty());
                let next = next.map(|token| {
                    request.page_token = token;
                    request
                });
                Some((page, next))
            }
        })
        .boxed()
    }

    async fn page(&self, request: &ListJobsRequest) -> Result<ListJobsResponse, Error> {
        self.call(Repeat::Harmless, |mut rpc, _| {
            let request = timed(request.clone(), CALL_TIMEOUT);
            async move { rpc.list_jobs(request).await }
        })
        .await
    }

    /// Cancels a job: after this no new attempt starts. A job that has ended is returned as it is.
    pub async fn cancel(&self, request: CancelJobRequest) -> Result<Job, Error> {
        let reply = self.call(Repeat::Harmless, |mut rpc, _| {
            let request = timed(request.clone(), CALL_TIMEOUT);
            async move { rpc.cancel_job(request).await }
        });
        reply.await?.job.ok_or(Error::Incomplete("job"))
    }

    /// Starts a new run of a job that failed, was cancelled or expired, or ends its back-off.
    ///
    /// Without an `etag` it is not repeated after a lost reply, because that could start two runs.
    pub async fn retry(&self, request: RetryJobRequest) -> Result<Job, Error> {
        let repeat = if request.etag.is_empty() { Repeat::Acts } else { Repeat::Harmless };
        let reply = self.call(repeat, |mut rpc, _| {
            let request = timed(request.clone(), CALL_TIMEOUT);
            async move { rpc.retry_job(request).await }
        });
        reply.await?.job.ok_or(Error::Incomplete("job"))
    }

    /// Removes a job that has ended, and its outcome.
    pub async fn delete(&self, request: DeleteJobRequest) -> Result<(), Error> {
        self.call(Repeat::Harmless, |mut rpc, tries| {
            let mut request = request.clone();
            // The first try may have removed the job although its reply was lost.
            request.allow_missing |= tries > 0;
            let request = timed(request, CALL_TIMEOUT);
            async move { rpc.delete_job(request).await }
        })
        .await
        .map(|_| ())
    }

    /// The server's version, limits and optional features.
    pub async fn info(&self) -> Result<GetServerInfoResponse, Error> {
        self.call(Repeat::Harmless, |mut rpc, _| {
            let request = timed(GetServerInfoRequest {}, CALL_TIMEOUT);
            async move { rpc.get_server_info(request).await }
        })
        .await
    }

    /// Outcomes of many jobs, as they come.
    ///
    /// Goes on by itself, from its cursor, when the connection breaks, the server restarts or falls silent for three
    /// heartbeats; nothing is left out and no outcome comes twice. Checkpoints and gaps are passed on like everything
    /// else. It ends after an error that another try would only repeat (such as `CURSOR_EXPIRED`), after 10 minutes
    /// without a single message, and under `until_all_done` when every job has ended.
    /// Without a `start` it begins with its first checkpoint.
    pub fn watch(
        &self,
        request: WatchResultsRequest,
    ) -> BoxStream<'static, Result<WatchResultsResponse, Error>> {
        watch::watch(self.streams.clone(), request)
    }

    async fn call<T, F>(&self, repeat: Repeat, send: impl Fn(Rpc, u32) -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        let (mut tries, mut silent) = (0, 0);
        loop {
            let error = match send(self.unary.clone(), tries).await {
                Ok(reply) => return Ok(reply.into_inner()),
                Err(status) => Error::from(status),
            };
            tries += 1;
            let wanted = error.retry_delay();
            silent += u32::from(error.code() == Some(Code::DeadlineExceeded));
            let is_enough = tries == MAX_TRIES || silent == MAX_SILENT_TRIES;
            if is_enough || !repeat.allowed_after(&error) || wanted > Some(LONGEST_RETRY_DELAY) {
                return Err(error);
            }
            tracing::debug!(%error, tries, "trying again");
            sleep(backoff.pause(wanted, fastrand::f64())).await;
        }
    }
}

/// Where a server is, and how it is spoken to.
fn endpoint(address: &str) -> Result<Endpoint, Error> {
    let address = address::normalise(address)?;
    let endpoint = Endpoint::from_shared(address.clone())
        .map_err(|error| Error::Address { address, why: error.to_string() })?;
    Ok(endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(true))
}

async fn connect(endpoint: &Endpoint) -> Result<Channel, Error> {
    endpoint.connect().await.map_err(|error| Error::Unreachable {
        address: endpoint.uri().to_string().trim_end_matches('/').to_owned(),
        why: error::causes(&error).last().map_or_else(|| error.to_string(), ToString::to_string),
    })
}

fn rpc(channel: Channel) -> Rpc {
    JobServiceClient::new(channel)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES)
}

fn timed<T>(message: T, deadline: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(deadline);
    request
}

fn fill_request_id(request: &mut SubmitRequest) {
    if request.request_id.is_empty() {
        request.request_id = Uuid::now_v7().to_string();
    }
}

#[cfg(test)]
mod tests;
