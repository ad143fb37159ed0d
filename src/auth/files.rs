//! Files that hold secrets: readable by their owner alone, replaced whole or not at all.

use std::{
    fs, io,
    io::Write as _,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _, fchown},
    path::{Path, PathBuf},
};

/// A file that cannot be read or written. The message names it.
#[derive(Debug, thiserror::Error)]
#[error("{}: {source}", path.display())]
pub struct FileError {
    /// Which file.
    pub path: PathBuf,
    /// What the system says.
    pub source: io::Error,
}

impl FileError {
    fn at(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self { path, source }
    }
}

/// The file's text; `None` when there is no such file.
///
/// # Errors
/// When it is there and cannot be read.
pub fn read_text(path: &Path) -> Result<Option<String>, FileError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(FileError::at(path)(error)),
    }
}

/// Writes the file with mode 0600: a temporary file beside it, fsync, rename, fsync of the
/// directory. A reader sees the old text or the new one.
///
/// # Errors
/// When it cannot be written.
pub fn write_private(path: &Path, text: &str) -> Result<(), FileError> {
    replace(path, text, 0o600)
}

/// The same with mode 0644, for certificates.
pub(super) fn write_public(path: &Path, text: &str) -> Result<(), FileError> {
    replace(path, text, 0o644)
}

/// Waits until nobody else is between reading and replacing a file beside `path`; for as long as
/// the answer is kept. The directory is what is locked: the file itself is another one each time.
pub(super) fn lock_beside(path: &Path) -> Result<fs::File, FileError> {
    let lock = || {
        let directory = fs::File::open(directory_of(path))?;
        directory.lock()?;
        Ok(directory)
    };
    lock().map_err(FileError::at(path))
}

fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn replace(path: &Path, text: &str, mode: u32) -> Result<(), FileError> {
    let directory = directory_of(path);
    let write = || {
        let mut file = tempfile::Builder::new()
            .prefix(".outport-")
            .permissions(fs::Permissions::from_mode(mode))
            .tempfile_in(directory)?;
        file.write_all(text.as_bytes())?;
        if let Ok(old) = fs::metadata(path) {
            // The service that reads it may be another user than the one who changes it. Only
            // root can give a file away.
            let _ = fchown(file.as_file(), Some(old.uid()), Some(old.gid()));
        }
        file.as_file().sync_all()?;
        file.persist(path).map_err(|error| error.error)?;
        fs::File::open(directory)?.sync_all()
    };
    write().map_err(FileError::at(path))
}

/// Makes the directory, and those above it, for the owner alone.
pub(super) fn create_private_directory(path: &Path) -> Result<(), FileError> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(FileError::at(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_private_file_is_replaced_whole_and_stays_private() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("secret");
        assert_eq!(read_text(&path).unwrap(), None);
        write_private(&path, "one").unwrap();
        write_private(&path, "two").unwrap();
        assert_eq!(read_text(&path).unwrap().as_deref(), Some("two"));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "no leftovers");
        let missing = directory.path().join("no/such/secret");
        assert!(write_private(&missing, "x").unwrap_err().to_string().contains("no/such/secret"));
    }
}
