//! Makes the history of a broken promise shorter.

use std::time::Duration;

use crate::{Options, Outcome, run};

/// Worlds tried at most.
const TRIES_MAX: u32 = 60;

/// The world with the fewest faults, clients and sites and the shortest time that still breaks a
/// promise, as far as bisecting finds one, and how it ends.
///
/// # Errors
/// When this machine cannot run a world.
pub fn shrink(options: &Options, outcome: Outcome) -> anyhow::Result<(Options, Outcome)> {
    let mut best = Shrunk { options: options.clone(), outcome, tries: 0 };
    best.shorten()?;
    // Fewer faults first: they are what a reader has to follow.
    let (mut low, mut high) = (0, best.outcome.report.faults.values().sum::<u64>());
    while low < high {
        let middle = low + (high - low) / 2;
        if best.attempt(|options| options.faults_max = middle)? {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    best.shorten()?;
    for sites in 1..=2 {
        if best.attempt(|options| options.sites = Some(sites))? {
            break;
        }
    }
    for clients in 1..=3 {
        if best.attempt(|options| options.clients = Some(clients))? {
            break;
        }
    }
    best.shorten()?;
    Ok((best.options, best.outcome))
}

struct Shrunk {
    options: Options,
    outcome: Outcome,
    tries: u32,
}

impl Shrunk {
    /// Whether the world still breaks a promise when changed; it stays changed then.
    fn attempt(&mut self, change: impl FnOnce(&mut Options)) -> anyhow::Result<bool> {
        if self.tries >= TRIES_MAX {
            return Ok(false);
        }
        self.tries += 1;
        let mut options = self.options.clone();
        change(&mut options);
        let outcome = run(&options)?;
        let is_broken = outcome.broken.is_some();
        if is_broken {
            (self.options, self.outcome) = (options, outcome);
        }
        Ok(is_broken)
    }

    /// Lets it end right after the promise was broken.
    fn shorten(&mut self) -> anyhow::Result<()> {
        if let Some((at, _)) = self.outcome.broken {
            let end = at + Duration::from_secs(1);
            if end < self.options.duration {
                self.attempt(|options| options.duration = end)?;
            }
        }
        Ok(())
    }
}
