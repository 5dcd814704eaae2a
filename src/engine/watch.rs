//! One watcher: what existed, then what comes, at the watcher's own pace.
//!
//! The tail of the feed only wakes; outcomes are read from the feed, from where the watcher stands. So a slow watcher
//! lags and loses nothing, and never holds up the store or other watchers.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::{
        OwnedSemaphorePermit, Semaphore,
        mpsc::{self, error::TrySendError},
        watch,
    },
    task::yield_now,
    time::{Instant, MissedTickBehavior, interval_at, sleep, sleep_until, timeout},
};

use tokio_util::sync::CancellationToken;

use super::{Engine, feed::Follower, hints::Hints};
use crate::{
    job::{Error, Filter, Job, JobId, Timestamp, View},
    store::{FeedStart, Outcome, Position, ProgressHint, Queues, weight},
};

/// Outcomes of one read.
const PAGE: usize = 256;

/// How long a watch waits for the feed to come as far as its cursor, looking so often.
const BEHIND: Duration = Duration::from_secs(5);
const BEHIND_POLL: Duration = Duration::from_millis(250);

/// Jobs whose progress is told and for which the filter's answer is remembered.
const MAX_KNOWN: usize = 1024;

/// What to watch.
#[derive(Clone, Debug)]
pub struct WatchRequest {
    pub filter: Filter,
    pub start: Start,
    /// First the newest outcome of every matching job that is final already.
    pub include_existing: bool,
    /// End once every job of the filter is final.
    pub until_all_done: bool,
    pub include_progress: bool,
    pub include_transitions: bool,
    pub heartbeat: Duration,
    pub on_gap: OnGap,
    /// Bytes of an output that are sent within a message.
    pub max_inline_output: usize,
    /// The end of the call.
    pub deadline: Option<Instant>,
    /// Fires when the watch is to close, to be resumed elsewhere.
    pub retire: CancellationToken,
}

/// Where to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    Now,
    /// A cursor of this log.
    After(Position),
    /// A cursor of another log.
    OtherLog,
    Since(Timestamp),
    Earliest,
}

/// What to do when outcomes between the cursor and now are gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnGap {
    Fail,
    Continue,
}

