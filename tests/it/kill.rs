//! `kill -9` in the middle of a load, again and again on the same data. A ledger outside the server knows what was
//! acknowledged and what was seen; afterwards all of it must still be so.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use jobwire::{
    proto::{
        GetJobRequest, JobFilter, JobView, ListJobsRequest, RetryPolicy, StreamSubmitRequest, SubmitRequest,
        WatchResultsRequest, job::State, job_error::Cause, stream_submit_response::Verdict,
        watch_results_request::Start, watch_results_response::Event,
    },
    store::sqlite,
};
use tokio::task::JoinHandle;
use tokio_stream::StreamExt as _;
use uuid::Uuid;

use crate::support::{Client, PATIENCE, Server, seconds, submit};

/// Kills of one run, unless JOBWIRE_TEST_KILLS says.
const KILLS: usize = 50;

/// Failed attempts of a job that are kept.
const HISTORY: usize = 20;

const UNFINISHED: [State; 4] = [State::Scheduled, State::Queued, State::Running, State::BackingOff];

/// An outcome in words, by job and run.
type Outcomes = BTreeMap<(String, i32), String>;

/// What clients know.
#[derive(Default)]
struct Ledger {
    /// Acknowledged jobs, each with the request id it was asked for with.
    jobs: BTreeMap<String, Option<String>>,
    /// Those of the present round.
    fresh: Vec<String>,
}

type Shared = Arc<Mutex<Ledger>>;

impl Ledger {
    fn acknowledge(&mut self, job_id: String, request_id: Option<String>) {
        self.fresh.push(job_id.clone());
        self.jobs.insert(job_id, request_id);
    }
}

