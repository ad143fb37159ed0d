//! The secondary's half of replication.

mod complete;
pub mod dial;
mod excluded;
mod intake;
pub mod memory;
pub mod on_demand;
pub mod prefetch;
pub mod primary_clock;
pub mod ranks;
mod rate;
mod replay;
mod snapshot;
pub mod subscriber;
pub mod view;
pub mod whereabouts;
