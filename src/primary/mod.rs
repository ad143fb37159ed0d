//! The publishing half of replication: the primary's, and that of a site that relays; and who else is told.

pub mod above;
pub mod fleet;
pub mod joins;
pub mod log_stream;
pub mod members;
pub mod publisher;
pub mod requests;
pub mod source;
pub mod webhooks;
pub mod whereabouts;
