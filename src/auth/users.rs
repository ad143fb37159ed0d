//! Checking passwords while the primary runs: the file as it is now, few checks at a time, and a
//! short memory so that the many token requests of one client cost one hash.

use std::{
    collections::BTreeMap,
    os::unix::fs::MetadataExt as _,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use aws_lc_rs::hmac;
use lru::LruCache;
use outport_proto::Timestamp;
use tokio::sync::Semaphore;

use super::{
    PasswordError, Secret, files,
    password::{self, Hash, PASSWORD_BYTES_MAX, USER_BYTES_MAX},
    random,
};
use crate::{blocking, clock::SharedClock};

/// How long a password that was right need not be hashed again.
const REMEMBERED: Duration = Duration::from_secs(300);
/// Passwords remembered at most.
const REMEMBERED_MAX: usize = 4096;
/// Checks that may wait for their turn; beyond that callers are told to come back.
const WAITING_MAX: usize = 128;
/// Wrong passwords a user may have within [`FAILURE_WINDOW`] before further ones are not even hashed.
const FAILURES_MAX: u32 = 20;
const FAILURE_WINDOW: Duration = Duration::from_secs(60);
/// Users whose failures are counted at most.
const FAILURES_TRACKED_MAX: usize = 4096;

/// The users of a password file. The file is read again whenever it changes; a file that has
/// become unreadable leaves the users as they were and is reported once.
pub struct Users {
    path: PathBuf,
    clock: SharedClock,
    loaded: Mutex<Loaded>,
    running: Arc<Semaphore>,
    waiting: Semaphore,
    memory_key: hmac::Key,
    remembered: Mutex<LruCache<[u8; 32], Timestamp>>,
    failures: Mutex<LruCache<String, Failures>>,
}

struct Loaded {
    stamp: Option<Stamp>,
    users: Arc<BTreeMap<String, Hash>>,
    /// Hashed against when there is no such user, so that the answer takes as long.
    decoy: Hash,
}

/// What changes when a file is replaced or written.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
}

struct Failures {
    count: u32,
    since: Timestamp,
}

impl Users {
    /// Reads the password file, which must exist.
    pub fn open(path: impl Into<PathBuf>, clock: SharedClock) -> Result<Self, PasswordError> {
        let path = path.into();
        let key = random::bytes::<32>().map_err(|_| PasswordError::Hash)?;
        let stamp = stamp_of(&path);
        let text = files::read_text(&path)?.ok_or_else(|| PasswordError::Missing { path: path.clone() })?;
        let users = password::parse(&path, &text)?;
        let decoy = match users.values().next() {
            Some(hash) => hash.clone(),
            None => Hash::of("decoy")?,
        };
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Self {
            path,
            clock,
            loaded: Mutex::new(Loaded { stamp, users: Arc::new(users), decoy }),
            running: Arc::new(Semaphore::new(cores.min(4))),
            waiting: Semaphore::new(WAITING_MAX),
            memory_key: hmac::Key::new(hmac::HMAC_SHA256, &key),
            remembered: Mutex::new(LruCache::unbounded()),
            failures: Mutex::new(LruCache::unbounded()),
        })
    }

    /// Whether `password` is the password of `user`. An unknown user takes as long as a wrong password.
    pub async fn check(&self, user: &str, password: &Secret) -> Result<(), CheckError> {
        // Nobody's name is that long, and failures are counted by name.
        if password.expose().len() > PASSWORD_BYTES_MAX || user.len() > USER_BYTES_MAX {
            return Err(CheckError::Wrong);
        }
        let (hash, decoy) = self.hash_of(user);
        let memory = hash.as_ref().map(|hash| self.memory_of(user, password, hash));
        if memory.is_some_and(|memory| self.remembers(&memory)) {
            return Ok(());
        }
        if self.has_failed_often(user) {
            return Err(CheckError::TooMany);
        }
        let known = hash.is_some();
        let matches = self.hash_in_turn(hash.unwrap_or(decoy), password.clone()).await?;
        match memory {
            Some(memory) if known && matches => {
                self.remember(memory);
                Ok(())
            }
            _ => {
                self.count_failure(user);
                Err(CheckError::Wrong)
            }
        }
    }

    /// Changes with the user's password, and says nothing about it; `None` without such a user.
    pub(super) fn fingerprint(&self, user: &str, key: &hmac::Key) -> Option<[u8; 16]> {
        let hash = self.hash_of(user).0?;
        let tag = hmac::sign(key, format!("{user}\0{hash}").as_bytes());
        tag.as_ref().first_chunk().copied()
    }

    /// The user's hash and the decoy, from the file as it is now.
    fn hash_of(&self, user: &str) -> (Option<Hash>, Hash) {
        let stamp = stamp_of(&self.path);
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if loaded.stamp != stamp {
            loaded.stamp = stamp;
            match self.read() {
                Ok(users) => {
                    tracing::info!(path = %self.path.display(), users = users.len(), "password file read again");
                    loaded.users = Arc::new(users);
                }
                Err(error) => tracing::error!(%error, "password file not usable, users stay as they were"),
            }
        }
        (loaded.users.get(user).cloned(), loaded.decoy.clone())
    }

    fn read(&self) -> Result<BTreeMap<String, Hash>, PasswordError> {
        let missing = || PasswordError::Missing { path: self.path.clone() };
        password::parse(&self.path, &files::read_text(&self.path)?.ok_or_else(missing)?)
    }

    async fn hash_in_turn(&self, hash: Hash, password: Secret) -> Result<bool, CheckError> {
        let _waiting = self.waiting.try_acquire().map_err(|_| CheckError::Busy)?;
        let turn = Arc::clone(&self.running).acquire_owned().await.map_err(|_| CheckError::Busy)?;
        let check = blocking::spawn(move || {
            let _turn = turn;
            hash.matches(password.expose())
        });
        check.await.map_err(|_| CheckError::Busy)
    }

    /// The hash is part of it: a changed password is forgotten by itself.
    fn memory_of(&self, user: &str, password: &Secret, hash: &Hash) -> [u8; 32] {
        let mut context = hmac::Context::with_key(&self.memory_key);
        for part in [user, &hash.to_string(), password.expose()] {
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part.as_bytes());
        }
        let mut memory = [0; 32];
        memory.copy_from_slice(context.sign().as_ref());
        memory
    }

    fn remembers(&self, memory: &[u8; 32]) -> bool {
        let mut remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        remembered.get(memory).is_some_and(|until| self.clock.now() < *until)
    }

    fn remember(&self, memory: [u8; 32]) {
        let mut remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        remembered.put(memory, self.clock.now().plus(REMEMBERED));
        if remembered.len() > REMEMBERED_MAX {
            remembered.pop_lru();
        }
    }

    fn has_failed_often(&self, user: &str) -> bool {
        let now = self.clock.now();
        let failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        failures.peek(user).is_some_and(|failures| {
            failures.count >= FAILURES_MAX && now.since(failures.since) < FAILURE_WINDOW
        })
    }

    fn count_failure(&self, user: &str) {
        let now = self.clock.now();
        let mut tracked = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        match tracked.get_mut(user) {
            Some(failures) if now.since(failures.since) < FAILURE_WINDOW => failures.count += 1,
            _ => {
                tracked.put(user.to_owned(), Failures { count: 1, since: now });
            }
        }
        if tracked.len() > FAILURES_TRACKED_MAX {
            tracked.pop_lru();
        }
    }
}

