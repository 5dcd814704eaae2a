use std::sync::Arc;

use super::Position;

/// Where the log of the feed has broken off, and where it went on: its end was lost, and numbers after it are not given a
/// second time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Break {
    /// The last place before it that is of the log as it is now.
    pub ended: Position,
    /// Outcomes come after this place again.
    pub resumed: Position,
}

/// All of them, in order. Whoever stands in one has heard of outcomes that are lost.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Breaks(Arc<[Break]>);

impl FromIterator<Break> for Breaks {
    fn from_iter<I: IntoIterator<Item = Break>>(breaks: I) -> Self {
        Self(breaks.into_iter().collect())
    }
}

impl Breaks {
    /// The newest one.
    pub fn last(&self) -> Option<Break> {
        self.0.last().copied()
    }

    /// The one that somebody stands in, if in any.
    pub fn find(&self, at: Position) -> Option<Break> {
        self.0.iter().find(|one| one.ended < at && at < one.resumed).copied()
    }

    /// How many positions there are after a place and up to a later one. Those within breaks were never used, or are lost.
    pub fn count(&self, after: Position, upto: Position) -> i64 {
        let within = |one: &Break| (upto.min(one.resumed).0 - after.max(one.ended).0).max(0);
        upto.0 - after.0 - self.0.iter().map(within).sum::<i64>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn breaks() -> Breaks {
        let one = |ended, resumed| Break { ended: Position(ended), resumed: Position(resumed) };
        [one(0, 0), one(7, 100), one(100, 200), one(205, 300)].into_iter().collect()
    }

    #[test]
    fn who_has_heard_of_what_is_lost_is_told_where_to_go_on() {
        let resume = |at| breaks().find(Position(at)).map(|found| found.resumed.0);
        for sound in [0, 7, 100, 200, 205, 300, 1000] {
            assert_eq!(resume(sound), None, "{sound}");
        }
        // Also who knew of two epochs that are both lost: it goes on in the next one, which may be empty.
        assert_eq!([8, 99, 101, 199, 206, 299].map(resume), [100, 100, 200, 200, 300, 300].map(Some));
    }

    #[test]
    fn breaks_do_not_count() {
        let count = |after, upto| breaks().count(Position(after), Position(upto));
        assert_eq!([count(0, 7), count(5, 100), count(5, 103), count(5, 202)], [7, 2, 2, 4]);
        assert_eq!([count(50, 60), count(50, 201), count(201, 301), count(301, 310)], [0, 1, 5, 9]);
    }
}
