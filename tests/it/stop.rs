//! A stop on a signal: running attempts end or are given back, and nobody is left without a word.

use std::{
    collections::HashSet,
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use futures_util::StreamExt as _;

use jobwire::proto::{
    BatchSubmitRequest, GetResultRequest, ListJobsRequest, RetryJobRequest, StreamSubmitRequest,
    StreamSubmitResponse, SubmitRequest, job::State, job_error::Cause, stream_submit_response::Verdict,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

use crate::{
    calls::{Refusal, eventually, finish, get, place, reach, reach_when, result},
    examples::Running,
    support::{Client, Server, program, seconds, submit},
};

const LONG: &str = r#"{"duration":"1h"}"#;

/// A job that runs.
async fn running(client: &Client, payload: &str) -> String {
    let id = place(client, submit("sleep", payload)).await;
    reach(client, &id, State::Running).await;
    id
}

/// The server has begun to stop.
async fn stopping(server: &Server) {
    eventually(async || server.log().contains("stopping").then_some(())).await;
}

#[tokio::test]
async fn a_running_attempt_may_end() {
    for signal in ["TERM", "INT"] {
        let mut server = Server::start();
        let client = server.client().await;
        let id = running(&client, r#"{"duration":"800ms"}"#).await;
        let waits = place(&client, submit("nobody", "1")).await;
        server.signal(signal);
        assert_eq!(server.ended().await.code(), Some(0));
        let server = server.restart();
        let client = server.client().await;
        let job = get(&client, &id).await;
        assert_eq!((job.state(), job.attempt, job.attempts.len()), (State::Succeeded, 1, 0), "{job:?}");
        assert_eq!(get(&client, &waits).await.state(), State::Queued);
    }
}

/// As where Ctrl-C ends both sides of a pipe, or the disk that the log is on is full.
#[test]
fn a_log_that_nobody_takes_stops_nothing() {
    let full = std::fs::File::options().write(true).open("/dev/full").expect("Linux has it");
    let (gone, unread) = std::io::pipe().expect("a pipe");
    drop(gone);
    for log in [Stdio::from(full), Stdio::from(unread)] {
        let dir = tempfile::tempdir().expect("a directory");
        let mut command = program();
        command.args(["serve", "--listen", "127.0.0.1:0", "--data"]).arg(dir.path().join("data"));
        let mut server = Running(command.stdout(Stdio::piped()).stderr(log).spawn().expect("it starts"));
        let mut line = String::new();
        BufReader::new(server.0.stdout.take().expect("a pipe")).read_line(&mut line).expect("text");
        assert!(line.starts_with("listening on "), "{line:?}");
        let pid = server.0.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().expect("kill runs").success());
        assert_eq!(server.0.wait().expect("it ends").code(), Some(0));
    }
}

#[tokio::test]
async fn an_attempt_that_takes_too_long_is_given_back_uncounted() {
    let mut server = Server::with("drain_timeout = \"200ms\"\n");
    let client = server.client().await;
    let id = running(&client, LONG).await;
    server.signal("TERM");
    assert_eq!(server.ended().await.code(), Some(0));
    let server = server.restart();
    let client = server.client().await;
    let again = reach(&client, &id, State::Running).await;
    assert_eq!((again.attempt, again.run, again.attempts.len(), again.error), (1, 1, 0, None));
}

#[tokio::test]
async fn a_second_signal_ends_at_once() {
    let mut server = Server::with("drain_timeout = \"1h\"\n");
    let client = server.client().await;
    let id = running(&client, LONG).await;
    server.signal("TERM");
    stopping(&server).await;
    let start = Instant::now();
    server.signal("TERM");
    assert_eq!(server.ended().await.code(), Some(130));
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    // As after a crash: the attempt is spent.
    let server = server.restart();
    let client = server.client().await;
    let again = reach_when(&client, &id, |job| !job.attempts.is_empty()).await;
    assert_eq!(again.attempts[0].error.as_ref().unwrap().cause(), Cause::Crash);
}

#[tokio::test]
async fn no_new_work_is_taken_but_the_rest_is_answered() {
    let mut server = Server::start();
    let client = server.client().await;
    let failed = finish(&client, submit("sleep", "1")).await.job_id;
    let (sender, items) = mpsc::channel(1);
    let mut stream = client.clone().stream_submit(ReceiverStream::new(items)).await.unwrap().into_inner();
    let item = |sequence| StreamSubmitRequest { sequence, request: Some(submit("nobody", "1")) };
    sender.send(item(1)).await.unwrap();
    assert_eq!(stream.message().await.unwrap().unwrap().sequence, 1);
    let id = running(&client, r#"{"duration":"1500ms"}"#).await;
    server.signal("TERM");
    stopping(&server).await;

    let retry = RetryJobRequest { job_id: failed.clone(), ..Default::default() };
    let batch = BatchSubmitRequest { requests: vec![submit("echo", "1")] };
    for refused in [
        Refusal::of(client.clone().submit(submit("echo", "1")).await),
        Refusal::of(client.clone().batch_submit(batch).await),
        Refusal::of(client.clone().retry_job(retry).await),
        Refusal::of(stream.message().await),
    ] {
        assert!(refused.retry_delay() > Duration::ZERO);
        refused.is(Code::Unavailable, "DRAINING").says(&["is stopping", "try again"]);
    }
    let check = SubmitRequest { validate_only: true, ..submit("echo", "1") };
    client.clone().submit(check).await.unwrap();
    assert_eq!(get(&client, &failed).await.state(), State::Failed);
    // Those who wait hear of what still ends.
    assert_eq!(result(&client, &id).await.state(), State::Succeeded);
    assert!(server.ended().await.success());
}

#[tokio::test]
async fn those_who_wait_are_told_how_it_is() {
    let mut server = Server::start();
    let client = server.client().await;
    let id = place(&client, submit("nobody", "1")).await;
    let wait = GetResultRequest { job_id: id, wait: Some(seconds(45.0)), ..Default::default() };
    let mut waiting = client.clone();
    let waiting = tokio::spawn(async move { waiting.get_result(wait).await });
    // Until the wait is there, a stop would find none.
    tokio::time::sleep(Duration::from_millis(100)).await;
    server.signal("TERM");
    let answer = waiting.await.unwrap().unwrap().into_inner();
    assert!(!answer.done && answer.job.unwrap().state() == State::Queued);
    assert!(server.ended().await.success());
}

#[tokio::test]
async fn an_idle_client_does_not_hold_up_a_stop() {
    let mut server = Server::start();
    let client = server.client().await;
    finish(&client, submit("echo", "1")).await;
    let start = Instant::now();
    server.signal("TERM");
    assert!(server.ended().await.success());
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
}

#[tokio::test]
async fn every_item_that_was_stored_has_its_verdict() {
    let mut server = Server::start();
    let client = server.client().await;
    let endless = futures_util::stream::iter(0..).map(|n: i64| {
        let request = SubmitRequest { job_id: format!("job-{n}"), ..submit("nobody", "1") };
        StreamSubmitRequest { sequence: n, request: Some(request) }
    });
    let mut stream = client.clone().stream_submit(endless).await.unwrap().into_inner();
    let mut accepted = HashSet::new();
    let end = loop {
        match stream.message().await {
            Ok(Some(StreamSubmitResponse { verdict: Some(Verdict::Accepted(item)), .. })) => {
                accepted.insert(item.job_id);
                if accepted.len() == 1000 {
                    server.signal("TERM");
                }
            }
            Ok(Some(_)) => {}
            Ok(None) => panic!("the caller was not done"),
            Err(status) => break status,
        }
    };
    Refusal::read(end).is(Code::Unavailable, "DRAINING");
    server.ended().await;
    let server = server.restart();
    let client = server.client().await;
    let mut request = ListJobsRequest { page_size: 1000, ..Default::default() };
    loop {
        let page = client.clone().list_jobs(request.clone()).await.unwrap().into_inner();
        for job in page.jobs {
            assert!(accepted.remove(&job.job_id), "{} was stored without a word", job.job_id);
        }
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            break;
        }
    }
    assert!(accepted.is_empty(), "{} are lost", accepted.len());
}

#[tokio::test]
async fn a_signal_counts_from_the_first_line_on() {
    for _ in 0..10 {
        let mut server = Server::start();
        server.signal("TERM");
        assert_eq!(server.ended().await.code(), Some(0), "{}", server.log());
    }
}
