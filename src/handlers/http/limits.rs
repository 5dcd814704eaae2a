use std::{
    collections::HashMap,
    num::NonZeroU32,
    sync::{Arc, Mutex, PoisonError},
};

use governor::{
    DefaultDirectRateLimiter, Quota, RateLimiter,
    clock::{Clock as _, DefaultClock},
};
use tokio::{
    sync::{AcquireError, OwnedSemaphorePermit, Semaphore},
    time::sleep,
};

use crate::{config, job::JobError, worker::Context};

/// Hosts that are remembered.
const MAX_HOSTS: usize = 10_000;

/// What each host is spared: requests at the same time, and a second.
#[derive(Debug)]
pub struct Limits {
    concurrency: usize,
    quota: Option<Quota>,
    hosts: Mutex<HashMap<String, Arc<Limit>>>,
}

#[derive(Debug)]
struct Limit {
    places: Arc<Semaphore>,
    rate: Option<DefaultDirectRateLimiter>,
}

/// The right to send one request to a host. Until it is dropped the host is remembered.
pub struct Place {
    _limit: Arc<Limit>,
    _place: OwnedSemaphorePermit,
}

impl Limits {
    pub fn new(settings: &config::Http) -> Self {
        Self {
            concurrency: settings.concurrency_per_host,
            quota: NonZeroU32::new(settings.requests_per_second_per_host).map(Quota::per_second),
            hosts: Mutex::default(),
        }
    }

    /// Waits for a place at a host, as long as the attempt lasts.
    pub async fn enter(&self, host: &str, context: &Context) -> Result<Place, JobError> {
        let limit = self.of(host);
        let place = context.in_line(limit.turn()).await?;
        Ok(Place { _limit: limit, _place: place })
    }

    fn of(&self, host: &str) -> Arc<Limit> {
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(limit) = hosts.get(host) {
            return limit.clone();
        }
        if hosts.len() >= MAX_HOSTS {
            // Those in use are as many as there are attempts at most; the others lose no more than a second's count.
            hosts.retain(|_, limit| Arc::strong_count(limit) > 1);
        }
        let places = Arc::new(Semaphore::new(self.concurrency));
        let limit = Arc::new(Limit { places, rate: self.quota.map(RateLimiter::direct) });
        hosts.insert(host.to_owned(), limit.clone());
        limit
    }
}

impl Limit {
    /// Waits for a place, then for the rate to allow one more.
    async fn turn(&self) -> Result<OwnedSemaphorePermit, AcquireError> {
        let place = self.places.clone().acquire_owned().await?;
        if let Some(rate) = &self.rate {
            while let Err(early) = rate.check() {
                sleep(early.wait_time_from(DefaultClock::default().now())).await;
            }
        }
        Ok(place)
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::handlers::testing::context;

    fn limits(concurrency: usize, rate: u32) -> Limits {
        Limits::new(&config::Http {
            concurrency_per_host: concurrency,
            requests_per_second_per_host: rate,
            ..config::Http::default()
        })
    }

    #[tokio::test]
    async fn places_are_counted_for_each_host() {
        let limits = limits(1, 0);
        let (context, cancelled) = context();
        let first = limits.enter("a", &context).await.unwrap();
        let _other = limits.enter("b", &context).await.unwrap();
        let waiting = async { limits.enter("a", &context).await.is_ok() };
        let freed = async { drop(first) };
        assert!(tokio::join!(waiting, freed).0);

        let _again = limits.enter("a", &context).await.unwrap();
        cancelled.cancel();
        assert_eq!(limits.enter("a", &context).await.err().unwrap().code, "interrupted");
    }

    #[tokio::test]
    async fn a_rate_spreads_requests() {
        let limits = limits(100, 20);
        let start = Instant::now();
        for _ in 0..30 {
            limits.enter("a", &context().0).await.unwrap();
        }
        // 20 at once, 10 more at 50 ms each.
        assert!(start.elapsed() > Duration::from_millis(400), "{:?}", start.elapsed());
    }

    #[tokio::test]
    async fn idle_hosts_are_forgotten_and_busy_ones_are_not() {
        let limits = limits(1, 1);
        let _busy = limits.enter("busy", &context().0).await.unwrap();
        for i in 0..=MAX_HOSTS {
            limits.enter(&i.to_string(), &context().0).await.unwrap();
        }
        let hosts = limits.hosts.lock().unwrap();
        assert!(hosts.len() <= MAX_HOSTS && hosts.contains_key("busy"));
    }
}
