//! The `exec` kind: runs a command that the configuration names. No shell, no word of a job becomes a program, and no
//! process outlives its attempt.

mod capture;
mod command;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod param;
mod process;
mod template;
#[cfg(test)]
mod tests;
mod work_dir;

use std::{
    collections::BTreeMap,
    io::{self, ErrorKind},
    os::unix::process::ExitStatusExt as _,
    time::{Duration, Instant},
};

use serde::Deserialize;
use serde_json::{Map, Value};

pub use self::template::Template;
use self::{
    capture::Capture,
    command::Command,
    process::{Ended, run},
    work_dir::WorkDir,
};
use super::{
    data::{Shown, bytes_of, show},
    typed::invalid,
};
use crate::{
    config,
    job::{Cause, Error, JobError},
    worker::Context,
};

/// Bytes of JSON that a failure keeps of what the process wrote.
const DETAILS_MAX: usize = 16 << 10;

/// What a job asks for.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Input {
    /// A name under `exec.commands` of the configuration.
    command: String,
    /// A value for each parameter of the command.
    #[serde(default)]
    params: BTreeMap<String, Value>,
    /// What the process reads; nothing by default. At most one of the two can be given.
    stdin: Option<String>,
    stdin_base64: Option<String>,
}

/// Whether the command called `name` can be run as it is configured. An error names the key of the setting that is wrong.
pub fn check_command(name: &str, command: &config::ExecCommand) -> Result<(), Error> {
    Command::check(name, command).map(drop)
}

/// The commands that jobs may run.
#[derive(Debug)]
pub struct Exec {
    commands: BTreeMap<String, Command>,
    /// Bytes of JSON that a success may have.
    max_output: usize,
}

impl Exec {
    /// Checks every command. An error names the key of the setting that is wrong. What a success tells is cut to
    /// `max_output` bytes.
    pub fn new(settings: &config::Exec, max_output: usize) -> Result<Self, Error> {
        let check =
            |(name, command): (&String, _)| Ok::<_, Error>((name.clone(), Command::check(name, command)?));
        Ok(Self { commands: settings.commands.iter().map(check).collect::<Result<_, _>>()?, max_output })
    }

    /// Runs one process from its start to its end.
    pub async fn run(&self, context: Context, input: Input) -> Result<Value, JobError> {
        let command = self.commands.get(&input.command).ok_or_else(|| {
            let known: Vec<_> = self.commands.keys().map(String::as_str).collect();
            invalid(format!(
                "command: {:?} is not configured; there are: {}",
                input.command,
                known.join(", ")
            ))
        })?;
        let arguments = command.arguments(&input.params).await?;
        let stdin = bytes_of("stdin", input.stdin, input.stdin_base64)?.unwrap_or_default();
        let _permit = context.in_line(command.permits.clone().acquire_owned()).await?;

        // Goes after the process, which is dropped first if this future is.
        let dir = WorkDir::open(command.settings.dir.as_deref()).await.map_err(|error| {
            JobError::retryable(
                "exec.start",
                format!("no working directory can be made: {error}; is the disk full?"),
            )
        })?;
        let mut process = tokio::process::Command::new(command.program());
        process.args(arguments).env_clear().envs(&command.settings.env).current_dir(dir.path());

        let start = Instant::now();
        let limit = command.settings.max_output_bytes;
        let ended = run(process, stdin, limit, context.stopped()).await;
        let elapsed = start.elapsed();
        dir.close().await;
        match ended {
            Err(error) => Err(cannot_start(command, &error)),
            Ok(ended) if ended.stopped => Err(context.interrupted()),
            Ok(ended) => outcome(command, &ended, elapsed, self.max_output),
        }
    }
}

fn cannot_start(command: &Command, error: &io::Error) -> JobError {
    let program = command.program().display();
    let message = format!("{program} cannot be run: {error}; see its entry in the server's configuration");
    match error.kind() {
        ErrorKind::NotFound
        | ErrorKind::NotADirectory
        | ErrorKind::PermissionDenied
        | ErrorKind::ArgumentListTooLong
        | ErrorKind::InvalidInput => JobError::permanent("exec.start", message),
        _ => JobError::retryable("exec.start", message),
    }
}

fn outcome(
    command: &Command,
    ended: &Ended,
    elapsed: Duration,
    max_output: usize,
) -> Result<Value, JobError> {
    if ended.status.success() {
        return Ok(bounded(ended, elapsed, max_output));
    }
    let program = command.program().display();
    let said = String::from_utf8_lossy(&ended.stderr.bytes);
    let said = said.lines().find(|line| !line.trim().is_empty()).unwrap_or("it wrote nothing to stderr");
    let error = match (ended.status.code(), ended.status.signal()) {
        (Some(code), _) => JobError::new(
            Cause::Handler,
            &format!("exec.exit.{code}"),
            &format!("{program} exited with {code}: {said}"),
            command.settings.retry_exit_codes.contains(&code),
        ),
        (None, signal) => {
            let signal = signal.unwrap_or_default();
            let message = format!("{program} was killed by signal {signal}: {said}");
            JobError::new(Cause::Crash, &format!("exec.signal.{signal}"), &message, true)
        }
    };
    Err(error.with_details(&bounded(ended, elapsed, DETAILS_MAX)))
}

/// The report, with as much of stdout and stderr as there is room for in `max` bytes of JSON.
fn bounded(ended: &Ended, elapsed: Duration, max: usize) -> Value {
    let mut keep = max;
    loop {
        let report = report(ended, elapsed, keep);
        // Without both it is as short as it can be.
        if keep == 0 || report.to_string().len() <= max {
            return report;
        }
        keep /= 2;
    }
}

fn report(ended: &Ended, elapsed: Duration, keep: usize) -> Value {
    let mut report = Map::new();
    report.insert("exit_code".into(), ended.status.code().into());
    for (name, capture) in [("stdout", &ended.stdout), ("stderr", &ended.stderr)] {
        let Capture { bytes, truncated, .. } = capture.head(keep);
        match show(&bytes, truncated) {
            Shown::Text(text) => report.insert(name.into(), text.into()),
            Shown::Base64(base64) => report.insert(format!("{name}_base64"), base64.into()),
        };
        report.insert(format!("{name}_truncated"), truncated.into());
    }
    report.insert("elapsed_ms".into(), (elapsed.as_millis() as u64).into());
    Value::Object(report)
}
