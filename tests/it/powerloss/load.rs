//! Clients that do something of everything, and note what they are told.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use jobwire::proto::{
    BatchSubmitRequest, CancelJobRequest, DeleteJobRequest, PayloadFormat, RetryJobRequest,
    StreamSubmitRequest, SubmitRequest, WatchResultsRequest, job::State, stream_submit_response::Verdict,
    watch_results_request::Start, watch_results_response::Event,
};
use tokio_stream::StreamExt as _;
use tonic::Status;
use uuid::Uuid;

use super::{
    ledger::{Fact, Ledger},
    trace::Recorder,
};
use crate::support::{Client, Server, seconds, submit};

/// At the same time.
const CLIENTS: usize = 4;

#[derive(Clone)]
pub struct Load {
    pub recorder: Arc<Recorder>,
    pub ledger: Arc<Ledger>,
    /// Where the watcher goes on.
    cursor: Arc<std::sync::Mutex<String>>,
}

impl Load {
    pub fn new(recorder: Arc<Recorder>, ledger: Ledger) -> Self {
        Self { recorder, ledger: ledger.into(), cursor: Arc::default() }
    }

    /// Does so many things, then `end`s the server while more is under way.
    pub async fn run(&self, mut server: Server, things: usize, end: impl AsyncFnOnce(&mut Server)) {
        let done = Arc::new(AtomicUsize::new(0));
        let ending = Arc::new(AtomicBool::new(false));
        let mut tasks = vec![tokio::spawn(self.clone().watch(server.client().await))];
        for _ in 0..CLIENTS {
            let (load, client) = (self.clone(), server.client().await);
            let (done, ending) = (done.clone(), ending.clone());
            tasks.push(tokio::spawn(async move {
                // What goes wrong when the server has gone is no trouble.
                loop {
                    let went = load.thing(client.clone()).await;
                    if ending.load(Ordering::Relaxed) {
                        return;
                    }
                    went.expect("an answer");
                    done.fetch_add(1, Ordering::Relaxed);
                }
            }));
        }
        while done.load(Ordering::Relaxed) < things && tasks.iter().all(|task| !task.is_finished()) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        ending.store(true, Ordering::Relaxed);
        end(&mut server).await;
        for task in tasks {
            task.await.expect("a client ends with the server, and not by itself");
        }
    }

    fn note(&self, fact: Fact) {
        self.ledger.note(&self.recorder, fact);
    }

    async fn thing(&self, client: Client) -> Result<(), Status> {
        match fastrand::u32(..100) {
            0..50 => self.submit(client).await,
            50..65 => self.batch(client).await,
            65..80 => self.stream(client).await,
            80..90 => self.cancel(client).await,
            90..95 => self.retry(client).await,
            _ => self.delete(client).await,
        }
    }

    async fn submit(&self, mut client: Client) -> Result<(), Status> {
        let mut request = self.echo();
        if fastrand::bool() {
            request.wait = Some(seconds(20.0));
        }
        let reply = client.submit(request).await?.into_inner();
        self.ledger.note_job(&self.recorder, &reply.job.expect("a job"));
        Ok(())
    }

    async fn batch(&self, mut client: Client) -> Result<(), Status> {
        let requests = (0..fastrand::usize(1..8)).map(|_| self.echo()).collect();
        let reply = client.batch_submit(BatchSubmitRequest { requests }).await?.into_inner();
        for reply in reply.responses {
            self.ledger.note_job(&self.recorder, &reply.job.expect("a job"));
        }
        Ok(())
    }

    async fn stream(&self, mut client: Client) -> Result<(), Status> {
        let requests: Vec<_> = (0..fastrand::i64(1..12))
            .map(|sequence| StreamSubmitRequest { sequence, request: Some(self.echo()) })
            .collect();
        let mut verdicts = client.stream_submit(tokio_stream::iter(requests)).await?.into_inner();
        while let Some(reply) = verdicts.message().await? {
            match reply.verdict.expect("a verdict") {
                Verdict::Accepted(accepted) => self.note(Fact::Accepted(accepted.job_id)),
                Verdict::Rejected(why) => return Err(Status::unknown(why.message)),
            }
        }
        Ok(())
    }

