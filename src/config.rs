//! Every setting of the server with its default and unit. What nobody would want to set is a constant beside what it
//! bounds.
//!
//! Durations are written as `"30s"`, `"5m"`, `"1h 30m"`; sizes are plain bytes.

mod validate;

use std::{
    collections::BTreeMap,
    fmt,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use ipnet::IpNet;

use crate::job::{Policy, QueueName};
use serde::{Deserialize, Serialize, Serializer};

use jiff::fmt::serde::unsigned_duration::friendly::compact::required as duration;

pub(crate) use self::validate::key;
pub use self::validate::{InvalidSetting, InvalidSettings};

/// The settings of one server, complete and with defaults filled in.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The address to serve on. Port 0 takes a free one.
    pub listen: SocketAddr,
    /// Where the embedded store lives: a directory of its own, used by one server at a time. Not used with `store.url`.
    pub data: PathBuf,
    /// Serve on an address other than loopback although the port has neither TLS nor credentials.
    pub insecure_allow_remote: bool,
    /// How long a stop waits for running attempts before they are given back.
    #[serde(with = "duration")]
    pub drain_timeout: Duration,
    pub limits: Limits,
    pub http2: Http2,
    pub web: Web,
    pub watch: Watch,
    pub store: Store,
    pub workers: Workers,
    /// Defaults for jobs that do not say, for queues without an entry of their own.
    pub defaults: QueueDefaults,
    /// By queue name. What an entry leaves out comes from `defaults`.
    pub queues: BTreeMap<String, Queue>,
    pub http: Http,
    pub exec: Exec,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 50051)),
            data: PathBuf::from("jobwire-data"),
            insecure_allow_remote: false,
            drain_timeout: Duration::from_secs(25),
            limits: Limits::default(),
            http2: Http2::default(),
            web: Web::default(),
            watch: Watch::default(),
            store: Store::default(),
            workers: Workers::default(),
            defaults: QueueDefaults::default(),
            queues: BTreeMap::new(),
            http: Http::default(),
            exec: Exec::default(),
        }
    }
}

impl Config {
    /// What holds for the jobs of a queue that say nothing themselves.
    pub fn queue_policy(&self, queue: &QueueName) -> Policy {
        let (own, defaults) = (self.queues.get(queue.as_str()), &self.defaults);
        Policy {
            max_attempts: own.and_then(|own| own.max_attempts).unwrap_or(defaults.max_attempts),
            initial_backoff: own.and_then(|own| own.initial_backoff).unwrap_or(defaults.initial_backoff),
            max_backoff: own.and_then(|own| own.max_backoff).unwrap_or(defaults.max_backoff),
            backoff_multiplier: own
                .and_then(|own| own.backoff_multiplier)
                .unwrap_or(defaults.backoff_multiplier),
            non_retryable_codes: Vec::new(),
            attempt_timeout: own.and_then(|own| own.attempt_timeout).unwrap_or(defaults.attempt_timeout),
            retention: own.and_then(|own| own.retention).unwrap_or(defaults.retention),
        }
    }
}

/// Bounds on what callers may send and keep waiting.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Bytes of one payload; with `max_output_bytes` at most 3 MiB, because a message is 4 MiB.
    pub max_payload_bytes: usize,
    /// Bytes of one output; with `max_payload_bytes` at most 3 MiB.
    pub max_output_bytes: usize,
    /// Items of one BatchSubmit.
    pub max_batch_items: usize,
    /// The longest `wait` of a unary call.
    #[serde(with = "duration")]
    pub max_wait: Duration,
    /// Calls that hold a `wait` at the same time.
    pub max_waits: usize,
    /// The longest unary call, whatever its deadline says.
    #[serde(with = "duration")]
    pub max_unary: Duration,
    /// How long a request_id is remembered.
    #[serde(with = "duration")]
    pub request_id_window: Duration,
    /// Unfinished jobs in all queues.
    pub max_unfinished: u64,
    /// Bytes of payload of unfinished jobs in all queues.
    pub max_unfinished_bytes: u64,
    /// Distinct pairs of queue and kind.
    pub max_lines: usize,
    /// Submissions that wait for their commit in memory.
    pub submit_buffer_items: usize,
    /// Bytes of payload that wait for their commit in memory.
    pub submit_buffer_bytes: usize,
    /// Bytes of large messages in memory, those from 64 KiB on: of requests that are coming in, and as many of replies
    /// that were not taken yet. A compressed one counts as what it may inflate to.
    pub message_buffer_bytes: usize,
    /// Longest retention a job may ask for.
    #[serde(with = "duration")]
    pub max_retention: Duration,
    /// Longest time ahead: a delay, a start_timeout, a total_timeout, a back-off. What a handler asks for is cut to it.
    #[serde(with = "duration")]
    pub max_delay: Duration,
    /// Longest attempt_timeout a job may ask for.
    #[serde(with = "duration")]
    pub max_attempt_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_payload_bytes: 1 << 20,
            max_output_bytes: 1 << 20,
            max_batch_items: 1000,
            max_wait: Duration::from_secs(45),
            max_waits: 10_000,
            max_unary: Duration::from_secs(60),
            request_id_window: Duration::from_secs(24 * 3600),
            max_unfinished: 10_000_000,
            max_unfinished_bytes: 16 << 30,
            max_lines: 10_000,
            submit_buffer_items: 10_000,
            submit_buffer_bytes: 64 << 20,
            message_buffer_bytes: 128 << 20,
            max_retention: Duration::from_secs(90 * 24 * 3600),
            max_delay: Duration::from_secs(366 * 24 * 3600),
            max_attempt_timeout: Duration::from_secs(24 * 3600),
        }
    }
}

