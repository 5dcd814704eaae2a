//! Where jobs and their outcomes live.

mod breaks;
mod fixed;
pub mod migrate;
pub mod postgres;
pub mod sqlite;
#[cfg(test)]
pub(crate) mod suite;
mod turns;
pub mod weight;
mod written;

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, broadcast, mpsc, watch};
use tokio_util::sync::CancellationToken;

pub use breaks::{Break, Breaks};

use crate::job::{
    Error, Fence, Filter, Job, JobId, JobSpec, Key, Kind, NamePattern, Progress, QueueName, Report, State,
    Timestamp, View, WorkerId,
};

/// Keeps jobs, runs the rules of [`crate::job`] on them, and keeps the feed: every outcome in commit order.
///
/// This comment and those of the methods are the specification; `store::suite` tests all of it on every store.
///
/// - **Batches.** A mutating method takes many items, and is one transaction, or a few in a shared store. Items are
///   carried out in order, each as if the earlier ones had been committed. An item that is refused leaves nothing behind
///   and does not touch the others; its answer stands at its place in the reply.
/// - **Durability.** When a method has answered, what it did survives a killed process and lost power. The one
///   exception is [`claim`](Self::claim) and [`renew`](Self::renew) on the embedded store: they survive the process,
///   but may be forgotten with the power, as if the lease had run out.
/// - **Failure.** After an `Err` of a whole call nothing is known of the call. If [`Signals::failed`] tells why, the store
///   has failed for good, and never answers `Ok` again. Otherwise its database cannot be reached for the moment.
/// - **Start.** When a store is opened, attempts that the pool of a process that has ended was running are spent
///   ([`WorkerId::is_pool`]). Leases of other workers go on, for at least `workers.lease` from then.
/// - **Time** comes in as an argument. It never goes backwards from one call to the next. Replicas take it from the
///   database that they share.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Accepts jobs. A group is accepted as a whole or not at all: then the first refusal, and the index in the group
    /// of the item that it is about.
    ///
    /// In this order: a known `request_id` answers with its job, a known `job_id` too, then an unfinished job with
    /// the same `unique_key` in the queue. Equal spec: the job as it is now, `deduplicated`. Otherwise
    /// [`Error::RequestIdReused`], [`Error::JobDeleted`], [`Error::JobIdInUse`] or [`Error::UniqueKeyInUse`].
    /// A new job is then refused with [`Error::QueueFull`] or [`Error::StoreFull`] if there is no room.
    async fn submit(&self, now: Timestamp, groups: Vec<Vec<Submission>>) -> Result<Vec<GroupReply>, Error>;

    /// Hands out leases on due jobs, in order of rank within a queue, turn by turn among queues. A job whose time is
    /// over is not handed out, though no [`tick`](Self::tick) has ended it yet.
    ///
    /// With [`Claim::wait`] the answer may come once there is something to hand out; a store may also answer at once.
    async fn claim(&self, now: Timestamp, claim: Claim) -> Result<Vec<Leased>, Error>;

    /// Prolongs leases and stores the newest progress of their attempts.
    async fn renew(&self, now: Timestamp, renewals: Vec<Renewal>) -> Result<Vec<Renewed>, Error>;

    /// Carries out what workers report. [`Error::LeaseLost`] for a grant that is not the newest.
    async fn settle(
        &self,
        now: Timestamp,
        settlements: Vec<Settlement>,
    ) -> Result<Vec<Result<(), Error>>, Error>;

    /// Cancels. A job that runs is marked, and its lease is in [`Change::revoke`]; a final one is answered as it is.
    async fn cancel(&self, now: Timestamp, cancels: Vec<Cancel>)
    -> Result<Vec<Result<Change, Error>>, Error>;

    /// Runs jobs again that ended without success, or ends their back-off.
    async fn retry(&self, now: Timestamp, retries: Vec<Retry>) -> Result<Vec<Result<Change, Error>>, Error>;

    /// Removes final jobs. Their request ids stay known, their outcomes leave the feed: the answer is the position up to
    /// which they have. Later ones are of another job that took the id.
    async fn delete(
        &self,
        now: Timestamp,
        deletes: Vec<Delete>,
    ) -> Result<Vec<Result<Position, Error>>, Error>;

    /// What time changes: due jobs, expired leases and limits, retention. Does a bounded amount; `more` asks to be
    /// called again at once.
    async fn tick(&self, now: Timestamp) -> Result<Tick, Error>;

    /// The jobs of leases, at the places of their leases, with their inputs if asked for; None for a lease that is over.
    async fn leased(&self, leases: Vec<LeaseId>, with_input: bool) -> Result<Vec<Option<Job>>, Error>;

    /// The id of the job that a lease was given on, as long as the job is there, and whether it is final and this was its
    /// newest lease.
    async fn lease_job(&self, lease: LeaseId) -> Result<Option<(JobId, bool)>, Error>;

    /// Jobs by id, at the places of their ids; all from one snapshot, together with the head of the feed in it.
    async fn get(&self, ids: Vec<JobId>, view: View) -> Result<(Vec<Option<Job>>, Position), Error>;

    /// A page of jobs, newest submit first unless asked otherwise. A page may be short, or empty, and still have a
    /// next one: the work of one call is bounded.
    async fn list(&self, query: ListQuery) -> Result<ListPage, Error>;

    /// Outcomes of some queues after a position, in commit order, in [`View::Result`]. Those that were deleted are left out.
    /// `limit` counts those of all queues: a page may be empty and still not be the last.
    async fn outcomes(&self, after: Position, limit: usize, queues: &Queues) -> Result<OutcomePage, Error>;

    /// The newest outcome of each job that is final, in commit order, after a position and not beyond `upto`.
    async fn existing(
        &self,
        after: Position,
        upto: Position,
        filter: &Filter,
        limit: usize,
    ) -> Result<OutcomePage, Error>;

    /// The last position of the feed before any outcome that is later than `time`. In a shared store a later outcome may have
    /// an earlier time, by a minute at most.
    async fn position_at(&self, time: Timestamp) -> Result<Position, Error>;

    /// Where the feed begins.
    async fn feed_start(&self) -> Result<FeedStart, Error>;

    /// Where the feed broke off and went on. Asked after a read, it knows of every break before what was read.
    fn breaks(&self) -> Breaks;

    /// Numbers of jobs by queue and kind. Kept, not counted: cheap.
    async fn counts(&self) -> Result<Vec<LineCounts>, Error>;

    /// Whether other processes change it too: then what is known of a job in memory may be out of date.
    fn is_shared(&self) -> bool;

    /// What the texts of leases are signed with. The same over restarts.
    fn lease_key(&self) -> [u8; 32];

    /// The log that positions belong to: another one after a reset or a restore.
    fn log_id(&self) -> LogId;

    /// What the store tells without being asked.
    fn signals(&self) -> &Signals;

    /// Passes on how far an attempt of this process has come, to [`Signals::progress`].
    fn tell_progress(&self, hint: Arc<ProgressHint>) {
        // Nobody may be listening.
        let _ = self.signals().progress.send(hint);
    }

    /// Ends all work after what was begun, and closes.
    async fn close(&self);
}

