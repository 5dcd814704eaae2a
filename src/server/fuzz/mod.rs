//! Messages, tokens and headers.

mod documents;
mod reads;
mod submit;
mod tokens;
mod workers;

use std::time::Duration;

use prost::Message;

use super::status::{rejection, status};
use crate::{fuzz::Target, job::Error, store::LogId};

pub const TARGETS: &[Target] = &[
    Target { name: "submit", run: submit::submit, seeds: submit::submit_seeds },
    Target { name: "batch_submit", run: submit::batch_submit, seeds: submit::batch_seeds },
    Target { name: "stream_submit", run: submit::stream_submit, seeds: submit::stream_seeds },
    Target { name: "watch_results", run: reads::watch_results, seeds: reads::watch_seeds },
    Target { name: "list_jobs", run: reads::list_jobs, seeds: reads::list_seeds },
    Target { name: "calls_by_id", run: reads::calls_by_id, seeds: reads::id_seeds },
    Target { name: "json_from_value", run: documents::json_from_value, seeds: documents::value_seeds },
    Target { name: "json_from_text", run: documents::json_from_text, seeds: documents::json_seeds },
    Target { name: "work", run: workers::work, seeds: workers::work_seeds },
    Target { name: "worker_calls", run: workers::worker_calls, seeds: workers::worker_call_seeds },
    Target { name: "lease_id", run: workers::lease_id, seeds: workers::lease_seeds },
    Target { name: "cursor", run: tokens::cursor, seeds: tokens::cursor_seeds },
    Target { name: "page_token", run: tokens::page_token, seeds: tokens::token_seeds },
    Target { name: "grpc_timeout", run: tokens::grpc_timeout, seeds: tokens::timeout_seeds },
    Target { name: "trace_headers", run: tokens::trace_headers, seeds: tokens::trace_seeds },
];

const LOG: LogId = LogId(0x1234_5678_9abc_def0);
const HASH: u32 = 0x1234_5678;
const MS: Duration = Duration::from_millis(1);

/// Holds of every refusal: it says what was sent wrong, and stays small whatever was sent.
fn refused(error: &Error) {
    let told = status(error.clone());
    assert_eq!(told.code(), tonic::Code::InvalidArgument, "{error:.300?}");
    assert!(!told.message().is_empty() && told.message().len() <= 1024 && told.details().len() < 4096);
    let short = rejection(error);
    assert!(short.encoded_len() < 4096, "{} bytes", short.encoded_len());
}
