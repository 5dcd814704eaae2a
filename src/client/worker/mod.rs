//! A worker for programs: runs the jobs of a server from outside it, with the handlers that the server itself would run.

mod attempt;
mod link;
mod messages;
mod run;

use std::time::Duration;

use tonic::transport::Endpoint;
use uuid::Uuid;

use self::run::Run;
use super::{Error, endpoint};
use crate::handlers::Handlers;

/// Runs the jobs of the kinds that it has a handler for.
///
/// ```no_run
/// use jobwire::{Context, JobError, client::Worker, config::Workers, handlers::Handlers};
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let mut handlers = Handlers::new(&Workers::default());
/// handlers.add("double", async |_: Context, number: i64| Ok::<_, JobError>(number * 2))?;
/// Worker::new("127.0.0.1:50051", handlers)?.concurrency(4).run(jobwire::stop_signal()).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Worker {
    endpoint: Endpoint,
    handlers: Handlers,
    id: String,
    queues: Vec<String>,
    concurrency: u16,
    drain_timeout: Duration,
    gzip: bool,
}

impl Worker {
    /// For the server at `http://host:port`, or `host:port`; without a port, 50051.
    ///
    /// # Errors
    /// [`Error::Address`] if that is no address.
    pub fn new(address: &str, handlers: Handlers) -> Result<Self, Error> {
        Ok(Self {
            endpoint: endpoint(address)?,
            handlers,
            id: format!("rust-{}-{}", std::process::id(), Uuid::new_v4().simple()),
            queues: Vec::new(),
            concurrency: 16,
            drain_timeout: Duration::from_secs(30),
            gzip: false,
        })
    }

    /// Takes jobs from these queues, up to 256. Without, from `default`.
    pub fn queues(mut self, queues: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.queues = queues.into_iter().map(Into::into).collect();
        self
    }

    /// How many jobs run at the same time; 16 unless told. 0 takes none.
    pub fn concurrency(mut self, jobs: u16) -> Self {
        self.concurrency = jobs;
        self
    }

    /// The name of this worker in jobs and logs, unique in each process: visible ASCII, up to 128 characters.
    pub fn id(mut self, id: impl Into<String>) -> Self {
        self.id = id.into();
        self
    }

    /// How long a drain waits for handlers; 30 s unless told.
    pub fn drain_timeout(mut self, timeout: Duration) -> Self {
        self.drain_timeout = timeout;
        self
    }

    /// Compresses what is sent with gzip. A server takes it only if its `http2.accept_gzip` is set.
    pub fn gzip(mut self) -> Self {
        self.gzip = true;
        self
    }

    /// Works until `stop` is ready, through restarts of the server. Then takes no more jobs, lets those that run end
    /// for the drain timeout, and gives the rest back uncounted.
    ///
    /// # Errors
    /// The server refuses this worker: its name, kinds or queues.
    pub async fn run(self, stop: impl Future<Output = ()> + Send) -> Result<(), Error> {
        Run::new(self).until(stop).await
    }
}
