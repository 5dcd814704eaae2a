use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use serde_json::{Map, Value};

use super::typed::invalid;
use crate::job::JobError;

/// The bytes of at most one of two fields: `NAME` with text, `NAME_base64` with anything. None if both are absent.
pub fn bytes_of(name: &str, text: Option<String>, base64: Option<String>) -> Result<Option<Bytes>, JobError> {
    match (text, base64) {
        (None, None) => Ok(None),
        (Some(text), None) => Ok(Some(text.into())),
        (None, Some(base64)) => decode(&format!("{name}_base64"), &base64).map(Some),
        (Some(_), Some(_)) => Err(invalid(format!("{name}, {name}_base64: give only one of them"))),
    }
}

/// The bytes of a base64 field: the standard alphabet, padded.
pub fn decode(field: &str, base64: &str) -> Result<Bytes, JobError> {
    let bytes =
        BASE64_STANDARD.decode(base64).map_err(|error| invalid(format!("{field}: no base64: {error}")))?;
    Ok(bytes.into())
}

/// Adds bytes to an output: as `NAME` if they are UTF-8, else as `NAME_base64`. If they were cut off, half a
/// character at their end is dropped.
pub fn put(output: &mut Map<String, Value>, name: &str, bytes: &[u8], cut: bool) {
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => Some(text),
        Err(error) if cut && error.error_len().is_none() => {
            std::str::from_utf8(&bytes[..error.valid_up_to()]).ok()
        }
        Err(_) => None,
    };
    match text {
        Some(text) => output.insert(name.into(), text.into()),
        None => output.insert(format!("{name}_base64"), BASE64_STANDARD.encode(bytes).into()),
    };
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn one_field_at_most() {
        let of = |text: Option<&str>, base64: Option<&str>| {
            bytes_of("stdin", text.map(String::from), base64.map(String::from))
        };
        assert_eq!(of(None, None), Ok(None));
        assert_eq!(of(Some("ü"), None), Ok(Some("ü".into())));
        assert_eq!(of(None, Some("/wA=")), Ok(Some(Bytes::from_static(&[255, 0]))));
        assert!(of(Some(""), Some("")).unwrap_err().message.contains("only one"));
        assert!(of(None, Some("/wA")).unwrap_err().message.starts_with("stdin_base64:"));
    }

    #[test]
    fn bytes_come_out_as_text_if_they_are() {
        let put = |bytes: &[u8], cut| {
            let mut output = Map::new();
            put(&mut output, "x", bytes, cut);
            Value::Object(output)
        };
        assert_eq!(put("aü".as_bytes(), false), json!({ "x": "aü" }));
        assert_eq!(put(&"aü".as_bytes()[..2], true), json!({ "x": "a" }));
        assert_eq!(put(&"aü".as_bytes()[..2], false), json!({ "x_base64": "YcM=" }));
        assert_eq!(put(&[255, 97], true), json!({ "x_base64": "/2E=" }));
    }
}