/// One who watches all the time, with interruptions: the union of its streams is the feed.
#[derive(Default)]
struct Watcher {
    cursor: String,
    seen: Outcomes,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_and_nothing_seen_changes() {
    let kills =
        std::env::var("JOBWIRE_TEST_KILLS").map_or(KILLS, |text| text.parse().expect("a number of kills"));
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    fastrand::seed(seed);
    let mut server = Server::start();
    let ledger = Shared::default();
    let watchers: Vec<_> = (0..2).map(|_| Arc::new(tokio::sync::Mutex::new(Watcher::default()))).collect();
    for _ in 0..kills {
        let load = load(&server, &ledger, &watchers).await;
        let running = begin_one(&mut server.client().await).await;
        ledger.lock().unwrap().acknowledge(running, None);
        tokio::time::sleep(Duration::from_millis(fastrand::u64(20..300))).await;
        server.kill();
        for task in load {
            task.await.expect("a client ends with the server, and not by itself");
        }
        assert_sound(&server);
        server = server.restart();
        check_acknowledged(&server, &ledger).await;
    }
    finish(&server).await;
    check_feed(&server, &ledger, watchers).await;
    check_crashes(&server, &ledger, kills).await;
    println!("{kills} kills, {} acknowledged jobs", ledger.lock().unwrap().jobs.len());
}

/// Clients that go on until the server is gone.
async fn load(
    server: &Server,
    ledger: &Shared,
    watchers: &[Arc<tokio::sync::Mutex<Watcher>>],
) -> Vec<JoinHandle<()>> {
    let mut tasks = Vec::new();
    for _ in 0..4 {
        tasks.push(tokio::spawn(submit_one_by_one(server.client().await, ledger.clone())));
    }
    tasks.push(tokio::spawn(submit_in_a_stream(server.client().await, ledger.clone())));
    for watcher in watchers {
        tasks.push(tokio::spawn(watch(server.client().await, watcher.clone())));
    }
    tasks
}

async fn submit_one_by_one(mut client: Client, ledger: Shared) {
    loop {
        let request_id = Uuid::new_v4().to_string();
        let request = SubmitRequest { request_id: request_id.clone(), ..request() };
        let Ok(reply) = client.submit(request).await else { return };
        let job = reply.into_inner().job.expect("a job");
        ledger.lock().unwrap().acknowledge(job.job_id, Some(request_id));
    }
}

async fn submit_in_a_stream(mut client: Client, ledger: Shared) {
    let items =
        tokio_stream::iter(0..).map(|sequence| StreamSubmitRequest { sequence, request: Some(request()) });
    let Ok(verdicts) = client.stream_submit(items).await else { return };
    let mut verdicts = verdicts.into_inner();
    while let Ok(Some(reply)) = verdicts.message().await {
        match reply.verdict.expect("a verdict") {
            Verdict::Accepted(accepted) => ledger.lock().unwrap().acknowledge(accepted.job_id, None),
            Verdict::Rejected(why) => panic!("{why:?}"),
        }
    }
}

/// A job that is under way, and will be when the server dies.
async fn begin_one(client: &mut Client) -> String {
    let request = persistent(submit("sleep", r#"{"duration":"1s"}"#));
    let reply = client.submit(request).await.expect("an acknowledgement").into_inner();
    let job_id = reply.job.expect("a job").job_id;
    loop {
        let request = GetJobRequest { job_id: job_id.clone(), ..Default::default() };
        let job = client.get_job(request).await.expect("the job").into_inner().job.expect("the job");
        if job.state() == State::Running {
            return job_id;
        }
        assert_eq!(job.state(), State::Queued, "{job:?}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Mostly jobs that end at once.
fn request() -> SubmitRequest {
    persistent(match fastrand::u32(..200) {
        0 => submit("sleep", r#"{"duration":"200ms"}"#),
        1 => submit("sleep", r#"{"duration":"1ms"}"#),
        _ => submit("echo", "1"),
    })
}

/// Run again after every crash, and soon.
fn persistent(mut request: SubmitRequest) -> SubmitRequest {
    let retry = RetryPolicy { max_attempts: 1000, max_backoff: Some(seconds(0.05)), ..Default::default() };
    request.spec.as_mut().expect("a spec").retry = Some(retry);
    request
}

async fn watch(client: Client, watcher: Arc<tokio::sync::Mutex<Watcher>>) {
    watch_until(client, watcher, false).await;
}

/// Watches until the server is gone, or only until there is nothing more for now.
async fn watch_until(mut client: Client, watcher: Arc<tokio::sync::Mutex<Watcher>>, caught_up: bool) {
    let mut watcher = watcher.lock().await;
    let start = match watcher.cursor.as_str() {
        "" => Start::Earliest(true),
        cursor => Start::AfterCursor(cursor.to_owned()),
    };
    let request = WatchResultsRequest { start: Some(start), ..Default::default() };
    let Ok(messages) = client.watch_results(request).await else { return };
    let mut messages = messages.into_inner();
    while let Ok(Some(message)) = messages.message().await {
        if matches!(&message.event, Some(Event::Checkpoint(checkpoint)) if caught_up && checkpoint.caught_up)
        {
            return;
        }
        if let Some(Event::Finished(job)) = message.event {
            let outcome = format!("{:?} {:?} {:?}", job.state(), job.finish_time, job.output);
            let twice = watcher.seen.insert((job.job_id.clone(), job.run), outcome);
            // Only what came after the last cursor: each once over all streams.
            assert_eq!(twice, None, "{} was told again", job.job_id);
        }
        watcher.cursor = message.cursor;
    }
}

fn assert_sound(server: &Server) {
    let report = sqlite::verify(&server.data()).expect("the store can be read");
    assert!(report.problems.is_empty(), "{:?}", report.problems);
}

async fn check_acknowledged(server: &Server, ledger: &Shared) {
    let (fresh, requests) = {
        let mut ledger = ledger.lock().unwrap();
        let fresh = std::mem::take(&mut ledger.fresh);
        let requests: HashMap<_, _> =
            fresh.iter().filter_map(|id| Some((ledger.jobs[id].clone()?, id.clone()))).take(20).collect();
        (fresh, requests)
    };
    let mut client = server.client().await;
    for ids in fresh.chunks(1000) {
        let filter = JobFilter { job_ids: ids.to_vec(), ..Default::default() };
        let request = ListJobsRequest { filter: Some(filter), page_size: 1000, ..Default::default() };
        let page = client.list_jobs(request).await.expect("a list").into_inner();
        let found: BTreeSet<_> = page.jobs.into_iter().map(|job| job.job_id).collect();
        let lost: Vec<_> = ids.iter().filter(|id| !found.contains(*id)).collect();
        assert!(lost.is_empty(), "{} acknowledged jobs are lost, such as {}", lost.len(), lost[0]);
    }
    for (request_id, job_id) in requests {
        let job =
            client.get_job(GetJobRequest { job_id, view: JobView::Full.into(), ..Default::default() }).await;
        let job = job.expect("the job").into_inner().job.expect("the job");
        let repeat = SubmitRequest { spec: job.spec, request_id, ..Default::default() };
        let reply = client.submit(repeat).await.expect("a repeat is answered").into_inner();
        assert!(reply.deduplicated);
        assert_eq!(reply.job.expect("the job").job_id, job.job_id);
    }
}

/// Waits until every job is final.
async fn finish(server: &Server) {
    let mut client = server.client().await;
    let states = UNFINISHED.iter().map(|&state| state.into()).collect();
    let filter = JobFilter { states, ..Default::default() };
    let end = Instant::now() + PATIENCE * 3;
    loop {
        let request = ListJobsRequest { filter: Some(filter.clone()), page_size: 1, ..Default::default() };
        let page = client.list_jobs(request).await.expect("a list").into_inner();
        if page.jobs.is_empty() && page.next_page_token.is_empty() {
            return;
        }
        assert!(Instant::now() < end, "still unfinished: {:?}", page.jobs);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The feed holds every acknowledged job once, and each watcher has seen just that.
async fn check_feed(server: &Server, ledger: &Shared, watchers: Vec<Arc<tokio::sync::Mutex<Watcher>>>) {
    let whole = read_to_end(server, Watcher::default()).await;
    for id in ledger.lock().unwrap().jobs.keys() {
        assert!(whole.contains_key(&(id.clone(), 1)), "{id} has no outcome");
    }
    for watcher in watchers {
        let watcher = Arc::into_inner(watcher).expect("nobody else watches").into_inner();
        assert!(read_to_end(server, watcher).await == whole, "a watcher's streams together are not the feed");
    }
}

/// What a watcher has seen once it has caught up with the end of the feed.
async fn read_to_end(server: &Server, watcher: Watcher) -> Outcomes {
    let watcher = Arc::new(tokio::sync::Mutex::new(watcher));
    tokio::time::timeout(PATIENCE, watch_until(server.client().await, watcher.clone(), true))
        .await
        .expect("the feed has an end");
    Arc::into_inner(watcher).expect("nobody else watches").into_inner().seen
}

/// A crash counts the attempts that it ended.
async fn check_crashes(server: &Server, ledger: &Shared, kills: usize) {
    let ids: Vec<_> = ledger.lock().unwrap().jobs.keys().cloned().collect();
    let mut client = server.client().await;
    let mut crashed = 0;
    for ids in ids.chunks(1000) {
        let filter = JobFilter { job_ids: ids.to_vec(), kinds: vec!["sleep".into()], ..Default::default() };
        let request = ListJobsRequest {
            filter: Some(filter),
            page_size: 1000,
            view: JobView::Full.into(),
            ..Default::default()
        };
        for job in client.list_jobs(request).await.expect("a list").into_inner().jobs {
            assert_eq!(job.state(), State::Succeeded, "{job:?}");
            for failed in &job.attempts {
                assert_eq!(failed.error.as_ref().expect("an error").cause(), Cause::Crash);
            }
            let failed = job.attempt as usize - 1;
            assert_eq!(job.attempts.len(), failed.min(HISTORY), "{job:?}");
            crashed += failed;
        }
    }
    assert!(crashed >= kills, "an attempt was under way at each of {kills} kills, {crashed} are counted");
}
