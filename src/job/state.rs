use std::fmt;

/// Where a job is in its life.
///
/// ```text
///            Submit                       RetryJob: run + 1
///   ┌──────────┴──────────┐        ┌──────────────────────────────┐
///   ▼                     ▼        ▼                              │
/// SCHEDULED ──timer──▶ QUEUED ──lease──▶ RUNNING ──▶ SUCCEEDED    │
///                       ▲ ▲ ▲               │ │ │                 │
///                       │ │ └───released────┘ │ └──▶ FAILED ──────┤
///                 timer,│ │                   │                   │
///               RetryJob│ └── BACKING_OFF ◀───┘ failed, tries left│
///                       └───────┘                                 │
/// SCHEDULED, QUEUED, BACKING_OFF, RUNNING ──cancel──▶ CANCELLED ──┤
/// SCHEDULED, QUEUED, BACKING_OFF, RUNNING ──time────▶ EXPIRED ────┘
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    Live(LiveState),
    Final(FinalState),
}

/// The job will go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LiveState {
    /// Waits for its start time.
    Scheduled = 1,
    /// Due, waits for a worker.
    Queued = 2,
    /// An attempt is under way.
    Running = 3,
    /// The last attempt failed; waits for the next one.
    BackingOff = 4,
}

/// The run is over. The set is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FinalState {
    Succeeded = 5,
    Failed = 6,
    Cancelled = 7,
    Expired = 8,
}

impl State {
    pub const SCHEDULED: Self = Self::Live(LiveState::Scheduled);
    pub const QUEUED: Self = Self::Live(LiveState::Queued);
    pub const RUNNING: Self = Self::Live(LiveState::Running);
    pub const BACKING_OFF: Self = Self::Live(LiveState::BackingOff);
    pub const SUCCEEDED: Self = Self::Final(FinalState::Succeeded);
    pub const FAILED: Self = Self::Final(FinalState::Failed);
    pub const CANCELLED: Self = Self::Final(FinalState::Cancelled);
    pub const EXPIRED: Self = Self::Final(FinalState::Expired);

    /// Every state, in the order of their numbers, which begin at 1.
    pub const ALL: [Self; 8] = [
        Self::SCHEDULED,
        Self::QUEUED,
        Self::RUNNING,
        Self::BACKING_OFF,
        Self::SUCCEEDED,
        Self::FAILED,
        Self::CANCELLED,
        Self::EXPIRED,
    ];

    /// The number on the wire and in the store.
    pub fn number(self) -> i32 {
        match self {
            Self::Live(state) => state as i32,
            Self::Final(state) => state as i32,
        }
    }

    /// The state with this number.
    pub fn from_number(number: i32) -> Option<Self> {
        let index = usize::try_from(number).ok()?.checked_sub(1)?;
        Self::ALL.get(index).copied()
    }

    /// Whether the run is over.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Final(_))
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match *self {
            Self::SCHEDULED => "SCHEDULED",
            Self::QUEUED => "QUEUED",
            Self::RUNNING => "RUNNING",
            Self::BACKING_OFF => "BACKING_OFF",
            Self::SUCCEEDED => "SUCCEEDED",
            Self::FAILED => "FAILED",
            Self::CANCELLED => "CANCELLED",
            Self::EXPIRED => "EXPIRED",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_go_both_ways() {
        for state in State::ALL {
            assert_eq!(State::from_number(state.number()), Some(state));
        }
        for number in [i32::MIN, -1, 0, 9, i32::MAX] {
            assert_eq!(State::from_number(number), None);
        }
    }
}
