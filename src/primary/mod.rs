//! The primary's half of replication.

pub mod fleet;
pub mod requests;
