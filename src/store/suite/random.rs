//! Commands by chance, on the store and on the [`Model`]: answers, jobs, counts and feed must be the same after each.

use std::collections::BTreeSet;

use proptest::{prelude::*, sample::Index};

use super::{
    model::{Answer, Entry, Limits, Model, refusal},
    *,
};
use crate::reached::{Met, explore};

const QUEUES: [&str; 2] = ["one", "two"];
const RETENTION: Duration = secs(50);

#[derive(Clone, Debug)]
enum Command {
    Submit(Vec<Vec<New>>),
    Claim(usize),
    Renew(Vec<(Index, Option<f64>)>),
    Settle(Vec<(Index, Report, Option<f64>)>),
    Cancel(Vec<(Index, Etag)>),
    Retry(Vec<(Index, Duration, Etag)>),
    Delete(Vec<(Index, Etag, bool)>),
    /// Time goes by unnoticed.
    Sleep(Duration),
    Pass(Duration),
    Reopen,
}

#[derive(Clone, Copy, Debug)]
enum Etag {
    None,
    Right,
    Wrong,
}

/// Few names and few words, so that they meet often.
fn new() -> impl Strategy<Value = New> {
    let name = prop_oneof![(0..4).prop_map(|n| job(&format!("job-{n}"))), Just(drawn("drawn"))];
    let keys = (prop::option::weighted(0.5, 0..3), prop::option::weighted(0.5, Just(0)), any::<bool>());
    let words = (0..2usize, 0..2usize, -1..=1, prop::sample::select(vec![0, 0, 0, 5]), 1..4u32);
    let check = prop::bool::weighted(0.1);
    let limits = (prop::option::weighted(0.2, Just(secs(8))), prop::option::weighted(0.2, Just(secs(25))));
    (name, keys, words, limits, check).prop_map(|(new, (request, unique, reject), words, limits, check)| {
        let (queue, payload, priority, delay, attempts) = words;
        let new = new.queue(QUEUES[queue]).payload(["in", "else"][payload]).priority(priority);
        let mut new = new.delay(secs(delay)).max_attempts(attempts).spec(|spec| {
            (spec.start_timeout, spec.total_timeout) = limits;
            spec.unique_key = unique.map(|n| format!("key-{n}").parse().unwrap());
        });
        if let Some(n) = request {
            new = new.request(&format!("request-{n}"));
        }
        let new = new.submission(|submission| submission.check_only = check);
        if reject { new.reject() } else { new }
    })
}

fn report() -> impl Strategy<Value = Report> {
    prop_oneof![
        3 => Just(Report::Succeeded(Payload::new(Payload::TEXT, "out"))),
        4 => Just(Report::Failed(busy())),
        1 => Just(Report::Failed(JobError::permanent("broken", "it broke"))),
        2 => prop::sample::select(vec![0, 7]).prop_map(|delay| Report::Released { delay: secs(delay) }),
    ]
}

fn command() -> impl Strategy<Value = Command> {
    use prop::collection::vec;
    let any_job = any::<Index>;
    let etag = || prop_oneof![4 => Just(Etag::None), 2 => Just(Etag::Right), 1 => Just(Etag::Wrong)];
    let progress = || prop::option::of(prop::sample::select(vec![0.25, 0.5, 1.0]));
    let delay = prop::sample::select(vec![Duration::ZERO, secs(4)]);
    prop_oneof![
        6 => vec(prop_oneof![2 => vec(new(), 1..2), 1 => vec(new(), 2..4)], 1..4).prop_map(Command::Submit),
        6 => (1..5usize).prop_map(Command::Claim),
        3 => vec((any::<Index>(), progress()), 1..4).prop_map(Command::Renew),
        6 => vec((any::<Index>(), report(), progress()), 1..4).prop_map(Command::Settle),
        3 => vec((any_job(), etag()), 1..3).prop_map(Command::Cancel),
        3 => vec((any_job(), delay, etag()), 1..3).prop_map(Command::Retry),
        2 => vec((any_job(), etag(), any::<bool>()), 1..3).prop_map(Command::Delete),
        6 => prop::sample::select(vec![0, 1, 2, 5, 9, 31]).prop_map(|s| Command::Pass(secs(s))),
        2 => (1..9u64).prop_map(|s| Command::Sleep(secs(s))),
        1 => Just(Command::Reopen),
    ]
}

