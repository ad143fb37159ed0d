//! The primary's secrets on disk: the token signing key, the seal keys of every site and the key
//! of upload states. All are made at first start, in files with mode 0600.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use outport_proto::{
    SiteName, Timestamp,
    frame::{AuthMode, Keys, SealKey},
};
use serde::{Deserialize, Serialize};

use super::{
    FileError, SigningKey, TicketError, TicketOpener, UploadStates, files, random, signing::SigningKeyError,
};

/// A site's newest seal key is replaced when it is this old.
pub const SEAL_KEY_AGE_MAX: Duration = Duration::from_secs(24 * 3600);
/// A replaced seal key goes on opening tickets until it is this old, so that a site that was cut
/// off from the primary's log for days can still redirect.
pub const SEAL_KEY_KEPT: Duration = Duration::from_secs(7 * 24 * 3600);

const SIGNING_FILE: &str = "token-signing-key.pem";
const SEAL_FILE: &str = "seal-keys.json";
const UPLOAD_FILE: &str = "upload-state.key";

/// All secrets of a primary. Methods that take `now` may write to disk and block for it.
pub struct PrimaryKeys {
    seal_path: PathBuf,
    signing: SigningKey,
    jwks: String,
    uploads: UploadStates,
    secret: [u8; 32],
    seals: Mutex<Seals>,
    opener: Arc<TicketOpener>,
}

/// The file of seal keys.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Seals {
    /// Counts up with every change.
    generation: u64,
    /// The newest id given to a key; ids are unique among all sites and never used again.
    last_id: u32,
    /// Newest first.
    sites: BTreeMap<SiteName, Vec<StoredSeal>>,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredSeal {
    id: u32,
    secret: String,
    created_seconds: u64,
}

impl PrimaryKeys {
    /// Reads the secrets in `directory`, making the directory and any that is missing.
    pub fn open(directory: &Path) -> Result<Self, KeysError> {
        files::create_private_directory(directory)?;
        let signing_path = directory.join(SIGNING_FILE);
        let signing = match files::read_text(&signing_path)? {
            Some(pem) => SigningKey::from_pem(&pem)
                .map_err(|source| KeysError::Signing { path: signing_path, source })?,
            None => {
                let key = SigningKey::generate().map_err(|_| KeysError::Generate)?;
                files::write_private(&signing_path, key.to_pem().expose())?;
                key
            }
        };
        let upload_path = directory.join(UPLOAD_FILE);
        let secret = match files::read_text(&upload_path)? {
            Some(text) => decode_secret(text.trim()).ok_or(KeysError::Damaged { path: upload_path })?,
            None => {
                let secret = random::bytes::<32>().map_err(|_| KeysError::Generate)?;
                files::write_private(&upload_path, &URL_SAFE_NO_PAD.encode(secret))?;
                secret
            }
        };
        let seal_path = directory.join(SEAL_FILE);
        let seals: Seals = match files::read_text(&seal_path)? {
            Some(text) => {
                serde_json::from_str(&text).map_err(|_| KeysError::Damaged { path: seal_path.clone() })?
            }
            None => Seals::default(),
        };
        let jwks = SigningKey::jwks([&signing]).map_err(|_| KeysError::Generate)?;
        let opener = Arc::new(TicketOpener::default());
        let keys = Self {
            uploads: UploadStates::new(&derived(&secret, "upload state")),
            secret,
            opener,
            jwks,
            signing,
            seals: Mutex::new(Seals::default()),
            seal_path,
        };
        keys.arm_opener(&seals)?;
        *keys.seals.lock().unwrap_or_else(PoisonError::into_inner) = seals;
        Ok(keys)
    }

    /// The key tokens are signed with.
    pub fn signing_key(&self) -> &SigningKey {
        &self.signing
    }

    /// The public keys of the token service, as a JSON Web Key Set.
    pub fn jwks(&self) -> &str {
        &self.jwks
    }

    /// What sites let callers in by that have a token of the primary's own service.
    pub fn own_mode(&self, issuer: &str) -> AuthMode {
        AuthMode::Outport { jwks: self.jwks.clone(), issuer: issuer.to_owned() }
    }

    /// What seals and opens upload states.
    pub fn upload_states(&self) -> UploadStates {
        self.uploads.clone()
    }

    /// What opens tickets of every site; it follows every change made here.
    pub fn opener(&self) -> Arc<TicketOpener> {
        Arc::clone(&self.opener)
    }

