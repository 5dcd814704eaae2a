use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use url::Url;

use super::hop::Hop;
use crate::{
    config,
    handlers::{data::decode, span, typed::invalid},
    job::JobError,
    worker::Context,
};

/// What a job asks for.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Input {
    /// Absolute, http or https.
    url: String,
    /// GET, unless it says.
    method: Option<String>,
    #[serde(default)]
    headers: BTreeMap<String, Values>,
    /// A body, as it is written in the payload. At most one of the three bodies can be given.
    #[serde(default, deserialize_with = "present")]
    json: Option<Box<RawValue>>,
    text: Option<String>,
    data_base64: Option<String>,
    /// `"1.5s"`, or seconds as a number. By default `http.timeout` of the configuration.
    #[serde(default, deserialize_with = "span::optional")]
    timeout: Option<Duration>,
    /// What counts as success, by default `"2xx"`.
    expect_status: Option<Expected>,
    /// By default, and at most, `http.max_response_bytes` of the configuration.
    max_response_bytes: Option<usize>,
    /// Off by default. `true`, and the largest number, is `http.max_redirects` of the configuration.
    follow_redirects: Option<Redirects>,
}

/// `null` is a document, unlike an absent field.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Box<RawValue>>, D::Error> {
    Box::deserialize(deserializer).map(Some)
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "must be a string or a list of strings")]
enum Values {
    One(String),
    Many(Vec<String>),
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "must be true, false, or the number of redirects to follow")]
enum Redirects {
    Switch(bool),
    Most(usize),
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "must be a status, a class such as \"2xx\", or a list of them")]
enum Expected {
    One(Status),
    Many(Vec<Status>),
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "must be a status such as 200, or a class such as \"2xx\"")]
enum Status {
    Code(u16),
    Class(String),
}

/// An input that was found to be sound.
pub struct Request {
    pub first: Hop,
    /// From the connect to the end of the body, over all redirects; waits for a place are not counted.
    pub timeout: Duration,
    pub expect: Vec<Match>,
    /// Bytes of the response's body.
    pub max_bytes: usize,
    /// Redirects to follow.
    pub redirects: usize,
}

/// A status, or a class of them, that counts as success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Match {
    Code(u16),
    /// The first digit.
    Class(u16),
}

impl Match {
    pub fn accepts(self, status: StatusCode) -> bool {
        match self {
            Self::Code(code) => status.as_u16() == code,
            Self::Class(class) => status.as_u16() / 100 == class,
        }
    }
}

impl Input {
    /// Checks everything that can be checked before a connection is made.
    pub fn check(self, settings: &config::Http, context: &Context) -> Result<Request, JobError> {
        let url = url(&self.url).map_err(|why| invalid(format!("url: {why}")))?;
        let method = method(self.method.as_deref().unwrap_or("GET"))?;
        let mut headers = headers(self.headers)?;
        let body = body(self.json, self.text, self.data_base64)?;
        if let Some((_, sort)) = &body {
            headers.entry(header::CONTENT_TYPE).or_insert(HeaderValue::from_static(sort));
        }
        add_own(&mut headers, context)?;

        let timeout = self.timeout.unwrap_or(settings.timeout);
        if timeout.is_zero() {
            return Err(invalid("timeout: must be more than 0"));
        }
        let body = body.map_or_else(Bytes::new, |(bytes, _)| bytes);
        Ok(Request {
            first: Hop { method, url, headers, body },
            timeout,
            expect: expect(self.expect_status)?,
            max_bytes: within(
                "max_response_bytes",
                self.max_response_bytes.unwrap_or(settings.max_response_bytes),
                settings.max_response_bytes,
            )?,
            redirects: match self.follow_redirects {
                None | Some(Redirects::Switch(false)) => 0,
                Some(Redirects::Switch(true)) => settings.max_redirects,
                Some(Redirects::Most(most)) => within("follow_redirects", most, settings.max_redirects)?,
            },
        })
    }
}

fn within(field: &str, value: usize, limit: usize) -> Result<usize, JobError> {
    if value <= limit {
        return Ok(value);
    }
    Err(invalid(format!("{field}: {value} is more than the {limit} that the server's configuration allows")))
}

