//! Every step that makes content durable, in one place, so that a test can make one fail.
//!
//! The order they are taken in was measured against simulated power cuts: without the fsync of
//! the file, and of the directory after the rename, acknowledged blobs were lost.

use std::{
    fmt,
    fs::{self, File, OpenOptions},
    io::{self, IoSlice, Write as _},
    path::Path,
    sync::Arc,
};

/// Is asked before each step that makes content durable, and may fail it; what it knows of is not
/// synced in truth. A simulation takes away at a power cut what was not synced.
pub trait Witness: fmt::Debug + Send + Sync {
    /// A new file is about to be made.
    ///
    /// # Errors
    /// As the step shall fail.
    fn create(&self, path: &Path) -> io::Result<()>;

    /// Bytes are about to be written at the file's cursor.
    ///
    /// # Errors
    /// As the step shall fail.
    fn write(&self, file: &File, bytes: u64) -> io::Result<()>;

    /// A file's content is to be made durable.
    ///
    /// # Errors
    /// As the step shall fail.
    fn sync_file(&self, file: &File) -> io::Result<()>;

    /// A file is about to get another name.
    ///
    /// # Errors
    /// As the step shall fail.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// The names in a directory are to be made durable.
    ///
    /// # Errors
    /// As the step shall fail.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
}

/// The disk under a store.
#[derive(Debug, Default)]
pub(super) struct Disk {
    pub(super) witness: Option<Arc<dyn Witness>>,
    #[cfg(test)]
    pub(super) faults: faults::Faults,
}

impl Disk {
    /// A disk whose steps a witness is asked for, if there is one.
    pub(super) fn over(witness: Option<Arc<dyn Witness>>) -> Self {
        Self {
            witness,
            #[cfg(test)]
            faults: faults::Faults::default(),
        }
    }

    /// Makes a new file for reading and writing; it must not exist.
    pub(super) fn create(&self, path: &Path) -> io::Result<File> {
        #[cfg(test)]
        self.faults.check_create()?;
        if let Some(witness) = &self.witness {
            witness.create(path)?;
        }
        OpenOptions::new().read(true).write(true).create_new(true).open(path)
    }

    /// Writes all of `slices` at the file's cursor, in few system calls and without copying.
    pub(super) fn write(&self, mut file: &File, mut slices: &mut [IoSlice<'_>]) -> io::Result<()> {
        #[cfg(test)]
        self.faults.check_write(slices.iter().map(|slice| slice.len()).sum())?;
        if let Some(witness) = &self.witness {
            witness.write(file, slices.iter().map(|slice| slice.len() as u64).sum())?;
        }
        IoSlice::advance_slices(&mut slices, 0);
        while !slices.is_empty() {
            match file.write_vectored(slices) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => IoSlice::advance_slices(&mut slices, written),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Makes a file's content survive a power cut. After a failure its content is not to be believed.
    pub(super) fn sync_file(&self, file: &File) -> io::Result<()> {
        #[cfg(test)]
        self.faults.check_sync()?;
        match &self.witness {
            Some(witness) => witness.sync_file(file),
            None => file.sync_all(),
        }
    }

    /// Gives a file its final name, in place of whatever has it.
    pub(super) fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        if let Some(witness) = &self.witness {
            witness.rename(from, to)?;
        }
        fs::rename(from, to)
    }

    /// Makes the names in a directory survive a power cut.
    pub(super) fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        #[cfg(test)]
        self.faults.check_sync_dir()?;
        match &self.witness {
            Some(witness) => witness.sync_dir(dir),
            None => File::open(dir)?.sync_all(),
        }
    }

    /// Makes a directory and its parents where missing; every new name survives a power cut, or
    /// the directory is not there.
    pub(super) fn make_dirs(&self, dir: &Path) -> io::Result<()> {
        match fs::create_dir(dir) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.make_dirs(parent_of(dir).ok_or(error)?)?;
                fs::create_dir(dir)?;
            }
            Err(error) => return Err(error),
        }
        let synced = parent_of(dir).map_or(Ok(()), |parent| self.sync_dir(parent));
        synced.inspect_err(|_| {
            // Left behind it would be taken for durable.
            let _ = fs::remove_dir(dir);
        })
    }
}

/// The directory a name stands in; a bare relative name stands in `.`.
fn parent_of(path: &Path) -> Option<&Path> {
    path.parent().map(|parent| if parent.as_os_str().is_empty() { Path::new(".") } else { parent })
}

#[cfg(test)]
pub(super) mod faults {
    //! A disk that fails when told.

    use std::{
        io,
        sync::atomic::{AtomicBool, AtomicU64, Ordering},
    };

    #[derive(Debug)]
    pub(crate) struct Faults {
        /// Bytes until the disk is full.
        pub(crate) room: AtomicU64,
        pub(crate) full_once: AtomicBool,
        pub(crate) refuse_create: AtomicBool,
        pub(crate) fail_sync: AtomicBool,
        pub(crate) fail_sync_dir: AtomicBool,
    }

    impl Default for Faults {
        fn default() -> Self {
            Self {
                room: u64::MAX.into(),
                full_once: false.into(),
                refuse_create: false.into(),
                fail_sync: false.into(),
                fail_sync_dir: false.into(),
            }
        }
    }

    impl Faults {
        pub(super) fn check_create(&self) -> io::Result<()> {
            fail_if(self.refuse_create.load(Ordering::SeqCst), io::ErrorKind::StorageFull)
        }

        pub(super) fn check_write(&self, bytes: usize) -> io::Result<()> {
            fail_if(self.full_once.swap(false, Ordering::SeqCst), io::ErrorKind::StorageFull)?;
            let taken = |room: u64| room.checked_sub(bytes as u64);
            let full = self.room.fetch_update(Ordering::SeqCst, Ordering::SeqCst, taken).is_err();
            fail_if(full, io::ErrorKind::StorageFull)
        }

        pub(super) fn check_sync(&self) -> io::Result<()> {
            fail_if(self.fail_sync.load(Ordering::SeqCst), io::ErrorKind::Other)
        }

        pub(super) fn check_sync_dir(&self) -> io::Result<()> {
            fail_if(self.fail_sync_dir.load(Ordering::SeqCst), io::ErrorKind::Other)
        }
    }

    fn fail_if(fails: bool, kind: io::ErrorKind) -> io::Result<()> {
        if fails { Err(kind.into()) } else { Ok(()) }
    }
}