    /// 32 bytes for sealing under `purpose`, derived from the primary's secret: equal at every start.
    pub(super) fn derived_key(&self, purpose: &str) -> [u8; 32] {
        derived(&self.secret, purpose)
    }

    /// Counts up with every change of keys.
    pub fn generation(&self) -> u64 {
        self.seals.lock().unwrap_or_else(PoisonError::into_inner).generation
    }

    /// What `site` is sent, but for the rules it needs. Its first seal key is made here, and one too old is replaced.
    pub fn keys_of(&self, site: &SiteName, auth: AuthMode, now: Timestamp) -> Result<Keys, KeysError> {
        let mut seals = self.seals.lock().unwrap_or_else(PoisonError::into_inner);
        let mut changed = seals.clone();
        changed.sites.entry(site.clone()).or_default();
        self.renew(&mut seals, changed, now)?;
        let stored = seals.sites.get(site).map(Vec::as_slice).unwrap_or_default();
        Ok(Keys {
            auth,
            public_pull: Vec::new(),
            seal: stored.iter().map(|seal| self.decode(seal)).collect::<Result<_, _>>()?,
            generation: seals.generation,
        })
    }

    /// Replaces seal keys that are too old and drops those no longer kept. Returns whether
    /// anything changed: if so, connected sites must be sent their keys again.
    pub fn rotate(&self, now: Timestamp) -> Result<bool, KeysError> {
        let mut seals = self.seals.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = seals.clone();
        self.renew(&mut seals, changed, now)
    }

    /// Forgets every site but these: tickets of the others open no more.
    pub fn keep_sites(&self, sites: &BTreeSet<SiteName>) -> Result<(), KeysError> {
        let mut seals = self.seals.lock().unwrap_or_else(PoisonError::into_inner);
        let mut changed = seals.clone();
        changed.sites.retain(|site, _| sites.contains(site));
        if changed.sites.len() == seals.sites.len() { Ok(()) } else { self.commit(&mut seals, changed) }
    }

    fn renew(&self, seals: &mut Seals, mut changed: Seals, now: Timestamp) -> Result<bool, KeysError> {
        let mut any = false;
        let Seals { sites, last_id, .. } = &mut changed;
        for keys in sites.values_mut() {
            let age = |seal: &StoredSeal| now.since(Timestamp::from_secs(seal.created_seconds));
            if keys.first().is_none_or(|newest| age(newest) >= SEAL_KEY_AGE_MAX) {
                *last_id = last_id.checked_add(1).ok_or(KeysError::Generate)?;
                let secret = random::text::<32>().map_err(|_| KeysError::Generate)?;
                keys.insert(0, StoredSeal { id: *last_id, secret, created_seconds: now.as_secs() });
                any = true;
            }
            let before = keys.len();
            let mut is_newest = true;
            keys.retain(|seal| std::mem::take(&mut is_newest) || age(seal) < SEAL_KEY_KEPT);
            any |= keys.len() != before;
        }
        if any {
            self.commit(seals, changed)?;
        }
        Ok(any)
    }

    /// On disk first, then in the opener, and only then handed out: no ticket is ever sealed with
    /// a key that this primary would not open, a restart included.
    fn commit(&self, seals: &mut Seals, mut changed: Seals) -> Result<(), KeysError> {
        changed.generation += 1;
        let text = serde_json::to_string(&changed).map_err(|_| KeysError::Generate)?;
        files::write_private(&self.seal_path, &text)?;
        self.arm_opener(&changed)?;
        *seals = changed;
        Ok(())
    }

    fn arm_opener(&self, seals: &Seals) -> Result<(), KeysError> {
        let mut keys = Vec::new();
        for (site, stored) in &seals.sites {
            for seal in stored {
                keys.push((site, self.decode(seal)?));
            }
        }
        self.opener.set_keys(keys.iter().map(|(site, key)| (*site, key)))?;
        Ok(())
    }

    fn decode(&self, seal: &StoredSeal) -> Result<SealKey, KeysError> {
        let secret =
            decode_secret(&seal.secret).ok_or_else(|| KeysError::Damaged { path: self.seal_path.clone() })?;
        Ok(SealKey { id: seal.id, secret })
    }
}

impl std::fmt::Debug for PrimaryKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PrimaryKeys").field("signing", &self.signing).finish_non_exhaustive()
    }
}

fn decode_secret(text: &str) -> Option<[u8; 32]> {
    URL_SAFE_NO_PAD.decode(text).ok()?.try_into().ok()
}

