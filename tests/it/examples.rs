//! The examples, run as they are. `cargo test` builds them along with the tests.

use std::{
    io::{BufRead as _, BufReader},
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use crate::support::program;

/// One of them, as a program.
pub fn example(name: &str) -> Command {
    let deps = std::env::current_exe().expect("the path of this test");
    let path: PathBuf = deps.ancestors().nth(2).expect("the target directory").join("examples").join(name);
    assert!(path.exists(), "{} is not built: run `cargo build --examples`", path.display());
    Command::new(path)
}

/// Ended with the test.
pub struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_program_serves_its_own_handlers_and_a_watcher_goes_on_where_it_was() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut embed = example("embed");
    embed.arg("127.0.0.1:0").arg(dir.path().join("data")).stdout(Stdio::piped());
    let mut embed = Running(embed.spawn().expect("the example starts"));
    let mut line = String::new();
    BufReader::new(embed.0.stdout.take().expect("a pipe")).read_line(&mut line).expect("text");
    let server = line.trim().strip_prefix("listening on ").expect("where it listens").to_owned();

    let greeted = jobwire(&server, &["run", "greet", "--json", r#"{"name":"Ada"}"#, "-o", "table"]);
    assert_eq!(String::from_utf8_lossy(&greeted.stdout).trim(), r#""Hello, Ada!""#);
    let refused = jobwire(&server, &["run", "greet", "--json", r#"{"name":""}"#]);
    assert!(String::from_utf8_lossy(&refused.stdout).contains("greet.nobody"), "{refused:?}");
    let counted = jobwire(&server, &["run", "primes", "--json", r#"{"below":100}"#]);
    assert!(String::from_utf8_lossy(&counted.stdout).contains(r#""primes": 25"#), "{counted:?}");

    for (count, seen) in [("20", 3 + 21), ("5", 6)] {
        let submitted = example("submitter").args([&server, count]).output().expect("the example runs");
        let said = String::from_utf8_lossy(&submitted.stdout).into_owned();
        assert!(
            submitted.status.success() && said.contains(&format!("{count} accepted, 0 rejected")),
            "{said}"
        );
        assert!(said.contains("done: true"), "{said}");
        watch(&server, &dir.path().join("cursor").to_string_lossy(), seen);
    }
}

/// Watches until `count` outcomes were printed. If one was told twice, one is missing at the end of it.
fn watch(server: &str, cursor: &str, count: usize) {
    let mut watcher = example("watcher");
    let mut watcher =
        Running(watcher.args([server, cursor]).stdout(Stdio::piped()).spawn().expect("it starts"));
    let mut lines = BufReader::new(watcher.0.stdout.take().expect("a pipe")).lines();
    for _ in 0..count {
        let line = lines.next().expect("an outcome").expect("text");
        assert!(line.contains("STATE_"), "{line}");
    }
    // Time to store its last cursor; what it prints in it would be seen by the next watcher as missing.
    std::thread::sleep(Duration::from_millis(300));
}

fn jobwire(server: &str, arguments: &[&str]) -> Output {
    let mut command = program();
    command.args(arguments).env("JOBWIRE_SERVER", server).output().expect("jobwire runs")
}
