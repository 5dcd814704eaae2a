//! A server process of a test's own: on a free port, in a temporary directory, gone at the end.

use std::{
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use jobwire::proto::{JobSpec, Payload, SubmitRequest, job_service_client::JobServiceClient, payload::Body};
use prost_types::Value;
use tempfile::TempDir;
use tonic::transport::{Channel, Endpoint};

pub type Client = JobServiceClient<Channel>;

/// How long anything may take that should take no time. Never a measure, only the end of patience.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A running `jobwire serve`.
pub struct Server {
    child: Child,
    address: String,
    dir: Arc<TempDir>,
    config: String,
    variables: Vec<(&'static str, String)>,
}

impl Server {
    /// Starts with the defaults.
    pub fn start() -> Self {
        Self::with("")
    }

    /// Starts with a configuration file of this text.
    pub fn with(config: &str) -> Self {
        Self::with_variables(config, &[])
    }

    /// The same with variables in the process's environment.
    pub fn with_variables(config: &str, variables: &[(&'static str, String)]) -> Self {
        let dir = Arc::new(tempfile::tempdir().expect("a temporary directory"));
        Self::spawn(dir, config.to_owned(), variables.to_owned())
    }

    /// Starts on a data directory that is there already.
    pub fn on(data: &Path) -> Self {
        Self::with(&format!("data = {:?}", data.to_str().expect("text")))
    }

    /// The same, or what it said instead of starting.
    pub fn try_with_variables(config: &str, variables: &[(&'static str, String)]) -> Result<Self, String> {
        let dir = Arc::new(tempfile::tempdir().expect("a temporary directory"));
        Self::try_spawn(dir, config.to_owned(), variables.to_owned())
    }

    fn spawn(dir: Arc<TempDir>, config: String, variables: Vec<(&'static str, String)>) -> Self {
        Self::try_spawn(dir, config, variables)
            .unwrap_or_else(|said| panic!("the server did not start: {said}"))
    }

    fn try_spawn(
        dir: Arc<TempDir>,
        config: String,
        variables: Vec<(&'static str, String)>,
    ) -> Result<Self, String> {
        let file = dir.path().join("jobwire.toml");
        std::fs::write(&file, &config).expect("the configuration is written");
        let mut command = program();
        if !config.starts_with("data = ") {
            command.env("JOBWIRE_DATA", dir.path().join("data"));
        }
        let mut child = command
            .args(["serve", "--listen", "127.0.0.1:0", "--config"])
            .arg(&file)
            .envs(variables.iter().cloned())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(
                std::fs::OpenOptions::new()
                    .create(true)
                    .append(true)
                    .open(dir.path().join("log"))
                    .expect("a log"),
            )
            .spawn()
            .expect("jobwire starts");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("stdout is piped");
        BufReader::new(stdout).read_line(&mut line).expect("stdout is text");
        let address = line.trim().strip_prefix("listening on ").map(str::to_owned);
        let Some(address) = address else {
            child.wait().expect("the process can be reaped");
            return Err(std::fs::read_to_string(dir.path().join("log")).unwrap_or_default());
        };
        Ok(Self { child, address, dir, config, variables })
    }

    /// `host:port`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The data directory.
    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// A directory for files of the test.
    pub fn scratch(&self) -> &Path {
        self.dir.path()
    }

    /// What was logged so far, over all starts.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// A connection of its own, for any service.
    pub async fn channel(&self) -> Channel {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.address)).expect("an address");
        endpoint.connect().await.expect("the server accepts connections")
    }

    /// A connection of its own.
    pub async fn client(&self) -> Client {
        let channel = self.channel().await;
        JobServiceClient::new(channel).max_decoding_message_size(8 << 20).max_encoding_message_size(8 << 20)
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        self.child.kill().expect("the process can be killed");
        self.child.wait().expect("the process can be reaped");
    }

    /// Sends a signal, such as `TERM`.
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").args([&format!("-{name}"), &self.pid().to_string()]).status();
        assert!(status.expect("kill runs").success());
    }

    /// Waits for the end of the process.
    pub async fn ended(&mut self) -> ExitStatus {
        let end = Instant::now() + PATIENCE * 2;
        loop {
            if let Some(status) = self.child.try_wait().expect("the process can be waited for") {
                return status;
            }
            assert!(Instant::now() < end, "the server does not end:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// The same with another configuration file.
    pub fn restart_with(mut self, config: &str) -> Self {
        self.config = config.to_owned();
        self.restart()
    }

    /// Starts again on the same data, on another port. The process must have ended.
    pub fn restart(mut self) -> Self {
        assert!(
            self.child.try_wait().expect("the process can be waited for").is_some(),
            "the server still runs"
        );
        let (dir, config) = (self.dir.clone(), std::mem::take(&mut self.config));
        let variables = std::mem::take(&mut self.variables);
        Self::spawn(dir, config, variables)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The program, without the settings of whoever runs the tests.
pub fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_jobwire"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("JOBWIRE_")) {
        command.env_remove(name);
    }
    command
}

/// Runs `jobwire` with these arguments: its exit code, and what it said on stdout and stderr.
pub fn jobwire(arguments: &[&str]) -> (Option<i32>, String) {
    told(program().args(arguments))
}

/// Runs a command: its exit code, and what it said on stdout and stderr.
pub fn told(command: &mut Command) -> (Option<i32>, String) {
    let output = command.stdin(Stdio::null()).output().expect("the command starts");
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(said).expect("text"))
}

/// A directory in memory where that is possible: for what is opened so often that syncs would take the most time.
pub fn memory_dir() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a temporary directory")
}

/// Compiles a library that is preloaded into the program.
pub fn compile(source: &str, library: &Path) {
    let compiled = Command::new("cc")
        .args(["-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-o"])
        .arg(library)
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it").join(source))
        .arg("-ldl")
        .status();
    assert!(compiled.expect("a C compiler, as SQLite needs one too").success());
}

/// A JSON document, from its text.
pub fn json(text: &str) -> Payload {
    Payload {
        body: Some(Body::Text(text.into())),
        content_type: "application/json".into(),
        ..Default::default()
    }
}

/// A spec of a kind with a JSON payload.
pub fn spec(kind: &str, payload: &str) -> JobSpec {
    JobSpec { kind: kind.into(), payload: Some(json(payload)), ..Default::default() }
}

/// A submit of a kind with a JSON payload.
pub fn submit(kind: &str, payload: &str) -> SubmitRequest {
    SubmitRequest { spec: Some(spec(kind, payload)), ..Default::default() }
}

/// A duration on the wire.
pub fn seconds(seconds: f64) -> prost_types::Duration {
    Duration::from_secs_f64(seconds).try_into().expect("a small duration")
}

/// The JSON value of a payload that came back.
pub fn value(payload: Option<&Payload>) -> &Value {
    match payload.and_then(|payload| payload.body.as_ref()) {
        Some(Body::Json(value)) => value,
        other => panic!("no JSON: {other:?}"),
    }
}
