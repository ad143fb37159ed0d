//! The bytes of a segment: one header, then records. All numbers are little-endian.
//!
//! ```text
//! header  0 magic "OUTPLOG\n"   8 format version u16   10 zero u16    12 salt u32
//!        16 epoch u64          24 first seq u64        32 epoch before u64
//!        40 chain before [8]   48 log bytes before u64 56 time before u64 (microseconds)
//!        64 CRC32C of the 64 bytes above u32
//! record  0 magic "OPR1"        4 format version u16    6 zero u16     8 payload length u32
//!        12 CRC32C u32         16 durable up to u32    20 zero u32    24 chain [8]
//!        32 payload: `codec::encode_event`
//! ```
//!
//! - *chain*: the first 8 bytes of SHA-256 over the chain before and the payload. A removed,
//!   swapped or foreign record breaks it.
//! - *CRC32C* of a record covers the segment's salt, the record's header (the CRC left out) and
//!   the payload. The salt keeps bytes that somebody pushed from passing for a record.
//! - *durable up to*: length of the segment that was on disk for sure when the record was
//!   written. It tells what a crash may explain from what it may not: a damaged record is a torn
//!   write if no later record says that it was durable.

use bytes::Bytes;
use outport_proto::{Algorithm, Hasher, Offset, Timestamp};

/// The newest format this build reads, and the one it writes.
pub(super) const FORMAT_VERSION: u16 = 1;
/// Length of a segment's header.
pub(super) const HEADER_BYTES: usize = 68;
/// Length of a record without its payload.
pub(super) const RECORD_OVERHEAD_BYTES: usize = 32;
/// Longest payload: an encoded event is at most a frame of 8 MiB.
pub(super) const PAYLOAD_BYTES_MAX: usize = outport_proto::frame::FRAME_BYTES_MAX;

const SEGMENT_MAGIC: &[u8; 8] = b"OUTPLOG\n";
pub(super) const RECORD_MAGIC: &[u8; 4] = b"OPR1";

/// A running hash over every payload since the log began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Chain([u8; 8]);

impl Chain {
    /// The chain of a log that begins after `offset`.
    pub(super) fn beginning_after(offset: Offset) -> Self {
        if offset == Offset::ZERO {
            return Self::default();
        }
        Self::default().after(&[offset.epoch.to_le_bytes(), offset.seq.to_le_bytes()].concat())
    }

    /// The chain once `payload` follows.
    pub(super) fn after(self, payload: &[u8]) -> Self {
        let mut hasher = Hasher::new(Algorithm::Sha256);
        hasher.update(&self.0);
        hasher.update(payload);
        let mut chain = [0; 8];
        chain.copy_from_slice(&hasher.finish().as_bytes()[..8]);
        Self(chain)
    }

    /// Some of its bits, for a salt.
    pub(super) fn low_bits(self) -> u32 {
        u32_at(&self.0, 0)
    }
}

/// Where a segment begins, and what came before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// Epoch of all its events.
    pub(super) epoch: u64,
    /// The event before its first.
    pub(super) before: Offset,
    pub(super) chain: Chain,
    /// Bytes of records before, over the whole log.
    pub(super) log_bytes: u64,
    /// Time of the event before.
    pub(super) time: Timestamp,
    pub(super) salt: u32,
}

/// Why bytes are not a header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum BadHeader {
    /// Written by a newer program.
    Newer(u16),
    /// Anything else.
    Damaged(&'static str),
}

impl Header {
    pub(super) fn first_seq(&self) -> u64 {
        self.before.seq + 1
    }

    /// The segment's file name: sorts by epoch, then by seq.
    pub(super) fn file_name(&self) -> String {
        format!("{:020}-{:020}.log", self.epoch, self.first_seq())
    }

    pub(super) fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..8].copy_from_slice(SEGMENT_MAGIC);
        bytes[8..10].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.salt.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.epoch.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.first_seq().to_le_bytes());
        bytes[32..40].copy_from_slice(&self.before.epoch.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.chain.0);
        bytes[48..56].copy_from_slice(&self.log_bytes.to_le_bytes());
        bytes[56..64].copy_from_slice(&self.time.as_micros().to_le_bytes());
        let crc = crc_fast::crc32_iscsi(&bytes[..64]);
        bytes[64..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, BadHeader> {
        if bytes.len() < HEADER_BYTES {
            return Err(BadHeader::Damaged("the header is cut off"));
        }
        if &bytes[..8] != SEGMENT_MAGIC {
            return Err(BadHeader::Damaged("not a segment: wrong magic"));
        }
        // Before anything else: a newer format may look different from here on.
        let version = u16_at(bytes, 8);
        if version > FORMAT_VERSION {
            return Err(BadHeader::Newer(version));
        }
        if crc_fast::crc32_iscsi(&bytes[..64]) != u32_at(bytes, 64) {
            return Err(BadHeader::Damaged("the header's checksum does not fit"));
        }
        let Some(before_seq) = u64_at(bytes, 24).checked_sub(1) else {
            return Err(BadHeader::Damaged("event 0 does not exist"));
        };
        let mut chain = [0; 8];
        chain.copy_from_slice(&bytes[40..48]);
        Ok(Self {
            epoch: u64_at(bytes, 16),
            before: Offset::new(u64_at(bytes, 32), before_seq),
            chain: Chain(chain),
            log_bytes: u64_at(bytes, 48),
            time: Timestamp::from_micros(u64_at(bytes, 56)),
            salt: u32_at(bytes, 12),
        })
    }
}

