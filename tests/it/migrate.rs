//! `jobwire migrate`: an embedded store is taken over by PostgreSQL, and callers, watchers and workers notice nothing.

use std::{
    path::Path,
    process::{Child, Stdio},
};

use jobwire::proto::{
    DeleteJobRequest, FinishJobRequest, GetJobRequest, GetResultRequest, Job, JobSpec, JobView, Lease,
    LeaseJobsRequest, LeaseProgress, ListJobsRequest, Payload, RenewLeasesRequest, SubmitRequest,
    WatchResultsRequest, finish::Outcome, job::State, job_error::Cause, job_spec::Start, payload::Body,
    watch_results_request,
};
use tonic::Code;

use crate::{
    calls::{Refusal, Watch, accept, eventually, finish, get, place, reach, result},
    changes::{cancel, retry},
    postgres::{connect, execute, schema},
    support::{Client, Server, Workers, jobwire, json, program, seconds, submit},
    watch::after,
    workers::{KIND, checkpoint, failed, task, workers},
};

/// Nothing runs out or is tried again by itself while a test looks.
const SLOW: &str = "[workers]\nlease = \"60s\"\n[defaults]\ninitial_backoff = \"1h\"\nmax_backoff = \"1h\"\n";

/// What callers, watchers and workers know of a server.
struct Known {
    jobs: Vec<Job>,
    results: Vec<Job>,
    /// In the middle of the feed, and what followed.
    cursor: String,
    rest: Vec<String>,
    /// A lease that its worker holds.
    lease_id: String,
}

