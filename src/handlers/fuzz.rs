//! What the payloads of several kinds hold.

use super::{sleep, typed};
use crate::{
    fuzz::{Target, lines},
    job::{JobError, Payload},
};

pub const TARGETS: &[Target] = &[Target { name: "sleep_payload", run: sleep_payload, seeds: sleep_seeds }];

/// A payload is refused for good, in few words.
pub(super) fn refused(error: &JobError) {
    assert!(error.code == "payload.invalid" && !error.retryable, "{error:?}");
    assert!(!error.message.is_empty() && error.message.len() <= 8 << 10, "{} bytes", error.message.len());
}

/// A JSON payload as a kind reads it.
pub(super) fn read<I: serde::de::DeserializeOwned>(bytes: &[u8]) -> Option<I> {
    typed::read(&Payload::new(Payload::JSON, bytes.to_vec())).map_err(|error| refused(&error)).ok()
}

fn sleep_seeds() -> Vec<Vec<u8>> {
    lines(
        "{\"duration\":\"1.5s\"}\n{\"duration\":2}\n{\"duration\":\"PT1H\"}\n{\"duration\":0.25}\n{\"duration\":\"2m 30s\"}",
    )
}

fn sleep_payload(bytes: &[u8]) {
    let _: Option<sleep::Input> = read(bytes);
}
