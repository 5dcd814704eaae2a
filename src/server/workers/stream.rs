//! One `Work` stream: what the worker says, what it is given and told, and how it ends.

use std::{collections::HashMap, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures_util::{
    FutureExt as _, StreamExt as _,
    future::BoxFuture,
    stream::{self, BoxStream, FuturesUnordered},
};
use prost::Message as _;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Status, Streaming};

use super::{RECONNECT_WITHIN, Workers};
use crate::{
    engine::{Granted, Named, Session, Stopped},
    job::{Error, Kind, QueueName, WorkerId},
    proto::{
        Finish, FinishAck, HeartbeatAck, WorkRequest, WorkResponse, WorkerDrain, WorkerHeartbeat,
        WorkerWelcome, work_request::Message as Said, work_response::Message as Told,
    },
    server::{
        convert::{self, Format, Hello, proto_duration, proto_timestamp},
        status::{of_library, rejection, status},
    },
    store::{Claim, ClaimWait},
};

/// Messages that wait for one worker to take them.
const BUFFER: usize = 64;

/// Bytes that wait for one worker to take them.
const BUFFER_BYTES: usize = 1 << 20;

/// Reports of one worker that wait for their commit, and their bytes.
const IN_FLIGHT: usize = 1024;
const IN_FLIGHT_BYTES: usize = 8 << 20;

/// Leases of one claim, and the bytes of their inputs, the last one aside.
const MOST: usize = 256;
const MOST_BYTES: usize = 1 << 20;

/// How long a worker may take to say who it is.
const HELLO: Duration = Duration::from_secs(10);

/// A claim that was answered with nothing is not made again at once.
const PAUSE: Duration = Duration::from_millis(250);

type Ends = (Option<Instant>, CancellationToken);

/// What goes out, with its part of the buffer.
type Outgoing = (Result<WorkResponse, Status>, Option<OwnedSemaphorePermit>);

/// Serves one worker until it goes, or has to.
pub fn work(
    workers: Workers,
    sessions: &TaskTracker,
    requests: Streaming<WorkRequest>,
    ends: Ends,
    place: OwnedSemaphorePermit,
) -> BoxStream<'static, Result<WorkResponse, Status>> {
    let (sender, receiver) = mpsc::channel(BUFFER);
    let patience = workers.engine.config().watch.stall_timeout;
    let out = Out { sender, room: Arc::new(Semaphore::new(BUFFER_BYTES)), patience };
    sessions.spawn(async move {
        let served = AssertUnwindSafe(serve(&workers, requests, &out, ends)).catch_unwind().await;
        let served =
            served.unwrap_or_else(|_| Err(Error::Internal("a worker's stream panicked".into()).into()));
        if let Err(End(why)) = served {
            // Whoever does not read it need not know.
            let _ = timeout(out.patience, out.sender.send((Err(why), None))).await;
        }
        drop(place);
    });
    stream::unfold(receiver, |mut receiver| async move {
        let (message, _room) = receiver.recv().await?;
        Some((message, receiver))
    })
    .boxed()
}

/// Why a stream ends.
struct End(Status);

impl From<Error> for End {
    fn from(error: Error) -> Self {
        Self(status(error))
    }
}

/// The way to the worker.
struct Out {
    sender: mpsc::Sender<Outgoing>,
    room: Arc<Semaphore>,
    patience: Duration,
}

impl Out {
    /// Waits for room, but not for ever.
    async fn send(&self, message: Told) -> Result<(), End> {
        let message = WorkResponse { message: Some(message) };
        let size = message.encoded_len().min(BUFFER_BYTES) as u32;
        let sent = timeout(self.patience, async {
            let room = self.room.clone().acquire_many_owned(size).await.map_err(|_| Error::StreamRotated)?;
            self.sender.send((Ok(message), Some(room))).await.map_err(|_| Error::StreamRotated)
        });
        Ok(sent.await.map_err(|_| Error::WatchStalled(self.patience))??)
    }
}

/// One connected worker.
struct Connection<'a> {
    workers: &'a Workers,
    session: Arc<Session>,
    hello: Arc<HelloParts>,
    out: &'a Out,
}

