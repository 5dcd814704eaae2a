//! A store in a directory of its own, a clock that only the test moves, and short words for what tests do.

use std::{path::PathBuf, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use tempfile::TempDir;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use super::{
    super::{
        Cancel, Change, Claim, ClaimWait, Delete, GroupReply, Handover, LeaseId, Leased, LineCounts,
        ListPage, ListQuery, Now, OnlyIf, Outcome, Position, Queues, Renewal, Renewed, Retry, Settlement,
        Store, Submitted, Tick,
    },
    new::New,
};
use crate::{
    config::Config,
    job::{Error, Filter, Job, JobError, JobId, Payload, Progress, Report, State, Timestamp, View, WorkerId},
};

/// Opens a store in a directory, for the first time or again.
pub type Open = fn(PathBuf, Arc<Config>, Timestamp) -> BoxFuture<'static, Arc<dyn Store>>;

/// The kind of jobs whose kind does not matter.
pub const KIND: &str = "echo";

pub struct World {
    open: Open,
    dir: TempDir,
    config: Arc<Config>,
    store: Option<Arc<dyn Store>>,
    pub now: Timestamp,
}

pub const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

pub fn id(text: &str) -> JobId {
    text.parse().unwrap()
}

/// A failure that may be tried again.
pub fn busy() -> JobError {
    JobError::retryable("busy", "try later")
}

/// Ids of jobs, in their order.
pub fn ids<'a>(jobs: impl IntoIterator<Item = &'a Job>) -> Vec<String> {
    jobs.into_iter().map(|job| job.id.to_string()).collect()
}

/// The same for leases.
pub fn leased_ids(leases: &[Leased]) -> Vec<String> {
    ids(leases.iter().map(|leased| &*leased.job))
}

/// The same for outcomes.
pub fn outcome_ids(outcomes: &[Outcome]) -> Vec<String> {
    ids(outcomes.iter().map(|outcome| &*outcome.job))
}

/// Life of a store.
impl World {
    pub async fn new(open: Open) -> Self {
        Self::with(open, |_| {}).await
    }

    /// With settings of its own.
    pub async fn with(open: Open, change: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config::default();
        config.store.readers = 2;
        // The disk of the machine that tests is not the matter.
        config.store.reserve_bytes = 0;
        change(&mut config);
        let mut world = Self {
            open,
            dir: tempfile::tempdir().unwrap(),
            config: config.into(),
            store: None,
            now: Timestamp(1_700_000_000_000),
        };
        world.reopen().await;
        world
    }

    /// Closes the store, and opens it again.
    pub async fn reopen(&mut self) {
        self.close().await;
        self.store = Some((self.open)(self.dir(), self.config.clone(), self.now).await);
    }

    pub async fn close(&mut self) {
        if let Some(store) = self.store.take() {
            store.close().await;
        }
    }

    /// Where the store lives.
    pub fn dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Opens it again with other settings.
    pub async fn reopen_with(&mut self, change: impl FnOnce(&mut Config)) {
        let mut config = (*self.config).clone();
        change(&mut config);
        self.config = config.into();
        self.reopen().await;
    }

    /// Opens it again as after a kill: nobody has closed it.
    pub async fn crash(&mut self) {
        drop(self.store.take());
        self.reopen().await;
    }

    pub fn store(&self) -> Arc<dyn Store> {
        self.store.clone().unwrap()
    }

    pub fn sleep(&mut self, by: Duration) {
        self.now = self.now.after(by);
    }

    /// Lets time pass, and the store do what that asks for.
    pub async fn pass(&mut self, by: Duration) -> Tick {
        self.sleep(by);
        self.tick().await
    }

    /// Ticks until there is nothing more to do.
    pub async fn tick(&self) -> Tick {
        let mut revoked = Vec::new();
        for _ in 0..1000 {
            let tick = self.store().tick(self.now).await.unwrap();
            revoked.extend(tick.revoked);
            if !tick.more && tick.next.is_none_or(|next| next > self.now) {
                return Tick { revoked, more: false, next: tick.next };
            }
        }
        panic!("a thousand ticks, and there is still more to do");
    }
}

