//! What readers see of the log.

use std::sync::Arc;

use outport_proto::{Offset, Timestamp, session::Place};

use super::{LogError, Retention, recent::Recent, segment::Segment};

/// Where the durable log begins and ends, and where its records are.
#[derive(Debug)]
pub(super) struct State {
    /// Ascending; none while the log is empty.
    pub(super) segments: Vec<Arc<Segment>>,
    pub(super) recent: Recent,
    pub(super) floor: Offset,
    pub(super) head: Offset,
    /// Bytes of records up to the head since the log began.
    pub(super) bytes: u64,
}

impl State {
    /// The segment that holds, or would hold, event `seq`.
    pub(super) fn segment_of(&self, seq: u64) -> Option<&Arc<Segment>> {
        let after = self.segments.partition_point(|segment| segment.header.before.seq < seq);
        self.segments.get(after.checked_sub(1)?)
    }

    /// Whether the log can be read after `offset`.
    pub(super) fn contains(&self, offset: Offset) -> bool {
        if offset.seq == 0 {
            return self.floor.seq == 0;
        }
        offset == self.floor
            || (offset.seq > self.floor.seq
                && offset.seq <= self.head.seq
                && self.segment_of(offset.seq).is_some_and(|segment| segment.header.epoch == offset.epoch))
    }

    /// The newest joint of segments that everything before is past `retention`.
    pub(super) fn expired(&self, retention: &Retention, now: Timestamp) -> Option<Offset> {
        let joints = self.segments.iter().skip(1).map(|segment| &segment.header);
        let past = joints.take_while(|after| {
            self.bytes.saturating_sub(after.log_bytes) >= retention.bytes
                || now.since(after.time) > retention.age
        });
        past.last().map(|after| after.before).filter(|joint| joint.seq > self.floor.seq)
    }

    /// Bytes of log from its first segment to the head.
    pub(super) fn retained_bytes(&self) -> u64 {
        self.segments.first().map_or(0, |first| self.bytes.saturating_sub(first.header.log_bytes))
    }

    /// Where `have`, the newest event of a log that follows this one, lies.
    pub(super) fn place(&self, have: Offset) -> Place {
        if self.contains(have) {
            return Place::Within;
        }
        if have.epoch > self.head.epoch || have > self.head {
            return Place::Foreign;
        }
        let oldest = self.segments.first().map_or(self.head, |segment| segment.header.before);
        let newer = self.segments.iter().find(|segment| segment.header.epoch > have.epoch);
        match newer.map(|segment| segment.header.before) {
            // The history was in the epoch once, if at all, before the log's floor.
            Some(fork) if fork == oldest && fork.epoch > have.epoch => Place::Behind,
            Some(fork) if fork.epoch < have.epoch || have.seq > fork.seq => Place::Beyond { fork },
            Some(_) => Place::Behind,
            // Of the newest epoch: below the floor, unless the epoch began later than that.
            None if oldest.epoch == have.epoch && have.seq <= oldest.seq => Place::Behind,
            None => Place::Foreign,
        }
    }

    /// Refuses what [`State::contains`] does not, and says which way it lies.
    pub(super) fn check(&self, after: Offset) -> Result<(), LogError> {
        if self.contains(after) {
            Ok(())
        } else if after < self.floor {
            Err(LogError::BelowFloor { after, floor: self.floor })
        } else {
            Err(LogError::NotInLog { offset: after, head: self.head })
        }
    }
}