/// Epoch and first seq that a segment's file name says; `None` for any other file.
pub(super) fn parse_file_name(name: &str) -> Option<(u64, u64)> {
    let (epoch, seq) = name.strip_suffix(".log")?.split_once('-')?;
    let number = |text: &str| {
        let fixed = text.len() == 20 && text.bytes().all(|byte| byte.is_ascii_digit());
        if fixed { text.parse().ok() } else { None }
    };
    Some((number(epoch)?, number(seq)?))
}

/// Appends the record of `payload` to `buffer`; returns the chain after it.
pub(super) fn encode_record(
    buffer: &mut Vec<u8>,
    salt: u32,
    chain: Chain,
    durable_to: u32,
    payload: &[u8],
) -> Chain {
    let chain = chain.after(payload);
    let mut head = [0; RECORD_OVERHEAD_BYTES];
    head[..4].copy_from_slice(RECORD_MAGIC);
    head[4..6].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
    head[8..12].copy_from_slice(&u32::try_from(payload.len()).unwrap_or(u32::MAX).to_le_bytes());
    head[16..20].copy_from_slice(&durable_to.to_le_bytes());
    head[24..32].copy_from_slice(&chain.0);
    let crc = record_crc(salt, &head, payload);
    head[12..16].copy_from_slice(&crc.to_le_bytes());
    buffer.extend_from_slice(&head);
    buffer.extend_from_slice(payload);
    chain
}

/// A record as it lies in a segment; its chain is not compared yet.
#[derive(Clone, Debug)]
pub(super) struct RawRecord {
    pub(super) payload: Bytes,
    pub(super) chain: Chain,
    pub(super) durable_to: u32,
}

/// What stands at a place where a record should begin.
#[derive(Clone, Debug)]
pub(super) enum Parsed {
    /// A record whose checksum fits.
    Whole(RawRecord),
    /// More bytes are needed: the record, if it is one, has this length.
    Short(usize),
    /// No record.
    Damaged(&'static str),
}

/// Reads the record at the beginning of `bytes`.
pub(super) fn parse_record(salt: u32, bytes: &Bytes) -> Parsed {
    if bytes.len() < RECORD_OVERHEAD_BYTES {
        return Parsed::Short(RECORD_OVERHEAD_BYTES);
    }
    if &bytes[..4] != RECORD_MAGIC {
        return Parsed::Damaged("wrong magic");
    }
    if u16_at(bytes, 4) != FORMAT_VERSION {
        return Parsed::Damaged("unknown record version");
    }
    let payload_bytes = u32_at(bytes, 8) as usize;
    if payload_bytes > PAYLOAD_BYTES_MAX {
        return Parsed::Damaged("impossible length");
    }
    let length = RECORD_OVERHEAD_BYTES + payload_bytes;
    if bytes.len() < length {
        return Parsed::Short(length);
    }
    let payload = bytes.slice(RECORD_OVERHEAD_BYTES..length);
    if record_crc(salt, &bytes[..RECORD_OVERHEAD_BYTES], &payload) != u32_at(bytes, 12) {
        return Parsed::Damaged("the checksum does not fit");
    }
    let mut chain = [0; 8];
    chain.copy_from_slice(&bytes[24..32]);
    Parsed::Whole(RawRecord { payload, chain: Chain(chain), durable_to: u32_at(bytes, 16) })
}

fn record_crc(salt: u32, head: &[u8], payload: &[u8]) -> u32 {
    let mut crc = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
    crc.update(&salt.to_le_bytes());
    crc.update(&head[..12]);
    crc.update(&head[16..RECORD_OVERHEAD_BYTES]);
    crc.update(payload);
    u32::try_from(crc.finalize()).unwrap_or(u32::MAX)
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        Header {
            epoch: 1,
            before: Offset::new(1, 41),
            chain: Chain([7; 8]),
            log_bytes: 4096,
            time: Timestamp::from_secs(9),
            salt: 0xfeed,
        }
    }

    #[test]
    fn a_header_comes_back_and_any_flipped_bit_is_seen() {
        let bytes = header().encode();
        assert_eq!(Header::decode(&bytes), Ok(header()));
        assert_eq!(header().file_name(), "00000000000000000001-00000000000000000042.log");
        assert_eq!(parse_file_name(&header().file_name()), Some((1, 42)));
        assert_eq!(parse_file_name("1-42.log"), None);
        for bit in 0..HEADER_BYTES * 8 {
            let mut flipped = bytes;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(Header::decode(&flipped).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_newer_format_is_named_as_such() {
        let mut bytes = header().encode();
        bytes[8] = 2;
        assert_eq!(Header::decode(&bytes), Err(BadHeader::Newer(2)));
    }

    /// What is on disks already must stay readable.
    #[test]
    fn the_bytes_of_a_record_do_not_change() {
        let mut bytes = Vec::new();
        encode_record(&mut bytes, 1, Chain::default(), 68, b"event");
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "4f5052310100000005000000d74703dc4400000000000000a2551259dd5231926576656e74");
    }

    #[test]
    fn any_flipped_bit_of_a_record_is_seen() {
        let mut bytes = Vec::new();
        let chain = encode_record(&mut bytes, 1, Chain::default(), 68, b"event");
        match parse_record(1, &Bytes::from(bytes.clone())) {
            Parsed::Whole(record) => {
                assert_eq!(
                    (&record.payload[..], record.chain, record.durable_to),
                    (&b"event"[..], chain, 68)
                );
            }
            other => panic!("{other:?}"),
        }
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let parsed = parse_record(1, &Bytes::from(flipped));
            assert!(!matches!(parsed, Parsed::Whole(_)), "bit {bit}");
        }
        assert!(!matches!(parse_record(2, &Bytes::from(bytes)), Parsed::Whole(_)), "a foreign segment's");
    }
}
