//! The server: services on one port, from start to a graceful stop.
//!
//! Only this module and [`crate::client`] know gRPC.

mod builder;
mod convert;
mod deadline;
mod descriptors;
mod front;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod jobs;
mod json;
mod listener;
mod lists;
mod room;
mod signals;
mod socket;
mod status;
mod streams;
mod tokens;
mod watches;
mod workers;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::{net::TcpListener, task::spawn_blocking, time::sleep};
use tonic::{codec::CompressionEncoding, server::NamedService as _, service::Routes};
use tonic_health::{ServingStatus, server::HealthReporter};
use uuid::Uuid;

pub use self::{builder::Builder, signals::stop_signal};
use self::{
    convert::proto_duration, front::Front, jobs::JobsApi, listener::Listener, room::Room, workers::WorkersApi,
};
use crate::{
    config::{Config, InvalidSettings},
    engine::{Clock, Engine},
    handlers::Handlers,
    job::{Error, WorkerId},
    proto::{self, job_service_server::JobServiceServer, worker_service_server::WorkerServiceServer},
    store::{
        Store,
        postgres::{self, Durability, PostgresStore},
        sqlite::{self, SqliteStore},
    },
    worker::Pool,
};

/// Bytes of one message, both ways.
const MAX_MESSAGE: usize = 4 << 20;

/// Open calls and streams get this long once their work has ended.
const CLOSING: Duration = Duration::from_secs(5);

/// Calls get this long to be told that the store has failed.
const FAILING: Duration = Duration::from_millis(500);

/// Between attempts to reach a database at the start.
const UNREACHABLE: Duration = Duration::from_secs(1);

/// The names in health checks: all of the server, and its services.
const CHECKED: [&str; 3] = ["", "jobwire.v1.JobService", "jobwire.v1.WorkerService"];

