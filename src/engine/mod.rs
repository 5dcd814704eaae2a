//! Between the services and the store: collects calls into batches, hands due jobs to workers, runs the timers, and
//! lets watchers follow the feed.
//!
//! Requests go down, positions of the feed come up; nothing calls back.

mod batcher;
mod clock;
mod feed;
mod hints;
mod interest;
mod leases;
mod remote;
mod timers;
mod waits;
mod watch;

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    sync::{Semaphore, mpsc},
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use uuid::{ContextV7, Uuid};

pub use batcher::Pressure;
pub use clock::Clock;
pub use leases::{Held, Leases, NewestProgress, Revocation};
pub use remote::{Granted, LeaseRequest, Named, Session, Stopped};
pub use watch::{Event, GapReason, Message, OnGap, Start, Watch, WatchRequest};

use self::{
    batcher::{Batcher, Bounds},
    feed::{Feed, Follower},
    remote::{Remote, Requests},
    waits::{Wait, Waits},
};
use crate::{
    config::Config,
    job::{Error, Job, JobId, QueueName, Report, State, View},
    store::{
        Cancel, Change, Claim, ClaimWait, Delete, GroupReply, Handover, Leased, LineCounts, ListPage,
        ListQuery, LogId, Now, Position, ProgressHint, Retry, Settlement, Store, Submission, Submitted,
        weight::asked,
    },
};

/// Items of one batch.
const BATCH: usize = 500;

/// A wait looks at the store by itself this often, should a wake-up be lost.
const WAIT_POLL: Duration = Duration::from_secs(5);

/// Jobs that are accepted all or none.
type Group = Vec<Submission>;

/// The engine of one process. Cheap to clone.
#[derive(Clone)]
pub struct Engine(Arc<Inner>);

struct Inner {
    config: Arc<Config>,
    store: Arc<dyn Store>,
    clock: Arc<Clock>,
    ids: Mutex<ContextV7>,
    submits: Batcher<Vec<Group>, Vec<GroupReply>>,
    settles: Batcher<Vec<Settlement>, Vec<Result<(), Error>>>,
    cancels: Batcher<Cancel, Result<Change, Error>>,
    retries: Batcher<Retry, Result<Change, Error>>,
    deletes: Batcher<Delete, Result<Position, Error>>,
    feed: Arc<Feed>,
    waits: Waits,
    leases: Arc<Leases>,
    remote: Remote,
    requests: Requests,
    watchers: Arc<Semaphore>,
    /// No new work is taken.
    draining: CancellationToken,
    /// Waits and watches end.
    closing: CancellationToken,
    /// Whether the store answers.
    reachable: tokio::sync::watch::Sender<bool>,
    tasks: TaskTracker,
}

impl Engine {
    /// Starts the duties of the engine on the current runtime. They end with [`Engine::close`].
    pub fn start(config: Arc<Config>, store: Arc<dyn Store>, clock: Clock) -> Self {
        let limits = &config.limits;
        let writes = limits.submit_buffer_items;
        let clock = Arc::new(clock);
        let submit_capacity = limits.submit_buffer_bytes;
        macro_rules! batcher {
            ($method:ident, $capacity:expr) => {{
                let (store, clock) = (store.clone(), clock.clone());
                Batcher::spawn($capacity, bounds(&*store), move |batch| {
                    let (store, now) = (store.clone(), clock.now());
                    async move { store.$method(now, batch).await }
                })
            }};
        }
        let feed = Arc::new(Feed::new(store.clone(), config.watch.ring_bytes));
        let inner = Inner {
            submits: submits(submit_capacity, &store, &clock),
            settles: settles(submit_capacity, &store, &clock),
            cancels: batcher!(cancel, writes),
            retries: retries(writes, &store, &clock, &feed),
            deletes: deletes(writes, &store, &clock, &feed),
            feed,
            waits: Waits::new(limits.max_waits),
            leases: Arc::default(),
            remote: Remote::default(),
            requests: Requests::default(),
            watchers: Arc::new(Semaphore::new(config.watch.max_watchers)),
            draining: CancellationToken::new(),
            closing: CancellationToken::new(),
            reachable: tokio::sync::watch::Sender::new(true),
            tasks: TaskTracker::new(),
            config,
            store,
            clock,
            ids: Mutex::default(),
        };
        let engine = Self(Arc::new(inner));
        engine.spawn_duties();
        engine
    }

