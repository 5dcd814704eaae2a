//! Where a broken watch goes on: the pure part of resuming.

use std::{
    collections::{BTreeSet, HashSet},
    time::Duration,
};

use tonic::Code;

use super::Error;
use crate::proto::{
    Job, WatchResultsRequest, WatchResultsResponse, watch_results_request::Start,
    watch_results_response::Event,
};

/// Outcomes of a replay that are remembered to leave out repeats, should it break before its end.
const MAX_REMEMBERED: usize = 100_000;

/// What was asked, and how far it came.
#[derive(Debug)]
pub(super) struct Resume {
    request: WatchResultsRequest,
    cursor: Option<String>,
    /// Outcomes from before the watch are still being sent, so a cursor would skip the rest of them.
    replaying: bool,
    replayed: HashSet<(String, i32)>,
    /// Under `until_all_done`: ids of which an outcome has come, perhaps not the last one.
    seen: BTreeSet<String>,
}

impl Resume {
    pub(super) fn new(request: WatchResultsRequest) -> Self {
        let replaying = request.start.is_none() && (request.include_existing || request.until_all_done);
        Self { request, cursor: None, replaying, replayed: HashSet::new(), seen: BTreeSet::new() }
    }

    /// The request that goes on from here. `elapsed`: since the first one was sent.
    pub(super) fn request(&self, elapsed: Duration) -> WatchResultsRequest {
        let mut request = self.request.clone();
        if let Some(cursor) = &self.cursor {
            request.start = Some(Start::AfterCursor(cursor.clone()));
            request.include_existing = false;
        } else if let Some(Start::Lookback(lookback)) = &mut request.start {
            // The same moment in the past as at the first try.
            lookback.seconds = lookback.seconds.saturating_add_unsigned(elapsed.as_secs()).saturating_add(1);
        }
        request
    }

    /// Notes a message. False if the caller has had it already.
    pub(super) fn note(&mut self, message: &WatchResultsResponse) -> bool {
        let fresh = match &message.event {
            Some(Event::Finished(job)) => self.note_finished(job),
            Some(Event::Checkpoint(checkpoint)) if checkpoint.caught_up => {
                self.replaying = false;
                self.replayed = HashSet::new();
                true
            }
            _ => true,
        };
        if !self.replaying && !message.cursor.is_empty() {
            self.cursor = Some(message.cursor.clone());
        }
        fresh
    }

    fn note_finished(&mut self, job: &Job) -> bool {
        if self.request.until_all_done {
            self.seen.insert(job.job_id.clone());
        }
        if !self.replaying {
            return true;
        }
        let key = (job.job_id.clone(), job.run);
        if self.replayed.len() < MAX_REMEMBERED {
            self.replayed.insert(key)
        } else {
            !self.replayed.contains(&key)
        }
    }

    /// Whether an error only says that a job was removed after its end: it is not asked for again.
    pub(super) fn note_gone(&mut self, error: &Error) -> bool {
        let unknown = error.metadata("job_id").filter(|_| error.reason() == Some("JOB_NOT_FOUND"));
        let (Some(gone), Some(filter)) = (unknown, &mut self.request.filter) else { return false };
        let was_seen = self.seen.remove(gone);
        filter.job_ids.retain(|id| !was_seen || id != gone);
        was_seen
    }

    /// Nothing is left to ask for.
    pub(super) fn fulfilled(&self) -> bool {
        self.ends() && self.request.filter.as_ref().is_none_or(|filter| filter.job_ids.is_empty())
    }

    /// The server ends this stream with OK when it has sent everything.
    pub(super) fn ends(&self) -> bool {
        self.request.until_all_done
    }

    /// Longer without any message means that the connection is lost: three heartbeats.
    pub(super) fn max_silence(&self) -> Duration {
        let asked = self.request.heartbeat_interval.and_then(|d| Duration::try_from(d).ok());
        asked.unwrap_or(Duration::from_secs(15)).clamp(Duration::from_secs(1), Duration::from_secs(60)) * 3
    }
}

