//! Whether the segments on a disk form one log.

use std::sync::Arc;

use outport_proto::Offset;

use super::{
    LogError, TornTail,
    disk::SharedDisk,
    format::{self, BadHeader, HEADER_BYTES, RECORD_OVERHEAD_BYTES},
    segment::Segment,
};

/// All segments in order, each beginning where the one before ends. A newest segment that a
/// crash left without a header is removed.
pub(super) fn open_segments(disk: &SharedDisk) -> Result<(Vec<Arc<Segment>>, Option<TornTail>), LogError> {
    let mut names: Vec<String> = disk
        .list()
        .map_err(LogError::io("list log directory"))?
        .into_iter()
        .filter(|name| format::parse_file_name(name).is_some())
        .collect();
    names.sort();
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
