//! JSON, as values and as text.

use prost::Message;
use prost_types::{Value, value::Kind as ValueKind};

use super::submit::rendered;
use crate::server::json;

fn documents() -> Vec<String> {
    let deep = |depth: usize| format!("{}1{}", "[".repeat(depth), "]".repeat(depth));
    [
        "null",
        "-0",
        "1.5",
        "1.5000076293945312",
        "0.12345678901234567890",
        "1e-400",
        "1e300",
        "9007199254740992",
        "9007199254740993",
        "9007199254740993.0",
        "18446744073709551617",
        r#"{"b":[1,{"c":"ü"}],"a":true}"#,
        r#"{"a":1,"a":2}"#,
        r#""\ud83d\ude00""#,
    ]
    .map(str::to_owned)
    .into_iter()
    .chain([deep(23), deep(24), deep(25)])
    .collect()
}

pub fn json_seeds() -> Vec<Vec<u8>> {
    documents().into_iter().map(String::into_bytes).collect()
}

pub fn values() -> Vec<Value> {
    let mut values: Vec<_> =
        documents().iter().filter_map(|text| json::from_bytes(text.as_bytes())).collect();
    let number = |number| Value { kind: Some(ValueKind::NumberValue(number)) };
    values.extend([f64::NAN, f64::INFINITY, -0.0, 9_007_199_254_740_994.0, 1e-320].map(number));
    values.push(Value { kind: None });
    values
}

pub fn value_seeds() -> Vec<Vec<u8>> {
    values().iter().map(Message::encode_to_vec).collect()
}

pub fn json_from_value(bytes: &[u8]) {
    let Ok(value) = Value::decode(bytes) else { return };
    if let Ok(text) = json::to_bytes(&value) {
        rendered(&text);
        let read = json::from_bytes(&text).expect("what was rendered can be read");
        // Rendered again it is the same: a missing value has become null, and that stays.
        assert_eq!(json::to_bytes(&read), Ok(text));
    }
}

/// What goes out as a value could come in as one, and is what the text says.
pub fn json_from_text(bytes: &[u8]) {
    let Some(value) = json::from_bytes(bytes) else { return };
    let told = json::to_bytes(&value).expect("what is told can be asked for");
    assert_eq!(json::from_bytes(&told), Some(value));
    let asked: serde_json::Value = serde_json::from_slice(bytes).expect("what was read is JSON");
    let told: serde_json::Value = serde_json::from_slice(&told).expect("what is told is JSON");
    same_json(&asked, &told);
}

fn same_json(asked: &serde_json::Value, told: &serde_json::Value) {
    use serde_json::Value::*;
    match (asked, told) {
        (Array(a), Array(b)) => {
            assert_eq!(a.len(), b.len());
            a.iter().zip(b).for_each(|(a, b)| same_json(a, b));
        }
        (Object(a), Object(b)) => {
            assert!(a.keys().eq(b.keys()));
            a.values().zip(b.values()).for_each(|(a, b)| same_json(a, b));
        }
        (Number(a), Number(b)) => {
            assert_eq!(a.as_f64(), b.as_f64());
            assert!(!a.is_i64() && !a.is_u64() || a.to_string() == b.to_string(), "{a} has become {b}");
        }
        (a, b) => assert_eq!(a, b),
    }
}
