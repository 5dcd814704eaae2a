//! Closed loops of callers, and streams that are only counted.

use std::time::{Duration, Instant};

use bytes::Bytes;
use hdrhistogram::Histogram;
use http::uri::PathAndQuery;
use prost::Message as _;
use tokio::task::JoinSet;
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
    /// Time of each call.
    pub times: Histogram<u64>,
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
            let mut times = histogram();
            loop {
                let start = Instant::now();
                if start >= end {
                    return Ok::<_, Error>(times);
                }
                call().await?;
                let now = Instant::now();
                if start >= begin && now <= end {
                    record(&mut times, now - start);
                }
            }
        });
    }
    tokio::time::sleep_until(begin.into()).await;
    counted();
    let mut all = histogram();
    while let Some(times) = tasks.join_next().await {
        let times = times.map_err(|panic| Error::Unexpected(panic.to_string()))??;
        all.add(times).map_err(|error| Error::Unexpected(error.to_string()))?;
    }
    Ok(Tally { times: all, elapsed: duration })
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
