//! StreamSubmit.

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
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
    engine::{Engine, Pressure},
    job::Error,
    proto::{self, Accepted, StreamSubmitRequest, StreamSubmitResponse, stream_submit_response::Verdict},
    store::{Submission, Submitted},
};

/// Bytes of items of one stream that wait for their commit.
const IN_FLIGHT: usize = 8 << 20;

/// What a small item takes of them, so that there are no more than 1,024.
const LEAST: usize = 8 << 10;

/// Items that are judged together, at most: those that have arrived together.
const TOGETHER: usize = 64;

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
    let room = Arc::new(Semaphore::new(IN_FLIGHT));
    let items = requests
        .then(move |item| hold(room.clone(), item))
        .scan((), move |(), item| {
            std::future::ready(
                item.map_err(|end| broken.get_or_init(|| of_library(&end).unwrap_or(end)).code()).ok(),
            )
        })
        .take_until(stop);
    let verdicts = items
        .ready_chunks(TOGETHER)
        .map(move |items| judge(engine.clone(), items, trace.clone()))
        .buffer_unordered(IN_FLIGHT / LEAST)
        .flat_map(stream::iter);
    let end = stream::once(async move { cut.get().cloned().map(Err) }).filter_map(std::future::ready);
    verdicts.chain(end).boxed()
}

/// An item with its part of the room.
type Item = (StreamSubmitRequest, OwnedSemaphorePermit);

async fn hold(room: Arc<Semaphore>, item: Result<StreamSubmitRequest, Status>) -> Result<Item, Status> {
    let item = item?;
    let size = prost::Message::encoded_len(&item).clamp(LEAST, IN_FLIGHT);
    let permits = room.acquire_many_owned(size as u32).await;
    Ok((item, permits.map_err(|_| status(Error::Draining))?))
}

/// The verdicts on some items, each by itself. They hold their room until then.
async fn judge(
    engine: Engine,
    items: Vec<Item>,
    trace: BTreeMap<String, String>,
) -> Vec<Result<StreamSubmitResponse, Status>> {
    let panicked = |_| Error::Internal("a submit panicked".into());
    let mut verdicts = Vec::with_capacity(items.len());
    let (mut good, mut submissions) = (Vec::with_capacity(items.len()), Vec::with_capacity(items.len()));
    let mut rooms = Vec::with_capacity(items.len());
    for (StreamSubmitRequest { sequence, request }, room) in items {
        rooms.push(room);
        let submission = catch_unwind(AssertUnwindSafe(|| stream_item(&engine, request, trace.clone())));
        match submission.map_err(panicked).flatten() {
            Ok(submission) => {
                good.push(sequence);
                submissions.push(submission);
            }
            Err(error) => verdicts.push(rejected(sequence, &error)),
        }
    }
    let submitted = AssertUnwindSafe(engine.submit_each(submissions, Pressure::Wait)).catch_unwind().await;
    match submitted.map_err(panicked).flatten() {
        Ok(answers) => {
            verdicts.extend(good.into_iter().zip(answers).map(|(sequence, answer)| match answer {
                Ok(submitted) => accepted(sequence, &engine, submitted),
                Err(error) => rejected(sequence, &error),
            }))
        }
        Err(error) => verdicts.extend(good.into_iter().map(|sequence| rejected(sequence, &error))),
    }
    verdicts.into_iter().map(Ok).collect()
}

fn accepted(sequence: i64, engine: &Engine, submitted: Submitted) -> StreamSubmitResponse {
    let accepted = Accepted {
        job_id: submitted.job.id.to_string(),
        deduplicated: submitted.deduplicated,
        cursor: tokens::cursor(engine.log_id(), submitted.position),
    };
    StreamSubmitResponse { sequence, verdict: Some(Verdict::Accepted(accepted)) }
}

fn rejected(sequence: i64, error: &Error) -> StreamSubmitResponse {
    StreamSubmitResponse { sequence, verdict: Some(Verdict::Rejected(rejection(error))) }
}

fn stream_item(
    engine: &Engine,
    request: Option<proto::SubmitRequest>,
    trace: BTreeMap<String, String>,
) -> Result<Submission, Error> {
    let request = request.ok_or_else(|| Error::invalid("request", "is required"))?;
    only_in_submit(&request)
        .and_then(|()| submission(request, &engine.config().limits, engine.fresh_id(), trace))
        .map_err(|error| error.within("request."))
}

async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
