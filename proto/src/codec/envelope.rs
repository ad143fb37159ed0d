//! The envelope around every payload.

use bytes::Bytes;

use super::CodecError;
use crate::frame::FRAME_BYTES_MAX;

/// What an envelope adds to its payload, in bytes.
pub const ENVELOPE_BYTES: usize = HEADER_BYTES + CRC_BYTES;

const HEADER_BYTES: usize = 8;
const CRC_BYTES: usize = 4;
/// Room for most envelopes: one that grows from nothing is copied again and again.
const USUAL_BYTES: usize = 512;
const MAGIC: [u8; 2] = *b"OP";
const VERSION: u8 = 1;

/// What a payload is. Numbers are never given twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    Event = 0x01,
    Entries = 0x02,
    Value = 0x03,
    Hello = 0x10,
    Ack = 0x11,
    Details = 0x12,
    Probe = 0x13,
    Welcome = 0x20,
    Refused = 0x21,
    Append = 0x22,
    Heartbeat = 0x23,
    Keys = 0x24,
    Traces = 0x25,
    Reading = 0x26,
    Request = 0x30,
    Response = 0x31,
    TracedRequest = 0x32,
    Join = 0x40,
    Joined = 0x41,
}

impl Kind {
    fn from_byte(byte: u8) -> Result<Self, CodecError> {
        const ALL: [Kind; 19] = [
            Kind::Event,
            Kind::Entries,
            Kind::Value,
            Kind::Hello,
            Kind::Ack,
            Kind::Details,
            Kind::Probe,
            Kind::Welcome,
            Kind::Refused,
            Kind::Append,
            Kind::Heartbeat,
            Kind::Keys,
            Kind::Traces,
            Kind::Reading,
            Kind::Request,
            Kind::Response,
            Kind::TracedRequest,
            Kind::Join,
            Kind::Joined,
        ];
        ALL.into_iter().find(|kind| *kind as u8 == byte).ok_or(CodecError::UnknownKind(byte))
    }
}

/// A whole envelope whose checksum fits.
#[derive(Clone, Copy, Debug)]
pub struct Envelope<'a> {
    pub(super) kind: Kind,
    pub(super) payload: &'a [u8],
}

impl<'a> Envelope<'a> {
    /// The envelope at the beginning of `bytes`; `None` when there are not yet enough of them.
    /// What the header alone shows to be wrong is refused without waiting for the rest.
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Option<Self>, CodecError> {
        let Some((header, rest)) = bytes.split_first_chunk::<HEADER_BYTES>() else {
            return if MAGIC.starts_with(&bytes[..bytes.len().min(MAGIC.len())]) {
                Ok(None)
            } else {
                Err(CodecError::Magic)
            };
        };
        let [magic_0, magic_1, version, kind, length @ ..] = *header;
        if [magic_0, magic_1] != MAGIC {
            return Err(CodecError::Magic);
        }
        if version != VERSION {
            return Err(CodecError::UnknownVersion(version));
        }
        let kind = Kind::from_byte(kind)?;
        let payload_bytes = u32::from_le_bytes(length) as usize;
        if payload_bytes > FRAME_BYTES_MAX - ENVELOPE_BYTES {
            return Err(CodecError::TooLarge { bytes: payload_bytes });
        }
        let Some((payload, rest)) = rest.split_at_checked(payload_bytes) else {
            return Ok(None);
        };
        let Some(crc) = rest.first_chunk::<CRC_BYTES>() else {
            return Ok(None);
        };
        if crc_fast::crc32_iscsi(&bytes[..HEADER_BYTES + payload_bytes]) != u32::from_le_bytes(*crc) {
            return Err(CodecError::Checksum);
        }
        Ok(Some(Self { kind, payload }))
    }

    /// The envelope that `bytes` are, with nothing behind it.
    pub(super) fn parse_whole(bytes: &'a [u8]) -> Result<Self, CodecError> {
        let envelope = Self::parse(bytes)?.ok_or(CodecError::Truncated)?;
        match bytes.len() - envelope.len_bytes() {
            0 => Ok(envelope),
            bytes => Err(CodecError::TrailingBytes { bytes }),
        }
    }

    /// Size in bytes of the whole envelope.
    pub(super) fn len_bytes(&self) -> usize {
        ENVELOPE_BYTES + self.payload.len()
    }

    /// The payload, if it is of `kind`.
    pub(super) fn expect(self, kind: Kind) -> Result<&'a [u8], CodecError> {
        if self.kind == kind { Ok(self.payload) } else { Err(CodecError::UnexpectedKind(self.kind as u8)) }
    }
}

/// An envelope of `kind` around what `write_payload` appends to the buffer it gets.
pub(super) fn seal(
    kind: Kind,
    write_payload: impl FnOnce(&mut Vec<u8>) -> Result<(), CodecError>,
) -> Result<Bytes, CodecError> {
    let mut buffer = Vec::new();
    seal_onto(&mut buffer, kind, write_payload)?;
    // Events are kept: without the room that is left.
    Ok(Bytes::from(buffer.into_boxed_slice()))
}

/// [`seal`], behind what `buffer` holds; an error leaves anything behind that.
pub(super) fn seal_onto(
    buffer: &mut Vec<u8>,
    kind: Kind,
    write_payload: impl FnOnce(&mut Vec<u8>) -> Result<(), CodecError>,
) -> Result<(), CodecError> {
    let begin = buffer.len();
    buffer.reserve(USUAL_BYTES);
    buffer.extend_from_slice(&[MAGIC[0], MAGIC[1], VERSION, kind as u8, 0, 0, 0, 0]);
    write_payload(buffer)?;
    let bytes = buffer.len() - begin + CRC_BYTES;
    let length = match u32::try_from(bytes - ENVELOPE_BYTES) {
        Ok(length) if bytes <= FRAME_BYTES_MAX => length,
        _ => return Err(CodecError::TooLarge { bytes }),
    };
    buffer[begin + 4..begin + HEADER_BYTES].copy_from_slice(&length.to_le_bytes());
    let crc = crc_fast::crc32_iscsi(&buffer[begin..]);
    buffer.extend_from_slice(&crc.to_le_bytes());
    Ok(())
}
