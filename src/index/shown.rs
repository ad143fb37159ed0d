//! What readers are told of the state, now and a moment ago.

use std::collections::VecDeque;

use outport_proto::Offset;

use super::row::State;

/// Offsets whose hash is remembered. Somebody who is a round trip ahead or behind at ten thousand
/// events a second can still be compared with.
const RECENT_MAX: usize = 1024;

/// The newest state, and the hashes on the way to it.
#[derive(Debug)]
pub(super) struct Shown {
    pub(super) state: State,
    recent: VecDeque<(Offset, [u8; 32])>,
}

impl Shown {
    /// Nothing but the newest state is known.
    pub(super) const fn new(state: State) -> Self {
        Self { state, recent: VecDeque::new() }
    }

    /// Events led to `state`, over the hashes in `passed`.
    pub(super) fn advance(&mut self, state: State, passed: impl IntoIterator<Item = (Offset, [u8; 32])>) {
        self.state = state;
        for passed in passed {
            if self.recent.len() == RECENT_MAX {
                self.recent.pop_front();
            }
            self.recent.push_back(passed);
        }
        if let Some(last) = self.recent.back_mut().filter(|last| last.0 == state.applied) {
            last.1 = state.hash;
        }
    }

    /// Something else than events led to `state`: what was before says nothing about what comes.
    pub(super) fn replace(&mut self, state: State) {
        *self = Self::new(state);
    }

    /// The hash at an offset, if that is not too long ago.
    pub(super) fn hash_at(&self, offset: Offset) -> Option<[u8; 32]> {
        if self.state.applied == offset {
            return Some(self.state.hash);
        }
        let place = self.recent.binary_search_by_key(&offset, |(applied, _)| *applied).ok()?;
        Some(self.recent[place].1)
    }
}

#[cfg(test)]
mod tests {
    use super::{super::open::NOTHING, *};

    fn state(seq: u64) -> State {
        State { applied: Offset::new(1, seq), hash: [seq as u8; 32], ..NOTHING }
    }

    #[test]
    fn the_last_thousand_states_are_known_until_one_is_replaced() {
        let mut shown = Shown::new(state(0));
        for batch in 0..200 {
            let passed =
                (1..=10).map(|step| state(batch * 10 + step)).map(|state| (state.applied, state.hash));
            shown.advance(state(batch * 10 + 10), passed);
        }
        assert_eq!(shown.hash_at(Offset::new(1, 2000)), Some([(2000 % 256) as u8; 32]));
        assert_eq!(shown.hash_at(Offset::new(1, 1555)), Some([(1555 % 256) as u8; 32]));
        assert_eq!(shown.hash_at(Offset::new(1, 2001)), None);
        assert_eq!(shown.hash_at(Offset::new(1, 900)), None, "too long ago");
        assert!(shown.recent.len() <= RECENT_MAX);
        shown.replace(State { hash: [7; 32], ..state(2000) });
        assert_eq!(shown.hash_at(Offset::new(1, 2000)), Some([7; 32]));
        assert_eq!(shown.hash_at(Offset::new(1, 1999)), None);
    }
}
