use std::{ffi::OsString, path::Path};

use serde_json::Value;

use crate::config::ExecParam;

/// Bytes of a text, unless its parameter says.
const TEXT_MAX: usize = 256;

/// Whether the settings of a parameter make sense. The error says what is wrong.
pub fn check(param: &ExecParam) -> Result<(), String> {
    match param {
        ExecParam::Integer { min: Some(min), max: Some(max) } if min > max => {
            Err(format!("min {min} is above max {max}"))
        }
        ExecParam::Choice { values } if values.is_empty() => Err("values is empty: name one at least".into()),
        ExecParam::Choice { values } if values.iter().any(|value| value.contains('\0')) => {
            Err("values cannot contain a NUL".into())
        }
        ExecParam::Path { root } if !root.is_absolute() => Err("root must be an absolute path".into()),
        _ => Ok(()),
    }
}

/// Whether an argument may begin with this parameter's value although that begins with a dash.
pub fn may_begin_with_dash(param: &ExecParam) -> bool {
    match param {
        ExecParam::Text { allow_dash, .. } => *allow_dash,
        // Whoever sets a minimum below zero has thought of negative numbers.
        ExecParam::Integer { min, .. } => min.is_some_and(|min| min < 0),
        ExecParam::Choice { .. } => true,
        ExecParam::Path { .. } => false,
    }
}

/// What the value of a job becomes in an argument. The error says why it is refused.
pub async fn render(param: &ExecParam, value: &Value) -> Result<OsString, String> {
    match param {
        ExecParam::Text { max_bytes, .. } => {
            let text = text(value)?;
            let max = max_bytes.unwrap_or(TEXT_MAX);
            if text.len() > max {
                return Err(format!("has {} bytes, {max} are allowed", text.len()));
            }
            Ok(text.into())
        }
        ExecParam::Integer { min, max } => {
            let number = value.as_i64().ok_or("must be an integer")?;
            if min.is_some_and(|min| number < min) || max.is_some_and(|max| number > max) {
                let bound = |bound: &Option<i64>| bound.map_or("…".into(), |bound| bound.to_string());
                return Err(format!("{number} is not within {} to {}", bound(min), bound(max)));
            }
            Ok(number.to_string().into())
        }
        ExecParam::Choice { values } => {
            let text = text(value)?;
            if !values.iter().any(|value| value == text) {
                return Err(format!("must be one of {}", values.join(", ")));
            }
            Ok(text.into())
        }
        ExecParam::Path { root } => path(root, text(value)?).await,
    }
}

fn text(value: &Value) -> Result<&str, String> {
    let text = value.as_str().ok_or("must be a string")?;
    if text.contains('\0') { Err("must not contain a NUL".into()) } else { Ok(text) }
}

/// The place that `text`, relative to `root` or absolute, leads to once every symbolic link is followed.
async fn path(root: &Path, text: &str) -> Result<OsString, String> {
    let real = async |path: &Path| tokio::fs::canonicalize(path).await.map_err(|error| error.to_string());
    let root = real(root).await.map_err(|why| format!("the root of the parameter cannot be used: {why}"))?;
    // One text for "elsewhere" and "nowhere", so that a job cannot find out what lies outside of the root.
    let outside = || format!("{text:?} leads to nothing below the root of the parameter");
    let path = real(&root.join(text)).await.map_err(|_| outside())?;
    if path.starts_with(&root) { Ok(path.into()) } else { Err(outside()) }
}
