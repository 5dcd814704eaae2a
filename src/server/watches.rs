//! WatchResults. Many watchers are told the same outcomes, so a message is encoded once for all who want it alike, and
//! this method has a codec of its own, which takes messages that are encoded already.

use std::sync::Arc;

use bytes::{BufMut as _, Bytes};
use futures_util::{
    StreamExt as _,
    future::{BoxFuture, FutureExt as _},
    stream::{self, BoxStream},
};
use parking_lot::Mutex;
use prost::Message as _;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::{
    Request, Response, Status,
    codec::{BufferSettings, Codec, EncodeBuf, Encoder},
    server::ServerStreamingService,
};
use tonic_prost::ProstDecoder;

use super::{
    convert::{self, Format, format},
    deadline::Deadline,
    jobs::JobsApi,
    listener::Retire,
    status::status,
    tokens,
};
use crate::{
    engine::{Engine, Event, Message, Watch},
    job::Error,
    proto::{WatchResultsRequest, WatchResultsResponse},
    store::Position,
};

/// The method's name on the wire.
pub const PATH: &str = "/jobwire.v1.JobService/WatchResults";

/// Encoded outcomes that are kept, those of the newest positions.
const KEPT: usize = 1024;

/// Bytes of one that is kept.
const MAX_KEPT: usize = 16 << 10;

/// The method. Cheap to clone.
#[derive(Clone)]
pub struct Watches {
    api: JobsApi,
    encoded: Arc<Vec<Mutex<Option<Encoded>>>>,
}

/// A message with an outcome, and for whom it is right.
struct Encoded {
    position: Position,
    look: Look,
    message: Bytes,
}

/// How a watcher wants outcomes to look.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Look {
    format: Format,
    /// Bytes of an output that are sent along.
    max_output: usize,
}

impl Watches {
    pub fn new(api: JobsApi) -> Self {
        Self { api, encoded: Arc::new((0..KEPT).map(|_| Mutex::default()).collect()) }
    }

    /// A watch as a stream of encoded messages. It ends when the caller drops it.
    async fn watch(
        self,
        request: WatchResultsRequest,
        deadline: Option<Instant>,
        retire: CancellationToken,
    ) -> Result<BoxStream<'static, Result<Bytes, Status>>, Status> {
        let engine = self.api.engine()?.clone();
        let begun = begin(&engine, request, deadline, retire).await;
        let (watch, look) = begun.map_err(status)?;
        let messages = stream::unfold(Some(watch), |watch: Option<Watch>| async move {
            let mut watch = watch?;
            let next = watch.next().await?;
            // After an error there is nothing more.
            let rest = next.is_ok().then_some(watch);
            Some((next, rest))
        });
        let encoded = messages.map(move |message| Ok(self.encode(&engine, &message.map_err(status)?, look)));
        Ok(encoded.boxed())
    }

    fn encode(&self, engine: &Engine, message: &Message, look: Look) -> Bytes {
        match (message.cursor, &message.event) {
            (Some(position), Event::Finished(_)) => {
                let slot = &self.encoded[position.0.unsigned_abs() as usize % KEPT];
                if let Some(known) = &*slot.lock()
                    && (known.position, known.look) == (position, look)
                {
                    return known.message.clone();
                }
                let message = encode(engine, message, look);
                if message.len() <= MAX_KEPT {
                    *slot.lock() = Some(Encoded { position, look, message: message.clone() });
                }
                message
            }
            _ => encode(engine, message, look),
        }
    }
}

async fn begin(
    engine: &Engine,
    request: WatchResultsRequest,
    deadline: Option<Instant>,
    retire: CancellationToken,
) -> Result<(Watch, Look), Error> {
    let format = format("payload_format", request.payload_format, Format::Readable)?;
    let now = engine.clock().now();
    let request = convert::watch_request(request, engine.config(), engine.log_id(), now, (deadline, retire))?;
    let look = Look { format, max_output: request.max_inline_output };
    Ok((engine.watch(request).await?, look))
}

fn encode(engine: &Engine, Message { cursor, event, .. }: &Message, look: Look) -> Bytes {
    let event = convert::event(event, look.format, look.max_output, engine.clock().now());
    let cursor = cursor.map(|position| tokens::cursor(engine.log_id(), position)).unwrap_or_default();
    WatchResultsResponse { cursor, event: Some(event) }.encode_to_vec().into()
}

impl ServerStreamingService<WatchResultsRequest> for Watches {
    type Response = Bytes;
    type ResponseStream = BoxStream<'static, Result<Bytes, Status>>;
    type Future = BoxFuture<'static, Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: Request<WatchResultsRequest>) -> Self::Future {
        let (deadline, retire) = (Deadline::of(&request), Retire::of(&request));
        Box::pin(
            self.clone().watch(request.into_inner(), deadline, retire).map(|watch| watch.map(Response::new)),
        )
    }
}

/// Requests as usual, answers as they are.
#[derive(Clone, Copy, Default)]
pub struct EncodedAnswers;

impl Codec for EncodedAnswers {
    type Encode = Bytes;
    type Decode = WatchResultsRequest;
    type Encoder = Self;
    type Decoder = ProstDecoder<WatchResultsRequest>;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstDecoder::new(BufferSettings::default())
    }
}

impl Encoder for EncodedAnswers {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, message: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(message);
        Ok(())
    }
}
