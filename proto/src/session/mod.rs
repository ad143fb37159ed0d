//! The logic of the two ends of a log stream, without sockets or clocks.

use std::time::Duration;

/// How often the primary says where the log's head is.
pub const HEARTBEAT_INTERVAL: Duration = Duration::from_millis(250);
