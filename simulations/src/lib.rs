//! Scenarios come here.
