//! The bytes of frames and records, as somebody at the other end of the wire sees them.

#[path = "codec/golden.rs"]
mod golden;
#[path = "codec/hostile.rs"]
mod hostile;
#[path = "codec/samples.rs"]
mod samples;