/// Why there are no keys.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file does not hold what was written there.
    #[error("{}: damaged key file", path.display())]
    Damaged {
        /// Which.
        path: PathBuf,
    },
    /// The signing key's file holds something else.
    #[error("{}: {source}", path.display())]
    Signing {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        source: SigningKeyError,
    },
    /// A key is refused by the library.
    #[error(transparent)]
    Ticket(#[from] TicketError),
    /// No new key could be made.
    #[error("a key cannot be generated")]
    Generate,
}

fn derived(secret: &[u8; 32], purpose: &str) -> [u8; 32] {
    use aws_lc_rs::hmac;
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
    let mut derived = [0; 32];
    derived.copy_from_slice(hmac::sign(&key, format!("outport derived key\0{purpose}").as_bytes()).as_ref());
    derived
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::auth::{MethodClass, TicketSealer, TicketUse};

    const START: u64 = 1_800_000_000;
    const DAY: u64 = 24 * 3600;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_secs(START + seconds)
    }

    fn mumbai() -> SiteName {
        "mumbai".parse().unwrap()
    }

    fn token_use() -> TicketUse {
        TicketUse { class: MethodClass::Token, repository: None, mount_from: None }
    }

    #[test]
    fn secrets_are_made_once_and_are_private() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("keys");
        let first = PrimaryKeys::open(&path).unwrap();
        let sent = first.keys_of(&mumbai(), first.own_mode("issuer"), at(0)).unwrap();
        let second = PrimaryKeys::open(&path).unwrap();
        assert_eq!(second.jwks(), first.jwks());
        assert_eq!(second.derived_key("x"), first.derived_key("x"));
        assert_ne!(first.derived_key("y"), first.derived_key("x"));
        assert!(second.keys_of(&mumbai(), second.own_mode("issuer"), at(60)).unwrap() == sent);
        for entry in std::fs::read_dir(&path).unwrap() {
            let mode = entry.unwrap().metadata().unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
        for name in [SIGNING_FILE, SEAL_FILE, UPLOAD_FILE] {
            let file = path.join(name);
            let kept = std::fs::read_to_string(&file).unwrap();
            std::fs::write(&file, "damaged").unwrap();
            let error = PrimaryKeys::open(&path).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
            std::fs::write(&file, kept).unwrap();
        }
    }

    #[test]
    fn seal_keys_rotate_daily_and_older_ones_open_for_a_week() {
        let directory = tempfile::tempdir().unwrap();
        let keys = PrimaryKeys::open(directory.path()).unwrap();
        assert!(!keys.rotate(at(0)).unwrap(), "no site, no key");
        let first = keys.keys_of(&mumbai(), keys.own_mode("issuer"), at(0)).unwrap();
        let frankfurt = keys.keys_of(&"frankfurt".parse().unwrap(), keys.own_mode("issuer"), at(0)).unwrap();
        assert_ne!(first.seal[0].id, frankfurt.seal[0].id);
        let sealer = TicketSealer::new(mumbai());
        sealer.set_keys(&first.seal).unwrap();
        let opens = |day: u64| {
            let ticket = sealer.seal(None, &token_use(), at(day * DAY)).unwrap();
            keys.opener().open(&ticket, &token_use(), at(day * DAY)).is_ok()
        };
        assert!(opens(0));
        assert!(!keys.rotate(at(DAY - 1)).unwrap());
        for day in 1..7 {
            let generation = keys.generation();
            assert!(keys.rotate(at(day * DAY)).unwrap());
            assert_eq!(keys.generation(), generation + 1);
            assert!(opens(day), "day {day}");
        }
        let newest = keys.keys_of(&mumbai(), keys.own_mode("issuer"), at(6 * DAY)).unwrap();
        assert_eq!(newest.seal.len(), 7);
        assert!(newest.seal[0].id > newest.seal[6].id);
        assert!(keys.rotate(at(7 * DAY)).unwrap());
        assert!(!opens(7));
        assert!(PrimaryKeys::open(directory.path()).unwrap().generation() == keys.generation());
        let newest = keys.keys_of(&mumbai(), keys.own_mode("issuer"), at(7 * DAY)).unwrap();
        sealer.set_keys(&newest.seal).unwrap();
        keys.keep_sites(&[mumbai()].into()).unwrap();
        assert!(opens(7));
        keys.keep_sites(&["frankfurt".parse().unwrap()].into()).unwrap();
        assert!(!opens(7));
    }
}
