//! The promises hold in known worlds, and the same seed is the same world. Worlds nobody has seen are looked
//! at by the program: `cargo run --release -p simulations -- --fresh --seeds 100 --minutes 1 --jobs 2`.

use super::*;

const HALF_A_MINUTE: Duration = Duration::from_secs(30);
/// Worlds that are looked at every time; those that once broke a promise are added.
const KNOWN: [u64; 8] = [1, 2, 30, 32, 66, 654_295_225_268, 662_619_443_457, 663_257_038_140];

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
fn the_same_seed_is_the_same_world() {
    let (first, again) = (world(7), world(7));
    assert_eq!(first, again);
    assert_ne!(first.trace, world(8).trace);
}