/// Connections and HTTP/2. Every value is set by hand: a library default may mean "no limit".
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Http2 {
    pub max_connections: usize,
    pub max_connections_per_address: usize,
    /// Open streams on one connection.
    pub max_concurrent_streams: u32,
    /// Streams that a peer made us reset before the connection is closed.
    pub max_local_error_reset_streams: usize,
    /// Streams reset by the peer that were not accepted yet.
    pub max_pending_accept_reset_streams: usize,
    /// Bytes of one header list.
    pub max_header_list_bytes: u32,
    /// Flow-control window of one stream, bytes.
    pub stream_window_bytes: u32,
    /// Flow-control window of one connection, bytes.
    pub connection_window_bytes: u32,
    /// Bytes that one stream may hold for sending.
    pub send_buffer_bytes: usize,
    /// Takes requests that are compressed with gzip, for clients and proxies that send no others. What a few bytes
    /// inflate to costs memory and processor time, so that it is off unless it is needed. Answers are never compressed.
    pub accept_gzip: bool,
    /// How long a new connection may stay silent.
    #[serde(with = "duration")]
    pub first_byte_timeout: Duration,
    /// How long the headers of an HTTP/1 request may take.
    #[serde(with = "duration")]
    pub header_timeout: Duration,
    #[serde(with = "duration")]
    pub ping_interval: Duration,
    #[serde(with = "duration")]
    pub ping_timeout: Duration,
    /// Age at which a connection is told to go, plus or minus 10 %.
    #[serde(with = "duration")]
    pub max_connection_age: Duration,
    /// From being told to go until the connection is cut.
    #[serde(with = "duration")]
    pub connection_grace: Duration,
}

impl Default for Http2 {
    fn default() -> Self {
        Self {
            max_connections: 10_000,
            max_connections_per_address: 256,
            max_concurrent_streams: 200,
            max_local_error_reset_streams: 1024,
            max_pending_accept_reset_streams: 20,
            max_header_list_bytes: 16 << 10,
            stream_window_bytes: 1 << 20,
            connection_window_bytes: 4 << 20,
            send_buffer_bytes: 64 << 10,
            accept_gzip: false,
            first_byte_timeout: Duration::from_secs(5),
            header_timeout: Duration::from_secs(10),
            ping_interval: Duration::from_secs(30),
            ping_timeout: Duration::from_secs(10),
            max_connection_age: Duration::from_secs(30 * 60),
            connection_grace: Duration::from_secs(60),
        }
    }
}

/// gRPC-Web.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Web {
    /// Origins whose pages may call, such as `https://app.example.org`, also those served under the same name. Empty: none.
    pub allowed_origins: Vec<String>,
}

/// The feed of outcomes and those who follow it.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Watch {
    /// How long an outcome can be resumed from.
    #[serde(with = "duration")]
    pub retention: Duration,
    /// Outcomes that can be resumed from; older ones leave the feed, not the result store.
    pub max_events: u64,
    /// Open WatchResults streams.
    pub max_watchers: usize,
    /// Age at which a stream is ended with STREAM_ROTATED, plus or minus 10 %.
    #[serde(with = "duration")]
    pub max_stream_age: Duration,
    /// A stream that takes nothing for this long while data waits is ended.
    #[serde(with = "duration")]
    pub stall_timeout: Duration,
    /// Messages that wait for one stream in memory.
    pub buffer_messages: usize,
    /// Bytes that wait for one stream in memory.
    pub buffer_bytes: usize,
    /// Bytes of recent outcomes kept in memory for all streams together.
    pub ring_bytes: usize,
    /// Ids in one filter.
    pub max_filter_ids: usize,
}

