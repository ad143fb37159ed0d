//! Whatever arrives: what was sent comes back, anything else is refused.
#![cfg(test)]

use std::fmt::Debug;

use bytes::Bytes;
use outport_proto::{
    Event, Offset, Timestamp,
    codec::{
        CodecError, ENVELOPE_BYTES, EVENT_BYTES_MAX, FrameReader, WireFrame, decode_entries, decode_event,
        decode_frame, decode_value, encode_entries, encode_event, encode_frame, encode_value,
    },
    frame::{Asked, FRAME_BYTES_MAX, FromPrimary, FromSecondary, Join, Joined, Request, Response},
};
use proptest::{collection::vec, prelude::*, sample::Index};

use crate::samples;

fn comes_back<F: WireFrame + PartialEq + Debug>(frame: &F) {
    let bytes = encode_frame(frame).unwrap();
    assert_eq!(&decode_frame::<F>(&bytes).unwrap(), frame);
}

fn flips_are_refused<T: Debug>(bytes: &Bytes, decode: impl Fn(&[u8]) -> Result<T, CodecError>) {
    let mut copy = bytes.to_vec();
    for bit in 0..copy.len() * 8 {
        copy[bit / 8] ^= 1 << (bit % 8);
        assert!(decode(&copy).is_err(), "bit {bit}");
        copy[bit / 8] ^= 1 << (bit % 8);
    }
    for length in 0..bytes.len() {
        assert_eq!(decode(&bytes[..length]).unwrap_err(), CodecError::Truncated);
    }
    copy.push(0);
    assert_eq!(decode(&copy).unwrap_err(), CodecError::TrailingBytes { bytes: 1 });
}

/// The frames in `pieces` of the stream, read as a driver does.
fn read_all<F: WireFrame>(pieces: impl Iterator<Item = Vec<u8>>) -> Result<(Vec<F>, bool), CodecError> {
    let mut reader = FrameReader::new();
    let mut frames = Vec::new();
    for piece in pieces {
        reader.push(&piece);
        while let Some(frame) = reader.next()? {
            frames.push(frame);
        }
    }
    Ok((frames, reader.is_mid_frame()))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn everything_comes_back(
        event in samples::event(), entries in vec(samples::entry(), 0..5), up in samples::from_secondary(),
        down in samples::from_primary(), request in samples::request(), response in samples::response(),
        parent in samples::traceparent(), join in samples::join(), joined in samples::joined(),
    ) {
        prop_assert_eq!(decode_event(&encode_event(&event).unwrap()).unwrap(), event);
        prop_assert_eq!(decode_entries(&encode_entries(&entries).unwrap()).unwrap(), entries);
        comes_back(&up);
        comes_back(&down);
        comes_back(&request);
        comes_back(&Asked { parent: Some(parent), request });
        comes_back(&response);
        comes_back(&join);
        comes_back(&joined);
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in vec(any::<u8>(), 0..300), kind in any::<u8>()) {
        let _ = decode_frame::<FromPrimary>(&bytes);
        for kind in [kind, 0x01, 0x02, 0x03, 0x10, 0x11, 0x12, 0x20, 0x21, 0x22, 0x23, 0x24, 0x25, 0x30, 0x31, 0x32, 0x40, 0x41] {
            let sealed = envelope(1, kind, &bytes);
            let _ = decode_event(&sealed);
            let _ = decode_entries(&sealed);
            let _ = decode_value::<Vec<(String, Offset)>>(&sealed);
            let _ = decode_frame::<FromPrimary>(&sealed);
            let _ = decode_frame::<FromSecondary>(&sealed);
            let _ = decode_frame::<Request>(&sealed);
            let _ = decode_frame::<Asked>(&sealed);
            let _ = decode_frame::<Response>(&sealed);
            let _ = decode_frame::<Join>(&sealed);
            let _ = decode_frame::<Joined>(&sealed);
        }
    }

    #[test]
    fn a_stream_may_be_cut_anywhere(frames in vec(samples::from_primary(), 1..5), cuts in vec(any::<Index>(), 0..8)) {
        let stream: Vec<u8> = frames.iter().flat_map(|frame| encode_frame(frame).unwrap()).collect();
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len())).collect();
        cuts.sort_unstable();
        let ends = cuts.iter().copied().chain([stream.len()]);
        let starts = [0].into_iter().chain(cuts.iter().copied());
        let pieces = starts.zip(ends).map(|(start, end)| stream[start..end].to_vec());
        prop_assert_eq!(read_all::<FromPrimary>(pieces), Ok((frames, false)));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_flipped_bit_and_every_missing_or_extra_byte_is_refused(
        event in samples::event(), down in samples::from_primary(), response in samples::response(),
    ) {
        flips_are_refused(&encode_event(&event).unwrap(), decode_event);
        flips_are_refused(&encode_frame(&down).unwrap(), decode_frame::<FromPrimary>);
        flips_are_refused(&encode_frame(&response).unwrap(), decode_frame::<Response>);
    }
}

