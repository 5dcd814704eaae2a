use clap::Args;
use prost_types::Duration;

use super::{Error, Shell, shell::Format, spec::SpecArgs, table, values::proto_duration};
use crate::proto::SubmitRequest;

const EXAMPLES: &str = "\
Examples:
  jobwire submit echo --json '{\"hello\":\"world\"}'
  jobwire submit http --json '{\"url\":\"https://example.org/\"}' --at '2030-01-01 08:00'
  jobwire submit exec --file job.json --queue night --priority -10 -l tenant=acme
  sort names | jobwire submit email.send --file - --content-type text/plain --unique-key daily
  jobwire submit echo --text hello --wait 10s";

/// Store a job; durable when this returns
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Submit {
    /// Hold the reply until the job has ended, or for this long; see `jobwire run` to wait for as long as it takes
    #[arg(long, value_name = "DURATION", value_parser = proto_duration)]
    wait: Option<Duration>,
    /// Check everything, store nothing
    #[arg(long)]
    validate_only: bool,
    #[command(flatten)]
    spec: SpecArgs,
}

impl Submit {
    pub(super) async fn run(self, shell: &Shell) -> Result<u8, Error> {
        let request =
            SubmitRequest { wait: self.wait, validate_only: self.validate_only, ..self.spec.into_request()? };
        let reply = shell.connect().await?.submit(request).await?;
        match (shell.format(), &reply.job) {
            (Format::Table, Some(job)) => shell.line(&table::job(job))?,
            _ => shell.print(&reply)?,
        }
        Ok(0)
    }
}
