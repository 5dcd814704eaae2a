//! A worker beyond the server, which goes on with what it holds when the server is there again. Beside the pool it runs
//! what is echoed. Now and then it dies, and another one comes that knows nothing; or it freezes, and says too late what
//! it had to say.

use std::{collections::BTreeMap, time::Duration};

use jobwire::proto::{
    Finish, FinishAck, JobError, Lease, Payload, WorkRequest, WorkResponse, WorkerHeartbeat, WorkerHello,
    finish::Outcome, work_request::Message as Said, work_response::Message as Told,
};
use tokio::{
    sync::mpsc,
    time::{interval, sleep},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Response, Streaming};

use super::clients::{Moment, Session, answer};

/// Leases that it holds at the same time.
const WINDOW: i32 = 8;

/// Shorter than half of any lease that is drawn.
const HEARTBEAT: Duration = Duration::from_millis(30);

/// What a worker remembers over the kills of its server.
#[derive(Default)]
pub struct Worker {
    held: BTreeMap<String, Work>,
    pub deaths: usize,
    pub freezes: usize,
}

struct Work {
    lease: Lease,
    /// Once it is done: sent, and not answered yet.
    report: Option<Outcome>,
}

impl Worker {
    /// Works until the server is killed.
    pub async fn work(mut self, mut session: Session) -> Self {
        while session.goes_on() {
            session.pause().await;
            let (requests, receiver) = mpsc::channel(64);
            let hello = WorkerHello {
                worker_id: format!("beyond-{}", self.deaths),
                kinds: vec!["echo".into()],
                queues: ["default", "a/mail", "a/web", "b"].map(str::to_owned).into(),
                max_in_flight: WINDOW,
                held_lease_ids: self.held.keys().cloned().collect(),
                ..Default::default()
            };
            say(&requests, Said::Hello(hello)).await;
            let replies = session.workers.work(ReceiverStream::new(receiver)).await;
            let Some(replies) = answer(replies, &["WATCH_LIMIT"]) else { continue };
            self.follow(&mut session, requests, replies).await;
        }
        self
    }

    /// One stream, to its end.
    async fn follow(
        &mut self,
        session: &mut Session,
        requests: mpsc::Sender<WorkRequest>,
        mut replies: Streaming<WorkResponse>,
    ) {
        let mut last = 0;
        let mut beat = interval(HEARTBEAT);
        loop {
            let reply = tokio::select! {
                reply = replies.message() => answer(reply.map(Response::new), &["WATCH_LIMIT", "TOO_LARGE"]),
                _ = beat.tick() => {
                    match session.rng.u8(..40) {
                        0 => {
                            self.deaths += 1;
                            self.held.clear();
                            return;
                        }
                        1 => {
                            self.freezes += 1;
                            sleep(Duration::from_millis(session.rng.u64(..500))).await;
                        }
                        _ => {}
                    }
                    let lease_ids = self.held.keys().cloned().collect();
                    let heartbeat = WorkerHeartbeat { lease_ids, last_lease_sequence: last };
                    say(&requests, Said::Heartbeat(heartbeat)).await;
                    self.do_some(session, &requests).await;
                    continue;
                }
            };
            let Some(Some(WorkResponse { message: Some(told) })) = reply else { return };
            match told {
                Told::Welcome(welcome) => {
                    self.lose(session, welcome.lost_lease_ids);
                    // What was not answered is sent again.
                    for (id, work) in &self.held {
                        if let Some(report) = &work.report {
                            let finish = Finish { lease_id: id.clone(), outcome: Some(report.clone()) };
                            say(&requests, Said::Finish(finish)).await;
                        }
                    }
                }
                Told::Lease(lease) => {
                    last = lease.sequence;
                    session.ledger().saw(lease.job.as_ref().expect("a job"));
                    session.reached(Moment::Leased);
                    self.held.insert(lease.lease_id.clone(), Work { lease: *lease, report: None });
                    self.do_some(session, &requests).await;
                }
                Told::FinishAck(ack) => self.acknowledge(session, ack),
                Told::HeartbeatAck(ack) => self.lose(session, ack.lost_lease_ids),
                // It goes on: what comes of it is the server's to say.
                Told::Revoked(_) => {}
                // This stream is over when that one is; there are others.
                Told::Drain(_) => {}
            }
        }
    }

    /// Drops what is lost, but for some of it: a success may come late.
    fn lose(&mut self, session: &mut Session, lost: Vec<String>) {
        for id in lost {
            if session.rng.bool() {
                self.held.remove(&id);
            }
        }
    }

    /// Ends some of what it holds.
    async fn do_some(&mut self, session: &mut Session, requests: &mpsc::Sender<WorkRequest>) {
        for (id, work) in &mut self.held {
            if work.report.is_none() && session.rng.u8(..3) > 0 {
                let report = report(session, &work.lease);
                work.report = Some(report.clone());
                say(requests, Said::Finish(Finish { lease_id: id.clone(), outcome: Some(report) })).await;
            }
        }
    }

    fn acknowledge(&mut self, session: &Session, ack: FinishAck) {
        let Some(work) = self.held.remove(&ack.lease_id) else { return };
        match ack.rejection {
            None if matches!(work.report, Some(Outcome::Succeeded(_))) => {
                session.reached(Moment::Finished);
                let job = work.lease.job.expect("a job");
                session.ledger().succeeded(&job.job_id, job.run, job.attempt);
            }
            None => {}
            Some(rejection) => assert_eq!(rejection.reason, "LEASE_LOST", "{rejection:?}"),
        }
    }
}

/// Mostly its input.
fn report(session: &mut Session, lease: &Lease) -> Outcome {
    if session.rng.u8(..10) == 0 {
        return Outcome::Failed(JobError { code: "drawn".into(), retryable: true, ..Default::default() });
    }
    let spec = lease.job.as_ref().and_then(|job| job.spec.as_ref()).expect("a spec");
    let Payload { body, content_type, .. } = spec.payload.clone().expect("an input");
    Outcome::Succeeded(Payload { body, content_type, ..Default::default() })
}

/// To a stream that has broken nothing can be said: it is found when it is read.
async fn say(requests: &mpsc::Sender<WorkRequest>, message: Said) {
    let _ = requests.send(WorkRequest { message: Some(message) }).await;
}
