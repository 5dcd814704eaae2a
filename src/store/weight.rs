use crate::job::{Job, Payload};

/// Bytes of a job in a message, about.
pub fn weight(job: &Job) -> usize {
    let labels: usize = job.spec.labels.iter().map(|(name, value)| name.len() + value.len()).sum();
    let body = |payload: &Payload| payload.body.as_ref().map_or(0, |body| body.len());
    let details = job.attempts.iter().filter_map(|attempt| attempt.error.as_ref()).chain(&job.error);
    let errors: usize =
        details.map(|error| error.message.len() + error.details.as_ref().map_or(0, body)).sum();
    let codes: usize = job.spec.retry.non_retryable_codes.iter().map(String::len).sum();
    let trace: usize = job.trace.values().map(String::len).sum();
    let progress =
        job.progress.as_ref().map_or(0, |now| now.note.len() + now.details.as_ref().map_or(0, body));
    let output = job.output.as_ref().map_or(0, body);
    // The rest: names, keys, times.
    1024 + labels + codes + trace + body(&job.spec.payload) + output + progress + errors
}
