//! Every random choice of a world, from its seed alone.

use std::time::Duration;

/// SplitMix64 (Steele, Lea, Flood 2014): small, and the same everywhere.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x2545_f491_4f6c_dd1d))
    }

    pub(crate) fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number under `bound`, which is not zero.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.number() % bound
    }

    /// An index into something that has `len` elements, at least one.
    pub(crate) fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.below(len.max(1) as u64)).unwrap_or_default()
    }

    pub(crate) fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }

    /// A time from `shortest` to `longest`, in microseconds; short ones come more often.
    pub(crate) fn micros(&mut self, shortest: u64, longest: u64) -> Duration {
        let spread = longest.saturating_sub(shortest) + 1;
        let widest = self.below(spread) + 1;
        Duration::from_micros(shortest + self.below(widest))
    }

    /// [`Random::micros`] in milliseconds.
    pub(crate) fn millis(&mut self, shortest: u64, longest: u64) -> Duration {
        self.micros(shortest * 1000, longest * 1000)
    }
}
