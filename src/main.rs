//! The `jobwire` program: see `jobwire help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    jobwire::cli::main()
}
