//! What a site remembers of its primary, so that a restart without it still verifies tokens and
//! still knows which cluster this is.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    time::Duration,
};

use outport_proto::{
    codec,
    frame::{FromPrimary, Keys, Welcome},
};
use tokio::time::Instant;

/// File name inside the site's data directory.
const FILE: &str = "session";

/// The last `Welcome`, with the newest keys, in a file that only its owner may read.
#[derive(Clone, Debug)]
pub struct Memory {
    path: PathBuf,
    last: Option<Box<Welcome>>,
    /// Whether the file does not say it yet.
    is_news: bool,
    /// When that could not be changed last.
    failed_at: Option<Instant>,
}

/// A disk that takes nothing is left alone for so long.
const REST: Duration = Duration::from_secs(10);

impl Memory {
    /// Reads what the directory `dir` remembers. What cannot be decoded is forgotten: the next
    /// session teaches it anew.
    ///
    /// # Errors
    /// When the file is there and cannot be read.
    pub fn open(dir: &Path) -> Result<Self, MemoryError> {
        let path = dir.join(FILE);
        let last = match fs::read(&path) {
            Ok(bytes) => match codec::decode_frame(&bytes) {
                Ok(FromPrimary::Welcome(welcome)) => Some(welcome),
                _ => {
                    tracing::warn!(path = %path.display(), "what this site remembered of its primary is damaged");
                    None
                }
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(source) => return Err(MemoryError { path, source }),
        };
        Ok(Self { path, last, is_news: false, failed_at: None })
    }

    /// What the primary said last.
    pub fn last(&self) -> Option<&Welcome> {
        self.last.as_deref()
    }

    /// The newest epoch the primary has told of; 0 before the first session.
    pub fn epoch(&self) -> u64 {
        self.last().map_or(0, |welcome| welcome.head.epoch)
    }

    /// The cluster this site belongs to, once it had a session.
    pub fn cluster(&self) -> Option<&str> {
        self.last().map(|welcome| welcome.cluster.as_str())
    }

    /// Takes in a `Welcome`.
    pub fn welcomed(&mut self, welcome: Box<Welcome>) {
        if self.last.as_deref().is_none_or(|last| lasting(last) != lasting(&welcome)) {
            self.has_news();
        }
        self.last = Some(welcome);
    }

    /// Takes in newer keys.
    pub fn rekeyed(&mut self, keys: Keys) {
        if let Some(last) = &mut self.last
            && last.keys != keys
        {
            last.keys = keys;
            self.has_news();
        }
    }

    /// News are worth a try at once.
    fn has_news(&mut self) {
        (self.is_news, self.failed_at) = (true, None);
    }

    /// Whether it is time to [`Memory::save`]: there is something, and it did not fail a moment ago.
    pub fn is_due(&self) -> bool {
        self.is_news && self.failed_at.is_none_or(|at| at.elapsed() >= REST)
    }

    /// What was saved was the newest.
    pub fn saved(&mut self) {
        (self.is_news, self.failed_at) = (false, None);
    }

    /// It could not be saved.
    pub fn failed(&mut self) {
        self.failed_at = Some(Instant::now());
    }

    /// Makes what is remembered durable. Blocks on the disk.
    ///
    /// # Errors
    /// When the file cannot be replaced; it is as it was then.
    pub fn save(&self) -> Result<(), MemoryError> {
        let Some(last) = &self.last else { return Ok(()) };
        replace(&self.path, FromPrimary::Welcome(last.clone()))
            .map_err(|source| MemoryError { path: self.path.clone(), source })
    }
}

/// What of a `Welcome` still matters after the session.
fn lasting(welcome: &Welcome) -> impl PartialEq + '_ {
    (
        &welcome.cluster,
        welcome.head.epoch,
        &welcome.keys,
        &welcome.token_realm,
        &welcome.token_service,
        &welcome.public_url,
        &welcome.path,
    )
}

/// Puts a frame in the place of what the file held, durable and for its owner alone.
pub(super) fn replace(path: &Path, frame: FromPrimary) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    // A fresh temporary file is readable by its owner alone.
    let mut file = tempfile::NamedTempFile::new_in(dir)?;
    file.write_all(&codec::encode_frame(&frame).map_err(io::Error::other)?)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    File::open(dir)?.sync_all()
}

/// The file failed.
#[derive(Debug, thiserror::Error)]
#[error("{}: {source}", path.display())]
pub struct MemoryError {
    /// Which file.
    pub path: PathBuf,
    /// The operating system's error.
    pub source: io::Error,
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use outport_proto::{
        Offset,
        frame::{AuthMode, Resume, SealKey},
    };

    use super::*;

    fn keys(generation: u64) -> Keys {
        Keys {
            auth: AuthMode::Outport { jwks: "{}".to_owned(), issuer: "issuer".to_owned() },
            public_pull: vec!["public/**".to_owned()],
            seal: vec![SealKey { id: 7, secret: [9; 32] }],
            generation,
        }
    }

    fn welcome() -> Welcome {
        Welcome {
            version: 1,
            cluster: "c1".to_owned(),
            head: Offset::new(1, 4),
            floor: Offset::new(1, 0),
            resume: Resume::Tail,
            keys: keys(1),
            token_realm: "https://hub/token".to_owned(),
            token_service: "hub".to_owned(),
            public_url: "https://hub".to_owned(),
            path: Vec::new(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_disk_that_takes_nothing_is_left_alone_for_a_while() {
        let dir = tempfile::tempdir().unwrap();
        let mut memory = Memory::open(dir.path()).unwrap();
        memory.welcomed(Box::new(welcome()));
        dir.close().unwrap();
        let mut tries = 0;
        // As often as heartbeats come, for a minute.
        for _ in 0..240 {
            if memory.is_due() {
                tries += 1;
                memory.save().unwrap_err();
                memory.failed();
            }
            tokio::time::advance(Duration::from_millis(250)).await;
        }
        assert_eq!(tries, 6);
        memory.failed();
        memory.rekeyed(keys(2));
        assert!(memory.is_due(), "what is new is worth a try");
    }

    #[test]
    fn a_restart_remembers_cluster_and_newest_keys() {
        let dir = tempfile::tempdir().unwrap();
        let mut memory = Memory::open(dir.path()).unwrap();
        assert_eq!(memory.cluster(), None);
        let welcome = welcome();
        memory.welcomed(Box::new(welcome.clone()));
        memory.rekeyed(keys(2));
        assert!(memory.is_due(), "until it is saved");
        memory.save().unwrap();
        memory.saved();
        memory.rekeyed(keys(2));
        memory.welcomed(Box::new(Welcome { head: Offset::new(1, 9), keys: keys(2), ..welcome }));
        assert!(!memory.is_due());

        let again = Memory::open(dir.path()).unwrap();
        assert_eq!(again.cluster(), Some("c1"));
        assert_eq!(again.last().map(|last| &last.keys), Some(&keys(2)));
        let mode = fs::metadata(dir.path().join(FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);

        fs::write(dir.path().join(FILE), b"nonsense").unwrap();
        assert_eq!(Memory::open(dir.path()).unwrap().cluster(), None);
    }
}
