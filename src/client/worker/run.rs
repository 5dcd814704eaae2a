//! A worker at work: what it holds, and the session that it holds it by.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    time::Duration,
};

use futures_util::future::BoxFuture;
use prost::Message as _;
use tokio::{
    sync::mpsc,
    task::{AbortHandle, JoinSet},
    time::{Instant, sleep, sleep_until},
};
use tonic::Code;

use super::{
    Worker,
    attempt::{self, Event},
    link::Link,
    messages,
};
use crate::{
    client::{Error, MAX_MESSAGE_BYTES, backoff::Backoff, resume::worth_resuming},
    job::{Cause, JobError, Kind, Payload, Progress},
    proto::{
        Finish, FinishAck, Lease, PayloadFormat, WorkerCapacity, WorkerHeartbeat, WorkerHello, WorkerWelcome,
        finish::Outcome, lease_revoked::Reason, work_request::Message as Said,
        work_response::Message as Told,
    },
    worker::Context,
};

const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
/// For handlers that are told to stop, and for the last results, when a worker ends.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// Of a drain, where for ever was asked for.
const LONGEST_DRAIN: Duration = Duration::from_secs(365 * 24 * 3600);
/// Before a result is sent again that the server could not take, if it does not say when.
const RESEND: Duration = Duration::from_secs(1);
/// What surrounds a Finish is smaller.
const MAX_FINISH: usize = MAX_MESSAGE_BYTES - 1024;
/// Why leases are given back in a drain.
const ENDS: &str = "the worker ends";
/// Events of attempts that wait to be heard.
const EVENTS: usize = 64;

type Opened = Result<(Link, WorkerWelcome), Error>;

/// What is to be sent. The message is made when its turn comes, of what is so then.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Post {
    Capacity,
    Heartbeat,
    Progress(String),
    Finish(String),
}

/// A lease, from its arrival until its result was acknowledged.
#[derive(Default)]
struct Held {
    /// Until a heartbeat that names it was answered: an attempt that nobody confirmed does not count, and a job that
    /// ends this process at once would run for ever.
    lease: Option<Lease>,
    work: Option<Work>,
    finish: Option<Finish>,
    /// On this link, where it speaks for its lease.
    sent: bool,
    /// The server would not have the handler's own result.
    refused: bool,
}

impl Held {
    fn progress(&self) -> Option<Progress> {
        self.work.as_ref()?.context.newest_progress().get()
    }
}

/// A handler under way, or that was.
struct Work {
    context: Context,
    task: AbortHandle,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Working,
    /// Takes no more, and lets handlers end.
    Draining,
    /// Handlers are told to stop.
    Stopping,
    /// What is left is given back.
    Leaving,
}

pub struct Run {
    worker: Worker,
    held: HashMap<String, Held>,
    attempts: JoinSet<()>,
    events: mpsc::Sender<Event>,
    heard: mpsc::Receiver<Event>,
    link: Option<Link>,
    opening: Option<BoxFuture<'static, Opened>>,
    outbox: VecDeque<Post>,
    waiting: HashSet<Post>,
    backoff: Backoff,
    beat: Instant,
    phase: Phase,
    phase_end: Instant,
}

impl Run {
    pub fn new(worker: Worker) -> Self {
        let (events, heard) = mpsc::channel(EVENTS);
        Self {
            worker,
            held: HashMap::new(),
            attempts: JoinSet::new(),
            events,
            heard,
            link: None,
            opening: None,
            outbox: VecDeque::new(),
            waiting: HashSet::new(),
            backoff: Backoff::new(FIRST_PAUSE, LONGEST_PAUSE),
            beat: Instant::now(),
            phase: Phase::Working,
            phase_end: Instant::now(),
        }
    }

    /// Works until it is told to stop. Handlers that are left then are dropped.
    pub async fn until(mut self, stop: impl Future<Output = ()> + Send) -> Result<(), Error> {
        tokio::pin!(stop);
        self.open(Duration::ZERO);
        while !self.is_done() {
            let (is_posting, is_draining) = (!self.outbox.is_empty(), self.phase != Phase::Working);
            let room = room(&self.link);
            tokio::select! {
                () = &mut stop, if !is_draining => self.drain(),
                () = sleep_until(self.phase_end), if is_draining => {
                    if self.phase == Phase::Leaving {
                        break;
                    }
                    self.drain();
                }
                opened = opened(&mut self.opening) => {
                    self.opening = None;
                    self.connected(opened)?;
                }
                told = hear(&mut self.link) => self.told(told),
                () = room, if is_posting => self.send(),
                () = sleep_until(self.beat), if self.link.is_some() => self.post(Post::Heartbeat),
                Some(event) = self.heard.recv() => self.event(event),
                Some(_) = self.attempts.join_next() => {}
            }
        }
        Ok(())
    }

