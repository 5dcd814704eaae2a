//! The whole way on real input: web requests against a real server that misbehaves, real processes on real files, all
//! submitted in one stream and watched by two watchers, of which one is cut off and resumes.

use std::{
    collections::{BTreeMap, HashMap},
    convert::Infallible,
    net::SocketAddr,
    process::Command,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::{Request, Response, body::Frame, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use jobwire::proto::{
    Job, JobFilter, JobSpec, Payload, PayloadFormat, RetryPolicy, StreamSubmitRequest, SubmitRequest,
    WatchResultsRequest, job::State, payload::Body, stream_submit_response::Verdict,
    watch_results_request::Start, watch_results_response::Event,
};
use serde_json::{Value, json};
use tokio_stream::StreamExt as _;

use crate::support::{Client, PATIENCE, Server, spec};

const REQUESTS: usize = 500;
const FILES: usize = 100;

/// What the test's web server does with a request, by the first part of its path.
const WAYS: [&str; 10] =
    ["ok", "slow", "error", "missing", "garbage", "broken", "redirect", "loop", "busy", "never"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_outcome_is_as_it_must_be() {
    let web = web_server().await;
    let mut server = Server::with(&config(web));
    let files = make_files(&server);
    let watching = tokio::spawn(watch_all(server.client().await));
    let interrupted = tokio::spawn(watch_with_a_cut(server.client().await, server.client().await));

    let jobs = (0..REQUESTS).map(|n| request(web, n)).chain(files.keys().map(|name| hash(name)));
    submit_all(server.client().await, jobs.collect()).await;
    let seen =
        tokio::time::timeout(PATIENCE * 2, watching).await.expect("every job ends").expect("a watcher");
    let resumed =
        tokio::time::timeout(PATIENCE, interrupted).await.expect("it catches up").expect("a watcher");

    assert_eq!(seen.len(), REQUESTS + FILES);
    assert!(seen == resumed, "the two watchers disagree");
    for n in 0..REQUESTS {
        check_request(n, &seen[&format!("request-{n}")]);
    }
    for (name, sum) in &files {
        let job = &seen[&format!("file-{name}")];
        assert_eq!(job.state(), State::Succeeded, "{job:?}");
        let output = output(job);
        assert_eq!(output["exit_code"], 0);
        assert!(output["stdout"].as_str().expect("text").starts_with(sum.as_str()), "{output}");
    }
    server.signal("TERM");
    assert!(server.ended().await.success());
}

fn config(web: SocketAddr) -> String {
    format!(
        r#"
        [defaults]
        initial_backoff = "20ms"
        [http]
        allow_hosts = ["{web}"]
        concurrency_per_host = 64
        [exec.commands.hash]
        program = "/usr/bin/sha256sum"
        args = ["--", "{{file}}"]
        concurrency = 4
        params.file = {{ type = "path", root = "{}" }}
        "#,
        std::env::temp_dir().display()
    )
}

/// A web server that answers slowly, wrongly, elsewhere, later, and not at all.
async fn web_server() -> SocketAddr {
    let socket = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = socket.local_addr().expect("an address");
    let busy: Arc<Mutex<HashMap<String, Instant>>> = Arc::default();
    tokio::spawn(async move {
        loop {
            let (stream, _) = socket.accept().await.expect("a connection");
            let busy = busy.clone();
            let service = service_fn(move |request| respond(request, busy.clone()));
            tokio::spawn(async move {
                // Some connections break off on purpose.
                let _ = auto::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    });
    address
}

type Answer = Response<BoxBody<Bytes, std::io::Error>>;

async fn respond(
    request: Request<hyper::body::Incoming>,
    busy: Arc<Mutex<HashMap<String, Instant>>>,
) -> Result<Answer, Infallible> {
    let path = request.uri().path().to_owned();
    let (way, number) = path[1..].split_once('/').expect("a way and a number");
    let good = json!({ "number": number }).to_string();
    let response = Response::builder();
    Ok(match way {
        "ok" => full(response.header("content-type", "application/json"), good),
        "slow" => {
            tokio::time::sleep(Duration::from_millis(300)).await;
            full(response.header("content-type", "application/json"), good)
        }
        "error" => full(response.status(500), "out of order".into()),
        "missing" => full(response.status(404), "nobody here".into()),
        "garbage" => full(response.header("content-type", "application/json"), "{{{ no json".into()),
        "broken" => {
            let part = Ok(Frame::data(Bytes::from_static(b"the beginning")));
            let end = Err(std::io::ErrorKind::ConnectionReset.into());
            let body = StreamBody::new(tokio_stream::iter([part, end]));
            response.header("content-length", 1000).body(BodyExt::boxed(body)).expect("a response")
        }
        "redirect" => full(response.status(302).header("location", format!("/ok/{number}")), String::new()),
        "loop" => full(response.status(302).header("location", path), String::new()),
        "busy" => match busy.lock().expect("the lock").entry(path) {
            std::collections::hash_map::Entry::Vacant(first) => {
                first.insert(Instant::now());
                full(response.status(429).header("retry-after", "1"), "later".into())
            }
            std::collections::hash_map::Entry::Occupied(first) => {
                let waited = first.get().elapsed().as_millis() as u64;
                full(
                    response.header("content-type", "application/json"),
                    json!({ "waited": waited }).to_string(),
                )
            }
        },
        _ => std::future::pending().await,
    })
}

fn full(response: http::response::Builder, body: String) -> Answer {
    let body = Full::new(Bytes::from(body)).map_err(|never| match never {});
    response.body(body.boxed()).expect("a response")
}

fn request(web: SocketAddr, n: usize) -> SubmitRequest {
    let way = WAYS[n % WAYS.len()];
    let payload = json!({
        "url": format!("http://{web}/{way}/{n}"),
        "timeout": if way == "never" { "300ms" } else { "20s" },
        "follow_redirects": 2,
    });
    let retry = RetryPolicy { max_attempts: 2, ..Default::default() };
    let spec = JobSpec { retry: Some(retry), queue: "web".into(), ..spec("http", &payload.to_string()) };
    SubmitRequest { spec: Some(spec), job_id: format!("request-{n}"), ..Default::default() }
}

/// Files, each with the hash that the same program gives when a person runs it.
fn make_files(server: &Server) -> BTreeMap<String, String> {
    let dir = server.scratch();
    (0..FILES)
        .map(|n| {
            let name = format!("{n}");
            let path = dir.join(&name);
            std::fs::write(&path, format!("file {n}\n").repeat(n * 100)).expect("a file");
            let sum = Command::new("/usr/bin/sha256sum").arg(&path).output().expect("sha256sum runs");
            let sum = String::from_utf8(sum.stdout).expect("text");
            let sum = sum.split(' ').next().expect("a hash").to_owned();
            (path.to_str().expect("text").to_owned(), sum)
        })
        .collect()
}

fn hash(path: &str) -> SubmitRequest {
    let payload = json!({ "command": "hash", "params": { "file": path } });
    let spec = JobSpec { queue: "files".into(), ..spec("exec", &payload.to_string()) };
    SubmitRequest { spec: Some(spec), job_id: format!("file-{}", id(path)), ..Default::default() }
}

/// A job id may hold no slash.
fn id(path: &str) -> String {
    path.replace('/', "~")
}

async fn submit_all(mut client: Client, requests: Vec<SubmitRequest>) {
    let count = requests.len();
    let items = requests.into_iter().zip(0..);
    let items = items.map(|(request, sequence)| StreamSubmitRequest { sequence, request: Some(request) });
    let verdicts =
        client.stream_submit(tokio_stream::iter(items.collect::<Vec<_>>())).await.expect("a stream");
    let verdicts: Vec<_> = verdicts.into_inner().collect::<Result<_, _>>().await.expect("verdicts");
    assert_eq!(verdicts.len(), count);
    for reply in verdicts {
        assert!(matches!(reply.verdict, Some(Verdict::Accepted(_))), "{reply:?}");
    }
}

type Seen = BTreeMap<String, Job>;

async fn watch_all(mut client: Client) -> Seen {
    let mut seen = Seen::new();
    collect(&mut client, None, REQUESTS + FILES, &mut seen).await;
    seen
}

/// Hangs up after a third of the outcomes, and goes on from the cursor over another connection.
async fn watch_with_a_cut(mut first: Client, mut second: Client) -> Seen {
    let mut seen = Seen::new();
    let cursor = collect(&mut first, None, (REQUESTS + FILES) / 3, &mut seen).await;
    drop(first);
    tokio::time::sleep(Duration::from_millis(200)).await;
    collect(&mut second, Some(cursor), REQUESTS + FILES, &mut seen).await;
    seen
}

/// Reads until `count` jobs were seen, each once; the cursor of the last message.
async fn collect(client: &mut Client, cursor: Option<String>, count: usize, seen: &mut Seen) -> String {
    let start = cursor.map_or(Start::Earliest(true), Start::AfterCursor);
    let request = WatchResultsRequest {
        start: Some(start),
        filter: Some(JobFilter { queues: vec!["web".into(), "files".into()], ..Default::default() }),
        payload_format: PayloadFormat::Raw.into(),
        ..Default::default()
    };
    let mut messages = client.watch_results(request).await.expect("a watch").into_inner();
    loop {
        let message = messages.message().await.expect("a message").expect("no end");
        if let Some(Event::Finished(job)) = message.event {
            let name = job.job_id.replace('~', "/");
            assert!(seen.insert(name, *job).is_none(), "an outcome came twice");
            if seen.len() == count {
                return message.cursor;
            }
        }
    }
}

fn check_request(n: usize, job: &Job) {
    let code = job.error.as_ref().map(|error| error.code.as_str());
    let found = (job.state(), job.attempt, code);
    let expected = match WAYS[n % WAYS.len()] {
        "ok" | "slow" | "redirect" | "garbage" => (State::Succeeded, 1, None),
        "busy" => (State::Succeeded, 2, None),
        "error" => (State::Failed, 2, Some("http.status.500")),
        "missing" => (State::Failed, 1, Some("http.status.404")),
        "broken" => (State::Failed, 2, Some("http.protocol")),
        "loop" => (State::Failed, 1, Some("http.redirects")),
        _ => (State::Failed, 2, Some("http.timeout")),
    };
    assert_eq!(found, expected, "{job:?}");
    if job.state() != State::Succeeded {
        return;
    }
    let output = output(job);
    assert_eq!(output["status"], 200);
    match WAYS[n % WAYS.len()] {
        "garbage" => assert_eq!(output["text"], "{{{ no json"),
        "busy" => assert!(output["json"]["waited"].as_u64() >= Some(1000), "{output}"),
        _ => assert_eq!(output["json"]["number"], n.to_string()),
    }
}

fn output(job: &Job) -> Value {
    match &job.output {
        Some(Payload { body: Some(Body::Data(data)), .. }) => serde_json::from_slice(data).expect("JSON"),
        other => panic!("no output: {other:?}"),
    }
}