/// Submit and work.
impl World {
    pub async fn try_add(&self, new: New) -> Result<Submitted, Error> {
        match self.group([new]).await {
            Ok(mut accepted) => Ok(accepted.remove(0)),
            Err((index, error)) => {
                assert_eq!(index, 0);
                Err(error)
            }
        }
    }

    /// Accepts a new job.
    pub async fn add(&self, new: New) -> Job {
        let submitted = self.try_add(new).await.unwrap();
        assert!(!submitted.deduplicated, "{:?} was there already", submitted.job);
        Arc::unwrap_or_clone(submitted.job)
    }

    /// Answers with a job that is there.
    pub async fn repeat(&self, new: New) -> Job {
        let submitted = self.try_add(new).await.unwrap();
        assert!(submitted.deduplicated, "{:?} is new", submitted.job);
        Arc::unwrap_or_clone(submitted.job)
    }

    pub async fn group(&self, group: impl IntoIterator<Item = New>) -> GroupReply {
        self.batch(vec![group.into_iter().collect()]).await.remove(0)
    }

    pub async fn batch(&self, groups: Vec<Vec<New>>) -> Vec<GroupReply> {
        let groups: Vec<Vec<_>> =
            groups.into_iter().map(|group| group.into_iter().map(New::into).collect()).collect();
        let sizes: Vec<_> = groups.iter().map(Vec::len).collect();
        let replies = self.store().submit(self.now, groups).await.unwrap();
        assert_eq!(replies.len(), sizes.len());
        for (reply, size) in replies.iter().zip(sizes) {
            match reply {
                Ok(accepted) => assert_eq!(accepted.len(), size),
                Err((index, _)) => assert!(*index < size),
            }
        }
        replies
    }

    /// A wish for jobs of [`KIND`] in any queue.
    pub fn wish(limit: usize) -> Claim {
        Claim {
            worker: WorkerId::of_pool("w1").unwrap(),
            queues: None,
            kinds: vec![KIND.parse().unwrap()],
            limit,
            max_bytes: usize::MAX,
            caps: Default::default(),
            lease: secs(30),
            wait: None,
        }
    }

    /// For a claim that waits, and does not know what time it is.
    pub fn wait(
        slots: Arc<Semaphore>,
        end: &CancellationToken,
        handover: Option<mpsc::UnboundedSender<Handover>>,
    ) -> ClaimWait {
        ClaimWait { slots, end: end.clone(), handover, now: Now(Arc::new(|| Timestamp(0))) }
    }

    pub async fn claim(&self, claim: Claim) -> Vec<Leased> {
        let limit = claim.limit;
        let leases = self.store().claim(self.now, claim).await.unwrap();
        assert!(leases.len() <= limit);
        leases
    }

    /// The next job, which must be there.
    pub async fn take(&self) -> Leased {
        self.claim(Self::wish(1)).await.pop().expect("a job is due")
    }

    /// Adds a job and takes it. Nothing else may be due before it.
    pub async fn start(&self, new: New) -> Leased {
        let name = new.id();
        let leased = match self.is_idle().await {
            true => self.wanted([new]).await.pop().expect("it is due"),
            false => {
                self.add(new).await;
                self.take().await
            }
        };
        assert_eq!(leased.job.id, id(&name));
        leased
    }

    /// Whether no job stands in line. Where others change it too, counts may be a little old.
    async fn is_idle(&self) -> bool {
        let counts = self.store().counts().await.unwrap();
        let is_empty = |line: &LineCounts| line.by_state[State::QUEUED.number() as usize - 1] == 0;
        !self.store().is_shared() && counts.iter().all(is_empty)
    }

