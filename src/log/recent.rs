//! The newest records, in memory, for readers that keep up.

use std::collections::VecDeque;

use super::Record;
use crate::bounds;

/// What a record takes beside its encoded bytes, about: the decoded event shares the inline
/// manifest with no one, so it counts twice.
pub(super) fn cost(record: &Record) -> usize {
    record.encoded.len() * 2 + 256
}

/// Consecutive newest records, bounded by bytes.
#[derive(Debug)]
pub(super) struct Recent {
    records: VecDeque<Record>,
    bytes: usize,
    bytes_max: usize,
}

impl Recent {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self { records: VecDeque::new(), bytes: 0, bytes_max }
    }

    pub(super) fn bytes_max(&self) -> usize {
        self.bytes_max
    }

    pub(super) fn push(&mut self, record: Record) {
        self.bytes += cost(&record);
        self.records.push_back(record);
        while self.bytes > self.bytes_max {
            let Some(oldest) = self.records.pop_front() else { break };
            self.bytes -= cost(&oldest);
        }
        bounds::note("bytes of newest events", self.bytes, self.bytes_max);
    }

    pub(super) fn clear(&mut self) {
        self.records.clear();
        self.bytes = 0;
    }

    /// Whether `bytes` more would leave all records from `seq` on here, about: records are taken for
    /// equally long.
    pub(super) fn has_room(&self, seq: u64, bytes: usize) -> bool {
        let Some(first) = self.records.front().map(|record| record.event.offset.seq) else { return true };
        let read = usize::try_from(seq.saturating_sub(first)).unwrap_or(usize::MAX);
        let unread = self.records.len().saturating_sub(read);
        // Whatever does not fit at all may come when nothing else is unread.
        unread == 0 || (seq >= first && self.bytes / self.records.len() * unread + bytes <= self.bytes_max)
    }

    /// Records from `seq` on, about `bytes_max` bytes of them; `None` when `seq` is not here.
    pub(super) fn read(&self, seq: u64, bytes_max: usize) -> Option<Vec<Record>> {
        let first = self.records.front()?.event.offset.seq;
        let start = usize::try_from(seq.checked_sub(first)?).ok()?;
        if start >= self.records.len() {
            return None;
        }
        let mut bytes = 0;
        let mut found = Vec::new();
        for record in self.records.range(start..) {
            bytes += record.encoded.len();
            if bytes > bytes_max && !found.is_empty() {
                break;
            }
            found.push(record.clone());
        }
        Some(found)
    }
}
