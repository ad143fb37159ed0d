//! The secondary's half of replication.

mod apply;
mod complete;
pub mod dial;
pub mod memory;
pub mod prefetch;
mod primary_clock;
pub mod subscriber;
pub mod view;

pub use apply::OnApplied;
