//! What rows hold. Every value is sealed: a version byte, the fields, and a CRC-32C over the key
//! and both, so that neither a flipped bit nor a value under another's key is ever believed.
//!
//! Numbers are little-endian; texts and lists carry their length in front as `u32`.

use std::sync::Arc;

use bytes::Bytes;
use outport_proto::{
    Algorithm, Digest, ManifestPut, Offset, RepoName, Timestamp,
    oci::{ChildKind, Descriptor, Platform},
};

use super::{IndexError, Manifest, TagEntry, tombstones::Tombstones};

/// The form of every row. A row of another form makes the index damaged, so it is rebuilt.
const VERSION: u8 = 2;
const CHECKSUM_BYTES: usize = 4;
/// Room for the fields of most rows.
const ROW_BYTES: usize = 96;
/// The same for manifests.
const PUT_BYTES: usize = 512;

/// Wraps the fields of a row for storage under `key`.
pub(super) fn seal(key: &[u8], fields: &[u8]) -> Bytes {
    let mut value = Vec::with_capacity(1 + fields.len() + CHECKSUM_BYTES);
    value.push(VERSION);
    value.extend_from_slice(fields);
    let checksum = checksum(key, &value);
    value.extend_from_slice(&checksum.to_le_bytes());
    value.into()
}

/// The fields of a row stored under `key`.
///
/// # Errors
/// [`IndexError::Damaged`] when it is not what was sealed.
pub(super) fn unseal(key: &[u8], value: &Bytes) -> Result<Bytes, IndexError> {
    let damaged = |what| Err(IndexError::Damaged(format!("row {:?} {what}", key.escape_ascii().to_string())));
    let Some((covered, stored)) = value.split_last_chunk::<CHECKSUM_BYTES>() else {
        return damaged("is too short");
    };
    if checksum(key, covered) != u32::from_le_bytes(*stored) {
        return damaged("fails its checksum");
    }
    if covered.first() != Some(&VERSION) {
        return damaged("has an unknown version");
    }
    Ok(value.slice(1..covered.len()))
}

fn checksum(key: &[u8], covered: &[u8]) -> u32 {
    let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
    digest.update(key);
    digest.update(covered);
    digest.finalize() as u32
}

/// Length of [`encode_state`].
pub(super) const STATE_BYTES: usize = 48 + 4 * 8 + 8;

/// The state of the whole index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct State {
    /// Newest applied event.
    pub(super) applied: Offset,
    /// The state hash at that event.
    pub(super) hash: [u8; 32],
    /// How many tombstones there are.
    pub(super) tombstones: Tombstones,
    /// The newest day that an event was of.
    pub(super) day: u64,
}

/// A repository links a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Link {
    /// Size of the blob in bytes.
    pub(super) size: u64,
    /// The event that linked it.
    pub(super) offset: Offset,
}

/// A repository holds a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Held {
    /// The event that put it.
    pub(super) offset: Offset,
    /// Whether [`super::key::Table::Body`] has its bytes.
    pub(super) inline: bool,
    /// The manifest without bytes and tags.
    pub(super) put: ManifestPut,
}

pub(super) fn encode_state(state: &State) -> Vec<u8> {
    let mut writer = Writer::of(ROW_BYTES);
    writer.offset(state.applied);
    writer.0.extend_from_slice(&state.hash);
    state.tombstones.0.iter().for_each(|count| writer.u64(*count));
    writer.u64(state.day);
    writer.0
}

pub(super) fn decode_state(fields: &[u8]) -> Result<State, IndexError> {
    let mut reader = Reader(fields);
    let (applied, hash) = (reader.offset()?, reader.array()?);
    let tombstones = Tombstones([reader.u64()?, reader.u64()?, reader.u64()?, reader.u64()?]);
    let state = State { applied, hash, tombstones, day: reader.u64()? };
    reader.end(state)
}

pub(super) fn encode_offset(offset: Offset) -> Vec<u8> {
    let mut writer = Writer::of(ROW_BYTES);
    writer.offset(offset);
    writer.0
}

pub(super) fn decode_offset(fields: &[u8]) -> Result<Offset, IndexError> {
    let mut reader = Reader(fields);
    let offset = reader.offset()?;
    reader.end(offset)
}

pub(super) fn encode_link(link: &Link) -> Vec<u8> {
    let mut writer = Writer::of(ROW_BYTES);
    writer.u64(link.size);
    writer.offset(link.offset);
    writer.0
}

pub(super) fn decode_link(fields: &[u8]) -> Result<Link, IndexError> {
    let mut reader = Reader(fields);
    let link = Link { size: reader.u64()?, offset: reader.offset()? };
    reader.end(link)
}

pub(super) fn encode_tag(tag: &TagEntry) -> Vec<u8> {
    let mut writer = Writer::of(ROW_BYTES);
    writer.offset(tag.offset);
    writer.u64(tag.time.as_micros());
    writer.digest(&tag.digest);
    writer.0
}

