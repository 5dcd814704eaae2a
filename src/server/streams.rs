//! StreamSubmit.

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::{Arc, OnceLock},
};

use futures_util::{
    StreamExt as _,
    stream::{self, BoxStream},
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::{Instant, sleep_until},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use super::{
    convert::submission,
    jobs::only_in_submit,
    status::{of_library, rejection, status},
    tokens,
};
use crate::{
    engine::Engine,
    job::Error,
    proto::{self, Accepted, StreamSubmitRequest, StreamSubmitResponse, stream_submit_response::Verdict},
    store::{Submission, Submitted},
};

/// Bytes of items of one stream that wait for their commit, or whose verdicts nobody has taken.
const IN_FLIGHT: usize = 8 << 20;

/// What a small item takes of them, so that there are no more than 1,024.
const LEAST: usize = 8 << 10;

/// Items that are judged together, at most: those that have arrived together.
const TOGETHER: usize = 64;

/// Verdicts on items, with the part of their stream's room that they take until they are sent.
type Judged = (Vec<StreamSubmitResponse>, Vec<OwnedSemaphorePermit>);

/// Verdicts on a stream of submits. Reads on only while there is room, of its own and of `all` streams: a fast caller is
/// slowed down, not refused. Whatever ends it early, every item that was read gets its verdict first.
///
/// Items are read and judged by a task of its own: what waits for room that others need too must go on, also where nobody
/// takes the verdicts.
pub fn submits(
    engine: Engine,
    requests: Streaming<StreamSubmitRequest>,
    trace: BTreeMap<String, String>,
    all: Arc<Semaphore>,
    (deadline, retire): (Option<Instant>, CancellationToken),
) -> BoxStream<'static, Result<StreamSubmitResponse, Status>> {
    // No more than have room, so that sending never waits.
    let (judged, verdicts) = mpsc::channel::<Judged>(IN_FLIGHT / LEAST);
    // Why it ended. None: the caller had no more to send.
    let cut = Arc::new(OnceLock::new());
    let (broken, stopped, finished) = (cut.clone(), cut.clone(), cut.clone());
    let (stopping, gone) = (engine.clone(), judged.clone());
    let stop = async move {
        let why = tokio::select! {
            () = gone.closed() => return,
            () = stopping.drained() => Error::Draining,
            () = retire.cancelled() => Error::StreamRotated,
            () = at(deadline) => Error::DeadlineExceeded,
        };
        stopped.get_or_init(|| Some(status(why)));
    };
    let rooms = Rooms {
        own: Arc::new(Semaphore::new(IN_FLIGHT)),
        all,
        limit: engine.config().limits.submit_buffer_bytes,
    };
    let items =
        requests.take_until(stop).then(move |item| rooms.clone().hold(item)).scan((), move |(), item| {
            let end = |end| broken.get_or_init(|| Some(of_library(&end).unwrap_or(end))).is_some();
            std::future::ready(item.map_err(end).ok())
        });
    let hand_in = move |items| hand_in(engine.clone(), items, trace.clone());
    tokio::spawn(async move {
        // One after the other: what came first stands first in line.
        let handed_in = items.ready_chunks(TOGETHER).then(hand_in);
        let mut all = pin!(handed_in.buffer_unordered(IN_FLIGHT / LEAST));
        while let Some(verdicts) = all.next().await {
            // The caller may have gone.
            let _ = judged.send(verdicts).await;
        }
        finished.get_or_init(|| None);
    });
    let verdicts = ReceiverStream::new(verdicts).flat_map(|(verdicts, rooms)| {
        stream::iter(verdicts).map(move |verdict| {
            let _held = &rooms;
            Ok(verdict)
        })
    });
    let lost = || Some(status(Error::Internal("a stream of submits was not read to its end".into())));
    let end = stream::once(async move { cut.get().cloned().unwrap_or_else(lost).map(Err) });
    verdicts.chain(end.filter_map(std::future::ready)).boxed()
}

/// The room for items that wait for their commit.
#[derive(Clone)]
struct Rooms {
    /// Of one stream.
    own: Arc<Semaphore>,
    /// Of all streams together, so many bytes.
    all: Arc<Semaphore>,
    limit: usize,
}

/// An item with its part of the room, of its stream and of all.
type Item = (StreamSubmitRequest, OwnedSemaphorePermit, OwnedSemaphorePermit);

impl Rooms {
    async fn hold(self, item: Result<StreamSubmitRequest, Status>) -> Result<Item, Status> {
        let item = item?;
        let size = prost::Message::encoded_len(&item).clamp(LEAST, IN_FLIGHT);
        let closed = |_| status(Error::Draining);
        let own = self.own.acquire_many_owned(size as u32).await.map_err(closed)?;
        let all = self.all.acquire_many_owned(size.min(self.limit) as u32).await.map_err(closed)?;
        Ok((item, own, all))
    }
}

/// Hands in some items. Then come the verdicts on them, each by itself.
async fn hand_in(
    engine: Engine,
    items: Vec<Item>,
    trace: BTreeMap<String, String>,
) -> impl Future<Output = Judged> + Send {
    let panicked = |_| Error::Internal("a submit panicked".into());
    let mut verdicts = Vec::with_capacity(items.len());
    let (mut good, mut submissions) = (Vec::with_capacity(items.len()), Vec::with_capacity(items.len()));
    let (mut own, mut all) = (Vec::with_capacity(items.len()), Vec::with_capacity(items.len()));
    for (StreamSubmitRequest { sequence, request }, of_stream, of_all) in items {
        own.push(of_stream);
        all.push(of_all);
        let submission = catch_unwind(AssertUnwindSafe(|| stream_item(&engine, request, trace.clone())));
        match submission.map_err(panicked).flatten() {
            Ok(submission) => {
                good.push(sequence);
                submissions.push(submission);
            }
            Err(error) => verdicts.push(rejected(sequence, &error)),
        }
    }
    let answers = if good.is_empty() { None } else { Some(engine.submit_each(submissions).await) };
    async move {
        let answers = match answers {
            Some(Ok(answers)) => answers.await,
            Some(Err(error)) => Err(error),
            None => Ok(Vec::new()),
        };
        drop(all);
        match answers {
            Ok(answers) => {
                verdicts.extend(good.into_iter().zip(answers).map(|(sequence, answer)| match answer {
                    Ok(submitted) => accepted(sequence, &engine, submitted),
                    Err(error) => rejected(sequence, &error),
                }))
            }
            Err(error) => verdicts.extend(good.into_iter().map(|sequence| rejected(sequence, &error))),
        }
        (verdicts, own)
    }
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
