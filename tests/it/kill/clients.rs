//! Clients that go on until the server is killed. They enter what they send before they send it, and what they are told
//! when they are told.

use std::time::Duration;

use fastrand::Rng;
use jobwire::proto::{
    BatchSubmitRequest, CancelJobRequest, DeleteJobRequest, GetJobRequest, GetResultRequest, Job, JobFilter,
    Rejection, RetryJobRequest, StreamSubmitRequest, SubmitRequest, WatchResultsRequest, job::State,
    stream_submit_response::Verdict, watch_results_request::Start, watch_results_response::Event,
};
use parking_lot::MutexGuard;
use tokio::{sync::mpsc, time::sleep};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Response, Status, Streaming};
use tonic_types::StatusExt as _;

use super::{
    asks::Ask,
    ledger::{Deletion, Ledger, Shared, is_final},
};
use crate::support::{Client, Workers, seconds};

/// Items of one stream that wait for their verdict.
const WINDOW: usize = 50;

/// How a submit may be refused: under some settings, or while a disk is full.
const REFUSALS: [&str; 3] = ["QUEUE_FULL", "TOO_LARGE", "STORE_FULL"];

/// What a kill may follow at once, instead of coming at any time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Moment {
    Submitted,
    Cancelled,
    Retried,
    Deleted,
    Ended,
    Running,
    Leased,
    Finished,
}

impl Moment {
    pub const ALL: [Self; 8] = [
        Self::Submitted,
        Self::Cancelled,
        Self::Retried,
        Self::Deleted,
        Self::Ended,
        Self::Running,
        Self::Leased,
        Self::Finished,
    ];
}

/// One client, for as long as the load lasts.
#[derive(Clone)]
pub struct Session {
    /// A way to each server: any of them will do for any call.
    pub ways: Vec<(Client, Workers)>,
    pub ledger: Shared,
    pub rng: Rng,
    pub over: CancellationToken,
    /// The time has come for what is to happen.
    pub strike: CancellationToken,
    pub strike_when: Option<Moment>,
}

impl Session {
    pub fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock()
    }

    /// A way to one of the servers, another one for each call.
    pub fn client(&mut self) -> Client {
        self.rng.choice(&self.ways).expect("there is a server").0.clone()
    }

    /// The same for workers.
    pub fn workers(&mut self) -> Workers {
        self.rng.choice(&self.ways).expect("there is a server").1.clone()
    }

    pub fn goes_on(&self) -> bool {
        !self.over.is_cancelled()
    }

    /// The next message of a stream: None if it has broken, or if all is over.
    pub async fn next<T>(&self, stream: &mut Streaming<T>, expected: &[&str]) -> Option<Option<T>> {
        tokio::select! {
            biased;
            message = stream.message() => answer(message.map(Response::new), expected),
            () = self.over.cancelled() => None,
        }
    }

    /// Tells that this was just acknowledged.
    pub fn reached(&self, moment: Moment) {
        if self.strike_when == Some(moment) {
            self.strike.cancel();
        }
    }

    pub async fn pause(&mut self) {
        sleep(Duration::from_micros(self.rng.u64(..3000))).await;
    }

    fn ask(&mut self) -> (usize, SubmitRequest) {
        let rng = &mut self.rng;
        self.ledger.lock().ask(|number| Ask::draw(rng, number))
    }
}

/// The reason of ours, if a status has one: then the server has answered.
pub fn reason(status: &Status) -> Option<String> {
    status.get_details_error_info().map(|info| info.reason)
}

/// An answer; None if it is lost, or refused for one of the `expected` reasons.
pub fn answer<T>(result: Result<Response<T>, Status>, expected: &[&str]) -> Option<T> {
    let status = match result {
        Ok(response) => return Some(response.into_inner()),
        Err(status) => status,
    };
    match reason(&status) {
        Some(reason) => {
            let passing = status.code() == Code::Unavailable || reason == "WATCH_STALLED";
            assert!(passing || expected.contains(&reason.as_str()), "{status:?}");
        }
        None => {
            let broken = [Code::Unavailable, Code::Unknown, Code::Internal, Code::Cancelled];
            assert!(broken.contains(&status.code()), "{status:?}");
        }
    }
    None
}

/// Whether nothing is known: a repeat is safe.
pub fn is_passing(rejection: &Rejection) -> bool {
    Code::from(rejection.code) == Code::Unavailable
}

fn is_refusal(status: &Status) -> bool {
    reason(status).is_some_and(|reason| REFUSALS.contains(&reason.as_str()))
}

pub async fn submit_one_by_one(mut session: Session) {
    while session.goes_on() {
        let (number, mut request) = session.ask();
        request.wait = (session.rng.u8(..10) == 0).then(|| seconds(0.05));
        match session.client().submit(request).await {
            Ok(reply) => {
                session.reached(Moment::Submitted);
                let reply = reply.into_inner();
                let mut ledger = session.ledger();
                ledger.acknowledge(number, &reply);
                if number % 10 == 0 {
                    ledger.awaited.push((reply.job.expect("a job").job_id, reply.cursor));
                }
            }
            Err(status) if is_refusal(&status) => session.ledger().refuse(number),
            Err(status) => {
                // Somebody who watched may have deleted it before its wait was over.
                let deleted = session.ledger().entries[number].deletion > Deletion::None;
                let expected = if deleted { ["WATCH_LIMIT", "JOB_NOT_FOUND"] } else { ["WATCH_LIMIT"; 2] };
                answer::<()>(Err(status), &expected);
            }
        }
        session.pause().await;
    }
}

