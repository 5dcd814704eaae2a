//! What people type.

use clap::Parser as _;
use jiff::fmt::friendly::SpanPrinter;

use super::{
    Cli,
    values::{Since, duration, label, proto_duration, since, timestamp},
};
use crate::fuzz::{Target, lines, text};

pub const TARGETS: &[Target] = &[
    Target { name: "cli_duration", run: durations, seeds: value_seeds },
    Target { name: "cli_time", run: times, seeds: value_seeds },
    Target { name: "cli_label", run: labels, seeds: value_seeds },
    Target { name: "cli_arguments", run: arguments, seeds: argument_seeds },
];

fn value_seeds() -> Vec<Vec<u8>> {
    lines(
        "30s\n1h 30m\n250ms\n1.5s\nPT1H\n5s ago\n99999999999999999999s\n2026-05-01T12:00:00Z\n1969-12-31T23:59:59.5Z\n\
         1970-01-01T01:00:01+01:00\n2026-05-01 12:00\n-009999-01-02T01:59:59Z\n9999-12-30T22:00:00Z\n0001-01-01T00:00:00Z\na=b=c\n=b",
    )
}

fn durations(bytes: &[u8]) {
    let Some(text) = text(bytes) else { return };
    let Ok(read) = duration(text) else { return };
    let told = SpanPrinter::new().unsigned_duration_to_string(&read);
    assert_eq!(duration(&told), Ok(read), "{text} is told as {told}");
    if let Ok(wire) = proto_duration(text) {
        assert_eq!((wire.seconds as u64, wire.nanos as u32), (read.as_secs(), read.subsec_nanos()));
    }
}

fn times(bytes: &[u8]) {
    let Some(text) = text(bytes) else { return };
    if let Ok(read) = timestamp(text) {
        assert!((0..1_000_000_000).contains(&read.nanos));
        // What a message holds: the years 1 to 9999.
        assert!((-62_135_596_800..=253_402_300_799).contains(&read.seconds), "{text} is {} s", read.seconds);
        assert_eq!(timestamp(&read.to_string()), Ok(read));
    }
    match since(text) {
        Ok(Since::Time(read)) => assert_eq!(timestamp(text), Ok(read)),
        Ok(Since::Ago(read)) => assert_eq!(proto_duration(text), Ok(read)),
        Err(_) => assert!(timestamp(text).is_err() && proto_duration(text).is_err()),
    }
}

fn labels(bytes: &[u8]) {
    let Some(text) = text(bytes) else { return };
    match label(text) {
        Ok((key, value)) => {
            assert!(format!("{key}={value}") == text && !key.is_empty() && !key.contains('='))
        }
        Err(_) => assert!(text.find('=').is_none_or(|at| at == 0)),
    }
}

fn argument_seeds() -> Vec<Vec<u8>> {
    lines(
        "submit echo --json {} --label a=b --delay 5s --priority -3\nwatch --queue mail --since 1h --state failed\n\
         run http --text x --timeout 10s -o json\nlist --limit 5 --label a=*\nget a --wait 3s\nserve --listen 127.0.0.1:0\n\
         cancel a b --reason x\nretry a --delay 1m\ndelete a\nconfig show\ncompletions bash\nbackup x\nverify",
    )
}

fn arguments(bytes: &[u8]) {
    let Some(text) = text(bytes) else { return };
    if let Err(error) = Cli::try_parse_from(std::iter::once("jobwire").chain(text.split(' '))) {
        assert!(!error.to_string().is_empty());
    }
}
