//! One segment: reading it from any place, and finding where it ends after a crash.

use std::{
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use outport_proto::{Offset, Timestamp, codec};

use super::{
    LogError, Record,
    disk::{Disk, File},
    format::{self, BadHeader, Chain, HEADER_BYTES, Header, Parsed, RECORD_MAGIC, RawRecord},
};

/// Read from the disk at once.
const READ_BYTES: usize = 128 * 1024;
/// Distance between marks: what a positioned read skips at most.
const MARK_BYTES: u64 = 64 * 1024;

/// A segment whose header is known. Its records, up to `end`, are durable.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) name: String,
    pub(super) header: Header,
    end: AtomicU64,
    /// Places to begin reading at, ascending, at least [`MARK_BYTES`] apart.
    marks: Mutex<Vec<Mark>>,
}

/// A place between two records.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mark {
    /// Event of the record that begins here.
    pub(super) seq: u64,
    pub(super) position: u64,
    /// Chain before it.
    pub(super) chain: Chain,
}

impl Segment {
    pub(super) fn new(header: Header, end: u64) -> Arc<Self> {
        Arc::new(Self {
            name: header.file_name(),
            header,
            end: AtomicU64::new(end),
            marks: Mutex::new(Vec::new()),
        })
    }

    /// Reads the header of `name`; [`BadHeader`] is left to the caller to judge.
    pub(super) fn open(disk: &dyn Disk, name: &str) -> io::Result<(Result<Arc<Self>, BadHeader>, u64)> {
        let file = disk.open(name)?;
        let length = file.length()?;
        let mut bytes = [0; HEADER_BYTES];
        let read = file.read_at(&mut bytes, 0)?;
        let header = Header::decode(&bytes[..read]).and_then(|header| {
            if header.file_name() == name {
                Ok(Self::new(header, length))
            } else {
                Err(BadHeader::Damaged("the header does not belong to the file's name"))
            }
        });
        Ok((header, length))
    }

    pub(super) fn end(&self) -> u64 {
        self.end.load(Ordering::Acquire)
    }

    /// Records up to `end` are durable now.
    pub(super) fn extend(&self, end: u64) {
        self.end.store(end, Ordering::Release);
    }

    /// Remembers a place to begin reading at, unless one is near.
    pub(super) fn mark(&self, mark: Mark) {
        let mut marks = self.marks.lock().unwrap_or_else(PoisonError::into_inner);
        let at = marks.partition_point(|known| known.position <= mark.position);
        let before = at.checked_sub(1).map_or(HEADER_BYTES as u64, |index| marks[index].position);
        let far_before = mark.position >= before + MARK_BYTES;
        let far_after = marks.get(at).is_none_or(|next| next.position >= mark.position + MARK_BYTES);
        if far_before && far_after {
            marks.insert(at, mark);
        }
    }

    /// The nearest known place at or before event `seq`.
    fn nearest(&self, seq: u64) -> Mark {
        let marks = self.marks.lock().unwrap_or_else(PoisonError::into_inner);
        let at = marks.partition_point(|mark| mark.seq <= seq);
        at.checked_sub(1).map_or(
            Mark { seq: self.header.first_seq(), position: HEADER_BYTES as u64, chain: self.header.chain },
            |index| marks[index],
        )
    }

    /// Records from event `seq` on, about `bytes_max` bytes of them and at least one.
    pub(super) fn read(&self, disk: &dyn Disk, seq: u64, bytes_max: usize) -> Result<Vec<Record>, LogError> {
        let file = disk.open(&self.name).map_err(LogError::io("open segment"))?;
        let mut reader =
            Reader { segment: self, file, at: self.nearest(seq), end: self.end(), buffer: Bytes::new() };
        let mut records = Vec::new();
        let mut bytes = 0;
        loop {
            let offset = Offset::new(self.header.epoch, reader.at.seq);
            let raw = match reader.step()? {
                Step::Record(raw) => raw,
                Step::End => return Ok(records),
                Step::Damaged(reason) | Step::CutOff(reason) => return Err(reader.corrupt(reason)),
            };
            if offset.seq < seq {
                continue;
            }
            bytes += raw.payload.len();
            if bytes > bytes_max && !records.is_empty() {
                return Ok(records);
            }
            records.push(decode(raw.payload, offset).map_err(|reason| reader.corrupt(reason))?);
        }
    }

