//! Which jobs: the flags that `list` and `watch` share.

use clap::Args;
use prost_types::Timestamp;

use super::values::{StateArg, label, timestamp};
use crate::proto::{JobFilter, job::State};

#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Which jobs")]
pub(super) struct FilterArgs {
    /// Queue, or a prefix followed by `*`; may be repeated
    #[arg(short, long = "queue", value_name = "QUEUE")]
    queues: Vec<String>,
    /// Kind; may be repeated
    #[arg(short, long = "kind", value_name = "KIND")]
    kinds: Vec<String>,
    /// State; may be repeated
    #[arg(short, long = "state", value_enum, value_name = "STATE")]
    states: Vec<StateArg>,
    /// Label; the value `*` asks only that it is there; may be repeated
    #[arg(short, long = "label", value_name = "KEY=VALUE", value_parser = label)]
    labels: Vec<(String, String)>,
    /// Submitted after this time
    #[arg(long, value_name = "TIME", value_parser = timestamp)]
    submitted_after: Option<Timestamp>,
    /// Submitted before this time
    #[arg(long, value_name = "TIME", value_parser = timestamp)]
    submitted_before: Option<Timestamp>,
}

impl FilterArgs {
    pub(super) fn into_filter(self, job_ids: Vec<String>) -> JobFilter {
        JobFilter {
            job_ids,
            queues: self.queues,
            kinds: self.kinds,
            states: self.states.into_iter().map(|state| State::from(state).into()).collect(),
            labels: self.labels.into_iter().collect(),
            submitted_after: self.submitted_after,
            submitted_before: self.submitted_before,
        }
    }
}
