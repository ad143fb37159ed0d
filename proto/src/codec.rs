//! How frames and records become bytes and back. `proto/README.md` draws the layout.
//!
//! Everything travels and rests in an [`envelope`](self#the-envelope): magic, version, kind,
//! length, payload, CRC-32C. A payload is the bincode "legacy" form of the value: little-endian
//! integers of fixed width, `u64` lengths, `u32` variant numbers, fields in declaration order.
//! This is the only file that knows that. Names and digests are parsed as they are decoded, so
//! nothing that leaves this module is invalid.
//!
//! # The envelope
//!
//! | bytes | field |
//! |---|---|
//! | 2 | magic `OP` |
//! | 1 | envelope version, 1 |
//! | 1 | kind |
//! | 4 | payload length, little-endian |
//! | n | payload |
//! | 4 | CRC-32C (Castagnoli) of everything before it, little-endian |

mod envelope;
mod reader;

use bincode::{
    config::{Configuration, Fixint, Limit, LittleEndian},
    de::{Decoder, read::Reader},
    enc::{Encoder, write::Writer},
    error::{DecodeError, EncodeError},
};
use bytes::Bytes;

use self::envelope::{Envelope, Kind};
pub use self::{envelope::ENVELOPE_BYTES, reader::FrameReader};
/// A value with a binary form: derive it, or write it here for types from elsewhere.
pub use bincode::{Decode, Encode};

use crate::{
    Event, ManifestPut, RepoName, SiteName, Tag,
    frame::{Asked, FRAME_BYTES_MAX, FromPrimary, FromSecondary, Join, Joined, Request, Response},
    name::{REPO_NAME_BYTES_MAX, SITE_NAME_BYTES_MAX, TAG_BYTES_MAX},
    oci::{PLATFORM_BYTES_MAX, Platform},
    snapshot::Entry,
};

/// Largest encoded event in bytes: one always fits an `Append` frame.
pub const EVENT_BYTES_MAX: usize = FRAME_BYTES_MAX - ENVELOPE_BYTES;

/// Most memory in bytes that the values of one payload may take while they are decoded. In
/// memory a value is larger than its bytes: short strings and descriptors up to four times.
const DECODED_BYTES_MAX: usize = 4 * FRAME_BYTES_MAX;

const fn config() -> Configuration<LittleEndian, Fixint, Limit<DECODED_BYTES_MAX>> {
    bincode::config::legacy().with_limit::<DECODED_BYTES_MAX>()
}

/// The bytes of an event, on disk and on the wire.
///
/// # Errors
/// [`CodecError::TooLarge`] above [`EVENT_BYTES_MAX`]: such an event must never enter a log.
pub fn encode_event(event: &Event) -> Result<Bytes, CodecError> {
    let encoded = seal(Kind::Event, event)?;
    if encoded.len() > EVENT_BYTES_MAX {
        return Err(CodecError::TooLarge { bytes: encoded.len() });
    }
    Ok(encoded)
}

/// The event in `bytes`, which hold nothing else.
///
/// # Errors
/// See [`CodecError`].
pub fn decode_event(bytes: &[u8]) -> Result<Event, CodecError> {
    open(Kind::Event, bytes)
}

/// The bytes of some entries of a snapshot.
///
/// # Errors
/// [`CodecError::TooLarge`] above [`FRAME_BYTES_MAX`].
pub fn encode_entries(entries: &[Entry]) -> Result<Bytes, CodecError> {
    seal(Kind::Entries, entries)
}

/// The entries in `bytes`, which hold nothing else.
///
/// # Errors
/// See [`CodecError`].
pub fn decode_entries(bytes: &[u8]) -> Result<Vec<Entry>, CodecError> {
    open(Kind::Entries, bytes)
}

/// The bytes of any value, checksummed like a frame; for records that are stored. Types of this
/// crate and tuples, options, vectors and numbers made of them have a form.
///
/// # Errors
/// [`CodecError::TooLarge`] above [`FRAME_BYTES_MAX`].
pub fn encode_value<T: Encode>(value: &T) -> Result<Bytes, CodecError> {
    seal(Kind::Value, value)
}

