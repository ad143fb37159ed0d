//! A file that is put aside when it is large or old enough.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::writer::{Line, Sink};

/// Where it is, and when it is put aside.
#[derive(Clone, Debug)]
pub struct FileOptions {
    /// The file that is written to; those put aside stand beside it, `NAME.TIME`.
    pub path: PathBuf,
    /// It is put aside before it would be larger, in bytes.
    pub bytes_max: u64,
    /// It is put aside when its first line is older.
    pub age_max: Duration,
    /// So many are kept aside; older ones are removed.
    pub keep: usize,
}

/// Such a file. Lines are appended whole, or not at all.
#[derive(Debug)]
pub struct RotatingFile {
    options: FileOptions,
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    file: File,
    bytes: u64,
    begun: SystemTime,
}

impl RotatingFile {
    /// Opens it and goes on where it ends.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn open(options: FileOptions) -> io::Result<Self> {
        let open = Open::at(&options.path)?;
        Ok(Self { options, open: Some(open) })
    }

    fn put_aside(&mut self, now: SystemTime) -> io::Result<()> {
        let Some(open) = self.open.take() else { return Ok(()) };
        if open.bytes == 0 {
            self.open = Some(Open { begun: now, ..open });
            return Ok(());
        }
        open.file.sync_data()?;
        fs::rename(&self.options.path, self.name_aside(now)?)?;
        for old in self.aside()?.iter().rev().skip(self.options.keep) {
            fs::remove_file(old)?;
        }
        Ok(())
    }

    /// A name that sorts by time and that nobody has.
    fn name_aside(&self, now: SystemTime) -> io::Result<PathBuf> {
        let now = OffsetDateTime::from(now).truncate_to_second();
        let text = now.format(&Rfc3339).map_err(io::Error::other)?.replace(['-', ':'], "");
        let beside = |suffix: &str| {
            let mut name = self.options.path.clone().into_os_string();
            name.push(suffix);
            PathBuf::from(name)
        };
        let names = (0..1000).map(|number| match number {
            0 => beside(&format!(".{text}")),
            number => beside(&format!(".{text}-{number:03}")),
        });
        let mut free = names.filter(|name| !name.exists());
        free.next().ok_or_else(|| io::Error::other("every name to put it aside under is taken"))
    }

    /// Those put aside, the oldest first.
    fn aside(&self) -> io::Result<Vec<PathBuf>> {
        let path = &self.options.path;
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let prefix = format!("{}.", path.file_name().unwrap_or_default().to_string_lossy());
        let is_ours = |entry: &fs::DirEntry| {
            let name = entry.file_name();
            let time = name.to_string_lossy().strip_prefix(&prefix).map(str::to_owned);
            time.is_some_and(|time| {
                time.len() >= 16 && time.as_bytes()[8] == b'T' && time.as_bytes()[15] == b'Z'
            })
        };
        let mut found = Vec::new();
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            if is_ours(&entry) {
                found.push(entry.path());
            }
        }
        found.sort();
        Ok(found)
    }
}

impl Open {
    fn at(path: &Path) -> io::Result<Self> {
        let file = File::options().append(true).create(true).mode(0o640).open(path)?;
        let metadata = file.metadata()?;
        let begun = metadata.created().or_else(|_| metadata.modified())?;
        let begun = if metadata.len() == 0 { SystemTime::now() } else { begun };
        Ok(Self { bytes: metadata.len(), begun, file })
    }

    /// Whether somebody put it aside or removed it: then what is appended to it nobody finds.
    fn is_gone(&self, path: &Path) -> bool {
        let (Ok(own), Ok(there)) = (self.file.metadata(), fs::metadata(path)) else { return true };
        (own.dev(), own.ino()) != (there.dev(), there.ino())
    }
}

impl Sink for RotatingFile {
    fn take(&mut self, _: &[Line], lines: &[u8]) -> io::Result<()> {
        let now = SystemTime::now();
        if self.open.as_ref().is_some_and(|open| open.is_gone(&self.options.path)) {
            self.open = None;
        }
        let is_due = |open: &Open| {
            let age = now.duration_since(open.begun).unwrap_or_default();
            open.bytes + lines.len() as u64 > self.options.bytes_max || age >= self.options.age_max
        };
        if self.open.as_ref().is_some_and(is_due)
            && let Err(error) = self.put_aside(now)
        {
            tracing::error!(%error, "the audit log cannot be put aside and goes on as it is");
        }
        let open = match &mut self.open {
            Some(open) => open,
            closed => closed.insert(Open::at(&self.options.path)?),
        };
        if let Err(error) = open.file.write_all(lines) {
            // A part of a line must not run into the next one.
            if open.file.set_len(open.bytes).is_err() {
                self.open = None;
            }
            return Err(error);
        }
        open.bytes += lines.len() as u64;
        Ok(())
    }

    fn sync(&mut self) {
        if let Some(Err(error)) = self.open.as_ref().map(|open| open.file.sync_data()) {
            tracing::error!(%error, "the audit log is perhaps not on the disk");
        }
    }
}

/// Standard output.
#[derive(Debug)]
pub struct Stdout;

impl Sink for Stdout {
    fn take(&mut self, _: &[Line], lines: &[u8]) -> io::Result<()> {
        let mut stdout = io::stdout().lock();
        stdout.write_all(lines)?;
        stdout.flush()
    }
}
