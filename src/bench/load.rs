//! Closed loops of callers, and streams that are only counted.

use std::time::Duration;

use bytes::Bytes;
use hdrhistogram::Histogram;
use http::uri::PathAndQuery;
use prost::Message as _;
use tokio::{task::JoinSet, time::Instant};
use tonic::{Request, Streaming, client::Grpc, transport::Channel};

use super::{
    Error, raw,
    report::{histogram, record},
};
use crate::proto::WatchResultsRequest;

pub use super::target::{channel, listening, usage_of};

/// Before anything is counted.
pub const WARM_UP: Duration = Duration::from_secs(1);

/// What the callers did while it counted.
pub struct Tally {
    /// Time of each call that began then. Those that ended later are among them: they may be the slowest.
    pub times: Histogram<u64>,
    /// How many of them ended then.
    pub count: u64,
    /// For which calls were counted.
    pub elapsed: Duration,
}

/// Lets callers call one after another: `caller(i)` makes the `i`th, whose calls run until `duration` after warming up
/// is over. `counted` is run when the counting begins.
///
/// # Errors
/// The first call that fails ends it all.
pub async fn callers<C, F>(
    callers: usize,
    duration: Duration,
    caller: impl Fn(usize) -> C,
    counted: impl FnOnce(),
) -> Result<Tally, Error>
where
    C: FnMut() -> F + Send + 'static,
    F: Future<Output = Result<(), Error>> + Send,
{
    let begin = Instant::now() + WARM_UP;
    let end = begin + duration;
    let mut tasks = JoinSet::new();
    for index in 0..callers {
        let mut call = caller(index);
        tasks.spawn(async move {
            let (mut times, mut count) = (histogram(), 0);
            loop {
                let start = Instant::now();
                if start >= end {
                    return Ok::<_, Error>((times, count));
                }
                call().await?;
                if start >= begin {
                    let now = Instant::now();
                    record(&mut times, now - start);
                    count += u64::from(now <= end);
                }
            }
        });
    }
    tokio::time::sleep_until(begin).await;
    counted();
    let mut tally = Tally { times: histogram(), count: 0, elapsed: duration };
    while let Some(called) = tasks.join_next().await {
        let (times, count) = called.map_err(|panic| Error::Unexpected(panic.to_string()))??;
        tally.times.add(times).map_err(|error| Error::Unexpected(error.to_string()))?;
        tally.count += count;
    }
    Ok(tally)
}

/// Watches without decoding: the load is to stay smaller than what it measures.
///
/// # Errors
/// If the watch is refused.
pub async fn messages(channel: Channel, request: WatchResultsRequest) -> Result<Streaming<Bytes>, Error> {
    let mut client = Grpc::new(channel);
    client.ready().await?;
    let path = PathAndQuery::from_static("/jobwire.v1.JobService/WatchResults");
    let request = Request::new(request.encode_to_vec().into());
    Ok(client.server_streaming(request, path, raw::Codec).await?.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn calls_that_are_stuck_over_the_end_have_a_time_and_no_part_in_the_rate() {
        let caller = |_| {
            let mut calls = 0;
            move || {
                calls += 1;
                // It begins 1.8 s after the first one: the third that counts, and the last.
                let takes = Duration::from_millis(if calls == 7 { 10_000 } else { 300 });
                async move {
                    tokio::time::sleep(takes).await;
                    Ok(())
                }
            }
        };
        let tally = callers(2, Duration::from_secs(1), caller, || ()).await.unwrap();
        assert_eq!((tally.times.len(), tally.count), (6, 4));
        assert!(tally.times.max() >= 10_000_000, "{} µs", tally.times.max());
    }
}