/// What a claim is made of.
struct HelloParts {
    worker: WorkerId,
    kinds: Vec<Kind>,
    queues: Vec<QueueName>,
    format: Format,
}

/// However its stream ends.
impl Drop for Connection<'_> {
    fn drop(&mut self) {
        self.workers.engine.disconnect(&self.session);
    }
}

async fn serve(
    workers: &Workers,
    mut requests: Streaming<WorkRequest>,
    out: &Out,
    (deadline, retire): Ends,
) -> Result<(), End> {
    let Some(hello) = first(workers, &mut requests).await? else { return Ok(()) };
    let Hello { worker, kinds, queues, window, held, format, sdk } = hello;
    let session = Session::new(worker.clone(), window);
    tracing::debug!(%worker, sdk, held = held.ours.len(), window, "a worker connects");
    let hello = Arc::new(HelloParts { worker, kinds, queues, format });
    let connection = Connection { workers, session, hello, out };
    let found = workers.engine.connect(&connection.session, &held.ours).await?;
    let config = workers.engine.config();
    let welcome = WorkerWelcome {
        heartbeat_interval: Some(proto_duration(config.workers.heartbeat)),
        lease_duration: Some(proto_duration(config.workers.lease)),
        lost_lease_ids: convert::lost(&found.lost, held.others, &workers.key),
        instance_id: workers.instance.to_string(),
    };
    out.send(Told::Welcome(welcome)).await?;
    connection.run(requests, deadline, retire).await
}

/// The hello. None if the worker has gone without one.
async fn first(workers: &Workers, requests: &mut Streaming<WorkRequest>) -> Result<Option<Hello>, End> {
    let message = timeout(HELLO, requests.message()).await.map_err(|_| Error::DeadlineExceeded)?;
    let Some(request) = message.map_err(broken)? else { return Ok(None) };
    let Some(Said::Hello(hello)) = request.message else {
        return Err(Error::invalid("hello", "must be the first message").into());
    };
    Ok(Some(convert::hello(hello, workers.engine.config(), &workers.key)?))
}

fn broken(end: Status) -> End {
    End(of_library(&end).unwrap_or(end))
}

