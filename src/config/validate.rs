//! What every setting must fulfil. Each refusal names the key and the way out.

use std::{
    collections::BTreeSet,
    fmt::{self, Display},
    ops::RangeInclusive,
    time::Duration,
};

use url::Url;

use super::{Config, ExecCommand, ExecParam, Http, Limits, Queue, output_limit};
use crate::{
    handlers::{Template, check_command, is_allowed_host},
    job::{Error, Kind, QueueName},
};

/// A message is 4 MiB, and holds more than an input and an output.
const MAX_BODY_BYTES: usize = 3 << 20;
const MAX_WINDOW: u32 = i32::MAX as u32;
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);
const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

/// A setting that cannot hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{key}` {why}")]
pub struct InvalidSetting {
    /// The path of keys, as in the file.
    pub key: String,
    /// What is wrong, and what to write instead.
    pub why: String,
}

/// All settings that cannot hold, at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidSettings(pub Vec<InvalidSetting>);

impl Display for InvalidSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<_> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&lines.join("\n"))
    }
}

impl std::error::Error for InvalidSettings {}

impl Config {
    /// Checks every value, and the values that belong together.
    ///
    /// # Errors
    /// Everything that is wrong, not only the first thing.
    pub fn validate(&self) -> Result<(), InvalidSettings> {
        let mut check = Check::default();
        self.check_top(&mut check);
        self.check_limits(&mut check);
        self.check_http2(&mut check);
        self.check_watch(&mut check);
        self.check_store_and_workers(&mut check);
        self.check_queues(&mut check);
        self.check_http(&mut check);
        for (name, command) in &self.exec.commands {
            check.command(name, command, &self.limits);
        }
        if check.found.is_empty() { Ok(()) } else { Err(InvalidSettings(check.found)) }
    }

    fn check_top(&self, check: &mut Check) {
        check.that(
            self.listen.ip().is_loopback() || self.insecure_allow_remote,
            "listen",
            format_args!(
                "is {}, which other machines may reach, but nothing is encrypted and nobody is asked who they are: \
                 use 127.0.0.1, or set insecure_allow_remote = true (--insecure-allow-remote) on a network where \
                 everyone may run jobs",
                self.listen.ip()
            ),
        );
        check.that(!self.data.as_os_str().is_empty(), "data", "must name a directory");
        check.within("drain_timeout", Span(self.drain_timeout), Span(Duration::ZERO)..=Span(HOUR));
    }

    fn check_limits(&self, check: &mut Check) {
        let limits = &self.limits;
        check.within("limits.max_payload_bytes", limits.max_payload_bytes, 1..=MAX_BODY_BYTES);
        check.within("limits.max_output_bytes", limits.max_output_bytes, 1..=MAX_BODY_BYTES);
        check.that(
            limits.max_payload_bytes.saturating_add(limits.max_output_bytes) <= MAX_BODY_BYTES,
            "limits.max_output_bytes",
            format_args!(
                "must be at most {MAX_BODY_BYTES} together with limits.max_payload_bytes: a message holds both"
            ),
        );
        check.within("limits.max_batch_items", limits.max_batch_items, 1..=10_000);
        check.duration("limits.max_wait", limits.max_wait, HOUR);
        check.duration("limits.max_unary", limits.max_unary, HOUR);
        check.that(
            limits.max_wait < limits.max_unary,
            "limits.max_wait",
            "must be shorter than limits.max_unary, which ends the call that waits",
        );
        check.within("limits.max_waits", limits.max_waits, 1..=1_000_000);
        check.duration("limits.request_id_window", limits.request_id_window, YEAR);
        check.within("limits.max_unfinished", limits.max_unfinished, 1..=1_000_000_000);
        check.within("limits.max_unfinished_bytes", limits.max_unfinished_bytes, 1..=1 << 50);
        check.within("limits.max_lines", limits.max_lines, 1..=1_000_000);
        check.within("limits.submit_buffer_items", limits.submit_buffer_items, 1..=1_000_000);
        check.within("limits.submit_buffer_bytes", limits.submit_buffer_bytes, 1..=16 << 30);
        check.within("limits.message_buffer_bytes", limits.message_buffer_bytes, 8 << 20..=16 << 30);
        for (key, bytes) in [
            ("limits.max_unfinished_bytes", limits.max_unfinished_bytes),
            ("limits.submit_buffer_bytes", limits.submit_buffer_bytes as u64),
        ] {
            check.that(
                bytes >= limits.max_payload_bytes as u64,
                key,
                "must hold one limits.max_payload_bytes",
            );
        }
        check.duration("limits.max_retention", limits.max_retention, 10 * YEAR);
        check.duration("limits.max_delay", limits.max_delay, 10 * YEAR);
        check.duration("limits.max_attempt_timeout", limits.max_attempt_timeout, 30 * DAY);
    }

