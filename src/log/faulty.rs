//! A disk in memory that forgets, tears, fills up and fails, for tests and simulations.
//!
//! It keeps two truths: what running programs see, and what would survive a power cut. Faults
//! are set by counting operations, and what survives is drawn from a seed, so every run repeats.

use std::{
    collections::BTreeMap,
    io,
    ops::Range,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
};

use super::disk::{Disk, File};

/// A disk with faults. Cloning gives another handle to the same disk.
#[derive(Clone, Debug, Default)]
pub struct FaultyDisk {
    world: Arc<Mutex<World>>,
    released: Arc<Condvar>,
}

#[derive(Debug, Default)]
struct World {
    files: Vec<Contents>,
    /// What programs see.
    names: BTreeMap<String, usize>,
    /// What was synced.
    durable_names: BTreeMap<String, usize>,
    counts: Counts,
    /// Without power every operation fails.
    off: bool,
    held: bool,
    cut_at: Option<u64>,
    fail_sync_at: Option<u64>,
    /// Files with this in their names are not made durable.
    refused: Option<String>,
    fail_append_at: Option<u64>,
    capacity: Option<u64>,
}

#[derive(Clone, Debug, Default)]
struct Contents {
    seen: Vec<u8>,
    durable: Vec<u8>,
    /// Where `seen` was written since the last sync. As Linux does it, a sync that fails takes nothing
    /// back and counts nothing as unwritten: the next one does not write it again.
    unsynced: Vec<Range<usize>>,
}

/// Operations so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Everything that changes the disk: creates, appends, truncations, renames, removals, syncs.
    pub changes: u64,
    /// Appends to files.
    pub appends: u64,
    /// Syncs of files; those of the directory are not counted here.
    pub syncs: u64,
}

impl FaultyDisk {
    /// An empty disk without faults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Operations so far.
    pub fn counts(&self) -> Counts {
        self.world().counts
    }

    /// Cuts the power just before change number `change` (from 0) takes effect; an append is torn.
    pub fn cut_power_at(&self, change: u64) {
        self.world().cut_at = Some(change);
    }

    /// Lets the `sync`-th sync of a file from now on (0 is the next) fail; what it should have
    /// made durable is lost at a power cut.
    pub fn fail_sync(&self, sync: u64) {
        let mut world = self.world();
        world.fail_sync_at = Some(world.counts.syncs + sync);
    }

    /// Lets every sync of a file fail that has `part` in its name, until that is `None`.
    pub fn refuse_syncs(&self, part: Option<&str>) {
        self.world().refused = part.map(str::to_owned);
    }

    /// Syncs fail no longer. What failed stays so.
    pub fn mend(&self) {
        let mut world = self.world();
        (world.fail_sync_at, world.refused) = (None, None);
    }

    /// Lets the `append`-th append from now on (0 is the next) fail half way with an I/O error.
    pub fn fail_append(&self, append: u64) {
        let mut world = self.world();
        world.fail_append_at = Some(world.counts.appends + append);
    }

    /// Makes syncs of files wait from now on, or lets them all go.
    pub fn hold_syncs(&self, hold: bool) {
        self.world().held = hold;
        self.released.notify_all();
    }