impl Connection<'_> {
    /// Everything at once, until one of it says that the stream ends. Then what was begun is carried out.
    async fn run(
        &self,
        requests: Streaming<WorkRequest>,
        deadline: Option<Instant>,
        retire: CancellationToken,
    ) -> Result<(), End> {
        let engine = &self.workers.engine;
        // No more leases: the worker goes, or the server.
        let end = engine.claim_end();
        let (reports, reported) = mpsc::channel(BUFFER);
        let leasing = self.lease(&end);
        let stalled = CancellationToken::new();
        let settling = self.settle(reported, &stalled);
        let others = async {
            tokio::select! {
                ended = self.listen(requests, reports) => ended,
                ended = self.tell() => ended,
                ended = self.drain(&end, &retire) => ended,
                () = self.silence(engine.config().workers.lease) => Err(Error::StreamRotated.into()),
                () = engine.closed() => Err(Error::Draining.into()),
                () = at(deadline) => Err(Error::DeadlineExceeded.into()),
                () = self.out.sender.closed() => Ok(()),
                () = stalled.cancelled() => Err(Error::WatchStalled(self.out.patience).into()),
            }
        };
        let ended = async {
            tokio::pin!(leasing);
            tokio::pin!(others);
            tokio::select! {
                ended = &mut others => {
                    end.cancel();
                    let _ = leasing.await;
                    ended
                }
                given = &mut leasing => match given {
                    Ok(()) => others.await,
                    failed => failed,
                },
            }
        };
        let (ended, ()) = tokio::join!(ended, settling);
        ended
    }

    /// Gives leases for as long as the worker has room for them and is heard of.
    async fn lease(&self, end: &CancellationToken) -> Result<(), End> {
        let engine = &self.workers.engine;
        let quiet = engine.config().workers.heartbeat * 2;
        loop {
            tokio::select! {
                () = end.cancelled() => return Ok(()),
                () = self.session.ready(quiet) => {}
            }
            let stop = end.child_token();
            let granting = engine.grant(Some(&self.session), self.claim(stop.clone()));
            tokio::pin!(granting);
            let granted = tokio::select! {
                granted = &mut granting => granted?,
                // A worker that may be frozen takes no more jobs away from others.
                () = self.silence(quiet) => {
                    stop.cancel();
                    granting.await?
                }
            };
            if granted.is_empty() {
                let _ = timeout(PAUSE, end.cancelled()).await;
            }
            self.send(granted, end).await?;
        }
    }

    fn claim(&self, end: CancellationToken) -> Claim {
        let HelloParts { worker, kinds, queues, .. } = &*self.hello;
        Claim {
            worker: worker.clone(),
            queues: Some(queues.clone()),
            kinds: kinds.clone(),
            limit: MOST,
            max_bytes: MOST_BYTES,
            caps: HashMap::new(),
            lease: self.workers.engine.config().workers.lease,
            wait: Some(ClaimWait {
                slots: self.session.slots().clone(),
                end,
                handover: None,
                now: self.workers.engine.claim_clock(),
            }),
        }
    }

    /// Sends leases. Those that cannot be sent any more go back.
    async fn send(&self, granted: Vec<Granted>, end: &CancellationToken) -> Result<(), End> {
        let mut granted = granted.into_iter();
        let (mut sent, mut back) = (Ok(()), Vec::new());
        for granted in granted.by_ref() {
            sent = tokio::select! {
                biased;
                () = end.cancelled() => Err(None),
                sent = self.out.send(self.lease_message(&granted)) => sent.map_err(Some),
            };
            if sent.is_err() {
                back.push(granted.lease);
                break;
            }
        }
        back.extend(granted.map(|granted| granted.lease));
        self.workers.give_back(&back).await;
        match sent {
            Err(Some(why)) => Err(why),
            Ok(()) | Err(None) => Ok(()),
        }
    }

    fn lease_message(&self, granted: &Granted) -> Told {
        let lease = convert::lease(granted, &self.workers.key, self.hello.format);
        Told::Lease(Box::new(match lease.encoded_len() > super::MAX_REPLY {
            true => convert::lease(granted, &self.workers.key, Format::Text),
            false => lease,
        }))
    }

    /// What the worker says.
    async fn listen(
        &self,
        mut requests: Streaming<WorkRequest>,
        reports: mpsc::Sender<BoxFuture<'static, FinishAck>>,
    ) -> Result<(), End> {
        let Workers { engine, key, .. } = self.workers;
        let room = Arc::new(Semaphore::new(IN_FLIGHT_BYTES));
        while let Some(request) = requests.message().await.map_err(broken)? {
            self.session.hear();
            match request.message {
                Some(Said::Hello(_)) => {
                    return Err(Error::invalid("hello", "must come once, as the first message").into());
                }
                Some(Said::Capacity(capacity)) => {
                    let window = capacity.max_in_flight;
                    self.session.resize(convert::window("capacity.max_in_flight", window, engine.config())?);
                }
                Some(Said::Heartbeat(heartbeat)) => self.beat(heartbeat).await?,
                Some(Said::Progress(step)) => {
                    // What breaks a limit is left out: the worker's other jobs need the stream.
                    let Ok((text, progress)) = convert::step("progress", step, engine.clock().now()) else {
                        tracing::debug!(worker = %self.hello.worker, "progress beyond its limits is left out");
                        continue;
                    };
                    let lease = key.lease(&text);
                    if !lease.is_some_and(|lease| engine.report_progress(lease, progress)) {
                        self.revoke(text, Stopped::Expired).await?;
                    }
                }
                Some(Said::Finish(finish)) => {
                    let size = finish.encoded_len().clamp(1, IN_FLIGHT_BYTES) as u32;
                    let Ok(held) = room.clone().acquire_many_owned(size).await else { return Ok(()) };
                    // Before the report is taken: from then on it is carried out.
                    let Ok(place) = reports.reserve().await else { return Ok(()) };
                    let report = self.finish(finish);
                    let report = async move {
                        let ack = report.await;
                        drop(held);
                        ack
                    };
                    place.send(report.boxed());
                }
                // Of a later version.
                None => {}
            }
        }
        Ok(())
    }

    async fn beat(&self, heartbeat: WorkerHeartbeat) -> Result<(), End> {
        let Workers { engine, key, .. } = self.workers;
        let WorkerHeartbeat { lease_ids, last_lease_sequence } = heartbeat;
        let named = convert::named("heartbeat.lease_ids", lease_ids, key)?;
        let Named { lost, until, .. } =
            engine.heartbeat(&self.session, &named.ours, last_lease_sequence).await?;
        let ack = HeartbeatAck {
            lost_lease_ids: convert::lost(&lost, named.others, key),
            lease_expire_time: until.map(proto_timestamp),
        };
        self.out.send(Told::HeartbeatAck(ack)).await
    }

    /// The report is taken now, so that what the worker says next finds it; the answer comes once it is durable.
    fn finish(&self, finish: Finish) -> impl Future<Output = FinishAck> + Send + use<> {
        let Workers { engine, key, .. } = self.workers;
        let lease_id = finish.lease_id.clone();
        let lease = key.lease(&lease_id).ok_or(Error::LeaseLost);
        let taken = lease.and_then(|lease| {
            let report = convert::report(finish, &engine.config().limits)?;
            // It goes on also while the worker takes no answers: others wait for the same room.
            Ok(tokio::spawn(engine.finish(lease, report)))
        });
        async move {
            let panicked = |_| Err(Error::Internal("a report panicked".into()));
            let settled = match taken {
                Ok(settling) => settling.await.unwrap_or_else(panicked),
                Err(error) => Err(error),
            };
            let rejection = settled.err().map(|error| rejection(&error));
            FinishAck { lease_id, accepted: rejection.is_none(), rejection }
        }
    }

    /// Answers reports, each once it is durable, until there are no more. `stalled`: the worker takes no answers.
    async fn settle(
        &self,
        mut reports: mpsc::Receiver<BoxFuture<'static, FinishAck>>,
        stalled: &CancellationToken,
    ) {
        let mut acks = FuturesUnordered::new();
        loop {
            let ack = tokio::select! {
                Some(report) = reports.recv(), if acks.len() < IN_FLIGHT => {
                    acks.push(report);
                    continue;
                }
                Some(ack) = acks.next() => ack,
                else => return,
            };
            // To a worker that has gone nothing can be said; what it reported counts.
            if !stalled.is_cancelled() && self.out.send(Told::FinishAck(ack)).await.is_err() {
                stalled.cancel();
            }
        }
    }

    /// Tells of leases that must stop.
    async fn tell(&self) -> Result<(), End> {
        loop {
            for (lease, why) in self.session.notices().await {
                self.revoke(self.workers.key.text(lease), why).await?;
            }
        }
    }

    async fn revoke(&self, lease_id: String, why: Stopped) -> Result<(), End> {
        let grace = match why {
            Stopped::Expired => Duration::ZERO,
            Stopped::Cancelled | Stopped::Timeout => self.workers.engine.config().workers.grace,
        };
        self.out.send(Told::Revoked(convert::revoked(lease_id, why, grace))).await
    }

    /// Sends the worker to another stream when this one is to end, and ends it once nothing is held by it.
    async fn drain(&self, end: &CancellationToken, retire: &CancellationToken) -> Result<(), End> {
        let engine = &self.workers.engine;
        let grace = engine.config().http2.connection_grace;
        let (within, why) = tokio::select! {
            () = engine.drained() => (RECONNECT_WITHIN, Error::Draining),
            () = retire.cancelled() => (grace.saturating_sub(RECONNECT_WITHIN), Error::StreamRotated),
        };
        end.cancel();
        self.out.send(Told::Drain(WorkerDrain { reconnect_within: Some(proto_duration(within)) })).await?;
        let _ = timeout(within, self.session.idle()).await;
        Err(why.into())
    }

    /// Resolves when nothing was heard of the worker for this long.
    async fn silence(&self, patience: Duration) {
        while let Some(left) = patience.checked_sub(self.session.silence())
            && !left.is_zero()
        {
            sleep(left).await;
        }
    }
}

async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
