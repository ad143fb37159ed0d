//! The logic of the two ends of a log stream, without sockets or clocks.
//!
//! A driver owns a machine and a stream. It tells the machine what happened (`handle_*`), sends
//! what [`Publisher::poll_transmit`] or [`Subscriber::poll_transmit`] give until they give
//! nothing, acts on `poll_notice`, and sleeps until `poll_timeout` or until something happens.
//!
//! `now` is always monotonic time since a moment that the driver chose once and keeps for the
//! life of the machine. Wall time is only ever the primary's and comes in frames and [`LogState`].

mod ahead;
mod backoff;
mod freshness;
mod marks;
mod publisher;
mod subscriber;

use std::time::Duration;

pub use self::{
    backoff::Backoff,
    freshness::{Lag, Word},
    publisher::{Closed, Misplaced, Publisher, PublisherConfig, PublisherNotice},
    subscriber::{
        Ended, Progress, Received, Subscriber, SubscriberConfig, SubscriberNotice, SubscriberState,
    },
};
use crate::{Offset, frame::Heartbeat};

/// How often the primary says where the log's head is.
pub const HEARTBEAT_INTERVAL: Duration = Duration::from_millis(250);
/// A heartbeat older than this no longer tells what is so now: three intervals, so that one may be
/// late and a cut still shows within a second.
pub const LIVE_MAX: Duration = Duration::from_millis(750);
/// A secondary waits this long after something changed before it says how far it is, for what
/// changes next.
pub const ACK_DELAY: Duration = Duration::from_millis(20);
/// A secondary says how far it is at least this often.
pub const ACK_INTERVAL_MAX: Duration = Duration::from_secs(1);
/// A secondary asks for a reading of the upstream's clock this often.
pub const PROBE_INTERVAL: Duration = Duration::from_secs(1);
/// An end that has heard nothing for this long gives the session up.
pub const IDLE_MAX: Duration = Duration::from_secs(10);
/// Most unacknowledged bytes of events towards one secondary.
pub const WINDOW_BYTES: usize = 4 * 1024 * 1024;
/// Events are put into one `Append` up to this size in bytes; a larger event travels alone.
pub const APPEND_BYTES_MAX: usize = 256 * 1024;

/// Where the newest event that a secondary has lies, seen from the primary's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the log: what follows can be read.
    Within,
    /// In its history as far as can be known, but what follows cannot be read any more.
    Behind,
    /// In an older epoch, past the place where the log's history left it.
    Beyond {
        /// The newest event of that epoch, or of an older one, that the log's history has.
        fork: Offset,
    },
    /// Ahead of the log, or another event of its newest epoch than the log has there.
    Foreign,
}

/// Where a log stands for those who follow it. One without an event stands before the first event
/// of the epoch that it will begin with: a site that already follows then sees that event follow.
pub fn begun(offset: Offset) -> Offset {
    if offset == Offset::ZERO { Offset::new(1, 0) } else { offset }
}

/// Where the log is that a publisher sends, read at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogState {
    /// What a heartbeat would say now. Its head is the primary's, whoever relays it.
    pub heartbeat: Heartbeat,
    /// How long ago the primary said that, at most; zero at the primary itself, and `None` at a site that
    /// relays and has not heard of the primary since it started.
    pub age: Option<Duration>,
    /// The newest event that can be sent.
    pub durable: Offset,
    /// Whether the log ends at `durable` for certain: always at the primary; at a site that
    /// relays, while the primary's word is recent and goes no further.
    pub is_level: bool,
    /// Events up to here can no longer be read.
    pub floor: Offset,
    /// A secondary that is more events behind than this takes a snapshot: that costs less than the
    /// events.
    pub tail_events_max: u64,
}
