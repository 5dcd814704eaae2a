//! A tonic server that does nothing: what any gRPC server in its place could reach at most. Or nothing but write what it is
//! given with SQLite.

use std::{
    process::Stdio,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use clap::ValueEnum as _;
use futures_util::stream::{self, BoxStream, StreamExt as _};
use jobwire::{
    bench::{
        self, Error, Load, Report, Scenario, Target,
        load::{Tally, callers, channel, listening},
    },
    proto::{
        self, Accepted, Job, JobSpec, StreamSubmitRequest, StreamSubmitResponse, SubmitRequest,
        SubmitResponse, WatchResultsResponse, job_service_client::JobServiceClient, job_service_server,
        stream_submit_response::Verdict, watch_results_response,
    },
};
use prost::Message as _;
use prost_types::Timestamp;
use tokio::{
    net::TcpListener,
    process::{Child, Command},
    sync::{mpsc, oneshot},
};
use tokio_stream::wrappers::{TcpListenerStream, UnboundedReceiverStream};
use tokio_util::task::AbortOnDropHandle;
use tonic::{Request, Response, Status, Streaming};

use super::sqlite;

/// Bytes of an outcome with a payload of 100 bytes on the wire, about.
pub const OUTCOME: i32 = 420;

/// Jobs that are written together.
const BATCH: usize = 500;

/// What the server does with jobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Sort {
    /// Nothing: each is done when it comes.
    Empty,
    /// Writes them with SQLite as the store does: nothing is answered that is not synced.
    Sqlite,
}

/// Serves until it is killed.
pub async fn serve(sort: Sort) -> Result<(), Error> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("listening on {}", listener.local_addr()?);
    let store = (sort == Sort::Sqlite).then(sqlite::Jobs::new).transpose()?;
    let (jobs, given) = mpsc::channel(BATCH);
    let watcher = Arc::default();
    std::thread::spawn({
        let watcher = Arc::clone(&watcher);
        move || run(given, store, &watcher)
    });
    let service = job_service_server::JobServiceServer::new(Empty { jobs, watcher });
    let server = tonic::transport::Server::builder().tcp_nodelay(true).add_service(service);
    Ok(server.serve_with_incoming(TcpListenerStream::new(listener)).await?)
}

struct Server {
    _process: Child,
    address: String,
}

async fn start(sort: Sort) -> Result<Server, Error> {
    let name = sort.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
    let mut process = Command::new(std::env::current_exe()?)
        .args(["--serve", &name])
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let address = listening(&mut process).await?;
    Ok(Server { _process: process, address })
}

/// Unary calls with the clients and connections of the load.
pub async fn calls(load: &Load, count: usize) -> Result<Tally, Error> {
    let server = start(Sort::Empty).await?;
    let mut clients = Vec::new();
    for _ in 0..load.connections {
        clients.push(JobServiceClient::new(channel(&server.address).await?));
    }
    let caller = |index: usize| {
        let client = clients[index % clients.len()].clone();
        move || {
            let mut client = client.clone();
            async move { Ok(client.get_server_info(proto::GetServerInfoRequest {}).await.map(drop)?) }
        }
    };
    callers(count, load.duration, caller, || ()).await
}

