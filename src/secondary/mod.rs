//! The secondary's half of replication.
