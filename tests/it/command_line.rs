//! The real program against a real server: what people type, what they see, what scripts can rely on.

use std::{
    fs::File,
    io::{self, BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Output, Stdio},
    thread::sleep,
    time::Duration,
};

use serde_json::Value;
use tempfile::TempDir;

use crate::support::{jobwire, program, told as told_all};

struct Server {
    process: Child,
    address: String,
}

impl Server {
    fn start(listen: &str, data: &Path) -> Self {
        let mut process = program()
            .args(["serve", "--listen", listen, "--data"])
            .arg(data)
            .env("JOBWIRE_LOG", "off")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim_end().strip_prefix("listening on ").expect("the first line").to_owned();
        Self { process, address }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = program();
        command.args(arguments).env("JOBWIRE_SERVER", &self.address).stdin(Stdio::null());
        command
    }

    /// Exit code, stdout, stderr.
    fn run(&self, arguments: &[&str]) -> (i32, String, String) {
        told(&self.command(arguments).output().unwrap())
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let (code, stdout, stderr) = self.run(arguments);
        assert_eq!(code, 0, "{arguments:?}: {stderr}");
        serde_json::from_str(&stdout).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn told(output: &Output) -> (i32, String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

/// A pipe whose reader has gone.
fn unread() -> Stdio {
    let (reader, writer) = io::pipe().unwrap();
    drop(reader);
    writer.into()
}

fn serve() -> (Server, TempDir) {
    let data = tempfile::tempdir().unwrap();
    (Server::start("127.0.0.1:0", &data.path().join("data")), data)
}

#[test]
fn a_job_is_run_and_its_outcome_is_the_exit_code() {
    let (server, _data) = serve();
    let job = server.json(&["run", "echo", "--json", r#"{"hello":"world"}"#]);
    assert_eq!(job["state"], "STATE_SUCCEEDED");
    assert_eq!(job["output"]["json"]["hello"], "world");

    let (code, stdout, _) = server.run(&["run", "echo", "--text", "hi", "-o", "table"]);
    assert_eq!((code, stdout.as_str()), (0, "hi"));

    let bad = ["run", "sleep", "--json", r#"{"duration":"soon"}"#, "--max-attempts", "1"];
    let (code, stdout, _) = server.run(&bad);
    assert_eq!(code, 1);
    assert_eq!(serde_json::from_str::<Value>(&stdout).unwrap()["state"], "STATE_FAILED");

    let (code, _, _) = server.run(&["run", "no-such-kind", "--start-timeout", "100ms"]);
    assert_eq!(code, 4);
    let (code, _, stderr) =
        server.run(&["run", "sleep", "--json", r#"{"duration":"1h"}"#, "--timeout", "200ms"]);
    assert_eq!(code, 124);
    assert!(stderr.contains("goes on"), "{stderr}");
}

#[test]
fn a_payload_comes_from_stdin_to_the_byte() {
    let (server, _data) = serve();
    let mut command = server.command(&["run", "echo", "--file", "-", "-o", "table"]);
    let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut process.stdin.take().unwrap(), b"\x00\xff\n").unwrap();
    let output = process.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(0), b"\x00\xff\n".as_slice()));
}

#[test]
fn a_job_goes_through_its_life() {
    let (server, _data) = serve();
    let submitted = server.json(&["submit", "echo", "--job-id", "a", "--delay", "1h", "-l", "tenant=acme"]);
    assert_eq!(submitted["job"]["state"], "STATE_SCHEDULED");
    assert!(submitted["cursor"].is_string());
    assert_eq!(server.json(&["cancel", "a", "--reason", "not now"])["state"], "STATE_CANCELLED");
    assert_eq!(server.run(&["watch", "a", "--until-done"]).0, 1);
    // Also if its end is not shown.
    for start in [["--state", "succeeded"], ["--after", submitted["cursor"].as_str().unwrap()]] {
        assert_eq!(server.run(&[&["watch", "a", "--until-done"], &start[..]].concat()).0, 1, "{start:?}");
    }
    assert_eq!(server.json(&["list", "-l", "tenant=acme", "--state", "cancelled"])["jobs"][0]["jobId"], "a");
    assert_eq!(server.json(&["retry", "a"])["run"], 2);
    assert_eq!(server.json(&["get", "a", "--wait", "10s"])["done"], true);
    let (code, stdout, _) = server.run(&["watch", "a", "--until-done"]);
    assert_eq!(code, 0);
    assert_eq!(serde_json::from_str::<Value>(&stdout).unwrap()["finished"]["state"], "STATE_SUCCEEDED");
    assert_eq!(server.run(&["delete", "a"]).0, 0);
    let (code, _, stderr) = server.run(&["get", "a"]);
    assert_eq!(code, 1);
    assert!(stderr.contains("JOB_NOT_FOUND"), "{stderr}");
}

#[test]
fn one_job_that_fails_does_not_keep_the_others() {
    let (server, _data) = serve();
    for id in ["a", "b"] {
        server.json(&["submit", "echo", "--job-id", id, "--wait", "10s"]);
    }
    let (code, _, stderr) = server.run(&["delete", "a", "nope", "b"]);
    assert_eq!(code, 1);
    assert!(stderr.starts_with("error: nope: "), "{stderr}");
    assert_eq!(server.json(&["list"])["jobs"], Value::Null);
}

#[test]
fn commands_that_act_go_on_without_a_reader() {
    let (server, _data) = serve();
    for id in ["a", "b", "c"] {
        server.json(&["submit", "echo", "--job-id", id, "--delay", "1h"]);
    }
    let cancel = server.command(&["cancel", "a", "b", "c", "-o", "json"]).stdout(unread()).output().unwrap();
    assert_eq!(told(&cancel), (0, String::new(), String::new()));
    for id in ["a", "b", "c"] {
        assert_eq!(server.json(&["get", id])["state"], "STATE_CANCELLED", "{id}");
    }
    // Nor does one that fails keep the others if nobody hears of it.
    let mut retry = server.command(&["retry", "a", "nope", "b", "-o", "table"]);
    let retried = retry.stdout(unread()).stderr(unread()).status().unwrap();
    assert_eq!(retried.code(), Some(1));
    for (id, run) in [("a", 2), ("b", 2), ("c", 1)] {
        assert_eq!(server.json(&["get", id])["run"], run, "{id}");
    }
}

#[test]
fn an_outcome_is_the_exit_code_also_without_a_reader() {
    let (server, _data) = serve();
    let expires = ["run", "no-such-kind", "--start-timeout", "100ms"];
    let expired = server.command(&expires).stdout(unread()).output().unwrap();
    assert_eq!(told(&expired), (4, String::new(), String::new()));
    let expired = server.command(&expires).stdout(unread()).stderr(unread()).status().unwrap();
    assert_eq!(expired.code(), Some(4));
    let full = File::options().write(true).open("/dev/full").unwrap();
    let (code, _, stderr) = told(&server.command(&expires).stdout(full).output().unwrap());
    assert_eq!(code, 4, "{stderr}");
    assert!(stderr.contains("cannot write to stdout"), "{stderr}");

    let succeeds = ["run", "echo", "--text", "hi", "-o", "table"];
    let succeeded = server.command(&succeeds).stdout(unread()).output().unwrap();
    assert_eq!(told(&succeeded), (0, String::new(), String::new()));
}

#[test]
fn a_damaged_store_is_not_sound_also_without_a_reader() {
    let (server, data) = serve();
    server.json(&["run", "echo", "--text", "hi"]);
    let (store, copy) = (data.path().join("data"), data.path().join("copy"));
    let (store, copy) = (store.to_str().unwrap(), copy.to_str().unwrap());
    let (code, said) = jobwire(&["backup", copy, "--data", store]);
    assert_eq!(code, Some(0), "{said}");
    let verify = |format| program().args(["verify", copy, "-o", format]).stdout(unread()).output().unwrap();
    assert_eq!(told(&verify("json")), (0, String::new(), String::new()));
    let database = rusqlite::Connection::open(Path::new(copy).join("jobwire.db")).unwrap();
    assert_eq!(database.execute("UPDATE job SET crc = crc + 1", []).unwrap(), 1);
    for format in ["json", "table"] {
        assert_eq!(told(&verify(format)), (1, String::new(), String::new()), "{format}");
    }
}

#[test]
fn a_backlog_is_not_measured_on_a_server_that_runs() {
    let (code, said) = jobwire(&["bench", "backlog", "--running"]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("leave --running out"), "{said}");
}

#[test]
fn waits_and_watches_outlive_a_server_that_is_killed() {
    let (mut server, data) = serve();
    let run =
        ["run", "sleep", "--json", r#"{"duration":"2s"}"#, "--job-id", "a", "--initial-backoff", "10ms"];
    let run = server.command(&run).stdout(Stdio::piped()).spawn().unwrap();
    while server.run(&["get", "a"]).0 != 0 {
        sleep(Duration::from_millis(20));
    }
    let watch = server.command(&["watch", "a", "--until-done"]).stdout(Stdio::piped()).spawn().unwrap();
    sleep(Duration::from_millis(300));
    server.process.kill().unwrap();
    server.process.wait().unwrap();
    let address = server.address.clone();
    let _again = Server::start(&address, &data.path().join("data"));

    let (code, stdout, stderr) = told(&run.wait_with_output().unwrap());
    assert_eq!(code, 0, "{stderr}");
    assert_eq!(serde_json::from_str::<Value>(&stdout).unwrap()["attempt"], 2);
    let (code, stdout, stderr) = told(&watch.wait_with_output().unwrap());
    assert_eq!(code, 0, "{stderr}");
    assert_eq!(stdout.lines().count(), 1, "{stdout}");
}

#[test]
fn without_a_server_there_is_a_way_out() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let output = program().args(["info", "--server", &free]).output().unwrap();
    let (code, stdout, stderr) = told(&output);
    assert_eq!((code, stdout.as_str()), (69, ""));
    assert!(stderr.contains(&free) && stderr.contains("jobwire serve"), "{stderr}");
}

#[test]
fn settings_are_checked_before_anything_is_served() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("jobwire.toml");
    std::fs::write(&file, "[limits]\nmax_wat = \"1s\"\n").unwrap();
    for command in [["serve"].as_slice(), &["config", "check"], &["config", "show"]] {
        let output = program().args(command).arg("--config").arg(&file).output().unwrap();
        let (code, stdout, stderr) = told(&output);
        assert_eq!((code, stdout.as_str()), (2, ""), "{command:?}");
        assert!(stderr.contains("jobwire.toml:2: `limits.max_wat`"), "{stderr}");
        assert!(stderr.contains("did you mean `limits.max_wait`?"), "{stderr}");
    }
}

#[test]
fn what_config_show_prints_is_a_configuration() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("jobwire.toml");
    let (code, shown, stderr) = told(&program().args(["config", "show"]).output().unwrap());
    assert_eq!(code, 0, "{stderr}");
    assert!(shown.lines().any(|line| line.starts_with("limits.max_wait = ")), "{shown}");
    std::fs::write(&file, &shown).unwrap();
    let (code, _, stderr) =
        told(&program().args(["config", "check", "--config"]).arg(&file).output().unwrap());
    assert_eq!(code, 0, "{stderr}");
}

#[test]
fn a_payload_comes_from_an_argument_or_a_file() {
    let (server, data) = serve();
    let file = data.path().join("job.json");
    std::fs::write(&file, r#"{"from":"a file"}"#).unwrap();
    let file = file.to_str().unwrap();
    for (payload, came_back) in [
        (["--json", r#"{"from":"an argument"}"#], r#"{"from":"an argument"}"#),
        (["--text", "plain"], r#""plain""#),
        (["--file", file], r#"{"from":"a file"}"#),
    ] {
        let job = server.json(&["run", "echo", payload[0], payload[1]]);
        let output = &job["output"];
        let found = if output["json"].is_null() { &output["text"] } else { &output["json"] };
        assert_eq!(found, &serde_json::from_str::<Value>(came_back).unwrap(), "{job}");
    }
    let (code, _, stderr) = server.run(&["run", "echo", "--file", "/nonexistent/job.json"]);
    assert_eq!(code, 1);
    assert!(stderr.contains("cannot read /nonexistent/job.json"), "{stderr}");
}

#[test]
fn people_get_tables() {
    let (server, _data) = serve();
    for (arguments, expected) in [
        (
            ["submit", "echo", "--job-id", "a", "--delay", "1h", "-q", "mail"].as_slice(),
            ["scheduled", "mail"].as_slice(),
        ),
        (&["list", "-q", "mail"], &["JOB", "STATE", "a ", "scheduled"]),
        (&["cancel", "a"], &["a cancelled"]),
        (&["get", "a"], &["run, attempt", "1, 0", "finished"]),
        (&["watch", "a", "--until-done"], &["cancelled", "a  echo  mail"]),
        (&["retry", "a"], &["a queued"]),
        (&["get", "a", "--wait", "10s"], &["succeeded", "2, 1"]),
        (&["delete", "a"], &[]),
        (&["info"], &["version", env!("CARGO_PKG_VERSION"), "largest payload", "kind:echo"]),
    ] {
        let table = [arguments, &["-o", "table"]].concat();
        let (code, stdout, stderr) = server.run(&table);
        // What is watched was cancelled, and its outcome is the exit code.
        assert_eq!(code, i32::from(arguments[0] == "watch"), "{arguments:?}: {stderr}");
        for text in expected {
            assert!(stdout.contains(text), "{arguments:?}: {text:?} is not in\n{stdout}{stderr}");
        }
    }
}

#[test]
fn an_exec_job_ends_with_the_code_of_its_process() {
    let server = crate::support::Server::with(
        "[exec.commands.seven]\nprogram = \"/bin/sh\"\nargs = [\"-c\", \"echo out; exit 7\"]\n",
    );
    let run = ["run", "exec", "--json", r#"{"command":"seven"}"#, "--max-attempts", "1"];
    let (code, said) = jobwire(&[run.as_slice(), &["--server", server.address()]].concat());
    assert_eq!(code, Some(7), "{said}");
    assert!(said.contains("exec.exit.7"), "{said}");
}

#[test]
fn a_watch_of_a_queue_tells_each_outcome_once_through_a_kill() {
    let (mut server, data) = serve();
    let mut watch = server.command(&["watch", "-q", "mail", "--earliest"]);
    let mut watch = Watch(watch.stdout(Stdio::piped()).spawn().unwrap());
    let mut lines = BufReader::new(watch.0.stdout.take().unwrap()).lines();
    let mut next = || {
        let line: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        assert!(line["cursor"].is_string(), "{line}");
        line["finished"]["jobId"].as_str().unwrap().to_owned()
    };
    for id in ["a", "b"] {
        server.json(&["run", "echo", "-q", "mail", "--job-id", id]);
        server.json(&["run", "echo", "-q", "other", "--job-id", &format!("not-{id}")]);
        assert_eq!(next(), id);
    }
    server.process.kill().unwrap();
    server.process.wait().unwrap();
    let address = server.address.clone();
    let again = Server::start(&address, &data.path().join("data"));
    for id in ["c", "d"] {
        again.json(&["run", "echo", "-q", "mail", "--job-id", id]);
        assert_eq!(next(), id);
    }
}

struct Watch(Child);

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn no_command_hangs_without_a_server() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    for command in [
        ["submit", "echo"].as_slice(),
        &["run", "echo"],
        &["get", "a"],
        &["list"],
        &["watch", "a"],
        &["cancel", "a"],
        &["retry", "a"],
        &["delete", "a"],
    ] {
        let (code, said) = jobwire(&[command, &["--server", &free]].concat());
        assert_eq!(code, Some(69), "{command:?}: {said}");
        assert!(said.contains("jobwire serve"), "{command:?}: {said}");
    }
}

#[test]
fn wrong_usage_is_told_apart() {
    for command in [
        [].as_slice(),
        &["launch"],
        &["submit"],
        &["submit", "echo", "--json", "{a}"],
        &["submit", "echo", "--json", "1", "--text", "2"],
        &["list", "--state", "broken"],
        &["info", "--server", "no address"],
        &["serve", "--listen", "nowhere"],
        &["serve", "--config", "/nonexistent.toml"],
        &["backup"],
    ] {
        let (code, said) = jobwire(command);
        assert_eq!(code, Some(2), "{command:?}: {said}");
        assert!(!said.is_empty(), "{command:?}");
    }
}

#[test]
fn a_port_that_is_taken_is_named() {
    let (server, data) = serve();
    let other = data.path().join("other");
    let (code, said) = jobwire(&["serve", "--listen", &server.address, "--data", other.to_str().unwrap()]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains(&format!("cannot listen on {}", server.address)), "{said}");
    assert!(said.contains("--listen"), "there is a way out: {said}");
    assert_eq!(server.json(&["run", "echo"])["state"], "STATE_SUCCEEDED");
}

#[test]
fn variables_are_settings_too() {
    let mut show = program();
    let (code, shown) = told_all(show.args(["config", "show"]).env("JOBWIRE_LIMITS__MAX_WAIT", "7s"));
    assert_eq!(code, Some(0));
    let line = shown.lines().find(|line| line.starts_with("limits.max_wait = ")).unwrap();
    assert!(line.contains("7s") && line.contains("JOBWIRE_LIMITS__MAX_WAIT"), "{line}");
    let mut check = program();
    let (code, said) = told_all(check.args(["config", "check"]).env("JOBWIRE_LIMITS__MAX_WAT", "7s"));
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("did you mean `JOBWIRE_LIMITS__MAX_WAIT`?"), "{said}");
}

#[test]
fn shells_can_complete() {
    for shell in ["bash", "zsh", "fish"] {
        let (code, script) = jobwire(&["completions", shell]);
        assert_eq!(code, Some(0), "{script}");
        for word in ["submit", "completions", "until-done", "max-attempts"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
}
