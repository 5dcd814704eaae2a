//! jobwire against its limits: an empty tonic server, and SQLite or PostgreSQL without anything around it.
//!
//! ```sh
//! cargo bench --bench limits                  # all rows
//! cargo bench --bench limits -- get wait      # some
//! cargo bench --bench limits -- postgres --store postgres://…   # a database to try it in
//! ```
//!
//! A limit and what is held against it are measured in turn, several rounds; the ratio quoted is the median of the
//! rounds' ratios, so that a machine that slows down meanwhile slows both.

mod empty;
mod postgres;
mod sqlite;

use std::{path::Path, time::Duration};

use clap::{Parser, ValueEnum};
use jobwire::bench::{self, Error, Load, Report, Scenario, Target};

use self::empty::Sort;

/// The program that is measured: the one that cargo has just built.
const JOBWIRE: &str = env!("CARGO_BIN_EXE_jobwire");

#[derive(Debug, Parser)]
struct Options {
    /// Rows of the table; all but the backlog if none is named
    rows: Vec<Row>,
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Seconds of each measurement
    #[arg(long, default_value_t = 3)]
    seconds: u64,
    #[arg(long, default_value_t = 5_000_000)]
    backlog: u64,
    /// The PostgreSQL database that row `postgres` needs; its schema jobwire_bench is emptied
    #[arg(long, required_if_eq("rows", "postgres"))]
    store: Option<String>,
    /// Be a server: what this program starts to measure
    #[arg(long, hide = true)]
    serve: Option<empty::Sort>,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Row {
    Submit,
    Lifecycle,
    StreamLifecycle,
    Get,
    Wait,
    FanOut,
    Workers,
    Start,
    IdleWatchers,
    Backlog,
    Postgres,
}

const USUAL: [Row; 9] = [
    Row::Submit,
    Row::Lifecycle,
    Row::StreamLifecycle,
    Row::Get,
    Row::Wait,
    Row::FanOut,
    Row::Workers,
    Row::Start,
    Row::IdleWatchers,
];

#[tokio::main]
async fn main() -> Result<(), Error> {
    let options = Options::parse();
    if let Some(sort) = options.serve {
        return empty::serve(sort).await;
    }
    let load =
        Load { duration: Duration::from_secs(options.seconds), backlog: options.backlog, ..Load::default() };
    let bench = Bench { rounds: options.rounds, load, store: options.store };
    println!("| what | measured | against | limit | ratio | wanted |");
    println!("|---|---|---|---|---|---|");
    let rows = if options.rows.is_empty() { &USUAL[..] } else { &options.rows };
    for &row in rows {
        bench.row(row).await?;
    }
    Ok(())
}

struct Bench {
    rounds: usize,
    load: Load,
    store: Option<String>,
}

/// A limit and what is held against it, in one unit.
struct Pair {
    limit: f64,
    ours: f64,
}

impl Bench {
    async fn row(&self, row: Row) -> Result<(), Error> {
        let load = &self.load;
        match row {
            Row::Submit => {
                let what = "unary Submit, 64 callers";
                let pairs = self.rounds(async || self.of_echo(Scenario::Submit).await).await?;
                rate(what, "empty unary echo", &pairs, 0.60);
                self.beside_bare_servers(what, Scenario::Submit).await?;
            }
            Row::Lifecycle => {
                let pairs = self.rounds(async || self.of_echo(Scenario::Lifecycle).await).await?;
                rate("lifecycle, unary Submit, one watcher", "empty unary echo", &pairs, 0.35);
            }
            Row::Get => {
                let pairs = self.rounds(async || self.of_echo(Scenario::Get).await).await?;
                rate("GetResult of a final job", "empty unary echo", &pairs, 0.80);
            }
            Row::StreamLifecycle => {
                let ours = async || per_second(&self.ours(Scenario::StreamLifecycle).await?);
                let pairs = self
                    .rounds(async || {
                        Ok(Pair { limit: sqlite::lifecycles(load.duration)?, ours: ours().await? })
                    })
                    .await?;
                let what = "lifecycle, StreamSubmit, one watcher";
                rate(what, "bare SQLite loop", &pairs, 0.40);
                self.beside_bare_servers(what, Scenario::StreamLifecycle).await?;
            }
            Row::Wait => self.wait().await?,
            Row::FanOut => self.fan_out().await?,
            Row::Workers => {
                let pairs = self.rounds(async || self.of_echo(Scenario::Workers).await).await?;
                let what = format!("lifecycle by {} workers that connect", load.workers);
                rate(&what, "empty unary echo", &pairs, 0.30);
            }
            Row::Start => self.start().await?,
            Row::IdleWatchers => {
                let report = self.ours(Scenario::IdleWatchers).await?;
                let each = report.more.get("bytes_each").copied().unwrap_or(f64::NAN) / 1024.0;
                println!("| {} | {each:.1} KiB each | | | | at most 64 KiB |", report.name);
            }
            Row::Postgres => self.postgres(self.store.as_deref().unwrap_or_default()).await?,
            Row::Backlog => {
                let mut target = Target::start(Path::new(JOBWIRE), None).await?;
                for report in bench::run(Scenario::Backlog, &mut target, load).await? {
                    println!(
                        "| {} | {} | | | | 0.7 of empty, 256 MiB, 2 s |",
                        report.name,
                        in_words(&report)
                    );
                }
            }
        }
        Ok(())
    }

