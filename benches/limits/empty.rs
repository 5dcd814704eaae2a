//! A tonic server that does nothing: what any gRPC server in its place could reach at most.

use std::{
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::stream::{self, BoxStream, StreamExt as _};
use jobwire::{
    bench::{
        Error, Load,
        load::{Tally, callers, channel, listening},
    },
    proto::{self, job_service_client::JobServiceClient, job_service_server},
};
use tokio::{
    net::TcpListener,
    process::{Child, Command},
};
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::task::AbortOnDropHandle;
use tonic::{Request, Response, Status, Streaming};

/// Bytes of an outcome with a payload of 100 bytes on the wire, about.
pub const OUTCOME: i32 = 420;

/// Serves until it is killed.
pub async fn serve() -> Result<(), Error> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("listening on {}", listener.local_addr()?);
    let service = job_service_server::JobServiceServer::new(Empty);
    let server = tonic::transport::Server::builder().tcp_nodelay(true).add_service(service);
    Ok(server.serve_with_incoming(TcpListenerStream::new(listener)).await?)
}

struct Server {
    _process: Child,
    address: String,
}

async fn start() -> Result<Server, Error> {
    let mut process = Command::new(std::env::current_exe()?)
        .arg("--serve-empty")
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let address = listening(&mut process).await?;
    Ok(Server { _process: process, address })
}

/// Unary calls with the clients and connections of the load.
pub async fn calls(load: &Load, count: usize) -> Result<Tally, Error> {
    let server = start().await?;
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
    let server = start().await?;
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

/// Answers at once: GetServerInfo with nothing, WatchResults with the same message for ever.
struct Empty;

type Answer<T> = Result<Response<T>, Status>;

fn no<T>() -> Answer<T> {
    Err(Status::unimplemented("an empty server"))
}

#[tonic::async_trait]
impl job_service_server::JobService for Empty {
    type StreamSubmitStream = BoxStream<'static, Result<proto::StreamSubmitResponse, Status>>;
    type WatchResultsStream = BoxStream<'static, Result<proto::WatchResultsResponse, Status>>;

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
        let length = request.into_inner().max_inline_output_bytes.unwrap_or(0).unsigned_abs() as usize;
        let message = proto::WatchResultsResponse { cursor: "x".repeat(length), event: None };
        Ok(Response::new(stream::repeat_with(move || Ok(message.clone())).boxed()))
    }

    async fn submit(&self, _: Request<proto::SubmitRequest>) -> Answer<proto::SubmitResponse> {
        no()
    }

    async fn batch_submit(
        &self,
        _: Request<proto::BatchSubmitRequest>,
    ) -> Answer<proto::BatchSubmitResponse> {
        no()
    }

    async fn stream_submit(
        &self,
        _: Request<Streaming<proto::StreamSubmitRequest>>,
    ) -> Answer<Self::StreamSubmitStream> {
        no()
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