/// The value in `bytes`, which hold nothing else.
///
/// # Errors
/// See [`CodecError`]. The bytes of another type may decode to nonsense: keep types apart by place.
pub fn decode_value<T: Decode<()>>(bytes: &[u8]) -> Result<T, CodecError> {
    open(Kind::Value, bytes)
}

/// The bytes of a frame.
///
/// # Errors
/// [`CodecError::TooLarge`] above [`FRAME_BYTES_MAX`].
pub fn encode_frame<F: WireFrame>(frame: &F) -> Result<Bytes, CodecError> {
    let mut buffer = Vec::new();
    frame.encode(&mut buffer)?;
    Ok(buffer.into())
}

/// Appends the bytes of a frame to `buffer`, which is of no more use when that fails.
///
/// # Errors
/// As [`encode_frame`].
pub fn append_frame<F: WireFrame>(frame: &F, buffer: &mut Vec<u8>) -> Result<(), CodecError> {
    frame.encode(buffer)
}

/// The frame in `bytes`, which hold nothing else. A stream is cut into frames by [`FrameReader`].
///
/// # Errors
/// See [`CodecError`].
pub fn decode_frame<F: WireFrame>(bytes: &[u8]) -> Result<F, CodecError> {
    let envelope = Envelope::parse_whole(bytes)?;
    F::decode(envelope)
}

/// What may be sent on a stream: one of the frames of [`crate::frame`].
pub trait WireFrame: Sized + private::Frame {}

impl WireFrame for FromSecondary {}
impl WireFrame for FromPrimary {}
impl WireFrame for Request {}
impl WireFrame for Asked {}
impl WireFrame for Response {}
impl WireFrame for Join {}
impl WireFrame for Joined {}

mod private {
    use super::{CodecError, Envelope};

    pub trait Frame: Sized {
        fn encode(&self, buffer: &mut Vec<u8>) -> Result<(), CodecError>;
        fn decode(envelope: Envelope<'_>) -> Result<Self, CodecError>;
    }
}

impl private::Frame for FromSecondary {
    fn encode(&self, buffer: &mut Vec<u8>) -> Result<(), CodecError> {
        match self {
            Self::Hello(hello) => seal_onto(buffer, Kind::Hello, hello),
            Self::Ack(ack) => seal_onto(buffer, Kind::Ack, ack),
            Self::Details(details) => seal_onto(buffer, Kind::Details, details),
            Self::Probe(micros) => seal_onto(buffer, Kind::Probe, micros),
        }
    }

    fn decode(envelope: Envelope<'_>) -> Result<Self, CodecError> {
        match envelope.kind {
            Kind::Hello => from_payload(envelope.payload).map(Self::Hello),
            Kind::Ack => from_payload(envelope.payload).map(Self::Ack),
            Kind::Details => from_payload(envelope.payload).map(Self::Details),
            Kind::Probe => from_payload(envelope.payload).map(Self::Probe),
            other => Err(CodecError::UnexpectedKind(other as u8)),
        }
    }
}

impl private::Frame for FromPrimary {
    fn encode(&self, buffer: &mut Vec<u8>) -> Result<(), CodecError> {
        match self {
            Self::Welcome(welcome) => seal_onto(buffer, Kind::Welcome, welcome),
            Self::Refused(refusal) => seal_onto(buffer, Kind::Refused, refusal),
            Self::Append(events) => envelope::seal_onto(buffer, Kind::Append, |payload| {
                payload.reserve(events.iter().map(Bytes::len).sum());
                events.iter().for_each(|event| payload.extend_from_slice(event));
                Ok(())
            }),
            Self::Heartbeat(heartbeat) => seal_onto(buffer, Kind::Heartbeat, heartbeat),
            Self::Keys(keys) => seal_onto(buffer, Kind::Keys, keys),
            Self::Traces(traces) => seal_onto(buffer, Kind::Traces, traces),
            Self::Reading(reading) => seal_onto(buffer, Kind::Reading, reading),
        }
    }