    /// Walks all records to find the last one that a crash left whole.
    pub(super) fn recover(&self, disk: &dyn Disk) -> Result<Recovered, LogError> {
        let file = disk.open(&self.name).map_err(LogError::io("open segment"))?;
        let length = file.length().map_err(LogError::io("read segment"))?;
        let start = self.nearest(0);
        let mut reader = Reader { segment: self, file, at: start, end: length, buffer: Bytes::new() };
        let mut last = None;
        loop {
            match reader.step()? {
                Step::Record(raw) => last = Some(raw.payload),
                Step::End => break,
                Step::Damaged(reason) => return Err(reader.corrupt(reason)),
                Step::CutOff(reason) => {
                    if reader.was_durable()? {
                        return Err(reader.corrupt(reason));
                    }
                    break;
                }
            }
        }
        let head = match reader.at.seq - 1 {
            seq if seq == self.header.before.seq => self.header.before,
            seq => Offset::new(self.header.epoch, seq),
        };
        let time = match last {
            Some(payload) => decode(payload, head).map_err(|reason| reader.corrupt(reason))?.event.time,
            None => self.header.time,
        };
        let end = reader.at.position;
        self.extend(end);
        Ok(Recovered {
            head,
            time,
            chain: reader.at.chain,
            log_bytes: self.header.log_bytes + (end - HEADER_BYTES as u64),
            end,
            torn_bytes: length - end,
        })
    }
}

/// How far a segment is whole.
#[derive(Debug)]
pub(super) struct Recovered {
    pub(super) head: Offset,
    pub(super) time: Timestamp,
    pub(super) chain: Chain,
    /// Bytes of records up to here, over the whole log.
    pub(super) log_bytes: u64,
    /// Where the last whole record ends.
    pub(super) end: u64,
    /// What lies behind it.
    pub(super) torn_bytes: u64,
}

fn decode(payload: Bytes, offset: Offset) -> Result<Record, &'static str> {
    let event = codec::decode_event(&payload).map_err(|_| "the event does not decode")?;
    if event.offset != offset {
        return Err("the event is another one");
    }
    Ok(Record { event: Arc::new(event), encoded: payload, trace: None })
}

struct Reader<'a> {
    segment: &'a Segment,
    file: Box<dyn File>,
    at: Mark,
    end: u64,
    /// What was read from `at` on.
    buffer: Bytes,
}

enum Step {
    Record(RawRecord),
    End,
    /// Bytes that no crash explains.
    Damaged(&'static str),
    /// Bytes that a crash may have left.
    CutOff(&'static str),
}

impl Reader<'_> {
    /// Reads the record at `at` and moves behind it.
    fn step(&mut self) -> Result<Step, LogError> {
        if self.at.position == self.end {
            return Ok(Step::End);
        }
        let raw = loop {
            match format::parse_record(self.segment.header.salt, &self.buffer) {
                Parsed::Whole(raw) => break raw,
                Parsed::Damaged(reason) => return Ok(Step::CutOff(reason)),
                Parsed::Short(needed) if self.at.position + needed as u64 > self.end => {
                    return Ok(Step::CutOff("the segment ends inside the record"));
                }
                Parsed::Short(needed) => {
                    self.buffer = self.fill(self.at.position, needed.max(READ_BYTES))?;
                    if self.buffer.len() < needed {
                        return Ok(Step::CutOff("the segment ends inside the record"));
                    }
                }
            }
        };
        if self.at.chain.after(&raw.payload) != raw.chain {
            return Ok(Step::Damaged("it does not follow the record before it"));
        }
        let length = format::RECORD_OVERHEAD_BYTES + raw.payload.len();
        self.buffer = self.buffer.slice(length..);
        self.at = Mark { seq: self.at.seq + 1, position: self.at.position + length as u64, chain: raw.chain };
        self.segment.mark(self.at);
        Ok(Step::Record(raw))
    }

    fn fill(&self, position: u64, bytes: usize) -> Result<Bytes, LogError> {
        let left = usize::try_from(self.end - position).unwrap_or(usize::MAX);
        let mut buffer = vec![0; bytes.min(left)];
        let read = self.file.read_at(&mut buffer, position).map_err(LogError::io("read segment"))?;
        buffer.truncate(read);
        Ok(buffer.into())
    }

    /// Whether any later record says that the bytes at `at` were on disk when it was written:
    /// then it is damage, not a write that a crash tore.
    fn was_durable(&self) -> Result<bool, LogError> {
        let rest = self.fill(self.at.position, usize::MAX)?;
        let mut from = 1;
        while let Some(found) = rest
            .get(from..)
            .and_then(|bytes| bytes.windows(RECORD_MAGIC.len()).position(|window| window == RECORD_MAGIC))
        {
            from += found;
            if let Parsed::Whole(later) = format::parse_record(self.segment.header.salt, &rest.slice(from..))
                && u64::from(later.durable_to) > self.at.position
            {
                return Ok(true);
            }
            from += 1;
        }
        Ok(false)
    }

    fn corrupt(&self, reason: &str) -> LogError {
        LogError::Corrupt {
            segment: self.segment.name.clone(),
            position: self.at.position,
            reason: reason.to_owned(),
        }
    }
}
