//! Runs attempts: what a handler is, and what it is told.

mod attempt;
mod context;
mod dispatch;
mod handler;
mod pool;

pub use context::{Context, ContextParts};
pub use handler::Handler;
pub(crate) use handler::panic_message;
pub use pool::Pool;
