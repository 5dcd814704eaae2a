use std::{
    io,
    path::{Path, PathBuf},
};

use tempfile::TempDir;
use tokio::task::spawn_blocking;

/// Where a process works.
pub enum WorkDir {
    Given(PathBuf),
    /// New and empty, removed afterwards.
    Scratch(TempDir),
}

impl WorkDir {
    /// The directory of the configuration, or a new one.
    pub async fn open(given: Option<&Path>) -> io::Result<Self> {
        match given {
            Some(dir) => Ok(Self::Given(dir.to_owned())),
            None => Ok(Self::Scratch(spawn_blocking(tempfile::tempdir).await??)),
        }
    }

    pub fn path(&self) -> &Path {
        match self {
            Self::Given(dir) => dir,
            Self::Scratch(dir) => dir.path(),
        }
    }

    /// Removes a new one, however much there is in it by now.
    pub async fn close(self) {
        let Self::Scratch(dir) = self else { return };
        let removed =
            spawn_blocking(|| dir.close()).await.map_err(io::Error::from).and_then(|removed| removed);
        if let Err(error) = removed {
            tracing::warn!(%error, "a working directory could not be removed");
        }
    }
}