impl Default for Watch {
    fn default() -> Self {
        Self {
            retention: Duration::from_secs(24 * 3600),
            max_events: 50_000_000,
            max_watchers: 20_000,
            max_stream_age: Duration::from_secs(3600),
            stall_timeout: Duration::from_secs(60),
            buffer_messages: 256,
            buffer_bytes: 1 << 20,
            ring_bytes: 64 << 20,
            max_filter_ids: 1000,
        }
    }
}

/// Where jobs are kept.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Store {
    /// The PostgreSQL database that replicas share, `postgres://USER:PASSWORD@HOST/DATABASE`; several hosts are possible.
    /// Left out: the embedded store in `data`.
    pub url: Option<StoreUrl>,
    /// Free bytes on the file system below which Submit answers STORE_FULL, while running jobs still finish.
    pub reserve_bytes: u64,
    /// PostgreSQL does not tell how much room there is on its disk: the bytes that the database may take up in all, for
    /// `reserve_bytes`. Left out: as much as there is.
    pub max_database_bytes: Option<u64>,
    /// Of the embedded store, as all below: commands of one commit.
    pub max_group: usize,
    /// Connections, each with a thread, that read beside the writer.
    pub readers: usize,
    /// Memory of SQLite's page cache: the writer takes a sixteenth, the readers share the rest.
    pub cache_bytes: usize,
    /// Size of the write-ahead log above which it is written back and emptied.
    pub wal_limit_bytes: u64,
}

impl Default for Store {
    fn default() -> Self {
        Self {
            url: None,
            reserve_bytes: 64 << 20,
            max_database_bytes: None,
            max_group: 500,
            readers: 4,
            cache_bytes: 64 << 20,
            wal_limit_bytes: 64 << 20,
        }
    }
}

/// A URL that may hold a password: what is printed of it has none.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(from = "String")]
pub struct StoreUrl(String);

impl StoreUrl {
    /// The whole of it, password and all.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl From<String> for StoreUrl {
    fn from(url: String) -> Self {
        Self(url)
    }
}

impl fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, rest) = self.0.split_once("://").unwrap_or(("", &self.0));
        let (place, options) = rest.split_once('?').unwrap_or((rest, ""));
        let (user, host) = place.rsplit_once('@').unwrap_or(("", place));
        write!(f, "{scheme}://")?;
        match user.split_once(':') {
            Some((user, _)) => write!(f, "{user}:***@")?,
            None if user.is_empty() => {}
            None => write!(f, "{user}@")?,
        }
        f.write_str(host)?;
        // Options may hold one too.
        if options.is_empty() { Ok(()) } else { f.write_str("?***") }
    }
}

impl fmt::Debug for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl Serialize for StoreUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The pool inside the server, and programs that connect to work.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Workers {
    /// Attempts that run at the same time. 0 runs none.
    pub concurrency: usize,
    /// Threads for blocking handlers, 1 to 256.
    pub blocking_threads: usize,
    /// A handler that ignores its cancellation is dropped after this long.
    #[serde(with = "duration")]
    pub grace: Duration,
    /// How long a lease lives without being renewed.
    #[serde(with = "duration")]
    pub lease: Duration,
    /// How often leases are renewed, and progress is stored.
    #[serde(with = "duration")]
    pub heartbeat: Duration,
    /// Programs that are connected, or wait for leases, at the same time.
    pub max_connected: usize,
    /// Leases that one of them may hold.
    pub max_in_flight: usize,
}

impl Default for Workers {
    fn default() -> Self {
        Self {
            concurrency: 1024,
            blocking_threads: 16,
            grace: Duration::from_secs(10),
            lease: Duration::from_secs(30),
            heartbeat: Duration::from_secs(5),
            max_connected: 10_000,
            max_in_flight: 10_000,
        }
    }
}

