//! Watches, lists, and calls that name one job.

use std::time::Duration;

use prost::Message;
use prost_types::Duration as ProtoDuration;

use super::{HASH, LOG, refused, submit::moment, tokens::page_token};
use crate::{
    config::{Config, Limits},
    engine,
    job::{JobId, Timestamp, View},
    proto::{
        CancelJobRequest, DeleteJobRequest, GetJobRequest, GetResultRequest, JobFilter, ListJobsRequest,
        RetryJobRequest, WatchResultsRequest, watch_results_request,
    },
    server::{
        convert::{self, Format},
        tokens,
    },
    store::Position,
};

fn wide_filter() -> JobFilter {
    JobFilter {
        job_ids: vec!["a".into(), "b:c".into()],
        queues: vec!["acme/*".into(), "mail".into()],
        kinds: vec!["*".into()],
        states: vec![5, 6],
        labels: [("tenant".into(), "*".into())].into(),
        submitted_after: Some(prost_types::Timestamp { seconds: 1, nanos: 0 }),
        submitted_before: Some(prost_types::Timestamp { seconds: 253_402_300_799, nanos: 999_999_999 }),
    }
}

pub fn watch_seeds() -> Vec<Vec<u8>> {
    use watch_results_request::Start::*;
    let starts = [
        None,
        Some(AfterCursor(tokens::cursor(LOG, Position(77)))),
        Some(SinceTime(prost_types::Timestamp { seconds: 1, nanos: 2_000_000 })),
        Some(Lookback(ProtoDuration { seconds: 60, nanos: 0 })),
        Some(Earliest(true)),
    ];
    let watch = |start: Option<_>| WatchResultsRequest {
        filter: Some(wide_filter()),
        include_existing: start.is_none(),
        start,
        until_all_done: true,
        include_progress: true,
        include_transitions: true,
        heartbeat_interval: Some(ProtoDuration { seconds: 2, nanos: 0 }),
        on_gap: 2,
        payload_format: 2,
        max_inline_output_bytes: Some(100),
    };
    starts.into_iter().map(|start| watch(start).encode_to_vec()).collect()
}

pub fn watch_results(bytes: &[u8]) {
    let Ok(request) = WatchResultsRequest::decode(bytes) else { return };
    let (config, now) = (Config::default(), Timestamp(1_700_000_000_000));
    let watch = match convert::watch_request(request.clone(), &config, LOG, now, Default::default()) {
        Ok(watch) => watch,
        Err(error) => return refused(&error),
    };
    let filter = request.filter.unwrap_or_default();
    filtered(&filter, &watch.filter);
    assert!((Duration::from_secs(1)..=Duration::from_secs(60)).contains(&watch.heartbeat));
    assert!(watch.max_inline_output <= 1 << 20);
    assert!(!watch.until_all_done || !filter.job_ids.is_empty());
    assert!(watch.include_transitions || filter.states.iter().all(|state| *state >= 5));
    assert!(!watch.include_existing || request.start.is_none());
    match (request.start, watch.start) {
        (Some(watch_results_request::Start::AfterCursor(text)), engine::Start::After(position)) => {
            assert_eq!(text, tokens::cursor(LOG, position));
        }
        (Some(watch_results_request::Start::AfterCursor(_)), start) => {
            assert_eq!(start, engine::Start::OtherLog)
        }
        (_, engine::Start::Since(time)) => assert!(time <= now || request_names(bytes)),
        _ => {}
    }
}

/// Whether the request names a time itself, which may lie ahead.
fn request_names(bytes: &[u8]) -> bool {
    let start = WatchResultsRequest::decode(bytes).ok().and_then(|request| request.start);
    matches!(start, Some(watch_results_request::Start::SinceTime(_)))
}

