//! Cursors, page tokens and headers.

use tonic::metadata::{AsciiMetadataValue, MetadataMap};

use super::{HASH, LOG, refused};
use crate::{
    engine,
    fuzz::{lines, text},
    server::{deadline, jobs, tokens},
    store::{LogId, Position},
};

pub fn cursor_seeds() -> Vec<Vec<u8>> {
    let cursor = |log, position| tokens::cursor(log, Position(position)).into_bytes();
    vec![
        cursor(LOG, 0),
        cursor(LOG, 77),
        cursor(LOG, i64::MAX),
        cursor(LogId(1), 5),
        b"c1.".to_vec(),
        Vec::new(),
    ]
}

/// Only what was printed is read, to the letter.
pub fn cursor(bytes: &[u8]) {
    let Some(text) = text(bytes) else { return };
    match tokens::start_after("after_cursor", text, LOG) {
        Ok(engine::Start::After(position)) => {
            assert!(position.0 >= 0);
            assert_eq!(tokens::cursor(LOG, position), text);
        }
        Ok(start) => {
            assert_eq!(start, engine::Start::OtherLog);
            assert!(text.len() <= 128 && text.starts_with("c1."));
        }
        Err(error) => refused(&error),
    }
}

pub fn token_seeds() -> Vec<Vec<u8>> {
    let token = |hash, after| tokens::page_token(hash, after).into_bytes();
    vec![
        token(HASH, 0),
        token(HASH, i64::MAX),
        token(1, 5),
        tokens::cursor(LogId(HASH.into()), Position(1)).into_bytes(),
    ]
}

pub fn page_token(bytes: &[u8]) {
    let Some(text) = text(bytes) else { return };
    match tokens::page_start(text, HASH) {
        Ok(None) => assert!(text.is_empty()),
        Ok(Some(after)) => assert_eq!(tokens::page_token(HASH, after), text),
        Err(error) => refused(&error),
    }
}

pub fn timeout_seeds() -> Vec<Vec<u8>> {
    lines("5S\n99999999H\n100000000n\n0u\n20m\n1M\n+5S\n-1S\n5 S")
}

/// One to eight digits and a unit, nothing else.
pub fn grpc_timeout(bytes: &[u8]) {
    let read = deadline::parse(bytes);
    let (digits, unit) = bytes.split_at(bytes.len().saturating_sub(1));
    let number = digits.iter().try_fold(0u128, |n, digit| {
        digit.is_ascii_digit().then(|| n.saturating_mul(10).saturating_add(u128::from(digit - b'0')))
    });
    let scale =
        [(b"n", 1), (b"u", 1000), (b"m", 1_000_000), (b"S", 1_000_000_000), (b"M", 60_000_000_000u128)];
    let scale = scale.into_iter().chain([(b"H", 3_600_000_000_000)]).find(|(name, _)| *name == unit);
    let number = number.filter(|_| (1..=8).contains(&digits.len()));
    assert_eq!(
        read.map(|read| read.as_nanos()),
        number.zip(scale).map(|(number, (_, scale))| number * scale)
    );
}

pub fn trace_seeds() -> Vec<Vec<u8>> {
    let long = "a=b,".repeat(200).into_bytes();
    [lines("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\nvendor=value\n\u{fc}"), vec![long]]
        .concat()
}

pub fn trace_headers(bytes: &[u8]) {
    let Ok(value) = AsciiMetadataValue::try_from(bytes) else { return };
    let mut metadata = MetadataMap::new();
    metadata.insert("traceparent", value.clone());
    metadata.insert("tracestate", value);
    for (name, value) in jobs::trace_headers(&metadata) {
        assert!(["traceparent", "tracestate"].contains(&name.as_str()));
        assert!(value.len() <= 512 && value.bytes().all(|b| b == b'\t' || (32..127).contains(&b)));
    }
}
