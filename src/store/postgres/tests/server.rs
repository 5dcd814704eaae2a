//! A PostgreSQL for all tests of this process, and a schema of its own for each.

use std::{
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    sync::LazyLock,
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
        let url = format!("{}?options=-csearch_path%3D{name}", SERVER.1);
        Self { name, url }
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    /// Makes it, if it is not there. Otherwise waits until the server knows that the process before is gone, as a process
    /// that starts after another one has ended may expect.
    pub async fn make(&self) {
        let client = self.connect().await;
        client.batch_execute(&format!("create schema if not exists {}", self.name)).await.unwrap();
        let others = "select count(*) from pg_locks where locktype = 'advisory' and objsubid = 2 \
             and classid = to_regclass('replica')::oid";
        while client.query_one(others, &[]).await.unwrap().get::<_, i64>(0) > 0 {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
    }

    /// A connection beside the store's.
    pub async fn connect(&self) -> Client {
        let (client, connection) = tokio_postgres::connect(&self.url, NoTls).await.unwrap();
        tokio::spawn(connection);
        client
    }
}
