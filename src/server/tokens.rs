//! The opaque texts that callers carry: cursors and page tokens. Positions, not rights; each with a version, bounded,
//! and parsed strictly.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};

use ring::hmac;

use crate::{
    engine::Start,
    job::Error,
    store::{LeaseId, LogId, Position},
};

const CURSOR: &str = "c1.";
const PAGE_TOKEN: &str = "p1.";
const LEASE: &str = "l1.";

/// Bytes of a lease's signature.
const SIGNATURE: usize = 8;

/// The text of a place in the feed.
pub fn cursor(log: LogId, position: Position) -> String {
    encode(CURSOR, log.0, position.0)
}

/// Where a watch with this cursor begins.
///
/// # Errors
/// [`Error::BadCursor`] for anything that is not one of ours.
pub fn start_after(field: &str, text: &str, log: LogId) -> Result<Start, Error> {
    let (found, position) = decode(CURSOR, text).ok_or_else(|| Error::BadCursor { field: field.into() })?;
    Ok(if LogId(found) == log { Start::After(Position(position)) } else { Start::OtherLog })
}

/// The text of where the next page begins. `query` is a hash of what is listed.
pub fn page_token(query: u32, after: i64) -> String {
    encode(PAGE_TOKEN, query.into(), after)
}

/// Where a page begins.
///
/// # Errors
/// [`Error::BadPageToken`] for anything that is not a token of the same list.
pub fn page_start(text: &str, query: u32) -> Result<Option<i64>, Error> {
    if text.is_empty() {
        return Ok(None);
    }
    let (_, after) = decode(PAGE_TOKEN, text)
        .filter(|(found, _)| *found == u64::from(query))
        .ok_or(Error::BadPageToken)?;
    Ok(Some(after))
}

/// Makes and reads the texts of leases. Unlike the others they are rights: signed, so that nobody can make one up.
#[derive(Clone, Debug)]
pub struct LeaseKey(hmac::Key);

impl LeaseKey {
    pub fn new(key: &[u8; 32]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, key))
    }

    /// The text of a lease.
    pub fn text(&self, lease: LeaseId) -> String {
        let mut bytes = [0; 16 + SIGNATURE];
        bytes[..8].copy_from_slice(&lease.job.to_be_bytes());
        bytes[8..16].copy_from_slice(&lease.fence.to_be_bytes());
        let signature = self.signature(&bytes[..16]);
        bytes[16..].copy_from_slice(&signature);
        format!("{LEASE}{}", URL_SAFE_NO_PAD.encode(bytes))
    }

    /// The lease with this text; None if it is not one of ours.
    pub fn lease(&self, text: &str) -> Option<LeaseId> {
        let bytes: [u8; 16 + SIGNATURE] =
            URL_SAFE_NO_PAD.decode(text.strip_prefix(LEASE)?).ok()?.try_into().ok()?;
        let (body, signature) = bytes.split_at(16);
        // In the same time wherever they differ: or a signature could be found byte by byte.
        let difference = self.signature(body).iter().zip(signature).fold(0, |sum, (a, b)| sum | (a ^ b));
        let number = |bytes: &[u8]| bytes.try_into().ok().map(i64::from_be_bytes);
        (difference == 0).then_some(LeaseId { job: number(&body[..8])?, fence: number(&body[8..])? })
    }

    fn signature(&self, body: &[u8]) -> [u8; SIGNATURE] {
        let tag = hmac::sign(&self.0, body);
        std::array::from_fn(|at| tag.as_ref()[at])
    }
}

fn encode(version: &str, owner: u64, place: i64) -> String {
    let mut bytes = [0; 20];
    bytes[..8].copy_from_slice(&owner.to_be_bytes());
    bytes[8..16].copy_from_slice(&place.to_be_bytes());
    let sum = checksum(version, &bytes[..16]);
    bytes[16..].copy_from_slice(&sum.to_be_bytes());
    let mut text = String::with_capacity(version.len() + 27);
    text.push_str(version);
    URL_SAFE_NO_PAD.encode_string(bytes, &mut text);
    text
}

fn decode(version: &str, text: &str) -> Option<(u64, i64)> {
    let bytes: [u8; 20] = URL_SAFE_NO_PAD.decode(text.strip_prefix(version)?).ok()?.try_into().ok()?;
    let (body, sum) = bytes.split_at(16);
    if sum != checksum(version, body).to_be_bytes() {
        return None;
    }
    let owner = u64::from_be_bytes(body[..8].try_into().ok()?);
    let place = i64::from_be_bytes(body[8..].try_into().ok()?);
    (place >= 0).then_some((owner, place))
}

/// Finds typing errors and texts cut short; not a secret.
fn checksum(version: &str, body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(version.as_bytes());
    hasher.update(body);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn cursors_go_both_ways(log: u64, position in 0..i64::MAX) {
            let text = cursor(LogId(log), Position(position));
            prop_assert!(text.len() <= 128);
            prop_assert_eq!(start_after("after_cursor", &text, LogId(log)), Ok(Start::After(Position(position))));
            prop_assert_eq!(start_after("after_cursor", &text, LogId(log ^ 1)), Ok(Start::OtherLog));
            prop_assert!(page_start(&text, 0).is_err());
        }

        #[test]
        fn a_changed_cursor_is_refused(log: u64, position in 0..i64::MAX, at in 0usize..30, with in "[A-Za-z0-9_.=-]") {
            let text = cursor(LogId(log), Position(position));
            let mut changed = text.clone();
            changed.replace_range(at..=at, &with);
            prop_assume!(changed != text);
            prop_assert!(start_after("after_cursor", &changed, LogId(log)).is_err());
        }

        #[test]
        fn leases_go_both_ways(job: i64, fence: i64) {
            let (key, other) = (LeaseKey::new(&[1; 32]), LeaseKey::new(&[2; 32]));
            let text = key.text(LeaseId { job, fence });
            prop_assert_eq!(key.lease(&text), Some(LeaseId { job, fence }));
            prop_assert_eq!(other.lease(&text), None);
        }

        #[test]
        fn a_changed_lease_is_refused(job: i64, fence: i64, at in 0usize..35, with in "[A-Za-z0-9_.=-]") {
            let key = LeaseKey::new(&[1; 32]);
            let text = key.text(LeaseId { job, fence });
            let mut changed = text.clone();
            changed.replace_range(at..=at, &with);
            prop_assume!(changed != text);
            prop_assert_eq!(key.lease(&changed), None);
        }

        #[test]
        fn anything_else_is_refused(text in ".{0,200}") {
            prop_assert!(start_after("after_cursor", &text, LogId(1)).is_err());
            prop_assert!(text.is_empty() || page_start(&text, 1).is_err());
        }
    }
}
