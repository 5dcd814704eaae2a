//! Lost power: the real program works under load while all that it does to its files is recorded. From the record come
//! the files as a disk may hold them when the power goes at any moment: what was synced, and of the rest whatever it
//! pleases. From each of them everything must come back that anybody had been told by then.
//!
//! JOBWIRE_TEST_STATES says how many of them are looked at.

mod check;
mod disk;
mod ledger;
mod load;
mod trace;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use jobwire::proto::SubmitRequest;

use self::{
    check::{Checker, put},
    disk::{Broken, Disk, Loss},
    ledger::{Fact, Known, Ledger},
    load::Load,
    trace::{Deed, Event, Recorder},
};
use crate::{faults::Faults, support::Server};

/// States of one run, unless JOBWIRE_TEST_STATES says.
const STATES: usize = 1500;

/// Losses of power after which a start is recorded.
const RECOVERIES: usize = 3;

/// All that happened, and what was known when.
struct Recording {
    base: Disk,
    events: Vec<Event>,
    facts: Vec<(u64, Fact)>,
    plans: Arc<BTreeMap<String, SubmitRequest>>,
}

/// A loss of power.
#[derive(Clone, Copy, Debug)]
struct Crash {
    /// Events before it.
    after: usize,
    loss: Loss,
    /// Sectors of the last change of each file, from the beginning of the change.
    torn: usize,
}

impl Recording {
    fn of(base: Disk, load: &Load) -> Self {
        Self {
            base,
            events: trace::read(&load.recorder.record()),
            facts: load.ledger.facts(),
            plans: load.ledger.plans().into(),
        }
    }

    /// Builds the state of each crash, in order, with what is known by then.
    fn visit(&self, crashes: &[Crash], broken: Broken, mut look: impl FnMut(&Crash, &Disk, &Known)) {
        let mut disk = self.base.with(broken);
        let (mut known, mut done, mut learnt) = (Known::default(), 0, 0);
        for crash in crashes {
            for event in &self.events[done..crash.after] {
                disk.apply(&event.deed);
            }
            done = crash.after;
            let end = self.events[..done].last().map_or(0, |event| event.end);
            while let Some((at, fact)) = self.facts.get(learnt)
                && *at <= end
            {
                known.learn(fact);
                learnt += 1;
            }
            look(crash, &disk, &known);
        }
    }

    /// Crashes everywhere, but most of them where something is just being made safe.
    fn crashes(&self, count: usize) -> Vec<Crash> {
        let critical: Vec<usize> = (0..self.events.len())
            .filter(|&at| !matches!(self.events[at].deed, Deed::Write { .. } | Deed::Open { .. }))
            .flat_map(|at| [at, at + 1])
            .collect();
        let first = self.facts.iter().find(|(at, _)| *at > 0).map_or(0, |(at, _)| *at);
        let start = self.events.partition_point(|event| event.end <= first);
        let mut crashes: Vec<_> = (0..count)
            .map(|_| Crash {
                after: match fastrand::u8(..100) {
                    0..50 => critical[fastrand::usize(..critical.len())],
                    50..60 => fastrand::usize(..=start),
                    _ => fastrand::usize(..=self.events.len()),
                },
                loss: match fastrand::u8(..100) {
                    0..30 => Loss::Everything,
                    30..40 => Loss::Nothing,
                    40..55 => Loss::AllBut(fastrand::usize(..)),
                    55..70 => Loss::Only(fastrand::usize(..)),
                    _ => Loss::Random { seed: fastrand::u64(..), kept: fastrand::u8(1..100) },
                },
                torn: if fastrand::bool() { usize::MAX } else { fastrand::usize(..9) },
            })
            .collect();
        crashes.sort_by_key(|crash| crash.after);
        crashes
    }

    /// What is wrong after these crashes. At the first trouble if asked so.
    fn check(&self, crashes: &[Crash], broken: Broken, one_is_enough: bool) -> Vec<String> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let (over, looked) = (AtomicBool::new(false), AtomicUsize::new(0));
        let check = |mine: Vec<Crash>| {
            let mut checker = Checker::new(self.plans.clone());
            let mut problems = Vec::new();
            self.visit(&mine, broken, |crash, disk, known| {
                if over.load(Ordering::Relaxed) {
                    return;
                }
                looked.fetch_add(1, Ordering::Relaxed);
                if let Err(problem) = checker.check(&disk.after(crash.loss, crash.torn), known) {
                    over.fetch_or(one_is_enough || problems.len() > 10, Ordering::Relaxed);
                    problems.push(format!("{crash:?}: {problem}"));
                }
            });
            problems
        };
        let problems = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..threads)
                .map(|thread| crashes.iter().skip(thread).step_by(threads).copied().collect())
                .map(|mine| scope.spawn(|| check(mine)))
                .collect();
            workers.into_iter().flat_map(|worker| worker.join().expect("a check ends")).collect()
        });
        println!("{} states of {} events, {broken:?} broken", looked.into_inner(), self.events.len());
        problems
    }
}

