use clap::Args;
use prost_types::Duration;

use super::{Error, Shell, values::proto_duration};
use crate::proto::RetryJobRequest;

const EXAMPLES: &str = "\
Examples:
  jobwire retry health-1
  jobwire retry a b c --delay 5m";

/// Run jobs again that failed, were cancelled or expired; end the pause of one that backs off
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Retry {
    #[arg(required = true)]
    job_ids: Vec<String>,
    /// Start after this long
    #[arg(long, value_name = "DURATION", value_parser = proto_duration)]
    delay: Option<Duration>,
    /// Only if the job has not changed since; makes it harmless to run this command twice
    #[arg(long, default_value = "", hide_default_value = true)]
    etag: String,
}

impl Retry {
    pub(super) async fn run(self, shell: &Shell) -> Result<u8, Error> {
        let client = shell.connect().await?;
        let retry = async |job_id| {
            let request = RetryJobRequest { job_id, delay: self.delay, etag: self.etag.clone() };
            shell.print_job(&client.retry(request).await?)
        };
        shell.each(self.job_ids, retry).await
    }
}