/// Whether a new stream may bring what this error cut off. Codes alone do not tell: libraries and proxies
/// make UNKNOWN, INTERNAL and CANCELLED of a broken connection, and then there is no reason of the contract.
pub(super) fn worth_resuming(error: &Error) -> bool {
    match error {
        Error::Silent(_) | Error::Ended => true,
        Error::Status(failure) => match failure.code {
            Code::Unavailable | Code::DeadlineExceeded => true,
            Code::ResourceExhausted => failure.reason.is_some(),
            Code::Unknown | Code::Internal | Code::Cancelled => failure.reason.is_none(),
            _ => false,
        },
        Error::Address { .. } | Error::Unreachable { .. } | Error::Incomplete(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{Checkpoint, Gap, JobFilter};
    use tonic::Status;
    use tonic_types::{ErrorDetails, StatusExt as _};

    fn finished(id: &str, run: i32, cursor: &str) -> WatchResultsResponse {
        let job = Job { job_id: id.into(), run, ..Job::default() };
        WatchResultsResponse { cursor: cursor.into(), event: Some(Event::Finished(Box::new(job))) }
    }

    fn checkpoint(caught_up: bool, cursor: &str) -> WatchResultsResponse {
        let checkpoint = Checkpoint { caught_up, ..Checkpoint::default() };
        WatchResultsResponse { cursor: cursor.into(), event: Some(Event::Checkpoint(checkpoint)) }
    }

    fn all_done(ids: &[&str]) -> WatchResultsRequest {
        let job_ids = ids.iter().map(|id| (*id).to_owned()).collect();
        WatchResultsRequest {
            filter: Some(JobFilter { job_ids, ..JobFilter::default() }),
            until_all_done: true,
            ..WatchResultsRequest::default()
        }
    }

    fn start(resume: &Resume) -> Option<Start> {
        resume.request(Duration::ZERO).start
    }

    fn ids(resume: &Resume) -> Vec<String> {
        resume.request(Duration::ZERO).filter.unwrap().job_ids
    }

    #[test]
    fn goes_on_after_the_newest_cursor() {
        let mut resume = Resume::new(WatchResultsRequest {
            start: Some(Start::Earliest(true)),
            ..WatchResultsRequest::default()
        });
        assert_eq!(start(&resume), Some(Start::Earliest(true)));
        resume.note(&checkpoint(false, "c0"));
        assert!(resume.note(&finished("a", 1, "c1")));
        // A live hint has no cursor and moves nothing.
        resume.note(&WatchResultsResponse::default());
        assert_eq!(start(&resume), Some(Start::AfterCursor("c1".into())));
        resume.note(&checkpoint(true, "c2"));
        assert_eq!(start(&resume), Some(Start::AfterCursor("c2".into())));
    }

    #[test]
    fn a_gap_is_passed_on_and_moves_the_cursor() {
        let mut resume = Resume::new(WatchResultsRequest::default());
        let gap = WatchResultsResponse { cursor: "c9".into(), event: Some(Event::Gap(Gap::default())) };
        assert!(resume.note(&gap));
        assert_eq!(start(&resume), Some(Start::AfterCursor("c9".into())));
    }

    #[test]
    fn a_replay_that_breaks_begins_again_without_repeats() {
        let mut resume =
            Resume::new(WatchResultsRequest { include_existing: true, ..WatchResultsRequest::default() });
        resume.note(&checkpoint(false, "c5"));
        assert!(resume.note(&finished("a", 1, "c5")));
        let again = resume.request(Duration::ZERO);
        assert_eq!((again.start, again.include_existing), (None, true));
        assert!(!resume.note(&finished("a", 1, "c5")));
        assert!(resume.note(&finished("a", 2, "c6")));
        assert!(resume.note(&finished("b", 1, "c5")));
        resume.note(&checkpoint(true, "c6"));
        let live = resume.request(Duration::ZERO);
        assert_eq!((live.start, live.include_existing), (Some(Start::AfterCursor("c6".into())), false));
        assert!(resume.replayed.is_empty());
    }

    #[test]
    fn until_all_done_leaves_out_only_what_was_removed_after_its_end() {
        let mut resume = Resume::new(all_done(&["a", "b"]));
        resume.note(&checkpoint(true, "c1"));
        resume.note(&finished("b", 1, "c2"));
        // It may be running again.
        assert_eq!(ids(&resume), ["a", "b"]);
        assert_eq!(start(&resume), Some(Start::AfterCursor("c2".into())));
        let unknown = |id: &str| {
            let job_id = [("job_id".to_owned(), id.to_owned())];
            let details = ErrorDetails::with_error_info("JOB_NOT_FOUND", "jobwire.v1", job_id);
            Error::from(Status::with_error_details(Code::NotFound, "no", details))
        };
        assert!(!resume.note_gone(&unknown("a")));
        assert!(resume.note_gone(&unknown("b")));
        assert!(!resume.note_gone(&unknown("b")));
        assert_eq!(ids(&resume), ["a"]);
        assert!(!resume.fulfilled());
        resume.note(&finished("a", 1, "c3"));
        assert!(!resume.fulfilled());
        assert!(resume.note_gone(&unknown("a")));
        assert!(resume.fulfilled());
    }

    #[test]
    fn looking_back_keeps_the_moment() {
        let lookback = prost_types::Duration { seconds: 60, nanos: 0 };
        let request = WatchResultsRequest { start: Some(Start::Lookback(lookback)), ..Default::default() };
        let later = Resume::new(request).request(Duration::from_secs(30));
        assert_eq!(later.start, Some(Start::Lookback(prost_types::Duration { seconds: 91, nanos: 0 })));
    }

    #[test]
    fn silence_is_measured_in_heartbeats() {
        let mut request = WatchResultsRequest::default();
        assert_eq!(Resume::new(request.clone()).max_silence(), Duration::from_secs(45));
        request.heartbeat_interval = Some(prost_types::Duration { seconds: 2, nanos: 0 });
        assert_eq!(Resume::new(request).max_silence(), Duration::from_secs(6));
    }

    #[test]
    fn resumes_after_broken_connections_and_gives_up_on_answers() {
        let own = |code, reason: &str| {
            let details = ErrorDetails::with_error_info(reason, "jobwire.v1", []);
            Error::from(Status::with_error_details(code, "no", details))
        };
        for error in [
            own(Code::Unavailable, "STREAM_ROTATED"),
            own(Code::ResourceExhausted, "WATCH_STALLED"),
            own(Code::DeadlineExceeded, "DEADLINE_EXCEEDED"),
            Status::unavailable("connection refused").into(),
            Status::unknown("transport error").into(),
            Status::internal("h2 protocol error").into(),
            Status::cancelled("h2 protocol error").into(),
            Error::Silent(Duration::from_secs(45)),
            Error::Ended,
        ] {
            assert!(worth_resuming(&error), "{error:?}");
        }
        for error in [
            own(Code::OutOfRange, "CURSOR_EXPIRED"),
            own(Code::OutOfRange, "LOG_REPLACED"),
            own(Code::InvalidArgument, "BAD_CURSOR"),
            own(Code::NotFound, "JOB_NOT_FOUND"),
            own(Code::Internal, "INTERNAL"),
            // The library's word for a message above its limit: it would be as large again.
            Status::out_of_range("message too large").into(),
            Status::unimplemented("no such method").into(),
        ] {
            assert!(!worth_resuming(&error), "{error:?}");
        }
    }
}