/// What a job gets that does not say.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct QueueDefaults {
    #[serde(with = "duration")]
    pub attempt_timeout: Duration,
    pub max_attempts: u32,
    #[serde(with = "duration")]
    pub initial_backoff: Duration,
    pub backoff_multiplier: f64,
    #[serde(with = "duration")]
    pub max_backoff: Duration,
    #[serde(with = "duration")]
    pub retention: Duration,
}

impl Default for QueueDefaults {
    fn default() -> Self {
        Self {
            attempt_timeout: Duration::from_secs(5 * 60),
            max_attempts: 5,
            initial_backoff: Duration::from_secs(1),
            backoff_multiplier: 2.0,
            max_backoff: Duration::from_secs(10 * 60),
            retention: Duration::from_secs(24 * 3600),
        }
    }
}

/// One queue's own settings; what is absent comes from `defaults`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Queue {
    /// Attempts of this queue that the pool of this server runs at the same time. With any such limit the pool looks for jobs
    /// every 20 ms instead of waiting for them. Workers that connect are bounded by their own windows.
    pub concurrency: Option<usize>,
    /// Unfinished jobs; a Submit beyond it is refused with QUEUE_FULL.
    pub max_unfinished: Option<u64>,
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::optional")]
    pub attempt_timeout: Option<Duration>,
    pub max_attempts: Option<u32>,
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::optional")]
    pub initial_backoff: Option<Duration>,
    pub backoff_multiplier: Option<f64>,
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::optional")]
    pub max_backoff: Option<Duration>,
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::optional")]
    pub retention: Option<Duration>,
}

/// The built-in `http` kind.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Http {
    pub enabled: bool,
    /// Hosts that may be called although they are not public: `name` or `name:port`.
    pub allow_hosts: Vec<String>,
    /// Networks that may be called although they are not public, such as `10.0.0.0/8`.
    pub allow_networks: Vec<IpNet>,
    /// Requests at the same time to one host.
    pub concurrency_per_host: usize,
    /// Requests a second to one host. 0 means no limit.
    pub requests_per_second_per_host: u32,
    /// Unless the job says.
    #[serde(with = "duration")]
    pub timeout: Duration,
    /// Unless the job asks for less. Bytes of a response body, of no more than `limits.max_output_bytes`.
    pub max_response_bytes: usize,
    /// Redirects that a job may follow.
    pub max_redirects: usize,
}

impl Default for Http {
    fn default() -> Self {
        Self {
            enabled: true,
            allow_hosts: Vec::new(),
            allow_networks: Vec::new(),
            concurrency_per_host: 16,
            requests_per_second_per_host: 0,
            timeout: Duration::from_secs(30),
            max_response_bytes: 512 << 10,
            max_redirects: 3,
        }
    }
}

/// The built-in `exec` kind. Off unless a command is named.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Exec {
    pub commands: BTreeMap<String, ExecCommand>,
}

/// A program that jobs may run, and how.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ExecCommand {
    /// Absolute path.
    pub program: PathBuf,
    /// Arguments; `{name}` stands for a parameter. No shell is involved.
    #[serde(default)]
    pub args: Vec<String>,
    #[serde(default)]
    pub params: BTreeMap<String, ExecParam>,
    /// The whole environment of the process.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Working directory. Unset: a new empty one, removed afterwards.
    #[serde(default)]
    pub dir: Option<PathBuf>,
    /// Processes of this command at the same time.
    #[serde(default = "one")]
    pub concurrency: usize,
    /// Bytes kept of stdout and of stderr, each: less where they would not fit `limits.max_output_bytes` together.
    #[serde(default = "output_limit")]
    pub max_output_bytes: usize,
    /// Exit codes that are worth another attempt. Others fail the job for good.
    #[serde(default)]
    pub retry_exit_codes: Vec<i32>,
}

/// The type of a placeholder: what the job may put there.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(tag = "type", rename_all = "lowercase", deny_unknown_fields)]
pub enum ExecParam {
    /// Text that does not begin with `-`, unless `allow_dash`; at most `max_bytes`, 256 by default.
    Text {
        #[serde(default)]
        max_bytes: Option<usize>,
        #[serde(default)]
        allow_dash: bool,
    },
    Integer {
        #[serde(default)]
        min: Option<i64>,
        #[serde(default)]
        max: Option<i64>,
    },
    /// One of these words.
    Choice { values: Vec<String> },
    /// A path below `root`, after every symbolic link is resolved.
    Path { root: PathBuf },
}

fn one() -> usize {
    1
}

fn output_limit() -> usize {
    256 << 10
}
