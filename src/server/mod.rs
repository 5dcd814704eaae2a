//! Placeholder until the server lands: only the function that `jobwire serve` calls.

use std::net::SocketAddr;

use crate::config::Config;

/// Why a server stopped that was not told to.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// There is no server yet.
    #[error("this build has no server")]
    Absent,
}

/// Serves until it is told to stop. Calls `ready` once, with the address that it listens on.
pub async fn run(_config: Config, _ready: impl FnOnce(SocketAddr)) -> Result<(), ServeError> {
    Err(ServeError::Absent)
}
