//! Sealed upload state: the query of an upload's `Location`, which is all the authority the rest
//! of that upload has, because clients send no credentials there.
//!
//! Text form: unpadded base64url of `version (1) | nonce (12) | AES-256-GCM ciphertext and tag` over
//! JSON, with a context string and the version as associated data. It is sealed and not only signed,
//! because behind a gateway the client's credentials travel in it. Only this one parameter is ours:
//! clients add `digest` and `ns` and re-sort and re-encode the query.

use std::{fmt, sync::Arc, time::Duration};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use outport_proto::{RepoName, SiteName, Timestamp};
use serde::{Deserialize, Serialize};

use super::random;

/// The query parameter upload state travels in.
pub const UPLOAD_STATE_PARAMETER: &str = "state";
/// How long an upload may take: slow links push large layers for hours.
pub const UPLOAD_LIFE: Duration = Duration::from_secs(24 * 3600);
/// Longest state in bytes: a URL with it is one that servers and proxies take without trouble.
const STATE_BYTES_MAX: usize = 6 * 1024;

const VERSION: u8 = 2;
/// Keeps these seals apart from any other use of the key.
const CONTEXT: &[u8] = b"outport upload state\0\x02";

/// What is known about an upload in progress. It authorises PATCH, PUT, GET and DELETE of that
/// one upload until it expires, and nothing else.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UploadState {
    /// The upload.
    #[serde(rename = "u")]
    pub upload: String,
    /// The repository it pushes to.
    #[serde(rename = "r")]
    pub repository: RepoName,
    /// Who started it, for the log; empty when anonymous.
    #[serde(rename = "a")]
    pub actor: String,
    /// From then on it authorises nothing.
    #[serde(rename = "e", with = "micros")]
    pub expires: Timestamp,
    /// The site whose redirect started it.
    #[serde(rename = "s", default, skip_serializing_if = "Option::is_none")]
    pub site: Option<SiteName>,
    /// Where it is at the registry behind a gateway: path and query.
    #[serde(rename = "b", default, skip_serializing_if = "Option::is_none")]
    pub behind: Option<String>,
    /// The `Authorization` it was started with, where the registry behind a gateway shall see that.
    #[serde(rename = "c", default, skip_serializing_if = "Option::is_none")]
    pub authorization: Option<String>,
}

impl fmt::Debug for UploadState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UploadState")
            .field("upload", &self.upload)
            .field("repository", &self.repository)
            .finish_non_exhaustive()
    }
}

/// Seals and opens upload states. Cloning gives another handle.
#[derive(Clone)]
pub struct UploadStates {
    key: Option<Arc<LessSafeKey>>,
}

impl UploadStates {
    /// With a secret key.
    pub fn new(secret: &[u8; 32]) -> Self {
        // 32 bytes are a key: this never fails, and what cannot be sealed is refused.
        let key = UnboundKey::new(&AES_256_GCM, secret).ok();
        Self { key: key.map(|key| Arc::new(LessSafeKey::new(key))) }
    }

    /// The value of [`UPLOAD_STATE_PARAMETER`].
    ///
    /// # Errors
    /// [`UploadStateError::TooLong`]; [`UploadStateError::Malformed`] when it cannot be sealed.
    pub fn seal(&self, state: &UploadState) -> Result<String, UploadStateError> {
        let mut sealed = serde_json::to_vec(state).map_err(|_| UploadStateError::Malformed)?;
        let key = self.key.as_ref().ok_or(UploadStateError::Malformed)?;
        let nonce = random::bytes::<NONCE_LEN>().map_err(|_| UploadStateError::Malformed)?;
        key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(CONTEXT), &mut sealed)
            .map_err(|_| UploadStateError::Malformed)?;
        let text = URL_SAFE_NO_PAD.encode([&[VERSION], &nonce[..], &sealed].concat());
        if text.len() > STATE_BYTES_MAX { Err(UploadStateError::TooLong) } else { Ok(text) }
    }

    /// Opens a state that came with a request for upload `upload` in `repository`.
    ///
    /// # Errors
    /// [`UploadStateError`].
    pub fn open(
        &self,
        text: &str,
        repository: &RepoName,
        upload: &str,
        now: Timestamp,
    ) -> Result<UploadState, UploadStateError> {
        if text.len() > STATE_BYTES_MAX {
            return Err(UploadStateError::Malformed);
        }
        let mut bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| UploadStateError::Malformed)?;
        let Some(([VERSION], rest)) = bytes.split_first_chunk_mut::<1>() else {
            return Err(UploadStateError::Malformed);
        };
        let (nonce, sealed) = rest.split_first_chunk_mut::<NONCE_LEN>().ok_or(UploadStateError::Malformed)?;
        let key = self.key.as_ref().ok_or(UploadStateError::Malformed)?;
        let json = key
            .open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::from(CONTEXT), sealed)
            .map_err(|_| UploadStateError::Forged)?;
        let state: UploadState = serde_json::from_slice(json).map_err(|_| UploadStateError::Malformed)?;
        if state.repository != *repository || state.upload != upload {
            return Err(UploadStateError::Upload);
        }
        if now >= state.expires {
            return Err(UploadStateError::Expired);
        }
        Ok(state)
    }
}

