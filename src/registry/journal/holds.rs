//! What the log keeps for sites that take a snapshot: they need every event after the place where
//! it began.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use outport_proto::Offset;
use tokio::time::Instant;

use crate::bounds;

/// How long a log is held for a site that has taken its snapshot, or was cut off while it did.
const GRACE: Duration = Duration::from_secs(120);
/// How long a log is held for one snapshot in all: a slow site must not fill the disk.
const HELD_MAX: Duration = Duration::from_secs(3600);
/// Holds remembered after their snapshots are over; the oldest go first.
const GRACES_MAX: usize = 64;

/// Places that the log's floor must not pass.
#[derive(Debug, Default)]
pub(super) struct Holds(Mutex<Held>);

#[derive(Debug, Default)]
struct Held {
    last: u64,
    places: BTreeMap<u64, Place>,
}

#[derive(Debug)]
struct Place {
    at: Offset,
    until: Instant,
    is_over: bool,
}

/// Holds the log while it lives, and a little longer.
#[derive(Debug)]
pub(super) struct Hold {
    holds: Arc<Holds>,
    number: u64,
}

impl Holds {
    /// Keeps the events after `at` where they are.
    pub(super) fn hold(self: &Arc<Self>, at: Offset) -> Hold {
        Hold { number: self.begin(at, Instant::now()), holds: Arc::clone(self) }
    }

    /// The lowest place that is held `now`.
    pub(super) fn lowest(&self, now: Instant) -> Option<Offset> {
        self.change(|held| {
            held.places.retain(|_, place| place.until > now);
            held.places.values().map(|place| place.at).min()
        })
    }

    fn begin(&self, at: Offset, now: Instant) -> u64 {
        self.change(|held| {
            held.last += 1;
            held.places.insert(held.last, Place { at, until: now + HELD_MAX, is_over: false });
            held.last
        })
    }

    fn end(&self, number: u64, now: Instant) {
        self.change(|held| {
            if let Some(place) = held.places.get_mut(&number) {
                place.until = place.until.min(now + GRACE);
                place.is_over = true;
            }
            let over: Vec<u64> =
                held.places.iter().filter(|(_, place)| place.is_over).map(|(number, _)| *number).collect();
            for number in over.iter().rev().skip(GRACES_MAX) {
                held.places.remove(number);
            }
            let over = held.places.values().filter(|place| place.is_over).count();
            bounds::note("places of the log held a while longer", over, GRACES_MAX);
        });
    }

    fn change<T>(&self, change: impl FnOnce(&mut Held) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.holds.end(self.number, Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_place_is_held_until_a_while_after_it_is_needed() {
        let (holds, now) = (Holds::default(), Instant::now());
        assert_eq!(holds.lowest(now), None);
        holds.begin(Offset::new(1, 9), now);
        let early = holds.begin(Offset::new(1, 5), now);
        assert_eq!(holds.lowest(now), Some(Offset::new(1, 5)));
        holds.end(early, now);
        let second = Duration::from_secs(1);
        let in_grace = holds.lowest(now + GRACE - second);
        assert_eq!(in_grace, Some(Offset::new(1, 5)), "the site may come for what follows");
        assert_eq!(holds.lowest(now + GRACE + second), Some(Offset::new(1, 9)));
        assert_eq!(holds.lowest(now + HELD_MAX + second), None, "whoever takes that long begins anew");
    }

    #[test]
    fn what_is_over_is_not_remembered_without_bound() {
        let (holds, now) = (Holds::default(), Instant::now());
        for seq in 0..1000 {
            holds.end(holds.begin(Offset::new(1, seq), now), now);
        }
        assert_eq!(holds.change(|held| held.places.len()), GRACES_MAX);
        assert_eq!(holds.lowest(now), Some(Offset::new(1, 1000 - GRACES_MAX as u64)));
    }
}
