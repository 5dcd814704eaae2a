use std::{path::PathBuf, time::Instant};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use super::{Error, Shell, shell::Format};
use crate::{
    config::StoreUrl,
    store::{migrate, postgres, sqlite::VerifyReport},
};

const EXAMPLES: &str = "\
Examples:
  jobwire migrate --from /var/lib/jobwire --to postgres://jobwire@db.example.org/jobwire
  jobwire migrate --to postgres://owner@db.example.org/jobwire     only make or update the tables

Stop the server first. Jobs, outcomes, request ids, cursors, etags and leases stay what they are. If this is broken off, \
run it again: until it is done nobody serves the database. Afterwards nobody serves the directory.";

/// Take the store of a directory over to PostgreSQL, or only make or update the tables there
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Migrate {
    /// The data directory to take over; no server may use it
    #[arg(long, value_name = "DIR")]
    from: Option<PathBuf>,
    /// The database
    #[arg(long, env = "JOBWIRE_STORE", hide_env_values = true, value_name = "URL")]
    to: StoreUrl,
}

impl Migrate {
    pub(super) async fn run(self, shell: &Shell) -> Result<u8, Error> {
        let Self { from, to } = self;
        let Some(from) = from else {
            let schema = postgres::migrate_schema(to.reveal()).await?;
            shell.line(&match shell.format() {
                Format::Json => json!({ "schema": schema }).to_string(),
                Format::Table => format!("{to} has schema {schema}, the newest"),
            })?;
            return Ok(0);
        };
        let begin = Instant::now();
        let bar = ProgressBar::new_spinner().with_message(format!("checking {}", from.display()));
        bar.tick();
        let style =
            ProgressStyle::with_template("{bar:30} {percent}%  {human_pos} rows  {per_sec}  {eta} to go");
        let mut style = style.ok();
        let tell = |done, all| {
            if let Some(style) = style.take() {
                bar.set_message("");
                bar.set_style(style);
                bar.set_length(all);
            }
            bar.set_position(done);
        };
        let taken = migrate::migrate(&from, &to, tell).await;
        bar.finish_and_clear();
        let VerifyReport { jobs, unfinished, outcomes, .. } = taken?;
        let seconds = begin.elapsed().as_secs_f64();
        shell.line(&match shell.format() {
            Format::Json => {
                json!({ "jobs": jobs, "unfinished": unfinished, "outcomes": outcomes, "seconds": seconds }).to_string()
            }
            Format::Table => format!(
                "taken over in {seconds:.1} s: {jobs} jobs, {unfinished} of them unfinished, {outcomes} outcomes\n\
                 next: `jobwire serve --store` with the URL of --to\n\
                 {0} is as it was, for a backup; it is served no more, as long as {0}/moved is there",
                from.display()
            ),
        })?;
        Ok(0)
    }
}
