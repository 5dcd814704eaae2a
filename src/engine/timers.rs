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

/// But no longer: a tick may also take long because the store stood still, and then much is late already.
const LONGEST_REST: Duration = Duration::from_secs(1);

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
        tokio::time::sleep(pause(next, begun.elapsed())).await;
    }
}

/// Between a tick that took so long and the next one, if something is due then.
fn pause(due: Duration, took: Duration) -> Duration {
    due.clamp(PAUSE, INTERVAL).max((took * REST).min(LONGEST_REST))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tick_rests_for_longer_than_it_took_but_not_for_long() {
        let millis = Duration::from_millis;
        assert_eq!(pause(millis(0), millis(0)), PAUSE);
        assert_eq!(pause(millis(40), millis(3)), millis(40));
        assert_eq!(pause(millis(10_000), millis(3)), INTERVAL);
        assert_eq!(pause(millis(40), millis(100)), millis(400));
        // The store did not answer for a while, and the limits of jobs have passed meanwhile.
        assert_eq!(pause(millis(0), millis(5000)), LONGEST_REST);
    }
}
