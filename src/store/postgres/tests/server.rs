//! A PostgreSQL for all tests of this process, and a schema of its own for each.

use std::{
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    sync::LazyLock,
    time::Duration,
};

use tokio_postgres::{Client, NoTls};
use uuid::Uuid;

/// The server stops when the pipe to it is closed, so with this process.
static SERVER: LazyLock<(Child, String)> = LazyLock::new(|| {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/postgres.sh");
    let mut child = Command::new(script)
        .arg("serve")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("tools/postgres.sh can be run");
    let mut url = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut url).unwrap();
    assert!(url.starts_with("postgres://"), "no PostgreSQL: see above");
    (child, url.trim().to_owned())
});

/// Where one test's tables are.
pub struct Schema {
    name: String,
    url: String,
}

impl Schema {
    /// The schema that stands for a directory.
    pub fn of(dir: &Path) -> Self {
        let path = dir.to_str().expect("text");
        let name = format!("test_{}", Uuid::new_v5(&Uuid::NAMESPACE_OID, path.as_bytes()).simple());
        let url = format!("{}?application_name={name}&options=-csearch_path%3D{name}", SERVER.1);
        Self { name, url }
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    /// One that nobody has used.
    pub async fn new() -> Self {
        let schema = Self::of(Path::new(&Uuid::new_v4().to_string()));
        schema.make().await;
        schema
    }

    /// Makes it, if it is not there. Otherwise waits until the server knows that the process before is gone, as a process
    /// that starts after another one has ended may expect.
    pub async fn make(&self) {
        self.execute(&format!("create schema if not exists {}", self.name)).await;
        self.wait_for_locks(0).await;
    }

    /// Waits until the server knows of so many processes that live.
    pub async fn wait_for_locks(&self, count: i64) {
        let client = self.connect().await;
        let locks = "select count(*) from pg_locks where locktype = 'advisory' and objsubid = 2 \
             and classid = to_regclass('replica')::oid and granted";
        while client.query_one(locks, &[]).await.unwrap().get::<_, i64>(0) != count {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    pub async fn execute(&self, sql: &str) {
        self.connect().await.batch_execute(sql).await.unwrap();
    }

    /// Cuts all connections of stores.
    pub async fn cut(&self) {
        let sessions = "select pg_terminate_backend(pid) from pg_locks where locktype = 'advisory' \
             and classid = 'replica'::regclass::oid \
             union all select pg_terminate_backend(pid) from pg_stat_activity where application_name = $1";
        self.connect().await.query(sessions, &[&self.name]).await.unwrap();
    }

    /// A connection beside the store's.
    pub async fn connect(&self) -> Client {
        let url = self.url.replace("application_name=", "application_name=test_of_");
        let (client, connection) = tokio_postgres::connect(&url, NoTls).await.unwrap();
        tokio::spawn(connection);
        client
    }
}
