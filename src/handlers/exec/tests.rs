//! Real processes.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::process::{Pid, test_kill_process};
use serde_json::{Value, json};
use tempfile::tempdir;
use tokio::time::sleep;

use super::*;
use crate::{config::ExecCommand, handlers::testing::context};

/// A command of the configuration, from JSON in place of TOML.
fn command(settings: Value) -> ExecCommand {
    serde_json::from_value(settings).unwrap()
}

/// `limits.max_output_bytes` by default.
const MAX_OUTPUT: usize = 1 << 20;

/// One command called `it`.
fn exec(settings: Value) -> Exec {
    exec_within(MAX_OUTPUT, settings)
}

fn exec_within(max_output: usize, settings: Value) -> Exec {
    let commands = BTreeMap::from([("it".into(), command(settings))]);
    Exec::new(&config::Exec { commands }, max_output).unwrap()
}

fn shell(script: &str) -> Exec {
    exec(json!({ "program": "/bin/sh", "args": ["-c", script], "env": { "PATH": "/usr/bin:/bin" } }))
}

fn input(fields: Value) -> Input {
    let mut input = json!({ "command": "it" });
    input.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    serde_json::from_value(input).unwrap()
}

async fn run(exec: &Exec, fields: Value) -> Result<Value, JobError> {
    exec.run(context().0, input(fields)).await
}

fn details(error: &JobError) -> Value {
    serde_json::from_slice(&error.details.as_ref().unwrap().bytes()).unwrap()
}

/// Waits until a process has written its id there.
async fn pid_in(file: PathBuf) -> Pid {
    for _ in 0..500 {
        if let Some(pid) = std::fs::read_to_string(&file).ok().and_then(|text| text.trim().parse().ok()) {
            return Pid::from_raw(pid).unwrap();
        }
        sleep(Duration::from_millis(20)).await;
    }
    panic!("no process id in {}", file.display());
}

/// Whether a process goes away within seconds. One that nobody reaps yet counts as gone.
async fn is_gone(pid: Pid) -> bool {
    for _ in 0..250 {
        let stat =
            std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
        if test_kill_process(pid).is_err() || stat.contains(") Z ") {
            return true;
        }
        sleep(Duration::from_millis(20)).await;
    }
    false
}

#[tokio::test]
async fn hashes_a_real_file() {
    let root = tempdir().unwrap();
    std::fs::write(root.path().join("data"), "abc").unwrap();
    let exec = exec(json!({
        "program": "/usr/bin/sha256sum", "args": ["--", "{file}"],
        "params": { "file": { "type": "path", "root": root.path() } },
    }));
    let output = run(&exec, json!({ "params": { "file": "data" } })).await.unwrap();
    let hash = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    assert!(output["stdout"].as_str().unwrap().starts_with(hash), "{output}");
    assert_eq!(output["exit_code"], 0);
    assert_eq!(output["stderr"], "");
    assert_eq!((&output["stdout_truncated"], &output["stderr_truncated"]), (&json!(false), &json!(false)));
    assert!(output["elapsed_ms"].is_u64());
}

#[tokio::test]
async fn paths_stay_below_their_root() {
    let (root, elsewhere) = (tempdir().unwrap(), tempdir().unwrap());
    std::fs::write(elsewhere.path().join("secret"), "").unwrap();
    std::fs::write(root.path().join("-n"), "").unwrap();
    std::os::unix::fs::symlink(elsewhere.path(), root.path().join("link")).unwrap();
    let exec = exec(json!({
        "program": "/bin/echo", "args": ["{file}"],
        "params": { "file": { "type": "path", "root": root.path() } },
    }));
    let secret = elsewhere.path().join("secret");
    let climb = format!("..{}", secret.display());
    for path in [
        "link/secret",
        "/etc/passwd",
        "../../../../etc/passwd",
        "missing",
        "a\0",
        &climb,
        secret.to_str().unwrap(),
    ] {
        let error = run(&exec, json!({ "params": { "file": path } })).await.unwrap_err();
        assert_eq!((error.code.as_str(), error.retryable), ("payload.invalid", false), "{path:?}");
    }
    let output = run(&exec, json!({ "params": { "file": "-n" } })).await.unwrap();
    let real = std::fs::canonicalize(root.path().join("-n")).unwrap();
    assert_eq!(output["stdout"], format!("{}\n", real.display()));
}

