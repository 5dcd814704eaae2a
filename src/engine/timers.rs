//! Runs what time changes: due jobs, expired leases and limits, retention.

use std::time::Duration;

use super::{Inner, Revocation, Stopped, remote};

/// The longest sleep: a job that was accepted meanwhile may be due sooner than anything known of.
const INTERVAL: Duration = Duration::from_millis(250);

/// The shortest sleep.
const PAUSE: Duration = Duration::from_millis(5);

/// Between looks at a store that cannot be reached.
const UNREACHABLE: Duration = Duration::from_secs(1);

/// Runs until the store fails.
pub async fn run(engine: &Inner) {
    let Inner { store, clock, leases, remote, config, .. } = engine;
    loop {
        let now = clock.now();
        let looked = remote::elapse(&**store, remote, now, config.workers.grace).await;
        let tick = match looked {
            Ok(()) => store.tick(now).await,
            Err(error) => Err(error),
        };
        let tick = match tick {
            Ok(tick) => tick,
            Err(error) => {
                tracing::error!(%error, "timers stand still");
                if store.signals().failed.borrow().is_some() {
                    return;
                }
                tokio::time::sleep(UNREACHABLE).await;
                continue;
            }
        };
        for lease in tick.revoked {
            leases.revoke(lease, Revocation::Lost);
            remote.stop(lease, Stopped::Expired, now);
        }
        if tick.more {
            tokio::task::yield_now().await;
            continue;
        }
        let next = tick.next.map_or(INTERVAL, |next| next.since(clock.now()));
        tokio::time::sleep(next.clamp(PAUSE, INTERVAL)).await;
    }
}
