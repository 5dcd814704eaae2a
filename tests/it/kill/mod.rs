//! `kill -9`, again and again on the same data: under load and during recovery, with other settings at each start. A
//! ledger outside the server knows what was acknowledged and what was told; all of it must stay so.

mod asks;
mod check;
mod clients;
mod ledger;
mod settings;
mod watchers;
mod workers;

use std::{
    collections::BTreeMap,
    fmt,
    str::FromStr,
    sync::Arc,
    time::{Duration, Instant},
};

use fastrand::Rng;
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use self::{
    clients::{Moment, Session},
    ledger::{Ledger, Shared},
    watchers::Watcher,
    workers::Worker,
};
use crate::support::{PATIENCE, Server};

/// Kills of one run, unless JOBWIRE_TEST_KILLS says.
const KILLS: usize = 8;

/// Then all that happened to a store is compared, and the next one begins: what is kept in memory stays bounded, and
/// what a seed repeats is short.
const KILLS_OF_A_STORE: usize = 50;

/// No load goes on for longer.
const LONGEST_LIFE: Duration = Duration::from_millis(600);

/// JOBWIRE_TEST_SEED repeats the draws of the store that it was printed for; the moments of the kills within the
/// server's work stay a matter of luck.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_and_nothing_told_changes() {
    let kills = number("JOBWIRE_TEST_KILLS").unwrap_or(KILLS);
    let mut seed = number("JOBWIRE_TEST_SEED").unwrap_or_else(|| fastrand::u64(..));
    let mut totals = Totals::default();
    while totals.kills < kills {
        println!("SEED={seed}");
        let course = Course::new(seed);
        course.run(KILLS_OF_A_STORE.min(kills - totals.kills), &mut totals).await;
        println!("{totals}");
        seed = seed.wrapping_add(1);
    }
}

fn number<T: FromStr<Err: fmt::Debug>>(variable: &str) -> Option<T> {
    Some(std::env::var(variable).ok()?.parse().expect("a number"))
}

/// What happens to one store.
struct Course {
    rng: Rng,
    server: Server,
    ledger: Shared,
    watchers: Vec<Watcher>,
    worker: Worker,
    /// The job that is always under way, and the attempt of it that was seen.
    held: Option<(String, i32)>,
    /// Of the known jobs, so many were looked for since the last kill.
    looked: usize,
}

impl Course {
    fn new(seed: u64) -> Self {
        Self {
            rng: Rng::with_seed(seed),
            server: Server::unstarted(),
            ledger: Arc::default(),
            watchers: Watcher::all(),
            worker: Worker::default(),
            held: None,
            looked: 0,
        }
    }

    async fn run(mut self, kills: usize, totals: &mut Totals) {
        for _ in 0..kills {
            if self.rng.u8(..4) == 0 {
                // Rather early: before it listens.
                let longest = totals.longest_recent_start() * 3 / 2;
                let after = longest.mul_f64(self.rng.f64().powi(2));
                let settings = settings::draw(&mut self.rng);
                self.server.start_and_kill(&settings, after);
                totals.killed_early += 1;
            } else {
                self.start(totals);
                self.check().await;
                self.load_and_kill().await;
            }
            totals.kills += 1;
            if self.rng.bool() && self.looked > 0 {
                check::verify(&self.server);
            }
        }
        self.end(totals).await;
    }

    fn start(&mut self, totals: &mut Totals) {
        let settings = settings::draw(&mut self.rng);
        let begin = Instant::now();
        self.server.start_again(&settings);
        totals.starts.push(begin.elapsed());
    }

    async fn check(&mut self) {
        let mut client = self.server.lazy_client();
        check::look(&mut client, &self.ledger, &mut self.rng, &mut self.looked).await;
        check::repeat(&mut client, &self.ledger, &mut self.rng).await;
    }

    /// What clients of this start share.
    fn session(&mut self) -> Session {
        Session {
            client: self.server.lazy_client(),
            workers: self.server.lazy_workers(),
            ledger: self.ledger.clone(),
            rng: self.rng.fork(),
            over: CancellationToken::new(),
            strike: CancellationToken::new(),
            strike_when: self.rng.bool().then(|| self.rng.choice(Moment::ALL)).flatten(),
        }
    }

    async fn load_and_kill(&mut self) {
        let all = self.session();
        // Each with a connection and draws of its own.
        let mut session = || Session {
            client: self.server.lazy_client(),
            workers: self.server.lazy_workers(),
            rng: self.rng.fork(),
            ..all.clone()
        };
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
        let worker = std::mem::take(&mut self.worker).work(session());
        let worker = tokio::spawn(ends("the worker", over, worker));
        let watchers = self.watchers.drain(..);
        let watchers: Vec<_> = watchers
            .map(|watcher| tokio::spawn(ends("a watcher", over, watcher.watch(session(), false))))
            .collect();
        // A drawn moment may take a while to come.
        let lifetime = if all.strike_when.is_some() { LONGEST_LIFE } else { self.lifetime() };
        let _ = timeout(lifetime, all.strike.cancelled()).await;
        self.server.kill();
        all.over.cancel();
        while let Some(task) = tasks.join_next().await {
            task.expect("a client found nothing wrong");
        }
        self.held = hold.await.expect("a client found nothing wrong");
        self.worker = worker.await.expect("the worker found nothing wrong");
        for watcher in watchers {
            self.watchers.push(watcher.await.expect("a watcher found nothing wrong"));
        }
    }