    /// Adds jobs that a pool waits for: nothing may be due before them.
    pub async fn wanted(&self, jobs: impl IntoIterator<Item = New>) -> Vec<Leased> {
        self.wanted_by(Self::wish(usize::MAX), jobs).await
    }

    /// The same for another claim.
    pub async fn wanted_by(&self, claim: Claim, jobs: impl IntoIterator<Item = New>) -> Vec<Leased> {
        let jobs: Vec<New> = jobs.into_iter().collect();
        let slots = Semaphore::new(jobs.len()).into();
        let wait = Self::wait(slots, &CancellationToken::new(), None);
        let (store, now) = (self.store(), self.now);
        let claim = Claim { wait: Some(wait), ..claim };
        let claimed = tokio::spawn(async move { store.claim(now, claim).await.unwrap() });
        tokio::task::yield_now().await;
        self.group(jobs).await.unwrap();
        claimed.await.unwrap()
    }

    pub async fn settle(&self, settlement: Settlement) -> Result<(), Error> {
        self.store().settle(self.now, vec![settlement]).await.unwrap().remove(0)
    }

    /// A report without jitter: the longest back-off.
    pub fn report(leased: &Leased, report: Report) -> Settlement {
        Settlement {
            lease: leased.lease,
            report,
            only_if: OnlyIf::Held,
            jitter: 1.0,
            progress: None,
            job: Some(leased.job.clone()),
        }
    }

    pub async fn try_succeed(&self, leased: &Leased) -> Result<(), Error> {
        let output = Payload::new(Payload::TEXT, "out");
        self.settle(Self::report(leased, Report::Succeeded(output))).await
    }

    pub async fn succeed(&self, leased: &Leased) {
        self.try_succeed(leased).await.unwrap();
    }

    pub async fn try_fail(&self, leased: &Leased, error: JobError) -> Result<(), Error> {
        self.settle(Self::report(leased, Report::Failed(error))).await
    }

    pub async fn fail(&self, leased: &Leased, error: JobError) {
        self.try_fail(leased, error).await.unwrap();
    }

    pub async fn try_release(&self, leased: &Leased, delay: Duration) -> Result<(), Error> {
        self.settle(Self::report(leased, Report::Released { delay })).await
    }

    pub async fn release(&self, leased: &Leased, delay: Duration) {
        self.try_release(leased, delay).await.unwrap();
    }

    pub async fn renew(&self, lease: LeaseId, by: Duration, progress: Option<Progress>) -> Renewed {
        let renewal = Renewal { lease, until: Some(self.now.after(by)), progress };
        self.store().renew(self.now, vec![renewal]).await.unwrap().remove(0)
    }

    /// Adds a job and brings it to a state, by now.
    pub async fn reach(&mut self, new: New, state: State) -> Job {
        let name = new.id();
        match state {
            State::SCHEDULED => drop(self.add(new.delay(secs(3600))).await),
            State::QUEUED => drop(self.add(new).await),
            State::CANCELLED => {
                self.add(new).await;
                self.cancel(&name).await.unwrap();
            }
            State::EXPIRED => {
                self.add(new.spec(|spec| spec.start_timeout = Some(secs(1)))).await;
                self.pass(secs(1)).await;
            }
            _ => {
                let leased = self.start(new).await;
                match state {
                    State::BACKING_OFF => self.fail(&leased, busy().retry_after(secs(3600))).await,
                    State::FAILED => self.fail(&leased, JobError::permanent("broken", "it broke")).await,
                    State::SUCCEEDED => self.succeed(&leased).await,
                    _ => {}
                }
            }
        }
        let job = self.get(&name).await;
        assert_eq!(job.state, state);
        job
    }
}

/// Changes by hand.
impl World {
    pub async fn cancel(&self, name: &str) -> Result<Change, Error> {
        self.cancel_if(name, None).await
    }