    fn check_http2(&self, check: &mut Check) {
        let http2 = &self.http2;
        check.within("http2.max_connections", http2.max_connections, 1..=1_000_000);
        check.within("http2.max_connections_per_address", http2.max_connections_per_address, 1..=1_000_000);
        check.within("http2.max_concurrent_streams", http2.max_concurrent_streams, 1..=100_000);
        check.within("http2.max_local_error_reset_streams", http2.max_local_error_reset_streams, 1..=65_536);
        check.within(
            "http2.max_pending_accept_reset_streams",
            http2.max_pending_accept_reset_streams,
            1..=65_536,
        );
        check.within("http2.max_header_list_bytes", http2.max_header_list_bytes, 1 << 10..=1 << 20);
        check.within("http2.stream_window_bytes", http2.stream_window_bytes, 65_535..=MAX_WINDOW);
        check.within("http2.connection_window_bytes", http2.connection_window_bytes, 65_535..=MAX_WINDOW);
        check.that(
            http2.connection_window_bytes >= http2.stream_window_bytes,
            "http2.connection_window_bytes",
            "must not be below http2.stream_window_bytes",
        );
        check.within("http2.send_buffer_bytes", http2.send_buffer_bytes, 1 << 10..=16 << 20);
        check.duration("http2.first_byte_timeout", http2.first_byte_timeout, HOUR);
        check.duration("http2.header_timeout", http2.header_timeout, HOUR);
        check.duration("http2.ping_interval", http2.ping_interval, HOUR);
        check.duration("http2.ping_timeout", http2.ping_timeout, HOUR);
        check.duration("http2.max_connection_age", http2.max_connection_age, YEAR);
        check.duration("http2.connection_grace", http2.connection_grace, DAY);
        for (index, origin) in self.web.allowed_origins.iter().enumerate() {
            check.that(
                is_origin(origin),
                &format!("web.allowed_origins[{index}]"),
                format_args!("must be an origin such as https://app.example.org, not `{origin}`"),
            );
        }
    }

    fn check_watch(&self, check: &mut Check) {
        let watch = &self.watch;
        check.duration("watch.retention", watch.retention, 10 * YEAR);
        check.within("watch.max_events", watch.max_events, 1..=10_000_000_000);
        check.within("watch.max_watchers", watch.max_watchers, 1..=1_000_000);
        check.duration("watch.max_stream_age", watch.max_stream_age, YEAR);
        check.duration("watch.stall_timeout", watch.stall_timeout, HOUR);
        check.within("watch.buffer_messages", watch.buffer_messages, 1..=65_536);
        check.within("watch.buffer_bytes", watch.buffer_bytes, 1 << 10..=64 << 20);
        check.within("watch.ring_bytes", watch.ring_bytes, 0..=64 << 30);
        check.within("watch.max_filter_ids", watch.max_filter_ids, 1..=10_000);
    }

    fn check_store_and_workers(&self, check: &mut Check) {
        let store = &self.store;
        let is_postgres = |url: &super::StoreUrl| {
            ["postgres://", "postgresql://"].iter().any(|scheme| url.reveal().starts_with(scheme))
        };
        check.that(store.url.as_ref().is_none_or(is_postgres), "store.url", "must begin with postgres://");
        check.within("store.reserve_bytes", store.reserve_bytes, 0..=1 << 40);
        check.within("store.max_group", store.max_group, 1..=10_000);
        check.within("store.readers", store.readers, 1..=64);
        check.within("store.cache_bytes", store.cache_bytes, 1 << 20..=64 << 30);
        check.within("store.wal_limit_bytes", store.wal_limit_bytes, 1 << 20..=64 << 30);
        let workers = &self.workers;
        check.within("workers.concurrency", workers.concurrency, 0..=100_000);
        // Half of what the runtime has: reads of the store and look-ups of names need threads too.
        check.within("workers.blocking_threads", workers.blocking_threads, 1..=256);
        check.within("workers.max_connected", workers.max_connected, 1..=1_000_000);
        check.within("workers.max_in_flight", workers.max_in_flight, 1..=100_000);
        check.duration("workers.grace", workers.grace, HOUR);
        check.duration("workers.lease", workers.lease, DAY);
        check.duration("workers.heartbeat", workers.heartbeat, DAY);
        check.that(
            workers.heartbeat < workers.lease / 2,
            "workers.heartbeat",
            "must be shorter than half of workers.lease, so that one lost heartbeat costs no lease",
        );
    }

