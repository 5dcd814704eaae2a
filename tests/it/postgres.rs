//! The tests of the services run on PostgreSQL too: `JOBWIRE_TEST_STORE=postgres`.

use std::{
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        LazyLock,
        atomic::{AtomicU32, Ordering},
    },
};

use tokio_postgres::NoTls;

/// One for all tests of this process; it stops when the pipe to it is closed, so with this process.
static CLUSTER: LazyLock<(Child, String)> = LazyLock::new(|| {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/postgres.sh");
    let mut child = Command::new(script)
        .arg("serve")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("tools/postgres.sh can be run");
    let mut url = String::new();
    let stdout = child.stdout.take().expect("stdout is piped");
    BufReader::new(stdout).read_line(&mut url).expect("stdout is text");
    assert!(url.starts_with("postgres://"), "no PostgreSQL: see above");
    (child, url.trim().to_owned())
});

/// Whether servers keep their jobs in PostgreSQL.
pub fn is_asked_for() -> bool {
    std::env::var("JOBWIRE_TEST_STORE").is_ok_and(|store| store == "postgres")
}

/// The URL of a schema of its own, empty as yet.
pub fn schema() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let name = format!("test_{}", COUNT.fetch_add(1, Ordering::Relaxed));
    let url = &CLUSTER.1;
    execute(url, &format!("create schema {name}"));
    format!("{url}?options=-csearch_path%3D{name}")
}

/// Executes statements, whether the test has a runtime or not.
pub fn execute(url: &str, sql: &str) {
    let (url, sql) = (url.to_owned(), sql.to_owned());
    let work = async move {
        let (client, connection) = tokio_postgres::connect(&url, NoTls).await.expect("PostgreSQL answers");
        tokio::spawn(connection);
        client.batch_execute(&sql).await.expect("the statement is sound");
    };
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    std::thread::spawn(move || runtime().block_on(work)).join().expect("no panic");
}