/// A place in the feed: after the outcome with this number. 0 is before all of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position(pub i64);

/// Whose outcomes are wanted.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Queues {
    All,
    Only(Arc<[NamePattern]>),
}

impl Queues {
    /// As [`Filter::queues`] has them: none are all.
    pub fn of(filter: &Filter) -> Self {
        if filter.queues.is_empty() { Self::All } else { Self::Only(filter.queues.as_slice().into()) }
    }

    pub fn contain(&self, queue: &QueueName) -> bool {
        match self {
            Self::All => true,
            Self::Only(patterns) => patterns.iter().any(|pattern| pattern.matches(queue.as_str())),
        }
    }
}

impl From<&QueueName> for Queues {
    fn from(queue: &QueueName) -> Self {
        Self::Only([NamePattern::Exact(queue.to_string())].into())
    }
}

/// Names a log of outcomes. Positions mean nothing outside theirs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LogId(pub u64);

/// Bytes of jobs that are told in one message at most, without what each has.
const TOLD_BYTES: usize = 1 << 20;

/// Wake-ups. They coalesce and may be lost: whoever follows one also looks by itself from time to time.
#[derive(Debug)]
pub struct Signals {
    /// The head of the feed, after the commit.
    pub head: watch::Sender<Position>,
    /// Counts up when jobs may have become due, or a nearer time to [`Store::tick`] exists.
    pub due: watch::Sender<u64>,
    /// Jobs that changed without an outcome. Sent only while somebody listens.
    pub changed: broadcast::Sender<JobId>,
    /// How far attempts have come.
    pub progress: broadcast::Sender<Arc<ProgressHint>>,
    /// Somebody has begun to listen to `changed` or `progress`.
    pub listened: Notify,
    /// Jobs that other processes have deleted, with the positions up to which their outcomes have left the feed; None if
    /// something was missed.
    pub deleted: broadcast::Sender<Option<(JobId, Position)>>,
    /// Outcomes right after their commit, in the order of the feed, each as [`Store::outcomes`] has it. A store may
    /// leave some out, but none between the first and the last of a message.
    pub outcomes: broadcast::Sender<Arc<Vec<Outcome>>>,
    /// Set once, with the reason, when the store has failed.
    pub failed: watch::Sender<Option<Arc<str>>>,
}

