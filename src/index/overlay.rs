//! What a site that catches up has applied, and its database has not yet.
//!
//! The database writes some ten thousand rows a second; a site that is far behind takes in many times
//! as many. So its rows are kept here first, above the database: the newest in memory, in sorted
//! pieces, older ones in sorted runs on disk, while the same events are applied to the database
//! behind. Whatever a run holds, the database holds once it has come to the run's end; then the run
//! goes. Nothing here outlives the process: the log has every event, and the database says how far it is.
//!
//! Memory is bounded: [`MEMORY_BYTES_MAX`] of rows, as much again while they are written into a run,
//! and of each of [`RUNS_MAX`] runs its filter and the first keys of its blocks.

mod filter;
mod piece;
mod run;

use std::{
    collections::BTreeMap,
    io, iter, mem,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        mpsc::{Receiver, sync_channel},
    },
};

use bytes::Bytes;
use outport_proto::Offset;

use self::{
    filter::{Filter, hash},
    piece::{Piece, add_piece, merged},
    run::Run,
};
use super::{
    IndexError,
    kv::{Batch, Kv, Row},
    lock,
};
use crate::blocking;

/// Bytes of rows kept in memory; they take about twice as many, and as many again while a run is written.
pub(super) const MEMORY_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Bytes of rows in memory that its filter has room for a row for, about what a row takes.
const ROW_BYTES: usize = 128;
/// Runs from which on the database has to come nearer first.
const RUNS_MAX: usize = 64;
/// Runs that went whose filters are kept.
const GONE_MAX: usize = 16;
/// Most rows of a database that are looked through for what it has.
const BELOW_ROWS_MAX: usize = 16 * 1024;

/// A key with its value, or removed.
type Change = (Vec<u8>, Option<Bytes>);
/// Changes of several layers, the newest of each key.
type Above = BTreeMap<Vec<u8>, Option<Bytes>>;

/// Rows above a database.
pub(super) struct Overlay {
    base: Arc<dyn Kv>,
    dir: PathBuf,
    memory_bytes_max: usize,
    layers: Arc<RwLock<Layers>>,
    /// Says how it went, once the run that is being written is written.
    writing: Mutex<Option<Receiver<io::Result<()>>>>,
}

/// Each oldest first; what is in memory is newer than what is frozen, and that newer than the runs.
struct Layers {
    memory: Memory,
    /// On their way into a run, with the state they lead to.
    frozen: Option<(Memory, Offset)>,
    runs: Arc<Vec<Arc<Run>>>,
    /// Which rows the database may have that are not above it: the few that it had before, and those
    /// of runs that went. `None` where it may have any.
    below: Option<Vec<Filter>>,
}

/// Rows in memory.
#[derive(Clone)]
struct Memory {
    pieces: Vec<Arc<Piece>>,
    /// Of all pieces: most rows that are looked for are in none.
    filter: Arc<Filter>,
    bytes: usize,
}

impl Memory {
    fn with_room(bytes: usize) -> Self {
        Self { pieces: Vec::new(), filter: Arc::new(Filter::for_rows(bytes / ROW_BYTES)), bytes: 0 }
    }

    fn add(&mut self, piece: Piece) {
        self.bytes += piece.bytes();
        let filter = Arc::make_mut(&mut self.filter);
        piece.hashes().for_each(|hash| filter.add(hash));
        add_piece(&mut self.pieces, piece);
    }

    fn get(&self, hash: u64, key: &[u8]) -> Option<&Option<Bytes>> {
        if !self.filter.may_have(hash) {
            return None;
        }
        self.pieces.iter().rev().find_map(|piece| piece.get(hash, key))
    }
}

impl Layers {
    /// What is in memory, newest first.
    fn in_memory(&self) -> impl Iterator<Item = &Memory> {
        iter::once(&self.memory).chain(self.frozen.iter().map(|(memory, _)| memory))
    }

    /// The pieces of that, newest first.
    fn pieces(&self) -> impl Iterator<Item = &Arc<Piece>> {
        self.in_memory().flat_map(|memory| memory.pieces.iter().rev())
    }

    /// Whether the database may have a row that is not above it.
    fn may_be_below(&self, hash: u64) -> bool {
        self.below.as_ref().is_none_or(|below| below.iter().any(|filter| filter.may_have(hash)))
    }
}

