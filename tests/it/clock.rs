//! The clock of the machine is set back under the real program: `clock.c` is preloaded into it.

use std::{fs, path::PathBuf, time::SystemTime};

use jobwire::proto::{
    Job, JobSpec, SubmitRequest, WatchResultsRequest, job_spec, watch_results_request::Start,
};
use tempfile::TempDir;

use crate::{
    calls::{Watch, accept, finish, place, result},
    flaky::Flaky,
    support::{Client, Server, compile_preload, seconds, spec, submit},
    watch::after,
};

/// Nothing may take so long.
const HOUR: i64 = 3600;

struct TimeOfDay {
    dir: TempDir,
}

impl TimeOfDay {
    fn new() -> Self {
        let time = Self { dir: tempfile::tempdir().expect("a temporary directory") };
        compile_preload("clock", time.dir.path());
        time.set(0);
        time
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Seconds from the true one. Renamed into place: a reader must not meet an empty file.
    fn set(&self, offset: i64) {
        fs::write(self.path("next"), offset.to_string()).expect("a file");
        fs::rename(self.path("next"), self.path("offset")).expect("a file");
    }

    fn server(&self, config: &str) -> Server {
        let [library, offset] = ["clock.so", "offset"].map(|name| self.path(name).display().to_string());
        Server::with_variables(config, &[("LD_PRELOAD", library), ("CLOCK_OFFSET", offset)])
    }
}

fn later(delay: f64) -> SubmitRequest {
    let start = Some(job_spec::Start::Delay(seconds(delay)));
    SubmitRequest { spec: Some(JobSpec { start, ..spec("echo", "1") }), ..Default::default() }
}

fn time(stamp: Option<prost_types::Timestamp>) -> SystemTime {
    stamp.and_then(|stamp| stamp.try_into().ok()).expect("a time")
}

async fn feed(client: &Client) -> Vec<String> {
    let request = WatchResultsRequest { start: Some(Start::Earliest(true)), ..Default::default() };
    Watch::open(client, request).await.replay().await
}

/// Each job was submitted after the one before had ended.
fn assert_in_order(jobs: &[Job]) {
    for pair in jobs.windows(2) {
        assert!(pair[0].job_id < pair[1].job_id, "ids sort by time: {pair:#?}");
        assert!(time(pair[0].finish_time) <= time(pair[1].submit_time), "{pair:#?}");
    }
}

#[tokio::test]
async fn time_goes_on_when_the_clock_is_set_back() {
    let (now, flaky) = (TimeOfDay::new(), Flaky::new());
    let server = now.server(&flaky.config());
    let client = server.client().await;
    let mut watch = Watch::open(&client, WatchResultsRequest::default()).await;
    let mut jobs = vec![finish(&client, submit("echo", "1")).await];
    let waiting = place(&client, later(0.5)).await;
    let backing_off = place(&client, flaky.job(0.5)).await;

    now.set(-HOUR);
    jobs.push(finish(&client, submit("echo", "1")).await);
    flaky.mend();
    result(&client, &waiting).await;
    result(&client, &backing_off).await;
    jobs.push(finish(&client, later(0.3)).await);
    let hurried = JobSpec { total_timeout: Some(seconds(0.2)), ..spec("sleep", r#"{"duration":"30s"}"#) };
    jobs.push(finish(&client, SubmitRequest { spec: Some(hurried), ..Default::default() }).await);
    assert_in_order(&jobs);

    let mut told = Vec::new();
    for _ in 0..6 {
        told.push(watch.finished().await.job_id);
    }
    assert_eq!(told, feed(&client).await);
}

#[tokio::test]
async fn a_start_with_the_clock_set_back_goes_on_from_where_it_was() {
    let now = TimeOfDay::new();
    let mut server = now.server("");
    let client = server.client().await;
    let mut jobs = vec![finish(&client, submit("echo", "1")).await];
    let waiting = place(&client, later(1.0)).await;
    let cursor = accept(&client, submit("nobody", "1")).await.cursor;
    server.kill();

    now.set(-HOUR);
    let server = server.restart();
    let client = server.client().await;
    result(&client, &waiting).await;
    jobs.push(finish(&client, submit("echo", "1")).await);
    jobs.push(finish(&client, later(0.3)).await);
    assert_in_order(&jobs);
    let [first, second, third] =
        jobs.iter().map(|job| job.job_id.clone()).collect::<Vec<_>>().try_into().unwrap();
    assert_eq!(feed(&client).await, [&first, &waiting, &second, &third].map(String::as_str));
    assert_eq!(Watch::open(&client, after(&cursor)).await.replay().await.len(), 3);
    let since =
        WatchResultsRequest { start: jobs[1].finish_time.map(Start::SinceTime), ..Default::default() };
    assert_eq!(Watch::open(&client, since).await.replay().await, [second, third]);
}