    fn spawn_duties(&self) {
        let Inner { config, tasks, .. } = &*self.0;
        let workers = &config.workers;
        let (heartbeat, lease) = (workers.heartbeat, workers.lease);
        // Before the first outcome is kept.
        let deleted = self.0.store.signals().deleted.subscribe();
        let follow = self.0.clone();
        self.spawn_duty(tasks, async move { follow.feed.follow(&follow.waits).await });
        let forget = self.0.clone();
        self.spawn_duty(tasks, async move { forget.feed.forget_others(deleted).await });
        let keep = self.0.clone();
        self.spawn_duty(
            tasks,
            async move { keep.leases.keep(&*keep.store, &keep.clock, heartbeat, lease).await },
        );
        let tick = self.0.clone();
        self.spawn_duty(tasks, async move { timers::run(&tick).await });
        let tell = self.clone();
        self.spawn_duty(tasks, async move { remote::tell_progress(&tell).await });
    }

    fn spawn_duty(&self, tasks: &TaskTracker, duty: impl Future<Output = ()> + Send + 'static) {
        let closing = self.0.closing.clone();
        tasks.spawn(async move { closing.run_until_cancelled(duty).await });
    }

    pub fn config(&self) -> &Arc<Config> {
        &self.0.config
    }

    pub fn clock(&self) -> &Arc<Clock> {
        &self.0.clock
    }

    pub fn leases(&self) -> &Arc<Leases> {
        &self.0.leases
    }

    fn remote(&self) -> &Remote {
        &self.0.remote
    }

    /// An id for a job that brings none: a UUIDv7, which sorts by time.
    pub fn fresh_id(&self) -> JobId {
        let now = Duration::from_millis(u64::try_from(self.0.clock.now().0).unwrap_or_default());
        let time = uuid::Timestamp::from_unix(&self.0.ids, now.as_secs(), now.subsec_nanos());
        JobId::from(Uuid::new_v7(time))
    }

    /// The log that cursors are valid for.
    pub fn log_id(&self) -> LogId {
        self.0.store.log_id()
    }