#[tokio::test]
async fn parameters_are_arguments_and_nothing_else() {
    let exec = exec(json!({
        "program": "/usr/bin/printf", "args": ["[%s]", "{text}", "pre{text}", "{number}", "{choice}{{}}"],
        "params": {
            "text": { "type": "text", "max_bytes": 40 },
            "number": { "type": "integer", "min": 1, "max": 9 },
            "choice": { "type": "choice", "values": ["a", "--b"] },
        },
    }));
    let with = |text: &str| json!({ "params": { "text": text, "number": 5, "choice": "--b" } });
    for text in ["$(id)", "`id`", "; rm -rf /", "a b", "{number}", "'\"\\", "\n", "%s", "", "ü", "a -rf"] {
        let output = run(&exec, with(text)).await.unwrap();
        assert_eq!(output["stdout"], format!("[{text}][pre{text}][5][--b{{}}]"), "{text:?}");
    }
    for params in [
        json!({ "text": "-rf", "number": 5, "choice": "a" }),
        json!({ "text": "x\0y", "number": 5, "choice": "a" }),
        json!({ "text": "x".repeat(41), "number": 5, "choice": "a" }),
        json!({ "text": ["x"], "number": 5, "choice": "a" }),
        json!({ "text": "x", "number": 0, "choice": "a" }),
        json!({ "text": "x", "number": 10, "choice": "a" }),
        json!({ "text": "x", "number": "5", "choice": "a" }),
        json!({ "text": "x", "number": 5.5, "choice": "a" }),
        json!({ "text": "x", "number": 5, "choice": "c" }),
        json!({ "text": "x", "number": 5 }),
        json!({ "text": "x", "number": 5, "choice": "a", "more": 1 }),
    ] {
        let error = run(&exec, json!({ "params": params })).await.unwrap_err();
        assert_eq!((error.code.as_str(), error.retryable), ("payload.invalid", false), "{params}");
        assert!(error.message.starts_with("params."), "{}", error.message);
    }
}

#[tokio::test]
async fn a_dash_is_refused_where_it_would_begin_an_argument() {
    let echo = |param: Value, args: Value| {
        exec(json!({ "program": "/bin/echo", "args": args, "params": { "p": param } }))
    };
    let ok = async |exec: Exec, value: Value| run(&exec, json!({ "params": { "p": value } })).await.is_ok();
    let text = || json!({ "type": "text" });
    assert!(!ok(echo(text(), json!(["{p}"])), json!("-n")).await);
    assert!(ok(echo(text(), json!(["--x={p}"])), json!("-n")).await);
    assert!(ok(echo(json!({ "type": "text", "allow_dash": true }), json!(["{p}"])), json!("-n")).await);
    assert!(!ok(echo(json!({ "type": "integer" }), json!(["{p}"])), json!(-5)).await);
    assert!(ok(echo(json!({ "type": "integer", "min": -9 }), json!(["{p}"])), json!(-5)).await);
}

#[tokio::test]
async fn only_named_commands_run() {
    let exec = shell("true");
    for name in ["/bin/sh", "sh", "", "IT"] {
        let error = run(&exec, json!({ "command": name })).await.unwrap_err();
        assert_eq!(error.code, "payload.invalid");
    }
    let unknown: Result<Input, _> = serde_json::from_value(json!({ "command": "it", "env": {} }));
    assert!(unknown.is_err());
}

#[tokio::test]
async fn the_surroundings_are_empty() {
    let exec = exec(json!({ "program": "/usr/bin/env", "env": { "ONLY": "this" } }));
    assert_eq!(run(&exec, json!({})).await.unwrap()["stdout"], "ONLY=this\n");

    let output = run(&shell("pwd; ls -A; echo left > file"), json!({})).await.unwrap();
    let dir = output["stdout"].as_str().unwrap().trim_end();
    assert!(Path::new(dir).is_absolute() && !Path::new(dir).exists(), "{dir:?} was not empty, or is left");

    let given = tempdir().unwrap();
    let exec = self::exec(json!({ "program": "/bin/pwd", "dir": given.path() }));
    let output = run(&exec, json!({})).await.unwrap();
    assert_eq!(
        Path::new(output["stdout"].as_str().unwrap().trim_end()),
        given.path().canonicalize().unwrap()
    );
    assert!(given.path().exists());
}

#[tokio::test]
async fn our_descriptors_are_not_inherited() {
    use std::os::fd::AsRawFd as _;

    let file = tempfile::NamedTempFile::new().unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let socket = std::fs::read_link(format!("/proc/self/fd/{}", listener.as_raw_fd())).unwrap();
    let output = run(&shell("ls -l /proc/$$/fd"), json!({})).await.unwrap();
    let open = output["stdout"].as_str().unwrap();
    assert!(open.contains("pipe:"), "{open}");
    for ours in [file.path(), &socket] {
        assert!(!open.contains(ours.to_str().unwrap()), "{} is inherited: {open}", ours.display());
    }
}