/// Several lives of a server on one disk. The first one makes the store and is killed; the second one meets a disk that
/// cannot sync any more, the third one is stopped, the fourth one does not empty its log.
async fn record() -> Recording {
    let recorder = Arc::new(Recorder::new());
    let faults = Faults::new();
    let load = Load::new(recorder.clone(), Ledger::default());
    let base = Disk::of(&recorder.disk());
    let start =
        |log_limit: usize| recorder.server(&faults, &format!("[store]\nwal_limit_bytes = {log_limit}\n"));
    let (small, large) = (1 << 20, 64 << 20);

    load.run(start(small), 60, async |server| recorder.kill(server).await).await;
    let no_sync = async |server: &mut Server| {
        faults.begin("sync");
        server.ended().await;
        faults.end("sync");
    };
    load.run(start(small), 30, no_sync).await;
    let stop = async |server: &mut Server| {
        server.signal("TERM");
        server.ended().await;
    };
    load.run(start(small), 40, stop).await;
    load.run(start(large), 140, async |server| recorder.kill(server).await).await;
    load.run(start(small), 10, async |server| recorder.kill(server).await).await;
    let recording = Recording::of(base, &load);
    assert_complete(&recording, &recorder);
    recording
}

/// A server on what a loss of power has left.
async fn recover(files: &BTreeMap<String, Vec<u8>>, ledger: Ledger) -> Recording {
    let recorder = Arc::new(Recorder::new());
    put(files, &recorder.disk());
    let base = Disk::of(&recorder.disk());
    let load = Load::new(recorder.clone(), ledger);
    load.run(recorder.server(&Faults::new(), ""), 5, async |server| recorder.kill(server).await).await;
    let recording = Recording::of(base, &load);
    assert_complete(&recording, &recorder);
    recording
}

/// Nothing was overseen: played to the end, the record gives the files that are there.
fn assert_complete(recording: &Recording, recorder: &Recorder) {
    let end = Crash { after: recording.events.len(), loss: Loss::Nothing, torn: usize::MAX };
    recording.visit(&[end], Broken::Nothing, |_, disk, _| {
        let mut files = Disk::of(&recorder.disk()).after(Loss::Nothing, usize::MAX);
        files.retain(|name, _| !name.ends_with("-shm"));
        let recorded = disk.after(Loss::Nothing, usize::MAX);
        assert_eq!(recorded.keys().collect::<Vec<_>>(), files.keys().collect::<Vec<_>>());
        for (name, bytes) in files {
            assert!(recorded[&name] == bytes, "{name} differs from its record");
        }
    });
}

fn recorded() -> Recording {
    tokio::runtime::Runtime::new().expect("a runtime").block_on(record())
}

fn states() -> usize {
    std::env::var("JOBWIRE_TEST_STATES").map_or(STATES, |text| text.parse().expect("a number of states"))
}

#[test]
fn what_was_told_survives_lost_power() {
    let recording = recorded();
    let problems = recording.check(&recording.crashes(states()), Broken::Nothing, false);
    assert!(problems.is_empty(), "{problems:#?}");
}

/// The first start after lost power writes too, and may be the last.
#[test]
fn a_recovery_survives_lost_power() {
    let first = recorded();
    let mut problems = Vec::new();
    first.visit(&first.crashes(RECOVERIES), Broken::Nothing, |crash, disk, known| {
        let files = disk.after(crash.loss, crash.torn);
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        let second = runtime.block_on(recover(&files, Ledger::of(&first.plans, known)));
        problems.extend(second.check(&second.crashes(states() / 10), Broken::Nothing, false));
    });
    assert!(problems.is_empty(), "{problems:#?}");
}

/// Or the tests above would see nothing.
#[test]
fn every_sync_is_needed() {
    let recording = recorded();
    for broken in [Broken::Everything, Broken::Log, Broken::Database, Broken::Directories] {
        let problems = recording.check(&recording.crashes(states()), broken, true);
        println!("{problems:#?}");
        assert!(!problems.is_empty(), "nothing is lost without these syncs: {broken:?}");
    }
}
