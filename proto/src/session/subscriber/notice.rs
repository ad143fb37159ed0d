//! What a subscriber tells its driver.

use bytes::Bytes;

use crate::{
    Event, Offset, SiteName, Traceparent,
    codec::CodecError,
    frame::{Keys, Refusal, Welcome, names},
    session::Word,
};

/// What the driver should know about.
#[derive(Clone, Debug, PartialEq)]
pub enum SubscriberNotice {
    /// The session is open. Remember the cluster; take the keys. With any
    /// [`crate::frame::Resume`] but `Tail`, take a snapshot.
    Welcome(Box<Welcome>),
    /// Consecutive new events to append and apply.
    Events(Vec<Received>),
    /// The primary's log, as of now.
    Heartbeat(Word),
    /// New keys replace the old.
    Keys(Keys),
    /// The session is over: close the stream, wait, connect again. Nothing follows until then.
    Ended(Ended),
}

/// Why a subscriber ended the session.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Ended {
    /// The primary refused it.
    #[error("refused: {0}")]
    Refused(Refusal),
    /// An event does not follow the one before it.
    #[error("event {offset} came after {after}")]
    Gap {
        /// The newest event received before.
        after: Offset,
        /// The event that came.
        offset: Offset,
    },
    /// Events of another history than the welcome's.
    #[error("event {offset} is not of epoch {epoch}")]
    ForeignEpoch {
        /// The epoch of the session.
        epoch: u64,
        /// What came.
        offset: Offset,
    },
    /// The primary's history is older than, or another than, the one this site follows.
    #[error(
        "this site is at {have} and knows epoch {epoch}, the primary's log is another or ends earlier, at {head}"
    )]
    Fork {
        /// The newest event here.
        have: Offset,
        /// The newest epoch known here.
        epoch: u64,
        /// The newest event of the primary.
        head: Offset,
    },
    /// The way to the primary leads back here, or through more than
    /// [`crate::frame::HOPS_MAX`] sites.
    #[error("the way to the primary is a ring, or too long: it leads through {}", names(path))]
    Ring {
        /// The sites up to the primary, the upstream one last.
        path: Vec<SiteName>,
    },
    /// The primary belongs to another cluster.
    #[error("the primary is of cluster {0}")]
    ForeignCluster(String),
    /// The primary picked a version that was not offered.
    #[error("the primary picked version {0}, which was not offered")]
    Version(u16),
    /// An event cannot be decoded.
    #[error("an event is malformed: {0}")]
    Malformed(CodecError),
    /// A frame has no place here.
    #[error("{0} came out of place")]
    OutOfPlace(&'static str),
    /// Nothing was heard for [`crate::session::IDLE_MAX`].
    #[error("nothing was heard from the primary")]
    Idle,
}

/// An event received: in order, exactly once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    /// Its place.
    pub offset: Offset,
    /// Its encoded form, for the log.
    pub encoded: Bytes,
    /// The event.
    pub event: Event,
    /// The span that it was made in, if anybody records that.
    pub trace: Option<Traceparent>,
}
