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
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use jobwire::proto::SubmitRequest;

use self::{
    check::{Checker, put},
    disk::{Broken, Disk, Loss},
    ledger::{Fact, Known},
    load::Load,
    trace::{Deed, Event, Recorder},
};
use crate::support::Server;

/// States of one run, unless JOBWIRE_TEST_STATES says.
const STATES: usize = 2000;

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
        let first = self.facts.first().map_or(0, |(at, _)| *at);
        let creation = self.events.partition_point(|event| event.end <= first);
        let mut crashes: Vec<_> = (0..count)
            .map(|_| Crash {
                after: match fastrand::u8(..100) {
                    0..50 => critical[fastrand::usize(..critical.len())],
                    50..60 => fastrand::usize(..=creation),
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

/// Several lives of a server on one disk: the first one makes the store, then they are killed, lose their disk for a
/// while, are stopped.
async fn record() -> Recording {
    let recorder = Arc::new(Recorder::new());
    let load = Load::new(recorder.clone());
    let config = |limit: usize| {
        format!(
            "data = {:?}\n[store]\nwal_limit_bytes = {limit}\n",
            recorder.disk().join("data").to_str().expect("text")
        )
    };
    let base = Disk::of(&recorder.disk());
    let variables = recorder.variables(None);
    let start = |limit| {
        let variables: Vec<_> = variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
        Server::with_variables(&config(limit), &variables)
    };
    for _ in 0..2 {
        let mut server = start(1 << 20);
        load.run(&mut server, 60, async |server| server.kill()).await;
    }
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

#[test]
fn what_was_told_survives_lost_power() {
    let states =
        std::env::var("JOBWIRE_TEST_STATES").map_or(STATES, |text| text.parse().expect("a number of states"));
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let recording = runtime.block_on(record());
    let problems = recording.check(&recording.crashes(states), Broken::Nothing, false);
    assert!(problems.is_empty(), "{problems:#?}");

    // And if the syncs were without effect, it would show.
    for broken in [Broken::Everything, Broken::Log, Broken::Database, Broken::Directories] {
        let problems = recording.check(&recording.crashes(states), broken, true);
        println!("{problems:#?}");
        assert!(!problems.is_empty(), "nobody needs these syncs: {broken:?}");
    }
}