    /// From the start of the load to the kill.
    fn lifetime(&mut self) -> Duration {
        Duration::from_micros(match self.rng.u8(..5) {
            0 => self.rng.u64(..10_000),
            1 => self.rng.u64(..LONGEST_LIFE.as_micros() as u64),
            _ => self.rng.u64(..250_000),
        })
    }

    /// Lets all jobs end, and compares everything with everything.
    async fn end(mut self, totals: &mut Totals) {
        totals.deaths += self.worker.deaths;
        totals.freezes += self.worker.freezes;
        // What was leased to the worker and never reached it is over soon.
        self.server.start_again("[workers]\nlease = \"1s\"\nheartbeat = \"100ms\"\n");
        self.check().await;
        let mut client = self.server.lazy_client();
        check::end_endless(&mut client, &self.ledger).await;
        let session = self.session();
        let over = session.over.clone();
        let worker = tokio::spawn(std::mem::take(&mut self.worker).work(session));
        check::finish(&mut client).await;
        over.cancel();
        worker.abort();
        assert!(worker.await.err().is_none_or(|end| end.is_cancelled()), "the worker found nothing wrong");
        check::verify(&self.server);
        totals.crashed += check::check_jobs(&mut client, &self.ledger).await;
        let mut watchers = Vec::new();
        for watcher in std::mem::take(&mut self.watchers).into_iter().chain([Watcher::of_the_end()]) {
            let rest = watcher.watch(self.session(), true);
            watchers.push(timeout(PATIENCE, rest).await.expect("the feed has an end"));
        }
        let feed = watchers.pop().expect("the last one").seen;
        let mut ledger = self.ledger.lock();
        check::check_feed(&mut ledger, feed, &watchers);
        totals.count(&ledger, &watchers);
    }
}

/// Over all stores.
#[derive(Default)]
struct Totals {
    kills: usize,
    /// While it started.
    killed_early: usize,
    /// From the start of the process to SERVING.
    starts: Vec<Duration>,
    acknowledged: usize,
    outcomes: BTreeMap<&'static str, usize>,
    crashed: usize,
    /// Successes that a worker beyond the server was told of.
    by_worker: usize,
    /// Of that worker.
    deaths: usize,
    freezes: usize,
    streams: usize,
    told: usize,
}

impl Totals {
    fn longest_recent_start(&self) -> Duration {
        self.starts.iter().rev().take(20).max().copied().unwrap_or(Duration::from_millis(50))
    }

    fn count(&mut self, ledger: &Ledger, watchers: &[Watcher]) {
        self.acknowledged += ledger.known.len();
        let runs = ledger.entries.iter().flat_map(|entry| entry.runs.values());
        self.by_worker += runs.filter(|run| run.succeeded.is_some()).count();
        for outcome in
            ledger.entries.iter().flat_map(|entry| entry.runs.values()).flat_map(|run| &run.outcome)
        {
            *self.outcomes.entry(outcome.state.as_str_name()).or_default() += 1;
        }
        self.streams += watchers.iter().map(|watcher| watcher.streams).sum::<usize>();
        self.told += watchers.iter().map(|watcher| watcher.seen.len()).sum::<usize>();
    }
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut starts = self.starts.clone();
        starts.sort_unstable();
        let at =
            |percent: usize| starts.get((starts.len() * percent / 100).min(starts.len().saturating_sub(1)));
        let [p50, p99, max] = [50, 99, 100].map(|percent| at(percent).copied().unwrap_or_default());
        write!(
            f,
            "{} kills ({} while it started), {} jobs, {:?}, {} attempts crashed, {} done by a worker, which died {} times and froze {} times, {} outcomes told on {} streams, \
             start to SERVING p50 {p50:.1?} p99 {p99:.1?} max {max:.1?}",
            self.kills,
            self.killed_early,
            self.acknowledged,
            self.outcomes,
            self.crashed,
            self.by_worker,
            self.deaths,
            self.freezes,
            self.told,
            self.streams,
        )
    }
}

/// Runs a client, which must end soon after its server.
fn ends<T, F: Future<Output = T>>(
    name: &'static str,
    over: &CancellationToken,
    client: F,
) -> impl Future<Output = T> + use<T, F> {
    let over = over.clone();
    async move {
        tokio::select! {
            ended = client => ended,
            () = async { over.cancelled().await; sleep(PATIENCE).await } => panic!("{name} does not end with its server"),
        }
    }
}
