//! A job that fails, and may be tried again, until it is mended.

use jobwire::proto::{JobSpec, RetryPolicy, SubmitRequest};
use tempfile::TempDir;

use crate::support::{seconds, spec};

pub struct Flaky(TempDir);

impl Flaky {
    pub fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary directory"))
    }

    /// Lets a server run it.
    pub fn config(&self) -> String {
        let mended = self.0.path().join("mended");
        format!(
            "[exec.commands.flaky]\nprogram = \"/bin/ls\"\nargs = [{mended:?}]\nretry_exit_codes = [1, 2]\n\
             concurrency = 100\n"
        )
    }

    /// A job that backs off for up to so many seconds.
    pub fn job(&self, backoff: f64) -> SubmitRequest {
        let backoff = seconds(backoff);
        let retry = RetryPolicy {
            max_attempts: 3,
            initial_backoff: Some(backoff),
            max_backoff: Some(backoff),
            ..Default::default()
        };
        let spec = JobSpec { retry: Some(retry), ..spec("exec", r#"{"command":"flaky"}"#) };
        SubmitRequest { spec: Some(spec), ..Default::default() }
    }

    /// From now on it succeeds.
    pub fn mend(&self) {
        std::fs::write(self.0.path().join("mended"), "").expect("a file");
    }
}