pub async fn submit_in_batches(mut session: Session) {
    while session.goes_on() {
        let size = session.rng.usize(1..=30);
        let (numbers, requests): (Vec<_>, Vec<_>) = (0..size).map(|_| session.ask()).unzip();
        match session.client().batch_submit(BatchSubmitRequest { requests }).await {
            Ok(reply) => {
                let replies = reply.into_inner().responses;
                assert_eq!(replies.len(), numbers.len());
                let mut ledger = session.ledger();
                for (number, reply) in numbers.into_iter().zip(replies) {
                    ledger.acknowledge(number, &reply);
                }
            }
            Err(status) if is_refusal(&status) => {
                let mut ledger = session.ledger();
                numbers.into_iter().for_each(|number| ledger.refuse(number));
            }
            Err(status) => drop(answer::<()>(Err(status), &[])),
        }
        for _ in 0..10 {
            session.pause().await;
        }
    }
}

pub async fn submit_in_streams(mut session: Session) {
    while session.goes_on() {
        let (items, requests) = mpsc::channel(1);
        let verdicts = session.client().stream_submit(ReceiverStream::new(requests)).await;
        let Some(mut verdicts) = answer(verdicts, &[]) else {
            session.pause().await;
            continue;
        };
        let mut open = 0;
        loop {
            tokio::select! {
                room = items.reserve(), if open < WINDOW => {
                    let Ok(room) = room else { break };
                    let (number, request) = session.ask();
                    room.send(StreamSubmitRequest { sequence: number as i64, request: Some(request) });
                    open += 1;
                    if number % 4 == 0 {
                        session.pause().await;
                    }
                }
                verdict = session.next(&mut verdicts, &[]) => {
                    let Some(Some(reply)) = verdict else { break };
                    open -= 1;
                    let number = reply.sequence as usize;
                    match reply.verdict.expect("a verdict") {
                        Verdict::Accepted(accepted) => {
                            session.ledger().accept(number, &accepted.job_id, accepted.deduplicated);
                        }
                        Verdict::Rejected(why) if is_passing(&why) => {}
                        Verdict::Rejected(why) => {
                            assert!(REFUSALS.contains(&why.reason.as_str()), "{why:?}");
                            session.ledger().refuse(number);
                        }
                    }
                }
            }
        }
    }
}

/// Changes and reads what others submit.
pub async fn meddle(mut session: Session) {
    while session.goes_on() {
        session.pause().await;
        let job = session.ledger.lock().any(&mut session.rng);
        let Some(job_id) = job else { continue };
        match session.rng.u8(..20) {
            0..=3 => cancel(&mut session, job_id).await,
            4..=6 => retry(&mut session, job_id).await,
            7 => delete(&mut session, job_id).await,
            8..=12 => {
                let wait = session.rng.bool().then(|| seconds(0.02));
                let request = GetResultRequest { job_id: job_id.clone(), wait, ..Default::default() };
                let reply = session.client().get_result(request).await;
                see(&session, &job_id, reply, |reply| reply.job);
            }
            _ => {
                let request = GetJobRequest { job_id: job_id.clone(), ..Default::default() };
                let reply = session.client().get_job(request).await;
                see(&session, &job_id, reply, |reply| reply.job);
            }
        }
    }
}

/// A job that is not found must have been deleted.
fn see<T>(session: &Session, job_id: &str, reply: Result<Response<T>, Status>, job: fn(T) -> Option<Job>) {
    let Some(reply) = answer_about(session, job_id, reply, &["WATCH_LIMIT"]) else { return };
    session.ledger().saw(&job(reply).expect("a job"));
}

fn answer_about<T>(
    session: &Session,
    job_id: &str,
    reply: Result<Response<T>, Status>,
    expected: &[&str],
) -> Option<T> {
    match reply {
        Err(status) if reason(&status).as_deref() == Some("JOB_NOT_FOUND") => {
            let deletion = session.ledger().of(job_id).deletion;
            assert!(deletion > Deletion::None, "{job_id} is acknowledged, and not found");
            None
        }
        reply => answer(reply, expected),
    }
}

async fn cancel(session: &mut Session, job_id: String) {
    session.ledger().of(&job_id).cancel_sent = true;
    let request = CancelJobRequest { job_id: job_id.clone(), reason: "drawn".into(), ..Default::default() };
    let reply = session.client().cancel_job(request).await;
    if let Some(reply) = answer_about(session, &job_id, reply, &["QUEUE_FULL"]) {
        session.reached(Moment::Cancelled);
        session.ledger().cancelled(&reply.job.expect("a job"));
    }
}

