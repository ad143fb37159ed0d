//! The two ends of a log stream, joined by a stream in memory.

#[path = "session/behaviour.rs"]
mod behaviour;
#[path = "session/chaos.rs"]
mod chaos;
#[path = "session/clocks.rs"]
mod clocks;
#[path = "session/pair.rs"]
mod pair;
#[path = "session/relayed.rs"]
mod relayed;
