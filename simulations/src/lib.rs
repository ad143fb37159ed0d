//! A deterministic world around the real Outport code: one thread, a virtual clock, every random
//! choice from one seed, and a check of every answer that any client gets.
//!
//! **Real:** everything from the answer of a pull down to the datagram: log, journal, snapshots,
//! index (in memory), blob store, garbage collection, pull and push services, write intents,
//! flights, copying ahead, the subscription, the publisher, and all that they say to each other
//! over quinn and rustls. Nodes are wired as `outport::app` wires them.
//!
//! **Simulated:** the network (every datagram has its own delay, or is lost, doubled, held up); the
//! disks ([`outport::log::faulty`] below log, snapshots and intents, whose fsyncs may fail as they do on
//! Linux; real files below the blob store, of which a power cut takes what was not synced); clocks, which
//! are off by up to a day, drift and are set; processes ([`outport::process`]), which are killed at whatever they wait for. tokio runs
//! on one thread with its time paused. Clients call the services of a node in its process; the
//! HTTP layer, tokens' signatures and tickets are not in it. In half of the worlds some sites follow
//! others, and in half of them some stores are too small for all blobs.
//!
//! **Checked** at every answer, against a model that shares no code with the index: it is what the
//! log leads to at the event it claims, so that deletes stay deleted and no event is lost; it shows
//! everything acknowledged before its age and before the staleness bound, everything acknowledged
//! before the token was issued, what was written through the same site, and `Outport-Min-Offset`;
//! "no" was true after the pull began; no byte of a complete answer is wrong. A history that ended
//! with a restore does not show to newer tokens. Every state of every index is compared with the
//! truth as soon as it shows. Every queue, cache and set that is bounded is seen below its bound whenever
//! something comes in. At every start a log holds all that was durable. Every pull ends; once
//! all is healed, every site has a live session, the primary's state and all blobs it keeps within
//! two minutes.
//!
//! **The check can fail:** with the feature `planted-bugs` a world makes one of the mistakes of
//! [`Bug`] where the real mistake would stand. `cargo run --release -p simulations --features
//! planted-bugs -- --bugs --seeds 2000` says in how many worlds each is found; `.ci/run` looks for
//! all of them.
//!
//! **Replay:** a world is its seed and its options, and the same seed gives the same trace. A
//! broken promise prints the shortest history that bisecting finds, and the command that replays it;
//! with `--log` it tells every datagram and all that the code logs, in virtual time.
//!
//! A world is busy for a minute of every twenty: then clients and faults come in quick succession,
//! and in long intervals in between.

mod blobs;
mod clients;
mod clock;
mod content;
mod decisions;
mod faults;
mod identities;
mod machine;
mod many;
mod network;
mod oracle;
mod pulls;
mod random;
mod report;
mod shrink;
mod wiring;
mod world;

use std::time::Duration;

use outport::process::Simulated;

pub use many::run_many;
pub use outport::planted::Bug;
pub use report::Report;
pub use shrink::shrink;

/// Which world.
#[derive(Clone, Debug)]
pub struct Options {
    /// Everything random follows from it.
    pub seed: u64,
    /// Virtual time in which things go wrong; recovery comes on top.
    pub duration: Duration,
    /// Print what the code logs, with virtual times, to standard error.
    pub prints: bool,
    /// How many sites; `None` leaves it to the seed.
    pub sites: Option<usize>,
    /// How many clients; `None` leaves it to the seed.
    pub clients: Option<usize>,
    /// Only so many of the faults happen.
    pub faults_max: u64,
    /// A mistake to make on purpose; without the feature `planted-bugs` nothing happens.
    pub bug: Option<Bug>,
}

impl Options {
    /// The world of `seed`, as it is.
    pub const fn new(seed: u64, duration: Duration) -> Self {
        Self { seed, duration, prints: false, sites: None, clients: None, faults_max: u64::MAX, bug: None }
    }
}

impl Options {
    #[cfg(any(test, feature = "planted-bugs"))]
    fn process(&self, seed: u64) -> Simulated {
        Simulated::with_bug(seed, self.bug)
    }

    #[cfg(not(any(test, feature = "planted-bugs")))]
    fn process(&self, seed: u64) -> Simulated {
        Simulated::new(seed)
    }
}

/// A promise that was not kept.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Broken(pub String);

/// How a world ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// What happened, counted.
    pub report: Report,
    /// Differs when anything that happened does.
    pub trace: u64,
    /// When a promise was broken, in time since the world began, and which.
    pub broken: Option<(Duration, Broken)>,
}

/// Runs one world to its end or to the first broken promise.
///
/// # Errors
/// When this machine cannot run a world: no directory, no keys.
pub fn run(options: &Options) -> anyhow::Result<Outcome> {
    world::run(options)
}

#[cfg(test)]
mod tests;
