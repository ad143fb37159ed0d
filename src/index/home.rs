//! The directory an index lives in, and whether to believe what stands there.
//!
//! ```text
//! index/
//!   lock            held while the index is open
//!   checkpoint      what was last made durable, under which boot of the kernel, shut down cleanly or not
//!   damaged         why the database must not be used again, once that was noticed
//!   db/             the database
//!   doubtful-<n>/   the last database that was not believed, kept for whoever wants to look
//! ```
//!
//! A killed process leaves all it wrote in the kernel's hands, so its database is used after a
//! check. A power cut does not, so an unclean database from another boot is not.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use bytes::Bytes;
use rustix::fs::{FlockOperation, flock};

use super::{
    IndexError,
    row::{self, State},
};

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// Sealed like a row under this name.
const MARKER: &str = "checkpoint";
const MARKER_NEW: &str = "checkpoint.new";
const DAMAGED: &str = "damaged";
const DATABASE: &str = "db";
const DOUBTFUL: &str = "doubtful-";

/// A name for this run of the kernel; `None` where that cannot be known.
pub(crate) fn boot_id() -> Option<String> {
    fs::read_to_string(BOOT_ID).ok().map(|id| id.trim().to_owned())
}

/// The directory, locked.
#[derive(Debug)]
pub(super) struct Home {
    dir: PathBuf,
    /// Which boot of the kernel this is; `None` where that cannot be known: then no unclean
    /// database is believed.
    boot: Option<String>,
    /// Why checkpoints stopped, once one failed: what a failed fsync left behind cannot be known.
    stopped: Mutex<Option<String>>,
    /// Locked until it is closed.
    _lock: File,
}

/// What stands in the directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// No database.
    Nothing,
    /// A database that may be used, holding at least this state.
    Database(Marker),
    /// A database that must not be used, and why.
    Doubtful(String),
}

/// What the checkpoint file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Marker {
    /// The state made durable.
    pub(super) state: State,
    /// Whether nothing was written since.
    pub(super) clean: bool,
    /// The boot it was written under.
    pub(super) boot: Option<String>,
}

impl Home {
    /// Creates the directory if need be, and locks it.
    ///
    /// # Errors
    /// When that fails, or when another process has the index open.
    pub(super) fn enter(dir: &Path) -> Result<Self, IndexError> {
        fs::create_dir_all(dir).map_err(failed("create the index directory"))?;
        let lock = File::create(dir.join("lock")).map_err(failed("create the index lock"))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .map_err(|error| failed("lock the index, which another process may have open")(error.into()))?;
        Ok(Self { dir: dir.to_owned(), boot: boot_id(), stopped: Mutex::new(None), _lock: lock })
    }

    /// As seen by a machine that has gone down and come up again.
    #[cfg(test)]
    pub(super) fn of_another_boot(dir: &Path) -> Self {
        Self { boot: Some("another".into()), ..Self::enter(dir).unwrap() }
    }

    /// Where all of it is.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where the database is.
    pub(super) fn database(&self) -> PathBuf {
        self.dir.join(DATABASE)
    }

    /// What stands here, judged by everything but the database itself.
    pub(super) fn find(&self) -> Found {
        if !self.database().exists() {
            return Found::Nothing;
        }
        if let Ok(reason) = fs::read_to_string(self.dir.join(DAMAGED)) {
            return Found::Doubtful(reason);
        }
        let marker = match fs::read(self.dir.join(MARKER)) {
            Ok(bytes) => decode_marker(&bytes.into()),
            Err(error) => return Found::Doubtful(format!("no checkpoint can be read: {error}")),
        };
        match marker {
            Err(_) => Found::Doubtful("the checkpoint file is damaged".into()),
            Ok(marker) if marker.clean || (marker.boot.is_some() && marker.boot == self.boot) => {
                Found::Database(marker)
            }
            Ok(_) => Found::Doubtful("the machine went down while the index was in use".into()),
        }
    }