fn limits() -> impl Strategy<Value = Limits> {
    let drawn = [vec![secs(30), secs(90)], vec![secs(1), secs(1), secs(0)]].map(prop::sample::select);
    (prop::sample::select(vec![3, 8]), drawn).prop_map(|(max_unfinished, [window, back_off])| Limits {
        max_unfinished,
        window,
        back_off,
    })
}

/// A store and its model.
struct Pair {
    world: World,
    model: Model,
    /// Every name that was ever used.
    names: Vec<String>,
    /// Every lease that was ever granted, newest first.
    leases: Vec<LeaseId>,
    met: Met,
}

impl Pair {
    async fn new(open: Open, limits: Limits) -> Self {
        let world = World::with(open, move |config| {
            config.limits.max_unfinished = limits.max_unfinished as u64;
            config.limits.request_id_window = limits.window;
            config.defaults.retention = RETENTION;
            config.defaults.initial_backoff = limits.back_off;
        });
        let model = Model::new(limits, RETENTION);
        Self { world: world.await, model, names: vec!["never".into()], leases: Vec::new(), met: Met::new() }
    }

    async fn run(&mut self, command: Command) {
        match command {
            Command::Submit(groups) => self.submit(groups).await,
            Command::Claim(limit) => self.claim(limit).await,
            Command::Renew(renewals) => self.renew(renewals).await,
            Command::Settle(reports) => self.settle(reports).await,
            Command::Cancel(cancels) => self.cancel(cancels).await,
            Command::Retry(retries) => self.retry(retries).await,
            Command::Delete(deletes) => self.delete(deletes).await,
            Command::Sleep(time) => self.world.sleep(time),
            Command::Pass(time) => self.pass(time).await,
            Command::Reopen => {
                self.world.reopen().await;
                let due = self.due_times().await;
                self.model.crash(self.world.now, due);
            }
        }
        self.compare().await;
    }

    /// Notes how the model answers.
    fn meet<T>(&mut self, call: &str, answers: &[Answer<T>], taken: impl Fn(&T) -> &'static str) {
        for answer in answers {
            let told = answer.as_ref().map_or_else(|(why, _)| *why, &taken);
            self.met.insert(format!("{call}: {told}"));
        }
    }

    /// Draws the ids that are to be drawn.
    fn named(&mut self, new: New) -> New {
        let name = if new.id() == "drawn" { format!("drawn-{}", self.names.len()) } else { new.id() };
        self.names.push(name.clone());
        new.submission(|submission| submission.job_id = id(&name))
    }

    async fn submit(&mut self, groups: Vec<Vec<New>>) {
        let groups: Vec<Vec<New>> =
            groups.into_iter().map(|group| group.into_iter().map(|new| self.named(new)).collect()).collect();
        let expected: Vec<_> = groups
            .iter()
            .map(|group| {
                let group: Vec<Submission> = group.iter().cloned().map(Into::into).collect();
                self.model.submit(self.world.now, &group)
            })
            .collect();
        for answer in &expected {
            match answer {
                Ok(jobs) => jobs.iter().for_each(|(_, known)| {
                    self.met.insert(format!("submit: {}", if *known { "known" } else { "new" }));
                }),
                Err((_, (why, _))) => drop(self.met.insert(format!("submit: {why}"))),
            }
        }
        let replies = self.world.batch(groups).await.into_iter().map(|reply| match reply {
            Ok(accepted) => {
                Ok(accepted.into_iter().map(|one| (one.job.id.to_string(), one.deduplicated)).collect())
            }
            Err((index, error)) => Err((index, refusal(error))),
        });
        assert_eq!(replies.collect::<Vec<_>>(), expected);
    }

