//! The `jobwire` program: see `jobwire help`.

use std::process::ExitCode;

/// Jobs are made on one thread and dropped on another: there the allocator of glibc waits for locks.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    jobwire::cli::main()
}