    fn check_queues(&self, check: &mut Check) {
        let defaults = &self.defaults;
        let all = Queue {
            concurrency: None,
            max_unfinished: None,
            attempt_timeout: Some(defaults.attempt_timeout),
            max_attempts: Some(defaults.max_attempts),
            initial_backoff: Some(defaults.initial_backoff),
            backoff_multiplier: Some(defaults.backoff_multiplier),
            max_backoff: Some(defaults.max_backoff),
            retention: Some(defaults.retention),
        };
        self.check_queue(check, "defaults", &all);
        for (name, queue) in &self.queues {
            let path = key("queues", name);
            if let Err(error) = QueueName::parse("its name", name) {
                check.fail(&path, error);
            }
            self.check_queue(check, &path, queue);
        }
    }

    fn check_queue(&self, check: &mut Check, path: &str, queue: &Queue) {
        let at = |field: &str| format!("{path}.{field}");
        if let Some(value) = queue.concurrency {
            check.within(&at("concurrency"), value, 1..=100_000);
        }
        if let Some(value) = queue.max_unfinished {
            check.within(&at("max_unfinished"), value, 1..=1_000_000_000);
        }
        if let Some(value) = queue.attempt_timeout {
            check.duration(&at("attempt_timeout"), value, self.limits.max_attempt_timeout);
        }
        if let Some(value) = queue.max_attempts {
            check.within(&at("max_attempts"), value, 1..=i32::MAX as u32);
        }
        if let Some(value) = queue.backoff_multiplier {
            check.within(&at("backoff_multiplier"), value, 1.0..=100.0);
        }
        if let Some(value) = queue.retention {
            check.duration(&at("retention"), value, self.limits.max_retention);
        }
        let initial = queue.initial_backoff.unwrap_or(self.defaults.initial_backoff);
        let most = queue.max_backoff.unwrap_or(self.defaults.max_backoff);
        if queue.initial_backoff.is_some() {
            check.duration(&at("initial_backoff"), initial, 30 * DAY);
        }
        if queue.max_backoff.is_some() {
            check.duration(&at("max_backoff"), most, 30 * DAY);
        }
        check.that(initial <= most, &at("max_backoff"), "must not be shorter than initial_backoff");
    }

    fn check_http(&self, check: &mut Check) {
        let http = &self.http;
        for (index, host) in http.allow_hosts.iter().enumerate() {
            check.that(
                is_allowed_host(host),
                &format!("http.allow_hosts[{index}]"),
                format_args!("must be `name` or `name:port`, without a scheme and a path, not `{host}`"),
            );
        }
        check.within("http.concurrency_per_host", http.concurrency_per_host, 1..=10_000);
        check.within("http.requests_per_second_per_host", http.requests_per_second_per_host, 0..=1_000_000);
        check.duration("http.timeout", http.timeout, self.limits.max_attempt_timeout);
        let by_default = Http::default().max_response_bytes;
        check.kept("http.max_response_bytes", http.max_response_bytes, by_default, &self.limits);
        check.within("http.max_redirects", http.max_redirects, 0..=10);
    }
}

/// Collects what is wrong.
#[derive(Default)]
struct Check {
    found: Vec<InvalidSetting>,
}

impl Check {
    fn fail(&mut self, key: &str, why: impl Display) {
        self.found.push(InvalidSetting { key: key.to_owned(), why: why.to_string() });
    }

    fn that(&mut self, holds: bool, key: &str, why: impl Display) {
        if !holds {
            self.fail(key, why);
        }
    }

    fn within<T: PartialOrd + Display>(&mut self, key: &str, value: T, range: RangeInclusive<T>) {
        let (least, most) = (range.start(), range.end());
        self.that(range.contains(&value), key, format_args!("is {value}; it must be {least} to {most}"));
    }

    fn duration(&mut self, key: &str, value: Duration, most: Duration) {
        self.within(key, Span(value), Span(Duration::from_millis(1))..=Span(most));
    }

