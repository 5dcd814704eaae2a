//! A server process of a test's own: on a free port, in a temporary directory, gone at the end.

use std::{
    io::{BufRead as _, BufReader},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use jobwire::proto::{
    JobSpec, Payload, SubmitRequest, job_service_client::JobServiceClient, payload::Body,
    worker_service_client::WorkerServiceClient,
};
use prost_types::Value;
use tempfile::TempDir;
use tonic::transport::{Channel, Endpoint};

use crate::postgres;

pub type Client = JobServiceClient<Channel>;
pub type Workers = WorkerServiceClient<Channel>;

/// How long anything may take that should take no time. Never a measure, only the end of patience.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// After this long a call to a server that may have been killed is given up: once in some thousand kills the library
/// does not notice that its connection has gone.
const LOST: Duration = Duration::from_secs(20);

/// A `jobwire serve`.
pub struct Server {
    /// None before the first start.
    child: Option<Child>,
    /// Where it is told to listen.
    listen: String,
    address: String,
    dir: TempDir,
    config: String,
    variables: Vec<(&'static str, String)>,
    /// The database, if it does not keep its jobs in the directory.
    store: Option<String>,
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
        Self::try_with_variables(config, variables).unwrap_or_else(|said| panic!("no server: {said}"))
    }

    /// The same, or what it said instead of starting.
    pub fn try_with_variables(config: &str, variables: &[(&'static str, String)]) -> Result<Self, String> {
        let mut server = Self::unstarted();
        server.variables = variables.to_owned();
        server.launch(config);
        if server.read_address() { Ok(server) } else { Err(server.log()) }
    }

    /// One to be started later, on a directory that is not there yet.
    pub fn unstarted() -> Self {
        Self::with_store(postgres::is_asked_for().then(postgres::schema))
    }

    fn with_store(store: Option<String>) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (listen, address, config) = ("127.0.0.1:0".into(), String::new(), String::new());
        Self { child: None, listen, address, dir, config, variables: Vec::new(), store }
    }

    /// Starts on a data directory that is there already.
    pub fn on(data: &Path) -> Self {
        Self::with(&format!("data = {:?}", data.to_str().expect("text")))
    }

    /// Starts on a database, perhaps beside others.
    pub fn on_database(url: &str, config: &str) -> Self {
        Self::try_on_database(url, config).unwrap_or_else(|said| panic!("no server: {said}"))
    }

    /// The same, or what it said instead of starting.
    pub fn try_on_database(url: &str, config: &str) -> Result<Self, String> {
        let mut server = Self::with_store(Some(url.to_owned()));
        server.launch(config);
        if server.read_address() { Ok(server) } else { Err(server.log()) }
    }

    /// One of many on a database, to be started later. Its address stays the same: others know it by that.
    pub fn replica(url: &str) -> Self {
        let mut server = Self::with_store(Some(url.to_owned()));
        server.listen = free_address();
        server.address = server.listen.clone();
        server
    }

    fn launch(&mut self, config: &str) {
        self.config = config.to_owned();
        let file = self.dir.path().join("jobwire.toml");
        std::fs::write(&file, config).expect("the configuration is written");
        let mut command = program();
        if let Some(url) = &self.store {
            command.env("JOBWIRE_STORE", url);
        } else if !config.starts_with("data = ") {
            command.env("JOBWIRE_DATA", self.data());
        }
        let log = self.dir.path().join("log");
        let log = std::fs::OpenOptions::new().create(true).append(true).open(log).expect("a log");
        let child = command
            .args(["serve", "--listen", &self.listen, "--config"])
            .arg(&file)
            .envs(self.variables.iter().cloned())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn();
        self.child = Some(child.expect("jobwire starts"));
    }

    /// Waits until it serves.
    fn await_address(&mut self) {
        assert!(self.read_address(), "the server did not start: {}", self.log());
    }

    /// Waits until it serves, or has ended.
    fn read_address(&mut self) -> bool {
        let mut line = String::new();
        let stdout = self.child().stdout.take().expect("stdout is piped");
        BufReader::new(stdout).read_line(&mut line).expect("stdout is text");
        let address = line.trim().strip_prefix("listening on ").map(str::to_owned);
        if let Some(address) = address {
            self.address = address;
            return true;
        }
        self.child().wait().expect("the process can be reaped");
        false
    }

    fn child(&mut self) -> &mut Child {
        self.child.as_mut().expect("the server was started")
    }

    /// `host:port`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("the server was started").id()
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
        endpoint(&self.address).connect().await.expect("the server accepts connections")
    }

    /// A connection of its own.
    pub async fn client(&self) -> Client {
        client_of(self.channel().await)
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        self.child().kill().expect("the process can be killed");
        self.child().wait().expect("the process can be reaped");
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
            if let Some(status) = self.child().try_wait().expect("the process can be waited for") {
                return status;
            }
            assert!(Instant::now() < end, "the server does not end:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Starts again on the same data, on another port. The process must have ended.
    pub fn restart(self) -> Self {
        let config = self.config.clone();
        self.restart_with(&config)
    }

    /// The same with another configuration file.
    pub fn restart_with(mut self, config: &str) -> Self {
        self.start_again(config);
        self
    }

    /// The same in place.
    pub fn start_again(&mut self, config: &str) {
        self.relaunch(config);
        self.await_address();
    }

    /// Starts one that is known by its address, and does not wait until it serves.
    pub fn begin(&mut self) {
        self.relaunch("");
    }

    /// Waits until it serves.
    pub async fn serves(mut self) -> Self {
        let wait = tokio::task::spawn_blocking(move || {
            self.await_address();
            self
        });
        wait.await.expect("it serves")
    }

    /// Starts again, and kills it after this time, however far it has come.
    pub fn start_and_kill(&mut self, config: &str, after: Duration) {
        self.relaunch(config);
        std::thread::sleep(after);
        self.kill();
    }

    fn relaunch(&mut self, config: &str) {
        let ended = self
            .child
            .as_mut()
            .is_none_or(|child| child.try_wait().expect("the process can be waited for").is_some());
        assert!(ended, "the server still runs");
        self.launch(config);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Below the ports that the system gives to connections: one of those would keep a server from coming back.
pub fn free_address() -> String {
    let free = |address: &String| TcpListener::bind(address).is_ok();
    let mut addresses = std::iter::repeat_with(|| format!("127.0.0.1:{}", fastrand::u16(12_000..20_000)));
    addresses.find(free).expect("there is no end of them")
}

/// Clients with connections of their own, made only when they are used: nobody may be there by then.
pub fn lazy_clients(address: &str) -> (Client, Workers) {
    let client = client_of(endpoint(address).timeout(LOST).connect_lazy());
    (client, Workers::new(endpoint(address).connect_lazy()).max_decoding_message_size(8 << 20))
}

fn endpoint(address: &str) -> Endpoint {
    Endpoint::from_shared(format!("http://{address}")).expect("an address")
}

fn client_of(channel: Channel) -> Client {
    JobServiceClient::new(channel).max_decoding_message_size(8 << 20).max_encoding_message_size(8 << 20)
}

/// The program, or the one that JOBWIRE_BIN names, without the settings of whoever runs the tests.
pub fn program() -> Command {
    let named = std::env::var_os("JOBWIRE_BIN");
    let mut command = Command::new(named.unwrap_or_else(|| env!("CARGO_BIN_EXE_jobwire").into()));
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

/// Makes `DIR/NAME.so`, to be preloaded into a server, of `NAME.c` beside this file.
pub fn compile_preload(name: &str, dir: &Path) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/it/{name}.c"));
    let library = dir.join(format!("{name}.so"));
    let mut compiler = Command::new("cc");
    compiler
        .args(["-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-o"])
        .arg(&library)
        .arg(source)
        .arg("-ldl");
    assert!(compiler.status().expect("a C compiler, as SQLite needs one too").success());
    library
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
