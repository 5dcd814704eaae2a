use clap::{Args, CommandFactory as _};

use super::{Cli, Error, Shell};

const EXAMPLES: &str = "\
Examples:
  source <(jobwire completions bash)
  jobwire completions zsh > ~/.zfunc/_jobwire
  jobwire completions fish > ~/.config/fish/completions/jobwire.fish";

/// Print a script that lets a shell complete commands and flags
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Completions {
    /// Which shell
    shell: clap_complete::Shell,
}

impl Completions {
    pub(super) fn run(self, shell: &Shell) -> Result<u8, Error> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "jobwire", &mut script);
        shell.bytes(&script)?;
        Ok(0)
    }
}
