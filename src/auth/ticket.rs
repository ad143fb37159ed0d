//! Sealed tickets: how a client's credentials survive a redirect to another host.
//!
//! Clients drop `Authorization` when a redirect leads to another host. A secondary therefore
//! seals it, together with what it may be used for, under a key it shares with the primary, and
//! puts the ticket in the redirect's query. The primary opens it and acts with that
//! `Authorization` as if it had come in the header: a ticket grants nothing by itself. It also names
//! the write intent that the site opened for the request.
//!
//! Text form: unpadded base64url of `version (1) | key id (4, big endian) | nonce (12) |
//! AES-256-GCM ciphertext and tag`, with version and key id as associated data.

use std::{collections::HashMap, fmt, time::Duration};

use arc_swap::{ArcSwap, ArcSwapOption};
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use outport_proto::{RepoName, SiteName, Timestamp, frame::SealKey};
use serde::{Deserialize, Serialize};

use super::{Secret, random};

/// The query parameter a ticket travels in.
pub const TICKET_PARAMETER: &str = "ticket";
/// How long a new ticket can be used: a redirect is followed at once. Half of what an opener
/// accepts, so that clocks half a minute apart still work.
pub const TICKET_LIFE: Duration = Duration::from_secs(30);
/// A ticket that claims to live longer than this is refused.
pub const TICKET_LIFE_MAX: Duration = Duration::from_secs(60);
/// How long after its ticket has expired a write may be acknowledged: a manifest may come slowly.
pub const WRITE_TIME_MAX: Duration = Duration::from_secs(240);
/// Longest redirect URL in bytes that servers and proxies take without trouble.
pub const REDIRECT_URL_BYTES_MAX: usize = 6 * 1024;
/// Longest ticket that is looked at, in bytes.
const TICKET_BYTES_MAX: usize = 64 * 1024;

const VERSION: u8 = 1;
const HEAD_BYTES: usize = 5;

/// Whether a redirect to `url`, ticket included, is short enough. If not, the request has to be
/// streamed through instead.
pub fn fits_redirect(url: &str) -> bool {
    url.len() <= REDIRECT_URL_BYTES_MAX
}

/// The kind of request a ticket is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MethodClass {
    /// `POST /v2/<name>/blobs/uploads/`, mounts included.
    #[serde(rename = "u")]
    StartUpload,
    /// `PUT /v2/<name>/manifests/<reference>`.
    #[serde(rename = "m")]
    PutManifest,
    /// `DELETE` of a manifest, tag or blob.
    #[serde(rename = "d")]
    Delete,
    /// A request to the token endpoint.
    #[serde(rename = "t")]
    Token,
}

/// What a request is, as far as tickets tell requests apart. A ticket opens only for the request
/// it was sealed for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TicketUse {
    /// The kind of request.
    pub class: MethodClass,
    /// Its repository; `None` for token requests.
    pub repository: Option<RepoName>,
    /// The repository a blob is mounted from; `None` when nothing is mounted.
    pub mount_from: Option<RepoName>,
}

/// What an opened ticket says.
#[derive(Clone, PartialEq, Eq)]
pub struct TicketContents {
    /// The client's whole `Authorization` value; `None` when it sent none.
    pub authorization: Option<Secret>,
    /// The site that sealed it.
    pub site: SiteName,
    /// The number of the write intent that the site opened for the request, if it opened one.
    pub intent: Option<u64>,
    /// From then on it is worth nothing.
    pub expires: Timestamp,
}

impl fmt::Debug for TicketContents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TicketContents").field("site", &self.site).finish_non_exhaustive()
    }
}

/// The plaintext: short names, because it ends up in a URL.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Plain<'a> {
    #[serde(rename = "a", borrow, default, skip_serializing_if = "Option::is_none")]
    authorization: Option<std::borrow::Cow<'a, str>>,
    #[serde(rename = "m")]
    class: MethodClass,
    #[serde(rename = "r", default, skip_serializing_if = "Option::is_none")]
    repository: Option<RepoName>,
    #[serde(rename = "f", default, skip_serializing_if = "Option::is_none")]
    mount_from: Option<RepoName>,
    #[serde(rename = "e")]
    expires_micros: u64,
    #[serde(rename = "s")]
    site: SiteName,
    #[serde(rename = "i", default, skip_serializing_if = "Option::is_none")]
    intent: Option<u64>,
}

/// A secondary's end: seals with the newest key its primary gave it.
pub struct TicketSealer {
    site: SiteName,
    key: ArcSwapOption<(u32, LessSafeKey)>,
}

impl TicketSealer {
    /// A sealer of `site` that has no key yet.
    pub fn new(site: SiteName) -> Self {
        Self { site, key: ArcSwapOption::empty() }
    }

    /// Takes the seal keys of `Keys`, newest first.
    pub fn set_keys(&self, keys: &[SealKey]) -> Result<(), TicketError> {
        let newest = keys.first().ok_or(TicketError::NoKey)?;
        self.key.store(Some((newest.id, aead_key(newest)?).into()));
        Ok(())
    }

    /// Seals a client's `Authorization` for one kind of request. `now` is best an estimate of the
    /// primary's clock.
    pub fn seal(
        &self,
        authorization: Option<&str>,
        usage: &TicketUse,
        now: Timestamp,
    ) -> Result<String, TicketError> {
        self.seal_announced(authorization, usage, None, now)
    }