    /// Bytes that a handler keeps for its result: more than an output may have would fail a job that was done. Where
    /// outputs are smaller than usual, the default may stay.
    fn kept(&mut self, key: &str, bytes: usize, by_default: usize, limits: &Limits) {
        let most = limits.max_output_bytes.max(by_default);
        self.that(
            (1..=most).contains(&bytes),
            key,
            format_args!("is {bytes}; it must be 1 to {most}: for more, raise limits.max_output_bytes first"),
        );
    }

    fn command(&mut self, name: &str, command: &ExecCommand, limits: &Limits) {
        let before = self.found.len();
        let path = key("exec.commands", name);
        let at = |field: &str| format!("{path}.{field}");
        if let Err(error) = Kind::parse("its name", name) {
            self.fail(&path, error);
        }
        self.that(
            command.program.is_absolute(),
            &at("program"),
            format_args!(
                "must be an absolute path, not `{}`: PATH is not searched",
                command.program.display()
            ),
        );
        self.placeholders(&path, command);
        for name in command.env.keys() {
            let valid = !name.is_empty() && !name.contains(['=', '\0']);
            self.that(valid, &key(&at("env"), name), "is no name of a variable");
        }
        let dir = command.dir.as_ref();
        self.that(dir.is_none_or(|dir| dir.is_absolute()), &at("dir"), "must be an absolute path");
        self.within(&at("concurrency"), command.concurrency, 1..=10_000);
        self.kept(&at("max_output_bytes"), command.max_output_bytes, output_limit(), limits);
        for (index, code) in command.retry_exit_codes.iter().enumerate() {
            self.within(&format!("{}[{index}]", at("retry_exit_codes")), *code, 1..=255);
        }
        for (name, param) in &command.params {
            self.param(&key(&at("params"), name), param);
        }
        // What the kind asks beyond that would be found at the start only.
        if self.found.len() == before
            && let Err(Error::Invalid { field, why }) = check_command(name, command)
        {
            self.fail(&field, why);
        }
    }

    /// Placeholders and parameters must be the same set.
    fn placeholders(&mut self, path: &str, command: &ExecCommand) {
        let mut used = BTreeSet::new();
        for (index, arg) in command.args.iter().enumerate() {
            let at = format!("{path}.args[{index}]");
            let template = match Template::parse(arg) {
                Ok(template) => template,
                Err(why) => {
                    self.fail(&at, why);
                    continue;
                }
            };
            for name in template.params() {
                let why =
                    format_args!("has the placeholder {{{name}}}, but there is no params.{name}: add it");
                self.that(command.params.contains_key(name), &at, why);
                used.insert(name.to_owned());
            }
        }
        for name in command.params.keys() {
            self.that(
                used.contains(name),
                &key(&format!("{path}.params"), name),
                format_args!("is used by no argument: write {{{name}}} into args, or remove it"),
            );
        }
    }

    fn param(&mut self, path: &str, param: &ExecParam) {
        match param {
            ExecParam::Text { max_bytes, .. } => {
                if let Some(bytes) = max_bytes {
                    self.within(&format!("{path}.max_bytes"), *bytes, 1..=65_536);
                }
            }
            ExecParam::Integer { min, max } => {
                let ordered = min.zip(*max).is_none_or(|(min, max)| min <= max);
                self.that(ordered, path, "allows no number: min is above max");
            }
            ExecParam::Choice { values } => self.that(!values.is_empty(), path, "allows no word: add values"),
            ExecParam::Path { root } => {
                self.that(root.is_absolute(), &format!("{path}.root"), "must be an absolute path");
            }
        }
    }
}

/// A duration, as it is written in settings.
#[derive(PartialEq, PartialOrd)]
struct Span(Duration);

impl Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = jiff::fmt::friendly::SpanPrinter::new().unsigned_duration_to_string(&self.0);
        f.write_str(&text)
    }
}

/// `path.name`, as a key of the file: quoted where it must be.
pub(crate) fn key(path: &str, name: &str) -> String {
    let bare = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    if bare { format!("{path}.{name}") } else { format!("{path}.{name:?}") }
}

fn is_origin(text: &str) -> bool {
    Url::parse(text).is_ok_and(|url| {
        matches!(url.scheme(), "http" | "https") && url.origin().ascii_serialization() == text
    })
}

#[cfg(test)]
#[path = "validate_tests.rs"]
mod tests;
