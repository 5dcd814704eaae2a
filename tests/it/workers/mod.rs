//! Programs that connect to run jobs: over a stream, by unary calls, and in trouble.

mod contest;
mod crowd;
mod library;
mod limits;
mod process;
mod proxy;
mod stop;
mod stream;
mod trouble;
mod unary;

use std::collections::VecDeque;

use jobwire::proto::{
    Finish, FinishAck, HeartbeatAck, JobError, Lease, LeaseProgress, LeaseRevoked, Payload, Progress,
    Release, SubmitRequest, WorkRequest, WorkResponse, WorkerCapacity, WorkerHeartbeat, WorkerHello,
    WorkerWelcome, finish::Outcome, work_request::Message as Said, work_response::Message as Told,
};
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use crate::support::{PATIENCE, Server, Workers, json, submit};

/// Leases that end soon, and attempts that are made again at once.
pub const SHORT: &str = "[workers]\nlease = \"2s\"\nheartbeat = \"400ms\"\ngrace = \"1s\"\n\
    [defaults]\ninitial_backoff = \"10ms\"\nmax_backoff = \"10ms\"\n";

/// A kind that no server has a handler for.
pub const KIND: &str = "remote";

/// WorkerService on a connection of its own.
pub async fn workers(server: &Server) -> Workers {
    Workers::new(server.channel().await).max_decoding_message_size(8 << 20)
}

/// A job for workers.
pub fn task(payload: &str) -> SubmitRequest {
    submit(KIND, payload)
}

/// What a worker says first, with this window.
pub fn hello(worker_id: &str, window: i32) -> WorkerHello {
    WorkerHello {
        worker_id: worker_id.into(),
        kinds: vec![KIND.into()],
        max_in_flight: window,
        ..Default::default()
    }
}

/// One stream of a worker that does nothing by itself.
pub struct Worker {
    pub welcome: WorkerWelcome,
    requests: mpsc::Sender<WorkRequest>,
    replies: Streaming<WorkResponse>,
    waiting: VecDeque<Told>,
    /// The highest sequence number.
    pub last: i64,
}

impl Worker {
    /// Connects on a connection of its own.
    pub async fn connect(server: &Server, hello: WorkerHello) -> Self {
        Self::over(workers(server).await, hello).await
    }

    /// The same over a connection that is there.
    pub async fn over(client: Workers, hello: WorkerHello) -> Self {
        Self::try_over(client, hello).await.expect("the worker is welcome")
    }

    pub async fn try_over(mut client: Workers, hello: WorkerHello) -> Result<Self, Status> {
        let (requests, receiver) = mpsc::channel(64);
        let first = WorkRequest { message: Some(Said::Hello(hello)) };
        requests.send(first).await.expect("it is not full");
        let replies = client.work(ReceiverStream::new(receiver)).await?.into_inner();
        let welcome = WorkerWelcome::default();
        let mut worker = Self { welcome, requests, replies, waiting: VecDeque::new(), last: 0 };
        match worker.receive().await? {
            Some(Told::Welcome(welcome)) => worker.welcome = welcome,
            other => panic!("no welcome: {other:?}"),
        }
        Ok(worker)
    }

    pub async fn say(&self, message: Said) {
        self.requests.send(WorkRequest { message: Some(message) }).await.expect("the stream is open");
    }

    /// The next message; None at the end.
    pub async fn receive(&mut self) -> Result<Option<Told>, Status> {
        if let Some(waiting) = self.waiting.pop_front() {
            return Ok(Some(waiting));
        }
        self.read().await
    }

    async fn read(&mut self) -> Result<Option<Told>, Status> {
        let message = timeout(PATIENCE, self.replies.message()).await.expect("the server says something")?;
        let told = message.map(|response| response.message.expect("a known message"));
        if let Some(Told::Lease(lease)) = &told {
            assert_eq!(lease.sequence, self.last + 1, "a lease is missing");
            self.last = lease.sequence;
        }
        Ok(told)
    }

