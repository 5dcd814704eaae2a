use clap::CommandFactory as _;

use super::*;

fn parse(arguments: &str) -> Result<Command, clap::error::ErrorKind> {
    let arguments = std::iter::once("jobwire").chain(arguments.split_whitespace());
    Cli::try_parse_from(arguments).map(|cli| cli.command).map_err(|error| error.kind())
}

fn submit(arguments: &str) -> crate::proto::SubmitRequest {
    #[derive(Parser)]
    struct Only {
        #[command(flatten)]
        spec: spec::SpecArgs,
    }
    let arguments = std::iter::once("submit").chain(arguments.split_whitespace());
    Only::try_parse_from(arguments).unwrap().spec.into_request().unwrap()
}

#[test]
fn the_definition_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn every_command_has_examples_and_says_what_it_does() {
    fn check(command: &clap::Command) {
        assert!(command.get_about().is_some(), "{}", command.get_name());
        if command.has_subcommands() {
            command.get_subcommands().for_each(check);
        } else {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("Examples:\n"), "{}", command.get_name());
        }
    }
    Cli::command().get_subcommands().for_each(check);
}

#[test]
fn every_flag_has_a_help_text() {
    fn check(command: &clap::Command) {
        for argument in command.get_arguments().filter(|argument| !argument.is_positional()) {
            assert!(argument.get_help().is_some(), "{} {}", command.get_name(), argument.get_id());
        }
        command.get_subcommands().for_each(check);
    }
    check(&Cli::command());
}

#[test]
fn a_spec_has_a_flag_for_every_field() {
    use crate::proto::{JobSpec, RetryPolicy, SubmitRequest, job_spec::Start};
    let seconds = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
    let request = submit(
        "echo --text hi -q mail -l a=b -l c=d -p -5 --delay 1s --start-timeout 2s --attempt-timeout 3s \
         --total-timeout 4s --max-attempts 2 --initial-backoff 5s --max-backoff 6s --backoff-multiplier 1.5 \
         --non-retryable http.404 --retention 7s --unique-key k --on-conflict reject --job-id j --request-id r",
    );
    let spec = request.spec.clone().unwrap();
    assert_eq!(
        spec,
        JobSpec {
            queue: "mail".into(),
            kind: "echo".into(),
            payload: spec.payload.clone(),
            labels: [("a".into(), "b".into()), ("c".into(), "d".into())].into(),
            priority: -5,
            start: seconds(1).map(Start::Delay),
            start_timeout: seconds(2),
            attempt_timeout: seconds(3),
            total_timeout: seconds(4),
            retry: Some(RetryPolicy {
                max_attempts: 2,
                initial_backoff: seconds(5),
                max_backoff: seconds(6),
                backoff_multiplier: 1.5,
                non_retryable_codes: vec!["http.404".into()],
            }),
            retention: seconds(7),
            unique_key: "k".into(),
        }
    );
    assert_eq!(
        SubmitRequest { spec: None, ..request },
        SubmitRequest {
            job_id: "j".into(),
            request_id: "r".into(),
            on_unique_conflict: 2,
            ..SubmitRequest::default()
        }
    );
}

#[test]
fn what_is_not_said_is_left_to_the_server() {
    let spec = submit("echo").spec.unwrap();
    assert_eq!((spec.retry, spec.retention, spec.start, spec.payload), (None, None, None, None));
}

#[test]
fn wrong_usage_is_refused() {
    use clap::error::ErrorKind::{ArgumentConflict, InvalidValue, MissingRequiredArgument, ValueValidation};
    for (arguments, kind) in [
        ("submit", MissingRequiredArgument),
        ("submit echo --json 1 --text 2", ArgumentConflict),
        ("submit echo --delay 1s --at 2030-01-01T00:00:00Z", ArgumentConflict),
        ("submit echo --delay -1s", clap::error::ErrorKind::UnknownArgument),
        ("submit echo --delay=-1s", ValueValidation),
        ("submit echo -l novalue", ValueValidation),
        ("submit echo --on-conflict reject", MissingRequiredArgument),
        ("watch --until-done", MissingRequiredArgument),
        ("watch --after c --earliest", ArgumentConflict),
        ("watch --existing --since 1h", ArgumentConflict),
        ("list --limit 0", ValueValidation),
        ("list --limit 5 --all", ArgumentConflict),
        ("list --state broken", InvalidValue),
        ("cancel", MissingRequiredArgument),
        ("info -o yaml", InvalidValue),
    ] {
        assert_eq!(parse(arguments).unwrap_err(), kind, "{arguments}");
    }
}

#[test]
fn a_bench_has_at_least_one_of_all_that_it_measures_with() {
    for flag in
        ["callers", "connections", "outstanding", "batch", "watchers", "idle-watchers", "workers", "window"]
    {
        let none = parse(&format!("bench --{flag} 0")).unwrap_err();
        assert_eq!(none, clap::error::ErrorKind::ValueValidation, "{flag}");
        assert!(parse(&format!("bench --{flag} 1")).is_ok(), "{flag}");
    }
}

#[test]
fn the_server_can_be_named_before_or_after_the_command() {
    assert!(parse("--server localhost:1 info").is_ok());
    assert!(parse("info --server localhost:1 -o json").is_ok());
}
