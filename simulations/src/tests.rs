//! The promises hold in many worlds, the same seed is the same world, and the checks can fail.

use clap::ValueEnum;

use super::*;

const MINUTE: Duration = Duration::from_secs(60);
/// Every planted bug shows within so many worlds.
const WORLDS_MAX: u64 = 300;

fn world(seed: u64, bug: Option<Bug>) -> Outcome {
    run(&Options { seed, duration: MINUTE, bug })
}

#[test]
fn the_promises_hold() {
    for seed in 1..=20 {
        let outcome = world(seed, None);
        assert_eq!(outcome.broken, None, "seed {seed}");
        assert!(outcome.report.events > 0 && outcome.report.pulls.len() > 2, "seed {seed} is idle");
    }
}

#[test]
fn the_same_seed_is_the_same_world() {
    let (first, again) = (world(7, None), world(7, None));
    assert_eq!(first, again);
    assert_ne!(first.trace, world(8, None).trace);
}

#[test]
fn every_planted_bug_is_found() {
    for bug in Bug::value_variants() {
        let found = (1..=WORLDS_MAX).find(|seed| world(*seed, Some(*bug)).broken.is_some());
        assert!(found.is_some(), "{bug:?} is not found in {WORLDS_MAX} worlds");
    }
}