    fn decode(envelope: Envelope<'_>) -> Result<Self, CodecError> {
        match envelope.kind {
            Kind::Welcome => from_payload(envelope.payload).map(Self::Welcome),
            Kind::Refused => from_payload(envelope.payload).map(Self::Refused),
            Kind::Append => split_events(envelope.payload).map(Self::Append),
            Kind::Heartbeat => from_payload(envelope.payload).map(Self::Heartbeat),
            Kind::Keys => from_payload(envelope.payload).map(Self::Keys),
            Kind::Traces => from_payload(envelope.payload).map(Self::Traces),
            Kind::Reading => from_payload(envelope.payload).map(Self::Reading),
            other => Err(CodecError::UnexpectedKind(other as u8)),
        }
    }
}

impl private::Frame for Asked {
    fn encode(&self, buffer: &mut Vec<u8>) -> Result<(), CodecError> {
        match self.parent {
            None => private::Frame::encode(&self.request, buffer),
            Some(parent) => envelope::seal_onto(buffer, Kind::TracedRequest, |payload| {
                write(&parent, payload)?;
                write(&self.request, payload)
            }),
        }
    }

    fn decode(envelope: Envelope<'_>) -> Result<Self, CodecError> {
        if envelope.kind != Kind::TracedRequest {
            return <Request as private::Frame>::decode(envelope).map(Self::from);
        }
        let (parent, request) = from_payload(envelope.payload)?;
        Ok(Self { parent: Some(parent), request })
    }
}

macro_rules! frame_of_one_kind {
    ($frame:ident) => {
        impl private::Frame for $frame {
            fn encode(&self, buffer: &mut Vec<u8>) -> Result<(), CodecError> {
                seal_onto(buffer, Kind::$frame, self)
            }

            fn decode(envelope: Envelope<'_>) -> Result<Self, CodecError> {
                envelope.expect(Kind::$frame).and_then(from_payload)
            }
        }
    };
}

frame_of_one_kind!(Request);
frame_of_one_kind!(Response);
frame_of_one_kind!(Join);
frame_of_one_kind!(Joined);

/// Each event gets bytes of its own: records are kept long after the frame they came in.
fn split_events(mut payload: &[u8]) -> Result<Vec<Bytes>, CodecError> {
    let mut events = Vec::new();
    while !payload.is_empty() {
        let envelope = Envelope::parse(payload)?.ok_or(CodecError::Truncated)?;
        let event_bytes = envelope.len_bytes();
        envelope.expect(Kind::Event)?;
        events.push(Bytes::copy_from_slice(&payload[..event_bytes]));
        payload = &payload[event_bytes..];
    }
    Ok(events)
}

fn seal<T: Encode + ?Sized>(kind: Kind, value: &T) -> Result<Bytes, CodecError> {
    envelope::seal(kind, |payload| write(value, payload))
}

fn seal_onto<T: Encode + ?Sized>(buffer: &mut Vec<u8>, kind: Kind, value: &T) -> Result<(), CodecError> {
    envelope::seal_onto(buffer, kind, |payload| write(value, payload))
}

fn write<T: Encode + ?Sized>(value: &T, payload: &mut Vec<u8>) -> Result<(), CodecError> {
    bincode::encode_into_std_write(value, payload, config())
        .map(|_| ())
        .map_err(|error| CodecError::Unencodable(error.to_string()))
}

fn open<T: Decode<()>>(kind: Kind, bytes: &[u8]) -> Result<T, CodecError> {
    Envelope::parse_whole(bytes)?.expect(kind).and_then(from_payload)
}

fn from_payload<T: Decode<()>>(payload: &[u8]) -> Result<T, CodecError> {
    let (value, consumed) = bincode::decode_from_slice(payload, config())
        .map_err(|error: DecodeError| CodecError::Malformed(error.to_string()))?;
    if consumed != payload.len() {
        return Err(CodecError::TrailingBytes { bytes: payload.len() - consumed });
    }
    Ok(value)
}

/// Why bytes are not the value they should be, or a value has no bytes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// They do not begin as an envelope does.
    #[error("not an envelope: wrong magic")]
    Magic,
    /// The envelope is of a version this build does not know.
    #[error("envelope version {0} is not known")]
    UnknownVersion(u8),
    /// The envelope's kind is none this build knows.
    #[error("kind {0:#04x} is not known")]
    UnknownKind(u8),
    /// A known kind, but not here.
    #[error("kind {0:#04x} does not belong here")]
    UnexpectedKind(u8),
    /// Larger than [`FRAME_BYTES_MAX`], by its own declaration or once encoded.
    #[error("{bytes} bytes exceed the frame limit")]
    TooLarge {
        /// The size in bytes.
        bytes: usize,
    },
    /// The bytes end before the envelope does.
    #[error("the bytes end early")]
    Truncated,
    /// The bytes go on after the value.
    #[error("{bytes} bytes too many")]
    TrailingBytes {
        /// How many.
        bytes: usize,
    },
    /// The checksum does not fit the bytes.
    #[error("the checksum does not match")]
    Checksum,
    /// The checksum fits and the payload is still not a value: another program wrote it.
    #[error("the payload is malformed: {0}")]
    Malformed(String),
    /// The value has no binary form.
    #[error("the value cannot be encoded: {0}")]
    Unencodable(String),
}

