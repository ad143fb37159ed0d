//! The primary's half of replication.
