//! The promises hold in many worlds, the same seed is the same world, and the checks can fail.

use std::time::{Instant, SystemTime};

use super::*;

const HALF_A_MINUTE: Duration = Duration::from_secs(30);
/// How long worlds nobody has seen are looked at.
const FRESH: Duration = Duration::from_secs(30);
/// Worlds that are looked at every time; those that once broke a promise are added.
const KNOWN: [u64; 3] = [1, 2, 32];

fn world(seed: u64) -> Outcome {
    run(&Options::new(seed, HALF_A_MINUTE)).unwrap()
}

#[test]
fn the_promises_hold_in_known_worlds() {
    for seed in KNOWN {
        let outcome = world(seed);
        assert_eq!(outcome.broken, None, "seed {seed}");
        assert!(outcome.report.events > 0 && outcome.report.pulls() > 10, "seed {seed} is idle");
    }
}

#[test]
fn the_promises_hold_in_worlds_nobody_has_seen() {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let first = since.as_micros() as u64 % 1_000_000_000_000;
    let begun = Instant::now();
    for seed in (first..).take_while(|_| begun.elapsed() < FRESH) {
        let outcome = world(seed);
        let replay = format!("cargo run --release -p simulations -- --virtual-seconds 30 --seed {seed}");
        assert_eq!(outcome.broken, None, "{replay}");
    }
}

#[test]
fn the_same_seed_is_the_same_world() {
    let (first, again) = (world(7), world(7));
    assert_eq!(first, again);
    assert_ne!(first.trace, world(8).trace);
}
