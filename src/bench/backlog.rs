//! Life beside many waiting jobs: the rate before and with them, the memory, and a restart.

use std::time::Instant;

use super::{
    Error, Load, Report, Target, lifecycle,
    submit::{fill, with_usage},
    workload::Queue,
};

pub async fn run(target: &mut Target, load: &Load) -> Result<Vec<Report>, Error> {
    if !target.is_own() {
        return Err(Error::NeedsOwn("backlog"));
    }
    let mut empty = lifecycle::stream(target, load).await?;
    empty.name = "backlog: stream-lifecycle at empty".into();

    let (before, start) = (target.usage(), Instant::now());
    let waiting = load.backlog;
    let count = fill(target, &Queue::new(load.payload), move |number| number < waiting).await?;
    let seconds = start.elapsed().as_secs_f64();
    let filled = Report {
        name: format!("backlog: {count} jobs submitted that wait"),
        unit: "jobs",
        count,
        seconds,
        per_second: Some(count as f64 / seconds),
        ..Default::default()
    };
    let filled = with_usage(filled, target, before);

    let mut full = lifecycle::stream(target, load).await?;
    full.name = "backlog: stream-lifecycle beside them".into();
    if let (Some(full_rate), Some(rate)) = (full.per_second, empty.per_second) {
        full.more.insert("of_empty", full_rate / rate);
    }

    let restart = target.restart().await?;
    let restarted = Report {
        name: "backlog: kill -9, start, SERVING".into(),
        unit: "starts",
        count: 1,
        seconds: restart.as_secs_f64(),
        server_memory: target.usage().map(|usage| usage.memory),
        ..Default::default()
    };
    Ok(vec![empty, filled, full, restarted])
}