    /// Nothing is held, nor on its way here: what was sent before a smaller window comes before the answer to a heartbeat
    /// after it.
    fn is_done(&self) -> bool {
        let quiet = |link: &Link| link.named.is_empty() && self.outbox.is_empty();
        self.phase != Phase::Working && self.held.is_empty() && self.link.as_ref().is_none_or(quiet)
    }

    /// Opens a stream after a pause. The one that is there stays until then.
    fn open(&mut self, pause: Duration) {
        let hello = WorkerHello {
            worker_id: self.worker.id.clone(),
            kinds: self.worker.handlers.kinds().map(ToString::to_string).collect(),
            queues: self.worker.queues.clone(),
            max_in_flight: self.window(),
            held_lease_ids: self.held.keys().cloned().collect(),
            sdk: concat!("jobwire-rust/", env!("CARGO_PKG_VERSION")).into(),
            payload_format: PayloadFormat::Raw.into(),
            ..Default::default()
        };
        let (endpoint, gzip) = (self.worker.endpoint.clone(), self.worker.gzip);
        self.opening = Some(Box::pin(async move {
            sleep(pause).await;
            Link::open(endpoint, gzip, hello).await
        }));
    }

    fn open_again(&mut self, asked: Option<Duration>) {
        let pause = self.backoff.pause(asked, fastrand::f64());
        self.open(pause);
    }

    fn window(&self) -> i32 {
        if self.phase == Phase::Working { self.worker.concurrency.into() } else { 0 }
    }

