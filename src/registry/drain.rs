//! A primary that is about to be handed over takes no more pushes.

use std::{
    fs, io,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use crate::auth::{FileError, write_private};

/// Whether pushes and deletes are taken. It is remembered on disk: a primary that was handed over and is started
/// again by mistake takes none either. Cloning gives another handle.
#[derive(Clone, Debug)]
pub struct Drain(Arc<State>);

#[derive(Debug)]
struct State {
    file: PathBuf,
    drains: AtomicBool,
    under_way: AtomicUsize,
}

/// A push or delete under way.
#[derive(Debug)]
pub struct UnderWay(Arc<State>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Drain {
    /// As `file`, which is there while no push is taken, says.
    pub fn open(file: PathBuf) -> Self {
        let drains = AtomicBool::new(file.exists());
        Self(Arc::new(State { file, drains, under_way: AtomicUsize::new(0) }))
    }

    /// Takes a push in; `None` while none is taken.
    pub fn enter(&self) -> Option<UnderWay> {
        // Counted before it is looked: whoever drains sees it, or it sees that.
        self.0.under_way.fetch_add(1, Ordering::SeqCst);
        let under_way = UnderWay(Arc::clone(&self.0));
        (!self.0.drains.load(Ordering::SeqCst)).then_some(under_way)
    }

    /// Takes no more, durably, or takes them again. Blocks for the disk.
    ///
    /// # Errors
    /// When that cannot be remembered; nothing changed then.
    pub fn set(&self, drains: bool) -> Result<(), FileError> {
        if drains {
            write_private(&self.0.file, "no pushes are taken: see `outport drain`\n")?;
        } else {
            match fs::remove_file(&self.0.file) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(FileError { path: self.0.file.clone(), source });
                }
                _ => {}
            }
        }
        self.0.drains.store(drains, Ordering::SeqCst);
        Ok(())
    }

    /// Whether none is taken, and how many are under way.
    pub fn state(&self) -> (bool, usize) {
        (self.0.drains.load(Ordering::SeqCst), self.0.under_way.load(Ordering::SeqCst))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_under_way_ends_and_nothing_begins_until_it_is_undone_across_restarts() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("drained");
        let drain = Drain::open(file.clone());
        let first = drain.enter().unwrap();
        drain.set(true).unwrap();
        assert!(drain.enter().is_none());
        assert_eq!(drain.state(), (true, 1));
        drop(first);
        assert_eq!(drain.state(), (true, 0));
        let again = Drain::open(file.clone());
        assert!(again.enter().is_none());
        again.set(false).unwrap();
        again.set(false).unwrap();
        assert!(again.enter().is_some() && Drain::open(file).enter().is_some());
    }
}
