//! Where log lines go: to stderr, always.

use std::io::{self, IsTerminal as _};

use clap::ValueEnum;
use tracing_subscriber::{EnvFilter, fmt};

use super::Error;

/// Overrides which lines are written, such as `debug` or `jobwire=debug,h2=warn`.
const VARIABLE: &str = "JOBWIRE_LOG";

/// A line that cannot be written, because its reader has gone or a disk is full, is lost: to say so on the same stderr would
/// panic whoever wrote it.
const LOG_INTERNAL_ERRORS: bool = false;

/// How a log line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum LogFormat {
    /// For people
    #[default]
    Text,
    /// One JSON object in each line
    Json,
}

/// The logs of a server.
pub(super) fn of_a_server(format: LogFormat) -> Result<(), Error> {
    let logs =
        fmt().with_env_filter(filter("info")?).with_writer(io::stderr).with_ansi(io::stderr().is_terminal());
    let logs = logs.log_internal_errors(LOG_INTERNAL_ERRORS);
    match format {
        LogFormat::Text => logs.init(),
        LogFormat::Json => logs.json().init(),
    }
    Ok(())
}

/// Only what a person at the prompt needs to know.
pub(super) fn of_a_command() -> Result<(), Error> {
    let logs =
        fmt().with_env_filter(filter("warn")?).with_writer(io::stderr).with_ansi(io::stderr().is_terminal());
    let logs = logs.log_internal_errors(LOG_INTERNAL_ERRORS);
    logs.without_time().with_target(false).init();
    Ok(())
}

fn filter(default: &str) -> Result<EnvFilter, Error> {
    let text = std::env::var(VARIABLE).unwrap_or_else(|_| default.to_owned());
    EnvFilter::builder().parse(&text).map_err(|error| {
        Error::Usage(format!("{VARIABLE}=`{text}` is no log filter: {error}; write a level such as `debug`"))
    })
}
