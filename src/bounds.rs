//! Whether what is bounded stays within its bound. In a simulated process every bounded queue, cache and
//! set says how full it is whenever something came in, so that a world can be asked for the fullest
//! of each; in a real one saying so is nothing.

use std::{cell::RefCell, collections::BTreeMap};

use crate::process;

/// How full something was at most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fill {
    /// The most that was seen of it at once, in its own unit.
    pub most: u64,
    /// Its bound then.
    pub bound: u64,
}

thread_local! {
    /// All processes of a world run on one thread.
    static FILLS: RefCell<BTreeMap<&'static str, Fill>> = const { RefCell::new(BTreeMap::new()) };
}

/// There is so much in `what`, whose bound is `bound`.
pub(crate) fn note(what: &'static str, now: usize, bound: usize) {
    if process::is_simulated() {
        FILLS.with_borrow_mut(|fills| fills.entry(what).or_default().raise(now as u64, bound as u64));
    }
}

impl Fill {
    /// Whether there was more than there may be.
    pub const fn is_over(self) -> bool {
        self.most > self.bound
    }

    /// What was seen at once of a bound is compared by how much of it is used.
    fn raise(&mut self, most: u64, bound: u64) {
        let (this, other) =
            (u128::from(self.most) * u128::from(bound), u128::from(most) * u128::from(self.bound));
        if self.bound == 0 || other >= this {
            *self = Self { most, bound };
        }
    }

    /// Takes in what another world saw.
    pub fn merge(&mut self, other: Self) {
        self.raise(other.most, other.bound);
    }
}

/// How full everything was at most on this thread since [`forget`].
pub fn fills() -> BTreeMap<&'static str, Fill> {
    FILLS.with_borrow(Clone::clone)
}

/// What ran on this thread before counts no longer.
pub fn forget() {
    FILLS.with_borrow_mut(BTreeMap::clear);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::Simulated;

    #[tokio::test]
    async fn the_fullest_is_told_and_only_of_simulated_processes() {
        forget();
        note("real", 5, 2);
        let process = Simulated::new(1);
        process
            .run(async { [(1, 10), (7, 10), (3, 10), (3, 4)].map(|(now, bound)| note("queue", now, bound)) })
            .await;
        let fills = fills();
        assert_eq!(fills.len(), 1);
        assert_eq!(fills["queue"], Fill { most: 3, bound: 4 });
        assert!(!fills["queue"].is_over() && Fill { most: 5, bound: 4 }.is_over());
        forget();
    }
}