    fn connected(&mut self, opened: Opened) -> Result<(), Error> {
        let (link, welcome) = match opened {
            Ok(opened) => opened,
            Err(error) if error.is_unreachable() || worth_resuming(&error) => {
                tracing::warn!(%error, "no session with the server, trying again");
                self.open_again(error.retry_delay());
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        self.link = Some(link);
        self.outbox.clear();
        self.waiting.clear();
        for lease_id in welcome.lost_lease_ids {
            self.lose(&lease_id);
        }
        // The hello may be older than the drain.
        if self.phase != Phase::Working {
            self.post(Post::Capacity);
        }
        let mut posts = Vec::new();
        for (lease_id, held) in &mut self.held {
            held.sent = false;
            // The number of another stream.
            held.lease.iter_mut().for_each(|lease| lease.sequence = 0);
            if held.progress().is_some() {
                posts.push(Post::Progress(lease_id.clone()));
            }
            if held.finish.is_some() {
                posts.push(Post::Finish(lease_id.clone()));
            }
        }
        posts.into_iter().for_each(|post| self.post(post));
        self.post(Post::Heartbeat);
        Ok(())
    }

    fn told(&mut self, told: Result<Option<Told>, Error>) {
        match told {
            Ok(Some(Told::Lease(lease))) => self.take(*lease),
            Ok(Some(Told::HeartbeatAck(ack))) => {
                ack.lost_lease_ids.iter().for_each(|lease_id| self.lose(lease_id));
                self.confirmed();
            }
            Ok(Some(Told::FinishAck(ack))) => self.acked(ack),
            Ok(Some(Told::Revoked(revoked))) => match revoked.reason() {
                Reason::Cancelled | Reason::Timeout => self.interrupt(&revoked.lease_id),
                _ => self.lose(&revoked.lease_id),
            },
            Ok(Some(Told::Drain(_))) => {
                if self.opening.is_none() {
                    self.open(Duration::ZERO);
                }
            }
            Ok(Some(Told::Welcome(_)) | None) => {}
            Err(error) => {
                self.link = None;
                // Unless it was to be replaced.
                if self.opening.is_none() {
                    tracing::warn!(%error, "lost the session with the server");
                    self.open_again(error.retry_delay());
                }
            }
        }
    }

    /// Holds a lease. Its work begins once it is confirmed.
    fn take(&mut self, lease: Lease) {
        let lease_id = lease.lease_id.clone();
        if self.held.contains_key(&lease_id) {
            return;
        }
        self.held.insert(lease_id.clone(), Held { lease: Some(lease), ..Held::default() });
        if self.phase != Phase::Working {
            return self.release(lease_id, ENDS);
        }
        // Those that arrive while a heartbeat is under way share the next one.
        if self.link.as_ref().is_some_and(|link| link.named.is_empty()) {
            self.post(Post::Heartbeat);
        }
    }

    /// The oldest heartbeat that is under way was answered.
    fn confirmed(&mut self) {
        let Some(link) = &mut self.link else { return };
        let Some(named) = link.named.pop_front() else { return };
        // A session that is good for something: what ends it at once again must not come back in a hurry.
        self.backoff.reset();
        let is_last = link.named.is_empty();
        let fresh = self.held.iter_mut().filter_map(|(lease_id, held)| {
            Some((lease_id.clone(), held.lease.take_if(|lease| lease.sequence <= named)?))
        });
        for (lease_id, lease) in fresh.collect::<Vec<_>>() {
            self.begin(lease_id, lease);
        }
        if is_last && self.held.values().any(|held| held.lease.is_some()) {
            self.post(Post::Heartbeat);
        }
    }

    fn begin(&mut self, lease_id: String, lease: Lease) {
        let (parts, payload) = match messages::task(lease) {
            Ok(task) => task,
            Err(error) => {
                tracing::error!(%error, "a lease cannot be read");
                return self.release(lease_id, "the lease cannot be read");
            }
        };
        let kind: &Kind = &parts.spec.kind;
        let Some(handler) = self.worker.handlers.get(kind).cloned() else {
            return self.release(lease_id, "no handler for this kind");
        };
        let context = Context::new(parts);
        let work = attempt::run(lease_id.clone(), handler, context.clone(), payload, self.events.clone());
        let task = self.attempts.spawn(work);
        if let Some(held) = self.held.get_mut(&lease_id) {
            held.work = Some(Work { context, task });
        }
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Progress(lease_id) => self.post(Post::Progress(lease_id)),
            Event::Again(lease_id) => self.post(Post::Finish(lease_id)),
            Event::Done(lease_id, result) => self.done(lease_id, result),
        }
    }

    fn done(&mut self, lease_id: String, result: Result<Payload, JobError>) {
        let Some(held) = self.held.get(&lease_id) else { return };
        // The newest checkpoint goes with the result.
        if held.progress().is_some() {
            self.post(Post::Progress(lease_id.clone()));
        }
        if result.is_err() && self.phase >= Phase::Stopping {
            return self.release(lease_id, ENDS);
        }
        let mut finish = messages::finish(lease_id.clone(), result);
        if finish.encoded_len() > MAX_FINISH {
            finish = refused(finish, "the output is larger than a message may be");
        }
        self.settle(&lease_id, finish);
    }

    /// Gives a lease back: its attempt does not count.
    fn release(&mut self, lease_id: String, why: &str) {
        self.settle(&lease_id, messages::release(lease_id.clone(), why));
    }

    /// Keeps a result until the server has acknowledged it.
    fn settle(&mut self, lease_id: &str, finish: Finish) {
        let Some(held) = self.held.get_mut(lease_id) else { return };
        if held.finish.is_none() {
            (held.finish, held.lease) = (Some(finish), None);
            self.post(Post::Finish(lease_id.to_owned()));
        }
    }

    fn acked(&mut self, ack: FinishAck) {
        let FinishAck { lease_id, accepted, rejection } = ack;
        let Some(held) = self.held.get_mut(&lease_id).filter(|held| held.finish.is_some()) else { return };
        if accepted {
            self.held.remove(&lease_id);
            return;
        }
        let rejection = rejection.unwrap_or_default();
        tracing::warn!(reason = rejection.reason, why = rejection.message, "the server refused a result");
        match Code::from(rejection.code) {
            Code::Unavailable | Code::ResourceExhausted => {
                held.sent = false;
                let pause = rejection.retry_delay.and_then(|delay| delay.try_into().ok()).unwrap_or(RESEND);
                let events = self.events.clone();
                self.attempts.spawn(async move {
                    sleep(pause).await;
                    let _ = events.send(Event::Again(lease_id)).await;
                });
            }
            Code::InvalidArgument if !held.refused => {
                (held.refused, held.sent) = (true, false);
                if let Some(finish) = held.finish.take() {
                    self.settle(&lease_id, refused(finish, &rejection.message));
                }
            }
            // Too late.
            _ => drop(self.held.remove(&lease_id)),
        }
    }

    /// The job was cancelled, or the attempt's time is over. A handler that has not begun need not.
    fn interrupt(&mut self, lease_id: &str) {
        match self.held.get(lease_id) {
            Some(Held { work: Some(work), .. }) => work.context.cancelled().cancel(),
            Some(_) => self.release(lease_id.to_owned(), "stopped before it began"),
            None => {}
        }
    }

    /// The lease is somebody else's by now: its work is for nothing. A result that is there may still count, and waits for
    /// its answer.
    fn lose(&mut self, lease_id: &str) {
        if self.held.get(lease_id).is_none_or(|held| held.finish.is_some()) {
            return;
        }
        tracing::warn!(lease_id, "lost a lease");
        if let Some(Held { work: Some(Work { context, task }), .. }) = self.held.remove(lease_id) {
            context.cancelled().cancel();
            self.attempts.spawn(async move {
                sleep(LAST_WORDS).await;
                task.abort();
            });
        }
    }

    /// One step nearer to the end.
    fn drain(&mut self) {
        let (phase, patience) = match self.phase {
            Phase::Working => (Phase::Draining, self.worker.drain_timeout),
            Phase::Draining => (Phase::Stopping, LAST_WORDS),
            Phase::Stopping | Phase::Leaving => (Phase::Leaving, LAST_WORDS),
        };
        (self.phase, self.phase_end) = (phase, Instant::now() + patience.min(LONGEST_DRAIN));
        if phase == Phase::Draining {
            self.post(Post::Capacity);
            self.post(Post::Heartbeat);
        }
        for lease_id in self.held.keys().cloned().collect::<Vec<_>>() {
            match &self.held[&lease_id].work {
                None => self.release(lease_id, ENDS),
                Some(work) if phase == Phase::Stopping => work.context.cancelled().cancel(),
                Some(_) if phase == Phase::Leaving => self.release(lease_id, "the handler did not end"),
                Some(_) => {}
            }
        }
    }

    /// Sends it soon, in order. One that waits already does for both.
    fn post(&mut self, post: Post) {
        if post == Post::Heartbeat
            && let Some(link) = &self.link
        {
            self.beat = Instant::now() + link.heartbeat;
        }
        if self.waiting.insert(post.clone()) {
            self.outbox.push_back(post);
        }
    }

    /// Sends the oldest message that waits. There is room.
    fn send(&mut self) {
        let Some(post) = self.outbox.pop_front() else { return };
        self.waiting.remove(&post);
        let is_heartbeat = post == Post::Heartbeat;
        if let Some(message) = self.message(post)
            && let Some(link) = &mut self.link
        {
            link.say(message);
            if is_heartbeat {
                link.named.push_back(link.last_sequence);
            }
        }
    }

    fn message(&mut self, post: Post) -> Option<Said> {
        Some(match post {
            Post::Capacity => Said::Capacity(WorkerCapacity { max_in_flight: self.window() }),
            Post::Heartbeat => {
                let named = self.held.iter().filter(|(_, held)| !held.sent);
                Said::Heartbeat(WorkerHeartbeat {
                    lease_ids: named.map(|(lease_id, _)| lease_id.clone()).collect(),
                    last_lease_sequence: self.link.as_ref()?.last_sequence,
                })
            }
            Post::Progress(lease_id) => {
                let progress = self.held.get(&lease_id)?.progress()?;
                Said::Progress(messages::step(lease_id, progress))
            }
            Post::Finish(lease_id) => {
                let held = self.held.get_mut(&lease_id)?;
                held.sent = true;
                Said::Finish(held.finish.clone()?)
            }
        })
    }
}

/// What is reported in place of a result that cannot be. A failure stays that failure.
fn refused(finish: Finish, why: &str) -> Finish {
    let Finish { lease_id, outcome } = finish;
    let error = match outcome {
        Some(Outcome::Failed(error)) => {
            JobError::new(Cause::Handler, &error.code, &error.message, error.retryable)
        }
        _ => JobError::permanent("output.invalid", why),
    };
    messages::finish(lease_id, Err(error))
}

async fn opened(opening: &mut Option<BoxFuture<'static, Opened>>) -> Opened {
    match opening {
        Some(opening) => opening.await,
        None => std::future::pending().await,
    }
}

async fn hear(link: &mut Option<Link>) -> Result<Option<Told>, Error> {
    match link {
        Some(link) => link.hear().await,
        None => std::future::pending().await,
    }
}

fn room(link: &Option<Link>) -> impl Future<Output = ()> + Send + use<> {
    let room = link.as_ref().map(Link::room);
    async {
        match room {
            Some(room) => room.await,
            None => std::future::pending().await,
        }
    }
}
