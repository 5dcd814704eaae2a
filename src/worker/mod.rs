//! Runs attempts: what a handler is, and what it is told.

mod context;
mod handler;

pub use context::{Context, ContextParts};
pub use handler::Handler;
