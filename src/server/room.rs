//! Memory for large messages: requests that are still coming in, and replies that were not taken yet.
//!
//! HTTP/2's windows bound what nobody here has read. What was read of a message is ours, and one peer has hundreds of
//! streams on each of hundreds of connections.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::{Frame, SizeHint};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, Sleep, sleep},
};
use tonic::{Response, Status, body::Body};

use super::{MAX_MESSAGE, status::status};
use crate::job::Error;

/// Bytes that one byte of gzip makes at most: two bits stand for a run of 258.
const INFLATION: usize = 1032;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Bytes of messages that are not counted: there is always room for those.
const SMALL: usize = 64 << 10;

/// What precedes a message: whether it is compressed, and its length.
const HEAD: usize = 5;

/// The room of a whole server: those who do not take their replies keep no request out.
#[derive(Clone, Debug)]
pub struct Room {
    requests: Arc<Semaphore>,
    replies: Arc<Semaphore>,
    limit: usize,
}

/// The part of the room that a reply takes, until it was sent.
#[derive(Clone)]
struct Taken(#[expect(dead_code, reason = "held, not read")] Arc<OwnedSemaphorePermit>);

impl Room {
    /// So many bytes for requests, and as many for replies.
    pub fn new(limit: usize) -> Self {
        let room = || Arc::new(Semaphore::new(limit));
        Self { requests: room(), replies: room(), limit }
    }

    fn take(&self, of: &Arc<Semaphore>, size: usize) -> Result<OwnedSemaphorePermit, Error> {
        let full =
            |_| Error::QueueFull { what: "the memory for large messages".into(), limit: self.limit as u64 };
        let size = u32::try_from(size).unwrap_or(u32::MAX);
        of.clone().try_acquire_many_owned(size).map_err(full)
    }

    /// A request whose large messages need room, and come to their end within `patience`. Of one with a `single`
    /// message, that and its end are awaited together.
    pub fn request<B>(&self, body: B, patience: Duration, single: bool) -> Request<B> {
        let (head, have, left) = ([0; HEAD], 0, 0);
        Request { body, room: self.clone(), patience, single, head, have, left, large: None }
    }

    /// A reply, if there is room for it.
    pub fn reply<T: prost::Message>(&self, reply: T) -> Result<Response<T>, Error> {
        let taken = self.for_reply(&reply)?;
        Ok(taking(reply, taken))
    }

    /// A reply to a call that has had its effect: without room it is told in short.
    pub fn reply_at_least<T: prost::Message>(
        &self,
        mut reply: T,
        shorten: impl FnOnce(&mut T),
    ) -> Response<T> {
        let taken = self.for_reply(&reply).unwrap_or_else(|_| {
            shorten(&mut reply);
            None
        });
        taking(reply, taken)
    }

    fn for_reply(&self, reply: &impl prost::Message) -> Result<Option<Taken>, Error> {
        let size = reply.encoded_len();
        if size < SMALL { Ok(None) } else { Ok(Some(Taken(Arc::new(self.take(&self.replies, size)?)))) }
    }

    /// Holds the room of a reply as long as its body is there.
    pub fn hold(mut response: http::Response<Body>) -> http::Response<Body> {
        match response.extensions_mut().remove::<Taken>() {
            None => response,
            Some(taken) => response.map(|body| {
                Body::new(body.map_frame(move |frame| {
                    let _held = &taken;
                    frame
                }))
            }),
        }
    }
}

fn taking<T>(reply: T, taken: Option<Taken>) -> Response<T> {
    let mut response = Response::new(reply);
    if let Some(taken) = taken {
        response.extensions_mut().insert(taken);
    }
    response
}

/// The body of a request, whose large messages take room.
pub struct Request<B> {
    body: B,
    room: Room,
    patience: Duration,
    single: bool,
    /// Of the next message, as far as it has come.
    head: [u8; HEAD],
    have: usize,
    /// Bytes of this message that are to come.
    left: usize,
    /// A large message that comes in.
    large: Option<Large>,
}

struct Large {
    /// For what has come of it.
    taken: OwnedSemaphorePermit,
    /// Bytes that it may yet become.
    rest: usize,
    /// Bytes that one byte of it may become.
    growth: usize,
    /// When all of it must have come.
    end: Pin<Box<Sleep>>,
    /// Since when nobody has asked for more of it: that is not the peer's time.
    unasked: Option<Instant>,
}

impl Large {
    fn asked(&mut self) {
        if let Some(since) = self.unasked.take() {
            let end = self.end.deadline() + since.elapsed();
            self.end.as_mut().reset(end);
        }
    }
}

impl<B> Request<B> {
    fn count(&mut self, mut data: &[u8]) -> Result<(), Error> {
        while !data.is_empty() {
            let part = data.len().min(if self.left > 0 { self.left } else { HEAD - self.have });
            if self.left > 0 {
                self.left -= part;
                if let Some(large) = &mut self.large {
                    let size = part.saturating_mul(large.growth).min(large.rest);
                    large.rest -= size;
                    large.taken.merge(self.room.take(&self.room.requests, size)?);
                }
            } else {
                self.head[self.have..self.have + part].copy_from_slice(&data[..part]);
                self.have += part;
                if self.have == HEAD {
                    self.begin()?;
                }
            }
            // The library keeps a single message until the request has ended.
            if self.left == 0 && !self.single {
                self.large = None;
            }
            data = &data[part..];
        }
        Ok(())
    }

    fn begin(&mut self) -> Result<(), Error> {
        let [compressed, length @ ..] = self.head;
        self.have = 0;
        self.left = u32::from_be_bytes(length) as usize;
        let growth = if compressed == 0 { 1 } else { INFLATION };
        let size = self.left.saturating_mul(growth).min(MAX_MESSAGE);
        // A larger one is refused by its length, before any of it is kept.
        if size >= SMALL && self.left <= MAX_MESSAGE {
            self.large = Some(Large {
                taken: self.room.take(&self.room.requests, 0)?,
                rest: size,
                growth,
                end: Box::pin(sleep(self.patience)),
                unasked: None,
            });
        }
        Ok(())
    }
}

impl<B> hyper::body::Body for Request<B>
where
    B: hyper::body::Body<Data = Bytes, Error: Into<BoxError>> + Unpin,
{
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if let Some(large) = &mut self.large {
            large.asked();
        }
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if polled.is_pending()
            && let Some(large) = &mut self.large
        {
            ready!(large.end.as_mut().poll(context));
            return Poll::Ready(Some(Err(status(Error::DeadlineExceeded))));
        }
        let Some(frame) = ready!(polled) else { return Poll::Ready(None) };
        let frame = frame.map_err(|error| Status::from_error(error.into()))?;
        if let Some(data) = frame.data_ref() {
            self.count(data).map_err(status)?;
        }
        if let Some(large) = &mut self.large {
            large.unasked = Some(Instant::now());
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures_util::{StreamExt as _, stream};
    use http_body_util::StreamBody;

    use super::*;

    fn message(size: usize) -> Vec<u8> {
        [&[0][..], &(size as u32).to_be_bytes(), &vec![7; size]].concat()
    }

    #[tokio::test]
    async fn only_what_has_come_of_a_large_message_takes_room() {
        let room = Room::new(MAX_MESSAGE);
        let free = || room.requests.available_permits();
        let bytes = [message(0), message(100), message(SMALL), message(MAX_MESSAGE), message(1)].concat();
        for part in [1, 3, 5, 1000, SMALL, usize::MAX] {
            let mut request = room.request((), Duration::from_secs(9), false);
            for piece in bytes.chunks(part) {
                request.count(piece).unwrap();
            }
            assert_eq!((request.have, request.left, free()), (0, 0, MAX_MESSAGE), "{part}");
        }
        let mut half = room.request((), Duration::from_secs(9), false);
        half.count(&message(SMALL)[..HEAD + 1000]).unwrap();
        assert_eq!(free(), MAX_MESSAGE - 1000);
        drop(half);
        assert_eq!(free(), MAX_MESSAGE);
        let mut single = room.request((), Duration::from_secs(9), true);
        single.count(&message(SMALL)).unwrap();
        assert_eq!(free(), MAX_MESSAGE - SMALL);
    }

    #[tokio::test]
    async fn a_compressed_message_counts_as_what_it_may_inflate_to() {
        let room = Room::new(MAX_MESSAGE);
        let free = || room.requests.available_permits();
        for (size, come, taken) in [
            (1000, 10, 10 * INFLATION),
            (100_000, 10, 10 * INFLATION),
            (100_000, 50_000, MAX_MESSAGE),
            (SMALL / INFLATION, 60, 0),
        ] {
            let mut bytes = message(size);
            bytes[0] = 1;
            let mut request = room.request((), Duration::from_secs(9), false);
            request.count(&bytes[..HEAD + come]).unwrap();
            assert_eq!(MAX_MESSAGE - free(), taken, "{size} {come}");
            request.count(&bytes[HEAD + come..]).unwrap();
            assert_eq!(free(), MAX_MESSAGE);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn only_the_peers_time_counts() {
        let patience = Duration::from_secs(10);
        let half = Frame::data(Bytes::from(message(SMALL)).slice(..100));
        let come = stream::iter([Ok::<_, Infallible>(half)]).chain(stream::pending());
        let mut request = Room::new(MAX_MESSAGE).request(StreamBody::new(come), patience, false);
        assert!(request.frame().await.unwrap().is_ok());
        // Nobody here has asked for more.
        tokio::time::sleep(5 * patience).await;
        assert!(tokio::time::timeout(patience / 2, request.frame()).await.is_err());
        let late = request.frame().await.unwrap().unwrap_err();
        assert_eq!(late.code(), tonic::Code::DeadlineExceeded);
    }

    #[tokio::test]
    async fn without_room_a_large_message_is_refused_and_a_small_one_is_not() {
        let room = Room::new(SMALL);
        let mut first = room.request((), Duration::from_secs(9), false);
        first.count(&message(SMALL)[..SMALL]).unwrap();
        let mut second = room.request((), Duration::from_secs(9), false);
        second.count(&message(SMALL - 1)).unwrap();
        assert!(matches!(second.count(&message(SMALL)), Err(Error::QueueFull { .. })));
    }
}
