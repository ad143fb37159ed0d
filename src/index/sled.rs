//! The index's store on disk. The only file that names sled.
//!
//! sled 0.34's own `flush` asks the kernel to write (`sync_file_range`) and does not wait for the
//! disk's cache or the directory: after a power cut such a database may panic, fail to open or
//! have lost rows. With an fsync of all its files and directories behind each flush it did not.
//! A damaged database may panic in any call, so every call is guarded.

use std::{
    fs::{self, File},
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;

use super::{
    IndexError,
    kv::{Batch, Kv, Row},
};

/// How long to wait for threads of a database just closed in this process to let go of its file.
const LOCK_WAIT_MAX: Duration = Duration::from_secs(5);
const LOCK_RETRY_INTERVAL: Duration = Duration::from_millis(10);

/// A sled database.
#[derive(Debug)]
pub(super) struct SledKv {
    db: ::sled::Db,
    dir: PathBuf,
}

impl SledKv {
    /// Opens or creates the database in `dir`.
    ///
    /// # Errors
    /// [`IndexError::Damaged`] when what is there cannot be used, [`IndexError::Database`] when
    /// somebody else has it open.
    pub(super) fn open(dir: &Path, cache_bytes_max: u64) -> Result<Self, IndexError> {
        let deadline = Instant::now() + LOCK_WAIT_MAX;
        loop {
            match open_on_own_thread(dir, cache_bytes_max)? {
                Ok(db) => return Ok(Self { db, dir: dir.to_owned() }),
                Err(error) if is_locked(&error) => {
                    if Instant::now() > deadline {
                        return Err(database("open the database", error));
                    }
                    thread::sleep(LOCK_RETRY_INTERVAL);
                }
                Err(error) => {
                    return Err(IndexError::Damaged(format!("the database does not open: {error}")));
                }
            }
        }
    }
}

/// Recovery of a damaged database may panic: a thread of its own keeps that from the caller.
fn open_on_own_thread(
    dir: &Path,
    cache_bytes_max: u64,
) -> Result<Result<::sled::Db, ::sled::Error>, IndexError> {
    // The flush thread is off: a checkpoint flushes and then makes sure that it holds.
    let config = ::sled::Config::new()
        .path(dir)
        .cache_capacity(cache_bytes_max)
        .mode(::sled::Mode::HighThroughput)
        .use_compression(false)
        .flush_every_ms(None);
    let opening = thread::Builder::new().name("open-index".into()).spawn(move || config.open());
    let opening = opening.map_err(|error| database("start a thread to open the database", error))?;
    opening.join().map_err(|_| IndexError::Damaged("the database panics when it is opened".into()))
}

fn is_locked(error: &::sled::Error) -> bool {
    matches!(error, ::sled::Error::Io(error) if error.to_string().contains("could not acquire lock"))
}

impl Kv for SledKv {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, IndexError> {
        guarded("read a row", || {
            // Copied, so that a small value kept for long does not keep its page alive.
            Ok(self.db.get(key)?.map(|value| Bytes::copy_from_slice(&value)))
        })
    }

    fn page(&self, prefix: &[u8], from: &[u8], rows_max: usize) -> Result<Vec<Row>, IndexError> {
        guarded("read rows", || {
            let mut page = Vec::new();
            for row in self.db.range(from.max(prefix)..).take(rows_max) {
                let (key, value) = row?;
                if !key.starts_with(prefix) {
                    break;
                }
                page.push((key.to_vec(), Bytes::copy_from_slice(&value)));
            }
            Ok(page)
        })
    }

    fn write(&self, batch: Batch) -> Result<(), IndexError> {
        guarded("write a batch", || {
            let mut writes = ::sled::Batch::default();
            for (key, value) in batch {
                match value {
                    Some(value) => writes.insert(key, value.as_ref()),
                    None => writes.remove(key),
                }
            }
            self.db.apply_batch(writes)
        })
    }

    fn flush(&self) -> Result<(), IndexError> {
        guarded("flush the database", || self.db.flush())?;
        sync_tree(&self.dir).map_err(|error| database("fsync the database", error))
    }
}

fn guarded<T>(
    action: &'static str,
    call: impl FnOnce() -> Result<T, ::sled::Error>,
) -> Result<T, IndexError> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(::sled::Error::Corruption { .. })) => {
            Err(IndexError::Damaged(format!("{action}: the database finds itself damaged")))
        }
        Ok(Err(error)) => Err(database(action, error)),
        Err(_) => Err(IndexError::Damaged(format!("{action}: the database panics"))),
    }
}

fn database(action: &'static str, error: impl std::fmt::Display) -> IndexError {
    IndexError::Database { action, reason: error.to_string() }
}

/// Fsyncs every file and directory below `dir`, and `dir`.
fn sync_tree(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_tree(&entry.path())?;
            continue;
        }
        match File::open(entry.path()) {
            Ok(file) => file.sync_all()?,
            // The database removes files of its own that it no longer needs.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    File::open(dir)?.sync_all()
}
