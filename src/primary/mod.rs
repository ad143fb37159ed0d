//! The primary's half of replication.

pub mod fleet;
pub mod log_stream;
pub mod publisher;
pub mod requests;
pub mod whereabouts;
