//! The server that is measured: a process of its own on loopback with default settings, or one that runs already.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
    time::timeout,
};
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use super::Error;
use crate::store::postgres;

/// Where servers that are measured keep their jobs in a database: emptied before each of them, left for a look after.
const SCHEMA: &str = "jobwire_bench";

/// How long a server may take to start.
const START: Duration = Duration::from_secs(120);

/// A server to measure. One of our own ends with it.
pub struct Target {
    address: String,
    own: Option<Own>,
}

struct Own {
    program: PathBuf,
    process: Child,
    dir: TempDir,
    /// The URL of its store, if that is a database.
    store: Option<String>,
}

/// What a server has used so far.
#[derive(Clone, Copy)]
pub struct Usage {
    /// Resident, in bytes.
    pub memory: u64,
    pub cpu: Duration,
}

impl Target {
    /// A server that runs already, by `http://host:port`.
    pub fn at(address: String) -> Self {
        Self { address, own: None }
    }

    /// Starts `program serve` on a free port with an empty data directory, below `dir` if there is one.
    ///
    /// # Errors
    /// If it does not listen soon.
    pub async fn start(program: &Path, dir: Option<&Path>) -> Result<Self, Error> {
        let dir = match dir {
            Some(dir) => tempfile::tempdir_in(dir)?,
            None => tempfile::tempdir()?,
        };
        Self::spawned(program, dir, None).await
    }

    /// Starts `program serve` on a free port with its jobs in a schema of a PostgreSQL database that is emptied before.
    ///
    /// # Errors
    /// If the database cannot be used, or the server does not listen soon.
    pub async fn start_on(program: &Path, store: &str) -> Result<Self, Error> {
        let store = empty_schema(store).await?;
        Self::spawned(program, tempfile::tempdir()?, Some(store)).await
    }

    async fn spawned(program: &Path, dir: TempDir, store: Option<String>) -> Result<Self, Error> {
        let (process, address) = spawn(program, dir.path(), store.as_deref()).await?;
        let own = Own { program: program.to_owned(), process, dir, store };
        let target = Self { address, own: Some(own) };
        target.serving().await?;
        Ok(target)
    }

    /// Kills the server without a word and starts it again. The time from its start until it serves.
    ///
    /// # Errors
    /// [`Error::NeedsOwn`] if it is not ours; if it does not come back.
    pub async fn restart(&mut self) -> Result<Duration, Error> {
        let own = self.own.as_mut().ok_or(Error::NeedsOwn("a restart"))?;
        own.process.kill().await?;
        let start = Instant::now();
        (own.process, self.address) = spawn(&own.program, own.dir.path(), own.store.as_deref()).await?;
        self.serving().await?;
        Ok(start.elapsed())
    }

    async fn serving(&self) -> Result<(), Error> {
        let mut health = HealthClient::new(self.channel().await?);
        let mut news = health.watch(HealthCheckRequest::default()).await?.into_inner();
        let serving = async {
            while let Some(reply) = news.message().await? {
                if reply.status() == ServingStatus::Serving {
                    return Ok(());
                }
            }
            Err(Error::Start("it does not become healthy".into()))
        };
        timeout(START, serving).await.map_err(|_| Error::Start("it is not healthy in time".into()))?
    }

    /// `http://host:port`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Whether the server is ours.
    pub fn is_own(&self) -> bool {
        self.own.is_some()
    }

    pub async fn channel(&self) -> Result<Channel, Error> {
        channel(&self.address).await
    }

    /// Clients on connections of their own.
    ///
    /// # Errors
    /// If the server cannot be reached.
    pub async fn channels(&self, connections: usize) -> Result<Vec<Channel>, Error> {
        let mut channels = Vec::with_capacity(connections);
        for _ in 0..connections {
            channels.push(self.channel().await?);
        }
        Ok(channels)
    }

    /// What our own server has used. None for another, or where the system does not tell.
    pub fn usage(&self) -> Option<Usage> {
        usage_of(self.own.as_ref()?.process.id()?)
    }
}

/// One connection, as all measurements use it.
///
/// # Errors
/// If there is no server.
pub async fn channel(address: &str) -> Result<Channel, Error> {
    let endpoint = Endpoint::from_shared(address.to_owned())?;
    Ok(endpoint
        .tcp_nodelay(true)
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(4 << 20)
        .connect()
        .await?)
}

/// The URL of an empty schema in the database of another URL.
///
/// # Errors
/// If the database cannot be used.
pub async fn empty_schema(url: &str) -> Result<String, Error> {
    let unusable = |error: postgres::OpenError| Error::Start(error.to_string());
    let client = postgres::connect(url).await.map_err(unusable)?;
    let afresh = format!("drop schema if exists {SCHEMA} cascade; create schema {SCHEMA}");
    client.batch_execute(&afresh).await.map_err(|error| unusable(error.into()))?;
    let separator = if url.contains('?') { '&' } else { '?' };
    Ok(format!("{url}{separator}options=-csearch_path%3D{SCHEMA}"))
}

async fn spawn(program: &Path, dir: &Path, store: Option<&str>) -> Result<(Child, String), Error> {
    let mut command = Command::new(program);
    command.args(["serve", "--listen", "127.0.0.1:0"]);
    // Not the database that this machine's server may be in.
    command.env_remove("JOBWIRE_STORE").env_remove("JOBWIRE_STORE__URL");
    match store {
        // Not as an argument, which everybody on the machine can read.
        Some(url) => command.env("JOBWIRE_STORE", url),
        None => command.arg("--data").arg(dir.join("data")),
    };
    let mut process = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(std::fs::File::options().create(true).append(true).open(dir.join("log"))?)
        .kill_on_drop(true)
        .spawn()?;
    let address = listening(&mut process).await.map_err(|error| {
        let said = std::fs::read_to_string(dir.join("log")).unwrap_or_default();
        Error::Start(format!("{error}\n{}", said.trim_end()))
    })?;
    Ok((process, address))
}

/// Waits for the line `listening on HOST:PORT`.
///
/// # Errors
/// If it does not come.
pub async fn listening(process: &mut Child) -> Result<String, Error> {
    let silent = || Error::Unexpected("it does not say where it listens".into());
    let stdout = process.stdout.take().ok_or_else(silent)?;
    let mut line = String::new();
    timeout(START, BufReader::new(stdout).read_line(&mut line)).await.map_err(|_| silent())??;
    let address = line.trim().strip_prefix("listening on ").ok_or_else(silent)?;
    Ok(format!("http://{address}"))
}

/// What a process has used, from Linux's `/proc` (proc(5)).
pub fn usage_of(process: u32) -> Option<Usage> {
    /// `USER_HZ` of every Linux that Rust runs on.
    const TICK: Duration = Duration::from_millis(10);
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let memory = resident.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024;
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The name of the program may hold blanks; it ends with the last bracket. utime and stime are fields 14 and 15.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let ticks = fields.next()?.parse::<u32>().ok()? + fields.next()?.parse::<u32>().ok()?;
    Some(Usage { memory, cpu: TICK * ticks })
}
