use std::time::Duration;

use clap::{Args, ValueEnum};

use super::{Error, Shell, shell::Format, table, values::duration};
use crate::proto::{GetJobRequest, JobView};

const EXAMPLES: &str = "\
Examples:
  jobwire get health-1
  jobwire get health-1 --view full -o json
  jobwire get health-1 --wait 5m";

/// Show one job and its result
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Get {
    job_id: String,
    /// How much of it
    #[arg(long, value_enum, default_value_t, conflicts_with = "wait")]
    view: View,
    /// Wait until it has ended, or for this long
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    wait: Option<Duration>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum View {
    /// No payloads
    Basic,
    /// With the output
    #[default]
    Result,
    /// With the payload, the output and all attempts
    Full,
}

impl Get {
    pub(super) async fn run(self, shell: &Shell) -> Result<u8, Error> {
        let client = shell.connect().await?;
        if let Some(wait) = self.wait {
            let reply = client.result(&self.job_id, wait).await?;
            match (shell.format(), &reply.job) {
                (Format::Table, Some(job)) => shell.line(&table::job(job))?,
                _ => shell.print(&reply)?,
            }
            return Ok(0);
        }
        let view = match self.view {
            View::Basic => JobView::Basic,
            View::Result => JobView::Result,
            View::Full => JobView::Full,
        };
        let request = GetJobRequest { job_id: self.job_id, view: view.into(), ..GetJobRequest::default() };
        let job = client.get(request).await?;
        match shell.format() {
            Format::Table => shell.line(&table::job(&job))?,
            Format::Json => shell.print(&job)?,
        }
        Ok(0)
    }
}
