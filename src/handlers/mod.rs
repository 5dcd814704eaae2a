//! The kinds of job that this server runs by itself, and the register that programs add their own to.

mod data;
mod echo;
mod exec;
mod http;
mod registry;
mod sleep;
mod span;
#[cfg(test)]
mod testing;
mod typed;

pub(crate) use exec::Template;
pub use registry::Handlers;
