//! What the log asks of a disk, and the real one.

use std::{
    fmt,
    fs::{self, TryLockError},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
};

/// A disk that parts share.
pub type SharedDisk = Arc<dyn Disk>;

/// One flat directory of files. What was not made durable by [`File::sync`] and
/// [`Disk::sync_dir`] may be gone, whole or in part, after a power cut.
pub trait Disk: fmt::Debug + Send + Sync + 'static {
    /// Creates an empty file for writing; one of that name must not exist.
    fn create(&self, name: &str) -> io::Result<Box<dyn File>>;
    /// Opens a file for reading and, at its end, writing.
    fn open(&self, name: &str) -> io::Result<Box<dyn File>>;
    /// Names of all files, in any order.
    fn list(&self) -> io::Result<Vec<String>>;
    /// Gives a file another name, replacing what had it.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file; that it is absent is no error.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Makes created, renamed and removed names durable.
    fn sync_dir(&self) -> io::Result<()>;
}

/// An open file.
pub trait File: fmt::Debug + Send + 'static {
    /// Writes all of `bytes` at the end. After an error an unknown part of them is there.
    fn append(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// Reads at `position` until `buffer` is full or the file ends; returns the bytes read.
    fn read_at(&self, buffer: &mut [u8], position: u64) -> io::Result<usize>;
    /// Makes content and length durable. After an error nothing is known of what is, and what was
    /// written before may count as durable from then on although it is not.
    fn sync(&mut self) -> io::Result<()>;
    /// Lets what is read next come from the disk, but for what is still to be made durable.
    fn forget_cached(&self) -> io::Result<()>;
    /// Cuts the file off at `length`.
    fn truncate(&mut self, length: u64) -> io::Result<()>;
    /// Length in bytes.
    fn length(&self) -> io::Result<u64>;
}

/// Reads a whole file of at most `bytes_max` bytes.
///
/// # Errors
/// Those of the disk; `InvalidData` when the file is larger.
pub fn read_all(disk: &dyn Disk, name: &str, bytes_max: u64) -> io::Result<Vec<u8>> {
    let file = disk.open(name)?;
    let length = file.length()?;
    if length > bytes_max {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{name} is larger than {bytes_max}")));
    }
    let mut content = vec![0; usize::try_from(length).unwrap_or(usize::MAX)];
    let read = file.read_at(&mut content, 0)?;
    content.truncate(read);
    Ok(content)
}

/// Name of the file whose lock says that a process uses the directory.
const LOCK: &str = "lock";

/// A directory of the machine, locked against other processes while this value lives.
#[derive(Debug)]
pub struct OsDisk {
    dir: PathBuf,
    _lock: fs::File,
}

impl OsDisk {
    /// Opens `dir`, creating it durably when absent.
    ///
    /// # Errors
    /// `ResourceBusy` when another process holds it; otherwise those of the file system.
    pub fn open(dir: &Path) -> io::Result<Arc<Self>> {
        create_dir_durably(dir)?;
        let lock = fs::File::options().create(true).truncate(false).write(true).open(dir.join(LOCK))?;
        match lock.try_lock() {
            Ok(()) => Ok(Arc::new(Self { dir: dir.to_owned(), _lock: lock })),
            Err(TryLockError::WouldBlock) => Err(io::Error::new(
                io::ErrorKind::ResourceBusy,
                format!("{} is in use by another process", dir.display()),
            )),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }
}

/// `create_dir_all`, with the parents of what it made synced: a directory entry that is not
/// durable takes everything below it along.
fn create_dir_durably(dir: &Path) -> io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    if let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        create_dir_durably(parent)?;
    }
    match fs::create_dir(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    match dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        Some(parent) => fs::File::open(parent)?.sync_all(),
        None => fs::File::open(".")?.sync_all(),
    }
}

impl Disk for OsDisk {
    fn create(&self, name: &str) -> io::Result<Box<dyn File>> {
        let file = fs::File::options().read(true).write(true).create_new(true).open(self.dir.join(name))?;
        Ok(Box::new(OsFile { file, length: 0 }))
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn File>> {
        let file = fs::File::options().read(true).write(true).open(self.dir.join(name))?;
        let length = file.metadata()?.len();
        Ok(Box::new(OsFile { file, length }))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            if let Ok(name) = entry?.file_name().into_string() {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.dir.join(from), self.dir.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        match fs::remove_file(self.dir.join(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    fn sync_dir(&self) -> io::Result<()> {
        fs::File::open(&self.dir)?.sync_all()
    }
}

#[derive(Debug)]
struct OsFile {
    file: fs::File,
    /// Where the next append goes.
    length: u64,
}

impl File for OsFile {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, self.length)?;
        self.length += bytes.len() as u64;
        Ok(())
    }

    fn read_at(&self, buffer: &mut [u8], position: u64) -> io::Result<usize> {
        let mut read = 0;
        while read < buffer.len() {
            match self.file.read_at(&mut buffer[read..], position + read as u64) {
                Ok(0) => break,
                Ok(count) => read += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(read)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn forget_cached(&self) -> io::Result<()> {
        Ok(rustix::fs::fadvise(&self.file, 0, None, rustix::fs::Advice::DontNeed)?)
    }

    fn truncate(&mut self, length: u64) -> io::Result<()> {
        self.file.set_len(length)?;
        self.length = length;
        Ok(())
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }
}
