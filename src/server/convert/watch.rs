use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{
    filter::filter,
    job::{job, progress},
    payload::Format,
    time::{duration_in, optional_duration, proto_timestamp, timestamp},
};
use crate::{
    config::Config,
    engine::{Event, GapReason, OnGap, Start, WatchRequest},
    job::{Error, Timestamp, View},
    proto::{
        self, Checkpoint, Gap, JobProgress, gap, watch_results_request as wire,
        watch_results_response::Event as WireEvent,
    },
    server::tokens,
    store::LogId,
};

const HEARTBEATS: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(60);
const HEARTBEAT: Duration = Duration::from_secs(15);
const INLINE_OUTPUT: usize = 64 << 10;

/// What to watch, checked. The pair is when the call ends, and what tells that its connection is to go.
pub fn watch_request(
    request: proto::WatchResultsRequest,
    config: &Config,
    log: LogId,
    now: Timestamp,
    (deadline, retire): (Option<Instant>, CancellationToken),
) -> Result<WatchRequest, Error> {
    let filter = filter(request.filter, config.watch.max_filter_ids)?;
    if request.until_all_done && filter.job_ids.is_empty() {
        return Err(Error::invalid("filter.job_ids", "must name the jobs that until_all_done waits for"));
    }
    if !request.include_transitions && filter.states.iter().any(|state| !state.is_final()) {
        return Err(Error::invalid(
            "filter.states",
            "may name unfinished states only with include_transitions",
        ));
    }
    if request.include_existing && request.start.is_some() {
        return Err(Error::invalid(
            "include_existing",
            "goes without a start: a cursor or a time replays the feed",
        ));
    }
    let on_gap = match wire::OnGap::try_from(request.on_gap) {
        Ok(wire::OnGap::Unspecified | wire::OnGap::Fail) => OnGap::Fail,
        Ok(wire::OnGap::Continue) => OnGap::Continue,
        Err(unknown) => return Err(Error::invalid("on_gap", format!("{} is not a known value", unknown.0))),
    };
    let max_inline_output = match request.max_inline_output_bytes {
        None => INLINE_OUTPUT,
        Some(bytes) => usize::try_from(bytes)
            .map_err(|_| Error::invalid("max_inline_output_bytes", "must not be negative"))?
            .min(config.limits.max_output_bytes),
    };
    Ok(WatchRequest {
        filter,
        start: start(request.start, config, log, now)?,
        include_existing: request.include_existing,
        until_all_done: request.until_all_done,
        include_progress: request.include_progress,
        include_transitions: request.include_transitions,
        heartbeat: optional_duration("heartbeat_interval", request.heartbeat_interval.as_ref(), HEARTBEATS)?
            .unwrap_or(HEARTBEAT),
        on_gap,
        max_inline_output,
        deadline,
        retire,
    })
}

fn start(start: Option<wire::Start>, config: &Config, log: LogId, now: Timestamp) -> Result<Start, Error> {
    Ok(match start {
        None | Some(wire::Start::Earliest(false)) => Start::Now,
        Some(wire::Start::AfterCursor(cursor)) => tokens::start_after("after_cursor", &cursor, log)?,
        Some(wire::Start::SinceTime(time)) => Start::Since(timestamp("since_time", &time)?),
        Some(wire::Start::Lookback(back)) => {
            let back = duration_in("lookback", &back, Duration::ZERO..=Duration::MAX)?;
            // Nothing is kept for longer.
            Start::Since(now.before(back.min(config.limits.max_retention)))
        }
        Some(wire::Start::Earliest(true)) => Start::Earliest,
    })
}

/// An event as it is sent.
pub fn event(event: &Event, format: Format, max_output: usize, now: Timestamp) -> WireEvent {
    match event {
        Event::Finished(done) => WireEvent::Finished(Box::new(job(done, View::Result, format, max_output))),
        Event::Changed(changed) => WireEvent::Changed(Box::new(job(changed, View::Basic, format, 0))),
        Event::Progress(hint) => WireEvent::Progress(JobProgress {
            job_id: hint.job_id.to_string(),
            run: hint.run as i32,
            attempt: hint.attempt as i32,
            progress: Some(progress(&hint.progress, format)),
        }),
        &Event::Checkpoint { caught_up, closing } => {
            WireEvent::Checkpoint(Checkpoint { caught_up, closing, server_time: Some(proto_timestamp(now)) })
        }
        Event::Gap { reason, missed, oldest } => WireEvent::Gap(Gap {
            reason: match reason {
                GapReason::Retention => gap::Reason::Retention.into(),
                GapReason::LogReplaced => gap::Reason::LogReplaced.into(),
            },
            missed_events: *missed,
            oldest_time: Some(proto_timestamp(*oldest)),
        }),
    }
}
