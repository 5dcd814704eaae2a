//! Jobs that are run by workers which connect. Their handlers answer with what they were given, at once.

use std::time::{Duration, Instant};

use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Interval, MissedTickBehavior, interval},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Streaming, transport::Channel};

use super::{
    Error, Load, Report, Target, lifecycle,
    load::WARM_UP,
    report::{Latency, histogram, record},
    short::{self, Hears, Saying, Says},
    submit::with_usage,
    workload::Queue,
};
use crate::proto::WorkerHeartbeat;

/// A session on its place.
struct Worker {
    says: mpsc::Sender<Says>,
    hears: Streaming<Hears>,
    beats: Interval,
}

enum Heard {
    Lease,
    Ack,
}

impl Worker {
    async fn connect(channel: Channel, queue: &Queue, window: u16) -> Result<Self, Error> {
        // One result for each lease that is held, and a heartbeat: what is sent never waits for what is read.
        let (says, said) = mpsc::channel(usize::from(window) + 1);
        say(&says, Saying::Hello(queue.hello(window)))?;
        let mut hears = short::work(channel, ReceiverStream::new(said)).await?;
        let welcome = hears.message().await?.and_then(|heard| heard.welcome);
        let interval_of = welcome.and_then(|welcome| Duration::try_from(welcome.heartbeat_interval?).ok());
        let mut beats = interval(interval_of.filter(|time| !time.is_zero()).ok_or_else(unwelcome)?);
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(Self { says, hears, beats })
    }

    /// Works for as long as the stream lasts.
    async fn run(mut self, mut on: impl FnMut(Heard)) -> Result<(), Error> {
        let mut sequence = 0;
        loop {
            let heard = tokio::select! {
                heard = self.hears.message() => heard?.ok_or_else(gone)?,
                _ = self.beats.tick() => {
                    // Names no lease: each was answered as soon as it came, which confirms it as well.
                    let beat = WorkerHeartbeat { last_lease_sequence: sequence, ..Default::default() };
                    say(&self.says, Saying::Heartbeat(beat))?;
                    continue;
                }
            };
            if let Some(lease) = heard.lease {
                on(Heard::Lease);
                sequence = lease.sequence;
                say(&self.says, Saying::Finish(lease.echo()))?;
            } else if let Some(ack) = heard.finish_ack {
                ack.accepted()?;
                on(Heard::Ack);
            }
        }
    }
}

fn say(says: &mpsc::Sender<Says>, message: Saying) -> Result<(), Error> {
    says.try_send(Says { message: Some(message) }).map_err(|_| gone())
}

fn gone() -> Error {
    Error::Unexpected("a worker's stream ended".into())
}

fn unwelcome() -> Error {
    Error::Unexpected("a worker was not welcomed".into())
}

/// Answers only if a worker fails.
async fn failure(workers: &mut JoinSet<Result<(), Error>>) -> Error {
    match workers.join_next().await {
        None => std::future::pending().await,
        Some(Ok(ended)) => ended.err().unwrap_or_else(gone),
        Some(Err(panic)) => Error::Unexpected(panic.to_string()),
    }
}

/// Whole lives, submitted by one stream, seen by one watcher.
pub async fn run(target: &Target, load: &Load) -> Result<Report, Error> {
    let queue = Queue::new(load.payload);
    let mut workers = JoinSet::new();
    for _ in 0..load.workers {
        let worker = Worker::connect(target.channel().await?, &queue, load.window).await?;
        workers.spawn(worker.run(|_| ()));
    }
    tokio::select! {
        report = lifecycle::streamed("workers", target, load, queue, Queue::worked) => report,
        error = failure(&mut workers) => Err(error),
    }
}

/// From Submit until the worker has the lease, one job after another.
pub async fn start(target: &Target, load: &Load) -> Result<Report, Error> {
    let queue = Queue::new(load.payload);
    let (leased, mut leases) = mpsc::channel(1);
    let (acked, mut acks) = mpsc::channel(1);
    let worker = Worker::connect(target.channel().await?, &queue, load.window).await?;
    let mut workers = JoinSet::new();
    // There is one job at a time, so there is room.
    workers.spawn(worker.run(move |heard| match heard {
        Heard::Lease => drop(leased.try_send(Instant::now())),
        Heard::Ack => drop(acked.try_send(())),
    }));
    let channel = target.channel().await?;
    let begin = Instant::now() + WARM_UP;
    let end = begin + load.duration;
    let (mut times, mut before) = (histogram(), None);
    loop {
        let start = Instant::now();
        if start >= end {
            break;
        }
        let course = async {
            let submitted = short::submit(channel.clone(), queue.worked(0));
            let (submitted, lease) = tokio::join!(submitted, leases.recv());
            submitted?;
            // Until nothing is under way that the next one could meet.
            acks.recv().await.ok_or_else(gone)?;
            lease.ok_or_else(gone)
        };
        let lease = tokio::select! {
            lease = course => lease?,
            error = failure(&mut workers) => return Err(error),
        };
        if start >= begin {
            before = before.or_else(|| target.usage());
            record(&mut times, lease - start);
        }
    }
    let report = Report {
        name: "start".into(),
        unit: "jobs",
        count: times.len(),
        seconds: load.duration.as_secs_f64(),
        latency: Latency::of(&times),
        ..Default::default()
    };
    Ok(with_usage(report, target, before))
}
