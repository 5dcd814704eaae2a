use std::env;

use clap::Args;
use serde_json::json;

use super::{
    Error, Shell,
    settings::{Settings, Sources},
    shell::Format,
};
use crate::store::postgres;

const EXAMPLES: &str = "\
Examples:
  pg_restore --dbname jobs monday.dump && jobwire new-log --store postgres://jobwire@db.example.org/jobs

Stop the servers first. A dump or a snapshot lacks what happened after it was made, and a cursor from then would skip what \
happens next. Whoever comes with an old one is told LOG_REPLACED. Only a failover, and a server restored from an archive \
(PITR), are noticed without this.";

/// Begin a new log of outcomes in a PostgreSQL database that was restored from a dump or a snapshot
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct NewLog {
    #[command(flatten)]
    sources: Sources,
}

impl NewLog {
    pub(super) async fn run(self, shell: &Shell) -> Result<u8, Error> {
        let config = Settings::load(&self.sources, env::vars_os())?.config;
        let Some(url) = &config.store.url else {
            let why = "which database? Say --store postgres://… (a copy made by `jobwire backup` has a new log already)";
            return Err(Error::Usage(why.into()));
        };
        let log_id = format!("{:016x}", postgres::new_log(url.reveal()).await?.0);
        shell.line(&match shell.format() {
            Format::Json => json!({ "log_id": log_id }).to_string(),
            Format::Table => format!("{url}: log {log_id} begins; older cursors are told LOG_REPLACED"),
        })?;
        Ok(0)
    }
}
