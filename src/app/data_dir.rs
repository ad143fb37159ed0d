//! A node's data directory: made private, held by one process at a time.

use std::{
    fs::{self, DirBuilder, File},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use super::{StartError, durable_write};

/// The directory, locked until this is dropped.
#[derive(Debug)]
pub(super) struct DataDir {
    path: PathBuf,
    _lock: File,
}

impl DataDir {
    /// Makes the directory if it is missing and takes its lock.
    pub(super) fn open(path: &Path) -> Result<Self, StartError> {
        let failed = |error| StartError::new(format!("open data_dir {}", path.display()), error);
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
        let lock = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(path.join("lock"))
            .map_err(failed)?;
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).map_err(|error| {
            let reason = match error {
                rustix::io::Errno::WOULDBLOCK => "another process uses it".to_owned(),
                other => other.to_string(),
            };
            StartError::new(format!("lock data_dir {}", path.display()), reason)
        })?;
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    /// A path inside it.
    pub(super) fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The text of a small file, made by `first` when there is none.
    pub(super) fn remembered(
        &self,
        name: &str,
        first: impl FnOnce() -> Result<String, StartError>,
    ) -> Result<String, StartError> {
        let path = self.join(name);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(text.trim().to_owned()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let text = first()?;
                durable_write(&path, &text)?;
                Ok(text)
            }
            Err(error) => Err(StartError::new(format!("read {}", path.display()), error)),
        }
    }
}
