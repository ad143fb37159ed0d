//! A bounded memory of which offset came with what.

use std::collections::VecDeque;

use crate::Offset;

/// Most marks held, however many pairs come.
const MARKS_MAX: usize = 512;

/// Pairs of an offset and what came with it, in ascending order of offsets. When there are too many, neighbours
/// share a mark: all marks stand for about as many pairs each.
#[derive(Debug)]
pub(super) struct Marks<T> {
    marks: VecDeque<Mark<T>>,
    pairs_per_mark: u64,
    /// What a mark has that stands for an earlier and a later pair. Its offset is the later.
    join: fn(T, T) -> T,
}

#[derive(Clone, Copy, Debug)]
struct Mark<T> {
    offset: Offset,
    what: T,
    pairs: u64,
}

impl<T: Copy> Marks<T> {
    /// Marks that keep what came earlier.
    pub(super) const fn of_earliest() -> Self {
        Self { marks: VecDeque::new(), pairs_per_mark: 1, join: |earlier, _| earlier }
    }

    /// Marks that keep what came later.
    pub(super) const fn of_latest() -> Self {
        Self { marks: VecDeque::new(), pairs_per_mark: 1, join: |_, later| later }
    }

    pub(super) fn push(&mut self, offset: Offset, what: T) {
        let mark = Mark { offset, what, pairs: 1 };
        match self.marks.back_mut() {
            Some(last) if last.pairs < self.pairs_per_mark => *last = joined(self.join, *last, mark),
            _ => self.marks.push_back(mark),
        }
        if self.marks.len() > MARKS_MAX {
            self.halve();
        }
    }

    /// Forgets the marks up to `offset` and gives what the last of them has.
    pub(super) fn pop_through(&mut self, offset: Offset) -> Option<T> {
        let mut last = None;
        while let Some(mark) = self.marks.pop_front_if(|mark| mark.offset <= offset) {
            last = Some(mark.what);
        }
        // With room again, what comes from here on is told apart more finely.
        if self.marks.len() < MARKS_MAX / 4 {
            self.pairs_per_mark = (self.pairs_per_mark / 2).max(1);
        }
        last
    }

    /// Forgets the marks after `offset`.
    pub(super) fn pop_after(&mut self, offset: Offset) {
        while self.marks.pop_back_if(|mark| mark.offset > offset).is_some() {}
    }

    /// What the first mark has after `offset`.
    pub(super) fn first_after(&self, offset: Offset) -> Option<T> {
        let index = self.marks.partition_point(|mark| mark.offset <= offset);
        self.marks.get(index).map(|mark| mark.what)
    }

    pub(super) fn clear(&mut self) {
        self.marks.clear();
        self.pairs_per_mark = 1;
    }

    fn halve(&mut self) {
        let mut whole = std::mem::take(&mut self.marks).into_iter();
        while let Some(first) = whole.next() {
            self.marks.push_back(whole.next().map_or(first, |second| joined(self.join, first, second)));
        }
        self.pairs_per_mark *= 2;
    }
}

fn joined<T>(join: fn(T, T) -> T, first: Mark<T>, second: Mark<T>) -> Mark<T> {
    Mark { offset: second.offset, what: join(first.what, second.what), pairs: first.pairs + second.pairs }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Timestamp;

    #[test]
    fn few_pairs_are_kept_as_they_are() {
        let mut marks = Marks::of_earliest();
        (1..=100).for_each(|n| marks.push(Offset::new(1, n), Timestamp::from_micros(n)));
        for n in 0..100 {
            assert_eq!(marks.first_after(Offset::new(1, n)), Some(Timestamp::from_micros(n + 1)));
        }
        assert_eq!(marks.first_after(Offset::new(1, 100)), None);
        assert_eq!(marks.pop_through(Offset::new(1, 60)), Some(Timestamp::from_micros(60)));
        assert_eq!(marks.pop_through(Offset::new(1, 60)), None);
    }

    #[test]
    fn many_pairs_stay_bounded_and_evenly_spread() {
        let (mut earliest, mut latest) = (Marks::of_earliest(), Marks::of_latest());
        for n in 1..=100_000 {
            earliest.push(Offset::new(1, n), Timestamp::from_micros(n));
            latest.push(Offset::new(1, n), Timestamp::from_micros(n));
            assert!(earliest.marks.len() <= MARKS_MAX);
        }
        for n in (0..100_000).step_by(997) {
            let truth = n + 1;
            let time = earliest.first_after(Offset::new(1, n)).unwrap().as_micros();
            assert!(time <= truth && truth - time < 512, "{n}: {time}");
            if let Some(time) = latest.pop_through(Offset::new(1, n)) {
                assert!(time.as_micros() <= n && n - time.as_micros() < 512, "{n}: {time:?}");
            }
        }
        assert_eq!(latest.pop_through(Offset::new(1, 100_000)), Some(Timestamp::from_micros(100_000)));
    }
}