    /// The store of many replicas, on a database that other programs do not use meanwhile.
    async fn postgres(&self, url: &str) -> Result<(), Error> {
        for (loops, name) in [(1, "bare PostgreSQL loop"), (2, "two of them")] {
            let pairs = self
                .rounds(async || {
                    let limit = postgres::lifecycles(url, loops, self.load.duration).await?;
                    let mut target = Target::start_on(Path::new(JOBWIRE), url).await?;
                    let reports = bench::run(Scenario::StreamLifecycle, &mut target, &self.load).await?;
                    Ok(Pair { limit, ours: per_second(&first(reports)?)? })
                })
                .await?;
            rate("lifecycle, StreamSubmit, on PostgreSQL", name, &pairs, 0.50);
        }
        Ok(())
    }

    /// Both sides in turn.
    async fn rounds(&self, round: impl AsyncFn() -> Result<Pair, Error>) -> Result<Vec<Pair>, Error> {
        let mut pairs = Vec::with_capacity(self.rounds);
        for _ in 0..self.rounds {
            pairs.push(round().await?);
        }
        Ok(pairs)
    }

    /// A scenario on a fresh server of default settings.
    async fn ours(&self, scenario: Scenario) -> Result<Report, Error> {
        let mut target = Target::start(Path::new(JOBWIRE), None).await?;
        first(bench::run(scenario, &mut target, &self.load).await?)
    }

    async fn of_echo(&self, scenario: Scenario) -> Result<Pair, Error> {
        let limit = empty::calls(&self.load, self.load.callers).await?.count as f64
            / self.load.duration.as_secs_f64();
        Ok(Pair { limit, ours: per_second(&self.ours(scenario).await?)? })
    }

    /// Servers without rules, workers and a feed, through the same calls: how much of a limit those are in reach of.
    async fn beside_bare_servers(&self, what: &str, scenario: Scenario) -> Result<(), Error> {
        for (sort, against) in [
            (Sort::Empty, "the same calls of an empty server"),
            (Sort::Sqlite, "of one that only writes with SQLite"),
        ] {
            let round = async || {
                let limit = per_second(&empty::scenario(scenario, &self.load, sort).await?)?;
                Ok(Pair { limit, ours: per_second(&self.ours(scenario).await?)? })
            };
            rate(what, against, &self.rounds(round).await?, None);
        }
        Ok(())
    }

