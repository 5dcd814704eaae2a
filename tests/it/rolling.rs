//! The servers of `examples/replicas/run.sh` behind nginx, stopped one after the other under load. What they share is judged
//! by the ledger of the faults; what users have, the library, needs to be told nothing.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader},
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
};

use fastrand::Rng;
use futures_util::StreamExt as _;
use jobwire::{
    Context, JobError,
    client::{Client, Worker},
    config::Workers,
    handlers::Handlers,
    proto::{
        JobFilter, WatchResultsRequest, job::State, watch_results_request::Start,
        watch_results_response::Event,
    },
};
use parking_lot::Mutex;
use tempfile::TempDir;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::{
    calls::eventually,
    kill::{Ask, Course, Shared, Totals, verify},
    support::{PATIENCE, program},
};

const SERVERS: usize = 3;

/// The script under way.
struct Script {
    child: Child,
    said: Arc<Mutex<Vec<String>>>,
    dir: TempDir,
    port: u16,
}

impl Script {
    fn start() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let port = free_ports(1 + SERVERS);
        let mut child = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/replicas/run.sh"))
            .args(["--replicas", &SERVERS.to_string(), "--port", &port.to_string()])
            .env("JOBWIRE_BIN", program().get_program())
            .env("JOBWIRE_WORKERS__LEASE", "5s")
            .env("JOBWIRE_WORKERS__HEARTBEAT", "500ms")
            .env("JOBWIRE_DRAIN_TIMEOUT", "1s")
            .env("TMPDIR", dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the script can be run");
        let said = Arc::<Mutex<Vec<String>>>::default();
        let (lines, heard) =
            (BufReader::new(child.stdout.take().expect("it is piped")).lines(), said.clone());
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(|line| heard.lock().push(line)));
        Self { child, said, dir, port }
    }

    fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The end of the newest line that begins like this, once there are so many of them.
    async fn said(&self, begin: &str, times: usize) -> String {
        eventually(async || {
            let said = self.said.lock();
            let lines: Vec<&str> = said.iter().filter_map(|line| line.strip_prefix(begin)).collect();
            (lines.len() >= times).then(|| lines.last().map(|line| line.trim().to_owned())).flatten()
        })
        .await
    }

    /// Stops a server, and waits until it is back.
    async fn restart(&self, number: usize) {
        let begin = format!("replica {number}: ");
        let starts = self.said.lock().iter().filter(|line| line.starts_with(&begin)).count();
        let line = self.said(&begin, starts).await;
        let address = line.split(',').next().expect("an address").to_owned();
        let process = line.split("process ").nth(1).and_then(|rest| rest.split(',').next());
        let stopped = Command::new("kill").args(["-TERM", process.expect("a number")]).status();
        assert!(stopped.expect("kill runs").success());
        self.said(&begin, starts + 1).await;
        eventually(async || Client::connect(&address).await.ok()?.info().await.ok()).await;
    }

    fn signal(&self, name: &str) {
        let status = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status();
        assert!(status.expect("kill runs").success());
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            self.signal("TERM");
            let _ = self.child.wait();
        }
    }
}

/// So many in a row.
fn free_ports(count: usize) -> u16 {
    let free = |&first: &u16| {
        (first..).take(count).map(|port| TcpListener::bind(("127.0.0.1", port))).all(|bound| bound.is_ok())
    };
    std::iter::repeat_with(|| fastrand::u16(12_000..19_000)).find(free).expect("there is no end of them")
}

/// The queue of what is submitted through the library.
const QUEUE: &str = "steady";

/// Submits through the library until it is over. Answers with the jobs.
async fn submit_all(client: Client, ledger: Shared, over: CancellationToken) -> Vec<String> {
    let (mut ids, mut rng) = (Vec::new(), Rng::new());
    while !over.is_cancelled() {
        let (number, request) = ledger.lock().ask(|number| {
            let mut ask = Ask::steady(&mut rng, number);
            ask.request.spec.as_mut().expect("a spec").queue = QUEUE.into();
            ask
        });
        let reply = client.submit(request).await.expect("it is repeated");
        ledger.lock().acknowledge(number, &reply);
        ids.push(reply.job.expect("a job").job_id);
    }
    ids
}

/// Every outcome of theirs, as often as it was told; ends when they are as many as `count` says.
async fn watch_all(client: Client, count: tokio::sync::watch::Receiver<usize>) -> BTreeMap<String, usize> {
    let filter = Some(JobFilter { queues: vec![QUEUE.into()], ..Default::default() });
    let start = Some(Start::Earliest(true));
    let heartbeat_interval = Some(crate::support::seconds(1.0));
    let mut watch =
        client.watch(WatchResultsRequest { filter, start, heartbeat_interval, ..Default::default() });
    let mut told = BTreeMap::new();
    while told.len() < *count.borrow() {
        let message = watch.next().await.expect("it has no end").expect("it resumes");
        if let Some(Event::Finished(job)) = message.event {
            assert_eq!(job.state(), State::Succeeded, "{job:?}");
            *told.entry(job.job_id).or_default() += 1;
        }
    }
    told
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_loses_nothing() {
    let mut script = Script::start();
    script.said("ready: ", 1).await;
    let url = script.said("database: ", 1).await;
    let address = script.address();
    let client = Client::connect(&address).await.expect("nginx is there");

    let mut handlers = Handlers::new(&Workers::default());
    handlers.add("echo", async |_: Context, input: serde_json::Value| Ok::<_, JobError>(input)).unwrap();
    let (over, done) = (CancellationToken::new(), CancellationToken::new());
    let worker = Worker::new(&address, handlers).expect("an address").concurrency(4);
    let worker = tokio::spawn(worker.run(done.clone().cancelled_owned()));
    let mut totals = Totals::default();
    let mut course = Course::new(Rng::new(), 2);
    course.ledger.lock().servers_stop = true;
    let submit = || tokio::spawn(submit_all(client.clone(), course.ledger.clone(), over.clone()));
    let submitters = [submit(), submit()];
    let (count, counted) = tokio::sync::watch::channel(usize::MAX);
    let watcher = tokio::spawn(watch_all(client.clone(), counted));

    for number in 1..=SERVERS {
        let load = course.load(std::slice::from_ref(&address));
        course.wait_to_strike(&load).await;
        script.restart(number).await;
        course.unload(load, false).await;
        totals.fault("restart");
    }

    over.cancel();
    let mut ids = Vec::new();
    for submitter in submitters {
        ids.extend(submitter.await.expect("every submit was accepted"));
    }
    count.send_replace(ids.len());
    // The watcher looks when it hears something.
    let told = timeout(PATIENCE, watcher).await.expect("all outcomes are told").expect("none was lost");
    assert_eq!(told.keys().collect::<Vec<_>>(), {
        ids.sort();
        ids.iter().collect::<Vec<_>>()
    });
    assert!(told.values().all(|&times| times == 1), "an outcome was told twice");
    done.cancel();
    worker.await.expect("no panic").expect("it found its way");
    // What is in their memory is a moment behind, and the last word of one that stops may not reach the others.
    for number in 1..=SERVERS {
        script.restart(number).await;
    }
    course.end(&[address], &mut totals, async || verify(&url).await).await;
    println!("{totals}; {} jobs of the library", told.len());

    script.signal("TERM");
    script.child.wait().expect("it ends");
    let left: Vec<_> = script.dir.path().read_dir().expect("a directory").collect();
    assert!(left.is_empty(), "{left:?}");
}
