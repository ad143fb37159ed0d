//! Sorted rows in a file that has no name.

use std::{
    fs::File,
    io::{self, Write as _},
    os::unix::fs::FileExt as _,
    path::Path,
};

use bytes::Bytes;
use outport_proto::Offset;

use super::{super::IndexError, Change, filter::Filter, piece::Hashed};

/// Size of a block, about: what a read of one row reads.
const BLOCK_BYTES: usize = 8 * 1024;
/// Written to the file at once.
const WRITE_BYTES: usize = 256 * 1024;
const REMOVED: u32 = u32::MAX;

/// A row as it lies in a block.
type Found<'a> = (&'a [u8], Option<&'a [u8]>);

#[derive(Debug)]
pub(super) struct Run {
    file: File,
    blocks: Vec<Block>,
    /// Which keys it may have.
    pub(super) filter: Filter,
    /// The state up to here is in this run and what lies below it.
    pub(super) applied: Offset,
}

#[derive(Debug)]
struct Block {
    first: Box<[u8]>,
    position: u64,
    bytes: u32,
    checksum: u32,
}

impl Run {
    /// Writes `rows`, which are sorted.
    pub(super) fn write(dir: &Path, rows: &[&Hashed], applied: Offset) -> io::Result<Self> {
        let mut file = tempfile::tempfile_in(dir)?;
        let (mut blocks, mut position) = (Vec::new(), 0);
        let mut buffer = Vec::with_capacity(WRITE_BYTES + 2 * BLOCK_BYTES);
        let mut rest = rows.iter().peekable();
        while let Some(first) = rest.peek() {
            let (first, begin) = (first.key.as_slice().into(), buffer.len());
            while buffer.len() - begin < BLOCK_BYTES
                && let Some(row) = rest.next()
            {
                buffer.extend_from_slice(&len_of(row.key.len()).to_le_bytes());
                let len = row.value.as_ref().map_or(REMOVED, |value| len_of(value.len()));
                buffer.extend_from_slice(&len.to_le_bytes());
                buffer.extend_from_slice(&row.key);
                buffer.extend_from_slice(row.value.as_deref().unwrap_or_default());
            }
            let block = &buffer[begin..];
            let (bytes, checksum) = (len_of(block.len()), crc_fast::crc32_iscsi(block));
            blocks.push(Block { first, position, bytes, checksum });
            position += u64::from(bytes);
            if buffer.len() >= WRITE_BYTES || rest.peek().is_none() {
                file.write_all(&buffer)?;
                buffer.clear();
            }
        }
        let filter = Filter::of(rows.iter().map(|row| row.hash));
        Ok(Self { file, blocks, filter, applied })
    }

    /// The row under `key`, if it is in this run: with its value or removed.
    pub(super) fn get(&self, hash: u64, key: &[u8]) -> Result<Option<Option<Bytes>>, IndexError> {
        if !self.filter.may_have(hash) {
            return Ok(None);
        }
        let behind = self.blocks.partition_point(|block| *block.first <= *key);
        let Some(at) = behind.checked_sub(1) else { return Ok(None) };
        let block = self.read(at)?;
        let mut rows = BlockRows(&block);
        while let Some((found, value)) = rows.next_row()? {
            if found == key {
                return Ok(Some(value.map(Bytes::copy_from_slice)));
            }
            if found > key {
                break;
            }
        }
        Ok(None)
    }

    /// At most `rows_max` rows at or behind `from` that begin with `prefix`.
    pub(super) fn rows(
        &self,
        prefix: &[u8],
        from: &[u8],
        rows_max: usize,
    ) -> Result<Vec<Change>, IndexError> {
        let mut found = Vec::new();
        let begin = self.blocks.partition_point(|block| *block.first <= *from).saturating_sub(1);
        for at in begin..self.blocks.len() {
            let block = self.read(at)?;
            let mut rows = BlockRows(&block);
            while let Some((key, value)) = rows.next_row()? {
                if key < from {
                    continue;
                }
                if !key.starts_with(prefix) {
                    return Ok(found);
                }
                found.push((key.to_vec(), value.map(Bytes::copy_from_slice)));
                if found.len() >= rows_max {
                    return Ok(found);
                }
            }
        }
        Ok(found)
    }

    fn read(&self, at: usize) -> Result<Vec<u8>, IndexError> {
        let Some(block) = self.blocks.get(at) else { return Ok(Vec::new()) };
        let mut bytes = vec![0; block.bytes as usize];
        self.file.read_exact_at(&mut bytes, block.position).map_err(|error| IndexError::Database {
            action: "read a run of rows",
            reason: error.to_string(),
        })?;
        if crc_fast::crc32_iscsi(&bytes) == block.checksum { Ok(bytes) } else { Err(damaged()) }
    }
}

/// The rows of a block that are still to come.
struct BlockRows<'a>(&'a [u8]);

impl<'a> BlockRows<'a> {
    fn next_row(&mut self) -> Result<Option<Found<'a>>, IndexError> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let (key_len, value_len) = (self.number()?, self.number()?);
        let key = self.take(key_len)?;
        let value = if value_len == REMOVED { None } else { Some(self.take(value_len)?) };
        Ok(Some((key, value)))
    }

    fn number(&mut self) -> Result<u32, IndexError> {
        let (number, rest) = self.0.split_first_chunk().ok_or_else(damaged)?;
        self.0 = rest;
        Ok(u32::from_le_bytes(*number))
    }

    fn take(&mut self, len: u32) -> Result<&'a [u8], IndexError> {
        let (taken, rest) = self.0.split_at_checked(len as usize).ok_or_else(damaged)?;
        self.0 = rest;
        Ok(taken)
    }
}

fn damaged() -> IndexError {
    IndexError::Damaged("a run of rows is not what was written".into())
}

fn len_of(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(REMOVED - 1)
}

#[cfg(test)]
mod tests {
    use super::{super::filter::hash, *};

    #[test]
    fn a_damaged_block_is_never_believed() {
        let dir = tempfile::tempdir().unwrap();
        let row = |key: &[u8], value| Hashed { hash: hash(key), key: key.to_vec(), value };
        let (one, two) = (row(b"one", Some(Bytes::from("1"))), row(b"two", None));
        let run = Run::write(dir.path(), &[&one, &two], Offset::ZERO).unwrap();
        let get = |key: &[u8]| run.get(hash(key), key);
        assert_eq!((get(b"one").unwrap(), get(b"two").unwrap()), (Some(one.value.clone()), Some(None)));
        assert_eq!(get(b"three").unwrap(), None);
        run.file.write_all_at(b"!", 9).unwrap();
        assert!(matches!(get(b"one"), Err(IndexError::Damaged(_))));
    }
}