impl Overlay {
    /// Nothing above `base` yet. Runs are written in `dir`, without a name.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub(super) fn new(base: Arc<dyn Kv>, dir: &Path, memory_bytes_max: usize) -> Result<Self, IndexError> {
        let layers = Layers {
            memory: Memory::with_room(memory_bytes_max),
            frozen: None,
            runs: Arc::default(),
            below: below(&*base)?.map(|rows| vec![rows]),
        };
        Ok(Self {
            base,
            dir: dir.to_owned(),
            memory_bytes_max,
            layers: Arc::new(RwLock::new(layers)),
            writing: Mutex::new(None),
        })
    }

    /// Whether nothing more may be written before [`Overlay::settled`] lets a run go.
    pub(super) fn is_full(&self) -> bool {
        self.read_layers().runs.len() >= RUNS_MAX
    }

    /// Moves what is in memory to the disk if it is much; it is the state up to `applied`. A run is
    /// written while events go on being applied, the next one when that one is done.
    ///
    /// # Errors
    /// When a run cannot be written: what was to be in it stays in memory.
    pub(super) fn spill(&self, applied: Offset) -> Result<(), IndexError> {
        if self.read_layers().memory.bytes < self.memory_bytes_max {
            return Ok(());
        }
        let failed = |error: io::Error| IndexError::Database {
            action: "write a run of rows",
            reason: error.to_string(),
        };
        let mut writing = lock(&self.writing);
        if let Some(written) = writing.take() {
            let ended = written.recv();
            ended.unwrap_or_else(|_| Err(io::Error::other("it was not done"))).map_err(failed)?;
        }
        {
            let mut layers = self.write_layers();
            // What could not be written before comes first.
            if layers.frozen.is_none() {
                let full = mem::replace(&mut layers.memory, Memory::with_room(self.memory_bytes_max));
                layers.frozen = Some((full, applied));
            }
        }
        let (layers, dir) = (Arc::clone(&self.layers), self.dir.clone());
        let (done, written) = sync_channel(1);
        blocking::thread("index-run", move || {
            // Nobody may be waiting any more.
            drop(done.send(write_frozen(&layers, &dir)));
        })
        .map_err(failed)?;
        *writing = Some(written);
        Ok(())
    }

    /// The database has come to `applied`: what it holds need not be here.
    pub(super) fn settled(&self, applied: Offset) {
        let mut layers = self.write_layers();
        let gone = layers.runs.iter().take_while(|run| run.applied <= applied).count();
        if gone == 0 {
            return;
        }
        let gone: Vec<_> = Arc::make_mut(&mut layers.runs).drain(..gone).collect();
        if let Some(below) = &mut layers.below {
            below.extend(gone.iter().map(|run| run.filter.clone()));
            if below.len() > 1 + GONE_MAX {
                layers.below = None;
            }
        }
        // Their files are closed, and with that removed, when nobody waits for it.
        drop(layers);
        drop(gone);
    }

    /// Rows at or behind `from` that begin with `prefix`, about `rows_max` of each layer, removed
    /// ones included; and the key up to which none is missing, unless none is.
    fn above(
        &self,
        prefix: &[u8],
        from: &[u8],
        rows_max: usize,
    ) -> Result<(Above, Option<Vec<u8>>), IndexError> {
        let (mut found, mut whole_to) = (Above::new(), None::<Vec<u8>>);
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
        let runs = {
            let layers = self.read_layers();
            layers.pieces().for_each(|piece| add(piece.rows(prefix, from, rows_max)));
            Arc::clone(&layers.runs)
        };
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

/// Which rows a database has, if they are few.
fn below(base: &dyn Kv) -> Result<Option<Filter>, IndexError> {
    let rows = base.page(&[], &[], BELOW_ROWS_MAX + 1)?;
    let are_few = rows.len() <= BELOW_ROWS_MAX;
    Ok(are_few.then(|| Filter::of(rows.iter().map(|(key, _)| hash(key)))))
}

/// Writes what is frozen into a run.
fn write_frozen(layers: &RwLock<Layers>, dir: &Path) -> io::Result<()> {
    let frozen = layers.read().unwrap_or_else(PoisonError::into_inner).frozen.clone();
    let Some((memory, applied)) = frozen else { return Ok(()) };
    let run = Run::write(dir, &merged(&memory.pieces), applied)?;
    let mut layers = layers.write().unwrap_or_else(PoisonError::into_inner);
    Arc::make_mut(&mut layers.runs).push(Arc::new(run));
    layers.frozen = None;
    // Freed by this thread, and when nobody waits for it.
    drop(layers);
    drop(memory);
    Ok(())
}

impl Kv for Overlay {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, IndexError> {
        let hash = hash(key);
        let (runs, may_be_below) = {
            let layers = self.read_layers();
            if let Some(value) = layers.in_memory().find_map(|memory| memory.get(hash, key)) {
                return Ok(value.clone());
            }
            (Arc::clone(&layers.runs), layers.may_be_below(hash))
        };
        for run in runs.iter().rev() {
            if let Some(value) = run.get(hash, key)? {
                return Ok(value);
            }
        }
        if may_be_below { self.base.get(key) } else { Ok(None) }
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
        let piece = Piece::new(batch);
        self.write_layers().memory.add(piece);
        Ok(())
    }

    fn flush(&self) -> Result<(), IndexError> {
        self.base.flush()
    }
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
        let overlay = Overlay::new(base, dir, 20_000).unwrap();
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
        if let Some(written) = lock(&overlay.writing).take() {
            written.recv().unwrap().unwrap();
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
    fn a_database_with_few_rows_is_asked_for_those_and_what_it_was_brought() {
        let dir = tempfile::tempdir().unwrap();
        let base = Arc::new(MemoryKv::default());
        base.write(Batch::from([(b"before".to_vec(), value("row"))])).unwrap();
        let overlay = Overlay::new(Arc::clone(&base) as Arc<dyn Kv>, dir.path(), 700).unwrap();
        for number in 0..2000 {
            overlay.write(Batch::from([(key(number), value("row"))])).unwrap();
            overlay.spill(Offset::new(1, number.into())).unwrap();
        }
        if let Some(written) = lock(&overlay.writing).take() {
            written.recv().unwrap().unwrap();
        }
        let runs = overlay.read_layers().runs.len();
        assert!(runs > GONE_MAX, "{runs}");
        for settled in 0..2000 {
            base.write(Batch::from([(key(settled), value("row"))])).unwrap();
            overlay.settled(Offset::new(1, settled.into()));
            if settled % 97 == 0 {
                assert!((0..2000).all(|number| overlay.get(&key(number)).unwrap().is_some()), "{settled}");
                assert_eq!(overlay.get(b"before").unwrap(), value("row"));
                assert_eq!(overlay.get(b"nothing").unwrap(), None);
            }
        }
        assert!(overlay.read_layers().below.is_none(), "too many to remember");
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
}
