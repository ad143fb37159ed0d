//! What a site that catches up has applied, and its database has not yet.
//!
//! The database writes some ten thousand rows a second; a site that is far behind takes in ten times
//! as many. So its rows are kept here first, above the database: the newest in memory, older ones
//! in sorted runs on disk, while the same events are applied to the database behind. Whatever a
//! run holds, the database holds once it has come to the run's end; then the run goes. Nothing here
//! outlives the process: the log has every event, and the database says how far it is.

use std::{
    collections::BTreeMap,
    fs::File,
    hash::{DefaultHasher, Hasher as _},
    io::{self, Write as _},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use bytes::Bytes;
use outport_proto::Offset;

use super::{
    IndexError,
    kv::{Batch, Kv, Row},
};

/// Bytes of rows kept in memory; they take about twice as many.
pub(super) const MEMORY_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Runs from which on the database has to come nearer first.
const RUNS_MAX: usize = 64;
/// Size of a block of a run, about: what a read of one row reads.
const BLOCK_BYTES: usize = 16 * 1024;
/// Memory for the filter of a run, in bits a row: one look in a hundred is for nothing.
const FILTER_BITS: usize = 10;
/// Bits of the filter that a row sets, all within one cache line.
const FILTER_PROBES: u32 = 6;
const REMOVED: u32 = u32::MAX;

type Memory = BTreeMap<Vec<u8>, Option<Bytes>>;
/// A key with its value, or removed.
type Change = (Vec<u8>, Option<Bytes>);
/// The same as it lies in a block.
type Found = (Bytes, Option<Bytes>);

/// Rows above a database.
pub(super) struct Overlay {
    base: Arc<dyn Kv>,
    dir: PathBuf,
    memory_bytes_max: usize,
    layers: RwLock<Layers>,
}

/// From the newest to the oldest.
#[derive(Clone, Default)]
struct Layers {
    memory: Memory,
    memory_bytes: usize,
    /// On its way into a run.
    frozen: Option<Arc<Memory>>,
    /// Oldest first.
    runs: Arc<Vec<Arc<Run>>>,
}

impl Overlay {
    /// Nothing above `base` yet. Runs are written in `dir`, without a name.
    pub(super) fn new(base: Arc<dyn Kv>, dir: &Path, memory_bytes_max: usize) -> Self {
        Self { base, dir: dir.to_owned(), memory_bytes_max, layers: RwLock::default() }
    }

    /// Whether nothing more may be written before [`Overlay::settled`] lets a run go.
    pub(super) fn is_full(&self) -> bool {
        self.read_layers().runs.len() >= RUNS_MAX
    }

    /// Moves what is in memory to the disk if it is much; it is the state up to `applied`.
    ///
    /// # Errors
    /// When the run cannot be written: what was in memory stays there.
    pub(super) fn spill(&self, applied: Offset) -> Result<(), IndexError> {
        if self.read_layers().memory_bytes < self.memory_bytes_max {
            return Ok(());
        }
        let frozen = {
            let mut layers = self.write_layers();
            layers.memory_bytes = 0;
            let frozen = Arc::new(std::mem::take(&mut layers.memory));
            layers.frozen = Some(Arc::clone(&frozen));
            frozen
        };
        let written = Run::write(&self.dir, &frozen, applied);
        let mut layers = self.write_layers();
        layers.frozen = None;
        match written {
            Ok(run) => {
                Arc::make_mut(&mut layers.runs).push(Arc::new(run));
                Ok(())
            }
            Err(error) => {
                layers.memory_bytes = self.memory_bytes_max;
                layers.memory = Arc::try_unwrap(frozen).unwrap_or_else(|shared| (*shared).clone());
                Err(IndexError::Database { action: "write a run of rows", reason: error.to_string() })
            }
        }
    }

    /// The database has come to `applied`: what it holds need not be here.
    pub(super) fn settled(&self, applied: Offset) {
        let mut layers = self.write_layers();
        if layers.runs.first().is_some_and(|run| run.applied <= applied) {
            Arc::make_mut(&mut layers.runs).retain(|run| run.applied > applied);
        }
    }

    /// Rows at or behind `from` that begin with `prefix`, about `rows_max` of each layer, removed
    /// ones included; and the key up to which none is missing, unless none is.
    fn above(
        &self,
        prefix: &[u8],
        from: &[u8],
        rows_max: usize,
    ) -> Result<(Memory, Option<Vec<u8>>), IndexError> {
        let (mut found, mut whole_to): (Memory, Option<Vec<u8>>) = (BTreeMap::new(), None);
        let mut add = |rows: Vec<Change>| {
            if rows.len() >= rows_max
                && let Some((last, _)) = rows.last()
                && whole_to.as_ref().is_none_or(|whole_to| last < whole_to)
            {
                whole_to = Some(last.clone());
            }
            for (key, value) in rows {
                found.entry(key).or_insert(value);
            }
        };
        let of_memory = |memory: &Memory| -> Vec<Change> {
            let rows = memory.range(from.to_vec()..).take_while(|(key, _)| key.starts_with(prefix));
            rows.take(rows_max).map(|(key, value)| (key.clone(), value.clone())).collect()
        };
        let (frozen, runs) = {
            let layers = self.read_layers();
            add(of_memory(&layers.memory));
            (layers.frozen.clone(), Arc::clone(&layers.runs))
        };
        if let Some(frozen) = frozen {
            add(of_memory(&frozen));
        }
        for run in runs.iter().rev() {
            add(run.rows(prefix, from, rows_max)?);
        }
        Ok((found, whole_to))
    }

    fn read_layers(&self) -> RwLockReadGuard<'_, Layers> {
        self.layers.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_layers(&self) -> RwLockWriteGuard<'_, Layers> {
        self.layers.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kv for Overlay {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, IndexError> {
        let runs = {
            let layers = self.read_layers();
            if let Some(value) = layers.memory.get(key) {
                return Ok(value.clone());
            }
            if let Some(value) = layers.frozen.as_ref().and_then(|frozen| frozen.get(key)) {
                return Ok(value.clone());
            }
            Arc::clone(&layers.runs)
        };
        let hash = hash(key);
        for run in runs.iter().rev().filter(|run| run.filter.may_have(hash)) {
            if let Some(value) = run.get(key)? {
                return Ok(value);
            }
        }
        self.base.get(key)
    }

    fn page(&self, prefix: &[u8], from: &[u8], rows_max: usize) -> Result<Vec<Row>, IndexError> {
        let mut from = from.max(prefix).to_vec();
        let mut page = Vec::new();
        loop {
            let wanted = rows_max.saturating_sub(page.len()).max(1);
            // Above before below: what leaves meanwhile is below by then.
            let (mut rows, mut whole_to) = self.above(prefix, &from, wanted)?;
            let below = self.base.page(prefix, &from, wanted)?;
            if below.len() >= wanted
                && let Some((last, _)) = below.last()
                && whole_to.as_ref().is_none_or(|whole_to| last < whole_to)
            {
                whole_to = Some(last.clone());
            }
            for (key, value) in below {
                rows.entry(key).or_insert(Some(value));
            }
            for (key, value) in rows {
                if whole_to.as_ref().is_some_and(|whole_to| key > *whole_to) {
                    break;
                }
                if let Some(value) = value {
                    page.push((key, value));
                }
                if page.len() >= rows_max {
                    return Ok(page);
                }
            }
            let Some(whole_to) = whole_to else { return Ok(page) };
            from = whole_to;
            from.push(0);
        }
    }

    fn write(&self, batch: Batch) -> Result<(), IndexError> {
        let mut layers = self.write_layers();
        for (key, value) in batch {
            layers.memory_bytes += key.len() + value.as_ref().map_or(0, Bytes::len);
            layers.memory.insert(key, value);
        }
        Ok(())
    }

    fn flush(&self) -> Result<(), IndexError> {
        self.base.flush()
    }
}

/// Sorted rows in a file that has no name.
struct Run {
    file: File,
    blocks: Vec<Block>,
    filter: Filter,
    /// The state up to here is in this run and what lies below it.
    applied: Offset,
}

struct Block {
    first: Vec<u8>,
    position: u64,
    bytes: u32,
    checksum: u32,
}

impl Run {
    fn write(dir: &Path, memory: &Memory, applied: Offset) -> io::Result<Self> {
        let mut file = tempfile::tempfile_in(dir)?;
        let (mut blocks, mut position) = (Vec::new(), 0);
        let mut filter = Filter::for_rows(memory.len());
        let mut block = Vec::with_capacity(2 * BLOCK_BYTES);
        let mut first: Option<&Vec<u8>> = None;
        let mut rows = memory.iter().peekable();
        while let Some((key, value)) = rows.next() {
            filter.add(hash(key));
            first.get_or_insert(key);
            block.extend_from_slice(&len_of(key.len()).to_le_bytes());
            let len = value.as_ref().map_or(REMOVED, |value| len_of(value.len()));
            block.extend_from_slice(&len.to_le_bytes());
            block.extend_from_slice(key);
            block.extend_from_slice(value.as_deref().unwrap_or_default());
            if block.len() >= BLOCK_BYTES || rows.peek().is_none() {
                file.write_all(&block)?;
                blocks.push(Block {
                    first: first.take().cloned().unwrap_or_default(),
                    position,
                    bytes: len_of(block.len()),
                    checksum: crc_fast::crc32_iscsi(&block),
                });
                position += block.len() as u64;
                block.clear();
            }
        }
        Ok(Self { file, blocks, filter, applied })
    }

    /// The row under `key`, if it is in this run: with its value or removed.
    fn get(&self, key: &[u8]) -> Result<Option<Option<Bytes>>, IndexError> {
        let behind = self.blocks.partition_point(|block| block.first.as_slice() <= key);
        let Some(at) = behind.checked_sub(1) else { return Ok(None) };
        let mut rows = BlockRows(self.read(at)?);
        while let Some((found, value)) = rows.next_row()? {
            if found == key {
                return Ok(Some(value));
            }
            if found.as_ref() > key {
                break;
            }
        }
        Ok(None)
    }

    fn rows(&self, prefix: &[u8], from: &[u8], rows_max: usize) -> Result<Vec<Change>, IndexError> {
        let mut found = Vec::new();
        let begin = self.blocks.partition_point(|block| block.first.as_slice() <= from).saturating_sub(1);
        for at in begin..self.blocks.len() {
            let mut rows = BlockRows(self.read(at)?);
            while let Some((key, value)) = rows.next_row()? {
                if key.as_ref() < from {
                    continue;
                }
                if !key.starts_with(prefix) {
                    return Ok(found);
                }
                found.push((key.to_vec(), value));
                if found.len() >= rows_max {
                    return Ok(found);
                }
            }
        }
        Ok(found)
    }

    fn read(&self, at: usize) -> Result<Bytes, IndexError> {
        let Some(block) = self.blocks.get(at) else { return Ok(Bytes::new()) };
        let mut bytes = vec![0; block.bytes as usize];
        self.file.read_exact_at(&mut bytes, block.position).map_err(|error| IndexError::Database {
            action: "read a run of rows",
            reason: error.to_string(),
        })?;
        if crc_fast::crc32_iscsi(&bytes) == block.checksum { Ok(bytes.into()) } else { Err(damaged()) }
    }
}

/// The rows of a block that are still to come.
struct BlockRows(Bytes);

impl BlockRows {
    fn next_row(&mut self) -> Result<Option<Found>, IndexError> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let (key_len, value_len) = (self.number()? as usize, self.number()?);
        let key = self.take(key_len)?;
        let value = match value_len {
            REMOVED => None,
            // Copied, so that a small value kept for long does not keep its block alive.
            len => Some(Bytes::copy_from_slice(&self.take(len as usize)?)),
        };
        Ok(Some((key, value)))
    }

    fn number(&mut self) -> Result<u32, IndexError> {
        let bytes = self.take(4)?;
        Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    fn take(&mut self, len: usize) -> Result<Bytes, IndexError> {
        if len > self.0.len() {
            return Err(damaged());
        }
        Ok(self.0.split_to(len))
    }
}

fn damaged() -> IndexError {
    IndexError::Damaged("a run of rows is not what was written".into())
}

fn len_of(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(REMOVED - 1)
}

/// A Bloom filter in blocks of one cache line.
struct Filter(Vec<[u64; 8]>);

impl Filter {
    fn for_rows(rows: usize) -> Self {
        Self(vec![[0; 8]; (rows * FILTER_BITS).div_ceil(512).max(1)])
    }

    fn add(&mut self, hash: u64) {
        let at = self.line(hash);
        for bit in bits(hash) {
            self.0[at][bit / 64] |= 1 << (bit % 64);
        }
    }

    fn may_have(&self, hash: u64) -> bool {
        let line = &self.0[self.line(hash)];
        bits(hash).all(|bit| line[bit / 64] & (1 << (bit % 64)) != 0)
    }

    fn line(&self, hash: u64) -> usize {
        (hash >> 32) as usize % self.0.len()
    }
}

/// Which bits of its line a key sets.
fn bits(hash: u64) -> impl Iterator<Item = usize> {
    let mixed = hash.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (0..FILTER_PROBES).map(move |probe| (mixed >> (9 * probe)) as usize & 511)
}

fn hash(key: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(key);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::{super::memory::MemoryKv, *};

    fn key(number: u32) -> Vec<u8> {
        format!("k{number:06}").into_bytes()
    }

    fn value(text: &str) -> Option<Bytes> {
        Some(Bytes::copy_from_slice(text.as_bytes()))
    }

    /// Three thousand rows below, of which every third was changed and every fifth removed above, in
    /// several runs.
    fn overlay(dir: &Path) -> (Overlay, BTreeMap<Vec<u8>, Bytes>) {
        let base = Arc::new(MemoryKv::default());
        base.write((0..3000).map(|number| (key(number), value("below"))).collect()).unwrap();
        let overlay = Overlay::new(base, dir, 20_000);
        let mut expected: BTreeMap<Vec<u8>, Bytes> =
            (0..3000).map(|number| (key(number), Bytes::from("below"))).collect();
        for (at, number) in (0..6000_u32).map(|number| number.wrapping_mul(7919) % 6000).enumerate() {
            let value = match (number % 3, number % 5) {
                (_, 0) => None,
                (0, _) => value(&format!("above {number} {}", "x".repeat(number as usize % 90))),
                _ => continue,
            };
            match &value {
                Some(value) => _ = expected.insert(key(number), value.clone()),
                None => _ = expected.remove(&key(number)),
            }
            overlay.write(Batch::from([(key(number), value)])).unwrap();
            overlay.spill(Offset::new(1, at as u64)).unwrap();
        }
        assert!(overlay.read_layers().runs.len() > 3);
        (overlay, expected)
    }

    #[test]
    fn the_newest_row_is_found_in_whatever_layer_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let (overlay, expected) = overlay(dir.path());
        for number in 0..6100 {
            assert_eq!(overlay.get(&key(number)).unwrap().as_ref(), expected.get(&key(number)), "{number}");
        }
        for (from, rows_max) in [(0, 10_000), (0, 1), (17, 16), (2990, 30), (5990, 100)] {
            let page = overlay.page(b"k", &key(from), rows_max).unwrap();
            let rows = expected.range(key(from)..).take(rows_max);
            let rows: Vec<Row> = rows.map(|(key, value)| (key.clone(), value.clone())).collect();
            assert_eq!(page, rows, "{rows_max} from {from}");
        }
        let page = overlay.page(b"k0012", b"", 1000).unwrap();
        assert!(page.iter().all(|(key, _)| key.starts_with(b"k0012")) && page.len() > 50);
    }

    #[test]
    fn runs_that_the_database_has_come_to_go() {
        let dir = tempfile::tempdir().unwrap();
        let (overlay, _) = overlay(dir.path());
        let applied: Vec<Offset> = overlay.read_layers().runs.iter().map(|run| run.applied).collect();
        overlay.settled(applied[1]);
        assert_eq!(overlay.read_layers().runs.len(), applied.len() - 2);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing has a name");
    }

    #[test]
    fn a_damaged_block_is_never_believed() {
        let dir = tempfile::tempdir().unwrap();
        let memory = Memory::from([(key(1), value("one")), (key(2), None)]);
        let run = Run::write(dir.path(), &memory, Offset::ZERO).unwrap();
        assert_eq!((run.get(&key(1)).unwrap(), run.get(&key(2)).unwrap()), (Some(value("one")), Some(None)));
        assert_eq!(run.get(&key(3)).unwrap(), None);
        run.file.write_all_at(b"!", 9).unwrap();
        assert!(matches!(run.get(&key(1)), Err(IndexError::Damaged(_))));
    }

    #[test]
    fn a_filter_has_all_its_rows_and_few_others() {
        let mut filter = Filter::for_rows(10_000);
        (0..10_000).for_each(|number| filter.add(hash(&key(number))));
        assert!((0..10_000).all(|number| filter.may_have(hash(&key(number)))));
        let wrong = (10_000..20_000).filter(|number| filter.may_have(hash(&key(*number)))).count();
        assert!(wrong < 400, "{wrong} of 10000");
    }
}
