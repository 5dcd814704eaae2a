//! Which error a request that went wrong becomes.

use std::{
    error::Error,
    fmt, io,
    time::{Duration, SystemTime},
};

use http::{HeaderMap, StatusCode, header};
use hyper_util::client::legacy;
use serde_json::Value;
use url::Url;

use crate::job::JobError;

/// The longest wait that a Retry-After can ask for.
const MAX_DELAY: Duration = Duration::from_secs(24 * 3600);

/// Why there is no connection, as far as it was not for the network.
#[derive(Debug)]
pub enum Refused {
    /// The address is not one that may be called.
    Blocked(String),
    /// The name has no address.
    Dns(String),
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Blocked(why) | Self::Dns(why)) = self;
        f.write_str(why)
    }
}

impl Error for Refused {}

/// No response came.
pub fn request(url: &Url, error: &legacy::Error) -> JobError {
    if let Some(refused) = find::<Refused>(error) {
        return match refused {
            Refused::Blocked(why) => JobError::permanent("http.blocked", why),
            Refused::Dns(why) => JobError::retryable("http.dns", why),
        };
    }
    let place = place(url);
    if let Some(error) = find::<rustls::Error>(error) {
        let message = format!("{place} and this server agree on no TLS connection: {error}");
        return JobError::permanent("http.tls", message);
    }
    if error.is_connect() {
        return JobError::retryable(
            "http.connect",
            format!("{place} cannot be connected to: {}", deepest(error)),
        );
    }
    protocol(url, error)
}

/// The response broke off, or is not one of HTTP.
pub fn protocol(url: &Url, error: &(dyn Error + 'static)) -> JobError {
    let message = format!("{} did not answer as HTTP asks: {}", place(url), deepest(error));
    JobError::retryable("http.protocol", message)
}

/// Time is up.
pub fn timeout(url: &Url, timeout: Duration) -> JobError {
    let message =
        format!("{} gave no complete answer within {timeout:?}: try later, or raise timeout", place(url));
    JobError::retryable("http.timeout", message)
}

/// A redirect that cannot be followed.
pub fn redirect(from: &Url, why: &str) -> JobError {
    JobError::permanent("http.redirects", format!("{} redirects, but {why}", place(from)))
}

/// The body of the response is beyond the limit.
pub fn too_large(url: &Url, limit: usize) -> JobError {
    let message = format!(
        "{} answers with more than {limit} bytes: raise max_response_bytes, or http.max_response_bytes in the server's configuration",
        place(url)
    );
    JobError::permanent("http.too_large", message)
}

/// A status that was not expected.
pub fn status(url: &Url, status: StatusCode, headers: &HeaderMap, details: &Value) -> JobError {
    let place = place(url);
    let code = format!("http.status.{}", status.as_u16());
    let retryable = status.is_server_error() || matches!(status.as_u16(), 408 | 425 | 429);
    let error = if retryable {
        JobError::retryable(&code, format!("{place} answered {status}"))
    } else if status.is_redirection() {
        JobError::permanent(
            &code,
            format!("{place} answered {status}: set follow_redirects, or expect_status"),
        )
    } else {
        JobError::permanent(&code, format!("{place} answered {status}"))
    };
    let error = error.with_details(details);
    match retry_after(headers, SystemTime::now()) {
        Some(delay) if matches!(status.as_u16(), 429 | 503) => error.retry_after(delay),
        _ => error,
    }
}

/// What a Retry-After asks for: seconds, or a date.
pub fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    let delay = match text.bytes().all(|byte| byte.is_ascii_digit()) {
        // More digits than fit are a long time.
        true if !text.is_empty() => Duration::from_secs(text.parse().unwrap_or(u64::MAX)),
        _ => httpdate::parse_http_date(text).ok()?.duration_since(now).unwrap_or_default(),
    };
    Some(delay.min(MAX_DELAY))
}

/// Scheme, host and port: a path or a query may hold a secret.
fn place(url: &Url) -> String {
    url.origin().ascii_serialization()
}

/// The error of a type in a chain of causes, also inside of I/O errors, which hide what they hold from the chain.
fn find<'a, T: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a T> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        let held = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        next = held.map(|held| held as &(dyn Error + 'static)).or_else(|| error.source());
    }
    None
}

/// The last cause, which says most.
fn deepest<'a>(mut error: &'a (dyn Error + 'static)) -> &'a (dyn Error + 'static) {
    while let Some(cause) = error.source() {
        error = cause;
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        let delay = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::RETRY_AFTER, text.parse().unwrap());
            retry_after(&headers, now).map(|delay| delay.as_secs())
        };
        assert_eq!(delay("0"), Some(0));
        assert_eq!(delay(" 120 "), Some(120));
        assert_eq!(delay("Sun, 06 Nov 1994 08:50:37 GMT"), Some(60));
        assert_eq!(delay("Sunday, 06-Nov-94 08:50:37 GMT"), Some(60));
        assert_eq!(delay("Sun Nov  6 08:50:37 1994"), Some(60));
        assert_eq!(delay("Sun, 06 Nov 1994 08:00:00 GMT"), Some(0));
        assert_eq!(delay("Sat, 06 Nov 2094 08:00:00 GMT"), Some(24 * 3600));
        assert_eq!(delay("99999999999999999999999"), Some(24 * 3600));
        for bad in ["", "-5", "soon", "1.5", "+3"] {
            assert_eq!(delay(bad), None, "{bad:?}");
        }
        assert_eq!(retry_after(&HeaderMap::new(), now), None);
    }
}
