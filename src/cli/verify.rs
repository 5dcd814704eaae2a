use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::{
    Error, Shell,
    shell::{Format, verdict},
};
use crate::store::sqlite::{self, VerifyReport};

const EXAMPLES: &str = "\
Examples:
  jobwire verify jobwire-data
  jobwire verify /backups/monday

Reads everything and changes nothing; the server may be running. Exit code 1 if a problem was found: then serve a backup.";

/// Check a store or a backup: pages, checksums, states and counts
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Verify {
    /// The data directory
    dir: PathBuf,
}

impl Verify {
    pub(super) fn run(self, shell: &Shell) -> Result<u8, Error> {
        let report = sqlite::verify(&self.dir)?;
        verdict(u8::from(!report.problems.is_empty()), self.print(shell, &report))
    }

    fn print(&self, shell: &Shell, report: &VerifyReport) -> Result<(), Error> {
        match shell.format() {
            Format::Json => shell.line(
                &json!({
                    "jobs": report.jobs,
                    "unfinished": report.unfinished,
                    "outcomes": report.outcomes,
                    "problems": report.problems,
                })
                .to_string(),
            ),
            Format::Table => {
                for problem in &report.problems {
                    shell.line(problem)?;
                }
                let found = if report.problems.is_empty() { "sound" } else { "NOT sound" };
                shell.line(&format!(
                    "{}: {found}; {} jobs, {} of them unfinished, {} outcomes",
                    self.dir.display(),
                    report.jobs,
                    report.unfinished,
                    report.outcomes
                ))
            }
        }
    }
}
