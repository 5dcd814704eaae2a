use std::{env, path::PathBuf};

use clap::Args;
use serde_json::json;

use super::{
    Error, Shell,
    settings::{Settings, Sources},
    shell::Format,
};
use crate::store::sqlite;

const EXAMPLES: &str = "\
Examples:
  jobwire backup /backups/monday
  jobwire backup /backups/monday --data /var/lib/jobwire
  jobwire verify /backups/monday
  jobwire serve --data /backups/monday             a restored store begins a new log: old cursors are refused

The server may be running: the copy is of one moment. Copying the files by other means is not safe.";

/// Copy the store into a new directory, while it is served or not
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Backup {
    /// The directory to make; `serve --data` can use it
    dir: PathBuf,
    #[command(flatten)]
    sources: Sources,
}

impl Backup {
    pub(super) fn run(self, shell: &Shell) -> Result<u8, Error> {
        let config = Settings::load(&self.sources, env::vars_os())?.config;
        if config.store.url.is_some() {
            let why = "jobs are in PostgreSQL: back that up, see docs/scaling.md. This copies the embedded store of --data";
            return Err(Error::Usage(why.into()));
        }
        let data = config.data;
        let report = sqlite::backup(&data, &self.dir)?;
        shell.line(&match shell.format() {
            Format::Json => json!({ "jobs": report.jobs, "bytes": report.bytes }).to_string(),
            Format::Table => format!("{}: {} jobs, {} bytes", self.dir.display(), report.jobs, report.bytes),
        })?;
        Ok(0)
    }
}
