use std::path::PathBuf;

use super::*;

fn refused(change: impl FnOnce(&mut Config)) -> InvalidSetting {
    let mut config = Config::default();
    change(&mut config);
    let mut found = config.validate().unwrap_err().0;
    assert_eq!(found.len(), 1, "{found:?}");
    found.remove(0)
}

fn command(args: &[&str]) -> ExecCommand {
    ExecCommand {
        program: PathBuf::from("/bin/true"),
        args: args.iter().map(|arg| (*arg).to_owned()).collect(),
        params: [].into(),
        env: [].into(),
        dir: None,
        concurrency: 1,
        max_output_bytes: 1,
        retry_exit_codes: Vec::new(),
    }
}

fn refused_command(command: ExecCommand) -> InvalidSetting {
    refused(|config| {
        config.exec.commands.insert("hash".into(), command);
    })
}

#[test]
fn the_defaults_hold() {
    Config::default().validate().unwrap();
}

#[test]
fn other_machines_are_let_in_only_on_purpose() {
    let open = |config: &mut Config| config.listen = "0.0.0.0:1".parse().unwrap();
    let error = refused(open);
    assert_eq!(error.key, "listen");
    assert!(error.why.contains("--insecure-allow-remote"), "{error}");
    let mut config = Config::default();
    open(&mut config);
    config.insecure_allow_remote = true;
    config.validate().unwrap();
}

#[test]
fn bounds_are_kept_and_named() {
    type Change = fn(&mut Config);
    let cases: [(Change, &str); 22] = [
        (|c| c.limits.max_payload_bytes = 0, "limits.max_payload_bytes"),
        (|c| c.limits.max_output_bytes = 0, "limits.max_output_bytes"),
        (|c| c.limits.max_wait = Duration::ZERO, "limits.max_wait"),
        (|c| c.limits.max_wait = Duration::from_secs(60), "limits.max_wait"),
        (|c| c.limits.max_delay = Duration::ZERO, "limits.max_delay"),
        (|c| c.limits.submit_buffer_bytes = 10, "limits.submit_buffer_bytes"),
        (|c| c.http2.max_concurrent_streams = 0, "http2.max_concurrent_streams"),
        (|c| c.http2.connection_window_bytes = 65_535, "http2.connection_window_bytes"),
        (|c| c.watch.buffer_messages = 0, "watch.buffer_messages"),
        (|c| c.store.readers = 0, "store.readers"),
        (|c| c.workers.blocking_threads = 257, "workers.blocking_threads"),
        (|c| c.workers.heartbeat = Duration::from_secs(15), "workers.heartbeat"),
        (|c| c.defaults.max_attempts = 0, "defaults.max_attempts"),
        (|c| c.defaults.backoff_multiplier = f64::NAN, "defaults.backoff_multiplier"),
        (|c| c.defaults.max_backoff = Duration::from_millis(10), "defaults.max_backoff"),
        (|c| c.defaults.retention = 100 * DAY, "defaults.retention"),
        (|c| c.http.max_redirects = 11, "http.max_redirects"),
        (|c| c.http.allow_hosts = vec!["http://a/".into()], "http.allow_hosts[0]"),
        (|c| c.http.allow_hosts = vec!["a:".into()], "http.allow_hosts[0]"),
        (|c| c.web.allowed_origins = vec!["*".into()], "web.allowed_origins[0]"),
        (|c| c.web.allowed_origins = vec!["https://a.example/".into()], "web.allowed_origins[0]"),
        (|c| c.data = PathBuf::new(), "data"),
    ];
    for (change, key) in cases {
        assert_eq!(refused(change).key, key);
    }
}

#[test]
fn an_input_and_an_output_fit_one_message() {
    let mut config = Config::default();
    (config.limits.max_payload_bytes, config.limits.max_output_bytes) = (1 << 20, 2 << 20);
    config.validate().unwrap();
    assert_eq!(
        refused(|c| (c.limits.max_payload_bytes, c.limits.max_output_bytes) = (2 << 20, (1 << 20) + 1)).key,
        "limits.max_output_bytes"
    );
}

