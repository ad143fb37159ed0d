//! Beginning a log anew after another place. The decision is one small durable file; once it is
//! there, every crash ends in the new log, and before it in the old one.

use std::io;

use outport_proto::Offset;

use super::{
    LogError,
    disk::{self, SharedDisk},
    format,
    writer::{Active, Failure, Tip, create_segment, is_full, new_header},
};
use crate::clock::SharedClock;

/// Name of the file that holds the decision.
const MARKER: &str = "reset";
const MARKER_MAGIC: &[u8; 8] = b"OUTPRST1";
const MARKER_BYTES: usize = 36;

/// Decides that the log begins anew after `to`.
pub(super) fn decide(disk: &SharedDisk, to: Offset, log_bytes: u64) -> Result<(), Failure> {
    let written = disk.remove(MARKER).and_then(|()| disk.create(MARKER)).and_then(|mut file| {
        file.append(&encode(to, log_bytes))?;
        Ok(file)
    });
    match written {
        Ok(mut file) => file.sync().map_err(|error| Failure::Final("sync reset marker", error))?,
        Err(error) if is_full(&error) => {
            disk.remove(MARKER).map_err(|error| Failure::Final("remove reset marker", error))?;
            return Err(Failure::Full);
        }
        Err(error) => return Err(Failure::Final("write reset marker", error)),
    }
    disk.sync_dir().map_err(|error| Failure::Final("sync log directory", error))
}

/// Does what was decided; returns the segment that begins there. May be repeated.
pub(super) fn carry_out(
    disk: &SharedDisk,
    clock: &SharedClock,
    to: Offset,
    log_bytes: u64,
) -> io::Result<Option<Active>> {
    for name in disk.list()? {
        if format::parse_file_name(&name).is_some() {
            disk.remove(&name)?;
        }
    }
    disk.sync_dir()?;
    let begun = if to == Offset::ZERO {
        None
    } else {
        let header = new_header(to.epoch.max(1), &Tip::beginning_after(to, log_bytes), clock);
        let begun = create_segment(disk, header).map_err(|failure| match failure {
            Failure::Full => io::ErrorKind::StorageFull.into(),
            Failure::Final(_, error) => error,
        })?;
        Some(begun)
    };
    // Durable before anything is appended: a marker that came back would take the appends along.
    disk.remove(MARKER)?;
    disk.sync_dir()?;
    Ok(begun)
}

/// Whether a reset was begun and not ended.
pub(super) fn is_decided(disk: &SharedDisk) -> Result<bool, LogError> {
    let names = disk.list().map_err(LogError::io("list log directory"))?;
    Ok(names.iter().any(|name| name == MARKER))
}

/// Finishes what a crash interrupted.
pub(super) fn finish(disk: &SharedDisk, clock: &SharedClock) -> Result<(), LogError> {
    if !is_decided(disk)? {
        return Ok(());
    }
    // A killed process may have left it in memory alone: it must not vanish half way.
    disk.open(MARKER)
        .and_then(|mut marker| marker.sync().and_then(|()| marker.forget_cached()))
        .and_then(|()| disk.sync_dir())
        .map_err(LogError::io("sync reset marker"))?;
    let bytes = disk::read_all(&**disk, MARKER, 4096).map_err(LogError::io("read reset marker"))?;
    match decode(&bytes) {
        Some((to, log_bytes)) => {
            carry_out(disk, clock, to, log_bytes).map_err(LogError::io("finish log reset"))?;
        }
        None => {
            disk.remove(MARKER).map_err(LogError::io("remove reset marker"))?;
            disk.sync_dir().map_err(LogError::io("sync log directory"))?;
        }
    }
    Ok(())
}

fn encode(to: Offset, log_bytes: u64) -> Vec<u8> {
    let mut bytes = MARKER_MAGIC.to_vec();
    for number in [to.epoch, to.seq, log_bytes] {
        bytes.extend_from_slice(&number.to_le_bytes());
    }
    bytes.extend_from_slice(&crc_fast::crc32_iscsi(&bytes).to_le_bytes());
    bytes
}

fn decode(bytes: &[u8]) -> Option<(Offset, u64)> {
    let (content, crc) = bytes.split_last_chunk::<4>()?;
    let whole = bytes.len() == MARKER_BYTES
        && crc_fast::crc32_iscsi(content) == u32::from_le_bytes(*crc)
        && content.starts_with(MARKER_MAGIC);
    let number = |at: usize| Some(u64::from_le_bytes(*content.get(at..)?.first_chunk()?));
    whole.then_some((Offset::new(number(8)?, number(16)?), number(24)?))
}
