//! Settings of one start. Drawn is what must not make a difference to anything that was promised; what decides how long
//! jobs, outcomes and request ids are kept stays as it is, because the checks look at all of them.

use std::fmt::Write as _;

use fastrand::Rng;

/// How long leases may be.
pub const LEASES: &[&str] = &[
    "",
    "lease = \"200ms\"\nheartbeat = \"20ms\"",
    "lease = \"1s\"\nheartbeat = \"100ms\"",
    "lease = \"2s\"\nheartbeat = \"10ms\"",
];

/// The text of a configuration file.
pub fn draw(rng: &mut Rng, leases: &[&'static str]) -> String {
    let mut text = String::new();
    let table = |text: &mut String, rng: &mut Rng, name: &str, settings: &[(&str, &[&str])]| {
        writeln!(text, "[{name}]").expect("a string");
        for (setting, values) in settings {
            // Else the default.
            if rng.bool() {
                let value = values[rng.usize(..values.len())];
                writeln!(text, "{setting} = {value}").expect("a string");
            }
        }
    };
    // Settings that belong together are drawn together.
    let together = |rng: &mut Rng, lines: &[&'static str]| lines[rng.usize(..lines.len())];
    writeln!(text, "{}", together(rng, &["drain_timeout = \"0s\"", "drain_timeout = \"1s\""]))
        .expect("a string");
    table(
        &mut text,
        rng,
        "limits",
        &[
            ("max_payload_bytes", &["1000", "100000", "2000000"]),
            ("max_batch_items", &["1", "20", "1000"]),
            ("max_unfinished", &["50", "1000"]),
            ("submit_buffer_items", &["1", "50"]),
            ("submit_buffer_bytes", &["3000000", "100000000"]),
            ("max_unfinished_bytes", &["3000000"]),
            ("max_waits", &["1", "100"]),
        ],
    );
    table(
        &mut text,
        rng,
        "http2",
        &[
            ("max_concurrent_streams", &["1", "10"]),
            ("stream_window_bytes", &["65535", "4000000"]),
            ("send_buffer_bytes", &["1024", "1000000"]),
            ("max_connection_age", &["\"50ms\"", "\"1s\""]),
            ("connection_grace", &["\"1ms\"", "\"100ms\""]),
        ],
    );
    table(
        &mut text,
        rng,
        "watch",
        &[
            ("max_stream_age", &["\"20ms\"", "\"200ms\""]),
            ("buffer_messages", &["1", "8", "4096"]),
            ("buffer_bytes", &["1024", "100000"]),
            ("ring_bytes", &["0", "10000", "1000000"]),
            ("stall_timeout", &["\"100ms\""]),
        ],
    );
    table(
        &mut text,
        rng,
        "store",
        &[
            ("max_group", &["1", "10", "10000"]),
            ("readers", &["1", "8"]),
            ("cache_bytes", &["1048576"]),
            ("wal_limit_bytes", &["1048576", "4194304"]),
        ],
    );
    table(
        &mut text,
        rng,
        "workers",
        &[
            ("concurrency", &["0", "1", "3", "20", "2000"]),
            ("blocking_threads", &["1"]),
            ("grace", &["\"1ms\""]),
            ("max_connected", &["1"]),
            ("max_in_flight", &["100"]),
        ],
    );
    writeln!(text, "{}", together(rng, leases)).expect("a string");
    table(&mut text, rng, "queues.b", &[("concurrency", &["1", "5"]), ("max_unfinished", &["20"])]);
    text
}