    /// [`TicketSealer::seal`] for a request that a write intent announces, by its number.
    pub fn seal_announced(
        &self,
        authorization: Option<&str>,
        usage: &TicketUse,
        intent: Option<u64>,
        now: Timestamp,
    ) -> Result<String, TicketError> {
        let key = self.key.load();
        let (id, key) = key.as_deref().ok_or(TicketError::NoKey)?;
        let plain = Plain {
            authorization: authorization.map(Into::into),
            class: usage.class,
            repository: usage.repository.clone(),
            mount_from: usage.mount_from.clone(),
            expires_micros: now.plus(TICKET_LIFE).as_micros(),
            site: self.site.clone(),
            intent,
        };
        seal_bytes(*id, key, serde_json::to_vec(&plain).map_err(|_| TicketError::Sealing)?)
    }
}

impl fmt::Debug for TicketSealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TicketSealer").field("site", &self.site).finish_non_exhaustive()
    }
}

/// The primary's end: opens tickets of every site with any key still kept.
#[derive(Default)]
pub struct TicketOpener {
    keys: ArcSwap<HashMap<u32, (SiteName, LessSafeKey)>>,
}

impl TicketOpener {
    /// Takes the keys of all sites; ids are unique among them.
    pub fn set_keys<'a>(
        &self,
        keys: impl IntoIterator<Item = (&'a SiteName, &'a SealKey)>,
    ) -> Result<(), TicketError> {
        let keys = keys.into_iter().map(|(site, key)| Ok((key.id, (site.clone(), aead_key(key)?))));
        self.keys.store(keys.collect::<Result<HashMap<_, _>, TicketError>>()?.into());
        Ok(())
    }

    /// Opens a ticket that came with a request that is `usage`.
    pub fn open(
        &self,
        ticket: &str,
        usage: &TicketUse,
        now: Timestamp,
    ) -> Result<TicketContents, TicketError> {
        if ticket.len() > TICKET_BYTES_MAX {
            return Err(TicketError::Malformed);
        }
        let mut bytes = URL_SAFE_NO_PAD.decode(ticket).map_err(|_| TicketError::Malformed)?;
        let (head, sealed) = bytes.split_first_chunk_mut::<HEAD_BYTES>().ok_or(TicketError::Malformed)?;
        let (nonce, sealed) = sealed.split_first_chunk_mut::<NONCE_LEN>().ok_or(TicketError::Malformed)?;
        let [VERSION, id @ ..] = *head else { return Err(TicketError::Malformed) };
        let keys = self.keys.load();
        let (site, key) = keys.get(&u32::from_be_bytes(id)).ok_or(TicketError::UnknownKey)?;
        let plain = key
            .open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::from(*head), sealed)
            .map_err(|_| TicketError::Broken)?;
        let plain: Plain<'_> = serde_json::from_slice(plain).map_err(|_| TicketError::Malformed)?;
        check(plain, site, usage, now)
    }
}

impl fmt::Debug for TicketOpener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TicketOpener").field("keys", &self.keys.load().len()).finish()
    }
}

fn check(
    plain: Plain<'_>,
    key_site: &SiteName,
    usage: &TicketUse,
    now: Timestamp,
) -> Result<TicketContents, TicketError> {
    let expires = Timestamp::from_micros(plain.expires_micros);
    if plain.site != *key_site {
        return Err(TicketError::Site);
    }
    if now >= expires || expires > now.plus(TICKET_LIFE_MAX) {
        return Err(TicketError::Expired);
    }
    if plain.class != usage.class
        || plain.repository != usage.repository
        || plain.mount_from != usage.mount_from
    {
        return Err(TicketError::Use);
    }
    let authorization = plain.authorization.map(|text| Secret::from(text.into_owned()));
    Ok(TicketContents { authorization, site: plain.site, intent: plain.intent, expires })
}

fn aead_key(key: &SealKey) -> Result<LessSafeKey, TicketError> {
    UnboundKey::new(&AES_256_GCM, &key.secret).map(LessSafeKey::new).map_err(|_| TicketError::Sealing)
}

fn seal_bytes(id: u32, key: &LessSafeKey, mut plain: Vec<u8>) -> Result<String, TicketError> {
    let mut head = [VERSION; HEAD_BYTES];
    head[1..].copy_from_slice(&id.to_be_bytes());
    let nonce = random::bytes::<NONCE_LEN>().map_err(|_| TicketError::Sealing)?;
    key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(head), &mut plain)
        .map_err(|_| TicketError::Sealing)?;
    Ok(URL_SAFE_NO_PAD.encode([&head[..], &nonce, &plain].concat()))
}

/// Why a ticket is not sealed or not accepted. None of them tells anything of its contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TicketError {
    /// No seal key was received yet.
    #[error("there is no seal key yet")]
    NoKey,
    /// Not a ticket.
    #[error("the ticket is malformed")]
    Malformed,
    /// Sealed with a key that is not kept, or no longer.
    #[error("the ticket's key is not known")]
    UnknownKey,
    /// Changed on the way.
    #[error("the ticket's seal is broken")]
    Broken,
    /// Sealed by one site in the name of another.
    #[error("the ticket names another site than its key")]
    Site,
    /// Too old, or claiming a life longer than tickets have.
    #[error("the ticket has expired")]
    Expired,
    /// For another request.
    #[error("the ticket is for another request")]
    Use,
    /// Sealing failed here.
    #[error("the ticket cannot be sealed")]
    Sealing,
}

#[cfg(test)]
mod tests;
