//! Runs what time changes: due jobs, expired leases and limits, retention.

use std::time::Duration;

use super::{Clock, Leases, Revocation};
use crate::store::Store;

/// The longest sleep: a job that was accepted meanwhile may be due sooner than anything known of.
const INTERVAL: Duration = Duration::from_millis(250);

/// The shortest sleep.
const PAUSE: Duration = Duration::from_millis(5);

/// Runs until the store fails.
pub async fn run(store: &dyn Store, clock: &Clock, leases: &Leases) {
    loop {
        let now = clock.now();
        let tick = match store.tick(now).await {
            Ok(tick) => tick,
            Err(error) => {
                tracing::error!(%error, "timers stand still");
                return;
            }
        };
        for lease in tick.revoked {
            leases.revoke(lease, Revocation::Lost);
        }
        if tick.more {
            tokio::task::yield_now().await;
            continue;
        }
        let next = tick.next.map_or(INTERVAL, |next| next.since(clock.now()));
        tokio::time::sleep(next.clamp(PAUSE, INTERVAL)).await;
    }
}