impl Signals {
    /// Signals of a store whose feed ends at `head`.
    pub fn new(head: Position) -> Self {
        Self {
            head: watch::Sender::new(head),
            due: watch::Sender::new(0),
            changed: broadcast::Sender::new(1024),
            progress: broadcast::Sender::new(1024),
            listened: Notify::new(),
            deleted: broadcast::Sender::new(1024),
            outcomes: broadcast::Sender::new(16),
            failed: watch::Sender::new(None),
        }
    }

    /// Listens to what is told of jobs beside their outcomes.
    pub fn listen(&self, changes: bool, progress: bool) -> Listening {
        let listening =
            (changes.then(|| self.changed.subscribe()), progress.then(|| self.progress.subscribe()));
        if changes || progress {
            self.listened.notify_one();
        }
        listening
    }

    /// Whether somebody listens to what is told of jobs beside their outcomes.
    pub fn is_listened_to(&self) -> bool {
        self.changed.receiver_count() + self.progress.receiver_count() > 0
    }

    /// The feed has come this far at least, or jobs may be due.
    pub fn advance(&self, head: Option<Position>, due: bool) {
        if let Some(to) = head {
            self.head.send_if_modified(|head| {
                let moved = *head < to;
                *head = to.max(*head);
                moved
            });
        }
        if due {
            self.due.send_modify(|count| *count = count.wrapping_add(1));
        }
    }

    /// Tells outcomes that were just committed, before the head goes beyond them: whoever looks because of it need not ask
    /// the store. What is large altogether is left for those who follow the feed to read by themselves.
    pub fn tell(&self, outcomes: Vec<Outcome>) {
        let sizes = outcomes.iter().map(|outcome| weight::filled_in(&outcome.job));
        if !outcomes.is_empty() && sizes.sum::<usize>() <= TOLD_BYTES {
            // Nobody may be listening.
            let _ = self.outcomes.send(Arc::new(outcomes));
        }
    }

    /// Tells everybody that the store has failed. The first reason stays.
    pub fn fail(&self, why: &str) {
        let first = self.failed.send_if_modified(|failed| {
            let first = failed.is_none();
            if first {
                *failed = Some(why.into());
            }
            first
        });
        if first {
            tracing::error!(
                why,
                "the store has failed: nothing more is acknowledged; restart to recover from disk"
            );
        }
    }
}

/// What [`Signals::listen`] was asked for: jobs that changed, and progress.
pub type Listening = (Option<broadcast::Receiver<JobId>>, Option<broadcast::Receiver<Arc<ProgressHint>>>);