#[tokio::test]
async fn stdin_is_the_payloads_and_then_closed() {
    let cat = exec(json!({ "program": "/bin/cat", "max_output_bytes": 1 << 20 }));
    assert_eq!(run(&cat, json!({})).await.unwrap()["stdout"], "");
    let text = "line\n".repeat(100_000);
    assert_eq!(run(&cat, json!({ "stdin": text })).await.unwrap()["stdout"], text);
    assert_eq!(run(&cat, json!({ "stdin_base64": "AP8=" })).await.unwrap()["stdout_base64"], "AP8=");
    assert!(run(&cat, json!({ "stdin": "", "stdin_base64": "" })).await.is_err());
    let output = run(&shell("exec <&-; echo done"), json!({ "stdin": text })).await.unwrap();
    assert_eq!(output["stdout"], "done\n");
}

#[tokio::test]
async fn output_beyond_the_limit_is_cut_and_drained() {
    let exec = exec(json!({
        "program": "/bin/sh", "args": ["-c", "head -c 5000000 /dev/zero | tr '\\0' x; echo oops >&2; echo end >&2"],
        "env": { "PATH": "/usr/bin:/bin" }, "max_output_bytes": 6,
    }));
    let output = run(&exec, json!({})).await.unwrap();
    assert_eq!((&output["stdout"], &output["stdout_truncated"]), (&json!("xxxxxx"), &json!(true)));
    assert_eq!((&output["stderr"], &output["stderr_truncated"]), (&json!("oops\ne"), &json!(true)));
}

#[tokio::test]
async fn exit_codes_and_signals_become_errors() {
    let exec = exec(json!({
        "program": "/bin/sh", "args": ["-c", "echo out; echo why >&2; exit {code}"], "retry_exit_codes": [75],
        "params": { "code": { "type": "integer" } },
    }));
    for (code, retryable) in [(1, false), (75, true)] {
        let error = run(&exec, json!({ "params": { "code": code } })).await.unwrap_err();
        assert_eq!(error.code, format!("exec.exit.{code}"));
        assert_eq!((error.retryable, error.cause), (retryable, Cause::Handler));
        assert!(error.message.contains("why"), "{}", error.message);
        let details = details(&error);
        assert_eq!((&details["exit_code"], &details["stdout"]), (&json!(code), &json!("out\n")));
    }
    let error = run(&shell("kill -9 $$"), json!({})).await.unwrap_err();
    assert_eq!((error.code.as_str(), error.retryable, error.cause), ("exec.signal.9", true, Cause::Crash));
    assert_eq!(details(&error)["exit_code"], Value::Null);
}

#[tokio::test]
async fn details_of_a_failure_are_bounded() {
    let error = run(&shell("yes '\"' | head -c 200000; yes | head -c 200000 >&2; exit 3"), json!({})).await;
    let bytes = error.unwrap_err().details.unwrap().bytes();
    assert!((1000..=DETAILS_MAX).contains(&bytes.len()), "{}", bytes.len());
}

#[tokio::test]
async fn a_success_fits_an_output_however_it_is_written() {
    let zeros = run(&shell("head -c 262144 /dev/zero"), json!({})).await.unwrap();
    assert_eq!(zeros["stdout_base64"].as_str().unwrap().len(), 262_144_usize.div_ceil(3) * 4);
    assert_eq!(zeros["stdout_truncated"], false);

    let script = "yes '' | head -c 262144; yes '' | head -c 262144 >&2";
    let lines = run(&shell(script), json!({})).await.unwrap();
    let size = lines.to_string().len();
    assert!((MAX_OUTPUT / 4..=MAX_OUTPUT).contains(&size), "{size}");
    assert_eq!((&lines["stdout_truncated"], &lines["stderr_truncated"]), (&json!(true), &json!(true)));

    let tiny = exec_within(10, json!({ "program": "/bin/echo", "args": ["x"] }));
    let output = run(&tiny, json!({})).await.unwrap();
    assert_eq!((&output["stdout"], &output["stdout_truncated"]), (&json!(""), &json!(true)));
}

#[tokio::test]
async fn what_cannot_start_says_so() {
    let error = run(&exec(json!({ "program": "/nowhere/at/all" })), json!({})).await.unwrap_err();
    assert_eq!((error.code.as_str(), error.retryable), ("exec.start", false));
    let error =
        run(&exec(json!({ "program": "/bin/true", "dir": "/nowhere" })), json!({})).await.unwrap_err();
    assert_eq!((error.code.as_str(), error.retryable), ("exec.start", false));
}

