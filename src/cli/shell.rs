//! What all commands share: the server, and the way to print.

use std::{
    fmt::Display,
    io::{self, IsTerminal as _, Write as _},
};

use clap::{Args, ValueEnum};

use super::{
    Error,
    json::{Named, compact, pretty},
    table,
};
use crate::{
    client::{self, Client},
    proto::Job,
};

#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Server and output")]
pub(super) struct Shell {
    /// Where the server is: http://HOST:PORT or HOST:PORT
    #[arg(
        long,
        global = true,
        env = "JOBWIRE_SERVER",
        value_name = "ADDRESS",
        default_value = "http://127.0.0.1:50051"
    )]
    server: String,
    /// How to print; by default a table on a terminal, JSON elsewhere
    #[arg(short, long, global = true, value_enum, value_name = "FORMAT")]
    output: Option<Format>,
}

/// How replies are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// Protobuf JSON; streams print one message in each line
    Json,
    /// For people
    Table,
}

/// Says it on stderr, if anybody listens: without a reader `eprintln!` would panic.
pub(super) fn say(text: impl Display) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// The exit code of a command that judges: what it found counts, also if it could not be printed.
pub(super) fn verdict(code: u8, printed: Result<(), Error>) -> Result<u8, Error> {
    match printed {
        Err(error) if code != 0 => {
            error.tell();
            Ok(code)
        }
        printed => printed.map(|()| code),
    }
}

impl Shell {
    pub(super) async fn connect(&self) -> Result<Client, Error> {
        Ok(Client::connect(&self.server).await?)
    }

    /// The server's address in full.
    pub(super) fn address(&self) -> Result<String, Error> {
        Ok(client::normalise(&self.server)?)
    }

    pub(super) fn format(&self) -> Format {
        self.output.unwrap_or(if self.is_terminal() { Format::Table } else { Format::Json })
    }

    /// What the person asked for, if anything.
    pub(super) fn asked_format(&self) -> Option<Format> {
        self.output
    }

    pub(super) fn is_terminal(&self) -> bool {
        io::stdout().is_terminal()
    }

    /// Prints a job that has just changed.
    pub(super) fn print_job(&self, job: &Job) -> Result<(), Error> {
        match self.format() {
            Format::Table => self.line(&format!("{} {}", table::plain(&job.job_id), table::state(job.state))),
            Format::Json => self.print_item(job),
        }
    }

    /// Does the same with each job, also after one of them failed or could not be printed. The exit code: 1 if any
    /// failed.
    pub(super) async fn each(
        &self,
        job_ids: Vec<String>,
        act: impl AsyncFn(String) -> Result<(), Error>,
    ) -> Result<u8, Error> {
        let (mut code, mut printed) = (0, Ok(()));
        for job_id in job_ids {
            match act(job_id.clone()).await {
                // The other jobs have a server as little as this one.
                Err(Error::Client(error)) if !error.is_unreachable() => {
                    say(format_args!("error: {job_id}: {error}"));
                    code = 1;
                }
                // Whoever reads what is done does not decide what is done.
                Err(error @ (Error::Write(_) | Error::Print(_))) => printed = Err(error),
                other => other?,
            }
        }
        verdict(code, printed)
    }

    /// Prints one message over several lines.
    pub(super) fn print<M: Named>(&self, message: &M) -> Result<(), Error> {
        self.line(&pretty(message)?)
    }

    /// Prints one message of a stream in one line.
    pub(super) fn print_item<M: Named>(&self, message: &M) -> Result<(), Error> {
        self.line(&compact(message)?)
    }

    /// Prints text and ends the line, at once also if stdout is a pipe.
    pub(super) fn line(&self, text: &str) -> Result<(), Error> {
        self.bytes(format!("{text}\n").as_bytes())
    }

    /// Prints bytes as they are.
    pub(super) fn bytes(&self, bytes: &[u8]) -> Result<(), Error> {
        let mut stdout = io::stdout().lock();
        stdout.write_all(bytes).and_then(|()| stdout.flush()).map_err(Error::Write)
    }
}
