//! Which queues the followers of the feed look at: what others did with the rest need not be read from a shared store.

use std::{collections::HashMap, time::Duration};

use tokio::time::Instant;

use crate::store::{Position, Queues};

/// Queues that were followed stay followed for so long: one wait often comes right after another.
const LINGER: Duration = Duration::from_secs(10);

/// Names and prefixes that are looked for. Where there are more, all outcomes are read.
const MAX_PATTERNS: usize = 32;

/// Followers by what they look at.
#[derive(Debug)]
pub struct Interest {
    by_queues: HashMap<Queues, Followers>,
    pruned: Instant,
    /// What is read now, or was read last, is of all queues.
    is_everything_read: bool,
    version: Version,
}

/// Counts up when more is looked at than is read now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Version(u64);

#[derive(Debug)]
struct Followers {
    count: usize,
    /// Their outcomes after this position are in memory.
    since: Position,
    /// When the last one left.
    left: Instant,
}

impl Default for Interest {
    fn default() -> Self {
        Self {
            by_queues: HashMap::new(),
            pruned: Instant::now(),
            is_everything_read: false,
            version: Version::default(),
        }
    }
}

impl Interest {
    /// One more who looks at these queues, while the feed in memory ends at `end`. Answers with the position from which it
    /// has all of their outcomes.
    pub fn add(&mut self, queues: &Queues, end: Position) -> Position {
        if self.pruned.elapsed() >= LINGER {
            self.prune();
        }
        let everything = self.by_queues.get(&Queues::All).map(|followers| followers.since);
        let followers = self.by_queues.entry(queues.clone()).or_insert_with(|| {
            if everything.is_none() && !self.is_everything_read {
                self.version.0 += 1;
            }
            Followers { count: 0, since: everything.unwrap_or(end), left: Instant::now() }
        });
        followers.count += 1;
        followers.since
    }

    /// One of them has left.
    pub fn remove(&mut self, queues: &Queues) {
        if let Some(followers) = self.by_queues.get_mut(queues) {
            followers.count -= 1;
            followers.left = Instant::now();
        }
    }

    pub fn version(&self) -> Version {
        self.version
    }

    /// Whose outcomes are to be read now.
    pub fn queues(&mut self) -> (Queues, Version) {
        self.prune();
        let queues = self.union();
        self.is_everything_read = queues == Queues::All;
        (queues, self.version)
    }

    fn union(&self) -> Queues {
        let mut all = Vec::new();
        for queues in self.by_queues.keys() {
            match queues {
                Queues::Only(patterns) if all.len() + patterns.len() <= MAX_PATTERNS => {
                    all.extend_from_slice(patterns);
                }
                _ => return Queues::All,
            }
        }
        Queues::Only(all.into())
    }

    fn prune(&mut self) {
        self.by_queues.retain(|_, followers| followers.count > 0 || followers.left.elapsed() < LINGER);
        self.pruned = Instant::now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::NamePattern;

    fn only(name: &str) -> Queues {
        Queues::Only([NamePattern::Exact(name.into())].into())
    }

    #[tokio::test(start_paused = true)]
    async fn queues_are_read_while_somebody_follows_them_and_a_little_longer() {
        let mut interest = Interest::default();
        assert_eq!(interest.queues().0, Queues::Only([].into()));
        assert_eq!(interest.add(&only("a"), Position(5)), Position(5));
        assert_eq!(interest.add(&only("a"), Position(7)), Position(5));
        assert_eq!(interest.queues().0, only("a"));
        interest.remove(&only("a"));
        tokio::time::advance(LINGER).await;
        assert_eq!(interest.queues().0, only("a"));
        interest.remove(&only("a"));
        assert_eq!(interest.queues().0, only("a"));
        let version = interest.version();
        assert_eq!(interest.add(&only("a"), Position(9)), Position(5));
        assert_eq!(interest.version(), version);
        interest.remove(&only("a"));
        tokio::time::advance(LINGER).await;
        assert_eq!(interest.queues().0, Queues::Only([].into()));
        assert_eq!(interest.add(&only("a"), Position(9)), Position(9));
        assert_ne!(interest.version(), version);
    }

    #[tokio::test]
    async fn whoever_follows_everything_has_read_for_others_too() {
        let mut interest = Interest::default();
        interest.add(&only("a"), Position(1));
        assert_eq!(interest.add(&Queues::All, Position(2)), Position(2));
        let version = interest.version();
        assert_eq!(interest.add(&only("b"), Position(3)), Position(2));
        assert_eq!((interest.version(), interest.queues().0), (version, Queues::All));
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_left_is_forgotten_though_nothing_is_read() {
        let mut interest = Interest::default();
        for n in 0..1000 {
            let queues = only(&n.to_string());
            interest.add(&queues, Position(1));
            interest.remove(&queues);
            tokio::time::advance(LINGER / 10).await;
        }
        assert!(interest.by_queues.len() <= 21, "{}", interest.by_queues.len());
    }

    #[tokio::test]
    async fn everything_is_read_for_many_different_followers() {
        let mut interest = Interest::default();
        for n in 0..MAX_PATTERNS {
            interest.add(&only(&n.to_string()), Position(1));
        }
        assert!(matches!(interest.queues().0, Queues::Only(patterns) if patterns.len() == MAX_PATTERNS));
        interest.add(&only("one more"), Position(1));
        let (queues, version) = interest.queues();
        assert_eq!(queues, Queues::All);
        // It is in what is read now.
        interest.add(&only("another"), Position(1));
        assert_eq!(interest.version(), version);
    }
}