    /// A job that runs, or that waits for its time.
    async fn cancel(&self, mut client: Client) -> Result<(), Status> {
        let mut request = self.planned(submit("sleep", r#"{"duration":"1h"}"#));
        if fastrand::bool() {
            request.spec.as_mut().expect("a spec").start =
                Some(jobwire::proto::job_spec::Start::Delay(seconds(3600.0)));
            self.ledger.plan(&request);
        }
        let job_id = request.job_id.clone();
        let reply = client.submit(request).await?.into_inner();
        self.ledger.note_job(&self.recorder, &reply.job.expect("a job"));
        if fastrand::u8(..4) > 0 {
            let request = CancelJobRequest { job_id: job_id.clone(), ..Default::default() };
            let job = client.cancel_job(request).await?.into_inner().job.expect("a job");
            self.note(Fact::Cancelled(job_id));
            self.ledger.note_job(&self.recorder, &job);
        }
        Ok(())
    }

    /// A job that fails, and does so again.
    async fn retry(&self, mut client: Client) -> Result<(), Status> {
        let mut request = self.planned(submit("sleep", r#"{"duration":"never"}"#));
        request.wait = Some(seconds(20.0));
        let job_id = request.job_id.clone();
        let job = client.submit(request).await?.into_inner().job.expect("a job");
        self.ledger.note_job(&self.recorder, &job);
        if job.state() != State::Failed {
            return Err(Status::unknown(format!("{job:?}")));
        }
        let request = RetryJobRequest { job_id: job_id.clone(), ..Default::default() };
        let job = client.retry_job(request).await?.into_inner().job.expect("a job");
        self.note(Fact::Retried((job_id, job.run as u32)));
        Ok(())
    }

    async fn delete(&self, mut client: Client) -> Result<(), Status> {
        let request = SubmitRequest { wait: Some(seconds(20.0)), ..self.echo() };
        let job = client.submit(request).await?.into_inner().job.expect("a job");
        self.ledger.note_job(&self.recorder, &job);
        self.note(Fact::DeleteAsked(job.job_id.clone()));
        client.delete_job(DeleteJobRequest { job_id: job.job_id.clone(), ..Default::default() }).await?;
        self.note(Fact::Deleted(job.job_id));
        Ok(())
    }

    /// Mostly small.
    fn echo(&self) -> SubmitRequest {
        let size = match fastrand::u32(..40) {
            0 => 30_000,
            1..5 => 3_000,
            _ => 100,
        };
        let text: String = (0..fastrand::usize(..size)).map(|_| fastrand::alphanumeric()).collect();
        self.planned(submit("echo", &format!("{text:?}")))
    }

    fn planned(&self, mut request: SubmitRequest) -> SubmitRequest {
        request.request_id = Uuid::new_v4().to_string();
        request.job_id = Uuid::now_v7().to_string();
        if fastrand::bool() {
            request.job_id.insert_str(0, "text-");
        }
        request.payload_format = PayloadFormat::Raw.into();
        self.ledger.plan(&request);
        request
    }

    /// Until the server has gone.
    async fn watch(self, mut client: Client) {
        let start = match self.cursor.lock().unwrap().as_str() {
            "" => Start::Earliest(true),
            cursor => Start::AfterCursor(cursor.to_owned()),
        };
        let request = WatchResultsRequest {
            start: Some(start),
            payload_format: PayloadFormat::Raw.into(),
            ..Default::default()
        };
        let Ok(messages) = client.watch_results(request).await else { return };
        let mut messages = messages.into_inner();
        while let Some(Ok(message)) = messages.next().await {
            match message.event.expect("an event") {
                Event::Finished(job) => {
                    let run = (job.job_id.clone(), job.run as u32);
                    self.note(Fact::Watched(run, (&*job).into()));
                }
                Event::Gap(gap) => panic!("{gap:?}"),
                _ => {}
            }
            *self.cursor.lock().unwrap() = message.cursor;
        }
    }
}
