//! Every random choice of a world, from its seed alone.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

/// SplitMix64 (Steele, Lea, Flood 2014): small, and the same everywhere.
#[derive(Debug)]
pub(crate) struct Random(Mutex<u64>);

impl Random {
    /// Choices about `subject`: what is chosen about others does not change them.
    pub(crate) fn new(seed: u64, subject: u64) -> Self {
        let state = seed.wrapping_mul(0x2545_f491_4f6c_dd1d) ^ subject.wrapping_mul(0xd134_2543_de82_ef95);
        Self(Mutex::new(state))
    }

    pub(crate) fn number(&self) -> u64 {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = *state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number under `bound`, which is not zero.
    pub(crate) fn below(&self, bound: u64) -> u64 {
        self.number() % bound.max(1)
    }

    /// An index into something that has `len` elements, at least one.
    pub(crate) fn index(&self, len: usize) -> usize {
        usize::try_from(self.below(len as u64)).unwrap_or_default()
    }

    pub(crate) fn percent(&self, chance: u64) -> bool {
        self.below(100) < chance
    }

    /// A time from `shortest` to `longest`, in microseconds; short ones come more often.
    pub(crate) fn micros(&self, shortest: u64, longest: u64) -> Duration {
        let spread = longest.saturating_sub(shortest) + 1;
        let widest = self.below(spread) + 1;
        Duration::from_micros(shortest + self.below(widest))
    }

    /// [`Random::micros`] in milliseconds.
    pub(crate) fn millis(&self, shortest: u64, longest: u64) -> Duration {
        self.micros(shortest * 1000, longest * 1000)
    }
}
