//! PgBouncer between a server and its database.

use std::{
    fs,
    net::TcpStream,
    os::unix::fs::PermissionsExt as _,
    process::{Child, Command, Stdio},
};

use jobwire::proto::job::State;

use super::{Cluster, give};
use crate::{
    calls::{eventually, finish},
    support::{Server, free_address, jobwire, submit},
};

/// Ended with the test.
struct Pooler {
    child: Child,
    url: String,
}

impl Pooler {
    async fn start(cluster: &Cluster, mode: &str, dir: &tempfile::TempDir) -> Self {
        // postgres://jobwire@127.0.0.1:PORT/postgres
        let (_, place) = cluster.url.split_once('@').expect("a user");
        let (host, rest) = place.split_once(':').expect("a port");
        let (port, database) = rest.split_once('/').expect("a database");
        let address = free_address();
        let (own_host, own_port) = address.split_once(':').expect("a port");
        // It runs as somebody else.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("it is ours");
        let (settings, users) = (dir.path().join(format!("{mode}.ini")), dir.path().join("users"));
        fs::write(&users, "\"jobwire\" \"\"\n").expect("a file");
        let text = format!(
            "[databases]\n{database} = host={host} port={port}\n\
             [pgbouncer]\nlisten_addr = {own_host}\nlisten_port = {own_port}\nunix_socket_dir =\n\
             auth_type = trust\nauth_file = {}\npool_mode = {mode}\ndefault_pool_size = 30\n",
            users.display()
        );
        fs::write(&settings, text).expect("a file");
        give(dir.path());
        let path = format!("{}:/usr/sbin", std::env::var("PATH").expect("a path"));
        let mut command = Command::new("pgbouncer");
        // As root it does not run.
        if rustix::process::getuid().is_root() {
            command.args(["--user", "postgres"]);
        }
        let child = command.arg("--quiet").arg(&settings).env("PATH", path).stdin(Stdio::null()).spawn();
        let child = child.expect("pgbouncer is installed: `make tools` does that");
        eventually(async || TcpStream::connect(&address).ok()).await;
        Self { child, url: format!("postgres://jobwire@{address}/{database}") }
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn a_pooler_that_keeps_sessions_will_do_and_one_that_does_not_is_refused() {
    let cluster = Cluster::start(&[]);
    let dir = tempfile::tempdir().expect("a directory");
    for mode in ["transaction", "statement"] {
        let pooler = Pooler::start(&cluster, mode, &dir).await;
        let (code, said) = jobwire(&["serve", "--listen", "127.0.0.1:0", "--store", &pooler.url]);
        assert!(code == Some(1) && said.contains("pool_mode = session"), "{mode}: {said}");
    }
    let pooler = Pooler::start(&cluster, "session", &dir).await;
    let servers = [Server::on_database(&pooler.url, ""), Server::on_database(&pooler.url, "")];
    for server in &servers {
        let job = finish(&server.client().await, submit("echo", "1")).await;
        assert_eq!(job.state(), State::Succeeded);
    }
}
