//! What two sites see of each other, over real QUIC with real certificates and real files.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod bootstrap;
mod callers;
mod divergence;
mod epochs;
mod following;
mod hostile;
mod incident;
mod logs;
mod propagation;
mod refusals;
mod relays;
mod requests;
mod snapshots;
mod stretch;
#[expect(dead_code, reason = "other tests use more of it")]
#[path = "../support/wire.rs"]
mod wire;
mod world;