fn filtered(asked: &JobFilter, filter: &crate::job::Filter) {
    assert!(asked.job_ids.len() <= 1000 && filter.job_ids.len() <= asked.job_ids.len());
    assert!(asked.job_ids.iter().all(|id| id.parse::<JobId>().is_ok_and(|id| filter.job_ids.contains(&id))));
    for (texts, patterns) in [(&asked.queues, &filter.queues), (&asked.kinds, &filter.kinds)] {
        assert!(texts.len() <= 256 && texts.len() == patterns.len());
        for (text, pattern) in texts.iter().zip(patterns) {
            let stem = text.trim_end_matches('*');
            assert!((1..=129).contains(&text.len()) && text.len() - stem.len() <= 1 && !stem.contains('*'));
            assert!(pattern.matches(stem));
            assert_eq!(pattern.matches(&format!("{stem}x")), text.ends_with('*'));
        }
    }
    assert!(asked.states.len() <= 256 && asked.states.iter().all(|state| (1..=8).contains(state)));
    assert_eq!(asked.states, filter.states.iter().map(|state| state.number()).collect::<Vec<_>>());
    assert!(asked.labels.len() <= 256 && asked.labels.len() == filter.labels.len());
    [filter.submitted_after, filter.submitted_before].into_iter().flatten().for_each(moment);
}

pub fn list_seeds() -> Vec<Vec<u8>> {
    let list = ListJobsRequest {
        filter: Some(wide_filter()),
        page_size: 20,
        page_token: tokens::page_token(HASH, 7),
        view: 3,
        oldest_first: true,
        payload_format: 1,
    };
    vec![list.encode_to_vec(), ListJobsRequest::default().encode_to_vec()]
}

pub fn list_jobs(bytes: &[u8]) {
    let Ok(request) = ListJobsRequest::decode(bytes) else { return };
    let asked = request.filter.clone().unwrap_or_default();
    match convert::filter(request.filter, 1000) {
        Ok(filter) => filtered(&asked, &filter),
        Err(error) => refused(&error),
    }
    if let Err(error) = convert::view(request.view, View::Basic) {
        assert!(!(0..=3).contains(&request.view));
        refused(&error);
    }
    page_token(request.page_token.as_bytes());
}

pub fn id_seeds() -> Vec<Vec<u8>> {
    let (job_id, etag) = ("0199a0c5-1b2c-7def-8123-456789abcdef".to_owned(), "1f".to_owned());
    let second = Some(ProtoDuration { seconds: 1, nanos: 0 });
    vec![
        GetResultRequest { job_id: job_id.clone(), wait: second, payload_format: 2 }.encode_to_vec(),
        GetJobRequest { job_id: job_id.clone(), view: 3, payload_format: 1 }.encode_to_vec(),
        CancelJobRequest { job_id: job_id.clone(), reason: "enough".into(), etag: etag.clone() }
            .encode_to_vec(),
        RetryJobRequest { job_id: job_id.clone(), delay: second, etag: etag.clone() }.encode_to_vec(),
        DeleteJobRequest { job_id, etag, allow_missing: true }.encode_to_vec(),
    ]
}

/// The same bytes as each of the calls that name one job.
pub fn calls_by_id(bytes: &[u8]) {
    let id = |id: &str| drop(id.parse::<JobId>().map_err(|error| refused(&error)));
    let time = |field: &str, time: Option<ProtoDuration>, most| {
        match convert::optional_duration(field, time.as_ref(), Duration::ZERO..=most) {
            Ok(read) => {
                assert_eq!(read.is_some(), time.is_some());
                // Printed and read again it is the same.
                let told = read.map(convert::proto_duration);
                assert_eq!(convert::optional_duration(field, told.as_ref(), Duration::ZERO..=most), Ok(read));
            }
            Err(error) => refused(&error),
        }
    };
    if let Ok(request) = GetResultRequest::decode(bytes) {
        id(&request.job_id);
        time("wait", request.wait, Duration::MAX);
    }
    if let Ok(request) = RetryJobRequest::decode(bytes) {
        id(&request.job_id);
        time("delay", request.delay, Limits::default().max_delay);
    }
    if let Ok(request) = GetJobRequest::decode(bytes) {
        id(&request.job_id);
        let _ = convert::view(request.view, View::Result).map_err(|error| refused(&error));
        let format = convert::format("payload_format", request.payload_format, Format::Readable);
        let _ = format.map_err(|error| refused(&error));
    }
    let _ = CancelJobRequest::decode(bytes).map(|request| id(&request.job_id));
    let _ = DeleteJobRequest::decode(bytes).map(|request| id(&request.job_id));
}
