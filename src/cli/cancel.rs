use clap::Args;

use super::{Error, Shell};
use crate::proto::CancelJobRequest;

const EXAMPLES: &str = "\
Examples:
  jobwire cancel health-1 --reason 'no longer needed'
  jobwire cancel a b c";

/// Cancel jobs: no new attempt starts; one that runs is told to stop
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Cancel {
    #[arg(required = true)]
    job_ids: Vec<String>,
    /// Kept with the job
    #[arg(long, default_value = "", hide_default_value = true)]
    reason: String,
    /// Only if the job has not changed since
    #[arg(long, default_value = "", hide_default_value = true)]
    etag: String,
}

impl Cancel {
    pub(super) async fn run(self, shell: &Shell) -> Result<u8, Error> {
        let client = shell.connect().await?;
        let cancel = async |job_id| {
            let request = CancelJobRequest { job_id, reason: self.reason.clone(), etag: self.etag.clone() };
            shell.print_job(&client.cancel(request).await?)
        };
        shell.each(self.job_ids, cancel).await
    }
}
