//! The publishing half of replication: the primary's, and that of a site that relays.

pub mod above;
pub mod fleet;
pub mod log_stream;
pub mod publisher;
pub mod requests;
pub mod source;
pub mod whereabouts;
