//! Everything that parses bytes from outside, as targets for a fuzzer: each takes any bytes, and panics if a promise
//! is broken. `cargo test` gives them a fixed number of inputs by chance; `make fuzz` lets coverage lead the way.

#[cfg(test)]
mod random;

use crate::{cli, handlers, job, server};

/// A parser, and what must hold whatever it is given.
pub struct Target {
    pub name: &'static str,
    /// Panics if something does not hold.
    pub run: fn(&[u8]),
    /// Inputs to begin with.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All there are.
pub fn targets() -> impl Iterator<Item = &'static Target> {
    let by_module = [
        job::fuzz::TARGETS,
        server::fuzz::TARGETS,
        handlers::fuzz::TARGETS,
        handlers::HTTP_TARGETS,
        handlers::EXEC_TARGETS,
        cli::fuzz::TARGETS,
        cli::SETTINGS_TARGETS,
    ];
    by_module.into_iter().flatten()
}

/// Lines of text as seeds.
pub(crate) fn lines(text: &str) -> Vec<Vec<u8>> {
    text.lines().map(|line| line.trim().as_bytes().to_vec()).collect()
}

/// Bytes as text, for parsers that are only ever given text.
pub(crate) fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok()
}