pub(super) fn decode_tag(fields: &[u8]) -> Result<TagEntry, IndexError> {
    let mut reader = Reader(fields);
    let offset = reader.offset()?;
    let time = Timestamp::from_micros(reader.u64()?);
    let tag = TagEntry { digest: reader.digest()?, offset, time };
    reader.end(tag)
}

/// The fields of a [`Held`] row, without its manifest's bytes and tags.
pub(super) fn encode_put(put: &ManifestPut, offset: Offset, inline: bool) -> Vec<u8> {
    let mut writer = Writer::of(PUT_BYTES);
    writer.offset(offset);
    writer.0.push(inline.into());
    writer.u64(put.size);
    writer.text(&put.media_type);
    writer.optional(put.subject.as_ref(), Writer::digest);
    writer.optional(put.artifact_type.as_deref(), Writer::text);
    writer.platform(put.platform.as_ref());
    writer.list(&put.annotations, |writer, (name, value)| {
        writer.text(name);
        writer.text(value);
    });
    writer.list(&put.children, |writer, child| {
        writer.digest(&child.digest);
        writer.u64(child.size);
        writer.0.push(match child.kind {
            ChildKind::Manifest => 0,
            ChildKind::Blob => 1,
            ChildKind::Foreign => 2,
        });
        writer.platform(child.platform.as_ref());
    });
    writer.0
}

pub(super) fn decode_held(repo: &RepoName, digest: &Digest, fields: &[u8]) -> Result<Held, IndexError> {
    let mut reader = Reader(fields);
    let offset = reader.offset()?;
    let inline = reader.bool()?;
    let size = reader.u64()?;
    let put = ManifestPut {
        repo: repo.clone(),
        digest: *digest,
        size,
        bytes: None,
        tags: Vec::new(),
        media_type: reader.text()?.to_owned(),
        subject: reader.optional(Reader::digest)?,
        artifact_type: reader.optional(|reader| Ok(reader.text()?.to_owned()))?,
        platform: reader.platform()?,
        annotations: reader.list(|reader| Ok((reader.text()?.to_owned(), reader.text()?.to_owned())))?,
        children: reader.list(|reader| {
            Ok(Descriptor {
                digest: reader.digest()?,
                size: reader.u64()?,
                kind: match reader.u8()? {
                    0 => ChildKind::Manifest,
                    1 => ChildKind::Blob,
                    2 => ChildKind::Foreign,
                    _ => return Err(malformed()),
                },
                platform: reader.platform()?,
            })
        })?,
    };
    reader.end(Held { offset, inline, put })
}

/// The front of a [`Held`] row: all that serving needs. The flag says whether its bytes are stored.
pub(super) fn decode_served(digest: &Digest, fields: &[u8]) -> Result<(Manifest, bool), IndexError> {
    let mut reader = Reader(fields);
    reader.offset()?;
    let inline = reader.bool()?;
    let size = reader.u64()?;
    let media_type = Arc::from(reader.text()?);
    Ok((Manifest { digest: *digest, media_type, size, bytes: None }, inline))
}

fn malformed() -> IndexError {
    IndexError::Damaged("a row has not the fields of its table".into())
}

struct Writer(Vec<u8>);

impl Writer {
    fn of(bytes: usize) -> Self {
        Self(Vec::with_capacity(bytes))
    }

    fn u64(&mut self, number: u64) {
        self.0.extend_from_slice(&number.to_le_bytes());
    }

    fn len(&mut self, len: usize) {
        self.0.extend_from_slice(&(len as u32).to_le_bytes());
    }

    fn offset(&mut self, offset: Offset) {
        self.u64(offset.epoch);
        self.u64(offset.seq);
    }

    fn digest(&mut self, digest: &Digest) {
        self.0.push(match digest.algorithm() {
            Algorithm::Sha256 => 1,
            Algorithm::Sha512 => 2,
        });
        self.0.extend_from_slice(digest.as_bytes());
    }

    fn text(&mut self, text: &str) {
        self.len(text.len());
        self.0.extend_from_slice(text.as_bytes());
    }

    fn platform(&mut self, platform: Option<&Platform>) {
        self.optional(platform.map(Platform::as_str), Self::text);
    }

    fn optional<T: ?Sized>(&mut self, value: Option<&T>, write: impl FnOnce(&mut Self, &T)) {
        self.0.push(value.is_some().into());
        if let Some(value) = value {
            write(self, value);
        }
    }

    fn list<T>(&mut self, items: &[T], write: impl Fn(&mut Self, &T)) {
        self.len(items.len());
        for item in items {
            write(self, item);
        }
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], IndexError> {
        let (array, rest) = self.0.split_first_chunk().ok_or_else(malformed)?;
        self.0 = rest;
        Ok(*array)
    }

