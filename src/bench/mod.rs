//! Load for a server, and what comes of it: the scenarios of `jobwire bench`.
//!
//! Each scenario drives one server over real connections with the generated client and gives a [`Report`]. Callers are
//! closed loops: each has one call at a time.

mod backlog;
mod error;
mod get;
mod latency;
mod lifecycle;
pub mod load;
pub mod raw;
mod report;
mod short;
mod submit;
mod target;
mod watchers;
mod workers;
mod workload;

use std::time::Duration;

use clap::ValueEnum;

pub use self::{
    error::Error,
    report::{Latency, Report},
    target::{Target, empty_schema},
};

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Scenario {
    /// Unary Submit; nobody runs the jobs
    Submit,
    /// StreamSubmit; nobody runs the jobs
    StreamSubmit,
    /// Unary Submit, run by echo, seen by one watcher
    Lifecycle,
    /// The same with StreamSubmit
    StreamLifecycle,
    /// The same with BatchSubmit
    BatchLifecycle,
    /// One caller: Submit with `wait`, to the result
    Latency,
    /// GetResult of final jobs
    Get,
    /// Many watchers, each of which sees every outcome
    FanOut,
    /// Watchers that wait; the server's memory for each
    IdleWatchers,
    /// StreamSubmit, run by workers that connect, seen by one watcher
    Workers,
    /// One caller, one worker: Submit to the lease
    Start,
    /// Lifecycle beside many waiting jobs, and a restart with them
    Backlog,
}

/// How large the load is.
#[derive(Clone, Debug)]
pub struct Load {
    /// Concurrent callers of unary scenarios, at least 1.
    pub callers: usize,
    /// HTTP/2 connections that callers share, at least 1.
    pub connections: usize,
    /// How long each scenario is measured, after a second of warming up.
    pub duration: Duration,
    /// Jobs on their way at most in lifecycles, from before their submission until they are watched; at least 1.
    pub outstanding: usize,
    /// Jobs of each BatchSubmit, at least 1; at most `outstanding` are sent.
    pub batch: u32,
    /// Bytes of each payload, at least 8.
    pub payload: usize,
    /// Watchers of `fan-out`, at least 1.
    pub watchers: usize,
    /// Watchers of `idle-watchers`, at least 1.
    pub idle_watchers: usize,
    /// Workers of `workers`, each on a connection of its own; at least 1.
    pub workers: usize,
    /// Jobs that each of them holds at most, at least 1.
    pub window: u16,
    /// Waiting jobs of `backlog`.
    pub backlog: u64,
}

impl Default for Load {
    fn default() -> Self {
        Self {
            callers: 64,
            connections: 4,
            duration: Duration::from_secs(5),
            outstanding: 1024,
            batch: 100,
            payload: 100,
            watchers: 1000,
            idle_watchers: 10_000,
            workers: 4,
            window: 256,
            backlog: 1_000_000,
        }
    }
}

/// Runs one scenario.
///
/// # Errors
/// When a call fails: a measurement with failed calls says nothing.
pub async fn run(scenario: Scenario, target: &mut Target, load: &Load) -> Result<Vec<Report>, Error> {
    let report = match scenario {
        Scenario::Submit => submit::unary(target, load).await?,
        Scenario::StreamSubmit => submit::stream(target, load).await?,
        Scenario::Lifecycle => lifecycle::unary(target, load).await?,
        Scenario::StreamLifecycle => lifecycle::stream(target, load).await?,
        Scenario::BatchLifecycle => lifecycle::batch(target, load).await?,
        Scenario::Latency => latency::run(target, load).await?,
        Scenario::Get => get::run(target, load).await?,
        Scenario::FanOut => watchers::fan_out(target, load).await?,
        Scenario::IdleWatchers => watchers::idle(target, load).await?,
        Scenario::Workers => workers::run(target, load).await?,
        Scenario::Start => workers::start(target, load).await?,
        Scenario::Backlog => return backlog::run(target, load).await,
    };
    Ok(vec![report])
}