    pub async fn cancel_if(&self, name: &str, etag: Option<String>) -> Result<Change, Error> {
        let cancel = Cancel { job_id: id(name), reason: "enough".into(), etag };
        self.store().cancel(self.now, vec![cancel]).await.unwrap().remove(0)
    }

    pub async fn retry(&self, name: &str) -> Result<Change, Error> {
        self.retry_with(Retry { job_id: id(name), delay: Duration::ZERO, etag: None }).await
    }

    pub async fn retry_with(&self, retry: Retry) -> Result<Change, Error> {
        self.store().retry(self.now, vec![retry]).await.unwrap().remove(0)
    }

    pub async fn delete(&self, name: &str) -> Result<Position, Error> {
        self.delete_with(Delete { job_id: id(name), etag: None, allow_missing: false }).await
    }

    pub async fn delete_with(&self, delete: Delete) -> Result<Position, Error> {
        self.store().delete(self.now, vec![delete]).await.unwrap().remove(0)
    }
}

/// Reading.
impl World {
    pub async fn find(&self, name: &str, view: View) -> Option<Job> {
        self.store().get(vec![id(name)], view).await.unwrap().0.remove(0)
    }

    /// Everything of a job that must be there.
    pub async fn get(&self, name: &str) -> Job {
        self.find(name, View::Full).await.unwrap_or_else(|| panic!("job {name} is not there"))
    }

    pub async fn state(&self, name: &str) -> State {
        self.find(name, View::Basic).await.unwrap_or_else(|| panic!("job {name} is not there")).state
    }

    pub async fn page(&self, query: ListQuery) -> ListPage {
        let limit = query.limit;
        let page = self.store().list(query).await.unwrap();
        assert!(page.jobs.len() <= limit);
        page
    }

    /// Every job that matches, newest first, page by page.
    pub async fn list(&self, filter: Filter) -> Vec<Job> {
        let mut query = ListQuery { filter, view: View::Basic, limit: 100, oldest_first: false, after: None };
        let mut jobs = Vec::new();
        loop {
            let page = self.page(query.clone()).await;
            jobs.extend(page.jobs);
            query.after = Some(match page.next {
                Some(next) => next,
                None => return jobs,
            });
        }
    }

    /// Every outcome after a position, page by page.
    pub async fn feed_after(&self, after: Position) -> Vec<Outcome> {
        let (mut after, mut outcomes) = (after, Vec::new());
        loop {
            let page = self.store().outcomes(after, 100, &Queues::All).await.unwrap();
            assert!(page.outcomes.len() <= 100);
            assert!(page.upto >= after);
            outcomes.extend(page.outcomes);
            if page.upto == after {
                return outcomes;
            }
            after = page.upto;
        }
    }

    pub async fn feed(&self) -> Vec<Outcome> {
        self.feed_after(Position(0)).await
    }

    pub fn head(&self) -> Position {
        *self.store().signals().head.borrow()
    }

    /// The count of a queue and kind in a state.
    pub async fn count(&self, queue: &str, kind: &str, state: State) -> u64 {
        let counts = self.store().counts().await.unwrap();
        let mut lines =
            counts.iter().filter(|line| line.queue.as_str() == queue && line.kind.as_str() == kind);
        let count = lines.next().map_or(0, |line| line.by_state[state.number() as usize - 1]);
        assert!(lines.next().is_none(), "one entry for each queue and kind");
        count
    }

    /// Counts of unfinished jobs must equal a recount.
    pub async fn recount(&self) {
        let jobs = self.list(Filter::default()).await;
        for line in self.store().counts().await.unwrap() {
            for state in State::ALL.into_iter().filter(|state| !state.is_final()) {
                let there = jobs.iter().filter(|job| {
                    job.spec.queue == line.queue && job.spec.kind == line.kind && job.state == state
                });
                let kept = line.by_state[state.number() as usize - 1];
                assert_eq!(kept, there.count() as u64, "{state} in {line:?}");
            }
        }
    }
}