impl std::fmt::Debug for Users {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Users").field("path", &self.path).finish_non_exhaustive()
    }
}

fn stamp_of(path: &std::path::Path) -> Option<Stamp> {
    let data = std::fs::metadata(path).ok()?;
    Some(Stamp { inode: data.ino(), bytes: data.len(), modified: (data.mtime(), data.mtime_nsec()) })
}

/// Why a password is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CheckError {
    /// No such user, or not their password.
    #[error("wrong user or password")]
    Wrong,
    /// Too many wrong passwords for this user lately.
    #[error("too many wrong passwords, try again in a minute")]
    TooMany,
    /// Too many checks are waiting already.
    #[error("too many password checks at once")]
    Busy,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;

    struct World {
        _directory: tempfile::TempDir,
        path: PathBuf,
        clock: Arc<ManualClock>,
        users: Users,
    }

    fn world() -> World {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("users");
        let bcrypt = bcrypt::hash("s3cret", 4).unwrap();
        std::fs::write(&path, format!("ana:{bcrypt}\n")).unwrap();
        let clock = ManualClock::at(Timestamp::from_secs(1_800_000_000));
        let users = Users::open(&path, clock.clone()).unwrap();
        World { _directory: directory, path, clock, users }
    }

    impl World {
        async fn check(&self, user: &str, password: &str) -> Result<(), CheckError> {
            self.users.check(user, &password.into()).await
        }
    }

    #[tokio::test]
    async fn the_right_password_of_the_right_user() {
        let world = world();
        assert_eq!(world.check("ana", "s3cret").await, Ok(()));
        assert_eq!(world.check("ana", "s3cret").await, Ok(()));
        let long = "x".repeat(PASSWORD_BYTES_MAX + 1);
        for (user, password) in [("ana", "s3cre"), ("ana", ""), ("bob", "s3cret"), ("", ""), ("ana", &long)] {
            assert_eq!(world.check(user, password).await, Err(CheckError::Wrong), "{user}");
        }
        let missing = Users::open("/no/such/file", world.clock.clone()).unwrap_err().to_string();
        assert!(missing.contains("/no/such/file"), "{missing}");
    }

    #[tokio::test]
    async fn a_changed_file_counts_at_once_and_a_broken_one_does_not() {
        let world = world();
        let key = hmac::Key::new(hmac::HMAC_SHA256, &[1; 32]);
        assert_eq!(world.check("ana", "s3cret").await, Ok(()));
        let before = world.users.fingerprint("ana", &key);
        assert!(before.is_some() && world.users.fingerprint("bob", &key).is_none());
        password::add(&world.path, "ana", "other").unwrap();
        assert_eq!(world.check("ana", "s3cret").await, Err(CheckError::Wrong));
        assert_eq!(world.check("ana", "other").await, Ok(()));
        assert_ne!(world.users.fingerprint("ana", &key), before);
        std::fs::write(&world.path, "broken").unwrap();
        assert_eq!(world.check("ana", "other").await, Ok(()));
        std::fs::remove_file(&world.path).unwrap();
        assert_eq!(world.check("ana", "other").await, Ok(()));
        std::fs::write(&world.path, "").unwrap();
        assert_eq!(world.check("ana", "other").await, Err(CheckError::Wrong));
    }

    #[tokio::test]
    async fn guessing_is_slowed_down_for_one_user_and_a_known_client_does_not_notice() {
        let world = world();
        assert_eq!(world.check("ana", "s3cret").await, Ok(()));
        for _ in 0..FAILURES_MAX {
            assert_eq!(world.check("ana", "guess").await, Err(CheckError::Wrong));
        }
        assert_eq!(world.check("ana", "guess").await, Err(CheckError::TooMany));
        assert_eq!(world.check("ana", "s3cret").await, Ok(()), "remembered");
        assert_eq!(world.check("bob", "guess").await, Err(CheckError::Wrong));
        world.clock.set(Timestamp::from_secs(1_800_000_060));
        assert_eq!(world.check("ana", "guess").await, Err(CheckError::Wrong));
    }
}
