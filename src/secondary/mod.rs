//! The secondary's half of replication.

pub mod complete;
pub mod detail;
pub mod dial;
mod divergence;
pub mod downstream;
mod eta;
mod excluded;
mod intake;
pub mod join;
mod journeys;
mod kept_keys;
pub mod memory;
pub mod on_demand;
pub mod prefetch;
pub mod primary_clock;
pub mod propagation;
pub mod ranks;
mod rate;
mod repair;
mod replay;
mod rewound;
mod snapshot;
pub mod subscriber;
pub mod view;
pub mod whereabouts;