/// Reads a URL that a request can go to. The error says what is wrong with it.
pub fn url(text: &str) -> Result<Url, String> {
    let mut url = Url::parse(text).map_err(|error| format!("{text:?} is no absolute URL: {error}"))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(format!("the scheme {:?} is not supported: use https or http", url.scheme()));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("must not hold a user or a password: use headers.authorization".into());
    }
    url.set_fragment(None);
    Ok(url)
}

fn method(text: &str) -> Result<Method, JobError> {
    let method = Method::from_bytes(text.to_ascii_uppercase().as_bytes())
        .map_err(|_| invalid(format!("method: {text:?} is no method of HTTP")))?;
    // CONNECT would make a tunnel of the server, TRACE would show what is added to a request.
    if matches!(method, Method::CONNECT | Method::TRACE) {
        return Err(invalid(format!("method: {method} is not allowed")));
    }
    Ok(method)
}

/// Headers that belong to the connection or to the body, which are not the job's.
const REFUSED: [&str; 12] = [
    "connection",
    "content-length",
    "expect",
    "host",
    "http2-settings",
    "keep-alive",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

fn headers(input: BTreeMap<String, Values>) -> Result<HeaderMap, JobError> {
    let mut headers = HeaderMap::new();
    for (field, values) in input {
        let fail = |why: &str| invalid(format!("headers.{field}: {why}"));
        let name: HeaderName = field.parse().map_err(|_| fail("is no name of a header"))?;
        if REFUSED.contains(&name.as_str()) {
            return Err(fail("is set by the server, leave it out"));
        }
        let values = match values {
            Values::One(value) => vec![value],
            Values::Many(values) => values,
        };
        for value in values {
            let value =
                HeaderValue::from_str(&value).map_err(|_| fail("no control characters are allowed"))?;
            let added = headers.try_append(&name, value);
            added.map_err(|_| fail("these are too many headers"))?;
        }
    }
    Ok(headers)
}

fn body(
    json: Option<Box<RawValue>>,
    text: Option<String>,
    base64: Option<String>,
) -> Result<Option<(Bytes, &'static str)>, JobError> {
    match (json, text, base64) {
        (None, None, None) => Ok(None),
        (Some(json), None, None) => {
            Ok(Some((String::from(Box::<str>::from(json)).into(), "application/json")))
        }
        (None, Some(text), None) => Ok(Some((text.into(), "text/plain; charset=utf-8"))),
        (None, None, Some(base64)) => Ok(Some((decode("data_base64", &base64)?, "application/octet-stream"))),
        _ => Err(invalid("json, text, data_base64: give only one of them")),
    }
}

/// Adds what every request carries, unless the job has set it.
fn add_own(headers: &mut HeaderMap, context: &Context) -> Result<(), JobError> {
    let key = format!("{}-{}", context.job_id(), context.run());
    let trace = |name: &str| context.trace().get(name).cloned();
    for (name, value) in [
        ("user-agent", Some(concat!("jobwire/", env!("CARGO_PKG_VERSION")).to_owned())),
        ("idempotency-key", Some(key)),
        ("traceparent", trace("traceparent")),
        ("tracestate", trace("tracestate")),
    ] {
        let Some(value) = value else { continue };
        let value = HeaderValue::from_str(&value)
            .map_err(|_| invalid(format!("{name}: no control characters are allowed")))?;
        headers.entry(name).or_insert(value);
    }
    Ok(())
}

fn expect(expected: Option<Expected>) -> Result<Vec<Match>, JobError> {
    let statuses = match expected {
        None => return Ok(vec![Match::Class(2)]),
        Some(Expected::One(status)) => vec![status],
        Some(Expected::Many(statuses)) if statuses.is_empty() => {
            return Err(invalid("expect_status: is empty, name one status at least"));
        }
        Some(Expected::Many(statuses)) => statuses,
    };
    let read = |status| match status {
        Status::Code(code @ 100..=599) => Ok(Match::Code(code)),
        Status::Code(code) => Err(invalid(format!("expect_status: {code} is not within 100 to 599"))),
        Status::Class(class) => match class.as_bytes() {
            [digit @ b'1'..=b'5', b'x' | b'X', b'x' | b'X'] => Ok(Match::Class(u16::from(digit - b'0'))),
            _ => Err(invalid(format!("expect_status: {class:?} is no class such as \"2xx\""))),
        },
    };
    statuses.into_iter().map(read).collect()
}
