//! The vocabulary of the service and its rules: what a job is, what may follow what, when to try again.
//!
//! Everything here is a pure function of its arguments. Nothing in this module reads a clock, draws a random
//! number, does I/O, or knows of gRPC, SQL or tokio.

mod error;
mod filter;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod name;
mod outcome;
mod payload;
mod retry;
mod rules;
mod spec;
mod state;
mod time;
mod view;

pub use error::Error;
pub use filter::{Filter, LabelMatch, NamePattern};
pub use name::{JobId, Key, Kind, QueueName, WorkerId};
pub(crate) use outcome::cut;
pub use outcome::{Cause, Ending, JobError, Report};
pub use payload::Payload;
pub use retry::{Policy, RetryOptions};
pub use rules::{Cancelled, Fence, Lease, Live, Next, Retried, Step, Suspension};
pub use spec::{JobSpec, PRIORITY_MAX, PRIORITY_STEP, Start};
pub use state::{FinalState, LiveState, State};
pub use time::Timestamp;
pub use view::{Attempt, Job, Progress, View};
