//! The command line. One file for each subcommand; what they do is in the rest of the crate.

mod backup;
mod bench;
mod cancel;
mod completions;
mod config;
mod delete;
mod error;
mod filter;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod get;
mod info;
mod json;
mod list;
mod logs;
mod migrate;
mod new_log;
mod outcome;
mod payload;
mod progress;
mod retry;
mod run;
mod serve;
mod settings;
mod shell;
mod spec;
mod submit;
mod table;
mod values;
mod verify;
mod watch;

#[cfg(any(test, fuzzing))]
pub(crate) use self::settings::fuzz::TARGETS as SETTINGS_TARGETS;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use self::{error::Error, shell::Shell};

const EXAMPLES: &str = "\
Examples:
  jobwire serve                                     start a server on this machine
  jobwire run echo --json '{\"hello\":\"world\"}'       submit a job and wait for its result
  jobwire submit http --json '{\"url\":\"https://example.org/\"}' --delay 30s
  jobwire watch --queue mail --since 1h             follow what ends, from an hour ago on
  jobwire list --state failed

Exit codes: 0 done, 1 failed, 2 wrong usage, 69 no server; `run` ends with the outcome of its job.";

/// Durable jobs over gRPC: submit them, run them, get their results, watch them
#[derive(Debug, Parser)]
#[command(name = "jobwire", version, after_help = EXAMPLES, max_term_width = 110)]
struct Cli {
    #[command(flatten)]
    shell: Shell,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Serve(serve::Serve),
    Submit(submit::Submit),
    Run(run::Run),
    Get(get::Get),
    Watch(watch::Watch),
    List(list::List),
    Cancel(cancel::Cancel),
    Retry(retry::Retry),
    Delete(delete::Delete),
    Info(info::Info),
    Backup(backup::Backup),
    Verify(verify::Verify),
    Migrate(migrate::Migrate),
    NewLog(new_log::NewLog),
    Bench(bench::Bench),
    #[command(subcommand)]
    Config(config::Config),
    Completions(completions::Completions),
}

/// Runs the command that the arguments of the process ask for.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(source) => return Error::Start(source).report(),
    };
    let ended = runtime.block_on(cli.command.run(&cli.shell));
    // Threads of it may still wait for what does not answer: the look-up of a name, say.
    runtime.shutdown_background();
    match ended {
        Ok(code) => ExitCode::from(code),
        Err(error) => error.report(),
    }
}

impl Command {
    async fn run(self, shell: &Shell) -> Result<u8, Error> {
        if !matches!(self, Self::Serve(_)) {
            logs::of_a_command()?;
        }
        match self {
            Self::Serve(command) => command.run(shell).await,
            Self::Submit(command) => command.run(shell).await,
            Self::Run(command) => command.run(shell).await,
            Self::Get(command) => command.run(shell).await,
            Self::Watch(command) => command.run(shell).await,
            Self::List(command) => command.run(shell).await,
            Self::Cancel(command) => command.run(shell).await,
            Self::Retry(command) => command.run(shell).await,
            Self::Delete(command) => command.run(shell).await,
            Self::Info(command) => command.run(shell).await,
            Self::Backup(command) => command.run(shell),
            Self::Verify(command) => command.run(shell),
            Self::Migrate(command) => command.run(shell).await,
            Self::NewLog(command) => command.run(shell).await,
            Self::Bench(command) => command.run(shell).await,
            Self::Config(command) => command.run(shell),
            Self::Completions(command) => command.run(shell),
        }
    }
}

#[cfg(test)]
mod tests;
