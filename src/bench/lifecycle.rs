//! Whole lives: submitted, run by echo, seen by a watcher.

use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use tokio::{sync::Semaphore, task::JoinHandle};
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tonic::{Streaming, transport::Channel};

use super::{
    Error, Load, Report, Target, load,
    report::{Latency, histogram},
    short::{self, Watched},
    submit::{IN_FLIGHT, with_usage},
    workload::{self, Queue},
};
use crate::proto::{BatchSubmitRequest, StreamSubmitRequest, SubmitRequest};

/// An outcome comes within it, or something is wrong.
const PATIENCE: Duration = Duration::from_secs(30);

/// When each job on its way was submitted, and who may submit.
struct Course {
    zero: Instant,
    /// Microseconds since `zero`, by number modulo its length.
    submitted: Vec<AtomicU64>,
    next: AtomicU64,
    room: Semaphore,
}

impl Course {
    fn new(outstanding: usize) -> Arc<Self> {
        Arc::new(Self {
            zero: Instant::now(),
            submitted: (0..outstanding * 2).map(|_| AtomicU64::new(0)).collect(),
            next: AtomicU64::new(0),
            room: Semaphore::new(outstanding),
        })
    }

    fn slot(&self, number: u64) -> &AtomicU64 {
        &self.submitted[number as usize % self.submitted.len()]
    }

    fn micros(&self) -> u64 {
        self.zero.elapsed().as_micros() as u64
    }

    /// The number of the next job, once there is room for it.
    async fn begin(&self) -> Result<u64, Error> {
        Ok(self.begin_many(1).await?.start)
    }

    /// The numbers of the next jobs, once there is room for all of them.
    async fn begin_many(&self, count: u32) -> Result<Range<u64>, Error> {
        let ended = |_| Error::Unexpected("the watcher has ended".into());
        self.room.acquire_many(count).await.map_err(ended)?.forget();
        let first = self.next.fetch_add(count.into(), Ordering::Relaxed);
        let numbers = first..first + u64::from(count);
        let now = self.micros();
        numbers.clone().for_each(|number| self.slot(number).store(now, Ordering::Relaxed));
        Ok(numbers)
    }

    /// How long a job was on its way.
    fn end(&self, number: u64) -> u64 {
        self.room.add_permits(1);
        self.micros().saturating_sub(self.slot(number).load(Ordering::Relaxed))
    }
}

/// Reads outcomes until as many were seen as `all` says, once it says.
async fn watch(
    mut messages: Streaming<Watched>,
    course: Arc<Course>,
    all: Arc<AtomicU64>,
    done: Arc<AtomicBool>,
) -> Result<Histogram<u64>, Error> {
    let mut times = histogram();
    let mut seen = 0;
    while !(done.load(Ordering::Acquire) && seen >= all.load(Ordering::Acquire)) {
        let message = match tokio::time::timeout(Duration::from_millis(100), messages.next()).await {
            Ok(Some(message)) => message?,
            Ok(None) => return Err(Error::Unexpected("the watch ended".into())),
            Err(_) => continue,
        };
        if let Some(output) = message.output() {
            let number = workload::number(&output)
                .ok_or_else(|| Error::Unexpected("a job ended without its output".into()))?;
            times.saturating_record(course.end(number));
            seen += 1;
        }
    }
    Ok(times)
}

/// A watcher that is on its place, and what tells it to end.
struct Watcher {
    task: JoinHandle<Result<Histogram<u64>, Error>>,
    all: Arc<AtomicU64>,
    done: Arc<AtomicBool>,
}

impl Watcher {
    async fn start(target: &Target, queue: &Queue, course: &Arc<Course>) -> Result<Self, Error> {
        let mut messages = short::watch_results(target.channel().await?, queue.watch()).await?;
        // The first one is a checkpoint: from here on nothing is missed.
        messages.next().await.ok_or_else(|| Error::Unexpected("the watch ended".into()))??;
        let (all, done) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (on_course, seen) = (course.clone(), watch(messages, course.clone(), all.clone(), done.clone()));
        let task = tokio::spawn(async move {
            let times = seen.await;
            // Without a watcher nobody makes room.
            on_course.room.close();
            times
        });
        Ok(Self { task, all, done })
    }

