//! The document that goes into a job: from an argument, a file or stdin.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use clap::Args;

use super::Error;
use crate::proto::{Payload, payload::Body};

/// A message holds no more.
const MAX_BYTES: u64 = 4 << 20;

#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Payload")]
#[group(multiple = false)]
struct Source {
    /// A JSON document
    #[arg(long, value_name = "JSON", allow_negative_numbers = true)]
    json: Option<String>,
    /// Text
    #[arg(long, value_name = "TEXT")]
    text: Option<String>,
    /// The bytes of a file; `-` reads stdin
    #[arg(long, value_name = "PATH")]
    file: Option<PathBuf>,
}

#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Payload")]
pub(super) struct PayloadArgs {
    #[command(flatten)]
    source: Source,
    /// What the payload is; by default JSON, text, or what the name of the file ends with (.json, .txt)
    #[arg(long, value_name = "TYPE")]
    content_type: Option<String>,
}

impl PayloadArgs {
    /// The payload, if there is one. Bytes go through unchanged.
    pub(super) fn read(&self) -> Result<Option<Payload>, Error> {
        let Source { json, text, file } = &self.source;
        let (body, guess) = if let Some(json) = json {
            serde_json::from_str::<serde::de::IgnoredAny>(json)
                .map_err(|error| Error::Usage(format!("--json is not JSON: {error}")))?;
            (Body::Text(json.clone()), "application/json")
        } else if let Some(text) = text {
            (Body::Text(text.clone()), "text/plain")
        } else if let Some(path) = file {
            (Body::Data(read(path)?.into()), guess(path))
        } else if self.content_type.is_some() {
            return Err(Error::Usage("--content-type needs a payload: add --text or --file".to_owned()));
        } else {
            return Ok(None);
        };
        let content_type = self.content_type.clone().unwrap_or_else(|| guess.to_owned());
        Ok(Some(Payload { body: Some(body), content_type, ..Payload::default() }))
    }
}

fn guess(path: &Path) -> &'static str {
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("json") => "application/json",
        Some("txt") => "text/plain",
        _ => "application/octet-stream",
    }
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    if path == Path::new("-") {
        return bounded(io::stdin().lock(), "stdin");
    }
    let what = path.display().to_string();
    let file = File::open(path).map_err(|source| Error::Read { what: what.clone(), source })?;
    bounded(file, &what)
}

fn bounded(source: impl Read, what: &str) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    let read = source.take(MAX_BYTES + 1).read_to_end(&mut bytes);
    read.map_err(|source| Error::Read { what: what.to_owned(), source })?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(Error::Usage(format!(
            "{what} is larger than {MAX_BYTES} bytes, the most that a message holds: store it elsewhere, and give \
             the job its address"
        )));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_source(source: Source, content_type: Option<&str>) -> Result<Option<Payload>, Error> {
        PayloadArgs { source, content_type: content_type.map(str::to_owned) }.read()
    }

    fn from_file(name: &str, bytes: &[u8]) -> Payload {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        read_source(Source { file: Some(path), ..Source::default() }, None).unwrap().unwrap()
    }

    #[test]
    fn json_is_checked_and_kept_to_the_byte() {
        let json = |text: &str| Source { json: Some(text.into()), ..Source::default() };
        let payload = read_source(json("{ \"a\": 12345678901234567890 }"), None).unwrap().unwrap();
        assert_eq!(payload.body, Some(Body::Text("{ \"a\": 12345678901234567890 }".into())));
        assert_eq!(payload.content_type, "application/json");
        assert!(matches!(read_source(json("{a}"), None), Err(Error::Usage(_))));
    }

    #[test]
    fn files_tell_their_type_by_their_name() {
        for (name, content_type) in
            [("a.json", "application/json"), ("a.txt", "text/plain"), ("a.html", "application/octet-stream")]
        {
            let payload = from_file(name, b"\xff\0");
            assert_eq!(payload.content_type, content_type);
            assert_eq!(payload.body, Some(Body::Data(b"\xff\0".as_slice().into())));
        }
    }

    #[test]
    fn a_type_of_ones_own_wins_and_needs_a_payload() {
        let text = Source { text: Some("a,b".into()), ..Source::default() };
        assert_eq!(read_source(text, Some("text/csv")).unwrap().unwrap().content_type, "text/csv");
        assert!(read_source(Source::default(), Some("text/csv")).is_err());
        assert!(read_source(Source::default(), None).unwrap().is_none());
    }

    #[test]
    fn what_no_message_holds_is_refused_before_it_is_sent() {
        assert_eq!(bounded(io::repeat(0).take(MAX_BYTES), "x").unwrap().len() as u64, MAX_BYTES);
        let error = bounded(io::repeat(0), "x").unwrap_err();
        assert!(error.to_string().contains("x is larger than"), "{error}");
    }

    #[test]
    fn a_missing_file_is_named() {
        let file = Source { file: Some("/nonexistent/a.json".into()), ..Source::default() };
        let error = read_source(file, None).unwrap_err();
        assert!(error.to_string().starts_with("cannot read /nonexistent/a.json: "), "{error}");
    }
}
