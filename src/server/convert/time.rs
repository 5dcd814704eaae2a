use std::{ops::RangeInclusive, time::Duration};

use prost_types::{Duration as ProtoDuration, Timestamp as ProtoTimestamp};

use crate::job::{Error, Timestamp};

/// A duration, in whole milliseconds.
///
/// # Errors
/// It is negative, malformed, or out of `range`.
pub fn duration_in(
    field: &str,
    value: &ProtoDuration,
    range: RangeInclusive<Duration>,
) -> Result<Duration, Error> {
    let malformed = || Error::invalid(field, "is not a duration: write it as \"30s\" or \"1.5s\"");
    if !(-999_999_999..=999_999_999).contains(&value.nanos) {
        return Err(malformed());
    }
    let negative = || Error::invalid(field, "must not be negative");
    let seconds = u64::try_from(value.seconds).map_err(|_| negative())?;
    let nanos = u32::try_from(value.nanos).map_err(|_| negative())?;
    let exact = Duration::new(seconds, nanos);
    let duration = Duration::from_millis(u64::try_from(exact.as_millis()).map_err(|_| malformed())?);
    if !range.contains(&duration) {
        return Err(Error::invalid(field, format!("must be {:?} to {:?}", range.start(), range.end())));
    }
    Ok(duration)
}

/// The same for a field that may be absent.
pub fn optional_duration(
    field: &str,
    value: Option<&ProtoDuration>,
    range: RangeInclusive<Duration>,
) -> Result<Option<Duration>, Error> {
    value.map(|value| duration_in(field, value, range)).transpose()
}

/// A moment, in whole milliseconds.
///
/// # Errors
/// It lies outside the years 1 to 9999.
pub fn timestamp(field: &str, value: &ProtoTimestamp) -> Result<Timestamp, Error> {
    // 0001-01-01T00:00:00Z to 9999-12-31T23:59:59Z, as timestamp.proto says.
    let valid = (-62_135_596_800..=253_402_300_799).contains(&value.seconds)
        && (0..1_000_000_000).contains(&value.nanos);
    if !valid {
        return Err(Error::invalid(field, "is not a time: write it as \"2026-01-31T12:00:00Z\""));
    }
    Ok(Timestamp(value.seconds * 1000 + i64::from(value.nanos / 1_000_000)))
}

pub fn proto_duration(duration: Duration) -> ProtoDuration {
    ProtoDuration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: duration.subsec_nanos() as i32,
    }
}

pub fn proto_timestamp(time: Timestamp) -> ProtoTimestamp {
    ProtoTimestamp { seconds: time.0.div_euclid(1000), nanos: (time.0.rem_euclid(1000) * 1_000_000) as i32 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_checked() {
        let range = Duration::ZERO..=Duration::from_secs(10);
        let read = |seconds, nanos| duration_in("wait", &ProtoDuration { seconds, nanos }, range.clone());
        assert_eq!(read(1, 500_000_000), Ok(Duration::from_millis(1500)));
        assert_eq!(read(0, 0), Ok(Duration::ZERO));
        for (seconds, nanos) in
            [(-1, 0), (0, -1), (11, 0), (1, 1_000_000_000), (i64::MAX, 0), (i64::MIN, i32::MIN)]
        {
            assert!(read(seconds, nanos).is_err(), "{seconds} {nanos}");
        }
    }

    #[test]
    fn times_go_both_ways() {
        for millis in [0, 1, -1, 1_790_000_000_123, -62_135_596_800_000] {
            let time = Timestamp(millis);
            assert_eq!(timestamp("start_time", &proto_timestamp(time)), Ok(time));
        }
        assert!(timestamp("start_time", &ProtoTimestamp { seconds: i64::MAX, nanos: 0 }).is_err());
        assert!(timestamp("start_time", &ProtoTimestamp { seconds: 0, nanos: -1 }).is_err());
    }
}
