use std::io;

use tonic::{Status, transport};

/// Why a measurement came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server could not be started.
    #[error("cannot start a server: {0}")]
    Start(String),
    /// There is no connection.
    #[error("cannot reach the server: {0}")]
    Connect(#[from] transport::Error),
    /// A call failed.
    #[error("a call failed: {:?}: {}", .0.code(), .0.message())]
    Call(#[from] Status),
    /// The files of the server could not be made, or read.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The server answered what it should not.
    #[error("unexpected: {0}")]
    Unexpected(String),
    /// The scenario needs a server of its own.
    #[error("{0} starts and stops its own server: leave --running out")]
    NeedsOwn(&'static str),
}
