//! Datagrams as capsules: type, length, context, payload, the first three as QUIC's variable-length integers.

use std::io;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

/// The type of a capsule that is a datagram (RFC 9297, section 3.5).
const DATAGRAM: u64 = 0;
/// The context in which a datagram is a UDP payload (RFC 9298, section 5).
const UDP_PAYLOAD: u64 = 0;
/// Longest capsule that is read: a UDP payload and its context.
const CAPSULE_BYTES_MAX: u64 = 65_536 + 8;

/// Puts a packet's capsule behind `buffer`.
pub(super) fn put(packet: &[u8], buffer: &mut BytesMut) {
    put_varint(DATAGRAM, buffer);
    put_varint(packet.len() as u64 + 1, buffer);
    put_varint(UDP_PAYLOAD, buffer);
    buffer.put_slice(packet);
}

/// Takes the next packet from the front of `buffer`, if it is whole. Capsules of other kinds are passed over.
///
/// # Errors
/// When it is longer than a packet can be.
pub(super) fn next(buffer: &mut BytesMut) -> io::Result<Option<Bytes>> {
    loop {
        let mut ahead = &buffer[..];
        let (Some(kind), Some(length)) = (take_varint(&mut ahead), take_varint(&mut ahead)) else {
            return Ok(None);
        };
        if length > CAPSULE_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a capsule is too long"));
        }
        let head = buffer.len() - ahead.len();
        let length = length as usize;
        if ahead.len() < length {
            buffer.reserve(head + length - buffer.len());
            return Ok(None);
        }
        buffer.advance(head);
        let mut content = buffer.split_to(length).freeze();
        let mut ahead = &content[..];
        if kind == DATAGRAM && take_varint(&mut ahead) == Some(UDP_PAYLOAD) {
            content.advance(length - ahead.len());
            return Ok(Some(content));
        }
    }
}

/// RFC 9000, section 16: the two highest bits are the length.
fn put_varint(value: u64, buffer: &mut BytesMut) {
    match value {
        0..64 => buffer.put_u8(value as u8),
        64..16_384 => buffer.put_u16(value as u16 | 1 << 14),
        _ => buffer.put_u32(value as u32 | 2 << 30),
    }
}

fn take_varint(from: &mut &[u8]) -> Option<u64> {
    let first = *from.first()?;
    let (bytes, rest) = from.split_at_checked(1 << (first >> 6))?;
    *from = rest;
    let mut value = u64::from(first & 0x3f);
    for byte in &bytes[1..] {
        value = value << 8 | u64::from(*byte);
    }
    Some(value)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn integers_are_as_the_rfc_has_them() {
        // RFC 9000, appendix A.1.
        for (bytes, value) in [
            (&[0xc2, 0x19, 0x7c, 0x5e, 0xff, 0x14, 0xe8, 0x8c][..], 151_288_809_941_952_652),
            (&[0x9d, 0x7f, 0x3e, 0x7d], 494_878_333),
            (&[0x7b, 0xbd], 15_293),
            (&[0x25], 37),
            (&[0x40, 0x25], 37),
        ] {
            assert_eq!(take_varint(&mut &*bytes), Some(value));
            assert_eq!(take_varint(&mut &bytes[..bytes.len() - 1]), None);
        }
        for value in [0, 63, 64, 16_383, 16_384, 65_544] {
            let mut buffer = BytesMut::new();
            put_varint(value, &mut buffer);
            assert_eq!(take_varint(&mut &buffer[..]), Some(value));
        }
    }

    #[test]
    fn other_capsules_and_contexts_are_passed_over_and_absurd_ones_end_it() {
        let mut buffer = BytesMut::from(&[0x17, 3, 1, 2, 3, 0, 2, 5, 9, 0, 0][..]);
        put(b"packet", &mut buffer);
        assert_eq!(next(&mut buffer).unwrap().as_deref(), Some(&b"packet"[..]));
        assert_eq!(next(&mut buffer).unwrap(), None);
        let mut long = BytesMut::from(&[0, 0xbf, 0xff, 0xff, 0xff][..]);
        assert!(next(&mut long).is_err());
    }

    proptest! {
        #[test]
        fn packets_come_back_however_the_stream_is_cut(
            packets in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 1..6),
            piece in 1_usize..50,
        ) {
            let mut stream = BytesMut::new();
            packets.iter().for_each(|packet| put(packet, &mut stream));
            let (mut buffer, mut back) = (BytesMut::new(), Vec::new());
            for piece in stream.chunks(piece) {
                buffer.extend_from_slice(piece);
                while let Some(packet) = next(&mut buffer).unwrap() {
                    back.push(packet.to_vec());
                }
            }
            prop_assert_eq!(back, packets);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut buffer = BytesMut::from(&bytes[..]);
            while let Ok(Some(_)) = next(&mut buffer) {}
        }
    }
}
