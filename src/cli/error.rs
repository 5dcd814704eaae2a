//! How a command fails: what, why and the way out on stderr, and an exit code.

use std::{io, process::ExitCode};

use super::{settings, shell::say};
use crate::{
    client,
    server::ServeError,
    store::{migrate::MigrateError, postgres, sqlite::MaintenanceError},
};

/// Wrong arguments or settings.
pub(super) const USAGE: u8 = 2;
/// No server answers (`EX_UNAVAILABLE`).
pub(super) const UNREACHABLE: u8 = 69;
/// The time that the command was given is over, as with `timeout(1)`.
pub(super) const TIMED_OUT: u8 = 124;
/// Ended by Ctrl-C.
pub(super) const INTERRUPTED: u8 = 130;

#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("{0}")]
    Usage(String),
    #[error("{0}")]
    Settings(#[from] settings::Error),
    #[error(transparent)]
    Client(#[from] client::Error),
    #[error(transparent)]
    Serve(#[from] ServeError),
    #[error(transparent)]
    Maintenance(#[from] MaintenanceError),
    #[error(transparent)]
    Postgres(#[from] postgres::OpenError),
    #[error(transparent)]
    Migrate(#[from] MigrateError),
    #[error(transparent)]
    Bench(#[from] crate::bench::Error),
    #[error("cannot read {what}: {source}")]
    Read { what: String, source: io::Error },
    #[error("cannot write to stdout: {0}")]
    Write(io::Error),
    #[error("cannot print the reply: {0}")]
    Print(String),
    #[error("cannot print the settings: {0}")]
    PrintSettings(#[from] toml::ser::Error),
    #[error("cannot start: {0}")]
    Start(io::Error),
}

impl Error {
    fn code(&self) -> u8 {
        match self {
            Self::Usage(_) | Self::Settings(_) | Self::Client(client::Error::Address { .. }) => USAGE,
            Self::Client(error) if error.is_unreachable() => UNREACHABLE,
            _ if self.is_of_a_closed_pipe() => 0,
            _ => 1,
        }
    }

    /// Whoever read our output has seen enough, as in `jobwire list | head`.
    fn is_of_a_closed_pipe(&self) -> bool {
        matches!(self, Self::Write(source) if source.kind() == io::ErrorKind::BrokenPipe)
    }

    /// What to do about it, where the message does not say.
    fn way_out(&self) -> Option<&'static str> {
        let error = match self {
            Self::Client(error) => error,
            Self::Serve(ServeError::Listen { .. }) => {
                return Some("choose another address with --listen; port 0 takes a free one");
            }
            _ => return None,
        };
        match error.reason() {
            None if error.is_unreachable() => {
                Some("start one with `jobwire serve`, or say where it is with --server or JOBWIRE_SERVER")
            }
            Some("CURSOR_EXPIRED" | "LOG_REPLACED") => {
                Some("see what there is with `jobwire list -o json`, then watch --after its cursor")
            }
            _ => None,
        }
    }

    /// Tells the person.
    pub(super) fn tell(&self) {
        if self.is_of_a_closed_pipe() {
            return;
        }
        say(format_args!("error: {self}"));
        if let Some(way_out) = self.way_out() {
            say(format_args!("  {way_out}"));
        }
    }

    /// Tells the person, and makes the exit code.
    pub(super) fn report(&self) -> ExitCode {
        self.tell();
        ExitCode::from(self.code())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unreachable() -> Error {
        client::Error::Unreachable { address: "http://127.0.0.1:1".into(), why: "refused".into() }.into()
    }

    #[test]
    fn codes_tell_apart_usage_no_server_and_the_rest() {
        assert_eq!(Error::Usage(String::new()).code(), 2);
        assert_eq!(unreachable().code(), 69);
        assert_eq!(Error::Client(tonic::Status::unavailable("gone").into()).code(), 69);
        assert_eq!(Error::Client(tonic::Status::not_found("no").into()).code(), 1);
    }

    #[test]
    fn a_reader_that_has_seen_enough_is_no_failure() {
        assert_eq!(Error::Write(io::ErrorKind::BrokenPipe.into()).code(), 0);
        assert_eq!(Error::Write(io::ErrorKind::StorageFull.into()).code(), 1);
    }

    #[test]
    fn no_server_has_a_way_out() {
        assert_eq!(unreachable().to_string(), "no jobwire server at http://127.0.0.1:1: refused");
        assert!(unreachable().way_out().unwrap().contains("jobwire serve"));
    }
}
