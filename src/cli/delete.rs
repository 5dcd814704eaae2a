use clap::Args;

use super::{Error, Shell};
use crate::proto::DeleteJobRequest;

const EXAMPLES: &str = "\
Examples:
  jobwire delete health-1
  jobwire delete a b c --allow-missing";

/// Remove jobs that have ended, and their results
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Delete {
    #[arg(required = true)]
    job_ids: Vec<String>,
    /// Only if the job has not changed since
    #[arg(long, default_value = "", hide_default_value = true)]
    etag: String,
    /// A job that is not there is no error
    #[arg(long)]
    allow_missing: bool,
}

impl Delete {
    pub(super) async fn run(self, shell: &Shell) -> Result<u8, Error> {
        let client = shell.connect().await?;
        let delete = async |job_id| {
            let request =
                DeleteJobRequest { job_id, etag: self.etag.clone(), allow_missing: self.allow_missing };
            Ok(client.delete(request).await?)
        };
        shell.each(self.job_ids, delete).await
    }
}
