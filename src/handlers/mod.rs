//! The kinds of job that this server runs by itself, and the register that programs add their own to.

mod data;
mod echo;
mod exec;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod http;
mod registry;
mod sleep;
mod span;
#[cfg(any(test, fuzzing))]
#[cfg_attr(fuzzing, allow(dead_code))] // Targets need a part of it.
mod testing;
mod typed;

#[cfg(any(test, fuzzing))]
pub(crate) use self::{exec::fuzz::TARGETS as EXEC_TARGETS, http::fuzz::TARGETS as HTTP_TARGETS};
pub(crate) use exec::{Template, check_command};
pub(crate) use http::is_allowed_host;
pub use registry::Handlers;
