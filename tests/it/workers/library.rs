//! The worker of the Rust library against the real server.

use std::{
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use jobwire::{
    Context, JobError,
    client::{self, Worker},
    config::Workers,
    handlers::Handlers,
    proto::{
        CancelJobRequest, GetJobRequest, Job, JobSpec, JobView, PayloadFormat, RetryPolicy, SubmitRequest,
        WatchResultsRequest, job::State, job_error::Cause, payload::Body, watch_results_request::Start,
    },
};
use serde_json::{Value, json};
use tokio::{
    sync::{Semaphore, mpsc, oneshot},
    task::JoinHandle,
    time::timeout,
};
use tonic::Code;

use super::proxy::Proxy;
use crate::{
    calls::{Watch, eventually, get, place, reach, result},
    examples::{Running, example},
    support::{Client, PATIENCE, Server, seconds, spec, submit},
};

/// A worker under way.
struct Program {
    stop: oneshot::Sender<()>,
    ended: JoinHandle<Result<(), client::Error>>,
}

impl Program {
    fn start(worker: Worker) -> Self {
        let (stop, stopped) = oneshot::channel();
        let ended = tokio::spawn(worker.run(async {
            let _ = stopped.await;
        }));
        Self { stop, ended }
    }

    async fn drain(self) {
        self.stop.send(()).expect("it still works");
        timeout(PATIENCE, self.ended).await.expect("it ends").expect("no panic").expect("no error");
    }
}

fn handlers() -> Handlers {
    let mut handlers = Handlers::new(&Workers::default());
    handlers.add("double", async |_: Context, number: i64| Ok::<_, JobError>(number * 2)).unwrap();
    handlers
}

fn worker(address: &str, handlers: Handlers) -> Worker {
    Worker::new(address, handlers).expect("an address")
}

/// A handler that says when it begins, and ends when it may.
struct Gate {
    begun: Arc<AtomicUsize>,
    may_end: Arc<Semaphore>,
    handlers: Handlers,
}

impl Gate {
    fn new() -> Self {
        let (begun, may_end) = (Arc::new(AtomicUsize::new(0)), Arc::new(Semaphore::new(0)));
        let (counter, gate) = (begun.clone(), may_end.clone());
        let mut handlers = handlers();
        let wait = move |context: Context, input: Value| {
            let (counter, gate) = (counter.clone(), gate.clone());
            async move {
                counter.fetch_add(1, Ordering::SeqCst);
                context.unless_stopped(gate.acquire()).await?.expect("it is open").forget();
                Ok::<_, JobError>(input)
            }
        };
        handlers.add("wait", wait).unwrap();
        Self { begun, may_end, handlers }
    }

    async fn has_begun(&self, times: usize) {
        eventually(async || (self.begun.load(Ordering::SeqCst) == times).then_some(())).await;
    }
}

/// Waits for a job's end, and what came out.
async fn output(client: &Client, job_id: &str) -> (Job, Value) {
    result(client, job_id).await;
    let payload_format = PayloadFormat::Raw.into();
    let request = GetJobRequest { job_id: job_id.into(), view: JobView::Full.into(), payload_format };
    let job = client.clone().get_job(request).await.expect("it is known").into_inner().job.expect("a job");
    match job.output.as_ref().and_then(|output| output.body.as_ref()) {
        Some(Body::Data(data)) => (job.clone(), serde_json::from_slice(data).expect("JSON")),
        _ => panic!("no output: {job:?}"),
    }
}

fn once(kind: &str, payload: &str) -> SubmitRequest {
    let retry = Some(RetryPolicy { max_attempts: 1, ..Default::default() });
    SubmitRequest { spec: Some(JobSpec { retry, ..spec(kind, payload) }), ..Default::default() }
}

#[tokio::test]
async fn jobs_run_and_one_that_panics_or_brings_too_much_harms_no_other() {
    let server = Server::start();
    let client = server.client().await;
    let mut handlers = handlers();
    handlers.add("panic", async |_: Context, _: Value| -> Result<(), JobError> { panic!("oh no") }).unwrap();
    handlers.add("large", async |_: Context, size: usize| Ok::<_, JobError>("x".repeat(size))).unwrap();
    let program = Program::start(worker(server.address(), handlers).concurrency(2).id("worker-7"));
    let panics = place(&client, once("panic", "1")).await;
    let large = place(&client, submit("large", &(5 << 20).to_string())).await;
    let mut ids = Vec::new();
    for number in 0..20 {
        ids.push(place(&client, submit("double", &number.to_string())).await);
    }
    for (number, id) in ids.iter().enumerate() {
        let (job, output) = output(&client, id).await;
        assert_eq!(output, number * 2);
        assert_eq!((job.attempt, job.worker_id.as_str()), (1, "worker-7"));
    }
    let job = result(&client, &panics).await;
    let error = job.error.as_ref().expect("it failed");
    assert_eq!((job.state(), error.code.as_str()), (State::Failed, "jobwire.panic"));
    assert!(error.message.contains("oh no"), "{error:?}");
    let job = result(&client, &large).await;
    let error = job.error.as_ref().expect("it failed");
    assert_eq!((job.state(), job.attempt, error.code.as_str()), (State::Failed, 1, "output.invalid"));
    program.drain().await;
}

#[tokio::test]
async fn failures_and_checkpoints_reach_the_server_as_they_were_meant() {
    let server = Server::start();
    let client = server.client().await;
    let mut handlers = handlers();
    let pages = async |context: Context, _: Value| match context.last_progress() {
        None => {
            context.checkpoint(0.5, "half", json!({"page": 7}))?;
            let later = JobError::retryable("busy", "later").with_details(&json!({"line": 3}));
            Err(later.retry_after(Duration::from_secs(1)))
        }
        Some(last) => {
            let details = last.details.as_ref().expect("a checkpoint").bytes();
            Ok(json!([context.attempt(), last.note, serde_json::from_slice::<Value>(&details).unwrap()]))
        }
    };
    handlers.add("pages", pages).unwrap();
    let refuse = async |_: Context, _: Value| Err::<(), _>(JobError::permanent("mail.refused", "no"));
    handlers.add("refuse", refuse).unwrap();
    // More than a failure may have with it.
    let long = async |context: Context, size: usize| match context.attempt() {
        1 => Err(JobError::retryable("busy", "later").with_details(&json!("x".repeat(size)))),
        _ => Ok(1),
    };
    handlers.add("long", long).unwrap();
    let program = Program::start(worker(server.address(), handlers));
    let (pages, refused) =
        (place(&client, submit("pages", "1")).await, place(&client, submit("refuse", "1")).await);
    let (job, told) = output(&client, &pages).await;
    assert_eq!(told, json!([2, "half", {"page": 7}]));
    let [first] = job.attempts.as_slice() else { panic!("one attempt failed: {job:?}") };
    let error = first.error.as_ref().unwrap();
    assert_eq!((error.code.as_str(), error.retryable), ("busy", true));
    assert!(error.details.is_some(), "{error:?}");
    let millis = |time: Option<prost_types::Timestamp>| {
        time.map(|time| time.seconds * 1000 + i64::from(time.nanos) / 1_000_000).expect("a time")
    };
    let pause = millis(job.start_time) - millis(first.finish_time);
    assert!(pause >= 1000, "{pause} ms");
    let job = result(&client, &refused).await;
    assert_eq!((job.state(), job.attempt), (State::Failed, 1));
    assert_eq!(job.error.unwrap().code, "mail.refused");
    for size in [2 << 20, 5 << 20] {
        let id = place(&client, submit("long", &size.to_string())).await;
        let (job, _) = output(&client, &id).await;
        assert_eq!(job.attempts[0].error.as_ref().map(|error| error.code.as_str()), Some("busy"));
    }
    program.drain().await;
}

#[tokio::test]
async fn work_goes_on_while_the_server_is_killed_and_starts_again() {
    let mut server = Server::start();
    let proxy = Proxy::before(&server).await;
    let client = server.client().await;
    let gate = Gate::new();
    let program = Program::start(worker(proxy.address(), gate.handlers.clone()));
    let ids = [place(&client, submit("wait", "1")).await, place(&client, submit("wait", "2")).await];
    gate.has_begun(2).await;
    server.kill();
    // One ends while there is nobody to tell, the other one after that.
    gate.may_end.add_permits(1);
    let server = server.restart();
    proxy.lead_to(&server);
    let client = server.client().await;
    let start = Some(Start::Earliest(true));
    let mut watch = Watch::open(&client, WatchResultsRequest { start, ..Default::default() }).await;
    let first = watch.finished().await.job_id;
    gate.may_end.add_permits(1);
    let second = watch.finished().await.job_id;
    assert_ne!(first, second);
    for id in &ids {
        let job = get(&client, id).await;
        assert_eq!((job.state(), job.attempt, job.attempts.len()), (State::Succeeded, 1, 0), "{job:?}");
    }
    assert_eq!(gate.begun.load(Ordering::SeqCst), 2);
    let next = place(&client, submit("double", "4")).await;
    assert_eq!(watch.finished().await.job_id, next);
    program.drain().await;
}

#[tokio::test]
async fn a_server_that_stops_waits_for_the_result() {
    let mut server = Server::start();
    let client = server.client().await;
    let gate = Gate::new();
    let program = Program::start(worker(server.address(), gate.handlers.clone()));
    let id = place(&client, submit("wait", "1")).await;
    gate.has_begun(1).await;
    server.signal("TERM");
    eventually(async || server.log().contains("stopping").then_some(())).await;
    // For the worker to ask for another stream, in vain.
    tokio::time::sleep(Duration::from_millis(300)).await;
    gate.may_end.add_permits(1);
    assert_eq!(server.ended().await.code(), Some(0));
    // The worker does not know where it is now.
    let server = server.restart();
    let job = get(&server.client().await, &id).await;
    assert_eq!((job.state(), job.attempt), (State::Succeeded, 1), "{job:?}");
    program.drain().await;
}

#[tokio::test]
async fn a_worker_follows_its_server_to_another_stream() {
    let server = Server::with("[http2]\nmax_connection_age = \"300ms\"\nconnection_grace = \"3s\"\n");
    let client = server.client().await;
    let gate = Gate::new();
    let program = Program::start(worker(server.address(), gate.handlers.clone()));
    let id = place(&client, submit("wait", "1")).await;
    gate.has_begun(1).await;
    // Longer than a connection and its grace.
    tokio::time::sleep(Duration::from_secs(4)).await;
    gate.may_end.add_permits(1);
    let client = server.client().await;
    let job = result(&client, &id).await;
    assert_eq!((job.state(), job.attempt), (State::Succeeded, 1), "{job:?}");
    assert_eq!(gate.begun.load(Ordering::SeqCst), 1);
    program.drain().await;
}

#[tokio::test]
async fn a_cancel_reaches_the_handler_without_a_heartbeat() {
    let server = Server::with("[workers]\nlease = \"10m\"\nheartbeat = \"4m\"\ngrace = \"4m\"\n");
    let client = server.client().await;
    let gate = Gate::new();
    let program = Program::start(worker(server.address(), gate.handlers.clone()));
    let id = place(&client, submit("wait", "1")).await;
    gate.has_begun(1).await;
    let cancel = CancelJobRequest { job_id: id.clone(), ..Default::default() };
    client.clone().cancel_job(cancel).await.expect("it is cancelled");
    // Nothing else ends it as soon.
    assert_eq!(reach(&client, &id, State::Cancelled).await.attempt, 1);
    program.drain().await;
}

#[tokio::test]
async fn a_handler_that_heeds_its_deadline_has_timed_out() {
    let server = Server::with("[defaults]\nmax_attempts = 1\n");
    let client = server.client().await;
    let program = Program::start(worker(server.address(), Gate::new().handlers));
    let mut ids = Vec::new();
    // Wherever the server's timers stand.
    for time in [0.3, 0.35, 0.4, 0.45, 0.5] {
        let mut request = submit("wait", "1");
        request.spec.as_mut().unwrap().attempt_timeout = Some(seconds(time));
        ids.push(place(&client, request).await);
    }
    for id in ids {
        let job = result(&client, &id).await;
        let error = job.error.as_ref().expect("it failed");
        assert_eq!((job.state(), error.cause()), (State::Failed, Cause::Timeout), "{error:?}");
    }
    program.drain().await;
}

/// A blocking handler only looks whether it is to stop. Nobody may be there to say so.
#[tokio::test(flavor = "multi_thread")]
async fn a_handler_ends_at_its_deadline_without_a_server() {
    let mut server = Server::start();
    let client = server.client().await;
    let (said, mut says) = mpsc::unbounded_channel();
    let mut handlers = handlers();
    let poll = move |context: Context, _: Value| {
        let _ = said.send("begun");
        while !context.cancelled().is_cancelled() {
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = said.send("stopped");
        Err::<(), _>(context.interrupted())
    };
    handlers.add_blocking("poll", poll).unwrap();
    let program = Program::start(worker(server.address(), handlers));
    let mut request = submit("poll", "1");
    request.spec.as_mut().unwrap().attempt_timeout = Some(seconds(2.0));
    place(&client, request).await;
    assert_eq!(timeout(PATIENCE, says.recv()).await.expect("it begins"), Some("begun"));
    server.kill();
    assert_eq!(timeout(PATIENCE, says.recv()).await.expect("it ends"), Some("stopped"));
    program.ended.abort();
}

#[tokio::test]
async fn a_drain_takes_no_more_and_waits_for_what_runs() {
    let server = Server::start();
    let client = server.client().await;
    let gate = Gate::new();
    let patient = worker(server.address(), gate.handlers.clone()).drain_timeout(Duration::MAX);
    let program = Program::start(patient.concurrency(1));
    let first = place(&client, submit("wait", "1")).await;
    gate.has_begun(1).await;
    let second = place(&client, submit("wait", "2")).await;
    program.stop.send(()).expect("it still works");
    // That it waits cannot be seen but by giving it time not to.
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!program.ended.is_finished());
    gate.may_end.add_permits(1);
    timeout(PATIENCE, program.ended).await.expect("it ends").expect("no panic").expect("no error");
    let job = get(&client, &first).await;
    assert_eq!((job.state(), job.attempt), (State::Succeeded, 1));
    let job = get(&client, &second).await;
    assert_eq!((job.state(), job.attempt), (State::Queued, 0));
    // What does not end in time is given back.
    let hasty = worker(server.address(), gate.handlers.clone()).drain_timeout(Duration::from_millis(100));
    let program = Program::start(hasty);
    gate.has_begun(2).await;
    program.drain().await;
    let job = get(&client, &second).await;
    assert_eq!((job.state(), job.attempt, job.attempts.len()), (State::Queued, 0, 0), "{job:?}");
}

#[tokio::test]
async fn a_worker_that_the_server_refuses_ends() {
    let server = Server::start();
    let nothing = worker(server.address(), Handlers::new(&Workers::default()));
    let error = nothing.run(std::future::pending()).await.expect_err("it has no kinds");
    assert_eq!((error.code(), error.reason()), (Some(Code::InvalidArgument), Some("INVALID_FIELD")));
}

#[tokio::test]
async fn a_worker_without_a_server_says_so_and_goes_on_trying() {
    let proxy = Proxy::before(&Server::unstarted()).await;
    let mut program = example("worker");
    let child = program.arg(proxy.address()).stderr(Stdio::piped()).spawn().expect("the example starts");
    let mut program = Running(child);
    let (said, mut says) = mpsc::unbounded_channel();
    let stderr = BufReader::new(program.0.stderr.take().expect("it is piped"));
    std::thread::spawn(move || stderr.lines().map_while(Result::ok).try_for_each(|line| said.send(line)));
    for _ in 0..2 {
        let line = timeout(PATIENCE, says.recv()).await.expect("it says so").expect("it goes on");
        assert!(line.contains("no session with the server, trying again"), "{line}");
    }
    let server = Server::start();
    proxy.lead_to(&server);
    let client = server.client().await;
    let id = place(&client, submit("shout", "\"hello\"")).await;
    assert_eq!(output(&client, &id).await.1, "HELLO");
    let pid = program.0.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().expect("kill runs").success());
    let ended = tokio::task::spawn_blocking(move || program.0.wait().expect("it can be reaped"));
    assert_eq!(timeout(PATIENCE, ended).await.expect("it ends").unwrap().code(), Some(0));
}
