//! Where due jobs may stand in their lines, by rank: what was committed here, and what other replicas hint at. Claims look
//! only there, because an index that is walked from its beginning is walked over all that was claimed before, for as long
//! as the oldest snapshot may still see it.
//!
//! A hint may be lost, and a claim undone: so from time to time a line is looked through as a whole.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

/// Between looks through a whole line, at least.
const PAUSE: Duration = Duration::from_secs(2);

/// And at least so many times as long as the last one took.
const REST: u32 = 20;

/// Spans of one line that are kept apart.
const SPANS: usize = 16;

/// Ranks of a line, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    pub line: i32,
    pub low: i64,
    pub high: i64,
}

impl Span {
    fn all(line: i32) -> Self {
        Self { line, low: i64::MIN, high: i64::MAX }
    }

    pub fn at(line: i32, rank: i64) -> Self {
        Self { line, low: rank, high: rank }
    }

    fn join(&mut self, other: Self) {
        (self.low, self.high) = (self.low.min(other.low), self.high.max(other.high));
    }
}

/// One for each line, from many.
pub fn by_line(spans: impl Iterator<Item = Span>) -> Vec<Span> {
    let mut lines: HashMap<i32, Span> = HashMap::new();
    for span in spans {
        lines.entry(span.line).or_insert(span).join(span);
    }
    lines.into_values().collect()
}

/// What this replica knows of its lines.
#[derive(Debug, Default)]
pub struct Standing(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    lines: HashMap<i32, Line>,
    /// Looks that have begun.
    looks: u64,
    /// There are no hints: others may have put jobs anywhere.
    is_deaf: bool,
}

#[derive(Debug, Default)]
struct Line {
    places: Vec<Place>,
    /// When it was last looked through as a whole, and how long that took.
    whole: Option<(Instant, Duration)>,
}

/// Where jobs may stand.
#[derive(Debug)]
struct Place {
    span: Span,
    /// The number of looks that had begun when it was last told of.
    told: u64,
    /// Somebody is taking what stands there.
    is_looked_at: bool,
}

/// A look at some lines, until it is dropped.
#[derive(Debug)]
pub struct Look<'a> {
    /// Where to look: no two of them overlap.
    pub spans: Vec<Span>,
    number: u64,
    begun: Instant,
    standing: &'a Standing,
}

impl Drop for Look<'_> {
    /// Nobody looks any more at what it has left.
    fn drop(&mut self) {
        let mut known = self.standing.0.lock();
        for span in &self.spans {
            if let Some(line) = known.lines.get_mut(&span.line) {
                let seen = line.places.iter_mut().filter(|place| place.told <= self.number);
                seen.for_each(|place| place.is_looked_at = false);
            }
        }
    }
}

impl Standing {
    /// Jobs have been put here, by a commit that can be seen.
    pub fn tell(&self, spans: &[Span]) {
        let mut known = self.0.lock();
        let looks = known.looks;
        for &span in spans {
            known.lines.entry(span.line).or_default().add(looks, span);
        }
    }

    /// Whether hints arrive. If they have not, others may have put jobs anywhere.
    pub fn hear(&self, is_deaf: bool) {
        let mut known = self.0.lock();
        known.is_deaf = is_deaf;
        known.lines.values_mut().for_each(|line| line.whole = None);
    }

    /// Where to look for due jobs of these lines, to take them. `at_once`: there will be no other look if this one misses
    /// what no hint has told of.
    pub fn look(&self, lines: impl Iterator<Item = i32>, at_once: bool) -> Look<'_> {
        let look = self.peek(lines, at_once);
        let mut known = self.0.lock();
        for span in &look.spans {
            if let Some(line) = known.lines.get_mut(&span.line) {
                line.places.iter_mut().for_each(|place| place.is_looked_at = place.told <= look.number);
            }
        }
        drop(known);
        look
    }

    /// The same, without taking any.
    pub fn peek(&self, lines: impl Iterator<Item = i32>, at_once: bool) -> Look<'_> {
        let mut known = self.0.lock();
        let (number, begun) = (known.looks, Instant::now());
        known.looks += 1;
        let pause = if at_once || known.is_deaf { Duration::ZERO } else { PAUSE };
        let mut spans = Vec::new();
        for id in lines {
            let line = known.lines.entry(id).or_default();
            let rests = |(at, took): (Instant, Duration)| begun - at < pause.max(took * REST);
            match line.whole.is_some_and(rests) {
                true => spans.extend(line.disjoint()),
                false => spans.push(Span::all(id)),
            }
        }
        Look { spans, number, begun, standing: self }
    }

    /// All due jobs of a line up to a rank have been taken where the look went; all there were, if that is none.
    pub fn taken(&self, look: &Look<'_>, line: i32, upto: Option<i64>) {
        let mut known = self.0.lock();
        let known = known.lines.entry(line).or_default();
        known.places.retain_mut(|Place { span, told, .. }| {
            let is_seen = *told <= look.number;
            if let (true, Some(rank)) = (is_seen, upto) {
                span.low = span.low.max(rank);
            }
            !is_seen || (upto.is_some() && span.low <= span.high)
        });
        if look.spans.contains(&Span::all(line)) {
            known.whole = Some((look.begun, look.begun.elapsed()));
            if let Some(rank) = upto {
                known.add(look.number, Span { low: rank, ..Span::all(line) });
            }
        }
    }

    /// Whether no job is known to stand in any of these lines that nobody is looking at by now.
    pub fn is_clear(&self, mut lines: impl Iterator<Item = i32>) -> bool {
        let known = self.0.lock();
        lines.all(|id| {
            let line = known.lines.get(&id).filter(|line| line.whole.is_some());
            line.is_some_and(|line| line.places.iter().all(|place| place.is_looked_at))
        })
    }
}

