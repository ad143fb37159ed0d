//! The disk below a blob store: real files, and the knowledge of what of them was synced, so that
//! a power cut can take away the rest.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use outport::store::Witness;

use crate::random::Random;

/// What one life of a store did to its files.
#[derive(Debug, Default)]
pub(crate) struct BlobDisk(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// By inode: what was written and is not known to be durable.
    files: BTreeMap<u64, Written>,
    /// Names given in directories that were not synced since.
    renamed: Vec<(PathBuf, PathBuf)>,
    /// Bytes until the disk is full.
    room: Option<u64>,
}

#[derive(Debug)]
struct Written {
    path: PathBuf,
    durable: u64,
}

impl BlobDisk {
    /// Bounds what can still be written, in bytes; `None` lifts the bound.
    pub(crate) fn set_room(&self, room: Option<u64>) {
        self.state().room = room;
    }

    /// Takes away some of what was not synced below `was`, which stands at `now` by now.
    pub(crate) fn cut_power(&self, was: &Path, now: &Path, random: &Random) {
        let state = self.state();
        let at = |path: &Path| path.strip_prefix(was).map(|rest| now.join(rest)).ok();
        for written in state.files.values() {
            let Some(path) = at(&written.path) else { continue };
            let Ok(file) = OpenOptions::new().write(true).open(path) else { continue };
            let length = file.metadata().map_or(0, |metadata| metadata.len());
            let lost = length.saturating_sub(written.durable);
            if lost == 0 {
                continue;
            }
            // Some of it is there, perhaps as zeros that were never written.
            let kept = written.durable + random.below(lost + 1);
            let torn = file.set_len(kept).and_then(|()| match random.percent(30) {
                true => file.write_all_at(&vec![0; (kept - written.durable) as usize], written.durable),
                false => Ok(()),
            });
            drop(torn);
        }
        for (from, to) in state.renamed.iter().rev() {
            let (Some(from), Some(to)) = (at(from), at(to)) else { continue };
            if random.percent(50) && !from.exists() {
                // Its file may be gone since.
                let _ = fs::rename(to, from);
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Witness for BlobDisk {
    fn create(&self, _path: &Path) -> io::Result<()> {
        match self.state().room {
            Some(0) => Err(io::ErrorKind::StorageFull.into()),
            _ => Ok(()),
        }
    }

    fn write(&self, file: &File, bytes: u64) -> io::Result<()> {
        let mut state = self.state();
        if let Some(room) = &mut state.room {
            match room.checked_sub(bytes) {
                Some(left) => *room = left,
                None => return Err(io::ErrorKind::StorageFull.into()),
            }
        }
        let inode = file.metadata()?.ino();
        let path = PathBuf::new();
        state.files.entry(inode).or_insert(Written { path, durable: 0 });
        Ok(())
    }

    fn sync_file(&self, file: &File) -> io::Result<()> {
        let metadata = file.metadata()?;
        let mut state = self.state();
        let path = PathBuf::new();
        state.files.entry(metadata.ino()).or_insert(Written { path, durable: 0 }).durable = metadata.len();
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let inode = fs::metadata(from)?.ino();
        let mut state = self.state();
        state.renamed.push((from.to_owned(), to.to_owned()));
        if let Some(written) = state.files.get_mut(&inode) {
            written.path = to.to_owned();
        }
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.renamed.retain(|(_, to)| to.parent() != Some(dir));
        // What is durable under its name is of no further interest.
        state.files.retain(|_, written| {
            written.path.parent() != Some(dir)
                || fs::metadata(&written.path).is_ok_and(|metadata| metadata.len() > written.durable)
        });
        Ok(())
    }
}
