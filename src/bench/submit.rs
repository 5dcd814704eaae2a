//! Submit alone: jobs that nobody runs.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};

use super::{Error, Load, Report, Target, load, report::Latency, short, target::Usage, workload::Queue};
use crate::proto::StreamSubmitRequest;

/// Jobs of a stream that are on their way.
pub const IN_FLIGHT: usize = 4096;

pub async fn unary(target: &Target, load: &Load) -> Result<Report, Error> {
    let queue = Queue::new(load.payload);
    let channels = target.channels(load.connections).await?;
    let numbers = Arc::new(AtomicU64::new(0));
    let caller = |index: usize| {
        let (channel, queue, numbers) =
            (channels[index % channels.len()].clone(), queue.clone(), numbers.clone());
        move || {
            let request = queue.waiting(numbers.fetch_add(1, Ordering::Relaxed));
            let submitted = short::submit(channel.clone(), request);
            async move { submitted.await.map(drop) }
        }
    };
    let mut before = None;
    let tally = load::callers(load.callers, load.duration, caller, || before = target.usage()).await?;
    Ok(of_calls("submit", target, before, &tally))
}

/// The report of a closed loop of calls.
pub fn of_calls(name: &str, target: &Target, before: Option<Usage>, tally: &load::Tally) -> Report {
    let (count, seconds) = (tally.count, tally.elapsed.as_secs_f64());
    let report = Report {
        name: name.into(),
        unit: "calls",
        count,
        seconds,
        per_second: Some(count as f64 / seconds),
        latency: Latency::of(&tally.times),
        ..Default::default()
    };
    with_usage(report, target, before)
}

/// Adds what the server used since `before`.
pub fn with_usage(mut report: Report, target: &Target, before: Option<Usage>) -> Report {
    let after = target.usage();
    report.server_memory = after.map(|after| after.memory);
    if let (Some(before), Some(after)) = (before, after)
        && report.count > 0
    {
        report.server_cpu_micros = Some((after.cpu - before.cpu).as_secs_f64() * 1e6 / report.count as f64);
    }
    report
}

pub async fn stream(target: &Target, load: &Load) -> Result<Report, Error> {
    let queue = Queue::new(load.payload);
    let end = Instant::now() + load.duration;
    let before = target.usage();
    let start = Instant::now();
    let count = fill(target, &queue, move |_| Instant::now() < end).await?;
    let seconds = start.elapsed().as_secs_f64();
    let report = Report {
        name: "stream-submit".into(),
        unit: "jobs",
        count,
        seconds,
        per_second: Some(count as f64 / seconds),
        ..Default::default()
    };
    Ok(with_usage(report, target, before))
}

/// Submits waiting jobs in one stream while `go_on(number)`; answers how many were accepted.
pub async fn fill(
    target: &Target,
    queue: &Queue,
    go_on: impl Fn(u64) -> bool + Send + 'static,
) -> Result<u64, Error> {
    let (sender, requests) = tokio::sync::mpsc::channel(IN_FLIGHT);
    let jobs = queue.clone();
    tokio::spawn(async move {
        let mut number = 0;
        while go_on(number) {
            let request = Some(jobs.waiting(number));
            if sender.send(StreamSubmitRequest { sequence: number as i64, request }).await.is_err() {
                return;
            }
            number += 1;
        }
    });
    let mut verdicts = short::stream_submit(target.channel().await?, ReceiverStream::new(requests)).await?;
    let mut count = 0;
    while let Some(verdict) = verdicts.next().await {
        verdict?.accepted()?;
        count += 1;
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::bench::report::histogram;

    #[test]
    fn a_rate_is_of_calls_that_ended_in_time_and_the_slowest_may_be_another() {
        let mut times = histogram();
        [1000, 1000, 9_000_000].into_iter().for_each(|micros| times.saturating_record(micros));
        let tally = load::Tally { times, count: 2, elapsed: Duration::from_secs(4) };
        let report = of_calls("get", &Target::at(String::new()), None, &tally);
        assert_eq!((report.count, report.per_second), (2, Some(0.5)));
        assert!(report.latency.unwrap().max >= 9_000_000);
    }
}
