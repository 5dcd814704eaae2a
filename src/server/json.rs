//! JSON between the wire and the store: `google.protobuf.Value` here, bytes there.
//!
//! A number on the wire is a double. What a double would damage is refused on the way in, and left as text on the way
//! out.

use std::{collections::BTreeMap, fmt};

use prost_types::{ListValue, Struct, Value, value::Kind};
use serde::{
    Serialize, Serializer,
    de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor},
    ser::{Error as _, SerializeMap, SerializeSeq},
};

/// Arrays and objects inside each other. Deeper ones come close to protobuf's own limit on nesting.
pub const MAX_DEPTH: usize = 24;

/// The largest integer that a double holds exactly along with all smaller ones: 2^53.
const MAX_INTEGER: f64 = 9_007_199_254_740_992.0;

/// Compact JSON with sorted keys; whole doubles are written as integers.
///
/// # Errors
/// Why the value cannot be kept unharmed: too deep, or a number that a double may have damaged already.
pub fn to_bytes(value: &Value) -> Result<Vec<u8>, String> {
    serde_json::to_vec(&Node { value, depth: 0 }).map_err(|error| error.to_string())
}

/// The value of a document; None if it is no JSON, or would lose something as a `Value`.
pub fn from_bytes(bytes: &[u8]) -> Option<Value> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = Seed { depth: 0 }.deserialize(&mut deserializer).ok()?;
    deserializer.end().ok()?;
    survives(bytes).then_some(value)
}

/// Whether every number of a document is the same after it was a double. Integers are looked at as they are parsed.
fn survives(document: &[u8]) -> bool {
    let mut rest = document;
    while let Some(first) = rest.first() {
        let length = match first {
            b'"' => string_length(rest),
            b'-' | b'0'..=b'9' => rest.iter().take_while(|byte| is_of_number(byte)).count(),
            _ => 1,
        };
        let (token, after) = rest.split_at(length);
        if length > 1
            && *first != b'"'
            && token.iter().any(|byte| b".eE".contains(byte))
            && !comes_back(token)
        {
            return false;
        }
        rest = after;
    }
    true
}

fn is_of_number(byte: &u8) -> bool {
    byte.is_ascii_digit() || b"+-.eE".contains(byte)
}

/// With its quotes.
fn string_length(text: &[u8]) -> usize {
    let mut escaped = false;
    let end = text[1..].iter().position(|&byte| {
        let ends = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        ends
    });
    end.map_or(text.len(), |end| end + 2)
}

fn comes_back(number: &[u8]) -> bool {
    let Ok(number) = std::str::from_utf8(number) else { return false };
    // As it would be rendered: of two numbers that are as short and as near, others may choose the other one.
    let told = number.parse::<f64>().ok().and_then(|double| serde_json::to_string(&double).ok());
    let told = told.and_then(|told| decimal(&told));
    told.is_some() && told == decimal(number)
}

/// The digits of a number without zeros around them, and the power of ten of the last one; without its sign.
fn decimal(literal: &str) -> Option<(String, i64)> {
    let (mantissa, exponent) = literal.split_once(['e', 'E']).unwrap_or((literal, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = format!("{whole}{fraction}");
    let all = digits.trim_start_matches(['-', '0']);
    let kept = all.trim_end_matches('0');
    if kept.is_empty() {
        return Some((String::new(), 0));
    }
    let shift = (all.len() - kept.len()) as i64 - fraction.len() as i64;
    Some((kept.to_owned(), exponent.parse::<i64>().ok()?.checked_add(shift)?))
}

struct Node<'a> {
    value: &'a Value,
    depth: usize,
}

impl Serialize for Node<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let depth = self.depth + 1;
        let deep = || S::Error::custom(format!("is nested deeper than {MAX_DEPTH}"));
        match &self.value.kind {
            None | Some(Kind::NullValue(_)) => serializer.serialize_unit(),
            Some(Kind::BoolValue(value)) => serializer.serialize_bool(*value),
            Some(Kind::StringValue(value)) => serializer.serialize_str(value),
            Some(Kind::NumberValue(number)) => serialize_number(*number, serializer),
            Some(Kind::ListValue(_) | Kind::StructValue(_)) if depth > MAX_DEPTH => Err(deep()),
            Some(Kind::ListValue(list)) => {
                let mut items = serializer.serialize_seq(Some(list.values.len()))?;
                for value in &list.values {
                    items.serialize_element(&Node { value, depth })?;
                }
                items.end()
            }
            Some(Kind::StructValue(object)) => {
                let mut fields = serializer.serialize_map(Some(object.fields.len()))?;
                for (name, value) in &object.fields {
                    fields.serialize_entry(name, &Node { value, depth })?;
                }
                fields.end()
            }
        }
    }
}

fn serialize_number<S: Serializer>(number: f64, serializer: S) -> Result<S::Ok, S::Error> {
    if !number.is_finite() {
        return Err(S::Error::custom("holds a number that is not finite"));
    }
    if number.fract() != 0.0 {
        return serializer.serialize_f64(number);
    }
    if number.abs() > MAX_INTEGER {
        return Err(S::Error::custom(
            "holds an integer beyond 2^53, which this way of sending may have damaged",
        ));
    }
    serializer.serialize_i64(number as i64)
}

