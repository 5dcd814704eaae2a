//! Values as people type them, in arguments.

use std::{str::FromStr, time::Duration};

use clap::ValueEnum;
use jiff::{Timestamp, civil::DateTime, fmt::friendly::SpanParser, tz::TimeZone};

use crate::proto::job::State;

/// 0001-01-01T00:00:00Z, the first moment that a message holds.
const FIRST_SECOND: i64 = -62_135_596_800;

/// `30s`, `5m`, `1h 30m`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let parsed = SpanParser::new().parse_unsigned_duration(text);
    parsed.map_err(|_| "write a duration such as 30s, 5m or `1h 30m`".to_owned())
}

/// A positive duration, as a message holds it.
pub(super) fn proto_duration(text: &str) -> Result<prost_types::Duration, String> {
    prost_types::Duration::try_from(duration(text)?).map_err(|_| "is too long".to_owned())
}

/// `2026-05-01T12:00:00Z`, or without a zone: local time.
pub(super) fn timestamp(text: &str) -> Result<prost_types::Timestamp, String> {
    let zoned = Timestamp::from_str(text);
    let time = zoned.or_else(|_| {
        let local = DateTime::from_str(text)?;
        local.to_zoned(TimeZone::system()).map(|zoned| zoned.timestamp())
    });
    let time =
        time.map_err(|_| "write a time such as 2026-05-01T12:00:00Z or `2026-05-01 12:00`".to_owned())?;
    if time.as_second() < FIRST_SECOND {
        return Err("is before the year 1".to_owned());
    }
    Ok(prost_types::Timestamp { seconds: time.as_second(), nanos: time.subsec_nanosecond() }.normalized())
}

/// A moment, or how long ago it was.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Since {
    Time(prost_types::Timestamp),
    Ago(prost_types::Duration),
}

pub(super) fn since(text: &str) -> Result<Since, String> {
    match proto_duration(text) {
        Ok(ago) => Ok(Since::Ago(ago)),
        Err(_) => timestamp(text).map(Since::Time).map_err(|_| {
            "write how long ago, such as 10m, or a time such as 2026-05-01T12:00:00Z".to_owned()
        }),
    }
}

/// `key=value`.
pub(super) fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write KEY=VALUE".to_owned()),
    }
}

/// The states of a job, as arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum StateArg {
    Scheduled,
    Queued,
    Running,
    BackingOff,
    Succeeded,
    Failed,
    Cancelled,
    Expired,
}

impl From<StateArg> for State {
    fn from(state: StateArg) -> Self {
        match state {
            StateArg::Scheduled => Self::Scheduled,
            StateArg::Queued => Self::Queued,
            StateArg::Running => Self::Running,
            StateArg::BackingOff => Self::BackingOff,
            StateArg::Succeeded => Self::Succeeded,
            StateArg::Failed => Self::Failed,
            StateArg::Cancelled => Self::Cancelled,
            StateArg::Expired => Self::Expired,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_written_with_units() {
        assert_eq!(duration("30s").unwrap(), Duration::from_secs(30));
        assert_eq!(duration("1h 30m").unwrap(), Duration::from_secs(5400));
        assert_eq!(duration("250ms").unwrap(), Duration::from_millis(250));
        for bad in ["", "30", "-5s", "5s ago", "soon", "1mo", "99999999999999999999s"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn times_have_a_zone_or_are_local() {
        assert_eq!(timestamp("1970-01-01T00:00:01Z").unwrap().seconds, 1);
        assert_eq!(timestamp("1970-01-01T01:00:01+01:00").unwrap().seconds, 1);
        assert!(timestamp("2026-05-01 12:00").is_ok());
        assert_eq!(
            timestamp("1969-12-31T23:59:59.5Z").unwrap(),
            prost_types::Timestamp { seconds: -1, nanos: 500_000_000 }
        );
        assert!(timestamp("0001-01-01T00:00:00Z").is_ok());
        assert!(timestamp("0000-12-31T23:59:59Z").is_err());
        assert!(timestamp("tomorrow").is_err());
    }

    #[test]
    fn since_is_a_time_or_a_duration() {
        assert_eq!(since("10m").unwrap(), Since::Ago(prost_types::Duration { seconds: 600, nanos: 0 }));
        assert!(matches!(since("2026-05-01T12:00:00Z").unwrap(), Since::Time(_)));
        assert!(since("x").is_err());
    }

    #[test]
    fn labels_are_pairs() {
        assert_eq!(label("a=b=c").unwrap(), ("a".into(), "b=c".into()));
        assert_eq!(label("a=").unwrap(), ("a".into(), String::new()));
        assert!(label("a").is_err());
        assert!(label("=b").is_err());
    }
}
