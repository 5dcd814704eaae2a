//! What keeps a database from serving well for long: told when a replica starts, and when there is something new.

use std::{collections::HashSet, sync::atomic::Ordering, time::Duration};

use parking_lot::Mutex;
use tokio::time::Instant;

use super::{
    database::Database,
    pool::{CONNECTIONS, Connections, Result},
};

const WARNINGS: &str = include_str!("sql/warnings.sql");

/// How often it is looked.
const INTERVAL: Duration = Duration::from_secs(60);

/// How long anybody may hold back the cleaning of tables before it is told.
const PATIENCE: Duration = Duration::from_secs(60);

/// How far the clocks may be apart, milliseconds.
const MAX_APART: i64 = 1000;

/// What was told, and when it was looked.
#[derive(Debug, Default)]
pub struct Warnings {
    looked: Mutex<Option<Instant>>,
    told: Mutex<HashSet<String>>,
}

impl Warnings {
    /// Whether it is the first time that it is looked; None: not yet time to look again.
    fn is_first(&self) -> Option<bool> {
        let mut looked = self.looked.lock();
        if looked.is_some_and(|looked| looked.elapsed() < INTERVAL) {
            return None;
        }
        Some(looked.replace(Instant::now()).is_none())
    }

    /// What lasts is told once.
    fn tell(&self, found: HashSet<String>) {
        let mut told = self.told.lock();
        for warning in found.difference(&told) {
            tracing::warn!("{warning}");
        }
        *told = found;
    }
}

impl Database {
    pub async fn warn(&self) -> Result<()> {
        let Some(is_first) = self.warnings.is_first() else { return Ok(()) };
        // The listener's is there, and the one that asks.
        let needed = if is_first { CONNECTIONS - 2 } else { 0 };
        let mut found = look(&self.pools.read, PATIENCE, needed).await?;
        let ahead = self.common.ahead.load(Ordering::Relaxed);
        if ahead.abs() > MAX_APART {
            let how = if ahead > 0 { "behind" } else { "ahead of" };
            found.insert(format!(
                "this machine's clock is more than a second {how} the database's, which counts: keep both with NTP"
            ));
        }
        self.warnings.tell(found);
        Ok(())
    }
}

/// What there is to tell of.
pub async fn look(connections: &Connections, patience: Duration, needed: usize) -> Result<HashSet<String>> {
    let rows = connections.query(WARNINGS, &[&patience.as_secs_f64(), &(needed as i64)]).await?;
    Ok(rows.iter().map(|row| row.get("warning")).collect())
}
