use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;

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

/// Bytes for a JSON document.
#[derive(Debug, PartialEq, Eq)]
pub enum Shown<'a> {
    Text(&'a str),
    Base64(String),
}

/// Shows bytes as text if they are UTF-8 without control characters, of which JSON makes six bytes each, but for those of
/// terminals. If they were cut off, half a character at their end is dropped.
pub fn show(bytes: &[u8], cut: bool) -> Shown<'_> {
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => Some(text),
        Err(error) if cut && error.error_len().is_none() => {
            std::str::from_utf8(&bytes[..error.valid_up_to()]).ok()
        }
        Err(_) => None,
    };
    let is_short = |byte: u8| byte >= b' ' || matches!(byte, b'\t' | b'\n' | b'\r' | b'\x1b');
    let text = text.filter(|text| text.bytes().all(is_short));
    text.map_or_else(|| Shown::Base64(BASE64_STANDARD.encode(bytes)), Shown::Text)
}

#[cfg(test)]
mod tests {
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
        let base64 = |text: &str| Shown::Base64(text.to_owned());
        assert_eq!(show("aü".as_bytes(), false), Shown::Text("aü"));
        assert_eq!(show(&"aü".as_bytes()[..2], true), Shown::Text("a"));
        assert_eq!(show(&"aü".as_bytes()[..2], false), base64("YcM="));
        assert_eq!(show(&[255, 97], true), base64("/2E="));
        assert_eq!(show(b"\ta\x1b[0m\r\n", false), Shown::Text("\ta\x1b[0m\r\n"));
        assert_eq!(show(b"a\0", false), base64("YQA="));
    }
}
