//! Runs what time changes: due jobs, expired leases and limits, retention.

use std::{pin::pin, time::Duration};

use tokio::time::{Instant, timeout};

use super::{Inner, Revocation, Stopped, remote};

/// The longest sleep: a job that was accepted meanwhile may be due sooner than anything known of.
const INTERVAL: Duration = Duration::from_millis(250);

/// The shortest sleep.
const PAUSE: Duration = Duration::from_millis(5);

/// A tick rests for so many times as long as it took: where much has to be looked through, it must not crowd out the rest.
const REST: u32 = 4;

/// Between looks at a store that cannot be reached.
const UNREACHABLE: Duration = Duration::from_secs(1);

/// A store that answers a look no sooner is not one that serves.
const SILENCE: Duration = Duration::from_secs(5);

/// Runs until the store fails.
pub async fn run(engine: &Inner) {
    let Inner { store, clock, leases, remote, config, reachable, .. } = engine;
    let tell =
        |is_reachable| reachable.send_if_modified(|was| std::mem::replace(was, is_reachable) != is_reachable);
    loop {
        let (now, begun) = (clock.now(), Instant::now());
        let mut look = pin!(async {
            remote::elapse(&**store, remote, now, config.workers.grace).await?;
            store.tick(now).await
        });
        let tick = match timeout(SILENCE, &mut look).await {
            Ok(tick) => tick,
            Err(_) => {
                tell(false);
                look.await
            }
        };
        tell(tick.is_ok());
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
        tokio::time::sleep(next.clamp(PAUSE, INTERVAL).max(begun.elapsed() * REST)).await;
    }
}
