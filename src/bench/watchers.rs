//! Many watchers: each sees everything, or nothing happens at all.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio_stream::StreamExt as _;
use tokio_util::task::AbortOnDropHandle;
use tonic::transport::Channel;

use super::{
    Error, Load, Report, Target,
    load::{channel, messages},
    raw,
    submit::with_usage,
    workload::Queue,
};
use crate::proto::{BatchSubmitRequest, WatchResultsRequest, job_service_client::JobServiceClient};

/// Streams of one connection: a server allows 200.
const STREAMS: usize = 100;

/// Jobs of one burst, all of which each watcher sees.
const BURST: u64 = 500;

/// What watchers have received.
#[derive(Default)]
struct Received {
    streams: AtomicU64,
    messages: AtomicU64,
}

async fn count(channel: Channel, request: WatchResultsRequest, received: Arc<Received>) -> Result<(), Error> {
    let mut messages = messages(channel, request).await?;
    let mut is_new = true;
    while let Some(message) = messages.next().await {
        if raw::is_outcome(&message?) {
            received.messages.fetch_add(1, Ordering::Relaxed);
        }
        if std::mem::take(&mut is_new) {
            received.streams.fetch_add(1, Ordering::Relaxed);
        }
    }
    Ok(())
}

type Streams = Vec<AbortOnDropHandle<Result<(), Error>>>;

async fn open(target: &Target, queue: &Queue, count_of: usize) -> Result<(Streams, Arc<Received>), Error> {
    let received = Arc::new(Received::default());
    let mut streams = Vec::with_capacity(count_of);
    for begin in (0..count_of).step_by(STREAMS) {
        let channel = channel(target.address()).await?;
        for _ in begin..count_of.min(begin + STREAMS) {
            let request = queue.watch();
            let task = tokio::spawn(count(channel.clone(), request, received.clone()));
            streams.push(AbortOnDropHandle::new(task));
        }
    }
    while received.streams.load(Ordering::Relaxed) < count_of as u64 {
        if streams.iter().any(AbortOnDropHandle::is_finished) {
            return Err(Error::Unexpected(
                "a watch ended: does the server allow as many, and this process as many open files?".into(),
            ));
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok((streams, received))
}

pub async fn fan_out(target: &Target, load: &Load) -> Result<Report, Error> {
    let queue = Queue::new(load.payload);
    let (streams, received) = open(target, &queue, load.watchers).await?;
    let mut client = JobServiceClient::new(target.channel().await?);
    let (before, start) = (target.usage(), Instant::now());
    let mut jobs = 0;
    while start.elapsed() < load.duration {
        burst(&mut client, &queue, jobs).await?;
        jobs += BURST;
        let all = jobs * load.watchers as u64;
        while received.messages.load(Ordering::Relaxed) < all {
            if streams.iter().any(AbortOnDropHandle::is_finished) {
                return Err(Error::Unexpected("a watch ended".into()));
            }
            tokio::time::sleep(Duration::from_micros(200)).await;
        }
    }
    let (count, seconds) = (received.messages.load(Ordering::Relaxed), start.elapsed().as_secs_f64());
    let report = Report {
        name: format!("fan-out to {}", load.watchers),
        unit: "messages",
        count,
        seconds,
        per_second: Some(count as f64 / seconds),
        ..Default::default()
    };
    Ok(with_usage(report, target, before))
}

async fn burst(client: &mut JobServiceClient<Channel>, queue: &Queue, from: u64) -> Result<(), Error> {
    let requests = (from..from + BURST).map(|number| queue.echo(number)).collect();
    Ok(client.batch_submit(BatchSubmitRequest { requests }).await.map(drop)?)
}

pub async fn idle(target: &Target, load: &Load) -> Result<Report, Error> {
    let queue = Queue::new(load.payload);
    let before = target.usage();
    let start = Instant::now();
    let (streams, _) = open(target, &queue, load.idle_watchers).await?;
    let opened = start.elapsed().as_secs_f64();
    // Until what opening took has been given back.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let mut report = Report {
        name: format!("{} idle watchers", load.idle_watchers),
        unit: "watchers",
        count: streams.len() as u64,
        seconds: opened,
        ..Default::default()
    };
    if let (Some(before), Some(after)) = (before, target.usage()) {
        report.server_memory = Some(after.memory);
        let each = after.memory.saturating_sub(before.memory) as f64 / load.idle_watchers as f64;
        report.more.insert("bytes_each", each);
    }
    Ok(report)
}
