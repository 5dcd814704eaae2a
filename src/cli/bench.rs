use std::{env, path::PathBuf, time::Duration};

use clap::{Args, builder::RangedU64ValueParser};

use super::{Error, Shell, shell::Format, values};
use crate::bench::{self, Load, Report, Scenario, Target};

const EXAMPLES: &str = "\
Examples:
  jobwire bench                                   every scenario but idle-watchers and backlog
  jobwire bench lifecycle latency -o json
  jobwire bench get --running --server jobs.example.org:50051
  jobwire bench backlog --backlog 5000000
  jobwire bench stream-lifecycle --store postgres://jobwire@db.example.org/jobwire

Each scenario starts a server of its own with default settings in an empty directory, unless --running says otherwise.";

/// What runs if nothing is named.
const USUAL: [Scenario; 9] = [
    Scenario::Submit,
    Scenario::StreamSubmit,
    Scenario::Lifecycle,
    Scenario::StreamLifecycle,
    Scenario::Latency,
    Scenario::Get,
    Scenario::FanOut,
    Scenario::Workers,
    Scenario::Start,
];

/// Measure a server
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Bench {
    /// What to measure
    #[arg(value_enum, value_name = "SCENARIO")]
    scenarios: Vec<Scenario>,
    /// Measure the server at --server, not one of our own; the jobs stay there
    #[arg(long)]
    running: bool,
    /// Where servers of our own put their data; by default the directory for temporary files
    #[arg(long, value_name = "DIR", conflicts_with = "running")]
    dir: Option<PathBuf>,
    /// Let servers of our own keep their jobs in this PostgreSQL database, in the schema jobwire_bench, emptied each time
    #[arg(long, value_name = "URL", conflicts_with_all = ["running", "dir"])]
    store: Option<String>,
    /// How long each scenario is measured
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = values::duration)]
    duration: Duration,
    /// Concurrent callers of unary calls
    #[arg(long, default_value_t = Load::default().callers, value_parser = at_least_one())]
    callers: usize,
    /// Connections that they share
    #[arg(long, default_value_t = Load::default().connections, value_parser = at_least_one())]
    connections: usize,
    /// Jobs on their way at most where their lives are measured
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..))]
    outstanding: u32,
    /// Jobs of each BatchSubmit
    #[arg(long, default_value_t = Load::default().batch, value_parser = clap::value_parser!(u32).range(1..))]
    batch: u32,
    /// Bytes of each payload
    #[arg(long, default_value_t = Load::default().payload)]
    payload: usize,
    /// Watchers of fan-out
    #[arg(long, default_value_t = Load::default().watchers, value_parser = at_least_one())]
    watchers: usize,
    /// Watchers of idle-watchers
    #[arg(long, default_value_t = Load::default().idle_watchers, value_parser = at_least_one())]
    idle_watchers: usize,
    /// Workers of workers
    #[arg(long, default_value_t = Load::default().workers, value_parser = at_least_one())]
    workers: usize,
    /// Jobs that each of them holds at most
    #[arg(long, default_value_t = Load::default().window, value_parser = clap::value_parser!(u16).range(1..))]
    window: u16,
    /// Waiting jobs of backlog
    #[arg(long, default_value_t = Load::default().backlog)]
    backlog: u64,
}

fn at_least_one() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..)
}

impl Bench {
    pub(super) async fn run(self, shell: &Shell) -> Result<u8, Error> {
        let scenarios = if self.scenarios.is_empty() { &USUAL[..] } else { &self.scenarios };
        let mut reports = Vec::new();
        for &scenario in scenarios {
            let mut target = self.target(shell).await?;
            let measured = bench::run(scenario, &mut target, &self.load()).await?;
            if shell.format() == Format::Table {
                measured.iter().try_for_each(|report| shell.line(&in_words(report)))?;
            }
            reports.extend(measured);
        }
        if shell.format() == Format::Json {
            let text =
                serde_json::to_string_pretty(&reports).map_err(|error| Error::Print(error.to_string()))?;
            shell.line(&text)?;
        }
        Ok(0)
    }

    async fn target(&self, shell: &Shell) -> Result<Target, Error> {
        if self.running {
            return Ok(Target::at(shell.address()?));
        }
        let program = env::current_exe().map_err(Error::Start)?;
        Ok(match &self.store {
            Some(url) => Target::start_on(&program, url).await?,
            None => Target::start(&program, self.dir.as_deref()).await?,
        })
    }

    fn load(&self) -> Load {
        Load {
            callers: self.callers,
            connections: self.connections,
            duration: self.duration,
            outstanding: self.outstanding as usize,
            batch: self.batch,
            payload: self.payload,
            watchers: self.watchers,
            idle_watchers: self.idle_watchers,
            workers: self.workers,
            window: self.window,
            backlog: self.backlog,
        }
    }
}

fn in_words(report: &Report) -> String {
    let Report { name, unit, count, seconds, .. } = report;
    let mut words = format!("{name}: {count} {unit} in {seconds:.2} s");
    if let Some(rate) = report.per_second {
        words += &format!(", {rate:.0}/s");
    }
    if let Some(times) = report.latency {
        let [p50, p99, p999, max] =
            [times.p50, times.p99, times.p999, times.max].map(|micros| micros as f64 / 1e3);
        words += &format!("; p50 {p50:.2} ms, p99 {p99:.2}, p99.9 {p999:.2}, max {max:.2}");
    }
    if let Some(memory) = report.server_memory {
        words += &format!("; server {:.1} MiB", memory as f64 / f64::from(1 << 20));
    }
    if let Some(micros) = report.server_cpu_micros {
        words += &format!(", {micros:.1} µs of processor for each");
    }
    for (name, value) in &report.more {
        words += &format!("; {} {value:.2}", name.replace('_', " "));
    }
    words
}
