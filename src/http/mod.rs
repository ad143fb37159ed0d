//! The OCI distribution API on hyper.
