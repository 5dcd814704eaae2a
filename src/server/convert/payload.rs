use bytes::Bytes;
use prost::Message as _;

use crate::{
    job::{Error, Payload},
    proto::{self, PayloadFormat, payload::Body},
    server::json,
};

/// Characters of a content type.
const MAX_CONTENT_TYPE: usize = 255;

/// Bytes of a document as a `Value` on the wire, which may be several times those of its text. A larger one goes as
/// text, so that an input and an output fit a message whatever they hold.
const MAX_VALUE: usize = 1 << 20;

/// How bodies travel in a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// `json` where nothing is lost by it, else `text`, else `data`.
    Readable,
    /// `text`, else `data`: the readable format that takes no more room than what is stored.
    Text,
    /// Always `data`.
    Raw,
}

/// The format that a request asks for in `field`; `unspecified` if it does not say.
pub fn format(field: &str, number: i32, unspecified: Format) -> Result<Format, Error> {
    match PayloadFormat::try_from(number) {
        Ok(PayloadFormat::Unspecified) => Ok(unspecified),
        Ok(PayloadFormat::Readable) => Ok(Format::Readable),
        Ok(PayloadFormat::Raw) => Ok(Format::Raw),
        Err(_) => Err(Error::invalid(field, format!("{number} is not a known value"))),
    }
}

/// A document that comes in, of at most `limit` bytes.
pub fn payload(field: &str, payload: proto::Payload, limit: usize) -> Result<Payload, Error> {
    let (default_type, body) = match payload.body {
        None if payload.content_type.is_empty() => return Ok(Payload::none()),
        None => (Payload::BYTES, Bytes::new()),
        Some(Body::Json(value)) => {
            let json = json::to_bytes(&value)
                .map_err(|why| Error::JsonUnsafe { field: format!("{field}.json"), why })?;
            (Payload::JSON, json.into())
        }
        Some(Body::Text(text)) => (Payload::TEXT, text.into()),
        // A part of the buffer that it was read into, all of which it would keep in memory for as long as the job is there.
        Some(Body::Data(data)) => (Payload::BYTES, Bytes::copy_from_slice(&data)),
    };
    let content_type = match payload.content_type.as_str() {
        "" => default_type,
        given => checked_type(field, given)?,
    };
    if body.len() > limit {
        return Err(Error::TooLarge { field: field.into(), limit: limit as u64, size: body.len() as u64 });
    }
    Ok(Payload::new(content_type, body))
}

fn checked_type<'a>(field: &str, given: &'a str) -> Result<&'a str, Error> {
    let visible = given.bytes().all(|b| b.is_ascii_graphic() || b == b' ');
    if !visible || given.len() > MAX_CONTENT_TYPE {
        let why = format!("must be visible ASCII, at most {MAX_CONTENT_TYPE} characters");
        return Err(Error::invalid(format!("{field}.content_type"), why));
    }
    Ok(given)
}

/// A document that goes out. `max_body`: a larger body is left out.
pub fn proto_payload(payload: &Payload, format: Format, max_body: usize) -> proto::Payload {
    let body = payload.body.as_ref().filter(|body| body.len() <= max_body);
    let arm = body.map(|body| match format {
        Format::Raw => Body::Data(body.clone()),
        Format::Text => text(body),
        Format::Readable => readable(&payload.content_type, body),
    });
    proto::Payload {
        omitted: arm.is_none(),
        body: arm,
        content_type: payload.content_type.clone(),
        size_bytes: i64::try_from(payload.size).unwrap_or(i64::MAX),
    }
}

fn readable(content_type: &str, body: &Bytes) -> Body {
    if is_json(content_type)
        && let Some(value) = json::from_bytes(body)
        && value.encoded_len() <= MAX_VALUE.max(body.len())
    {
        return Body::Json(value);
    }
    text(body)
}

fn text(body: &Bytes) -> Body {
    match std::str::from_utf8(body) {
        Ok(text) => Body::Text(text.to_owned()),
        Err(_) => Body::Data(body.clone()),
    }
}

/// `application/json`, and types with the suffix `+json` (RFC 6839), with or without parameters.
fn is_json(content_type: &str) -> bool {
    let essence = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence == Payload::JSON || essence.ends_with("+json")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(body: Body, content_type: &str) -> proto::Payload {
        let stored = payload(
            "payload",
            proto::Payload { body: Some(body), content_type: content_type.into(), ..Default::default() },
            100,
        );
        proto_payload(&stored.unwrap(), Format::Readable, 100)
    }

    #[test]
    fn text_that_is_json_comes_back_as_json_only_if_nothing_is_lost() {
        let safe = round(Body::Text(r#"{"a": 1}"#.into()), "application/json");
        assert!(matches!(safe.body, Some(Body::Json(_))), "{safe:?}");
        let large = round(Body::Text("9007199254740993".into()), "application/json");
        assert_eq!(large.body, Some(Body::Text("9007199254740993".into())));
        let plain = round(Body::Text("1".into()), "");
        assert_eq!((plain.body, plain.content_type.as_str()), (Some(Body::Text("1".into())), "text/plain"));
    }

    #[test]
    fn bytes_that_are_no_text_stay_bytes() {
        let data = round(Body::Data(vec![0xff].into()), "");
        assert_eq!(data.body, Some(Body::Data(vec![0xff].into())));
        assert_eq!(data.content_type, "application/octet-stream");
    }

    #[test]
    fn a_body_does_not_keep_the_message_that_it_came_in() {
        let message = Bytes::from(vec![0; 100_000]);
        let body = Some(Body::Data(message.slice(..50_000)));
        let stored = payload("p", proto::Payload { body, ..Default::default() }, 100_000).unwrap();
        assert!(message.is_unique());
        assert_eq!(stored.size, 50_000);
    }

    #[test]
    fn large_bodies_are_refused_or_left_out() {
        let large = proto::Payload { body: Some(Body::Text("x".repeat(101))), ..Default::default() };
        assert!(matches!(payload("p", large, 100), Err(Error::TooLarge { limit: 100, size: 101, .. })));
        let stored = Payload::new(Payload::TEXT, "x".repeat(101));
        let sent = proto_payload(&stored, Format::Readable, 100);
        assert_eq!((sent.omitted, sent.size_bytes, sent.body), (true, 101, None));
    }
}