#[tokio::test]
async fn the_end_of_the_leader_is_the_end_of_all() {
    let dir = tempdir().unwrap();
    let file = dir.path().join("pid");
    let exec = shell(&format!("sleep 300 & echo $! > {}; echo done", file.display()));
    let start = Instant::now();
    // The grandchild holds stdout open.
    assert_eq!(run(&exec, json!({})).await.unwrap()["stdout"], "done\n");
    assert!(start.elapsed() < Duration::from_secs(30));
    assert!(is_gone(pid_in(file).await).await);
}

#[tokio::test]
async fn a_cancel_kills_the_whole_group_even_if_it_does_not_listen() {
    let dir = tempdir().unwrap();
    let file = dir.path().join("pid");
    let script =
        "trap '' TERM; sh -c 'trap \"\" TERM; echo $$ > FILE; while :; do sleep 1; done' & wait; sleep 300";
    let exec = shell(&script.replace("FILE", file.to_str().unwrap()));
    let (context, cancelled) = context();
    let running = tokio::spawn(async move { exec.run(context, input(json!({}))).await });
    let grandchild = pid_in(file).await;
    cancelled.cancel();
    let ended = tokio::time::timeout(Duration::from_secs(30), running).await.expect("it still runs");
    assert_eq!(ended.unwrap().unwrap_err().code, "interrupted");
    assert!(is_gone(grandchild).await);
}

#[tokio::test]
async fn a_process_may_tidy_up_before_it_is_killed() {
    let dir = tempdir().unwrap();
    let (pid, tidied) = (dir.path().join("pid"), dir.path().join("tidied"));
    let script = format!(
        "trap 'echo > {}; exit' TERM; echo $$ > {}; while :; do sleep 0.1; done",
        tidied.display(),
        pid.display()
    );
    let exec = shell(&script);
    let (context, cancelled) = context();
    let running = tokio::spawn(async move { exec.run(context, input(json!({}))).await });
    pid_in(pid).await;
    cancelled.cancel();
    assert_eq!(running.await.unwrap().unwrap_err().code, "interrupted");
    assert!(tidied.exists());
}

#[tokio::test]
async fn dropping_the_attempt_kills_the_group_and_frees_the_place() {
    let dir = tempdir().unwrap();
    let file = dir.path().join("pid");
    let exec =
        std::sync::Arc::new(shell(&format!("sh -c 'echo $$ > {}; sleep 300; :' & wait", file.display())));
    let running = tokio::spawn({
        let exec = exec.clone();
        async move { exec.run(context().0, input(json!({}))).await }
    });
    let grandchild = pid_in(file).await;
    assert_eq!(exec.commands["it"].permits.available_permits(), 0);
    running.abort();
    assert!(is_gone(grandchild).await);
    assert!(running.await.unwrap_err().is_cancelled());
    assert_eq!(exec.commands["it"].permits.available_permits(), 1);
}

#[test]
fn mistakes_of_the_configuration_name_their_key() {
    for (key, settings) in [
        ("program", json!({ "program": "sh" })),
        ("dir", json!({ "program": "/bin/sh", "dir": "tmp" })),
        ("concurrency", json!({ "program": "/bin/sh", "concurrency": 0 })),
        ("env.\"A=B\"", json!({ "program": "/bin/sh", "env": { "A=B": "" } })),
        ("args[1]", json!({ "program": "/bin/sh", "args": ["-c", "{"] })),
        ("args[0]", json!({ "program": "/bin/sh", "args": ["{x}"] })),
        ("params.x", json!({ "program": "/bin/sh", "params": { "x": { "type": "text" } } })),
        ("params.\"a b\"", json!({ "program": "/bin/sh", "params": { "a b": { "type": "text" } } })),
        (
            "params.x",
            json!({ "program": "/bin/sh", "args": ["{x}"], "params": { "x": { "type": "choice", "values": [] } } }),
        ),
        (
            "params.x",
            json!({ "program": "/bin/sh", "args": ["{x}"], "params": { "x": { "type": "path", "root": "tmp" } } }),
        ),
        (
            "params.x",
            json!({ "program": "/bin/sh", "args": ["{x}"], "params": { "x": { "type": "integer", "min": 2, "max": 1 } } }),
        ),
    ] {
        let commands = BTreeMap::from([("it".to_owned(), command(settings))]);
        let error = Exec::new(&config::Exec { commands }, MAX_OUTPUT).unwrap_err().to_string();
        assert!(error.starts_with(&format!("exec.commands.it.{key}: ")), "{error}");
    }
}