    /// Moves the database out of the way; only the last one so moved is kept.
    ///
    /// # Errors
    /// When the directory cannot be changed.
    pub(super) fn set_aside(&self) -> Result<PathBuf, IndexError> {
        let older = self.doubtful().map_err(failed("list the index directory"))?;
        let number = older.iter().map(|(number, _)| number + 1).max().unwrap_or(1);
        let aside = self.dir.join(format!("{DOUBTFUL}{number}"));
        fs::rename(self.database(), &aside).map_err(failed("set the doubtful database aside"))?;
        for name in [DAMAGED, MARKER] {
            match fs::remove_file(self.dir.join(name)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(failed("remove what belongs to the doubtful database")(error));
                }
                _ => {}
            }
        }
        for (_, path) in older {
            fs::remove_dir_all(path).map_err(failed("remove an older doubtful database"))?;
        }
        self.sync_dir()?;
        Ok(aside)
    }

    fn doubtful(&self) -> io::Result<Vec<(u64, PathBuf)>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            let name = entry.file_name();
            let number = name.to_str().and_then(|name| name.strip_prefix(DOUBTFUL));
            if let Some(number) = number.and_then(|number| number.parse().ok()) {
                found.push((number, entry.path()));
            }
        }
        Ok(found)
    }

    /// Flushes with `flush`, then writes down that `state` is durable. `clean`: and that nothing
    /// will be written after it.
    ///
    /// # Errors
    /// When either fails; from then on, always.
    pub(super) fn checkpoint(
        &self,
        state: State,
        clean: bool,
        flush: impl FnOnce() -> Result<(), IndexError>,
    ) -> Result<(), IndexError> {
        let mut stopped = self.stopped.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(reason) = stopped.as_ref() {
            return Err(IndexError::Database { action: "make a checkpoint", reason: reason.clone() });
        }
        let marker = Marker { state, clean, boot: self.boot.clone() };
        let done = flush().and_then(|()| {
            self.write_marker(&marker).map_err(failed("write the checkpoint file"))?;
            self.sync_dir()
        });
        if let Err(error) = &done {
            *stopped = Some(format!("an earlier one failed: {error}"));
        }
        done
    }

    fn write_marker(&self, marker: &Marker) -> io::Result<()> {
        let new = self.dir.join(MARKER_NEW);
        let mut file = File::create(&new)?;
        file.write_all(&encode_marker(marker))?;
        file.sync_all()?;
        fs::rename(new, self.dir.join(MARKER))
    }

    fn sync_dir(&self) -> Result<(), IndexError> {
        let sync = |dir: &Path| File::open(dir)?.sync_all();
        sync(&self.dir).map_err(failed("fsync the index directory"))
    }

    /// Notes that the database is damaged, for the next start to find.
    pub(super) fn note_damage(&self, reason: &str) -> io::Result<()> {
        let mut file = File::create(self.dir.join(DAMAGED))?;
        file.write_all(reason.as_bytes())?;
        file.sync_all()
    }

    /// Takes back what [`Home::note_damage`] noted: the database is a new one.
    pub(super) fn forget_damage(&self) -> Result<(), IndexError> {
        fs::remove_file(self.dir.join(DAMAGED)).map_err(failed("remove the note of damage"))?;
        self.sync_dir()
    }
}

fn failed(action: &'static str) -> impl Fn(io::Error) -> IndexError {
    move |error| IndexError::Database { action, reason: error.to_string() }
}

fn encode_marker(marker: &Marker) -> Bytes {
    let mut fields = row::encode_state(&marker.state);
    fields.push(marker.clean.into());
    fields.extend_from_slice(marker.boot.as_deref().unwrap_or_default().as_bytes());
    row::seal(MARKER.as_bytes(), &fields)
}

