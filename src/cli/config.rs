use std::env;

use clap::Subcommand;

use super::{
    Error, Shell,
    settings::{Settings, Sources},
    shell::{Format, say},
};

const CHECK_EXAMPLES: &str = "\
Examples:
  jobwire config check --config /etc/jobwire.toml
  JOBWIRE_LIMITS__MAX_WAIT=30s jobwire config check";

const SHOW_EXAMPLES: &str = "\
Examples:
  jobwire config show                        every setting that has a value, with its default
  jobwire config show --config jobwire.toml  what holds, and where each value comes from
  jobwire config show > jobwire.toml         a file to begin with, but for passwords";

/// Check or show the settings that `serve` would run with
#[derive(Debug, Subcommand)]
pub(super) enum Config {
    /// Check the settings, and say what is wrong
    #[command(after_help = CHECK_EXAMPLES)]
    Check(Sources),
    /// Show every setting, and where its value comes from
    #[command(after_help = SHOW_EXAMPLES)]
    Show(Sources),
}

impl Config {
    pub(super) fn run(self, shell: &Shell) -> Result<u8, Error> {
        match self {
            Self::Check(sources) => {
                let settings = load(&sources)?;
                let set = settings.rows()?.iter().filter(|row| row.source != "default").count();
                say(format_args!("the settings are sound: {set} set, the rest defaults"));
            }
            Self::Show(sources) => {
                let rows = load(&sources)?.rows()?;
                if shell.asked_format() == Some(Format::Json) {
                    let json =
                        serde_json::to_string_pretty(&rows).map_err(|e| Error::Print(e.to_string()))?;
                    shell.line(&json)?;
                    return Ok(0);
                }
                for row in rows {
                    shell.line(&format!("{} = {}  # {}", row.key, row.value, row.source))?;
                }
            }
        }
        Ok(0)
    }
}

fn load(sources: &Sources) -> Result<Settings, Error> {
    Ok(Settings::load(sources, env::vars_os())?)
}
