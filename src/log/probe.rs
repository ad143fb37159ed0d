//! Whether a new start would find a disk that has the log and takes more of it.
//!
//! After a failed fsync Linux takes what was not written for written: the same fsync again succeeds and
//! writes nothing, and a reader is shown what never reached the disk. So asking the disk is to write
//! again where it failed, and then to open the log as a start does, which reads it back from the disk itself.

use std::sync::Arc;

use super::{
    LogError, LogOptions,
    disk::SharedDisk,
    reset,
    segment::Segment,
    writer::{Shared, Writer},
};

/// A file that is written beside the segments.
const FILE: &str = "probe";
/// A page of the kernel's.
const BYTES: usize = 4096;

/// Asks the disk of a log that stopped, whose writer therefore writes no more.
pub(super) fn probe(shared: &Shared) -> Result<(), LogError> {
    let disk = &shared.disk;
    takes_files(disk)?;
    let (newest, head) = {
        let state = shared.state();
        (state.segments.last().cloned(), state.head)
    };
    let is_reset = reset::is_decided(disk)?;
    if let Some(newest) = newest {
        takes_more(disk, &newest)?;
    }
    let options = LogOptions { recent_bytes_max: 0, ..LogOptions::default() };
    let (reopened, _) = Writer::open(Arc::clone(disk), options, Arc::clone(&shared.clock))?;
    let found = reopened.head();
    if found == head || is_reset {
        return Ok(());
    }
    Err(LogError::Io { action: "read the log back", reason: format!("it ends at {found} and not at {head}") })
}

/// New segments are such files.
fn takes_files(disk: &SharedDisk) -> Result<(), LogError> {
    disk.remove(FILE).map_err(LogError::io("remove probe"))?;
    let mut file = disk.create(FILE).map_err(LogError::io("create probe"))?;
    let synced = file.append(&[0; BYTES]).and_then(|()| file.sync());
    disk.remove(FILE).map_err(LogError::io("remove probe"))?;
    synced.map_err(LogError::io("sync probe"))?;
    disk.sync_dir().map_err(LogError::io("sync log directory"))
}

/// Writes what no record is behind the last durable one, as the write that failed did. With it goes
/// the block that both share: the disk may have spoiled what it had of it. A crash leaves what the
/// next start cuts off.
fn takes_more(disk: &SharedDisk, newest: &Segment) -> Result<(), LogError> {
    let names = disk.list().map_err(LogError::io("list log directory"))?;
    if !names.contains(&newest.name) {
        return Ok(());
    }
    let mut file = disk.open(&newest.name).map_err(LogError::io("open segment"))?;
    let written =
        file.truncate(newest.end()).and_then(|()| file.append(&[0; BYTES])).and_then(|()| file.sync());
    let cut = file.truncate(newest.end()).and_then(|()| file.sync());
    written.and(cut).map_err(LogError::io("sync segment"))
}