/// What a watcher is told.
#[derive(Clone, Debug)]
pub enum Event {
    Finished(Arc<Job>),
    /// The newest state of a job that goes on.
    Changed(Box<Job>),
    Progress(Arc<ProgressHint>),
    Checkpoint {
        caught_up: bool,
        closing: bool,
    },
    Gap {
        reason: GapReason,
        missed: i64,
        oldest: Timestamp,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GapReason {
    Retention,
    LogReplaced,
}

/// An event with the place to resume from, if it has one. Holds its part of the stream's buffer until it is dropped.
pub struct Message {
    pub cursor: Option<Position>,
    pub event: Event,
    _room: OwnedSemaphorePermit,
}

/// The reader's end of a watch. Dropping it ends the watch.
pub struct Watch {
    messages: mpsc::Receiver<Message>,
    end: watch::Receiver<Option<Result<(), Error>>>,
}

impl Watch {
    /// The next message; None when the request is fulfilled.
    pub async fn next(&mut self) -> Option<Result<Message, Error>> {
        if let Some(message) = self.messages.recv().await {
            return Some(Ok(message));
        }
        // Without a word the watcher has panicked.
        let end = self.end.borrow().clone();
        match end.unwrap_or_else(|| Err(Error::Internal("the watch ended without a reason".into()))) {
            Ok(()) => None,
            Err(error) => Some(Err(error)),
        }
    }
}

impl Engine {
    /// Begins to watch.
    ///
    /// # Errors
    /// [`Error::WatchLimit`], [`Error::JobNotFound`] for an unknown id under `until_all_done`,
    /// [`Error::CursorExpired`] and [`Error::LogReplaced`] if there is a gap and it is not accepted.
    pub async fn watch(&self, request: WatchRequest) -> Result<Watch, Error> {
        let limits = &self.config().watch;
        let full = |_| Error::WatchLimit { what: "watches", limit: limits.max_watchers as u64 };
        let permit = self.0.watchers.clone().try_acquire_owned().map_err(full)?;
        let (sender, messages) = mpsc::channel(limits.buffer_messages);
        let (ended, end) = watch::channel(None);
        // Subscribed before the first look, so that nothing falls between the two.
        let mut watcher = Watcher {
            feed: self.0.feed.follower(Queues::of(&request.filter)),
            hints: Hints::new(
                self.0.store.signals().listen(request.include_transitions, request.include_progress),
            ),
            at: Position(0),
            present: *self.0.store.signals().head.borrow(),
            pending: HashSet::new(),
            sender,
            room: Arc::new(Semaphore::new(limits.buffer_bytes)),
            known: HashMap::new(),
            existing: None,
            caught_up: false,
            retire: Instant::now() + jittered(limits.max_stream_age),
            request,
            engine: self.clone(),
        };
        let gap = watcher.open().await?;
        tokio::spawn(async move {
            let result = tokio::select! {
                result = watcher.run(gap) => result,
                // The reader went away.
                () = ended.closed() => return,
            };
            ended.send_replace(Some(result));
            drop(permit);
        });
        Ok(Watch { messages, end })
    }
}

/// Plus or minus 10 %: streams that began together do not end together.
fn jittered(age: Duration) -> Duration {
    age.mul_f64(0.9 + 0.2 * fastrand::f64())
}

struct Watcher {
    engine: Engine,
    request: WatchRequest,
    feed: Follower,
    hints: Hints,
    /// Every matching outcome up to here was sent.
    at: Position,
    /// The end of the store's feed when the watch began: what is caught up with at least. The feed in memory may be a
    /// moment behind.
    present: Position,
    /// Under `until_all_done`: the jobs that are not final yet.
    pending: HashSet<JobId>,
    /// Whether the filter lets a job through, for those whose progress is told.
    known: HashMap<JobId, bool>,
    /// The newest outcome of each final job up to here is still to be sent before the feed is followed.
    existing: Option<Position>,
    caught_up: bool,
    retire: Instant,
    sender: mpsc::Sender<Message>,
    room: Arc<Semaphore>,
}

/// A gap that is still to be told of.
struct GapBefore {
    event: Event,
    /// A place before the gap, if there is one: who comes back from it meets the gap again. A cursor from beyond a gap that
    /// was not told of would hide it.
    last: Option<Position>,
}

/// What is to be done next.
enum Wake {
    Page,
    Beat,
    Hints,
    Close,
    Deadline,
}

impl Watcher {
    /// Finds the place to begin at, and the gap before it if there is one. Refuses what cannot be served.
    async fn open(&mut self) -> Result<Option<GapBefore>, Error> {
        let mut head = *self.feed.tail.borrow();
        if self.request.until_all_done {
            head = self.find_pending(true).await?;
        }
        let store = self.engine.0.store.clone();
        let start = store.feed_start().await?;
        let mut found = None;
        let gap = |reason, missed| Event::Gap { reason, missed, oldest: start.time };
        match self.request.start {
            Start::Now => {
                self.at = head;
                let implied = self.request.include_existing || self.request.until_all_done;
                if implied {
                    (self.existing, self.at) = (Some(head), Position(0));
                }
            }
            Start::After(position) if position < start.position => {
                let missed = store.breaks().count(position, start.position);
                found = Some(gap(GapReason::Retention, missed));
                self.at = start.position;
            }
            Start::After(position) => {
                self.at = position;
                self.wait_for(position).await?;
                if let Some(lost) = store.breaks().find(position) {
                    found = Some(gap(GapReason::LogReplaced, 0));
                    self.at = lost.resumed;
                }
            }
            Start::OtherLog => {
                found = Some(gap(GapReason::LogReplaced, 0));
                self.at = start.position;
            }
            // That time itself is asked for too, and some of what ended then has left.
            Start::Since(time) if time <= start.cut && start.cut > Timestamp(0) => {
                found = Some(gap(GapReason::Retention, 0));
                self.at = start.position;
            }
            Start::Since(time) => self.at = store.position_at(Timestamp(time.0.saturating_sub(1))).await?,
            Start::Earliest => self.at = start.position,
        }
        match (&found, self.request.on_gap) {
            (Some(Event::Gap { reason: GapReason::LogReplaced, .. }), OnGap::Fail) => {
                Err(Error::LogReplaced { oldest: start.time })
            }
            (Some(_), OnGap::Fail) => Err(Error::CursorExpired { oldest: start.time }),
            _ => {
                let last = match self.request.start {
                    Start::After(position) => Some(position),
                    _ => (start.position > Position(0)).then(|| Position(start.position.0 - 1)),
                };
                Ok(found.map(|event| GapBefore { event, last }))
            }
        }
    }

    /// Waits until the feed has come as far as a cursor. What is known here of its end may be older than a cursor of
    /// another replica, and so may be the database that this one has reached.
    async fn wait_for(&self, cursor: Position) -> Result<(), Error> {
        let store = &self.engine.0.store;
        let end = Instant::now() + BEHIND;
        while cursor > *store.signals().head.borrow() && cursor > store.get(Vec::new(), View::Basic).await?.1
        {
            if !store.is_shared() {
                // There is no other that it could come from.
                return Err(Error::BadCursor { field: "after_cursor".into() });
            }
            if Instant::now() >= end {
                return Err(Error::ReplicaBehind);
            }
            sleep(BEHIND_POLL).await;
        }
        Ok(())
    }

    /// Looks which jobs of the filter are not final; answers with the head of the feed at that moment. Jobs that are
    /// gone since the watch began count as final.
    async fn find_pending(&mut self, must_exist: bool) -> Result<Position, Error> {
        let ids: Vec<JobId> = self.request.filter.job_ids.iter().cloned().collect();
        let (jobs, head) = self.engine.0.store.get(ids.clone(), View::Basic).await?;
        self.pending.clear();
        for (id, job) in ids.into_iter().zip(jobs) {
            match job {
                None if must_exist => return Err(Error::JobNotFound { job_id: id.to_string() }),
                Some(job) if !job.state.is_final() => drop(self.pending.insert(id)),
                _ => {}
            }
        }
        Ok(head)
    }

    async fn run(&mut self, gap: Option<GapBefore>) -> Result<(), Error> {
        let opening = Event::Checkpoint { caught_up: false, closing: false };
        match gap {
            None => self.send(Some(self.at), opening, 0).await?,
            Some(GapBefore { event, last }) => {
                self.send(last, opening, 0).await?;
                self.send(Some(self.at), event, 0).await?;
            }
        }
        let mut beat = interval_at(Instant::now() + self.request.heartbeat, self.request.heartbeat);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let closing = self.engine.0.closing.clone();
        loop {
            // Page by page: a watcher that lags still hears that the server stops, and is heard of.
            let is_behind = self.send_page().await?;
            if !is_behind && self.request.until_all_done && self.pending.is_empty() && self.all_done().await?
            {
                return Ok(());
            }
            let deadline = self.request.deadline;
            let wake = tokio::select! {
                biased;
                () = closing.cancelled() => Wake::Close,
                () = self.request.retire.cancelled() => Wake::Close,
                () = sleep_until(self.retire) => Wake::Close,
                () = async { match deadline { Some(at) => sleep_until(at).await, None => std::future::pending().await } } => Wake::Deadline,
                _ = beat.tick() => Wake::Beat,
                () = yield_now(), if is_behind => Wake::Page,
                _ = self.feed.tail.changed() => Wake::Page,
                () = self.hints.next(), if !is_behind => Wake::Hints,
            };
            match wake {
                Wake::Page => {}
                Wake::Hints => self.send_hints().await?,
                Wake::Beat => {
                    if self.request.until_all_done {
                        self.find_pending(false).await?;
                    }
                    self.checkpoint(false).await?;
                }
                Wake::Deadline => return Err(Error::DeadlineExceeded),
                Wake::Close => {
                    self.checkpoint(true).await?;
                    return Err(Error::StreamRotated);
                }
            }
        }
    }

    /// Sends the next outcomes. Whether there are more.
    async fn send_page(&mut self) -> Result<bool, Error> {
        if let Some(upto) = self.existing {
            if self.at < upto {
                let store = &self.engine.0.store;
                let page = store.existing(self.at, upto, &self.request.filter, PAGE).await?;
                self.send_outcomes(page.outcomes, page.upto).await?;
            } else {
                self.existing = None;
            }
            return Ok(true);
        }
        // Marked as seen first, read second: what comes in between wakes again.
        let tail = *self.feed.tail.borrow_and_update();
        if self.at < tail {
            let stretch = self.feed.read(self.at, PAGE).await?;
            let is_told = match stretch.start {
                Some(start) => self.mind_the_gap(start).await?,
                None => false,
            };
            if !is_told {
                self.send_outcomes(stretch.outcomes, stretch.upto).await?;
            }
        }
        if !self.caught_up && self.at >= tail.max(self.present) {
            self.caught_up = true;
            self.checkpoint(false).await?;
        }
        Ok(self.at < tail)
    }

    /// The feed may be cut while a watcher lags, or its end be lost. Whether it was.
    async fn mind_the_gap(&mut self, start: FeedStart) -> Result<bool, Error> {
        let breaks = self.engine.0.store.breaks();
        let (reason, to, missed, error) = if let Some(lost) = breaks.find(self.at) {
            (GapReason::LogReplaced, lost.resumed, 0, Error::LogReplaced { oldest: start.time })
        } else if start.position > self.at {
            let missed = breaks.count(self.at, start.position);
            (GapReason::Retention, start.position, missed, Error::CursorExpired { oldest: start.time })
        } else {
            return Ok(false);
        };
        if self.request.on_gap == OnGap::Fail {
            return Err(error);
        }
        self.at = to;
        self.send(Some(to), Event::Gap { reason, missed, oldest: start.time }, 0).await?;
        Ok(true)
    }

    async fn send_outcomes(&mut self, outcomes: Vec<Outcome>, upto: Position) -> Result<(), Error> {
        let now = self.engine.clock().now();
        for Outcome { position, job } in outcomes {
            self.pending.remove(&job.id);
            // Memory may hold what the store has removed.
            let is_over = job.delete_time.is_some_and(|time| time <= now);
            if position <= self.at || is_over || !self.request.filter.matches(&job) {
                continue;
            }
            let job = self.as_it_is_sent(job);
            let weight = weight::filled_in(&job);
            self.at = position;
            self.send(Some(position), Event::Finished(job), weight).await?;
        }
        self.at = self.at.max(upto);
        Ok(())
    }

    /// Without an output that is left out: it would be kept for as long as the watcher is slow.
    fn as_it_is_sent(&self, job: Arc<Job>) -> Arc<Job> {
        match &job.output {
            Some(output) if output.size > self.request.max_inline_output => {
                Arc::new(Job { output: Some(output.omit_body()), ..(*job).clone() })
            }
            _ => job,
        }
    }

    /// Everything named is final, and all of it was sent.
    async fn all_done(&mut self) -> Result<bool, Error> {
        let head = self.find_pending(false).await?;
        Ok(self.pending.is_empty() && self.at >= head)
    }

    async fn send_hints(&mut self) -> Result<(), Error> {
        let (ids, progress) = self.hints.take();
        if !ids.is_empty() {
            let (jobs, _) = self.engine.0.store.get(ids, View::Basic).await?;
            for job in jobs.into_iter().flatten() {
                if !job.state.is_final() && self.request.filter.matches(&job) {
                    let weight = weight::filled_in(&job);
                    self.send(None, Event::Changed(Box::new(job)), weight).await?;
                }
            }
        }
        for hint in progress {
            if self.lets_through(&hint.job_id).await? {
                let weight = hint.progress.details.as_ref().map_or(0, |details| details.size);
                self.send(None, Event::Progress(hint), weight).await?;
            }
        }
        Ok(())
    }

    /// What the filter asks of a job that runs never changes, so it is looked up once.
    async fn lets_through(&mut self, id: &JobId) -> Result<bool, Error> {
        if let Some(&known) = self.known.get(id) {
            return Ok(known);
        }
        let (jobs, _) = self.engine.0.store.get(vec![id.clone()], View::Basic).await?;
        let through = jobs.iter().flatten().any(|job| self.request.filter.matches_identity(job));
        if self.known.len() >= MAX_KNOWN {
            self.known.clear();
        }
        self.known.insert(id.clone(), through);
        Ok(through)
    }

    async fn checkpoint(&mut self, closing: bool) -> Result<(), Error> {
        let event = Event::Checkpoint { caught_up: self.caught_up, closing };
        self.send(Some(self.at), event, 0).await
    }

    /// Waits for room, but not for ever.
    async fn send(&self, cursor: Option<Position>, event: Event, weight: usize) -> Result<(), Error> {
        let limits = &self.engine.config().watch;
        let weight = (weight + 1).min(limits.buffer_bytes) as u32;
        let patience = limits.stall_timeout;
        let stalled = |_| Error::WatchStalled(patience);
        // While there is room nobody looks at the time.
        let room = match self.room.clone().try_acquire_many_owned(weight) {
            Ok(room) => room,
            Err(_) => {
                let room = timeout(patience, self.room.clone().acquire_many_owned(weight)).await;
                room.map_err(stalled)?.map_err(|_| Error::StreamRotated)?
            }
        };
        match self.sender.try_send(Message { cursor, event, _room: room }) {
            Err(TrySendError::Full(message)) => {
                let sent = timeout(patience, self.sender.send(message)).await;
                sent.map_err(stalled)?.map_err(|_| Error::StreamRotated)
            }
            sent => sent.map_err(|_| Error::StreamRotated),
        }
    }
}
