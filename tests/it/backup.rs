//! Backups of a store that is being served under load, with the command that people use.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use jobwire::proto::{
    GetResultRequest, Job, JobFilter, JobView, ListJobsRequest, SubmitRequest, WatchResultsRequest,
    job::State, watch_results_request::Start, watch_results_response::Event,
};
use tonic_types::StatusExt as _;

use crate::{
    calls::{eventually, finish},
    examples::Running,
    support::{Client, PATIENCE, Server, jobwire, program, seconds, submit},
};

const BACKUPS: usize = 3;

/// What clients know.
#[derive(Clone, Default)]
struct Known {
    acknowledged: BTreeSet<String>,
    /// Outcomes in words, by job.
    outcomes: BTreeMap<String, String>,
    /// One of the original's log.
    cursor: String,
}

type Shared = Arc<Mutex<Known>>;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_under_load_is_a_sound_store_with_a_log_of_its_own() {
    let server = Server::start();
    let (known, stop) = (Shared::default(), Arc::new(AtomicBool::new(false)));
    let mut load = Vec::new();
    for n in 0..6 {
        let (client, known, stop) = (server.client().await, known.clone(), stop.clone());
        load.push(tokio::spawn(keep_submitting(client, known, stop, n % 3)));
    }
    let mut copies = Vec::new();
    for n in 0..BACKUPS {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let copy = server.scratch().join(format!("backup-{n}"));
        let before = known.lock().unwrap().clone();
        let (data, target) = (server.data(), copy.clone());
        tokio::task::spawn_blocking(move || back_up(&data, &target)).await.expect("a backup");
        let after = known.lock().unwrap().acknowledged.len();
        assert!(after > before.acknowledged.len(), "submitting goes on while the copy is made");
        copies.push((copy, before));
    }
    stop.store(true, Ordering::Relaxed);
    for task in load {
        task.await.expect("no call fails");
    }
    for (copy, before) in copies {
        check_copy(&copy, before).await;
    }
    let known = known.lock().unwrap().clone();
    let end = after_cursor(&mut server.client().await, known.cursor).await;
    end.expect("a cursor stays valid where it was made");
}

