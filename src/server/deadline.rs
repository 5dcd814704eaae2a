//! The layer around every call: its deadline, a net for panics, and the library's own refusals in the contract's terms.
//!
//! The library's own timeout answers CANCELLED and ends at the response headers, so `grpc-timeout` is read here: it
//! bounds unary calls, and goes along with the request for those that wait or stream.

use std::{convert::Infallible, panic::AssertUnwindSafe, time::Duration};

use futures_util::FutureExt as _;
use http::{HeaderMap, Request, Response, StatusCode, header::CONTENT_TYPE};
use tokio::time::{Instant, timeout_at};
use tonic::{Status, body::Body};

use super::{
    room::{self, Room},
    status::{of_library, status},
};
use crate::job::Error;

/// When the caller stops waiting.
#[derive(Clone, Copy, Debug)]
pub struct Deadline(pub Instant);

impl Deadline {
    /// The deadline of a request, if it has one.
    pub fn of<T>(request: &tonic::Request<T>) -> Option<Instant> {
        request.extensions().get::<Self>().map(|deadline| deadline.0)
    }
}

/// The calls whose requests are more than one message, and whose messages may be large.
const STREAMS: [&str; 2] = ["/jobwire.v1.JobService/StreamSubmit", "/jobwire.v1.WorkerService/Work"];

/// Runs a call within its deadline, and never longer than `cap` until its headers are there.
pub async fn enforce<B, F: Future<Output = Result<Response<Body>, Infallible>>>(
    cap: Duration,
    room: &Room,
    mut request: Request<B>,
    call: impl FnOnce(Request<room::Request<B>>) -> F,
) -> Response<Body> {
    if !is_grpc(request.headers()) {
        let mut refusal = Response::new(Body::empty());
        *refusal.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
        return refusal;
    }
    let now = Instant::now();
    let asked = request.headers().get("grpc-timeout").and_then(|value| parse(value.as_bytes()));
    let deadline = asked.and_then(|timeout| now.checked_add(timeout));
    if let Some(deadline) = deadline {
        request.extensions_mut().insert(Deadline(deadline));
    }
    let single = !STREAMS.contains(&request.uri().path());
    let request = request.map(|body| room.request(body, cap, single));
    let end = deadline.map_or(now + cap, |deadline| deadline.min(now + cap));
    // Timers are no finer than a millisecond: a call may be done before they fire.
    if end <= Instant::now() {
        return failure(Error::DeadlineExceeded);
    }
    // A call that panics before its first await must be caught too.
    let call = AssertUnwindSafe(async move { call(request).await }).catch_unwind();
    match timeout_at(end, call).await {
        Ok(Ok(Ok(response))) => Room::hold(explained(response)),
        Ok(Err(_)) => failure(Error::Internal("a call panicked".into())),
        Err(_) => failure(Error::DeadlineExceeded),
    }
}

/// The protocol asks for it, and forms of web pages cannot say it.
fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

fn explained(mut response: Response<Body>) -> Response<Body> {
    let headers = response.headers_mut();
    if headers.contains_key("grpc-status")
        && !headers.contains_key("grpc-status-details-bin")
        && let Some(told) = Status::from_header_map(headers).as_ref().and_then(of_library)
    {
        // Fails only for a message that is no header, and these are escaped.
        let _ = told.add_header(headers);
    }
    response
}

fn failure(error: Error) -> Response<Body> {
    status(error).into_http()
}

/// `grpc-timeout`: up to 8 digits and a unit (gRPC over HTTP/2, "Requests").
pub(super) fn parse(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if !(1..=8).contains(&digits.len()) || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    Some(match unit {
        b'H' => Duration::from_secs(number * 3600),
        b'M' => Duration::from_secs(number * 60),
        b'S' => Duration::from_secs(number),
        b'm' => Duration::from_millis(number),
        b'u' => Duration::from_micros(number),
        b'n' => Duration::from_nanos(number),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_have_a_unit() {
        assert_eq!(parse(b"5S"), Some(Duration::from_secs(5)));
        assert_eq!(parse(b"99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        assert_eq!(parse(b"20m"), Some(Duration::from_millis(20)));
        for bad in [&b""[..], b"S", b"5", b"-5S", b"+5S", b"999999999S", b"5X", b"\xff\xffS"] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
    }
}
