//! Whole lives: submitted, run by echo, seen by a watcher.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use hdrhistogram::Histogram;
use tokio::{sync::Semaphore, task::JoinHandle, time::Instant};
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

/// Who may submit, and how long jobs are on their way: each has the time of its submission with it, as the number that
/// its payload begins with.
struct Course {
    zero: Instant,
    /// Jobs so far.
    begun: AtomicU64,
    room: Semaphore,
}

impl Course {
    fn new(outstanding: usize) -> Arc<Self> {
        Arc::new(Self { zero: Instant::now(), begun: AtomicU64::new(0), room: Semaphore::new(outstanding) })
    }

    /// Microseconds since `zero`.
    fn micros(&self) -> u64 {
        self.zero.elapsed().as_micros() as u64
    }

    /// The time, once there is room for so many jobs.
    async fn begin(&self, count: u32) -> Result<u64, Error> {
        let ended = |_| Error::Unexpected("the watcher has ended".into());
        self.room.acquire_many(count).await.map_err(ended)?.forget();
        self.begun.fetch_add(count.into(), Ordering::Relaxed);
        Ok(self.micros())
    }

    /// How long a job was on its way that was submitted then.
    fn end(&self, submitted: u64) -> u64 {
        self.room.add_permits(1);
        self.micros().saturating_sub(submitted)
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
            let submitted = workload::number(&output)
                .ok_or_else(|| Error::Unexpected("a job ended without its output".into()))?;
            times.saturating_record(course.end(submitted));
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
        let request = queue.echo(course.begin(1).await?);
        short::submit(channel, request).await.map(drop)
    })
    .await
}

pub async fn batch(target: &Target, load: &Load) -> Result<Report, Error> {
    let size = load.batch.min(load.outstanding as u32);
    called("batch-lifecycle", target, load, move |channel, queue, course| async move {
        let submitted = course.begin(size).await?;
        let requests = (0..size).map(|_| queue.echo(submitted)).collect();
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
    let times = watcher.finish(course.begun.load(Ordering::Relaxed)).await?;
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
        let mut sequence = 0;
        while Instant::now() < end
            && let Ok(submitted) = on_course.begin(1).await
        {
            let request = Some(job(&queue, submitted));
            if sender.send(StreamSubmitRequest { sequence, request }).await.is_err() {
                return;
            }
            sequence += 1;
        }
    });
    let mut verdicts = short::stream_submit(channel, ReceiverStream::new(requests)).await?;
    while let Some(verdict) = verdicts.next().await {
        verdict?.accepted()?;
    }
    let times = watcher.finish(course.begun.load(Ordering::Relaxed)).await?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::payload::Body;

    /// What `echo` answers.
    fn output(request: SubmitRequest) -> Vec<u8> {
        match request.spec.unwrap().payload.unwrap().body {
            Some(Body::Data(data)) => data.to_vec(),
            other => panic!("no bytes: {other:?}"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_job_keeps_its_time_however_many_overtake_it() {
        let (course, queue) = (Course::new(2), Queue::new(8));
        let slow = output(queue.echo(course.begin(1).await.unwrap()));
        for _ in 0..100 {
            let quick = output(queue.worked(course.begin(1).await.unwrap()));
            tokio::time::advance(Duration::from_millis(10)).await;
            assert_eq!(course.end(workload::number(&quick).unwrap()), 10_000);
        }
        assert_eq!(course.end(workload::number(&slow).unwrap()), 1_000_000);
        assert_eq!(course.begun.load(Ordering::Relaxed), 101);
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_jobs_are_on_their_way_than_there_is_room_for() {
        let course = Course::new(3);
        let submitted = course.begin(2).await.unwrap();
        let begin = async |count| tokio::time::timeout(Duration::from_secs(1), course.begin(count)).await;
        assert!(begin(2).await.is_err());
        course.end(submitted);
        assert!(begin(2).await.is_ok());
        assert!(begin(1).await.is_err());
    }
}
