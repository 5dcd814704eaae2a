//! A worker beyond the server, which goes on with what it holds when the server is there again, or at another one. Beside
//! the pool it runs what is echoed. Now and then it dies, and another one comes that knows nothing; or it freezes, and says too late what
//! it had to say.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use jobwire::proto::{
    Finish, FinishAck, JobError, Lease, Payload, WorkRequest, WorkResponse, WorkerHeartbeat, WorkerHello,
    finish::Outcome, work_request::Message as Said, work_response::Message as Told,
};
use tokio::{
    sync::mpsc,
    time::{interval, sleep},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::clients::{Moment, Session, answer, is_passing};

/// Leases that it holds at the same time.
const WINDOW: i32 = 8;

/// Shorter than half of any lease that is drawn.
const HEARTBEAT: Duration = Duration::from_millis(30);

/// What a worker remembers over the kills of its server.
pub struct Worker {
    name: usize,
    held: BTreeMap<String, Work>,
    pub deaths: usize,
    pub freezes: usize,
}

struct Work {
    lease: Lease,
    /// Once it is done: not answered yet.
    report: Option<Outcome>,
    /// It has to be said, perhaps not for the first time.
    unsaid: bool,
}

impl Worker {
    pub fn new(name: usize) -> Self {
        Self { name, held: BTreeMap::new(), deaths: 0, freezes: 0 }
    }

    /// Works until all is over.
    pub async fn work(mut self, mut session: Session) -> Self {
        while session.goes_on() {
            session.pause().await;
            let (requests, receiver) = mpsc::channel(64);
            let hello = WorkerHello {
                worker_id: format!("beyond-{}-{}", self.name, self.deaths),
                kinds: vec!["echo".into()],
                queues: ["default", "a/mail", "a/web", "b"].map(str::to_owned).into(),
                max_in_flight: WINDOW,
                held_lease_ids: self.held.keys().cloned().collect(),
                ..Default::default()
            };
            say(&requests, Said::Hello(hello)).await;
            let replies = session.workers().work(ReceiverStream::new(receiver)).await;
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
        // What each heartbeat named that is not answered yet; the hello first.
        let mut named = VecDeque::from([self.held.keys().cloned().collect()]);
        loop {
            let reply = tokio::select! {
                reply = session.next(&mut replies, &["WATCH_LIMIT", "TOO_LARGE"]) => reply,
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
                    let lease_ids: Vec<_> = self.held.keys().cloned().collect();
                    named.push_back(lease_ids.clone());
                    let heartbeat = WorkerHeartbeat { lease_ids, last_lease_sequence: last };
                    say(&requests, Said::Heartbeat(heartbeat)).await;
                    self.do_some(session, &requests).await;
                    continue;
                }
            };
            let Some(Some(WorkResponse { message: Some(told) })) = reply else { return };
            match told {
                Told::Welcome(welcome) => {
                    self.confirm(session, named.pop_front(), &welcome.lost_lease_ids);
                    self.lose(session, welcome.lost_lease_ids);
                    // What was not answered is sent again.
                    self.held.values_mut().for_each(|work| work.unsaid = work.report.is_some());
                }
                Told::Lease(lease) => {
                    last = lease.sequence;
                    session.ledger().leased(lease.job.as_ref().expect("a job"));
                    session.reached(Moment::Leased);
                    self.held
                        .insert(lease.lease_id.clone(), Work { lease: *lease, report: None, unsaid: false });
                    self.do_some(session, &requests).await;
                }
                Told::FinishAck(ack) => self.acknowledge(session, ack),
                Told::HeartbeatAck(ack) => {
                    self.confirm(session, named.pop_front(), &ack.lost_lease_ids);
                    self.lose(session, ack.lost_lease_ids);
                }
                // It goes on: what comes of it is the server's to say.
                Told::Revoked(_) => {}
                // This stream is over when that one is; there are others.
                Told::Drain(_) => {}
            }
        }
    }

    /// What was named and is not lost is this worker's own.
    fn confirm(&self, session: &Session, named: Option<Vec<String>>, lost: &[String]) {
        let held = named.expect("it answers a hello or a heartbeat").into_iter();
        for work in held.filter(|id| !lost.contains(id)).filter_map(|id| self.held.get(&id)) {
            session.ledger().confirmed(work.lease.job.as_ref().expect("a job"));
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
                work.report = Some(report(session, &work.lease));
                work.unsaid = true;
            }
            if std::mem::take(&mut work.unsaid) {
                let finish = Finish { lease_id: id.clone(), outcome: work.report.clone() };
                say(requests, Said::Finish(finish)).await;
            }
        }
    }

    fn acknowledge(&mut self, session: &Session, ack: FinishAck) {
        let Some(mut work) = self.held.remove(&ack.lease_id) else { return };
        match ack.rejection {
            Some(rejection) if is_passing(&rejection) => {
                work.unsaid = true;
                self.held.insert(ack.lease_id, work);
            }
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
