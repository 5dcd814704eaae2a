//! Jobs for people: words for states, local times, tables. What jobs hold is anyone's text, so it is made plain.

use comfy_table::{ColumnConstraint, ContentArrangement, Row, Table, presets::NOTHING};
use jiff::tz::TimeZone;
use prost_types::{Duration, Timestamp, Value, value::Kind};
use serde_json::json;

use crate::proto::{Job, JobError, Payload, job::State, payload::Body};

/// A table without lines, as wide as the terminal.
pub(super) fn table(head: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    if !head.is_empty() {
        table.set_header(head);
    }
    table
}

/// The text of a table, without blanks around it.
pub(super) fn text(mut table: Table) -> String {
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.trim_fmt()
}

/// Many jobs, one in each row.
pub(super) fn jobs(jobs: &[Job]) -> String {
    let mut table = table(&["JOB", "STATE", "KIND", "QUEUE", "ATTEMPT", "SUBMITTED", "ERROR"]);
    for job in jobs {
        let (kind, queue) = kind_and_queue(job);
        let mut row = Row::from([
            plain(&job.job_id),
            state(job.state),
            kind,
            queue,
            job.attempt.to_string(),
            time(job.submit_time),
            job.error.as_ref().map(error).unwrap_or_default(),
        ]);
        row.max_height(1);
        table.add_row(row);
    }
    // Ids and times are of no use unless they are whole; the error gives way.
    for whole in [0, 5] {
        if let Some(column) = table.column_mut(whole) {
            column.set_constraint(ColumnConstraint::ContentWidth);
        }
    }
    text(table)
}

/// One job, one field in each row.
pub(super) fn job(job: &Job) -> String {
    let (kind, queue) = kind_and_queue(job);
    let labels = job.spec.iter().flat_map(|spec| &spec.labels);
    let labels: Vec<_> = labels.map(|(key, value)| plain(&format!("{key}={value}"))).collect();
    let fields = [
        ("job", plain(&job.job_id)),
        ("state", state(job.state)),
        ("kind", kind),
        ("queue", queue),
        ("labels", labels.join(" ")),
        ("run, attempt", format!("{}, {}", job.run, job.attempt)),
        ("worker", plain(&job.worker_id)),
        ("submitted", time(job.submit_time)),
        ("next attempt", time(job.next_attempt_time)),
        ("started", time(job.start_time)),
        ("finished", time(job.finish_time)),
        ("removed", time(job.delete_time)),
        ("progress", progress(job)),
        ("error", job.error.as_ref().map(error).unwrap_or_default()),
        ("payload", job.spec.iter().filter_map(|spec| spec.payload.as_ref()).map(body).collect()),
        ("output", job.output.as_ref().map(body).unwrap_or_default()),
        ("etag", plain(&job.etag)),
    ];
    let mut table = table(&[]);
    for (name, value) in fields.into_iter().filter(|(_, value)| !value.is_empty()) {
        table.add_row([name.to_owned(), value]);
    }
    for attempt in &job.attempts {
        let what = attempt.error.as_ref().map(error).unwrap_or_default();
        table.add_row([
            format!("attempt {}.{}", attempt.run, attempt.attempt),
            format!("{} {what}", time(attempt.start_time)),
        ]);
    }
    text(table)
}

/// One job in one line.
pub(super) fn line(job: &Job) -> String {
    let (kind, queue) = kind_and_queue(job);
    let error = job.error.as_ref().map(error).unwrap_or_default();
    let when = time(job.finish_time);
    let line =
        format!("{when:<19}  {:<11}  {}  {kind}  {queue}  {error}", state(job.state), plain(&job.job_id));
    line.trim_end().to_owned()
}

fn kind_and_queue(job: &Job) -> (String, String) {
    job.spec.as_ref().map(|spec| (plain(&spec.kind), plain(&spec.queue))).unwrap_or_default()
}

/// The state in a word; a number if this program does not know it.
pub(super) fn state(number: i32) -> String {
    match State::try_from(number) {
        Ok(state) => state.as_str_name().trim_start_matches("STATE_").to_lowercase().replace('_', " "),
        Err(_) => number.to_string(),
    }
}

pub(super) fn error(error: &JobError) -> String {
    let text = match (error.code.as_str(), error.message.as_str()) {
        ("", message) => message.to_owned(),
        (code, "") => code.to_owned(),
        (code, message) => format!("{code}: {message}"),
    };
    plain(&text)
}

