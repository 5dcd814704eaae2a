#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashSet};

use super::{Job, JobId, State, Timestamp};

/// Which jobs. Set fields must all match; inside a list one match is enough. Empty matches every job.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Filter {
    pub job_ids: HashSet<JobId>,
    pub queues: Vec<NamePattern>,
    pub kinds: Vec<NamePattern>,
    pub states: Vec<State>,
    pub labels: BTreeMap<String, LabelMatch>,
    pub submitted_after: Option<Timestamp>,
    pub submitted_before: Option<Timestamp>,
}

/// An exact name, or every name with a prefix.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum NamePattern {
    Exact(String),
    Prefix(String),
}

impl NamePattern {
    pub fn matches(&self, name: &str) -> bool {
        match self {
            Self::Exact(exact) => exact == name,
            Self::Prefix(prefix) => name.starts_with(prefix.as_str()),
        }
    }
}

/// What a label must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LabelMatch {
    Present,
    Equals(String),
}

impl Filter {
    /// Whether the job is one of those meant.
    pub fn matches(&self, job: &Job) -> bool {
        (self.states.is_empty() || self.states.contains(&job.state)) && self.matches_identity(job)
    }

    /// The same, whatever the job's state is: everything but `states` never changes in a job's life.
    pub fn matches_identity(&self, job: &Job) -> bool {
        (self.job_ids.is_empty() || self.job_ids.contains(&job.id))
            && self.matches_line(job.spec.queue.as_str(), job.spec.kind.as_str())
            && self.labels.iter().all(|(name, wanted)| match (job.spec.labels.get(name), wanted) {
                (None, _) => false,
                (Some(_), LabelMatch::Present) => true,
                (Some(value), LabelMatch::Equals(wanted)) => value == wanted,
            })
            && self.submitted_after.is_none_or(|after| job.submit_time > after)
            && self.submitted_before.is_none_or(|before| job.submit_time < before)
    }

    /// Whether jobs of this queue and kind can match at all.
    pub fn matches_line(&self, queue: &str, kind: &str) -> bool {
        any(&self.queues, queue) && any(&self.kinds, kind)
    }
}

fn any(patterns: &[NamePattern], name: &str) -> bool {
    patterns.is_empty() || patterns.iter().any(|pattern| pattern.matches(name))
}