async fn keep_submitting(mut client: Client, known: Shared, stop: Arc<AtomicBool>, manner: usize) {
    while !stop.load(Ordering::Relaxed) {
        let mut request = match manner {
            0 => SubmitRequest { wait: Some(seconds(20.0)), ..submit("echo", r#""an outcome""#) },
            1 => submit("sleep", r#"{"duration":"300ms"}"#),
            _ => submit("echo", r#""later""#),
        };
        if manner == 2 {
            let start = jobwire::proto::job_spec::Start::Delay(seconds(3600.0));
            request.spec.as_mut().expect("a spec").start = Some(start);
        }
        let reply = client.submit(request).await.expect("an acknowledgement").into_inner();
        let job = reply.job.expect("a job");
        let mut known = known.lock().unwrap();
        known.acknowledged.insert(job.job_id.clone());
        known.cursor = reply.cursor;
        if reply.done {
            known.outcomes.insert(job.job_id.clone(), words(&job));
        }
    }
}

fn words(job: &Job) -> String {
    format!("{:?} {:?} {} {} {:?}", job.state(), job.finish_time, job.run, job.attempt, job.output)
}

/// Makes the copy, and checks it and the original, which is being served.
fn back_up(data: &Path, target: &Path) {
    let (data, target) = (data.to_str().expect("text"), target.to_str().expect("text"));
    let (code, said) = jobwire(&["backup", target, "--data", data]);
    assert_eq!((code, said.contains(r#""jobs":"#)), (Some(0), true), "{said}");
    for dir in [target, data] {
        let (code, said) = jobwire(&["verify", dir]);
        assert_eq!((code, said.contains(r#""problems":[]"#)), (Some(0), true), "{said}");
    }
}

/// All that was known when the copy was begun is in it; its jobs run; its log is another.
async fn check_copy(copy: &Path, before: Known) {
    let server = Server::on(copy);
    let mut client = server.client().await;
    let refused = after_cursor(&mut client, before.cursor).await.expect_err("a cursor of another log");
    assert_eq!(refused.get_details_error_info().expect("a reason").reason, "LOG_REPLACED");

    let (jobs, cursor) = list(&mut client, &before.acknowledged).await;
    let lost: Vec<_> = before.acknowledged.iter().filter(|id| !jobs.contains_key(*id)).collect();
    assert!(lost.is_empty(), "acknowledged and not in the copy: {lost:?}");
    for (job_id, outcome) in &before.outcomes {
        let request = GetResultRequest { job_id: job_id.clone(), ..Default::default() };
        let job = client.get_result(request).await.expect("a result").into_inner().job.expect("a job");
        assert_eq!(&words(&job), outcome, "{job_id}");
    }
    let running = jobs.values().filter(|job| job.spec.as_ref().is_some_and(|spec| spec.kind == "sleep"));
    for job in running {
        let request =
            GetResultRequest { job_id: job.job_id.clone(), wait: Some(seconds(20.0)), ..Default::default() };
        let job = client.get_result(request).await.expect("a result").into_inner().job.expect("a job");
        assert_eq!(job.state(), State::Succeeded, "{job:?}");
    }
    after_cursor(&mut client, cursor).await.expect("a cursor of the copy's own log");
}

/// The jobs with these ids, and the cursor of the list.
async fn list(client: &mut Client, ids: &BTreeSet<String>) -> (BTreeMap<String, Job>, String) {
    let (mut jobs, mut cursor) = (BTreeMap::new(), String::new());
    let ids: Vec<_> = ids.iter().cloned().collect();
    for ids in ids.chunks(1000) {
        let filter = JobFilter { job_ids: ids.to_vec(), ..Default::default() };
        let view = JobView::Basic.into();
        let request = ListJobsRequest { filter: Some(filter), page_size: 1000, view, ..Default::default() };
        let page = client.list_jobs(request).await.expect("a list").into_inner();
        jobs.extend(page.jobs.into_iter().map(|job| (job.job_id.clone(), job)));
        cursor = page.cursor;
    }
    (jobs, cursor)
}

/// Follows the feed from a cursor to its end for now.
async fn after_cursor(client: &mut Client, cursor: String) -> Result<(), tonic::Status> {
    let start = Some(Start::AfterCursor(cursor));
    let request = WatchResultsRequest { start, ..Default::default() };
    let mut messages = client.watch_results(request).await?.into_inner();
    let end = Instant::now() + PATIENCE;
    while let Some(message) = messages.message().await? {
        assert!(Instant::now() < end, "the feed has an end");
        if matches!(message.event, Some(Event::Checkpoint(checkpoint)) if checkpoint.caught_up) {
            return Ok(());
        }
    }
    panic!("a watch has no end of its own")
}

#[tokio::test]
async fn the_commands_say_what_they_did_and_what_is_wrong() {
    let server = Server::start();
    for _ in 0..5 {
        server.client().await.submit(submit("echo", "1")).await.expect("an acknowledgement");
    }
    let (data, copy, empty) = (server.data(), server.scratch().join("copy"), server.scratch().join("empty"));
    std::fs::create_dir(&empty).expect("a directory");
    let (data, copy) = (data.to_str().expect("text"), copy.to_str().expect("text"));
    let empty = empty.to_str().expect("text");

    let (code, said) = jobwire(&["backup", copy, "--data", data, "-o", "table"]);
    assert_eq!((code, said.contains(&format!("{copy}: 5 jobs, "))), (Some(0), true), "{said}");
    let (code, said) = jobwire(&["backup", copy, "--data", data]);
    assert_eq!((code, said.contains("exists already: name a new directory")), (Some(1), true), "{said}");
    let (code, said) = jobwire(&["backup", &format!("{copy}-2"), "--data", empty]);
    assert_eq!((code, said.contains("holds no jobwire store")), (Some(1), true), "{said}");
    assert!(!Path::new(&format!("{copy}-2")).exists());

    let (code, said) = jobwire(&["verify", copy, "-o", "table"]);
    assert_eq!((code, said.contains("sound; 5 jobs")), (Some(0), true), "{said}");
    let (code, said) = jobwire(&["verify", empty]);
    assert_eq!((code, said.contains("holds no jobwire store")), (Some(1), true), "{said}");
    assert_eq!(std::fs::read_dir(empty).expect("a directory").count(), 0, "to look changes nothing");

    let database = rusqlite::Connection::open(Path::new(copy).join("jobwire.db")).expect("a database");
    database.execute("UPDATE job SET crc = crc + 1 WHERE num = 1", []).expect("a change");
    let (code, said) = jobwire(&["verify", copy, "-o", "table"]);
    assert_eq!((code, said.contains("NOT sound; 5 jobs")), (Some(1), true), "{said}");
    assert!(said.contains("does not match its checksum"), "{said}");
    let (code, said) = jobwire(&["verify", copy]);
    assert_eq!((code, said.contains(r#""problems":["#)), (Some(1), true), "{said}");
}

/// It is not served before all of its log is written back, for which nobody may read it.
#[tokio::test]
async fn a_start_that_waits_for_a_backup_can_be_stopped() {
    let mut server = Server::start();
    finish(&server.client().await, submit("echo", "1")).await;
    server.kill();
    let reader = rusqlite::Connection::open(server.data().join("jobwire.db")).expect("a database");
    reader.execute_batch("BEGIN; SELECT count(*) FROM job").expect("it can be read");
    let mut command = program();
    command.args(["serve", "--listen", "127.0.0.1:0", "--data"]).arg(server.data());
    let mut waiting = Running(command.stderr(Stdio::piped()).spawn().expect("it starts"));
    let mut line = String::new();
    BufReader::new(waiting.0.stderr.take().expect("a pipe")).read_line(&mut line).expect("text");
    assert!(line.contains("is being read by another process"), "{line}");
    let pid = waiting.0.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().expect("kill runs").success());
    let ended = eventually(async || waiting.0.try_wait().expect("it can be waited for")).await;
    assert_eq!(ended.code(), Some(0));
}