#[derive(Clone, Copy)]
struct Seed {
    depth: usize,
}

impl<'de> DeserializeSeed<'de> for Seed {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl Seed {
    fn inside<E: serde::de::Error>(self) -> Result<Self, E> {
        let depth = self.depth + 1;
        if depth > MAX_DEPTH { Err(E::custom("too deep")) } else { Ok(Self { depth }) }
    }
}

fn number<E: serde::de::Error>(exact: bool, number: f64) -> Result<Value, E> {
    if !exact || !number.is_finite() {
        return Err(E::custom("a double would not hold it"));
    }
    Ok(Value { kind: Some(Kind::NumberValue(number)) })
}

impl<'de> Visitor<'de> for Seed {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON that survives doubles")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value { kind: Some(Kind::NullValue(0)) })
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value { kind: Some(Kind::BoolValue(value)) })
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<Value, E> {
        number(value.unsigned_abs() <= MAX_INTEGER as u64, value as f64)
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<Value, E> {
        number(value <= MAX_INTEGER as u64, value as f64)
    }

    /// Integers beyond 64 bits arrive here as well, and 2^53 may have been 2^53 + 1.
    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        number(value.fract() != 0.0 || value.abs() < MAX_INTEGER, value)
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value { kind: Some(Kind::StringValue(value.to_owned())) })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let inside = self.inside()?;
        let mut values = Vec::new();
        while let Some(value) = items.next_element_seed(inside)? {
            values.push(value);
        }
        Ok(Value { kind: Some(Kind::ListValue(ListValue { values })) })
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let inside = self.inside()?;
        let mut fields = BTreeMap::new();
        while let Some(name) = entries.next_key::<String>()? {
            if fields.insert(name, entries.next_value_seed(inside)?).is_some() {
                return Err(A::Error::custom("a name twice"));
            }
        }
        Ok(Value { kind: Some(Kind::StructValue(Struct { fields })) })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Option<Value> {
        from_bytes(text.as_bytes())
    }

    fn nested(depth: usize) -> String {
        format!("{}{}", "[".repeat(depth), "]".repeat(depth))
    }

    #[test]
    fn what_doubles_keep_goes_both_ways() {
        for text in [
            "null",
            "true",
            r#""text""#,
            "1.5",
            "-0.1",
            "0.1234567890123456",
            "1.5000076293945312",
            "5e-324",
            "1.7976931348623157e-300",
            "9007199254740992",
            r#"{"0.12345678901234567890":"1e-400 \"0.12345678901234567890"}"#,
            "-9007199254740992",
            r#"{"a":[1,2,{"b":null}],"c":"ü"}"#,
            "[]",
            "{}",
        ] {
            assert_eq!(to_bytes(&parse(text).unwrap()).unwrap(), text.as_bytes());
        }
        assert_eq!(to_bytes(&parse(r#"{ "b": 1.0, "a": 2 }"#).unwrap()).unwrap(), br#"{"a":2,"b":1}"#);
        for (text, plain) in [("1.50", "1.5"), ("-12.5E+1", "-125"), ("0.0e7", "0"), ("250e-2", "2.5")] {
            assert_eq!(to_bytes(&parse(text).unwrap()).unwrap(), plain.as_bytes());
        }
    }

    #[test]
    fn what_would_be_damaged_stays_text() {
        for text in [
            "9007199254740993",
            "18446744073709551615",
            "-9007199254740993",
            "18446744073709551617",
            "9007199254740993.0",
            "1e300",
            "1e400",
            "1e-400",
            "0.12345678901234567890",
            r#"{"a\\":[1,-4503599627370497.26]}"#,
            "[0.1,0.30000000000000000001]",
            "1e-99999999999999999999",
            r#"{"a":1,"a":2}"#,
            "{",
            "1 2",
            "",
            &nested(MAX_DEPTH + 1),
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
        assert!(from_bytes(b"\"\xff\"").is_none());
        assert!(parse(&nested(MAX_DEPTH)).is_some());
    }

    #[test]
    fn what_was_damaged_on_the_way_is_refused() {
        let number = |number| Value { kind: Some(Kind::NumberValue(number)) };
        for bad in [f64::NAN, f64::INFINITY, 9_007_199_254_740_994.0, 1e300] {
            assert!(to_bytes(&number(bad)).is_err(), "{bad}");
        }
        let mut value = number(1.0);
        for depth in 1..=MAX_DEPTH + 1 {
            value = Value { kind: Some(Kind::ListValue(ListValue { values: vec![value] })) };
            assert_eq!(to_bytes(&value).is_ok(), depth <= MAX_DEPTH, "{depth}");
        }
    }

    proptest! {
        #[test]
        fn parsing_never_panics_and_what_it_takes_comes_back(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Some(value) = from_bytes(&bytes) {
                let text = to_bytes(&value).unwrap();
                prop_assert_eq!(from_bytes(&text), Some(value));
            }
        }

        #[test]
        fn doubles_come_back_as_they_were(number in prop::num::f64::NORMAL) {
            let value = Value { kind: Some(Kind::NumberValue(number)) };
            if let Ok(text) = to_bytes(&value) {
                prop_assert_eq!(from_bytes(&text), Some(value));
            }
        }
    }
}
