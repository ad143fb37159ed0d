//! Whoever sets a wall clock and however long a word travels: no site takes itself for fresher than it is.
#![cfg(test)]

use std::time::Duration;

use outport_proto::frame::VERSIONS;
use proptest::{collection::vec, prelude::*};

use crate::pair::{LATENCY, Pair};

/// Everything acknowledged before what the site says is applied.
fn is_as_fresh_as_it_says(pair: &Pair) -> bool {
    let Some(as_of) = pair.subscriber.as_of_micros() else { return true };
    let applied = pair.subscriber.progress().applied.seq as usize;
    let before = |made: &Duration| (made.as_micros() as i64) < as_of;
    pair.made.iter().skip(applied).all(|made| !before(made))
}

#[test]
fn a_clock_set_forward_makes_nobody_fresh_on_a_slow_path() {
    let mut pair = Pair::new();
    pair.append(1);
    pair.connect();
    pair.run(Duration::from_secs(5));
    assert!(pair.subscriber.staleness(pair.now).unwrap() < Duration::from_millis(300));
    pair.latency = Duration::from_secs(1);
    pair.wall_ahead_micros = 10_000_000;
    for _ in 0..400 {
        pair.append(1);
        pair.run(Duration::from_millis(10));
        assert!(is_as_fresh_as_it_says(&pair), "{:?} at {:?}", pair.subscriber.as_of_micros(), pair.now);
    }
    assert!(pair.subscriber.staleness(pair.now).unwrap() > Duration::from_secs(1));
    pair.latency = LATENCY;
    pair.run(Duration::from_secs(2));
    assert!(pair.subscriber.staleness(pair.now).unwrap() < Duration::from_millis(300));
}

#[test]
fn a_session_that_begins_on_a_slow_path_knows_that() {
    let mut pair = Pair::new();
    pair.append(1);
    pair.latency = Duration::from_millis(700);
    pair.connect();
    pair.run_until(|pair| pair.subscriber.as_of_micros().is_some());
    // `Hello` took as long as the answer, and who knows which of the two was slow.
    let staleness = pair.subscriber.staleness(pair.now).unwrap();
    assert!((1400..1500).contains(&staleness.as_millis()), "{staleness:?}");
}

#[test]
fn an_upstream_of_before_gives_no_readings() {
    let mut pair = Pair::new();
    pair.append(1);
    pair.offers = VERSIONS[1..].to_vec();
    pair.connect();
    pair.run(Duration::from_secs(2));
    assert!(pair.subscriber.live(pair.now) && pair.subscriber.closed_time().is_some());
    assert_eq!(pair.subscriber.as_of_micros(), None);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nobody_is_fresher_than_he_says(
        steps in vec((0_u64..1500, -9_000_000_i64..9_000_000, 0_u8..10, 1_u64..400, 0_usize..3), 1..30),
    ) {
        let mut pair = Pair::new();
        pair.connect();
        for (latency_ms, wall_micros, what, pause_ms, events) in steps {
            match what {
                0 => pair.wall_ahead_micros += wall_micros,
                1 if pair.connected() => pair.cut(),
                2..=4 => pair.latency = Duration::from_millis(latency_ms),
                _ => {}
            }
            if !pair.connected() {
                pair.connect();
            }
            for _ in 0..pause_ms.div_ceil(5) {
                pair.run(Duration::from_millis(5));
                prop_assert!(is_as_fresh_as_it_says(&pair));
                pair.append(events);
            }
        }
    }
}