fn spec(change: impl FnOnce(&mut JobSpec)) -> JobSpec {
    let mut spec = task(r#"{"n":1}"#).spec.expect("a spec");
    change(&mut spec);
    spec
}

async fn one(client: &Workers) -> Lease {
    let request = LeaseJobsRequest {
        worker_id: "me".into(),
        kinds: vec![KIND.into()],
        queues: vec!["leased".into()],
        ..Default::default()
    };
    client
        .clone()
        .lease_jobs(request)
        .await
        .expect("the call is fine")
        .into_inner()
        .leases
        .pop()
        .expect("a lease")
}

async fn lease(jobs: &Client, client: &Workers, id: &str) -> Lease {
    let spec = Some(spec(|spec| spec.queue = "leased".into()));
    place(jobs, SubmitRequest { job_id: id.into(), spec, ..Default::default() }).await;
    one(client).await
}

/// Jobs in every state, and names of every sort. Answers with the lease that a worker holds.
async fn fill(server: &Server) -> String {
    let (jobs, client) = (server.client().await, workers(server).await);
    let place = async |id: &str, spec: JobSpec| {
        let request = SubmitRequest { job_id: id.into(), spec: Some(spec), ..Default::default() };
        place(&jobs, request).await
    };
    for n in 0..20 {
        let labels = [("tenant".to_owned(), format!("t{}", n % 3))].into();
        let spec =
            JobSpec { labels, priority: n % 4, ..submit("echo", &format!("{{\"n\":{n}}}")).spec.unwrap() };
        let request =
            SubmitRequest { request_id: format!("echo-{n}"), spec: Some(spec), ..Default::default() };
        finish(&jobs, request).await;
    }
    let bytes = Body::Data((0..100_000).map(|n| (n % 251) as u8).collect::<Vec<_>>().into());
    let payload =
        Payload { body: Some(bytes), content_type: "application/octet-stream".into(), ..Default::default() };
    let spec_of_bytes = JobSpec { kind: "echo".into(), payload: Some(payload), ..Default::default() };
    place("bytes", spec_of_bytes).await;
    place("failed", submit("http", r#"{"url":"http://127.0.0.1:1/"}"#).spec.unwrap()).await;
    assert_eq!(result(&jobs, "bytes").await.state(), State::Succeeded);
    assert_eq!(result(&jobs, "failed").await.state(), State::Failed);

    place("scheduled", spec(|spec| spec.start = Some(Start::Delay(seconds(3600.0))))).await;
    place("queued", spec(|spec| spec.priority = 7)).await;
    place("expired", spec(|spec| spec.start_timeout = Some(seconds(0.1)))).await;
    for id in ["cancelled", "again"] {
        place(id, spec(|_| {})).await;
        cancel(&jobs, id).await.expect("it is cancelled");
    }
    retry(&jobs, "again").await.expect("again");
    let held = spec(|spec| (spec.queue, spec.unique_key) = ("unique".into(), "the-key".into()));
    place("unique", held).await;
    place("removed", spec(|_| {})).await;
    cancel(&jobs, "removed").await.expect("it is cancelled");
    let named = SubmitRequest { request_id: "of-removed".into(), ..task("1") };
    let id = accept(&jobs, named).await.job.expect("a job").job_id;
    cancel(&jobs, &id).await.expect("it is cancelled");
    for job_id in ["removed".to_owned(), id] {
        jobs.clone()
            .delete_job(DeleteJobRequest { job_id, ..Default::default() })
            .await
            .expect("it is removed");
    }

    let backing_off = lease(&jobs, &client, "backing-off").await;
    let step = LeaseProgress {
        lease_id: backing_off.lease_id.clone(),
        progress: Some(checkpoint(0.25, Some(json(r#"{"page":3}"#)))),
    };
    renew(&client, &backing_off.lease_id, vec![step]).await;
    let finish = Some(failed(&backing_off, "busy"));
    client.clone().finish_job(FinishJobRequest { finish }).await.expect("it counts");
    lease(&jobs, &client, "asked-to-stop").await;
    cancel(&jobs, "asked-to-stop").await.expect("it is asked");
    let held = lease(&jobs, &client, "held").await;
    for (id, state) in [
        ("scheduled", State::Scheduled),
        ("queued", State::Queued),
        ("expired", State::Expired),
        ("again", State::Queued),
        ("backing-off", State::BackingOff),
        ("asked-to-stop", State::Running),
        ("held", State::Running),
    ] {
        reach(&jobs, id, state).await;
    }
    held.lease_id
}

async fn renew(client: &Workers, lease_id: &str, progress: Vec<LeaseProgress>) -> Vec<String> {
    let request = RenewLeasesRequest {
        worker_id: "me".into(),
        lease_ids: vec![lease_id.into()],
        progress,
        lease_duration: None,
    };
    client.clone().renew_leases(request).await.expect("the call is fine").into_inner().lost_lease_ids
}

/// All jobs, newest first and in full.
async fn list(client: &Client) -> Vec<Job> {
    let (mut jobs, mut page_token) = (Vec::new(), String::new());
    loop {
        let view = JobView::Full.into();
        let request = ListJobsRequest { page_size: 7, page_token, view, ..Default::default() };
        let page = client.clone().list_jobs(request).await.expect("a page").into_inner();
        jobs.extend(page.jobs);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return jobs;
        }
    }
}

async fn results(client: &Client, jobs: &[Job]) -> Vec<Job> {
    let mut results = Vec::new();
    for job in jobs {
        let request = GetResultRequest { job_id: job.job_id.clone(), ..Default::default() };
        let reply = client.clone().get_result(request).await.expect("a result").into_inner();
        results.push(reply.job.expect("a job"));
    }
    results
}

/// What callers see.
async fn learn(client: &Client, lease_id: String) -> Known {
    let hour = watch_results_request::Start::Lookback(seconds(3600.0));
    let request = WatchResultsRequest { start: Some(hour), ..Default::default() };
    let mut watch = Watch::open(client, request).await;
    for _ in 0..10 {
        watch.finished().await;
    }
    let cursor = watch.cursor;
    let rest = Watch::open(client, after(&cursor)).await.replay().await;
    let jobs = list(client).await;
    let results = results(client, &jobs).await;
    Known { jobs, results, cursor, rest, lease_id }
}

/// The number that a query answers with.
async fn number(url: &str, sql: &str) -> i64 {
    connect(url).await.query_one(sql, &[]).await.expect("a row").get(0)
}

fn migrate(from: &Path, to: &str) -> (Option<i32>, String) {
    jobwire(&["migrate", "--from", from.to_str().expect("text"), "--to", to])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_was_taken_over_is_the_same_to_everybody() {
    let mut before = Server::with(SLOW);
    let lease_id = fill(&before).await;
    let client = before.client().await;
    let known = learn(&client, lease_id).await;
    // What time changes, and what the server itself was running, will not be the same.
    let place_echo = async |job_id: &str, change: fn(&mut JobSpec)| {
        let mut spec = submit("echo", "1").spec.expect("a spec");
        change(&mut spec);
        place(&client, SubmitRequest { job_id: job_id.into(), spec: Some(spec), ..Default::default() }).await
    };
    let running = SubmitRequest { job_id: "running".into(), ..submit("sleep", r#"{"duration":"1h"}"#) };
    place(&client, running).await;
    reach(&client, "running", State::Running).await;
    place_echo("brief", |spec| spec.retention = Some(seconds(3.0))).await;
    result(&client, "brief").await;
    place_echo("soon", |spec| spec.start = Some(Start::Delay(seconds(3.0)))).await;
    before.kill();

    let url = schema();
    let (code, said) = migrate(&before.data(), &url);
    assert_eq!(code, Some(0), "{said}");
    let told: serde_json::Value = serde_json::from_str(&said).expect("JSON");
    for (what, sql) in [
        ("jobs", "select count(*) from accepted"),
        ("unfinished", "select count(*) from live"),
        ("outcomes", "select count(*) from outcome"),
    ] {
        assert_eq!(told[what].as_i64(), Some(number(&url, sql).await), "{said}");
    }
    assert!(told["jobs"].as_u64() >= Some(known.jobs.len() as u64 + 2), "{said}");

    let after_it = Server::on_database(&url, SLOW);
    let client = after_it.client().await;
    let mut jobs = list(&client).await;
    jobs.retain(|job| !["running", "brief", "soon"].contains(&job.job_id.as_str()));
    assert_eq!(jobs, known.jobs);
    assert_eq!(results(&client, &known.jobs).await, known.results);
    for job in &known.jobs {
        assert_eq!(&get(&client, &job.job_id).await, job);
    }

    // Watchers go on where they were, and see what comes.
    let mut watch = Watch::open(&client, after(&known.cursor)).await;
    let mut seen = Vec::new();
    while seen.last().is_none_or(|id| id != "soon") {
        seen.push(watch.finished().await.job_id);
    }
    seen.retain(|id| id != "brief");
    let expected = known.rest.iter().map(String::as_str).chain(["soon"]);
    assert_eq!(seen, expected.collect::<Vec<_>>());
    assert_eq!(result(&client, "soon").await.state(), State::Succeeded);
    // Retention goes on.
    eventually(async || {
        let request = GetJobRequest { job_id: "brief".into(), ..Default::default() };
        let gone = client.clone().get_job(request).await.err()?;
        Some(Refusal::read(gone).is(Code::NotFound, "JOB_NOT_FOUND"))
    })
    .await;
    // The attempt of the server that was killed is spent, as if that had started again.
    let crashed = get(&client, "running").await;
    assert_eq!((crashed.state(), crashed.attempt), (State::BackingOff, 1));
    assert_eq!(crashed.attempts[0].error.as_ref().map(|error| error.cause()), Some(Cause::Crash));

    names_are_known(&client, &known).await;
    leases_are_held(&after_it, &client, &known.lease_id).await;
    assert_eq!(number(&url, WRONG_COUNTS).await, 0);

    // Nobody serves the directory by mistake.
    let data = before.data();
    let (code, said) = jobwire(&["serve", "--listen", "127.0.0.1:0", "--data", data.to_str().expect("text")]);
    assert_eq!((code, said.contains("were taken over to postgres://")), (Some(1), true), "{said}");
    let (code, said) = migrate(&data, &schema());
    assert_eq!((code, said.contains("were taken over to")), (Some(1), true), "{said}");
    let copy = before.scratch().join("copy");
    let copy = ["backup", copy.to_str().expect("text"), "--data", data.to_str().expect("text")];
    let (code, said) = jobwire(&copy);
    assert_eq!((code, said.contains("were taken over to")), (Some(1), true), "{said}");
    let (code, said) = jobwire(&[copy.as_slice(), &["--store", &url]].concat());
    assert_eq!((code, said.contains("jobs are in PostgreSQL")), (Some(2), true), "{said}");
}

/// Lines whose counts of unfinished jobs are not those of their rows.
const WRONG_COUNTS: &str = "select count(*) from (
    select id, scheduled + coalesce((select sum(scheduled) from tally where line = id), 0),
           queued + coalesce((select sum(queued) from tally where line = id), 0),
           running + coalesce((select sum(running) from tally where line = id), 0),
           backing_off + coalesce((select sum(backing_off) from tally where line = id), 0) from line
    except
    select id, count(num) filter (where state = 1), count(num) filter (where state = 2),
           count(num) filter (where state = 3), count(num) filter (where state = 4)
    from line left join live on line = id group by id) x";

async fn names_are_known(client: &Client, known: &Known) {
    let of = |n: usize| known.jobs.iter().rev().nth(n).expect("a job");
    let repeat =
        SubmitRequest { request_id: "echo-3".into(), spec: of(3).spec.clone(), ..Default::default() };
    let reply = accept(client, repeat).await;
    assert_eq!((reply.deduplicated, reply.job.expect("a job").job_id), (true, of(3).job_id.clone()));
    let other = SubmitRequest { request_id: "echo-3".into(), ..task("2") };
    Refusal::of(client.clone().submit(other).await).is(Code::AlreadyExists, "REQUEST_ID_REUSED");
    let removed = SubmitRequest { request_id: "of-removed".into(), ..task("1") };
    Refusal::of(client.clone().submit(removed).await).is(Code::AlreadyExists, "JOB_DELETED");
    let own = SubmitRequest { job_id: "queued".into(), ..task("3") };
    Refusal::of(client.clone().submit(own).await).is(Code::AlreadyExists, "JOB_ID_IN_USE");
    let held = spec(|spec| (spec.queue, spec.unique_key) = ("unique".into(), "the-key".into()));
    let held = SubmitRequest { spec: Some(held), ..Default::default() };
    let reply = accept(client, held).await;
    assert_eq!((reply.deduplicated, reply.job.expect("a job").job_id), (true, "unique".to_owned()));
}

async fn leases_are_held(server: &Server, client: &Client, lease_id: &str) {
    let workers = workers(server).await;
    assert!(renew(&workers, lease_id, vec![]).await.is_empty());
    let finish = Some(crate::workers::finish(lease_id, Outcome::Succeeded(json("1"))));
    workers.clone().finish_job(FinishJobRequest { finish }).await.expect("it counts");
    let job = get(client, "held").await;
    assert_eq!((job.state(), job.attempt), (State::Succeeded, 1));
    // What fails next goes on from what the last attempt had come to.
    retry(client, "backing-off").await.expect("now");
    let next = one(&workers).await.job.expect("a job");
    assert_eq!((next.job_id.as_str(), next.attempt), ("backing-off", 2));
    assert_eq!(next.progress.expect("progress").fraction, 0.25);
}

#[tokio::test]
async fn what_cannot_be_taken_over_is_refused_as_a_whole() {
    let mut server = Server::start();
    finish(&server.client().await, submit("echo", "1")).await;
    let (data, url) = (server.data(), schema());
    let refused = |from: &Path, to: &str, words: &[&str]| {
        let (code, said) = migrate(from, to);
        assert_eq!(code, Some(1), "{said}");
        for word in words {
            assert!(said.contains(word), "{word:?} is missing in {said}");
        }
    };
    refused(&data, &url, &["is in use by another jobwire", "stop that one"]);
    refused(&server.scratch().join("nowhere"), &url, &["holds no jobwire store"]);
    assert!(!server.scratch().join("nowhere").exists());
    server.signal("TERM");
    server.ended().await;

    let database = || rusqlite::Connection::open(data.join("jobwire.db")).expect("a database");
    database().execute("UPDATE job SET crc = crc + 1", []).expect("a change");
    refused(&data, &url, &["is damaged (the payload of job ", "jobwire verify"]);
    database().execute("UPDATE job SET crc = crc - 1", []).expect("a change");
    database().pragma_update(None, "user_version", 9).expect("a change");
    refused(&data, &url, &["has schema 9", "use the newer jobwire"]);
    database().pragma_update(None, "user_version", 1).expect("a change");

    let used = schema();
    drop(Server::on_database(&used, ""));
    refused(&data, &used, &["holds a jobwire store already", "search_path"]);
    execute(&used, "update jobwire set version = 9");
    refused(&data, &used, &["has schema 9", "use the newer jobwire"]);
    refused(&data, "postgres://127.0.0.1:1/nobody", &["refused"]);

    // None of that has changed anything.
    let (code, said) = migrate(&data, &url);
    assert_eq!(code, Some(0), "{said}");
}

fn begin_to_migrate(from: &Path, to: &str) -> Child {
    program()
        .args(["migrate", "--to", to, "--from"])
        .arg(from)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("it starts")
}

#[tokio::test]
async fn a_migration_that_was_broken_off_is_served_by_nobody_and_made_again() {
    let mut server = Server::start();
    let done =
        finish(&server.client().await, SubmitRequest { job_id: "a".into(), ..submit("echo", "1") }).await;
    server.signal("TERM");
    server.ended().await;
    let (data, url) = (server.data(), schema());
    assert_eq!(jobwire(&["migrate", "--to", &url]).0, Some(0));

    // It waits for this with most of its tables written.
    let held = connect(&url).await;
    held.batch_execute("begin; lock table request in share mode").await.expect("it is free");
    let mut child = begin_to_migrate(&data, &url);
    let waits = "select count(*) from pg_locks where not granted and relation = 'request'::regclass";
    eventually(async || (number(&url, waits).await == 1).then_some(())).await;
    child.kill().expect("it can be killed");
    child.wait().expect("it can be reaped");
    let serve = || jobwire(&["serve", "--listen", "127.0.0.1:0", "--store", &url]);
    let (code, said) = serve();
    assert_eq!((code, said.contains("at this moment")), (Some(1), true), "{said}");
    held.batch_execute("rollback").await.expect("nobody is held up any more");
    // PostgreSQL finds out that nobody is there any more.
    eventually(async || {
        let (code, said) = serve();
        assert_eq!(code, Some(1), "{said}");
        said.contains("that has not ended").then_some(())
    })
    .await;

    let (code, said) = migrate(&data, &url);
    assert_eq!(code, Some(0), "{said}");
    let server = Server::on_database(&url, "");
    assert_eq!(result(&server.client().await, "a").await, done);
}

/// Killed after it has marked the directory, while PostgreSQL commits: nobody knows yet what became of it. Run again it
/// finds out.
#[tokio::test]
async fn a_migration_that_was_killed_at_the_very_end_was_made_or_can_be_made() {
    for is_committed in [true, false] {
        let mut server = Server::start();
        let client = server.client().await;
        let done = finish(&client, SubmitRequest { job_id: "a".into(), ..submit("echo", "1") }).await;
        server.signal("TERM");
        server.ended().await;
        let (data, url) = (server.data(), schema());
        let data_text = data.to_str().expect("text");
        assert_eq!(jobwire(&["migrate", "--to", &url]).0, Some(0));
        execute(&url, SLOW_COMMIT);
        let held = connect(&url).await;
        held.batch_execute("select pg_advisory_lock(1)").await.expect("it is free");

        let mut child = begin_to_migrate(&data, &url);
        let waits = "select coalesce(max(pid), 0)::int8 from pg_locks where not granted and locktype = 'advisory'
                     and objsubid = 1 and objid = 1 and database = (select oid from pg_database where datname = current_database())";
        let pid = eventually(async || Some(number(&url, waits).await).filter(|&pid| pid != 0)).await;
        assert!(data.join("moved").exists());
        child.kill().expect("it can be killed");
        child.wait().expect("it can be reaped");
        let (code, said) = migrate(&data, &url);
        assert_eq!((code, said.contains("at this moment")), (Some(1), true), "{said}");
        if !is_committed {
            number(&url, &format!("select pg_terminate_backend({pid})::int::int8")).await;
        }
        held.batch_execute("select pg_advisory_unlock(1)").await.expect("it was ours");
        eventually(async || (number(&url, waits).await == 0).then_some(())).await;

        let (code, said) = jobwire(&["serve", "--listen", "127.0.0.1:0", "--data", data_text]);
        assert_eq!((code, said.contains("were taken over to postgres://")), (Some(1), true), "{said}");
        if !is_committed {
            let (code, said) = jobwire(&["serve", "--listen", "127.0.0.1:0", "--store", &url]);
            assert_eq!((code, said.contains("that has not ended")), (Some(1), true), "{said}");
        }
        for _ in 0..2 {
            let (code, said) = migrate(&data, &url);
            assert_eq!(code, Some(0), "{said}");
        }
        let (code, said) = jobwire(&["serve", "--listen", "127.0.0.1:0", "--data", data_text]);
        assert_eq!((code, said.contains("were taken over to postgres://")), (Some(1), true), "{said}");
        let server = Server::on_database(&url, "");
        assert_eq!(result(&server.client().await, "a").await, done);
    }
}

/// Holds up the commit of a migration for as long as somebody has the advisory lock 1.
const SLOW_COMMIT: &str = "
    create function wait() returns trigger language plpgsql as $$
      begin perform pg_advisory_xact_lock(1); return null; end $$;
    create constraint trigger wait after insert on feed deferrable initially deferred
      for each row execute function wait();";

/// A backup can be taken over too, while its original is being served. It begins a log of its own.
#[tokio::test]
async fn a_backup_can_be_taken_over() {
    let server = Server::start();
    let client = server.client().await;
    finish(&client, SubmitRequest { job_id: "a".into(), ..submit("echo", "1") }).await;
    let cursor = accept(&client, submit("echo", "2")).await.cursor;
    let (copy, url) = (server.scratch().join("copy"), schema());
    let (copy_text, data) = (copy.to_str().expect("text"), server.data());
    assert_eq!(jobwire(&["backup", copy_text, "--data", data.to_str().expect("text")]).0, Some(0));
    let (code, said) = migrate(&copy, &url);
    assert_eq!(code, Some(0), "{said}");
    let taken = Server::on_database(&url, "");
    let theirs = taken.client().await;
    assert_eq!(result(&theirs, "a").await, result(&client, "a").await);
    let refused = theirs.clone().watch_results(after(&cursor)).await;
    Refusal::of(refused).is(Code::OutOfRange, "LOG_REPLACED");
}