impl fmt::Debug for UploadStates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("UploadStates(..)")
    }
}

mod micros {
    use super::{Deserialize as _, Timestamp};

    pub(super) fn serialize<S: serde::Serializer>(
        time: &Timestamp,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(time.as_micros())
    }

    pub(super) fn deserialize<'de, D: serde::Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Timestamp, D::Error> {
        u64::deserialize(deserializer).map(Timestamp::from_micros)
    }
}

/// Why upload state is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UploadStateError {
    /// Not upload state.
    #[error("the upload state is malformed")]
    Malformed,
    /// Not sealed here, or changed.
    #[error("the upload state is not authentic")]
    Forged,
    /// Another upload's.
    #[error("the upload state is of another upload")]
    Upload,
    /// Too old.
    #[error("the upload has expired")]
    Expired,
    /// Too long for a URL.
    #[error("the upload state is too long")]
    TooLong,
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

    fn repo() -> RepoName {
        "team/app".parse().unwrap()
    }

    fn state() -> UploadState {
        UploadState {
            upload: "5f0c".to_owned(),
            repository: repo(),
            actor: "ana".to_owned(),
            expires: NOW.plus(UPLOAD_LIFE),
            site: Some("mumbai".parse().unwrap()),
            behind: Some("/v2/team/app/blobs/uploads/1?_state=x".to_owned()),
            authorization: Some("Bearer secret".to_owned()),
        }
    }

    #[test]
    fn state_opens_for_its_own_upload_until_it_expires() {
        let states = UploadStates::new(&[7; 32]);
        let text = states.seal(&state()).unwrap();
        assert_eq!(states.open(&text, &repo(), "5f0c", NOW), Ok(state()));
        let last = Timestamp::from_micros(state().expires.as_micros() - 1);
        assert!(states.open(&text, &repo(), "5f0c", last).is_ok());
        let expires = state().expires;
        assert_eq!(states.open(&text, &repo(), "5f0c", expires), Err(UploadStateError::Expired));
        assert_eq!(states.open(&text, &repo(), "5f0d", NOW), Err(UploadStateError::Upload));
        let other = "team/app2".parse().unwrap();
        assert_eq!(states.open(&text, &other, "5f0c", NOW), Err(UploadStateError::Upload));
        let stranger = UploadStates::new(&[8; 32]);
        assert_eq!(stranger.open(&text, &repo(), "5f0c", NOW), Err(UploadStateError::Forged));
    }

    #[test]
    fn any_changed_bit_is_noticed() {
        let states = UploadStates::new(&[7; 32]);
        let bytes = URL_SAFE_NO_PAD.decode(states.seal(&state()).unwrap()).unwrap();
        for bit in 0..bytes.len() * 8 {
            let mut changed = bytes.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            let expected = if bit < 8 { UploadStateError::Malformed } else { UploadStateError::Forged };
            let text = URL_SAFE_NO_PAD.encode(changed);
            assert_eq!(states.open(&text, &repo(), "5f0c", NOW), Err(expected), "bit {bit}");
        }
        for length in 0..bytes.len() {
            let text = URL_SAFE_NO_PAD.encode(&bytes[..length]);
            assert!(states.open(&text, &repo(), "5f0c", NOW).is_err(), "{length} bytes");
        }
        let long = "A".repeat(STATE_BYTES_MAX + 1);
        assert_eq!(states.open(&long, &repo(), "5f0c", NOW), Err(UploadStateError::Malformed));
    }

    #[test]
    fn a_query_that_was_sorted_and_encoded_again_still_works() {
        let states = UploadStates::new(&[7; 32]);
        let text = states.seal(&state()).unwrap();
        let query = format!("{UPLOAD_STATE_PARAMETER}={text}&ns=registry.example.com");
        let mut pairs: Vec<(String, String)> =
            form_urlencoded::parse(query.as_bytes()).into_owned().collect();
        pairs.push(("digest".to_owned(), "sha256:00".to_owned()));
        pairs.sort();
        let again: String = form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish();
        assert!(again.contains("sha256%3A00"));
        let (_, found) = form_urlencoded::parse(again.as_bytes())
            .find(|(name, _)| name == UPLOAD_STATE_PARAMETER)
            .unwrap();
        assert_eq!(states.open(&found, &repo(), "5f0c", NOW), Ok(state()));
    }
}
