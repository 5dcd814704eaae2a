//! Between the wire and the vocabulary. What comes in is checked here, and nowhere else.

mod filter;
mod job;
mod payload;
mod spec;
mod time;
mod watch;
mod worker;

pub use filter::filter;
pub use job::{job, view};
pub use payload::{Format, format};
pub use spec::submission;
pub use time::{optional_duration, proto_duration, proto_timestamp};
pub use watch::{event, watch_request};
#[cfg(any(test, fuzzing))]
pub use worker::Leases;
pub use worker::{
    Hello, hello, lease, lease_duration, lease_request, lost, named, report, revoked, step, window,
};
