use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};
use serde::Serialize;
use serde_json::{Value, json, value::RawValue};
use url::Url;

use crate::handlers::data::{Shown, show};

/// Bytes of headers that a failure keeps.
const DETAILS_HEADERS_MAX: usize = 4 << 10;

/// What a job gets.
#[derive(Debug, Serialize)]
pub struct Output {
    pub status: u16,
    /// By lower-case name.
    pub headers: BTreeMap<String, Values>,
    /// None if there is no body.
    #[serde(flatten)]
    pub body: Option<Body>,
    /// Where the response came from, after redirects.
    pub url: String,
    pub elapsed_ms: u64,
}

/// The value of a header, or all of them if it is repeated.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum Values {
    One(String),
    Many(Vec<String>),
}

/// A body: JSON that is declared as such, exactly as it came; other text; anything else.
#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Body {
    Json(Box<RawValue>),
    Text(String),
    DataBase64(String),
}

impl Output {
    pub fn new(status: StatusCode, headers: &HeaderMap, body: &Bytes, url: Url, elapsed: Duration) -> Self {
        Self {
            status: status.as_u16(),
            headers: values(headers),
            body: self::body(headers, body),
            url: url.into(),
            elapsed_ms: elapsed.as_millis() as u64,
        }
    }
}

fn values(headers: &HeaderMap) -> BTreeMap<String, Values> {
    let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let all = |name| {
        let mut values: Vec<_> = headers.get_all(name).iter().map(text).collect();
        if values.len() == 1 { Values::One(values.remove(0)) } else { Values::Many(values) }
    };
    headers.keys().map(|name| (name.as_str().to_owned(), all(name))).collect()
}

fn body(headers: &HeaderMap, bytes: &Bytes) -> Option<Body> {
    if bytes.is_empty() {
        return None;
    }
    if is_json(headers)
        && let Ok(json) = serde_json::from_slice(bytes)
    {
        return Some(Body::Json(json));
    }
    Some(match show(bytes, false) {
        Shown::Text(text) => Body::Text(text.to_owned()),
        Shown::Base64(base64) => Body::DataBase64(base64),
    })
}

fn is_json(headers: &HeaderMap) -> bool {
    let sort = headers.get(header::CONTENT_TYPE).and_then(|sort| sort.to_str().ok()).unwrap_or_default();
    let essence = sort.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence == "application/json" || essence.ends_with("+json")
}

/// What a failure tells of its response: the status, headers, and `start`, the beginning of the body.
pub fn details(status: StatusCode, headers: &HeaderMap, start: &[u8], cut: bool) -> Value {
    let mut kept = HeaderMap::new();
    let mut room = DETAILS_HEADERS_MAX;
    for (name, value) in headers {
        let size = name.as_str().len() + value.len();
        if size <= room {
            room -= size;
            kept.append(name, value.clone());
        }
    }
    let mut details = json!({ "status": status.as_u16(), "headers": values(&kept), "body_truncated": cut });
    let (field, start) = match show(start, cut) {
        Shown::Text(text) => ("text", text.to_owned()),
        Shown::Base64(base64) => ("data_base64", base64),
    };
    details[field] = start.into();
    details
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output(content_type: &str, body: &'static [u8]) -> Value {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, content_type.parse().unwrap());
        headers.append("set-cookie", "a=1".parse().unwrap());
        headers.append("set-cookie", "b=2".parse().unwrap());
        let url = Url::parse("http://host/").unwrap();
        let output = Output::new(StatusCode::OK, &headers, &body.into(), url, Duration::from_millis(7));
        serde_json::to_value(output).unwrap()
    }

    #[test]
    fn bodies_come_as_what_they_are() {
        assert_eq!(output("application/json", b"{\"a\":1}")["json"], json!({ "a": 1 }));
        assert_eq!(output("application/problem+JSON; charset=utf-8", b"null")["json"], Value::Null);
        assert_eq!(output("application/json", b"{oops")["text"], "{oops");
        assert_eq!(output("text/html", b"1")["text"], "1");
        assert_eq!(output("text/plain", b"\xff")["data_base64"], "/w==");
        assert_eq!(output("text/plain", b"a\0")["data_base64"], "YQA=");
        let empty = output("application/json", b"");
        let fields: Vec<_> = empty.as_object().unwrap().keys().collect();
        assert_eq!(fields, ["elapsed_ms", "headers", "status", "url"]);
    }

    #[test]
    fn json_keeps_its_digits() {
        let url = Url::parse("http://host/").unwrap();
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, "application/json".parse().unwrap());
        let body = Bytes::from_static(b"{\"n\": 123456789012345678901234567890}");
        let output = Output::new(StatusCode::OK, &headers, &body, url, Duration::ZERO);
        let text = serde_json::to_string(&output).unwrap();
        assert!(text.contains("\"json\":{\"n\": 123456789012345678901234567890}"), "{text}");
    }

    #[test]
    fn repeated_headers_are_lists() {
        let headers = &output("text/plain", b"")["headers"];
        assert_eq!(headers["set-cookie"], json!(["a=1", "b=2"]));
        assert_eq!(headers["content-type"], "text/plain");
    }

    #[test]
    fn details_are_bounded() {
        let mut headers = HeaderMap::new();
        for i in 0..100 {
            headers.append(
                http::HeaderName::try_from(format!("x-{i}")).unwrap(),
                "y".repeat(1000).parse().unwrap(),
            );
        }
        let details = details(StatusCode::BAD_GATEWAY, &headers, &[b'x'; 4096], true);
        assert!(details.to_string().len() < 10_000);
        assert_eq!((&details["status"], &details["body_truncated"]), (&json!(502), &json!(true)));
    }
}