    /// Bounds what fits on the disk, in bytes over all files; `None` lifts the bound.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.world().capacity = bytes;
    }

    /// Bytes over all files.
    pub fn bytes(&self) -> u64 {
        self.world().used()
    }

    /// Whether a power cut has happened.
    pub fn is_off(&self) -> bool {
        self.world().off
    }

    /// Cuts the power now. Open files of this disk fail from here on.
    pub fn cut_power(&self) {
        self.world().off = true;
    }

    /// The disk after a power cut. Of what was not synced, each name and each byte may or may
    /// not be there, as `seed` decides; a file may end in zeros that were never written.
    #[must_use]
    pub fn power_on(&self, seed: u64) -> Self {
        let mut old = self.world();
        old.off = true;
        let mut random = Random(seed);
        let mut survived = World { refused: old.refused.clone(), ..World::default() };
        let mut names = old.durable_names.clone();
        for name in old.names.keys().chain(old.durable_names.keys()) {
            let now = old.names.get(name);
            if now != old.durable_names.get(name) && random.coin() {
                match now {
                    Some(file) => names.insert(name.clone(), *file),
                    None => names.remove(name),
                };
            }
        }
        for (name, file) in names {
            let content = old.files[file].after_power_cut(&mut random);
            survived.names.insert(name.clone(), survived.files.len());
            survived.durable_names.insert(name, survived.files.len());
            survived.files.push(Contents::synced(content));
        }
        Self { world: Arc::new(Mutex::new(survived)), ..Self::default() }
    }

    /// The disk after the process alone was killed: everything written is there. Open files of
    /// this disk fail from here on.
    #[must_use]
    pub fn after_kill(&self) -> Self {
        let mut old = self.world();
        old.off = true;
        let survived = World {
            files: old.files.clone(),
            names: old.names.clone(),
            durable_names: old.durable_names.clone(),
            refused: old.refused.clone(),
            ..World::default()
        };
        Self { world: Arc::new(Mutex::new(survived)), ..Self::default() }
    }

    /// Another disk with what programs see on this one, as a backup would copy it.
    #[must_use]
    pub fn copy(&self) -> Self {
        let old = self.world();
        let mut copied = World::default();
        for (name, file) in &old.names {
            let content = old.files[*file].seen.clone();
            copied.names.insert(name.clone(), copied.files.len());
            copied.durable_names.insert(name.clone(), copied.files.len());
            copied.files.push(Contents::synced(content));
        }
        Self { world: Arc::new(Mutex::new(copied)), ..Self::default() }
    }

    /// The bytes of a file; `None` when there is none of that name.
    pub fn content(&self, name: &str) -> Option<Vec<u8>> {
        let world = self.world();
        world.names.get(name).map(|file| world.files[*file].seen.clone())
    }

    /// Puts a file there durably, as if it had always been so.
    pub fn set_content(&self, name: &str, bytes: Vec<u8>) {
        let mut world = self.world();
        let file = world.files.len();
        world.files.push(Contents::synced(bytes));
        world.names.insert(name.to_owned(), file);
        world.durable_names.insert(name.to_owned(), file);
    }

    /// A byte changes on the disk itself, and not in what programs see while that is cached.
    pub fn rot(&self, name: &str, at: usize) {
        let mut world = self.world();
        if let Some(file) = world.names.get(name).copied()
            && let Some(byte) = world.files[file].durable.get_mut(at)
        {
            *byte ^= 0xff;
        }
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Contents {
    fn synced(content: Vec<u8>) -> Self {
        Self { seen: content.clone(), durable: content, unsynced: Vec::new() }
    }

    fn append(&mut self, bytes: &[u8]) {
        let begin = self.seen.len();
        self.seen.extend_from_slice(bytes);
        self.unsynced.push(begin..self.seen.len());
    }

    fn truncate(&mut self, length: usize) {
        self.seen.truncate(length);
        self.unsynced.iter_mut().for_each(|written| written.end = written.end.min(length));
        self.unsynced.retain(|written| written.start < written.end);
    }

    fn sync(&mut self) {
        self.durable.resize(self.seen.len(), 0);
        for written in self.unsynced.drain(..) {
            self.durable[written.clone()].copy_from_slice(&self.seen[written]);
        }
    }

    fn forget_cached(&mut self) {
        let mut read = self.durable.clone();
        read.resize(self.seen.len(), 0);
        for written in &self.unsynced {
            read[written.clone()].copy_from_slice(&self.seen[written.clone()]);
        }
        self.seen = read;
    }

    /// What was durable, then some of what came since, in pages that reached the disk in any order.
    fn after_power_cut(&self, random: &mut Random) -> Vec<u8> {
        if self.seen == self.durable {
            return self.durable.clone();
        }
        let common =
            self.seen.iter().zip(&self.durable).take_while(|(seen, durable)| seen == durable).count();
        let longest = self.seen.len().max(self.durable.len());
        let shortest =
            if self.seen.len() < self.durable.len() { self.seen.len() } else { self.durable.len() };
        let length = shortest + random.below(longest - shortest + 1);
        let mut content = self.durable.clone();
        content.resize(length, 0);
        let page = 1 + random.below(600);
        for start in (common..length).step_by(page) {
            let end = (start + page).min(length).min(self.seen.len());
            if start < end && random.coin() {
                content[start..end].copy_from_slice(&self.seen[start..end]);
            }
        }
        content
    }
}

impl World {
    fn used(&self) -> u64 {
        self.names.values().map(|file| self.files[*file].seen.len() as u64).sum()
    }

    fn refuses(&self, file: usize) -> bool {
        let Some(part) = &self.refused else { return false };
        self.names.iter().any(|(name, named)| *named == file && name.contains(part.as_str()))
    }

    fn alive(&self) -> io::Result<()> {
        if self.off { Err(io::Error::other("no power")) } else { Ok(()) }
    }

    /// Counts a change; says whether the power goes with it.
    fn change(&mut self) -> io::Result<bool> {
        self.alive()?;
        self.off = self.cut_at == Some(self.counts.changes);
        self.counts.changes += 1;
        Ok(self.off)
    }

    fn change_whole(&mut self) -> io::Result<()> {
        self.change()?;
        self.alive()
    }

    fn file(&self, name: &str) -> io::Result<usize> {
        self.names.get(name).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Disk for FaultyDisk {
    fn create(&self, name: &str) -> io::Result<Box<dyn File>> {
        let mut world = self.world();
        world.change_whole()?;
        if world.names.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let file = world.files.len();
        world.files.push(Contents::default());
        world.names.insert(name.to_owned(), file);
        Ok(Box::new(FaultyFile { disk: self.clone(), file }))
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn File>> {
        let world = self.world();
        world.alive()?;
        let file = world.file(name)?;
        Ok(Box::new(FaultyFile { disk: self.clone(), file }))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let world = self.world();
        world.alive()?;
        Ok(world.names.keys().cloned().collect())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut world = self.world();
        world.change_whole()?;
        let file = world.file(from)?;
        world.names.remove(from);
        world.names.insert(to.to_owned(), file);
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut world = self.world();
        world.change_whole()?;
        world.names.remove(name);
        Ok(())
    }

    fn sync_dir(&self) -> io::Result<()> {
        let mut world = self.world();
        world.change_whole()?;
        world.durable_names = world.names.clone();
        Ok(())
    }
}

#[derive(Debug)]
struct FaultyFile {
    disk: FaultyDisk,
    file: usize,
}

impl File for FaultyFile {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut world = self.disk.world();
        let cut = world.change()?;
        let failing = world.fail_append_at == Some(world.counts.appends);
        world.counts.appends += 1;
        let room = world.capacity.map_or(u64::MAX, |capacity| capacity.saturating_sub(world.used()));
        let room = usize::try_from(room).unwrap_or(usize::MAX);
        let fits = if cut || failing { bytes.len() / 2 } else { bytes.len().min(room) };
        world.files[self.file].append(&bytes[..fits]);
        world.alive()?;
        if failing {
            return Err(io::Error::other("injected write error"));
        }
        if fits < bytes.len() { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    fn read_at(&self, buffer: &mut [u8], position: u64) -> io::Result<usize> {
        let world = self.disk.world();
        world.alive()?;
        let seen = &world.files[self.file].seen;
        let start = usize::try_from(position).unwrap_or(usize::MAX).min(seen.len());
        let count = buffer.len().min(seen.len() - start);
        buffer[..count].copy_from_slice(&seen[start..start + count]);
        Ok(count)
    }

    fn sync(&mut self) -> io::Result<()> {
        let mut world = self.disk.world();
        while world.held {
            world = self.disk.released.wait(world).unwrap_or_else(PoisonError::into_inner);
        }
        world.change_whole()?;
        let failing = world.fail_sync_at == Some(world.counts.syncs) || world.refuses(self.file);
        world.counts.syncs += 1;
        if failing {
            world.files[self.file].unsynced.clear();
            return Err(io::Error::other("injected fsync error"));
        }
        world.files[self.file].sync();
        Ok(())
    }

    fn forget_cached(&self) -> io::Result<()> {
        let mut world = self.disk.world();
        world.alive()?;
        world.files[self.file].forget_cached();
        Ok(())
    }

    fn truncate(&mut self, length: u64) -> io::Result<()> {
        let mut world = self.disk.world();
        world.change_whole()?;
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        world.files[self.file].truncate(length);
        Ok(())
    }

    fn length(&self) -> io::Result<u64> {
        let world = self.disk.world();
        world.alive()?;
        Ok(world.files[self.file].seen.len() as u64)
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014): small, and the same everywhere.
#[derive(Debug)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).unwrap_or(0)
    }

    fn coin(&mut self) -> bool {
        self.next() & 1 == 1
    }
}
