//! The secondary's half of replication.

pub mod complete;
pub mod dial;
pub mod memory;
pub mod prefetch;