/// How far an attempt has come: told live, never replayed.
#[derive(Clone, Debug)]
pub struct ProgressHint {
    pub job_id: JobId,
    pub run: u32,
    pub attempt: u32,
    pub progress: Progress,
}

/// A job to be accepted.
#[derive(Clone, Debug)]
pub struct Submission {
    /// The id to give: the caller's own, or a fresh one.
    pub job_id: JobId,
    /// Whether the id is the caller's own.
    pub own_id: bool,
    /// Who calls. Request ids are known per caller.
    pub caller: String,
    pub request_id: Option<Key>,
    pub spec: Arc<JobSpec>,
    /// Refuse, instead of answering with the job that holds the unique key.
    pub reject_duplicate: bool,
    /// Answer as if it were accepted, but store nothing.
    pub check_only: bool,
    pub trace: BTreeMap<String, String>,
}

/// What became of a group: all its items, or the first refusal and the index of its item.
pub type GroupReply = Result<Vec<Submitted>, (usize, Error)>;

/// A job that was accepted, or was there already.
#[derive(Clone, Debug)]
pub struct Submitted {
    /// A new one as it was asked for; one that was there in [`View::Basic`].
    pub job: Arc<Job>,
    pub deduplicated: bool,
    /// At or before the commit: what follows cannot miss the job's end.
    pub position: Position,
}

/// A wish for work.
#[derive(Clone, Debug)]
pub struct Claim {
    pub worker: WorkerId,
    /// None: all queues.
    pub queues: Option<Vec<QueueName>>,
    pub kinds: Vec<Kind>,
    pub limit: usize,
    /// Bytes of inputs, the last one aside.
    pub max_bytes: usize,
    /// At most so many from these queues.
    pub caps: HashMap<QueueName, usize>,
    pub lease: Duration,
    pub wait: Option<ClaimWait>,
}

/// Lets a claim wait for jobs.
#[derive(Clone, Debug)]
pub struct ClaimWait {
    /// As many jobs as there are permits when the answer is made, up to the claim's limit.
    pub slots: Arc<Semaphore>,
    /// Ends the wait: it is answered with what there is then, often nothing.
    pub end: CancellationToken,
    /// Takes jobs while the claim waits on. A store need not use it.
    pub handover: Option<mpsc::UnboundedSender<Handover>>,
    pub now: Now,
}

/// Says what time it is when the jobs come for which somebody waits, often long after the call.
#[derive(Clone)]
pub struct Now(pub Arc<dyn Fn() -> Timestamp + Send + Sync>);

impl fmt::Debug for Now {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0().fmt(f)
    }
}

/// Jobs that were leased for a claim that waits on, as many as the permits that were taken for them. So they are bounded
/// by the claim's slots.
#[derive(Debug)]
pub struct Handover {
    pub leased: Vec<Leased>,
    pub slots: OwnedSemaphorePermit,
}

impl Claim {
    /// Whether it is for jobs of this queue and kind.
    pub fn asks_for(&self, queue: &QueueName, kind: &Kind) -> bool {
        self.queues.as_ref().is_none_or(|queues| queues.contains(queue)) && self.kinds.contains(kind)
    }

    /// The same claim after it was given some: less room in its queues, less for inputs.
    fn beside(&self, given: &[Leased]) -> Self {
        let mut rest = self.clone();
        for Leased { job, .. } in given {
            if let Some(cap) = rest.caps.get_mut(&job.spec.queue) {
                *cap = cap.saturating_sub(1);
            }
            if rest.max_bytes < usize::MAX {
                rest.max_bytes = rest.max_bytes.saturating_sub(job.spec.payload.size);
            }
        }
        rest
    }

    /// How many jobs are wanted now.
    pub fn wanted(&self) -> usize {
        self.wait.as_ref().map_or(self.limit, |wait| self.limit.min(wait.slots.available_permits()))
    }
}

/// A grant: the right to run one attempt for a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId {
    /// The store's own number of the job.
    pub job: i64,
    pub fence: Fence,
}