    async fn claim(&mut self, limit: usize) {
        let now = self.world.now;
        let lines = QUEUES.map(|queue| self.model.line(queue, now));
        let waiting = lines.concat().len();
        let stale = self.model.holds_stale(now);
        let leases = self.world.claim(World::wish(limit)).await;
        assert!(stale || leases.len() == limit.min(waiting), "{} of {lines:?}", leases.len());
        for (queue, line) in QUEUES.iter().zip(lines) {
            let of_queue = leases.iter().filter(|leased| leased.job.spec.queue.as_str() == *queue);
            let taken = ids(of_queue.map(|leased| &*leased.job));
            assert_eq!(taken, line[..taken.len()]);
        }
        for leased in leases {
            self.model.claim(leased.job.id.as_str(), leased.lease, now.after(secs(30)));
            same(self.model.job(leased.job.id.as_str()).unwrap(), &leased.job, View::Result);
            self.leases.insert(0, leased.lease);
        }
    }

    fn lease(&self, index: Index) -> LeaseId {
        let recent = &self.leases[..self.leases.len().min(6)];
        if recent.is_empty() { LeaseId { job: 1, fence: 1 } } else { *index.get(recent) }
    }

    fn progress(&self, fraction: Option<f64>) -> Option<Progress> {
        let (note, update_time) = (String::new(), self.world.now);
        fraction.map(|fraction| Progress { fraction, note, details: None, update_time })
    }

    async fn renew(&mut self, renewals: Vec<(Index, Option<f64>)>) {
        let until = self.world.now.after(secs(20));
        let renewals: Vec<_> = renewals
            .into_iter()
            .map(|(index, fraction)| Renewal {
                lease: self.lease(index),
                until: Some(until),
                progress: self.progress(fraction),
            })
            .collect();
        let expected: Vec<_> = renewals
            .iter()
            .map(|renewal| {
                let fraction = renewal.progress.as_ref().map(|progress| progress.fraction);
                self.model.renew(renewal.lease, until, fraction)
            })
            .collect();
        self.met.extend(expected.iter().map(|renewed| format!("renew: {renewed:?}")));
        assert_eq!(self.world.store().renew(self.world.now, renewals).await.unwrap(), expected);
    }

    async fn settle(&mut self, reports: Vec<(Index, Report, Option<f64>)>) {
        let now = self.world.now;
        let mut expected = Vec::new();
        let mut settlements = Vec::new();
        for (index, report, fraction) in reports {
            let lease = self.lease(index);
            expected.push(self.model.settle(now, lease, &report, fraction));
            let progress = self.progress(fraction);
            settlements.push(Settlement {
                lease,
                report,
                only_if: OnlyIf::Held,
                jitter: 1.0,
                progress,
                job: None,
            });
        }
        self.meet("settle", &expected, |()| "taken");
        let settled = self.world.store().settle(now, settlements).await.unwrap();
        let settled: Vec<_> = settled.into_iter().map(|answer| answer.map_err(refusal)).collect();
        assert_eq!(settled, expected);
    }

    fn target(&self, index: Index, etag: Etag) -> (JobId, Option<String>) {
        // Rather the newest that are there, sometimes others.
        let there = self.model.jobs().rev().take(8).map(|job| &job.name);
        let names: Vec<&String> = there.chain(self.names.iter().rev().take(2)).collect();
        let name = *index.get(&names);
        let version = self.model.job(name).map_or(1, |job| job.version);
        let etag = match etag {
            Etag::None => None,
            Etag::Right => Some(Job::etag_of(version)),
            Etag::Wrong => Some(Job::etag_of(version + 100)),
        };
        (id(name), etag)
    }