#[test]
fn what_is_kept_for_a_result_fits_an_output() {
    let error = refused(|c| c.http.max_response_bytes = 3 << 20);
    assert_eq!(error.key, "http.max_response_bytes");
    assert!(error.why.contains("raise limits.max_output_bytes"), "{error}");
    let error = refused_command(ExecCommand { max_output_bytes: 2 << 20, ..command(&[]) });
    assert_eq!(error.key, "exec.commands.hash.max_output_bytes");

    let mut config = Config::default();
    (config.limits.max_output_bytes, config.http.max_response_bytes) = (2 << 20, 2 << 20);
    config.validate().unwrap();
    // Smaller outputs ask for no other change.
    config = Config::default();
    config.limits.max_output_bytes = 10;
    config.validate().unwrap();
}

#[test]
fn a_refusal_says_what_would_do() {
    let error = refused(|config| config.limits.max_wait = Duration::ZERO);
    assert_eq!(error.to_string(), "`limits.max_wait` is 0s; it must be 1ms to 1h");
}

#[test]
fn everything_wrong_is_told_at_once() {
    let mut config = Config::default();
    config.store.readers = 0;
    config.store.max_group = 0;
    assert_eq!(config.validate().unwrap_err().0.len(), 2);
}

#[test]
fn queues_have_valid_names_and_values() {
    for name in ["", "Mail", "a//b", "../x", "a b"] {
        let error = refused(|config| {
            config.queues.insert(name.into(), Queue::default());
        });
        assert!(error.key.starts_with("queues."), "{error}");
    }
    let zero = Queue { concurrency: Some(0), ..Queue::default() };
    let error = refused(|config| {
        config.queues.insert("acme/mail".into(), zero);
    });
    assert_eq!(error.key, "queues.\"acme/mail\".concurrency");
    // The other half comes from `defaults`.
    let short = Queue { initial_backoff: Some(HOUR), ..Queue::default() };
    let error = refused(|config| {
        config.queues.insert("mail".into(), short);
    });
    assert_eq!(error.key, "queues.mail.max_backoff");
}

#[test]
fn commands_are_absolute() {
    let error = refused_command(ExecCommand { program: "sha256sum".into(), ..command(&[]) });
    assert_eq!(error.key, "exec.commands.hash.program");
    let error = refused_command(ExecCommand { dir: Some("tmp".into()), ..command(&[]) });
    assert_eq!(error.key, "exec.commands.hash.dir");
    let params = [("file".to_owned(), ExecParam::Path { root: "data".into() })].into();
    let error = refused_command(ExecCommand { params, ..command(&["{file}"]) });
    assert_eq!(error.key, "exec.commands.hash.params.file.root");
}

#[test]
fn commands_hold_no_nul() {
    let error = refused_command(ExecCommand { program: "/bin/a\0b".into(), ..command(&[]) });
    assert_eq!(error.key, "exec.commands.hash.program");
    let error = refused_command(ExecCommand { env: [("A.B".into(), "\0".into())].into(), ..command(&[]) });
    assert_eq!(error.key, "exec.commands.hash.env.\"A.B\"");
}

#[test]
fn placeholders_and_parameters_match() {
    let error = refused_command(command(&["--", "in={file}"]));
    assert_eq!(error.key, "exec.commands.hash.args[1]");
    let params = [("file".to_owned(), ExecParam::Integer { min: None, max: None })].into();
    let error = refused_command(ExecCommand { params, ..command(&["file"]) });
    assert_eq!(error.key, "exec.commands.hash.params.file");
}

#[test]
fn braces_mean_here_what_they_mean_when_a_job_runs() {
    for arg in ["{}", "{ d }", "{\"e\":1}", "{f"] {
        assert_eq!(refused_command(command(&[arg])).key, "exec.commands.hash.args[0]", "{arg}");
    }
    let mut config = Config::default();
    config.exec.commands.insert("hash".into(), command(&["{{print $1}}"]));
    assert_eq!(config.validate(), Ok(()));
}

#[test]
fn parameters_must_allow_something() {
    for param in [
        ExecParam::Choice { values: Vec::new() },
        ExecParam::Integer { min: Some(2), max: Some(1) },
        ExecParam::Text { max_bytes: Some(0), allow_dash: false },
    ] {
        let params = [("p".to_owned(), param)].into();
        let error = refused_command(ExecCommand { params, ..command(&["{p}"]) });
        assert!(error.key.starts_with("exec.commands.hash.params.p"), "{error}");
    }
}