    /// Submit with `wait`, against an empty call and one commit.
    async fn wait(&self) -> Result<(), Error> {
        let pairs = self
            .rounds(async || {
                let limit = self.empty_call().await? + sqlite::commit_micros()?;
                Ok(Pair { limit, ours: self.half(Scenario::Latency).await? })
            })
            .await?;
        let (limit, ours, ratio) = medians(&pairs);
        println!(
            "| submit with `wait` to result, p50 | {ours:.0} µs | empty echo p50 + one commit | {limit:.0} µs | \
             {ratio:.2} | at most 3 |"
        );
        Ok(())
    }

    /// From Submit until a worker has the lease, against three empty calls and one commit.
    async fn start(&self) -> Result<(), Error> {
        let pairs = self
            .rounds(async || {
                let limit = 3.0 * self.empty_call().await? + sqlite::commit_micros()?;
                Ok(Pair { limit, ours: self.half(Scenario::Start).await? })
            })
            .await?;
        let (limit, ours, ratio) = medians(&pairs);
        println!(
            "| submit to a worker's lease, p50 | {ours:.0} µs | three empty echo p50 + one commit | {limit:.0} µs | \
             {ratio:.2} | at most 1 |"
        );
        Ok(())
    }

    /// Half of the empty calls of one caller are faster, in microseconds.
    async fn empty_call(&self) -> Result<f64, Error> {
        Ok(empty::calls(&self.load, 1).await?.times.value_at_quantile(0.5) as f64)
    }

    /// Half of a scenario's calls are faster, in microseconds.
    async fn half(&self, scenario: Scenario) -> Result<f64, Error> {
        let latency = self.ours(scenario).await?.latency;
        Ok(latency.ok_or_else(|| Error::Unexpected("nothing was measured".into()))?.p50 as f64)
    }

    /// Watchers against streams of empty messages, and of messages as long as an outcome.
    async fn fan_out(&self) -> Result<(), Error> {
        for (length, name) in [(0, "empty server streams"), (empty::OUTCOME, "streams of messages as long")] {
            let pairs = self
                .rounds(async || {
                    let limit = empty::streamed(&self.load, length).await?;
                    Ok(Pair { limit, ours: per_second(&self.ours(Scenario::FanOut).await?)? })
                })
                .await?;
            rate("1,000 watchers of everything, messages", name, &pairs, 0.40);
        }
        Ok(())
    }
}

fn first(reports: Vec<Report>) -> Result<Report, Error> {
    reports.into_iter().next().ok_or_else(|| Error::Unexpected("nothing was measured".into()))
}

fn per_second(report: &Report) -> Result<f64, Error> {
    report.per_second.ok_or_else(|| Error::Unexpected("a report without a rate".into()))
}

fn rate(what: &str, against: &str, pairs: &[Pair], wanted: impl Into<Option<f64>>) {
    let (limit, ours, ratio) = medians(pairs);
    let wanted = wanted.into().map(|wanted| format!("{wanted:.2}")).unwrap_or_default();
    println!("| {what} | {ours:.0}/s | {against} | {limit:.0}/s | {ratio:.2} | {wanted} |");
}

fn in_words(report: &Report) -> String {
    let mut words = format!("{:.2} s", report.seconds);
    if let Some(rate) = report.per_second {
        words += &format!(", {rate:.0}/s");
    }
    if let Some(memory) = report.server_memory {
        words += &format!(", {} MiB", memory >> 20);
    }
    if let Some(ratio) = report.more.get("of_empty") {
        words += &format!(", {ratio:.2} of empty");
    }
    words
}

/// Of the limits, of ours, and of the ratios.
fn medians(pairs: &[Pair]) -> (f64, f64, f64) {
    let of = |value: fn(&Pair) -> f64| {
        let mut values: Vec<f64> = pairs.iter().map(value).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
    };
    (of(|pair| pair.limit), of(|pair| pair.ours), of(|pair| pair.ours / pair.limit))
}