fn progress(job: &Job) -> String {
    let Some(progress) = &job.progress else { return String::new() };
    format!("{:.0} % {}", progress.fraction * 100.0, plain(&progress.note)).trim_end().to_owned()
}

/// A document in a cell.
fn body(payload: &Payload) -> String {
    match &payload.body {
        _ if payload.omitted => format!("({} bytes, left out)", payload.size_bytes),
        None => String::new(),
        Some(Body::Text(text)) => plain(text),
        Some(Body::Json(value)) => json_of(value).to_string(),
        Some(Body::Data(data)) => format!("({} bytes, {})", data.len(), plain(&payload.content_type)),
    }
}

/// A document as it is: the bytes for a pipe, JSON on several lines.
pub(super) fn raw_body(payload: &Payload) -> Vec<u8> {
    match &payload.body {
        None => Vec::new(),
        Some(Body::Text(text)) => text.clone().into_bytes(),
        Some(Body::Json(value)) => format!("{:#}", json_of(value)).into_bytes(),
        Some(Body::Data(data)) => data.to_vec(),
    }
}

fn json_of(value: &Value) -> serde_json::Value {
    match &value.kind {
        None | Some(Kind::NullValue(_)) => serde_json::Value::Null,
        Some(Kind::BoolValue(bool)) => json!(bool),
        Some(Kind::StringValue(text)) => json!(text),
        Some(Kind::NumberValue(number)) if number.fract() == 0.0 && number.abs() < 1e15 => {
            json!(*number as i64)
        }
        Some(Kind::NumberValue(number)) => json!(number),
        Some(Kind::ListValue(list)) => list.values.iter().map(json_of).collect(),
        Some(Kind::StructValue(object)) => {
            object.fields.iter().map(|(key, value)| (key.clone(), json_of(value))).collect()
        }
    }
}

/// Local time, to the second.
pub(super) fn time(time: Option<Timestamp>) -> String {
    let time = time.and_then(|time| jiff::Timestamp::new(time.seconds, time.nanos).ok());
    let local = time.map(|time| time.to_zoned(TimeZone::system()).strftime("%F %T").to_string());
    local.unwrap_or_default()
}

/// `1h 30m`.
pub(super) fn span(span: Option<Duration>) -> String {
    let span = span.and_then(|span| std::time::Duration::try_from(span).ok());
    span.map(|span| jiff::fmt::friendly::SpanPrinter::new().unsigned_duration_to_string(&span))
        .unwrap_or_default()
}

/// Text without control characters, which could move the cursor of a terminal or colour it.
pub(super) fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::JobSpec;

    fn sample() -> Job {
        Job {
            job_id: "a".into(),
            spec: Some(JobSpec { kind: "echo".into(), queue: "mail".into(), ..JobSpec::default() }),
            state: State::BackingOff.into(),
            error: Some(JobError {
                code: "http.503".into(),
                message: "\x1b[31mbusy\n".into(),
                ..JobError::default()
            }),
            ..Job::default()
        }
    }

    #[test]
    fn rows_hold_plain_text_only() {
        let text = jobs(&[sample()]);
        assert!(text.contains("backing off") && text.contains("http.503:  [31mbusy"), "{text}");
        assert!(!text.contains('\x1b'));
        assert!(line(&sample()).ends_with("backing off  a  echo  mail  http.503:  [31mbusy"));
    }

    #[test]
    fn empty_fields_are_left_out_of_a_job() {
        let text = job(&sample());
        assert!(text.contains("mail") && !text.contains("output") && !text.contains("finished"), "{text}");
    }

    #[test]
    fn documents_are_printed_as_they_are() {
        let of = |body| Payload { body: Some(body), ..Payload::default() };
        assert_eq!(raw_body(&of(Body::Data(vec![0, 255].into()))), [0, 255]);
        let number = Value { kind: Some(Kind::NumberValue(3.0)) };
        assert_eq!(raw_body(&of(Body::Json(number))), b"3");
        assert!(raw_body(&Payload::default()).is_empty());
    }

    #[test]
    fn a_state_of_tomorrow_is_a_number() {
        assert_eq!(state(42), "42");
        assert_eq!(time(None), "");
    }
}