/// A job with its lease.
#[derive(Clone, Debug)]
pub struct Leased {
    pub lease: LeaseId,
    /// In [`View::Full`], without the history.
    pub job: Arc<Job>,
    pub attempt_timeout: Duration,
}

/// Prolongs one lease.
#[derive(Clone, Debug)]
pub struct Renewal {
    pub lease: LeaseId,
    /// None: it ends when it ends, only the progress is new.
    pub until: Option<Timestamp>,
    pub progress: Option<Progress>,
}

/// What became of a renewal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Renewed {
    Held,
    /// Held, but the worker should stop: the job was cancelled.
    Cancelled,
    Lost,
}

/// A report, fenced by its lease.
#[derive(Clone, Debug)]
pub struct Settlement {
    pub lease: LeaseId,
    pub report: Report,
    pub only_if: OnlyIf,
    /// 0 up to 1, drawn by the caller.
    pub jitter: f64,
    /// The newest progress of the attempt, for the next one.
    pub progress: Option<Progress>,
    /// The job as it was leased, if the worker has it: the store need not read it to tell its end.
    pub job: Option<Arc<Job>>,
}

impl Settlement {
    /// Gives a lease back, uncounted.
    pub fn release(lease: LeaseId) -> Self {
        let report = Report::Released { delay: Duration::ZERO };
        Self { lease, report, only_if: OnlyIf::Held, jitter: 0.0, progress: None, job: None }
    }
}

/// What has to be true of a lease, or the answer is [`Error::LeaseLost`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnlyIf {
    Held,
    /// And no other process has prolonged it: its worker is there, and that process knows.
    Own,
    /// And its time is over besides.
    OwnAndOver,
}

#[derive(Clone, Debug)]
pub struct Cancel {
    pub job_id: JobId,
    pub reason: String,
    /// [`Error::EtagMismatch`] unless it is the job's.
    pub etag: Option<String>,
}

#[derive(Clone, Debug)]
pub struct Retry {
    pub job_id: JobId,
    pub delay: Duration,
    pub etag: Option<String>,
}

#[derive(Clone, Debug)]
pub struct Delete {
    pub job_id: JobId,
    pub etag: Option<String>,
    /// A job that is not there is fine.
    pub allow_missing: bool,
}

/// A job after a call, in [`View::Basic`].
#[derive(Clone, Debug)]
pub struct Change {
    pub job: Job,
    /// The lease of the attempt that must be told to stop.
    pub revoke: Option<LeaseId>,
}

/// What a tick did.
#[derive(Clone, Debug, Default)]
pub struct Tick {
    /// There is more to do now.
    pub more: bool,
    /// When something is next due. None: nothing is known of.
    pub next: Option<Timestamp>,
    /// Leases that are over: their attempts must stop.
    pub revoked: Vec<LeaseId>,
}

#[derive(Clone, Debug)]
pub struct ListQuery {
    pub filter: Filter,
    pub view: View,
    pub limit: usize,
    pub oldest_first: bool,
    /// From the page before.
    pub after: Option<i64>,
}

#[derive(Clone, Debug)]
pub struct ListPage {
    pub jobs: Vec<Job>,
    /// Where the next page begins; None at the end.
    pub next: Option<i64>,
    /// At or before the snapshot of the page.
    pub position: Position,
}

/// One outcome of the feed.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub position: Position,
    pub job: Arc<Job>,
}

#[derive(Clone, Debug)]
pub struct OutcomePage {
    pub outcomes: Vec<Outcome>,
    /// Everything up to here has been looked at.
    pub upto: Position,
    pub start: FeedStart,
}

/// Where the feed begins: what is older was dropped from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FeedStart {
    /// Every outcome after this position is there, unless its job was removed.
    pub position: Position,
    /// When the oldest of them was committed; the present if there is none.
    pub time: Timestamp,
    /// When the last one that was dropped was committed; 0 if none was.
    pub cut: Timestamp,
}

/// Numbers of one queue and kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LineCounts {
    pub queue: QueueName,
    pub kind: Kind,
    /// By [`State::number`] less one. The final ones count every end there ever was.
    pub by_state: [u64; State::ALL.len()],
}
