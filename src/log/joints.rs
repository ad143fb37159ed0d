//! Whether the segments on a disk form one log.

use std::sync::Arc;

use outport_proto::Offset;

use super::{
    LogError, TornTail,
    disk::SharedDisk,
    format::{self, BadHeader, HEADER_BYTES, RECORD_OVERHEAD_BYTES},
    segment::Segment,
};

/// Makes durable what a killed process left of the newest segment in memory, and lets the rest be read
/// from the disk.
pub(super) fn settle_newest(disk: &SharedDisk) -> Result<(), LogError> {
    let names = segment_names(disk)?;
    names.last().map_or(Ok(()), |newest| settle(disk, newest))
}

/// The same for one segment. Also what is in memory and taken for durable may not be, after an fsync
/// that failed: what is shown from here on is what the disk has.
pub(super) fn settle(disk: &SharedDisk, name: &str) -> Result<(), LogError> {
    let mut file = disk.open(name).map_err(LogError::io("open segment"))?;
    file.sync().map_err(LogError::io("sync segment"))?;
    file.forget_cached().map_err(LogError::io("drop what is cached of a segment"))
}

fn segment_names(disk: &SharedDisk) -> Result<Vec<String>, LogError> {
    let names = disk.list().map_err(LogError::io("list log directory"))?;
    let mut names: Vec<_> =
        names.into_iter().filter(|name| format::parse_file_name(name).is_some()).collect();
    names.sort();
    Ok(names)
}

/// All segments in order, each beginning where the one before ends. A newest segment that a
/// crash left without a header is removed.
pub(super) fn open_segments(disk: &SharedDisk) -> Result<(Vec<Arc<Segment>>, Option<TornTail>), LogError> {
    let names = segment_names(disk)?;
    let mut segments: Vec<Arc<Segment>> = Vec::with_capacity(names.len());
    let mut torn = None;
    for (index, name) in names.iter().enumerate() {
        let (segment, length) = Segment::open(&**disk, name).map_err(LogError::io("open segment"))?;
        match segment {
            Ok(segment) => {
                if let Some(before) = segments.last() {
                    check_joint(before, &segment)?;
                }
                segments.push(segment);
            }
            Err(BadHeader::Newer(version)) => {
                return Err(LogError::NewerFormat { segment: name.clone(), version });
            }
            Err(BadHeader::Damaged(_)) if index + 1 == names.len() && length <= HEADER_BYTES as u64 => {
                disk.remove(name).map_err(LogError::io("remove torn segment"))?;
                disk.sync_dir().map_err(LogError::io("sync log directory"))?;
                torn = Some(TornTail { after: Offset::ZERO, bytes: length });
            }
            Err(BadHeader::Damaged(reason)) => {
                return Err(LogError::Corrupt {
                    segment: name.clone(),
                    position: 0,
                    reason: reason.to_owned(),
                });
            }
        }
    }
    Ok((segments, torn.filter(|torn| torn.bytes > 0)))
}

fn check_joint(before: &Segment, after: &Segment) -> Result<(), LogError> {
    let record_bytes = before.end().saturating_sub(HEADER_BYTES as u64);
    let joined = after.header.log_bytes == before.header.log_bytes + record_bytes
        && after.header.before.seq >= before.header.before.seq
        && (after.header.before.epoch == before.header.epoch || after.header.before == before.header.before);
    // A record is never shorter than its overhead: an impossible number of events shows here.
    let events = after.header.before.seq.saturating_sub(before.header.before.seq);
    if joined && events.saturating_mul(RECORD_OVERHEAD_BYTES as u64) <= record_bytes {
        return Ok(());
    }
    Err(LogError::Corrupt {
        segment: after.name.clone(),
        position: 0,
        reason: format!("it does not begin where {} ends", before.name),
    })
}