    async fn cancel(&mut self, cancels: Vec<(Index, Etag)>) {
        let cancels: Vec<_> = cancels
            .into_iter()
            .map(|(index, etag)| {
                let (job_id, etag) = self.target(index, etag);
                Cancel { job_id, reason: "enough".into(), etag }
            })
            .collect();
        let expected: Vec<_> =
            cancels.iter().map(|cancel| self.model.cancel(self.world.now, cancel)).collect();
        self.meet("cancel", &expected, |lease| if lease.is_some() { "asked for" } else { "at once" });
        let changes = self.world.store().cancel(self.world.now, cancels).await.unwrap();
        let changes: Vec<_> =
            changes.into_iter().map(|change| change.map(|change| change.revoke).map_err(refusal)).collect();
        assert_eq!(changes, expected);
    }

    async fn retry(&mut self, retries: Vec<(Index, Duration, Etag)>) {
        let retries: Vec<_> = retries
            .into_iter()
            .map(|(index, delay, etag)| {
                let (job_id, etag) = self.target(index, etag);
                Retry { job_id, delay, etag }
            })
            .collect();
        let expected: Vec<_> = retries.iter().map(|retry| self.model.retry(self.world.now, retry)).collect();
        self.meet("retry", &expected, |()| "taken");
        let changes = self.world.store().retry(self.world.now, retries).await.unwrap();
        let changes: Vec<_> = changes.into_iter().map(|change| change.map(drop).map_err(refusal)).collect();
        assert_eq!(changes, expected);
    }

    async fn delete(&mut self, deletes: Vec<(Index, Etag, bool)>) {
        let deletes: Vec<_> = deletes
            .into_iter()
            .map(|(index, etag, allow_missing)| {
                let (job_id, etag) = self.target(index, etag);
                Delete { job_id, etag, allow_missing }
            })
            .collect();
        let expected: Vec<_> = deletes.iter().map(|delete| self.model.delete(delete)).collect();
        self.meet("delete", &expected, |()| "taken");
        let deleted = self.world.store().delete(self.world.now, deletes).await.unwrap();
        let deleted: Vec<_> = deleted.into_iter().map(|answer| answer.map(drop).map_err(refusal)).collect();
        assert_eq!(deleted, expected);
    }

    async fn pass(&mut self, time: Duration) {
        let tick = self.world.pass(time).await;
        let due = self.due_times().await;
        let revoked = self.model.tick(self.world.now, due);
        assert_eq!(tick.revoked.iter().map(|lease| lease.fence).collect::<BTreeSet<_>>(), revoked);
    }

    /// When the store will try jobs again.
    async fn due_times(&self) -> impl Fn(&str) -> Option<Timestamp> + use<> {
        let jobs = self.world.list(Filter::default()).await;
        move |name| jobs.iter().find(|job| job.id.as_str() == name)?.next_attempt_time
    }

    async fn compare(&mut self) {
        let jobs = self.world.list(Filter::default()).await;
        assert_eq!(ids(&jobs), ids_of(self.model.jobs().rev()));
        for (listed, expected) in jobs.iter().zip(self.model.jobs().rev()) {
            self.met.insert(format!("state {}", expected.state));
            self.met.extend(expected.error.map(|cause| format!("error {cause:?}")));
            self.met.extend((expected.run > 1).then(|| "a second run".to_owned()));
            same(expected, listed, View::Basic);
            same(expected, &self.world.get(&expected.name).await, View::Full);
        }
        self.world.recount().await;
        for (state, ends) in &self.model.ended {
            let mut kept = 0;
            for queue in QUEUES {
                kept += self.world.count(queue, KIND, *state).await;
            }
            assert_eq!(kept, *ends, "{state}");
        }
        self.compare_feed().await;
    }