fn decode_marker(bytes: &Bytes) -> Result<Marker, IndexError> {
    let malformed = || IndexError::Damaged("the checkpoint file is malformed".into());
    let fields = row::unseal(MARKER.as_bytes(), bytes)?;
    let (state, rest) = fields.split_at_checked(row::STATE_BYTES).ok_or_else(malformed)?;
    let (clean, boot) = rest.split_first().ok_or_else(malformed)?;
    let boot = std::str::from_utf8(boot).map_err(|_| malformed())?;
    let boot = Some(boot.to_owned()).filter(|boot| !boot.is_empty());
    Ok(Marker { state: row::decode_state(state)?, clean: *clean == 1, boot })
}

#[cfg(test)]
mod tests {
    use outport_proto::Offset;

    use super::{super::open::NOTHING, *};

    fn home(dir: &Path) -> Home {
        Home::enter(dir).unwrap()
    }

    fn mark(home: &Home, clean: bool) -> State {
        let state = State { applied: Offset::new(1, 9), hash: [1; 32], ..NOTHING };
        home.checkpoint(state, clean, || Ok(())).unwrap();
        state
    }

    #[test]
    fn a_database_is_believed_when_clean_or_of_this_boot() {
        let dir = tempfile::tempdir().unwrap();
        let mut home = home(dir.path());
        assert_eq!(home.find(), Found::Nothing);
        fs::create_dir(home.database()).unwrap();
        assert!(matches!(home.find(), Found::Doubtful(_)), "no marker");
        for clean in [true, false] {
            let state = mark(&home, clean);
            let marker = Marker { state, clean, boot: home.boot.clone() };
            assert_eq!(home.find(), Found::Database(marker), "same boot, clean: {clean}");
        }
        home.boot = Some("another".into());
        assert!(matches!(home.find(), Found::Doubtful(_)), "another boot, not clean");
        home.boot = None;
        assert!(matches!(home.find(), Found::Doubtful(_)), "unknown boot, not clean");
        mark(&home, true);
        home.boot = Some("another".into());
        assert!(matches!(home.find(), Found::Database(_)), "another boot, clean");
        home.note_damage("a row fails its checksum").unwrap();
        assert_eq!(home.find(), Found::Doubtful("a row fails its checksum".into()));
    }

    #[test]
    fn a_damaged_marker_is_doubt() {
        let dir = tempfile::tempdir().unwrap();
        let home = home(dir.path());
        fs::create_dir(home.database()).unwrap();
        mark(&home, true);
        let path = dir.path().join(MARKER);
        let good = fs::read(&path).unwrap();
        for position in 0..good.len() {
            let mut bad = good.clone();
            bad[position] ^= 4;
            fs::write(&path, bad).unwrap();
            assert!(matches!(home.find(), Found::Doubtful(_)), "byte {position}");
        }
    }

    #[test]
    fn only_the_last_doubtful_database_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let home = home(dir.path());
        for number in 1..=3 {
            fs::create_dir(home.database()).unwrap();
            let aside = home.set_aside().unwrap();
            assert_eq!(aside, dir.path().join(format!("doubtful-{number}")));
            assert_eq!(home.doubtful().unwrap(), [(number, aside)]);
            assert_eq!(home.find(), Found::Nothing);
        }
    }

    #[test]
    fn two_processes_cannot_have_it_open() {
        let dir = tempfile::tempdir().unwrap();
        let first = home(dir.path());
        assert!(matches!(Home::enter(dir.path()), Err(IndexError::Database { .. })));
        drop(first);
        home(dir.path());
    }

    #[test]
    fn after_a_failed_fsync_no_checkpoint_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let home = home(dir.path());
        let state = mark(&home, false);
        let broken = || Err(IndexError::Database { action: "fsync", reason: "EIO".into() });
        assert!(home.checkpoint(state, true, broken).is_err());
        assert!(home.checkpoint(state, true, || Ok(())).is_err());
    }
}