async fn retry(session: &mut Session, job_id: String) {
    session.ledger().of(&job_id).retries_sent += 1;
    let request = RetryJobRequest { job_id: job_id.clone(), ..Default::default() };
    let reply = session.client().retry_job(request).await;
    if let Some(reply) = answer_about(session, &job_id, reply, &["JOB_STATE", "QUEUE_FULL"]) {
        session.reached(Moment::Retried);
        session.ledger().saw(&reply.job.expect("a job"));
    }
}

async fn delete(session: &mut Session, job_id: String) {
    let before = {
        let mut ledger = session.ledger();
        let deletion = &mut ledger.of(&job_id).deletion;
        std::mem::replace(deletion, Deletion::Sent.max(*deletion))
    };
    let request = DeleteJobRequest { job_id: job_id.clone(), ..Default::default() };
    let reply = session.client().delete_job(request).await;
    let refused = reply.as_ref().err().and_then(reason).is_some_and(|reason| reason == "JOB_STATE");
    if answer_about(session, &job_id, reply, &["JOB_STATE", "QUEUE_FULL"]).is_some() {
        session.reached(Moment::Deleted);
        assert!(before < Deletion::Acknowledged, "{job_id} was deleted twice");
        session.ledger().of(&job_id).deletion = Deletion::Acknowledged;
    } else if refused {
        session.ledger().of(&job_id).deletion = before;
    }
}

/// Submits under one unique key: a new job is taken only once the one before has ended.
pub async fn submit_exclusively(mut session: Session) {
    while session.goes_on() {
        let (number, request) = {
            let rng = &mut session.rng;
            session.ledger.lock().ask(|number| Ask::exclusive(rng, number))
        };
        match session.client().submit(request).await {
            Ok(reply) => {
                let reply = reply.into_inner();
                let before = session.ledger().acknowledge_exclusive(number, reply);
                if let Some(before) = before {
                    let request = GetJobRequest { job_id: before, ..Default::default() };
                    if let Some(reply) = answer(session.client().get_job(request).await, &[]) {
                        let job = reply.job.expect("a job");
                        assert!(is_final(job.state()), "two of one unique key: {job:?}");
                    }
                }
            }
            Err(status) if is_refusal(&status) => session.ledger().refuse(number),
            Err(status) => drop(answer::<()>(Err(status), &[])),
        }
        session.pause().await;
    }
}

/// Keeps one job under way, over all kills: each of them costs it an attempt. `held` is the job, and the attempt that
/// was seen.
pub async fn hold(mut session: Session, mut held: Option<(String, i32)>) -> Option<(String, i32)> {
    let spent = held.as_ref().map_or(0, |&(_, attempt)| attempt);
    while session.goes_on() {
        session.pause().await;
        let Some((job_id, seen)) = &mut held else {
            let (number, request) = session.ledger().ask(Ask::endless);
            match session.client().submit(request).await {
                Ok(reply) => {
                    let reply = reply.into_inner();
                    session.ledger().acknowledge(number, &reply);
                    held = Some((reply.job.expect("a job").job_id, 0));
                }
                Err(status) if is_refusal(&status) => session.ledger().refuse(number),
                Err(status) => drop(answer::<()>(Err(status), &[])),
            }
            continue;
        };
        let request = GetJobRequest { job_id: job_id.clone(), ..Default::default() };
        let Some(reply) = answer(session.client().get_job(request).await, &[]) else { continue };
        let job = reply.job.expect("a job");
        session.ledger().saw(&job);
        if job.state() == State::Running {
            assert!(job.attempt > spent, "the crash of attempt {spent} does not count: {job:?}");
            *seen = job.attempt;
            session.reached(Moment::Running);
        }
    }
    held
}

/// Watches for the end of single jobs, after the cursor that their submit was answered with: often that of an earlier
/// start.
pub async fn await_ends(mut session: Session) {
    while session.goes_on() {
        session.pause().await;
        let awaited = session.ledger().awaited.pop();
        let Some((job_id, cursor)) = awaited else { continue };
        let request = WatchResultsRequest {
            filter: Some(JobFilter { job_ids: vec![job_id.clone()], ..Default::default() }),
            start: Some(Start::AfterCursor(cursor.clone())),
            until_all_done: true,
            ..Default::default()
        };
        let reply = session.client().watch_results(request).await;
        let ended = match answer_about(&session, &job_id, reply, &[]) {
            Some(mut messages) => {
                let mut told = false;
                loop {
                    match session.next(&mut messages, &[]).await {
                        Some(Some(message)) => {
                            if let Some(Event::Finished(job)) = message.event {
                                session.ledger().saw(&job);
                                told = true;
                            }
                        }
                        Some(None) => {
                            let deleted = session.ledger().of(&job_id).deletion > Deletion::None;
                            assert!(told || deleted, "the end of {job_id} was not told after its cursor");
                            break true;
                        }
                        None => break false,
                    }
                }
            }
            None => session.ledger().of(&job_id).deletion > Deletion::None,
        };
        if !ended {
            let mut ledger = session.ledger();
            // To the front: others have their turn first.
            ledger.awaited.insert(0, (job_id, cursor));
        }
    }
}
