//! What was measured.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

/// The figures of one scenario. What was not measured is left out.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// The scenario, and what was special.
    pub name: String,
    /// What the rate counts: calls, jobs or messages.
    pub unit: &'static str,
    /// How many there were.
    pub count: u64,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// How many there were in a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per_second: Option<f64>,
    /// How long each took.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency: Option<Latency>,
    /// Resident memory of the server at the end, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_memory: Option<u64>,
    /// Processor time of the server for each of them, in microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_cpu_micros: Option<f64>,
    /// What belongs to this scenario alone, by name with unit.
    #[serde(flatten)]
    pub more: std::collections::BTreeMap<&'static str, f64>,
}

/// Times in microseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Latency {
    /// Half of them were faster.
    pub p50: u64,
    /// 99 of 100.
    pub p99: u64,
    /// 999 of 1000.
    pub p999: u64,
    /// The slowest.
    pub max: u64,
}

impl Latency {
    /// None without a single value.
    pub fn of(times: &Histogram<u64>) -> Option<Self> {
        (!times.is_empty()).then(|| Self {
            p50: times.value_at_quantile(0.5),
            p99: times.value_at_quantile(0.99),
            p999: times.value_at_quantile(0.999),
            max: times.max(),
        })
    }
}

/// Microseconds up to a minute, three digits.
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000, 3).expect("the bounds are sound")
}

/// Puts a time into a histogram.
pub fn record(times: &mut Histogram<u64>, time: Duration) {
    times.saturating_record(time.as_micros().try_into().unwrap_or(u64::MAX));
}
