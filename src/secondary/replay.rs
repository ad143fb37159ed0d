//! When the events happened that were on disk before the start.

use outport_proto::{Offset, Timestamp};

use crate::log::{Log, LogError};

/// Log read at once.
const READ_BYTES: usize = 1024 * 1024;

/// Log read in all. A site with more than this to make up for says that it does not know its lag.
const READ_BYTES_MAX: usize = 16 * READ_BYTES;

/// The times of all events of `log` after `after`; `None` when it does not reach back that far, or
/// when there are too many. Reads the disk.
pub(super) fn times_after(log: &Log, after: Offset) -> Result<Option<Vec<(Offset, Timestamp)>>, LogError> {
    let mut times = Vec::new();
    let (mut last, mut bytes) = (after, 0);
    while bytes < READ_BYTES_MAX {
        let records = match log.read(last, READ_BYTES) {
            Ok(records) => records,
            Err(LogError::BelowFloor { .. } | LogError::NotInLog { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let Some(newest) = records.last() else { return Ok(Some(times)) };
        last = newest.event.offset;
        bytes += records.iter().map(|record| record.encoded.len()).sum::<usize>();
        times.extend(records.iter().map(|record| (record.event.offset, record.event.time)));
    }
    Ok(None)
}