/// Why a server did not start, or had to leave.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("cannot listen on {address}: {source}")]
    Listen { address: SocketAddr, source: std::io::Error },
    #[error(transparent)]
    Sqlite(#[from] sqlite::OpenError),
    #[error(transparent)]
    Postgres(#[from] postgres::OpenError),
    #[error(transparent)]
    Settings(#[from] InvalidSettings),
    #[error("{0}")]
    Config(Error),
    #[error("the store has failed: {0}; nothing acknowledged is lost, a restart recovers from disk")]
    StoreFailed(Arc<str>),
}

/// A server that is ready: bound, recovered, and running jobs.
pub struct Server {
    engine: Engine,
    pool: Pool,
    workers: WorkersApi,
    port: Port,
    address: SocketAddr,
}

/// The open port.
struct Port {
    listener: Arc<Listener>,
    health: HealthReporter,
}

impl Server {
    /// A server with handlers of the program's own.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Binds the port, opens the store and recovers, and starts to run jobs.
    ///
    /// # Errors
    /// The port is taken, or the store cannot be opened.
    pub async fn start(config: Config, handlers: Handlers) -> Result<Self, ServeError> {
        let config = Arc::new(config);
        let listen = |source| ServeError::Listen { address: config.listen, source };
        let socket = TcpListener::bind(config.listen).await.map_err(listen)?;
        let address = socket.local_addr().map_err(listen)?;
        let room = Room::new(config.limits.message_buffer_bytes);
        let api = JobsApi::new(room.clone(), config.limits.submit_buffer_bytes);
        let workers = WorkersApi::new(room.clone(), config.workers.max_connected);
        let port = Port::open(&config, (api.clone(), workers.clone()), room, socket).await;

        let opened = open_store(&config).await;
        if opened.is_err() {
            port.listener.stop(Duration::ZERO).await;
        }
        let (store, clock, place) = opened?;
        let engine = Engine::start(config.clone(), store, clock);
        let instance = Uuid::now_v7().simple().to_string();
        api.open(engine.clone(), info(&engine, &handlers, &instance));
        workers.open(engine.clone(), &instance);
        let worker = WorkerId::of_pool(&instance).map_err(ServeError::Config)?;
        let pool = Pool::start(&engine, handlers, worker);
        port.set_serving(true).await;
        let mode =
            if address.ip().is_loopback() { "this machine only" } else { "everybody who can reach it" };
        tracing::info!(
            version = env!("CARGO_PKG_VERSION"),
            %address,
            store = place,
            "serving {mode}, without TLS and credentials"
        );
        Ok(Self { engine, pool, workers, port, address })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `stop` resolves, then stops gracefully: health NOT_SERVING, no new work, running attempts end or
    /// are given back, watchers get their closing checkpoint.
    ///
    /// # Errors
    /// [`ServeError::StoreFailed`]: the process must leave at once, without closing the database.
    pub async fn serve(self, stop: impl Future<Output = ()>) -> Result<(), ServeError> {
        let Self { engine, pool, workers, mut port, .. } = self;
        tokio::pin!(stop);
        let mut reachable = engine.reachable();
        port.set_serving(*reachable.borrow_and_update()).await;
        loop {
            tokio::select! {
                () = &mut stop => break,
                why = engine.store_failed() => return Err(port.fail(why).await),
                Ok(()) = reachable.changed() => {
                    let is_reachable = *reachable.borrow_and_update();
                    tracing::warn!(is_reachable, "whether the store answers has changed, and the health with it");
                    port.set_serving(is_reachable).await;
                }
            }
        }
        tracing::info!("stopping: no new work is taken");
        port.set_serving(false).await;
        engine.drain();
        let patience = engine.config().drain_timeout;
        tokio::select! {
            _ = async { tokio::join!(pool.drain(patience), workers.drain(patience)) } => {}
            why = engine.store_failed() => return Err(port.fail(why).await),
        }
        engine.end_streams();
        port.end_health_watches().await;
        port.listener.stop(CLOSING).await;
        engine.close().await;
        tracing::info!("stopped");
        Ok(())
    }
}

/// The store that the settings name, a clock that is never behind it, and where it is.
async fn open_store(config: &Arc<Config>) -> Result<(Arc<dyn Store>, Clock, String), ServeError> {
    if let Some(url) = &config.store.url {
        let store = loop {
            // It may have been waited for for long.
            match PostgresStore::open(url.reveal(), config.clone(), Clock::default().now()).await {
                Err(error) if error.is_passing() => {
                    tracing::warn!(%error, "trying again; until then calls are answered with STORE_UNAVAILABLE");
                    sleep(UNREACHABLE).await;
                }
                opened => break opened?,
            }
        };
        let (durability, connections, tls) = (store.durability(), store.connections(), store.is_encrypted());
        match durability {
            Durability::Replicated => tracing::info!(connections, tls, "{durability}"),
            _ => tracing::warn!(connections, tls, "{durability}"),
        }
        let clock = Clock::following(store.ahead());
        return Ok((store, clock, url.to_string()));
    }
    let opened = {
        let (config, now) = (config.clone(), Clock::default().now());
        spawn_blocking(move || SqliteStore::open(&config.data, config.clone(), now)).await
    };
    let store = opened.map_err(|panic| ServeError::StoreFailed(panic.to_string().into()))??;
    tracing::info!("every acknowledgement is synced");
    let clock = Clock::starting_at(store.last_time());
    Ok((store, clock, config.data.display().to_string()))
}

impl Port {
    /// Answers from now on, with health NOT_SERVING.
    async fn open(
        config: &Config,
        (jobs, workers): (JobsApi, WorkersApi),
        room: Room,
        socket: TcpListener,
    ) -> Self {
        let (health, health_service) = tonic_health::server::health_reporter();
        let mut worker_service = WorkerServiceServer::new(workers.clone())
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE);
        if config.http2.accept_gzip {
            worker_service = worker_service.accept_compressed(CompressionEncoding::Gzip);
        }
        let others = with_reflection(Routes::new(worker_service).add_service(health_service));
        let front = Front::new(config, room, (jobs, workers), others);
        let listener = Arc::new(Listener::new(config.http2.clone(), front));
        let port = Self { listener: listener.clone(), health };
        port.set_serving(false).await;
        tokio::spawn(async move { listener.accept(socket).await });
        port
    }

    /// The store has failed. Calls that wait for it are told before the process leaves.
    async fn fail(&self, why: Arc<str>) -> ServeError {
        self.set_serving(false).await;
        self.listener.stop(FAILING).await;
        ServeError::StoreFailed(why)
    }

    /// Those who watch the health were told; left open, their streams would hold up the stop.
    async fn end_health_watches(&mut self) {
        for service in CHECKED {
            self.health.clear_service_status(service).await;
        }
    }

    async fn set_serving(&self, serving: bool) {
        let status = if serving { ServingStatus::Serving } else { ServingStatus::NotServing };
        for service in CHECKED {
            self.health.set_service_status(service, status).await;
        }
    }
}

/// Reflection in both versions, with the types of error details: without them tools print base64.
fn with_reflection(routes: Routes) -> Routes {
    let configured = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(proto::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            // Of the contract, what is served.
            .with_service_name(JobServiceServer::<JobsApi>::NAME)
            .with_service_name(WorkerServiceServer::<WorkersApi>::NAME)
            .with_service_name("grpc.health.v1.Health")
    };
    let sound = "the descriptor sets are made together with the code";
    routes
        .add_service(configured().build_v1().expect(sound))
        .add_service(configured().build_v1alpha().expect(sound))
}

fn info(engine: &Engine, handlers: &Handlers, instance: &str) -> proto::GetServerInfoResponse {
    let config = engine.config();
    let limits = &config.limits;
    let size = |bytes: usize| i32::try_from(bytes).unwrap_or(i32::MAX);
    let store = if config.store.url.is_some() { "store:postgres" } else { "store:sqlite" };
    let kinds = handlers.kinds().map(|kind| format!("kind:{kind}"));
    proto::GetServerInfoResponse {
        version: env!("CARGO_PKG_VERSION").into(),
        instance_id: instance.into(),
        log_id: format!("{:016x}", engine.log_id().0),
        features: [store, "grpc-web", "workers"].map(str::to_owned).into_iter().chain(kinds).collect(),
        limits: Some(proto::Limits {
            max_payload_bytes: size(limits.max_payload_bytes),
            max_output_bytes: size(limits.max_output_bytes),
            max_message_bytes: size(MAX_MESSAGE),
            max_batch_items: size(limits.max_batch_items),
            max_wait: Some(proto_duration(limits.max_wait)),
            watch_retention: Some(proto_duration(config.watch.retention)),
            request_id_window: Some(proto_duration(limits.request_id_window)),
        }),
    }
}

/// Serves the built-in kinds until the first SIGTERM or SIGINT. Calls `ready` once, with the address that it listens on.
///
/// # Errors
/// As [`Server::start`] and [`Server::serve`] say.
pub async fn run(config: Config, ready: impl FnOnce(SocketAddr)) -> Result<(), ServeError> {
    let handlers = Handlers::builtin(&config).map_err(ServeError::Config)?;
    descriptors::raise_limit();
    let stop = stop_signal();
    tokio::pin!(stop);
    let server = tokio::select! {
        started = Server::start(config, handlers) => started?,
        // It may wait for a database, or for whoever reads the store. Nothing was acknowledged.
        () = &mut stop => return Ok(()),
    };
    ready(server.address());
    server.serve(stop).await
}
