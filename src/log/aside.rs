//! A damaged log of which others have a copy is set aside, for whoever wants to look.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

const SUFFIX: &str = "damaged";

/// Moves the log in `dir`, which nobody has open, out of the way; only the last one so moved is kept.
///
/// # Errors
/// When the directory cannot be moved.
pub fn set_aside(dir: &Path) -> io::Result<PathBuf> {
    let aside = dir.with_extension(SUFFIX);
    match fs::remove_dir_all(&aside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    fs::rename(dir, &aside)?;
    if let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        File::open(parent)?.sync_all()?;
    }
    Ok(aside)
}
