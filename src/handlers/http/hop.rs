use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode, Uri, header};
use http_body_util::Full;
use url::Url;

use super::{failure, input};
use crate::job::JobError;

/// One request on the way to the final response.
#[derive(Clone, Debug)]
pub struct Hop {
    pub method: Method,
    pub url: Url,
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// Headers that say who is asking: only for the origin that the job has named.
const CREDENTIALS: [header::HeaderName; 2] = [header::AUTHORIZATION, header::COOKIE];

/// Headers that describe a body.
const OF_BODY: [header::HeaderName; 4] =
    [header::CONTENT_TYPE, header::CONTENT_ENCODING, header::CONTENT_LANGUAGE, header::CONTENT_LOCATION];

impl Hop {
    /// The request as it is sent.
    pub fn request(&self) -> Result<http::Request<Full<Bytes>>, JobError> {
        let uri: Uri = self.url.as_str().parse().map_err(|error| {
            JobError::permanent("payload.invalid", format!("url: {} cannot be requested: {error}", self.url))
        })?;
        let mut request = http::Request::new(Full::new(self.body.clone()));
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = uri;
        *request.headers_mut() = self.headers.clone();
        Ok(request)
    }

    /// Where a response sends this request next, if it does.
    pub fn next(&self, status: StatusCode, headers: &HeaderMap) -> Option<Result<Self, JobError>> {
        let location = match status.as_u16() {
            301 | 302 | 303 | 307 | 308 => headers.get(header::LOCATION)?,
            _ => return None,
        };
        let read = || {
            let location = location.to_str().map_err(|_| "the location is no text".to_owned())?;
            let url = self.url.join(location).map_err(|error| format!("{location:?} is no URL: {error}"))?;
            input::url(url.as_str())
        };
        Some(read().map(|url| self.follow(status, url)).map_err(|why| failure::redirect(&self.url, &why)))
    }

    fn follow(&self, status: StatusCode, url: Url) -> Self {
        let mut next = Self { url, ..self.clone() };
        let becomes_get = match status.as_u16() {
            303 => self.method != Method::HEAD,
            301 | 302 => self.method == Method::POST,
            _ => false,
        };
        if becomes_get {
            next.method = Method::GET;
            next.body = Bytes::new();
            OF_BODY.iter().for_each(|name| drop(next.headers.remove(name)));
        }
        if next.url.origin() != self.url.origin() {
            CREDENTIALS.iter().for_each(|name| drop(next.headers.remove(name)));
        }
        next
    }
}