macro_rules! text_form {
    ($name:ident, $bytes_max:ident) => {
        impl Encode for $name {
            fn encode<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
                self.as_str().encode(encoder)
            }
        }

        impl<Context> Decode<Context> for $name {
            fn decode<D: Decoder<Context = Context>>(decoder: &mut D) -> Result<Self, DecodeError> {
                let mut space = [0; $bytes_max];
                let text = decode_text(decoder, &mut space)?;
                text.parse().map_err(|_| DecodeError::Other(concat!("not a valid ", stringify!($name))))
            }
        }

        bincode::impl_borrow_decode!($name);
    };
}

text_form!(RepoName, REPO_NAME_BYTES_MAX);
text_form!(Tag, TAG_BYTES_MAX);
text_form!(SiteName, SITE_NAME_BYTES_MAX);
text_form!(Platform, PLATFORM_BYTES_MAX);

fn decode_text<'a, D: Decoder>(decoder: &mut D, space: &'a mut [u8]) -> Result<&'a str, DecodeError> {
    let bytes = usize::decode(decoder)?;
    let text = space.get_mut(..bytes).ok_or(DecodeError::LimitExceeded)?;
    decoder.claim_bytes_read(bytes)?;
    decoder.reader().read(text)?;
    std::str::from_utf8(text).map_err(|inner| DecodeError::Utf8 { inner })
}

/// By hand because of `bytes`, which has no form of its own. The fields go in declaration order.
impl Encode for ManifestPut {
    fn encode<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
        let Self {
            repo,
            digest,
            media_type,
            size,
            bytes,
            tags,
            subject,
            artifact_type,
            platform,
            annotations,
            children,
        } = self;
        (repo, digest, media_type, size).encode(encoder)?;
        match bytes {
            None => 0_u8.encode(encoder)?,
            Some(bytes) => {
                (1_u8, bytes.len()).encode(encoder)?;
                encoder.writer().write(bytes)?;
            }
        }
        (tags, subject, artifact_type, platform, annotations, children).encode(encoder)
    }
}

impl<Context> Decode<Context> for ManifestPut {
    fn decode<D: Decoder<Context = Context>>(decoder: &mut D) -> Result<Self, DecodeError> {
        Ok(Self {
            repo: Decode::decode(decoder)?,
            digest: Decode::decode(decoder)?,
            media_type: Decode::decode(decoder)?,
            size: Decode::decode(decoder)?,
            bytes: Option::<Vec<u8>>::decode(decoder)?.map(Bytes::from),
            tags: Decode::decode(decoder)?,
            subject: Decode::decode(decoder)?,
            artifact_type: Decode::decode(decoder)?,
            platform: Decode::decode(decoder)?,
            annotations: Decode::decode(decoder)?,
            children: Decode::decode(decoder)?,
        })
    }
}

bincode::impl_borrow_decode!(ManifestPut);