    fn slice(&mut self, len: usize) -> Result<&'a [u8], IndexError> {
        let (slice, rest) = self.0.split_at_checked(len).ok_or_else(malformed)?;
        self.0 = rest;
        Ok(slice)
    }

    fn u8(&mut self) -> Result<u8, IndexError> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn bool(&mut self) -> Result<bool, IndexError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(malformed()),
        }
    }

    fn u64(&mut self) -> Result<u64, IndexError> {
        self.array().map(u64::from_le_bytes)
    }

    fn len(&mut self) -> Result<usize, IndexError> {
        self.array().map(|len| u32::from_le_bytes(len) as usize)
    }

    fn offset(&mut self) -> Result<Offset, IndexError> {
        Ok(Offset { epoch: self.u64()?, seq: self.u64()? })
    }

    fn digest(&mut self) -> Result<Digest, IndexError> {
        match self.u8()? {
            1 => self.array().map(Digest::Sha256),
            2 => self.array().map(Digest::Sha512),
            _ => Err(malformed()),
        }
    }

    fn text(&mut self) -> Result<&'a str, IndexError> {
        let len = self.len()?;
        std::str::from_utf8(self.slice(len)?).map_err(|_| malformed())
    }

    fn platform(&mut self) -> Result<Option<Platform>, IndexError> {
        self.optional(|reader| reader.text()?.parse().map_err(|_| malformed()))
    }

    fn optional<T>(
        &mut self,
        read: impl FnOnce(&mut Self) -> Result<T, IndexError>,
    ) -> Result<Option<T>, IndexError> {
        if self.bool()? { read(self).map(Some) } else { Ok(None) }
    }

    fn list<T>(&mut self, read: impl Fn(&mut Self) -> Result<T, IndexError>) -> Result<Vec<T>, IndexError> {
        // No capacity from the stored length: it is not to be trusted with memory.
        (0..self.len()?).map(|_| read(self)).collect()
    }

    fn end<T>(self, value: T) -> Result<T, IndexError> {
        if self.0.is_empty() { Ok(value) } else { Err(malformed()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held() -> Held {
        Held {
            offset: Offset::new(1, 7),
            inline: true,
            put: ManifestPut {
                repo: "team/app".parse().unwrap(),
                digest: Digest::sha256(b"m"),
                media_type: "application/vnd.oci.image.manifest.v1+json".into(),
                size: 1,
                bytes: None,
                tags: Vec::new(),
                subject: Some(Digest::of(Algorithm::Sha512, b"s")),
                artifact_type: Some("text/spdx".into()),
                platform: Some("linux/arm64/v8".parse().unwrap()),
                annotations: vec![("a".into(), "b".into()), (String::new(), "ü".into())],
                children: vec![Descriptor {
                    digest: Digest::sha256(b"c"),
                    size: u64::MAX,
                    kind: ChildKind::Foreign,
                    platform: Some("linux/amd64".parse().unwrap()),
                }],
            },
        }
    }

    fn encode(held: &Held) -> Vec<u8> {
        encode_put(&held.put, held.offset, held.inline)
    }

    #[test]
    fn rows_come_back_as_they_were_stored() {
        let held = held();
        let fields = encode(&held);
        assert_eq!(decode_held(&held.put.repo, &held.put.digest, &fields).unwrap(), held);
        let (served, inline) = decode_served(&held.put.digest, &fields).unwrap();
        assert_eq!((served.size, &*served.media_type, inline), (1, &*held.put.media_type, true));
        let tag = TagEntry {
            digest: Digest::sha256(b"t"),
            offset: Offset::new(2, 3),
            time: Timestamp::from_secs(9),
        };
        assert_eq!(decode_tag(&encode_tag(&tag)).unwrap(), tag);
        let link = Link { size: 5, offset: Offset::new(1, 1) };
        assert_eq!(decode_link(&encode_link(&link)).unwrap(), link);
        let state =
            State { applied: Offset::new(1, 2), hash: [3; 32], tombstones: Tombstones([1, 2, 3, 4]), day: 5 };
        assert_eq!(decode_state(&encode_state(&state)).unwrap(), state);
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_damage() {
        let sealed = seal(b"key", &encode(&held()));
        assert!(unseal(b"key", &sealed).is_ok());
        assert!(matches!(unseal(b"kex", &sealed), Err(IndexError::Damaged(_))));
        for bit in 0..sealed.len() * 8 {
            let mut flipped = sealed.to_vec();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(matches!(unseal(b"key", &flipped.into()), Err(IndexError::Damaged(_))), "bit {bit}");
        }
        for len in 0..sealed.len() {
            assert!(
                matches!(unseal(b"key", &sealed.slice(..len)), Err(IndexError::Damaged(_))),
                "cut at {len}"
            );
        }
    }

    #[test]
    fn fields_that_do_not_fit_are_damage_and_no_panic() {
        let held = held();
        let fields = encode(&held);
        for len in 0..fields.len() {
            let cut = decode_held(&held.put.repo, &held.put.digest, &fields[..len]);
            assert!(matches!(cut, Err(IndexError::Damaged(_))), "cut at {len}");
        }
        let longer = [fields.as_slice(), &[0]].concat();
        assert!(decode_held(&held.put.repo, &held.put.digest, &longer).is_err());
    }
}