    /// The next message of a sort. Others wait.
    async fn next<T>(&mut self, sort: impl Fn(Told) -> Result<T, Told>) -> T {
        for at in 0..self.waiting.len() {
            let told = self.waiting.remove(at).expect("it is there");
            match sort(told) {
                Ok(found) => return found,
                Err(other) => self.waiting.insert(at, other),
            }
        }
        loop {
            match self.read().await {
                Ok(Some(told)) => match sort(told) {
                    Ok(found) => return found,
                    Err(other) => self.waiting.push_back(other),
                },
                end => panic!("the stream ended: {end:?}"),
            }
        }
    }

    pub async fn lease(&mut self) -> Lease {
        self.next(|told| match told {
            Told::Lease(lease) => Ok(*lease),
            other => Err(other),
        })
        .await
    }

    pub async fn revoked(&mut self) -> LeaseRevoked {
        self.next(|told| match told {
            Told::Revoked(revoked) => Ok(revoked),
            other => Err(other),
        })
        .await
    }

    pub async fn drain(&mut self) {
        self.next(|told| match told {
            Told::Drain(_) => Ok(()),
            other => Err(other),
        })
        .await;
    }

    /// Leases that have come without being waited for.
    pub fn unasked(&self) -> usize {
        self.waiting.iter().filter(|told| matches!(told, Told::Lease(_))).count()
    }

    /// A heartbeat that names these, and the answer to it.
    pub async fn beat(&mut self, held: &[&Lease]) -> HeartbeatAck {
        let lease_ids = held.iter().map(|lease| lease.lease_id.clone()).collect();
        self.beat_with(lease_ids, self.last).await
    }

    pub async fn beat_with(&mut self, lease_ids: Vec<String>, last_lease_sequence: i64) -> HeartbeatAck {
        self.say(Said::Heartbeat(WorkerHeartbeat { lease_ids, last_lease_sequence })).await;
        self.next(|told| match told {
            Told::HeartbeatAck(ack) => Ok(ack),
            other => Err(other),
        })
        .await
    }

    pub async fn resize(&self, max_in_flight: i32) {
        self.say(Said::Capacity(WorkerCapacity { max_in_flight })).await;
    }

    pub async fn progress(&self, lease: &Lease, progress: Progress) {
        let step = LeaseProgress { lease_id: lease.lease_id.clone(), progress: Some(progress) };
        self.say(Said::Progress(step)).await;
    }

    pub async fn finish(&mut self, finish: Finish) -> FinishAck {
        let id = finish.lease_id.clone();
        self.say(Said::Finish(finish)).await;
        self.ack(&id).await
    }

    /// The answer to the report on a lease.
    pub async fn finished(&mut self, lease: &Lease) -> FinishAck {
        self.ack(&lease.lease_id).await
    }

    async fn ack(&mut self, id: &str) -> FinishAck {
        self.next(|told| match told {
            Told::FinishAck(ack) if ack.lease_id == id => Ok(ack),
            other => Err(other),
        })
        .await
    }

    /// Reports, and expects it to count.
    pub async fn succeed(&mut self, lease: &Lease) {
        let ack = self.finish(succeeded(lease, "1")).await;
        assert!(ack.accepted && ack.rejection.is_none(), "{ack:?}");
    }

    /// Ends the stream from this side, and waits for the other.
    pub async fn close(mut self) -> Result<(), Status> {
        drop(self.requests);
        while self.replies.message().await?.is_some() {}
        Ok(())
    }
}

/// A success with a JSON document.
pub fn succeeded(lease: &Lease, output: &str) -> Finish {
    finish(&lease.lease_id, Outcome::Succeeded(json(output)))
}

/// A failure that another attempt may mend.
pub fn failed(lease: &Lease, code: &str) -> Finish {
    let error =
        JobError { code: code.into(), message: "it failed".into(), retryable: true, ..Default::default() };
    finish(&lease.lease_id, Outcome::Failed(error))
}

/// Given back.
pub fn released(lease: &Lease) -> Finish {
    finish(&lease.lease_id, Outcome::Released(Release { reason: "a test".into(), delay: None }))
}

pub fn finish(lease_id: &str, outcome: Outcome) -> Finish {
    Finish { lease_id: lease_id.into(), outcome: Some(outcome) }
}

/// Progress with a checkpoint.
pub fn checkpoint(fraction: f64, details: Option<Payload>) -> Progress {
    Progress { fraction, note: format!("{fraction} of it"), details, ..Default::default() }
}
