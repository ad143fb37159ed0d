//! A deterministic world around the real Outport code: one thread, a virtual clock, every random
//! choice from one seed, and a check of every answer that any client gets.
//!
//! **Real:** the session machines ([`outport_proto::session`]: publisher, subscriber, backoff) and
//! the codec of every frame and event between them; the log ([`outport::log::Log`], its writer
//! stepped by [`outport::log::Stepper`]) on a disk that tears and forgets
//! ([`outport::log::faulty`]); the index in memory with its state hash; the read rules
//! ([`outport::registry::decide`]) with their default options; write intents; the estimate of the
//! primary's clock and the age of a session.
//!
//! **Modelled:** the network (streams that are in order while they live; delay, slow and blocked
//! paths, broken connections), the drivers around the machines (they do what those of
//! `outport::primary`, `outport::secondary`, the journal and the pull service do, with the same
//! time limits), the clients, and the primary's answers to questions (from its real index). An
//! index is rebuilt from the whole log at every start: nothing is truncated, so no snapshot is
//! taken. Blobs and their fills, tickets, relays, epochs and clocks that drift are not in it.
//!
//! **Checked** at every answer, against a model that shares no code with the index: it is what the
//! log leads to at the event it claims, so that deletes stay deleted and no event is lost or
//! applied twice; it shows everything acknowledged before its age and before the staleness bound,
//! everything acknowledged before the token was issued, what was written through the same site, and
//! `Outport-Min-Offset`; "no" comes from the
//! primary alone and was true after the pull began. An answer marked stale must not be older than
//! it says. At every start a log holds all that was durable; at every heartbeat equal offsets have
//! equal state hashes; once all is healed, every site has a live session and the primary's state
//! within a minute, and no pull is left waiting.
//!
//! **Replay:** a world is its seed and its options. `cargo run --release -p simulations -- --seed
//! 17 --minutes 5` runs the one world that failed; the same seed gives the same trace hash. To
//! look closer, print in any `World` method: nothing there depends on time or order of printing.

mod bug;
mod clients;
mod faults;
mod network;
mod oracle;
mod primary;
mod pulls;
mod random;
mod report;
mod site;
mod world;

use std::time::Duration;

pub use bug::Bug;
pub use report::Report;

/// Which world.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Everything random follows from it.
    pub seed: u64,
    /// Virtual time in which things go wrong; recovery comes on top.
    pub duration: Duration,
    /// A mistake to make on purpose.
    pub bug: Option<Bug>,
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
    /// When a promise was broken, in time since the monotonic clock's zero, and which.
    pub broken: Option<(Duration, Broken)>,
}

/// Runs one world to its end or to the first broken promise.
pub fn run(options: &Options) -> Outcome {
    world::World::new(options).run(options)
}

#[cfg(test)]
mod tests;
