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
    shell::{Format, say, verdict},
    spec::SpecArgs,
    table,
    values::duration,
};
use crate::{
    client::Client,
    proto::{Job, Payload},
};

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
                    say(format_args!("job {job_id} goes on: `jobwire get {job_id} --wait 1h` waits for it"));
                    Ok(TIMED_OUT)
                }
                Err(error) => {
                    say(format_args!("job {job_id} was accepted: `jobwire get {job_id}` shows it"));
                    Err(error)
                }
            },
            _ = signal::ctrl_c() => {
                say(format_args!("\njob {job_id} goes on: `jobwire cancel {job_id}` ends it"));
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
    let printed = match shell.format() {
        Format::Json => shell.print(job),
        Format::Table => show_output(shell, job),
    };
    verdict(outcome::exit_code(job), printed)
}

/// The output alone on stdout; why the job failed on stderr.
fn show_output(shell: &Shell, job: &Job) -> Result<(), Error> {
    let printed = job.output.as_ref().map_or(Ok(()), |output| print_output(shell, output));
    if let Some(error) = &job.error {
        say(format_args!("job {} {}: {}", job.job_id, table::state(job.state), table::error(error)));
    }
    printed
}

fn print_output(shell: &Shell, output: &Payload) -> Result<(), Error> {
    let bytes = table::raw_body(output);
    shell.bytes(&bytes)?;
    if shell.is_terminal() && !bytes.ends_with(b"\n") {
        shell.bytes(b"\n")?;
    }
    Ok(())
}
