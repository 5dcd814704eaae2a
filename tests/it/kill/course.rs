//! What clients make of one store: load that comes and goes, and what they know of it.

use std::{sync::Arc, time::Duration};

use fastrand::Rng;
use tokio::{
    task::{JoinHandle, JoinSet},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    check,
    clients::{self, Moment, Session},
    ledger::Shared,
    totals::Totals,
    watchers::Watcher,
    workers::Worker,
};
use crate::support::{Client, PATIENCE, Workers, lazy_clients};

/// No fault is waited for any longer.
const LONGEST_WAIT: Duration = Duration::from_millis(600);

pub struct Course {
    pub rng: Rng,
    pub ledger: Shared,
    watchers: Vec<Watcher>,
    workers: Vec<Worker>,
    /// The job that is always under way, and the attempt of it that was seen.
    held: Option<(String, i32)>,
    /// Of the known jobs, so many were looked for since the last fault.
    pub looked: usize,
}

/// Clients at work.
pub struct Load {
    all: Session,
    tasks: JoinSet<()>,
    hold: JoinHandle<Option<(String, i32)>>,
    watchers: Vec<JoinHandle<Watcher>>,
    workers: Vec<JoinHandle<Worker>>,
}

impl Course {
    pub fn new(rng: Rng, workers: usize) -> Self {
        let workers = (0..workers).map(Worker::new).collect();
        Self { rng, ledger: Arc::default(), watchers: Watcher::all(), workers, held: None, looked: 0 }
    }

    /// What was learned is there, and what was sent before is known.
    pub async fn check(&mut self, addresses: &[String]) {
        let (mut client, _) = lazy_clients(self.rng.choice(addresses).expect("there is a server"));
        check::look(&mut client, &self.ledger, &mut self.rng, &mut self.looked).await;
        check::repeat(&mut client, &self.ledger, &mut self.rng).await;
    }

    /// What the clients of one load share.
    fn session(&mut self, addresses: &[String]) -> Session {
        Session {
            ways: ways(addresses),
            ledger: self.ledger.clone(),
            rng: self.rng.fork(),
            over: CancellationToken::new(),
            strike: CancellationToken::new(),
            strike_when: self.rng.bool().then(|| self.rng.choice(Moment::ALL)).flatten(),
        }
    }

    /// Sets clients to work.
    pub fn load(&mut self, addresses: &[String]) -> Load {
        let all = self.session(addresses);
        // Each with connections and draws of its own.
        let mut session = || Session { ways: ways(addresses), rng: self.rng.fork(), ..all.clone() };
        let over = &all.over;
        let mut tasks = JoinSet::new();
        for _ in 0..2 {
            tasks.spawn(ends("submit_one_by_one", over, clients::submit_one_by_one(session())));
            tasks.spawn(ends("meddle", over, clients::meddle(session())));
        }
        tasks.spawn(ends("submit_in_batches", over, clients::submit_in_batches(session())));
        tasks.spawn(ends("submit_in_streams", over, clients::submit_in_streams(session())));
        tasks.spawn(ends("submit_exclusively", over, clients::submit_exclusively(session())));
        tasks.spawn(ends("await_ends", over, clients::await_ends(session())));
        let hold = tokio::spawn(ends("hold", over, clients::hold(session(), self.held.take())));
        let workers = self.workers.drain(..);
        let workers =
            workers.map(|worker| tokio::spawn(ends("a worker", over, worker.work(session())))).collect();
        let watchers = self.watchers.drain(..);
        let watchers = watchers
            .map(|watcher| tokio::spawn(ends("a watcher", over, watcher.watch(session(), false))))
            .collect();
        Load { all, tasks, hold, watchers, workers }
    }

    /// Waits for the time of a fault: any, or just after something was acknowledged.
    pub async fn wait_to_strike(&mut self, load: &Load) {
        let longest = match self.rng.u8(..5) {
            // A drawn moment may take a while to come.
            _ if load.all.strike_when.is_some() => LONGEST_WAIT,
            0 => Duration::from_micros(self.rng.u64(..10_000)),
            1 => LONGEST_WAIT.mul_f64(self.rng.f64()),
            _ => Duration::from_micros(self.rng.u64(..250_000)),
        };
        let _ = timeout(longest, load.all.strike.cancelled()).await;
    }

    /// Ends the load. `is_crash`: no server has outlived it, nor has any attempt in one.
    pub async fn unload(&mut self, mut load: Load, is_crash: bool) {
        load.all.over.cancel();
        while let Some(task) = load.tasks.join_next().await {
            task.expect("a client found nothing wrong");
        }
        let held = load.hold.await.expect("a client found nothing wrong");
        self.held = held.map(|(job_id, attempt)| (job_id, if is_crash { attempt } else { 0 }));
        for worker in load.workers {
            self.workers.push(worker.await.expect("a worker found nothing wrong"));
        }
        for watcher in load.watchers {
            self.watchers.push(watcher.await.expect("a watcher found nothing wrong"));
        }
    }

    /// Lets all jobs end, and compares everything with everything. `verify`: all of the store.
    pub async fn end(mut self, addresses: &[String], totals: &mut Totals, verify: impl AsyncFnOnce()) {
        self.check(addresses).await;
        let (mut client, _) = lazy_clients(&addresses[0]);
        check::end_endless(&mut client, &self.ledger).await;
        let session = self.session(addresses);
        let mut at_work = JoinSet::new();
        for worker in std::mem::take(&mut self.workers) {
            at_work.spawn(worker.work(Session { rng: self.rng.fork(), ..session.clone() }));
        }
        check::finish(&mut client).await;
        session.over.cancel();
        while let Some(worker) = at_work.join_next().await {
            self.workers.push(worker.expect("a worker found nothing wrong"));
        }
        verify().await;
        totals.crashed += check::check_jobs(&mut client, &self.ledger).await;
        let mut watchers = Vec::new();
        for watcher in std::mem::take(&mut self.watchers).into_iter().chain([Watcher::of_the_end()]) {
            let rest = watcher.watch(self.session(addresses), true);
            watchers.push(timeout(PATIENCE, rest).await.expect("the feed has an end"));
        }
        let feed = watchers.pop().expect("the last one").seen;
        let mut ledger = self.ledger.lock();
        check::check_feed(&mut ledger, feed, &watchers);
        totals.count(&ledger, &watchers, &self.workers);
    }
}

fn ways(addresses: &[String]) -> Vec<(Client, Workers)> {
    addresses.iter().map(|address| lazy_clients(address)).collect()
}

/// Runs a client, which must end soon after the load.
fn ends<T, F: Future<Output = T>>(
    name: &'static str,
    over: &CancellationToken,
    client: F,
) -> impl Future<Output = T> + use<T, F> {
    let over = over.clone();
    async move {
        tokio::select! {
            ended = client => ended,
            () = async { over.cancelled().await; sleep(PATIENCE).await } => panic!("{name} does not end with the load"),
        }
    }
}