/// Messages a second through as many streams as there are watchers, each with a cursor of `length` characters.
pub async fn streamed(load: &Load, length: i32) -> Result<f64, Error> {
    let server = start(Sort::Empty).await?;
    let received = Arc::new(AtomicU64::new(0));
    let mut tasks = Vec::new();
    for _ in 0..load.watchers.div_ceil(100) {
        let channel = channel(&server.address).await?;
        for _ in 0..load.watchers.min(100) {
            let (channel, received) = (channel.clone(), received.clone());
            tasks.push(AbortOnDropHandle::new(tokio::spawn(async move {
                let messages = jobwire::bench::load::messages(
                    channel,
                    proto::WatchResultsRequest {
                        max_inline_output_bytes: Some(length),
                        ..Default::default()
                    },
                );
                let mut messages = messages.await?;
                while let Some(message) = messages.next().await {
                    message?;
                    received.fetch_add(1, Ordering::Relaxed);
                }
                Ok::<_, Error>(())
            })));
        }
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (before, start) = (received.load(Ordering::Relaxed), Instant::now());
    tokio::time::sleep(load.duration).await;
    let count = received.load(Ordering::Relaxed) - before;
    if tasks.iter().any(AbortOnDropHandle::is_finished) {
        return Err(Error::Unexpected("a stream ended".into()));
    }
    Ok(count as f64 / start.elapsed().as_secs_f64())
}

/// A scenario, through the same calls and with the same load as those of jobwire.
pub async fn scenario(scenario: Scenario, load: &Load, sort: Sort) -> Result<Report, Error> {
    let server = start(sort).await?;
    let mut target = Target::at(server.address.clone());
    let reports = bench::run(scenario, &mut target, load).await?;
    reports.into_iter().next().ok_or_else(|| Error::Unexpected("nothing was measured".into()))
}

/// A job that was submitted.
struct Given {
    request: SubmitRequest,
    caller: Caller,
}

/// Who is to hear that a job was accepted.
enum Caller {
    /// It waits for no more than that, and nobody runs the job.
    Unary(oneshot::Sender<SubmitResponse>),
    Stream {
        sequence: i64,
        verdicts: mpsc::UnboundedSender<Result<StreamSubmitResponse, Status>>,
    },
}

/// Who sees the outcomes.
type Watcher = Mutex<Option<mpsc::UnboundedSender<Result<WatchResultsResponse, Status>>>>;

/// Takes the jobs that have come together, writes them, and answers.
fn run(mut given: mpsc::Receiver<Given>, mut store: Option<sqlite::Jobs>, watcher: &Watcher) {
    let mut running = Vec::new();
    loop {
        let mut jobs = Vec::with_capacity(BATCH);
        // What runs is ended without waiting for the next ones.
        if running.is_empty() {
            let Some(first) = given.blocking_recv() else { return };
            jobs.push(first);
        }
        while jobs.len() < BATCH
            && let Ok(job) = given.try_recv()
        {
            jobs.push(job);
        }
        if let Some(store) = &mut store {
            let waiting = jobs.iter().filter(|job| matches!(job.caller, Caller::Unary(_))).count();
            store.step(waiting, jobs.len() - waiting).expect("the disk can be written");
        }
        let watcher = watcher.lock().expect("nobody panics");
        for outcome in running.drain(..) {
            if let Some(watcher) = &*watcher {
                // It may have gone.
                let _ = watcher.send(Ok(outcome));
            }
        }
        for Given { request, caller } in jobs {
            match caller {
                Caller::Unary(caller) => drop(caller.send(submitted(request))),
                Caller::Stream { sequence, verdicts } => {
                    let accepted = Accepted { job_id: job_id(), deduplicated: false, cursor: cursor() };
                    let verdict = Some(Verdict::Accepted(accepted));
                    let _ = verdicts.send(Ok(StreamSubmitResponse { sequence, verdict }));
                    running.push(outcome(request));
                }
            }
        }
    }
}

fn job_id() -> String {
    "i".repeat(36)
}

fn cursor() -> String {
    "c".repeat(30)
}

/// About as long as one of jobwire's.
fn submitted(request: SubmitRequest) -> SubmitResponse {
    let spec = request.spec.map(|spec| JobSpec { payload: None, ..spec });
    let time = Some(Timestamp { seconds: 1_800_000_000, nanos: 1_000_000 });
    let job = Job {
        job_id: job_id(),
        spec,
        etag: "1".into(),
        submit_time: time,
        next_attempt_time: time,
        ..Default::default()
    };
    SubmitResponse { job: Some(job), cursor: cursor(), ..Default::default() }
}

/// As long as one of jobwire's.
fn outcome(request: SubmitRequest) -> WatchResultsResponse {
    let output = request.spec.and_then(|spec| spec.payload);
    let job = Job { output, ..Default::default() };
    let event = Some(watch_results_response::Event::Finished(job.into()));
    let mut message = WatchResultsResponse { cursor: String::new(), event };
    let rest = (OUTCOME as usize).saturating_sub(message.encoded_len() + 2);
    message.cursor = "c".repeat(rest);
    message
}

/// Answers at once: GetServerInfo with nothing, WatchResults with the same message for ever, or the outcomes of what was
/// submitted if it asks for a queue.
struct Empty {
    jobs: mpsc::Sender<Given>,
    watcher: Arc<Watcher>,
}

type Answer<T> = Result<Response<T>, Status>;

fn no<T>() -> Answer<T> {
    Err(Status::unimplemented("an empty server"))
}

#[tonic::async_trait]
impl job_service_server::JobService for Empty {
    type StreamSubmitStream = BoxStream<'static, Result<StreamSubmitResponse, Status>>;
    type WatchResultsStream = BoxStream<'static, Result<WatchResultsResponse, Status>>;

    async fn get_server_info(
        &self,
        _: Request<proto::GetServerInfoRequest>,
    ) -> Answer<proto::GetServerInfoResponse> {
        Ok(Response::new(proto::GetServerInfoResponse::default()))
    }

    async fn watch_results(
        &self,
        request: Request<proto::WatchResultsRequest>,
    ) -> Answer<Self::WatchResultsStream> {
        let request = request.into_inner();
        if request.filter.is_some() {
            let (sender, outcomes) = mpsc::unbounded_channel();
            // From here on nothing is missed.
            let _ = sender.send(Ok(WatchResultsResponse::default()));
            *self.watcher.lock().expect("nobody panics") = Some(sender);
            return Ok(Response::new(UnboundedReceiverStream::new(outcomes).boxed()));
        }
        let length = request.max_inline_output_bytes.unwrap_or(0).unsigned_abs() as usize;
        let message = WatchResultsResponse { cursor: "x".repeat(length), event: None };
        Ok(Response::new(stream::repeat_with(move || Ok(message.clone())).boxed()))
    }

    async fn submit(&self, request: Request<SubmitRequest>) -> Answer<SubmitResponse> {
        let (caller, answer) = oneshot::channel();
        let given = Given { request: request.into_inner(), caller: Caller::Unary(caller) };
        let gone = || Status::unavailable("the writer is gone");
        self.jobs.send(given).await.map_err(|_| gone())?;
        Ok(Response::new(answer.await.map_err(|_| gone())?))
    }

    async fn batch_submit(
        &self,
        _: Request<proto::BatchSubmitRequest>,
    ) -> Answer<proto::BatchSubmitResponse> {
        no()
    }

    async fn stream_submit(
        &self,
        requests: Request<Streaming<StreamSubmitRequest>>,
    ) -> Answer<Self::StreamSubmitStream> {
        let (jobs, mut requests) = (self.jobs.clone(), requests.into_inner());
        let (verdicts, told) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Some(Ok(StreamSubmitRequest { sequence, request })) = requests.next().await {
                let caller = Caller::Stream { sequence, verdicts: verdicts.clone() };
                let given = Given { request: request.unwrap_or_default(), caller };
                if jobs.send(given).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(UnboundedReceiverStream::new(told).boxed()))
    }

    async fn get_result(&self, _: Request<proto::GetResultRequest>) -> Answer<proto::GetResultResponse> {
        no()
    }

    async fn get_job(&self, _: Request<proto::GetJobRequest>) -> Answer<proto::GetJobResponse> {
        no()
    }

    async fn list_jobs(&self, _: Request<proto::ListJobsRequest>) -> Answer<proto::ListJobsResponse> {
        no()
    }

    async fn cancel_job(&self, _: Request<proto::CancelJobRequest>) -> Answer<proto::CancelJobResponse> {
        no()
    }

    async fn retry_job(&self, _: Request<proto::RetryJobRequest>) -> Answer<proto::RetryJobResponse> {
        no()
    }

    async fn delete_job(&self, _: Request<proto::DeleteJobRequest>) -> Answer<proto::DeleteJobResponse> {
        no()
    }
}
