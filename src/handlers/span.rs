use std::{fmt, time::Duration};

use serde::de::{Deserializer, Error, Unexpected, Visitor};

/// Reads a time span of a payload: text such as `"1.5s"` or `"2m 30s"`, or seconds as a number; not negative.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    deserializer.deserialize_any(Span)
}

/// The same for a field that may be absent.
pub fn optional<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    deserialize(deserializer).map(Some)
}

struct Span;

impl Visitor<'_> for Span {
    type Value = Duration;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a time span such as \"1.5s\", or seconds as a number, not negative")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Duration, E> {
        let span: jiff::SignedDuration =
            text.parse().map_err(|_| E::invalid_value(Unexpected::Str(text), &self))?;
        span.try_into().map_err(|_| E::invalid_value(Unexpected::Str(text), &self))
    }

    fn visit_f64<E: Error>(self, seconds: f64) -> Result<Duration, E> {
        Duration::try_from_secs_f64(seconds).map_err(|_| E::invalid_value(Unexpected::Float(seconds), &self))
    }

    fn visit_u64<E: Error>(self, seconds: u64) -> Result<Duration, E> {
        Ok(Duration::from_secs(seconds))
    }

    fn visit_i64<E: Error>(self, seconds: i64) -> Result<Duration, E> {
        let seconds =
            u64::try_from(seconds).map_err(|_| E::invalid_value(Unexpected::Signed(seconds), &self))?;
        Ok(Duration::from_secs(seconds))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn spans_are_text_or_seconds() {
        for (value, millis) in [
            (json!("1.5s"), 1500),
            (json!("2m 30s"), 150_000),
            (json!("PT1H"), 3_600_000),
            (json!(0), 0),
            (json!(2), 2000),
            (json!(0.25), 250),
        ] {
            assert_eq!(deserialize(value).unwrap(), Duration::from_millis(millis));
        }
        for value in
            [json!("soon"), json!("-1s"), json!(-1), json!(-0.5), json!(1e300), json!(null), json!([1])]
        {
            assert!(deserialize::<Value>(value.clone()).is_err(), "{value}");
        }
    }
}