    /// Why the store has failed, once it has. Then the process should leave.
    pub async fn store_failed(&self) -> Arc<str> {
        let mut failed = self.0.store.signals().failed.subscribe();
        loop {
            if let Some(why) = failed.borrow_and_update().clone() {
                return why;
            }
            if failed.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Whether the store answers, and when that changes. One that has failed for good is another matter.
    pub fn reachable(&self) -> tokio::sync::watch::Receiver<bool> {
        self.0.reachable.subscribe()
    }

    /// Wakes whenever jobs may have become due.
    pub fn due(&self) -> tokio::sync::watch::Receiver<u64> {
        self.0.store.signals().due.subscribe()
    }

    /// Accepts a job, and answers once it is durable, or with the one that was there already.
    ///
    /// # Errors
    /// As [`Engine::submit`].
    pub async fn submit_one(&self, item: Submission, pressure: Pressure) -> Result<Submitted, Error> {
        let group = self.submit(vec![item], pressure).await;
        let submitted = only(group.map_err(|(_, error)| error)?)?;
        Ok(Submitted { job: self.with_output(submitted.job).await?, ..submitted })
    }

    /// Accepts a group of jobs, all or none, and answers once they are durable. Those that were there come without their
    /// outputs.
    ///
    /// # Errors
    /// As [`Store::submit`] says, with the index of the item; [`Error::Draining`] while the server stops, and
    /// [`Error::QueueFull`] if too much waits for its commit.
    pub async fn submit(&self, group: Vec<Submission>, pressure: Pressure) -> GroupReply {
        let replies = self.submit_groups(vec![group], pressure).await;
        only(replies.map_err(|error| (0, error))?).map_err(|error| (0, error))?
    }

    /// Hands in jobs that are accepted each by itself, once there is room for them. The answer comes when all that were
    /// accepted are durable; what is handed in first is accepted first.
    ///
    /// # Errors
    /// As [`Engine::submit`], now and later.
    pub async fn submit_each(
        &self,
        items: Vec<Submission>,
    ) -> Result<impl Future<Output = Result<Vec<Result<Submitted, Error>>, Error>> + Send + use<>, Error>
    {
        let groups = items.into_iter().map(|item| vec![item]).collect();
        let replies = self.hand_in(groups, Pressure::Wait).await?;
        let each = |reply: GroupReply| only(reply.map_err(|(_, error)| error)?);
        Ok(async move { Ok(replies.await?.into_iter().map(each).collect()) })
    }

    async fn submit_groups(&self, groups: Vec<Group>, pressure: Pressure) -> Result<Vec<GroupReply>, Error> {
        self.hand_in(groups, pressure).await?.await
    }

    async fn hand_in(
        &self,
        groups: Vec<Group>,
        pressure: Pressure,
    ) -> Result<impl Future<Output = Result<Vec<GroupReply>, Error>> + Send + use<>, Error> {
        self.take_work()?;
        let size: usize = groups.iter().flatten().map(size).sum();
        self.0.submits.enter(groups, size, pressure).await
    }

    /// The same jobs with their outputs, which what changes jobs leaves out: they are read beside the writer. A job that
    /// was removed meanwhile stays as it was.
    ///
    /// # Errors
    /// [`Error::DataLoss`] if one of the outputs is damaged.
    pub async fn with_outputs(&self, jobs: Vec<Arc<Job>>) -> Result<Vec<Arc<Job>>, Error> {
        let lacking: BTreeSet<_> =
            jobs.iter().filter(|job| job.lacks_output().is_some()).map(|job| job.id.clone()).collect();
        if lacking.is_empty() {
            return Ok(jobs);
        }
        let (found, _) = self.0.store.get(lacking.into_iter().collect(), View::Result).await?;
        let found: HashMap<_, _> =
            found.into_iter().flatten().map(|job| (job.id.clone(), Arc::new(job))).collect();
        Ok(jobs.into_iter().map(|job| found.get(&job.id).cloned().unwrap_or(job)).collect())
    }

    async fn with_output(&self, job: Arc<Job>) -> Result<Arc<Job>, Error> {
        only(self.with_outputs(vec![job]).await?)
    }

    /// What a submit would be answered, without its effect.
    ///
    /// # Errors
    /// As [`Engine::submit`] says, but a server that is stopping still checks.
    pub async fn check(&self, item: Submission) -> Result<Submitted, Error> {
        let size = size(&item);
        let item = Submission { check_only: true, ..item };
        let groups = self.0.submits.call(vec![vec![item]], size, Pressure::Refuse).await?;
        let submitted = only(only(groups)?.map_err(|(_, error)| error)?)?;
        Ok(Submitted { job: self.with_output(submitted.job).await?, ..submitted })
    }

    /// # Errors
    /// [`Error::Draining`] while the server stops.
    pub fn take_work(&self) -> Result<(), Error> {
        if self.0.draining.is_cancelled() { Err(Error::Draining) } else { Ok(()) }
    }

    /// A job as it is now.
    ///
    /// # Errors
    /// [`Error::JobNotFound`].
    pub async fn get(&self, id: &JobId, view: View) -> Result<Arc<Job>, Error> {
        if view <= View::Result
            && !self.0.store.is_shared()
            && let Some(job) = self.0.feed.newest(id, self.0.clock.now())
        {
            return Ok(job);
        }
        let (mut jobs, _) = self.0.store.get(vec![id.clone()], view).await?;
        let mut job = jobs.pop().flatten().ok_or_else(|| Error::JobNotFound { job_id: id.to_string() })?;
        if job.state == State::RUNNING
            && let Some(newer) = self.0.leases.progress(id).or_else(|| self.0.remote.newest_progress(id))
        {
            job.progress = Some(newer);
        }
        Ok(job.into())
    }

    /// A job once it is final, or as it is at `until` or when the server stops.
    ///
    /// # Errors
    /// [`Error::JobNotFound`]; [`Error::WatchLimit`] if too many wait.
    pub async fn wait(&self, id: &JobId, until: Instant) -> Result<Arc<Job>, Error> {
        // Registered first, looked second: an end between the two is not missed.
        let wait = self.0.waits.begin(id.clone())?;
        let seen = self.0.feed.end();
        let job = self.get(id, View::Result).await?;
        if job.state.is_final() || Instant::now() >= until {
            return Ok(job);
        }
        let follower = self.follow(&job.spec.queue);
        if follower.as_ref().is_some_and(|follower| follower.since > seen) {
            // Its queue was not followed in between.
            let job = self.get(id, View::Result).await?;
            if job.state.is_final() {
                return Ok(job);
            }
        }
        self.outcome(wait, &job, until).await
    }

    /// Sees to it that the outcomes of a queue are read, where servers share a store: one alone is told all of them.
    fn follow(&self, queue: &QueueName) -> Option<Follower> {
        self.0.store.is_shared().then(|| self.0.feed.follower(queue.into()))
    }

    /// The outcome of a job that was seen unfinished.
    async fn outcome(&self, mut wait: Wait<'_>, seen: &Job, until: Instant) -> Result<Arc<Job>, Error> {
        let id = &seen.id;
        loop {
            tokio::select! {
                job = wait.outcome() => {
                    // Not that of an earlier run, nor of the job that had the id before.
                    if (job.submit_time, job.version) > (seen.submit_time, seen.version) {
                        return Ok(job);
                    }
                    wait.renew();
                }
                () = tokio::time::sleep_until(until.min(Instant::now() + WAIT_POLL)) => {}
                () = self.0.closing.cancelled() => return self.get(id, View::Result).await,
            }
            let job = self.get(id, View::Result).await?;
            if job.state.is_final() || Instant::now() >= until {
                return Ok(job);
            }
        }
    }

    /// Accepts a job and waits for its end, as [`Engine::submit`] and [`Engine::wait`].
    ///
    /// # Errors
    /// As theirs; [`Error::WatchLimit`] comes before a new job is accepted.
    pub async fn submit_and_wait(&self, item: Submission, until: Instant) -> Result<Submitted, Error> {
        // Before the job is there: nothing is missed, and nobody has to look whether it has ended already.
        let wait = self.0.waits.begin(item.job_id.clone())?;
        let _follower = self.follow(&item.spec.queue);
        let group = self.submit(vec![item], Pressure::Refuse).await.map_err(|(_, error)| error)?;
        let mut submitted = only(group)?;
        if submitted.deduplicated {
            // One place among the waits is enough.
            drop(wait);
            submitted.job = self.wait(&submitted.job.id, until).await?;
        } else {
            submitted.job = self.outcome(wait, &submitted.job, until).await?;
        }
        Ok(submitted)
    }

    pub async fn list(&self, query: ListQuery) -> Result<ListPage, Error> {
        self.0.store.list(query).await
    }

    /// Cancels a job, and tells its worker if it runs here, whatever becomes of the call.
    pub async fn cancel(&self, cancel: Cancel) -> Result<Arc<Job>, Error> {
        let engine = self.clone();
        let cancelled = tokio::spawn(async move {
            let Inner { cancels, leases, remote, clock, config, .. } = &*engine.0;
            let change = cancels.call(cancel, 1, Pressure::Refuse).await??;
            if let Some(lease) = change.revoke {
                leases.revoke(lease, Revocation::Cancelled);
                remote.stop(lease, Stopped::Cancelled, clock.now().after(config.workers.grace));
            }
            Ok::<_, Error>(change.job)
        });
        let job = cancelled.await.map_err(|_| Error::Internal("a cancel panicked".into()))??;
        self.with_output(job.into()).await
    }

    pub async fn retry(&self, retry: Retry) -> Result<Job, Error> {
        self.take_work()?;
        Ok(self.0.retries.call(retry, 1, Pressure::Refuse).await??.job)
    }

    pub async fn delete(&self, delete: Delete) -> Result<(), Error> {
        self.0.deletes.call(delete, 1, Pressure::Refuse).await?.map(drop)
    }

    pub async fn counts(&self) -> Result<Vec<LineCounts>, Error> {
        self.0.store.counts().await
    }

    /// The end of the feed.
    pub fn head(&self) -> Position {
        *self.0.store.signals().head.borrow()
    }

    /// Lets a claim wait until there are jobs, for as many as there are permits, or until the server stops.
    pub fn claim_wait(&self, slots: Arc<Semaphore>, handover: mpsc::UnboundedSender<Handover>) -> ClaimWait {
        ClaimWait { slots, end: self.0.draining.clone(), handover: Some(handover), now: self.claim_clock() }
    }

    /// For a claim that waits.
    pub fn claim_clock(&self) -> Now {
        let clock = self.0.clock.clone();
        Now(Arc::new(move || clock.now()))
    }

    /// Ends claims that wait: when the server stops, or when it is cancelled.
    pub fn claim_end(&self) -> CancellationToken {
        self.0.draining.child_token()
    }

    /// Leases on due jobs. None while the server stops.
    pub async fn claim(&self, claim: Claim) -> Result<Vec<Leased>, Error> {
        if self.take_work().is_err() {
            return Ok(Vec::new());
        }
        self.0.store.claim(self.0.clock.now(), claim).await
    }

    /// Carries out a worker's report. Answers once it is durable.
    ///
    /// # Errors
    /// [`Error::LeaseLost`] if the lease is over: drop the result.
    pub fn settle(&self, settlement: Settlement) -> impl Future<Output = Result<(), Error>> + Send {
        let settled = self.settle_all(vec![settlement]);
        async move { only(settled.await?)? }
    }

    /// As [`Engine::settle`], for several at once: each has its answer at its place.
    ///
    /// # Errors
    /// If nothing is known of any of them.
    pub fn settle_all(
        &self,
        settlements: Vec<Settlement>,
    ) -> impl Future<Output = Result<Vec<Result<(), Error>>, Error>> + Send {
        let size = settlements.iter().map(|settlement| match &settlement.report {
            Report::Succeeded(output) => output.size + 512,
            _ => 1024,
        });
        let size = size.sum();
        self.0.settles.call(settlements, size, Pressure::Wait)
    }

    /// Tells those who watch how far an attempt has come.
    pub fn tell_progress(&self, hint: ProgressHint) {
        self.0.store.tell_progress(Arc::new(hint));
    }

    /// Takes no new work from here on.
    pub fn drain(&self) {
        self.0.draining.cancel();
    }

    /// Resolves when the server begins to stop.
    pub async fn drained(&self) {
        self.0.draining.cancelled().await;
    }

    /// Resolves when streams are to end.
    pub async fn closed(&self) {
        self.0.closing.cancelled().await;
    }

    /// Ends waits and watches, each with what there is to tell.
    pub fn end_streams(&self) {
        self.0.closing.cancel();
    }

    /// Ends everything and closes the store. What was handed in before is still carried out.
    pub async fn close(&self) {
        self.drain();
        self.end_streams();
        self.0.tasks.close();
        self.0.tasks.wait().await;
        self.0.store.close().await;
    }
}

/// Of batches of a sort many are on their way at the same time to a writer of our own, which takes them together while it
/// syncs; to a database few and large ones, because each is a transaction: a second one once it has come to half of what it
/// may.
fn bounds<I>(store: &dyn Store) -> Bounds<I> {
    let (flights, enough) = if store.is_shared() { (2, BATCH / 2) } else { (64, 1) };
    Bounds { most: BATCH, weight: |_| 1, flights, enough }
}

/// Bytes of a submission in memory, about.
fn size(item: &Submission) -> usize {
    asked(&item.spec, &item.trace) + 1024
}

/// The only answer, to a group of one.
fn only<T>(answers: Vec<T>) -> Result<T, Error> {
    answers.into_iter().next().ok_or_else(|| Error::Internal("the store gave no answer".into()))
}

/// Answers to several calls that were carried out together: to each as many as it had items.
fn divide<T>(answers: Vec<T>, lengths: Vec<usize>) -> Vec<Vec<T>> {
    let mut answers = answers.into_iter();
    lengths.into_iter().map(|length| answers.by_ref().take(length).collect()).collect()
}

/// Groups go to the store together, whoever handed them in.
fn submits(
    capacity: usize,
    store: &Arc<dyn Store>,
    clock: &Arc<Clock>,
) -> Batcher<Vec<Group>, Vec<GroupReply>> {
    let weight = |groups: &Vec<Group>| groups.iter().map(Vec::len).sum();
    let bounds = Bounds { weight, ..bounds(&**store) };
    let (store, clock) = (store.clone(), clock.clone());
    Batcher::spawn(capacity, bounds, move |calls: Vec<Vec<Group>>| {
        let (store, now) = (store.clone(), clock.now());
        async move {
            let lengths: Vec<usize> = calls.iter().map(Vec::len).collect();
            Ok(divide(store.submit(now, calls.into_iter().flatten().collect()).await?, lengths))
        }
    })
}

/// Settlements go to the store together, whoever handed them in.
fn settles(
    capacity: usize,
    store: &Arc<dyn Store>,
    clock: &Arc<Clock>,
) -> Batcher<Vec<Settlement>, Vec<Result<(), Error>>> {
    let bounds = Bounds { weight: Vec::len, ..bounds(&**store) };
    let (store, clock) = (store.clone(), clock.clone());
    Batcher::spawn(capacity, bounds, move |calls: Vec<Vec<Settlement>>| {
        let (store, now) = (store.clone(), clock.now());
        async move {
            let lengths: Vec<usize> = calls.iter().map(Vec::len).collect();
            Ok(divide(store.settle(now, calls.into_iter().flatten().collect()).await?, lengths))
        }
    })
}

/// Deletions leave the feed in memory too, also if the caller has gone meanwhile.
fn deletes(
    capacity: usize,
    store: &Arc<dyn Store>,
    clock: &Arc<Clock>,
    feed: &Arc<Feed>,
) -> Batcher<Delete, Result<Position, Error>> {
    let (store, clock, feed) = (store.clone(), clock.clone(), feed.clone());
    Batcher::spawn(capacity, bounds(&*store), move |batch: Vec<Delete>| {
        let (store, now, feed) = (store.clone(), clock.now(), feed.clone());
        async move {
            let jobs: Vec<_> = batch.iter().map(|delete| delete.job_id.clone()).collect();
            let replies = store.delete(now, batch).await?;
            for (job, reply) in jobs.iter().zip(&replies) {
                if let Ok(upto) = reply {
                    feed.forget(job, *upto);
                }
            }
            Ok(replies)
        }
    })
}

/// A job that runs again is not read from memory any more.
fn retries(
    capacity: usize,
    store: &Arc<dyn Store>,
    clock: &Arc<Clock>,
    feed: &Arc<Feed>,
) -> Batcher<Retry, Result<Change, Error>> {
    let (store, clock, feed) = (store.clone(), clock.clone(), feed.clone());
    Batcher::spawn(capacity, bounds(&*store), move |batch: Vec<Retry>| {
        let (store, now, feed) = (store.clone(), clock.now(), feed.clone());
        async move {
            let jobs: Vec<_> = batch.iter().map(|retry| retry.job_id.clone()).collect();
            let replies = store.retry(now, batch).await?;
            // Beyond the outcome that it had, perhaps beyond its next one: then the store is asked, no harm done.
            let head = *store.signals().head.borrow();
            jobs.iter().for_each(|job| feed.reopen(job, head));
            Ok(replies)
        }
    })
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;
    use crate::{
        job::{FinalState, Timestamp},
        store::{Outcome, sqlite::SqliteStore, suite, suite::job},
    };

    fn engine() -> (Engine, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let config = Arc::new(Config::default());
        let clock = Clock::default();
        let store = SqliteStore::open(dir.path(), config.clone(), clock.now()).unwrap();
        (Engine::start(config, store, clock), dir)
    }

    #[tokio::test]
    async fn a_worker_is_told_of_a_cancel_whose_caller_has_gone() {
        let (engine, _dir) = engine();
        engine.submit(vec![job("a").into()], Pressure::Wait).await.unwrap();
        let claim = suite::World::wish(1);
        let lease = claim.lease;
        let leased = engine.0.store.claim(engine.clock().now(), claim).await.unwrap();
        let session = remote::Session::new("w".parse().unwrap(), 1);
        let granted = engine.0.remote.grant(Some(&session), leased, lease);
        let cancel = Cancel { job_id: suite::id("a"), reason: String::new(), etag: None };
        // Asked once, and dropped.
        assert!(engine.cancel(cancel).now_or_never().is_none());
        let told = tokio::time::timeout(Duration::from_secs(5), session.notices()).await;
        assert_eq!(told.expect("it is told"), [(granted[0].lease, Stopped::Cancelled)]);
        engine.close().await;
    }

    #[tokio::test]
    async fn a_wait_is_not_answered_with_what_was_before_it() {
        let (engine, _dir) = engine();
        let submitted = engine.submit(vec![job("a").into()], Pressure::Wait).await.unwrap().remove(0);
        let seen = submitted.job;
        let wait = engine.0.waits.begin(seen.id.clone()).unwrap();
        let waiting = engine.outcome(wait, &seen, Instant::now() + Duration::from_secs(60));
        let told = |version, submit_time| {
            let state = State::Final(FinalState::Succeeded);
            let job = Job { state, version, submit_time, ..(*seen).clone() };
            engine.0.waits.wake(&[Outcome { position: Position(1), job: job.into() }]);
        };
        let tell = async {
            for (version, time) in [(seen.version, seen.submit_time), (9, Timestamp(seen.submit_time.0 - 1))]
            {
                told(version, time);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            told(seen.version + 1, seen.submit_time);
        };
        let (job, ()) = tokio::join!(waiting, tell);
        assert_eq!(job.unwrap().version, seen.version + 1);
        engine.close().await;
    }
}
