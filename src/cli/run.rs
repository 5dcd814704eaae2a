use std::{
    io::{self, IsTerminal as _},
    time::Duration,
};

use clap::Args;
use indicatif::ProgressBar;
use tokio::signal;

use super::{
    Error, Shell,
    error::{INTERRUPTED, TIMED_OUT},
    outcome,
    shell::Format,
    spec::SpecArgs,
    table,
    values::duration,
};
use crate::{client::Client, proto::Job};

const EXAMPLES: &str = "\
Examples:
  jobwire run echo --json '{\"hello\":\"world\"}'
  jobwire run http --json '{\"url\":\"https://example.org/\"}' --timeout 5m -o json
  jobwire run exec --json '{\"command\":\"backup\"}' && echo saved

Exit codes: 0 succeeded, 1 failed, 3 cancelled, 4 expired, 124 not over within --timeout (the job goes on); an exec \
job that failed ends with the code of its process.";

/// Submit a job and wait for its outcome, which is the exit code
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Run {
    /// Wait no longer than this; by default as long as it takes
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    timeout: Option<Duration>,
    #[command(flatten)]
    spec: SpecArgs,
}

impl Run {
    pub(super) async fn run(self, shell: &Shell) -> Result<u8, Error> {
        let request = self.spec.into_request()?;
        let client = shell.connect().await?;
        let submitted = client.submit(request).await?.job.unwrap_or_default();
        let job_id = submitted.job_id;
        let wait = self.timeout.unwrap_or(Duration::MAX);
        tokio::select! {
            waited = wait_for(&client, &job_id, wait) => match waited {
                Ok(Some(job)) => show(shell, &job),
                Ok(None) => {
                    eprintln!("job {job_id} goes on: `jobwire get {job_id} --wait 1h` waits for it");
                    Ok(TIMED_OUT)
                }
                Err(error) => {
                    eprintln!("job {job_id} was accepted: `jobwire get {job_id}` shows it");
                    Err(error)
                }
            },
            _ = signal::ctrl_c() => {
                eprintln!("\njob {job_id} goes on: `jobwire cancel {job_id}` ends it");
                Ok(INTERRUPTED)
            }
        }
    }
}

/// The job when it has ended, None if the time is over first.
async fn wait_for(client: &Client, job_id: &str, wait: Duration) -> Result<Option<Job>, Error> {
    let spinner =
        io::stderr().is_terminal().then(|| ProgressBar::new_spinner().with_message(job_id.to_owned()));
    if let Some(spinner) = &spinner {
        spinner.enable_steady_tick(Duration::from_millis(100));
    }
    let reply = client.result(job_id, wait).await;
    if let Some(spinner) = spinner {
        spinner.finish_and_clear();
    }
    let reply = reply?;
    Ok(reply.job.filter(|_| reply.done))
}

fn show(shell: &Shell, job: &Job) -> Result<u8, Error> {
    if shell.format() == Format::Json {
        shell.print(job)?;
        return Ok(outcome::exit_code(job));
    }
    if let Some(output) = &job.output {
        let bytes = table::raw_body(output);
        shell.bytes(&bytes)?;
        if shell.is_terminal() && !bytes.ends_with(b"\n") {
            shell.bytes(b"\n")?;
        }
    }
    if let Some(error) = &job.error {
        eprintln!("job {} {}: {}", job.job_id, table::state(job.state), table::error(error));
    }
    Ok(outcome::exit_code(job))
}