/// An envelope made by hand.
fn envelope(version: u8, kind: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![b'O', b'P', version, kind];
    bytes.extend((payload.len() as u32).to_le_bytes());
    bytes.extend(payload);
    bytes.extend(crc_fast::crc32_iscsi(&bytes).to_le_bytes());
    bytes
}

#[test]
fn what_is_wrong_with_an_envelope_is_told_apart() {
    let event_kind = 0x01;
    assert_eq!(decode_event(b"HTTP/1.1 400 Bad Request").unwrap_err(), CodecError::Magic);
    assert_eq!(decode_event(&envelope(2, event_kind, b"")).unwrap_err(), CodecError::UnknownVersion(2));
    assert_eq!(decode_event(&envelope(1, 0xee, b"")).unwrap_err(), CodecError::UnknownKind(0xee));
    assert_eq!(decode_event(&envelope(1, 0x10, b"")).unwrap_err(), CodecError::UnexpectedKind(0x10));
    assert!(matches!(decode_event(&envelope(1, event_kind, b"?")), Err(CodecError::Malformed(_))));
    let mut response = encode_frame(&Response::Body { size: 1 }).unwrap().to_vec();
    response.truncate(response.len() - 4);
    let payload = [&response[8..], b"!"].concat();
    let longer = envelope(1, 0x31, &payload);
    assert_eq!(decode_frame::<Response>(&longer), Err(CodecError::TrailingBytes { bytes: 1 }));
}

#[test]
fn names_are_parsed_as_they_are_decoded() {
    for name in ["../etc", "", "UPPER", &"a".repeat(300)] {
        let sealed = encode_value(&name.to_owned()).unwrap();
        assert!(decode_value::<outport_proto::RepoName>(&sealed).is_err(), "{name}");
        assert!(decode_value::<outport_proto::SiteName>(&sealed).is_err(), "{name}");
    }
    let sealed = encode_value(&"a:b".to_owned()).unwrap();
    assert!(decode_value::<outport_proto::Tag>(&sealed).is_err());
}

#[test]
fn a_huge_length_is_refused_before_its_bytes_are_awaited() {
    let mut header = envelope(1, 0x23, b"");
    header.truncate(8);
    header[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
    let too_large = CodecError::TooLarge { bytes: u32::MAX as usize };
    let mut reader = FrameReader::<FromPrimary>::new();
    reader.push(&header);
    assert_eq!(reader.next(), Err(too_large.clone()));
    reader.push(&encode_frame(&FromPrimary::Append(Vec::new())).unwrap());
    assert_eq!(reader.next(), Err(too_large), "a stream out of step stays refused");

    let hostile_vector = envelope(1, 0x02, &u64::MAX.to_le_bytes());
    assert!(matches!(decode_entries(&hostile_vector), Err(CodecError::Malformed(_))));
    let hostile_text = envelope(1, 0x03, &(1_u64 << 40).to_le_bytes());
    assert!(matches!(decode_value::<String>(&hostile_text), Err(CodecError::Malformed(_))));
}

#[test]
fn a_reader_that_is_never_asked_does_not_grow() {
    let mut reader = FrameReader::<FromPrimary>::new();
    let piece = vec![b'O'; 1024 * 1024];
    for _ in 0..20 {
        reader.push(&piece);
    }
    assert!(matches!(reader.next(), Err(CodecError::TooLarge { .. })));
    assert!(!reader.is_mid_frame());
}

#[test]
fn the_raw_bytes_after_a_body_frame_are_handed_over() {
    let mut reader = FrameReader::<Response>::new();
    reader.push(&encode_frame(&Response::Body { size: 9 }).unwrap());
    reader.push(b"raw bytes");
    assert_eq!(reader.next(), Ok(Some(Response::Body { size: 9 })));
    assert_eq!(reader.into_rest(), "raw bytes");
}

#[test]
fn an_event_that_no_frame_could_carry_is_not_encoded() {
    let event_of = |actor_bytes: usize| Event {
        offset: Offset::new(1, 1),
        time: Timestamp::from_micros(1),
        actor: "a".repeat(actor_bytes),
        intent: None,
        change: outport_proto::Change::RepositoryDeleted { repo: "a".parse().unwrap() },
    };
    let overhead = encode_event(&event_of(0)).unwrap().len();
    let largest = encode_event(&event_of(EVENT_BYTES_MAX - overhead)).unwrap();
    let frame = FromPrimary::Append(vec![largest]);
    let bytes = encode_frame(&frame).unwrap();
    assert_eq!(bytes.len(), FRAME_BYTES_MAX);
    assert_eq!(decode_frame::<FromPrimary>(&bytes), Ok(frame));
    let too_large = encode_event(&event_of(EVENT_BYTES_MAX - overhead + 1)).unwrap_err();
    assert_eq!(too_large, CodecError::TooLarge { bytes: FRAME_BYTES_MAX - ENVELOPE_BYTES + 1 });
}
