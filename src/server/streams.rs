//! StreamSubmit.

use std::{
    collections::BTreeMap,
    panic::AssertUnwindSafe,
    sync::{Arc, OnceLock},
};

use futures_util::{
    FutureExt as _, StreamExt as _,
    stream::{self, BoxStream},
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use super::{
    convert::submission,
    jobs::only_in_submit,
    status::{of_library, rejection, status},
    tokens,
};
use crate::{
    engine::{self, Engine, Pressure},
    job::Error,
    proto::{self, Accepted, StreamSubmitRequest, StreamSubmitResponse, stream_submit_response::Verdict},
    store::Submission,
};

/// Items of one stream that wait for their commit.
const IN_FLIGHT: usize = 1024;

/// Bytes of items of one stream that wait for their commit.
const IN_FLIGHT_BYTES: usize = 8 << 20;

/// Verdicts on a stream of submits. Reads on only while there is room: a fast caller is slowed down, not refused.
/// Whatever ends it early, every item that was read gets its verdict first.
pub fn submits(
    engine: Engine,
    requests: Streaming<StreamSubmitRequest>,
    trace: BTreeMap<String, String>,
    (deadline, retire): (Option<Instant>, CancellationToken),
) -> BoxStream<'static, Result<StreamSubmitResponse, Status>> {
    // Why it ended, unless the caller had no more to send.
    let cut = Arc::new(OnceLock::new());
    let (broken, stopped, stopping) = (cut.clone(), cut.clone(), engine.clone());
    let stop = async move {
        let why = tokio::select! {
            () = stopping.drained() => Error::Draining,
            () = retire.cancelled() => Error::StreamRotated,
            () = at(deadline) => Error::DeadlineExceeded,
        };
        stopped.get_or_init(|| status(why));
    };
    let room = Arc::new(Semaphore::new(IN_FLIGHT_BYTES));
    let items = requests
        .then(move |item| hold(room.clone(), item))
        .scan((), move |(), item| {
            std::future::ready(
                item.map_err(|end| broken.get_or_init(|| of_library(&end).unwrap_or(end)).code()).ok(),
            )
        })
        .take_until(stop);
    let verdicts = items
        .map(move |(item, permit)| {
            let (engine, trace) = (engine.clone(), trace.clone());
            async move {
                let sequence = item.sequence;
                let verdict = AssertUnwindSafe(judge(&engine, item, trace)).catch_unwind().await;
                drop(permit);
                let verdict = verdict.unwrap_or_else(|_| Err(Error::Internal("a submit panicked".into())));
                let verdict = match verdict {
                    Ok(accepted) => Verdict::Accepted(accepted),
                    Err(error) => Verdict::Rejected(rejection(&error)),
                };
                Ok(StreamSubmitResponse { sequence, verdict: Some(verdict) })
            }
        })
        .buffer_unordered(IN_FLIGHT);
    let end = stream::once(async move { cut.get().cloned().map(Err) }).filter_map(std::future::ready);
    verdicts.chain(end).boxed()
}

/// An item with its part of the room.
async fn hold(
    room: Arc<Semaphore>,
    item: Result<StreamSubmitRequest, Status>,
) -> Result<(StreamSubmitRequest, OwnedSemaphorePermit), Status> {
    let item = item?;
    let size = prost::Message::encoded_len(&item).clamp(1, IN_FLIGHT_BYTES);
    let permits = room.acquire_many_owned(size as u32).await;
    Ok((item, permits.map_err(|_| status(Error::Draining))?))
}

async fn judge(
    engine: &Engine,
    item: StreamSubmitRequest,
    trace: BTreeMap<String, String>,
) -> Result<Accepted, Error> {
    let request = item.request.ok_or_else(|| Error::invalid("request", "is required"))?;
    let item = stream_item(engine, request, trace).map_err(|error| error.within("request."))?;
    let group = engine.submit(vec![item], Pressure::Wait).await.map_err(|(_, error)| error)?;
    let submitted = engine::only(group)?;
    Ok(Accepted {
        job_id: submitted.job.id.to_string(),
        deduplicated: submitted.deduplicated,
        cursor: tokens::cursor(engine.log_id(), submitted.position),
    })
}

fn stream_item(
    engine: &Engine,
    request: proto::SubmitRequest,
    trace: BTreeMap<String, String>,
) -> Result<Submission, Error> {
    only_in_submit(&request)?;
    submission(request, &engine.config().limits, engine.fresh_id(), trace)
}

async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