    /// Waits until all jobs were seen.
    async fn finish(self, all: u64) -> Result<Histogram<u64>, Error> {
        self.all.store(all, Ordering::Release);
        self.done.store(true, Ordering::Release);
        let late = |_| Error::Unexpected(format!("outcomes are missing after {} s", PATIENCE.as_secs()));
        let task = tokio::time::timeout(PATIENCE, self.task).await.map_err(late)?;
        task.map_err(|panic| Error::Unexpected(panic.to_string()))?
    }
}

pub async fn unary(target: &Target, load: &Load) -> Result<Report, Error> {
    called("lifecycle", target, load, |channel, queue, course| async move {
        let request = queue.echo(course.begin().await?);
        short::submit(channel, request).await.map(drop)
    })
    .await
}

pub async fn batch(target: &Target, load: &Load) -> Result<Report, Error> {
    let size = load.batch.min(load.outstanding as u32);
    called("batch-lifecycle", target, load, move |channel, queue, course| async move {
        let requests = course.begin_many(size).await?.map(|number| queue.echo(number)).collect();
        short::batch_submit(channel, BatchSubmitRequest { requests }).await
    })
    .await
}

/// Jobs by callers of a unary method.
async fn called<F>(
    name: &str,
    target: &Target,
    load: &Load,
    call: impl Fn(Channel, Queue, Arc<Course>) -> F + Clone + Send + 'static,
) -> Result<Report, Error>
where
    F: Future<Output = Result<(), Error>> + Send,
{
    let queue = Queue::new(load.payload);
    let course = Course::new(load.outstanding);
    let watcher = Watcher::start(target, &queue, &course).await?;
    let channels = target.channels(load.connections).await?;
    let caller = |index: usize| {
        let channel = channels[index % channels.len()].clone();
        let (queue, course, call) = (queue.clone(), course.clone(), call.clone());
        move || call(channel.clone(), queue.clone(), course.clone())
    };
    let (before, start) = (target.usage(), Instant::now());
    let submitted = load::callers(load.callers, load.duration, caller, || ()).await;
    // What the watcher failed with says more.
    let times = watcher.finish(course.next.load(Ordering::Relaxed)).await?;
    submitted?;
    Ok(with_usage(of(name, start.elapsed(), &times), target, before))
}

pub async fn stream(target: &Target, load: &Load) -> Result<Report, Error> {
    streamed("stream-lifecycle", target, load, Queue::new(load.payload), Queue::echo).await
}

/// Jobs through one stream, whoever runs them.
pub async fn streamed(
    name: &str,
    target: &Target,
    load: &Load,
    queue: Queue,
    job: fn(&Queue, u64) -> SubmitRequest,
) -> Result<Report, Error> {
    let course = Course::new(load.outstanding);
    let watcher = Watcher::start(target, &queue, &course).await?;
    let channel = target.channel().await?;
    let (before, start) = (target.usage(), Instant::now());
    let end = start + load.duration + load::WARM_UP;
    let (sender, requests) = tokio::sync::mpsc::channel(IN_FLIGHT);
    let on_course = course.clone();
    tokio::spawn(async move {
        while Instant::now() < end
            && let Ok(number) = on_course.begin().await
        {
            let request = Some(job(&queue, number));
            if sender.send(StreamSubmitRequest { sequence: number as i64, request }).await.is_err() {
                return;
            }
        }
    });
    let mut verdicts = short::stream_submit(channel, ReceiverStream::new(requests)).await?;
    while let Some(verdict) = verdicts.next().await {
        verdict?.accepted()?;
    }
    let times = watcher.finish(course.next.load(Ordering::Relaxed)).await?;
    Ok(with_usage(of(name, start.elapsed(), &times), target, before))
}

fn of(name: &str, elapsed: Duration, times: &Histogram<u64>) -> Report {
    let (count, seconds) = (times.len(), elapsed.as_secs_f64());
    Report {
        name: name.into(),
        unit: "jobs",
        count,
        seconds,
        per_second: Some(count as f64 / seconds),
        latency: Latency::of(times),
        ..Default::default()
    }
}
