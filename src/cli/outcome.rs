//! How a job ended, as an exit code.

use prost_types::value::Kind;

use crate::proto::{Job, Payload, job::State, payload::Body};

/// `error.code` of a process that ended with a code of its own: `exec.exit.CODE`.
const PROCESS_EXIT: &str = "exec.exit.";

/// 0 succeeded, 1 failed, 3 cancelled, 4 expired; for a process that failed, its own code.
pub(super) fn exit_code(job: &Job) -> u8 {
    match job.state() {
        State::Succeeded => process_code(job).unwrap_or(0),
        State::Cancelled => 3,
        State::Expired => 4,
        _ => process_code(job).unwrap_or(1),
    }
}

/// What the process of an `exec` job ended with, if that is 1 to 255.
fn process_code(job: &Job) -> Option<u8> {
    job.spec.as_ref().filter(|spec| spec.kind == "exec")?;
    let error = job.error.as_ref();
    let from_error = error.and_then(|error| error.code.strip_prefix(PROCESS_EXIT)?.parse().ok());
    let from_output = || job.output.as_ref().and_then(output_code);
    from_error.or_else(from_output).filter(|code| *code > 0)
}

fn output_code(output: &Payload) -> Option<u8> {
    let Some(Body::Json(document)) = &output.body else { return None };
    let Some(Kind::StructValue(object)) = &document.kind else { return None };
    match object.fields.get("exit_code")?.kind {
        Some(Kind::NumberValue(code)) if code.fract() == 0.0 && (0.0..=255.0).contains(&code) => {
            Some(code as u8)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{JobError, JobSpec};
    use prost_types::{Struct, Value};

    fn job(kind: &str, state: State, error: &str) -> Job {
        Job {
            spec: Some(JobSpec { kind: kind.into(), ..JobSpec::default() }),
            state: state.into(),
            error: Some(JobError { code: error.into(), ..JobError::default() }),
            ..Job::default()
        }
    }

    #[test]
    fn the_code_is_the_outcome() {
        for (state, code) in
            [(State::Succeeded, 0), (State::Failed, 1), (State::Cancelled, 3), (State::Expired, 4)]
        {
            assert_eq!(exit_code(&job("echo", state, "")), code);
        }
    }

    #[test]
    fn processes_have_codes_of_their_own() {
        assert_eq!(exit_code(&job("exec", State::Failed, "exec.exit.7")), 7);
        assert_eq!(exit_code(&job("exec", State::Failed, "exec.exit.256")), 1);
        assert_eq!(exit_code(&job("exec", State::Failed, "exec.timeout")), 1);
        assert_eq!(exit_code(&job("http", State::Failed, "exec.exit.7")), 1);
        assert_eq!(exit_code(&job("exec", State::Cancelled, "exec.exit.7")), 3);
    }

    #[test]
    fn or_say_so_in_their_output() {
        for (number, code) in [(0.0, 0), (9.0, 9), (1.5, 0), (300.0, 0)] {
            let value = Value { kind: Some(Kind::NumberValue(number)) };
            let object = Struct { fields: [("exit_code".into(), value)].into() };
            let body = Body::Json(Value { kind: Some(Kind::StructValue(object)) });
            let output = Some(Payload { body: Some(body), ..Payload::default() });
            assert_eq!(exit_code(&Job { output, ..job("exec", State::Succeeded, "") }), code);
        }
    }
}
