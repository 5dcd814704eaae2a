//! How much of memory jobs take, about.

use std::collections::BTreeMap;

use crate::job::{Job, JobError, JobSpec, Payload};

/// Names, keys, times.
const REST: usize = 1024;

/// Of a map's entry beside its text.
const ENTRY: usize = 64;

/// Bytes of a job.
pub fn weight(job: &Job) -> usize {
    REST + filled_in(job)
}

/// Bytes of a job, without what each has.
pub fn filled_in(job: &Job) -> usize {
    let errors = job.attempts.iter().filter_map(|attempt| attempt.error.as_ref()).chain(&job.error);
    let progress = job.progress.as_ref();
    let progress = progress.map_or(0, |now| now.note.len() + now.details.as_ref().map_or(0, body));
    asked(&job.spec, &job.trace)
        + job.output.as_ref().map_or(0, body)
        + progress
        + errors.map(error).sum::<usize>()
}

/// Bytes of what a caller has asked for.
pub fn asked(spec: &JobSpec, trace: &BTreeMap<String, String>) -> usize {
    let codes: usize = spec.retry.non_retryable_codes.iter().map(|code| code.len() + ENTRY).sum();
    body(&spec.payload) + codes + entries(&spec.labels) + entries(trace)
}

fn entries(map: &BTreeMap<String, String>) -> usize {
    map.iter().map(|(name, value)| name.len() + value.len() + ENTRY).sum()
}

fn error(error: &JobError) -> usize {
    error.message.len() + error.details.as_ref().map_or(0, body)
}

fn body(payload: &Payload) -> usize {
    payload.body.as_ref().map_or(0, |body| body.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::{Cause, Kind, Timestamp};

    #[test]
    fn whatever_a_caller_can_fill_in_counts() {
        const LONG: usize = 10_000;
        let long = "x".repeat(LONG);
        let map = BTreeMap::from([(long.clone(), long.clone())]);
        let kind: Kind = "echo".parse().unwrap();
        let payload = Payload::new(Payload::TEXT, long.clone());
        let mut spec = JobSpec::new(kind, payload.clone());
        spec.labels = map.clone();
        spec.retry.non_retryable_codes = vec![long.clone()];
        let mut job = Job::accepted("a".parse().unwrap(), spec.into(), Timestamp(0));
        let mut failure = JobError::new(Cause::Handler, "code", &"x".repeat(5000), false);
        failure.details = Some(payload.clone());
        (job.trace, job.output, job.error) = (map, Some(payload), Some(failure));
        let filled = 2 * LONG + LONG + LONG + 2 * LONG + LONG + 5000 + LONG;
        assert!((filled..filled + 1000).contains(&filled_in(&job)), "{}", filled_in(&job));
        assert_eq!(weight(&job), filled_in(&job) + REST);
    }
}
