use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use parking_lot::Mutex;

use crate::job::Timestamp;

/// The time of day, except that it never goes back. After the machine's clock was set back it goes on, a little slower,
/// until the two meet: what waits is late by one part in sixteen, not by all that the clock was set back.
#[derive(Debug)]
pub struct Clock {
    anchor: Mutex<Anchor>,
    /// Milliseconds that the time of day is ahead of the machine's.
    ahead: Arc<AtomicI64>,
}

/// From where the time goes on while the machine's is behind.
#[derive(Debug)]
struct Anchor {
    at: Instant,
    time: Timestamp,
}

impl Default for Clock {
    fn default() -> Self {
        Self::starting_at(time_of_day())
    }
}

impl Clock {
    /// Says `time` now, unless the machine says that it is later.
    pub fn starting_at(time: Timestamp) -> Self {
        Self { anchor: Mutex::new(Anchor { at: Instant::now(), time }), ahead: Arc::default() }
    }

    /// Says what another machine's clock does, which is `ahead` of this one's by so many milliseconds, or behind.
    pub fn following(ahead: Arc<AtomicI64>) -> Self {
        let time = Timestamp(time_of_day().0 + ahead.load(Ordering::Relaxed));
        Self { ahead, ..Self::starting_at(time) }
    }

    pub fn now(&self) -> Timestamp {
        // Both are read under the lock, so that no caller gets less than the one before.
        let mut anchor = self.anchor.lock();
        let time_of_day = Timestamp(time_of_day().0.saturating_add(self.ahead.load(Ordering::Relaxed)));
        anchor.read(Instant::now(), time_of_day)
    }
}

impl Anchor {
    fn read(&mut self, at: Instant, time_of_day: Timestamp) -> Timestamp {
        let least = self.time.after(at.saturating_duration_since(self.at) * 15 / 16);
        if time_of_day < least {
            return least;
        }
        *self = Self { at, time: time_of_day };
        time_of_day
    }
}

fn time_of_day() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn goes_on_after_the_clock_was_set_back_until_the_two_meet() {
        let start = Instant::now();
        let mut anchor = Anchor { at: start, time: Timestamp(1_000_000) };
        let mut read = |seconds: u64, time_of_day: i64| {
            anchor.read(start + Duration::from_secs(seconds), Timestamp(time_of_day)).0
        };
        assert_eq!(read(16, 1_016_000), 1_016_000);
        // Ten seconds back.
        assert_eq!(read(16, 1_006_000), 1_016_000);
        assert_eq!(read(32, 1_022_000), 1_031_000);
        assert_eq!(read(175, 1_165_000), 1_165_062);
        assert_eq!(read(176, 1_166_000), 1_166_000);
        assert_eq!(read(177, 1_167_000), 1_167_000);
        // An hour ahead is believed at once.
        assert_eq!(read(178, 4_768_000), 4_768_000);
    }
}
