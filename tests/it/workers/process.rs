//! A worker in a process of its own, to be killed or frozen. The process is this test binary, which runs one test.

use std::{
    env,
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
    time::Duration,
};

use tokio::time::sleep;
use tonic::transport::Endpoint;

use super::{Worker, hello};
use crate::support::{Server, Workers};

const ADDRESS: &str = "JOBWIRE_TEST_WORKER_OF";

/// A process that leases jobs, keeps their leases alive, and never finishes them.
pub struct Process(Child);

impl Process {
    /// Starts it, and waits until it holds a lease.
    pub async fn start(server: &Server) -> Self {
        let program = env::current_exe().expect("a test binary");
        let child = Command::new(program)
            .args(["--exact", "workers::process::worker_process", "--ignored", "--nocapture"])
            .env(ADDRESS, server.address())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            // How it ends is told by its test.
            .stderr(Stdio::null())
            .spawn();
        let mut child = child.expect("it starts");
        let stdout = BufReader::new(child.stdout.take().expect("stdout is piped"));
        let holds = tokio::task::spawn_blocking(move || {
            stdout.lines().map_while(Result::ok).any(|line| line.contains("holds a lease"))
        });
        assert!(holds.await.expect("it is read"), "the worker ended");
        Self(child)
    }

    /// Sends a signal, such as `STOP`.
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").args([&format!("-{name}"), &self.0.id().to_string()]).status();
        assert!(status.expect("kill runs").success());
    }

    /// Whether it has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        self.0.try_wait().expect("the process can be waited for").is_some()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Ends when it is told that its lease is lost, or when its stream ends: then it says so by its exit code.
#[tokio::test]
#[ignore = "is run as a process by other tests"]
async fn worker_process() {
    let address = env::var(ADDRESS).expect("the server's address");
    let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address");
    let client = Workers::new(endpoint.connect().await.expect("the server accepts connections"));
    let mut worker = Worker::over(client, hello("process", 1)).await;
    let lease = worker.lease().await;
    worker.beat(&[&lease]).await;
    println!("holds a lease");
    loop {
        let ack = worker.beat(&[&lease]).await;
        assert!(ack.lost_lease_ids.is_empty(), "the lease is lost");
        sleep(Duration::from_millis(200)).await;
    }
}