impl Line {
    fn add(&mut self, told: u64, span: Span) {
        let is_full = self.places.len() >= SPANS;
        match self.places.last_mut() {
            Some(last) if last.told == told || is_full => {
                last.span.join(span);
                (last.told, last.is_looked_at) = (told.max(last.told), false);
            }
            _ => self.places.push(Place { span, told, is_looked_at: false }),
        }
    }

    fn disjoint(&self) -> Vec<Span> {
        let mut spans: Vec<Span> = self.places.iter().map(|place| place.span).collect();
        spans.sort_unstable_by_key(|span| span.low);
        spans.dedup_by(|next, before| {
            let overlap = next.low <= before.high;
            if overlap {
                before.join(*next);
            }
            overlap
        });
        spans
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: i32 = 1;

    fn span(low: i64, high: i64) -> Span {
        Span { line: LINE, low, high }
    }

    fn look(standing: &Standing) -> Look<'_> {
        standing.look([LINE].into_iter(), false)
    }

    /// One that has been looked through, and is empty.
    fn empty() -> Standing {
        let standing = Standing::default();
        let first = look(&standing);
        assert_eq!(first.spans, [Span::all(LINE)]);
        standing.taken(&first, LINE, None);
        drop(first);
        assert_eq!(look(&standing).spans, []);
        standing
    }

    #[test]
    fn only_what_was_told_is_looked_at() {
        let standing = empty();
        standing.tell(&[span(10, 20), Span::at(2, 5)]);
        let first = look(&standing);
        assert_eq!(first.spans, [span(10, 20)]);
        standing.taken(&first, LINE, Some(15));
        let second = look(&standing);
        assert_eq!(second.spans, [span(15, 20)]);
        standing.taken(&second, LINE, None);
        assert_eq!(look(&standing).spans, []);
    }

    #[test]
    fn what_is_told_during_a_look_stays() {
        let standing = empty();
        standing.tell(&[span(10, 20)]);
        let first = look(&standing);
        standing.tell(&[span(5, 12)]);
        standing.taken(&first, LINE, None);
        assert_eq!(look(&standing).spans, [span(5, 12)]);
    }

    #[test]
    fn spans_of_a_look_do_not_overlap() {
        let standing = empty();
        for (low, high) in [(10, 20), (30, 40), (15, 25), (41, 50)] {
            standing.tell(&[span(low, high)]);
            look(&standing);
        }
        assert_eq!(look(&standing).spans, [span(10, 25), span(30, 40), span(41, 50)]);
    }

    #[test]
    fn a_line_is_clear_while_somebody_looks_at_what_stands_there() {
        let standing = Standing::default();
        let is_clear = || standing.is_clear([LINE].into_iter());
        assert!(!is_clear());
        let whole = look(&standing);
        assert!(!is_clear());
        standing.taken(&whole, LINE, None);
        assert!(is_clear() && !standing.is_clear([LINE, 2].into_iter()));
        standing.tell(&[span(10, 20)]);
        // Who takes nothing makes nothing clear.
        drop(standing.peek([LINE].into_iter(), false));
        assert!(!is_clear());
        let first = look(&standing);
        assert!(is_clear());
        standing.tell(&[span(30, 40)]);
        assert!(!is_clear());
        let second = look(&standing);
        assert!(is_clear());
        // There was more than it took.
        standing.taken(&first, LINE, Some(15));
        drop(first);
        assert!(!is_clear());
        standing.taken(&second, LINE, None);
        drop(second);
        assert!(is_clear());
        standing.tell(&[span(50, 60)]);
        // It failed.
        drop(look(&standing));
        assert!(!is_clear());
        let last = look(&standing);
        standing.taken(&last, LINE, None);
        drop(last);
        assert!(is_clear());
        standing.hear(true);
        assert!(!is_clear());
    }

    #[test]
    fn many_spans_become_few() {
        let standing = empty();
        for n in 0..100 {
            standing.tell(&[span(n * 10, n * 10 + 1)]);
            look(&standing);
        }
        let spans = look(&standing).spans.clone();
        assert_eq!(spans.len(), SPANS);
        assert_eq!(spans.last().map(|span| span.high), Some(991));
    }

    #[test]
    fn a_whole_line_that_has_more_is_not_looked_through_again() {
        let standing = Standing::default();
        let first = look(&standing);
        standing.taken(&first, LINE, Some(7));
        assert_eq!(look(&standing).spans, [Span { low: 7, ..Span::all(LINE) }]);
    }

    #[test]
    fn without_hints_a_line_is_looked_through_each_time() {
        let standing = empty();
        standing.hear(true);
        for _ in 0..2 {
            let whole = look(&standing);
            assert_eq!(whole.spans, [Span::all(LINE)]);
            standing.taken(&whole, LINE, None);
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}