    async fn compare_feed(&mut self) {
        let feed = self.world.feed().await;
        assert!(feed.is_sorted_by(|a, b| a.position < b.position));
        assert!(feed.last().is_none_or(|last| last.position <= self.world.head()));
        let told: Vec<_> =
            feed.iter().map(|end| (end.job.id.to_string(), end.job.run, end.job.state)).collect();
        let expected = || self.model.feed.iter().map(|end| (end.name.clone(), end.run, end.state));
        if expected().ne(told.iter().cloned()) {
            // What time ends at once comes in any order, from then on in that one.
            let sorted = |mut ends: Vec<_>| {
                ends.sort();
                ends
            };
            assert_eq!(sorted(expected().collect()), sorted(told.clone()));
            let place = |name: &str, run| told.iter().position(|end| end.0 == name && end.1 == run);
            self.model.feed.sort_by_key(|end| place(&end.name, end.run));
        }
    }
}

fn ids_of<'a>(jobs: impl Iterator<Item = &'a Entry>) -> Vec<String> {
    jobs.map(|job| job.name.clone()).collect()
}

/// What the store says of a job is what the model knows.
fn same(expected: &Entry, job: &Job, view: View) {
    let Entry { name, state, .. } = expected;
    assert_eq!((name.as_str(), *state), (job.id.as_str(), job.state));
    let counters = (expected.run, expected.attempt, expected.version);
    assert_eq!((job.run, job.attempt, job.version), counters, "{job:?}");
    let waits = !state.is_final() && *state != State::RUNNING;
    assert_eq!(job.next_attempt_time, waits.then_some(expected.due), "{job:?}");
    assert_eq!((job.cancel_requested, job.finish_time), (expected.cancelled, expected.finished));
    assert_eq!(job.delete_time, expected.finished.map(|finished| finished.after(RETENTION)));
    assert_eq!(job.progress.as_ref().map(|progress| progress.fraction), expected.progress, "{job:?}");
    assert_eq!(job.error.as_ref().map(|error| error.cause), expected.error, "{job:?}");
    let begun = expected.attempt > 0;
    assert_eq!((job.worker.is_some(), job.start_time.is_some()), (begun, begun), "{job:?}");
    if view == View::Full {
        assert_eq!((&job.spec, &job.output), (&expected.spec, &expected.output));
        let told = job.attempts.iter().map(|a| (a.run, a.attempt, a.error.as_ref().unwrap().cause));
        let newest = expected.failures.len().saturating_sub(Attempt::KEPT);
        assert_eq!(told.collect::<Vec<_>>(), expected.failures[newest..]);
    }
}

/// Every state, cause and refusal that commands can lead to.
const EXPECTED: [&str; 35] = [
    "state SCHEDULED",
    "state QUEUED",
    "state RUNNING",
    "state BACKING_OFF",
    "state SUCCEEDED",
    "state FAILED",
    "state CANCELLED",
    "state EXPIRED",
    "error Handler",
    "error Crash",
    "error LeaseExpired",
    "error Cancelled",
    "error Expired",
    "a second run",
    "submit: new",
    "submit: known",
    "submit: request_id reused",
    "submit: job deleted",
    "submit: job_id in use",
    "submit: unique_key in use",
    "submit: queue full",
    "renew: Held",
    "renew: Lost",
    "renew: Cancelled",
    "settle: taken",
    "settle: lease lost",
    "cancel: asked for",
    "cancel: not found",
    "cancel: etag mismatch",
    "retry: wrong state",
    "retry: etag mismatch",
    "retry: unique_key in use",
    "delete: taken",
    "delete: wrong state",
    "delete: etag mismatch",
];

pub async fn a_store_does_what_a_list_in_memory_does(open: Open) {
    let run = move |(limits, commands): (Limits, Vec<Command>)| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut pair = Pair::new(open, limits).await;
            for command in commands {
                pair.run(command).await;
            }
            pair.world.close().await;
            Ok(pair.met)
        })
    };
    let commands = (limits(), prop::collection::vec(command(), 1..80));
    let tested = tokio::task::spawn_blocking(move || explore(100, &commands, &EXPECTED, run));
    if let Err(failure) = tested.await {
        std::panic::resume_unwind(failure.into_panic());
    }
}
