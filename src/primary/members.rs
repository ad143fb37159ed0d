//! Which sites belong to the cluster: those that the configuration lists, and those that joined by a token.
//!
//! What is known of the latter is kept in one file, which is replaced whole. A site that joined is let in by the
//! very certificates that it was given here; one that was removed is let in by none, whoever lists it.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use aws_lc_rs::constant_time::verify_slices_are_equal;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use outport_proto::{
    SiteName, Timestamp,
    frame::{CertificateRequests, Certificates, Join},
};
use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};

use crate::{
    auth::{
        Authority, AuthorityError, FileError, JoinToken, NodeIdentity,
        authority::{check_server_names, requested_key},
        join_tls::fingerprint,
        read_text, site_of, write_private,
    },
    clock::SharedClock,
    random,
};

/// Certificates of a site that are known at most: it has one, and gets another when that is two thirds over.
const CERTIFICATES_MAX: usize = 16;

/// Where the cluster's authority is, to certify with.
#[derive(Clone, Debug)]
pub struct AuthorityFiles {
    /// The certificates that nodes believe; one of them is the key's.
    pub certificate: PathBuf,
    /// The authority's private key; without it nothing is certified here.
    pub key: Option<PathBuf>,
}

/// The sites of a cluster, at its primary. Methods that change something write to disk and block for it.
pub struct Members {
    file: PathBuf,
    /// Those that the configuration lets connect.
    listed: BTreeSet<SiteName>,
    /// Those that the configuration has behind others.
    behind: BTreeSet<SiteName>,
    authority: AuthorityFiles,
    clock: SharedClock,
    kept: Mutex<Kept>,
}

/// The file.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    /// By site: one token each is good.
    #[serde(default)]
    invited: BTreeMap<SiteName, Invited>,
    #[serde(default)]
    joined: BTreeMap<SiteName, JoinedSite>,
    /// Those that the configuration lists all the same.
    #[serde(default)]
    removed: BTreeSet<SiteName>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Invited {
    /// SHA-256 of the token's secret.
    secret_sha256: String,
    expires_seconds: u64,
    https: Vec<String>,
    /// SHA-256 of the key that it was used for.
    used_by: Option<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct JoinedSite {
    joined_seconds: u64,
    https: Vec<String>,
    /// Newest first.
    certificates: Vec<Issued>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Issued {
    sha256: String,
}

impl Members {
    /// Reads `file`. The configuration lets `listed` connect, and has `behind` behind others.
    ///
    /// # Errors
    /// When it cannot be read, or holds something else.
    pub fn open(
        file: PathBuf,
        listed: impl IntoIterator<Item = SiteName>,
        behind: impl IntoIterator<Item = SiteName>,
        authority: AuthorityFiles,
        clock: SharedClock,
    ) -> Result<Self, MemberError> {
        let kept = match read_text(&file)? {
            Some(text) => serde_json::from_str(&text)
                .map_err(|error| MemberError::Damaged { file: file.clone(), reason: error.to_string() })?,
            None => Kept::default(),
        };
        let (listed, behind) = (listed.into_iter().collect(), behind.into_iter().collect());
        Ok(Self { file, listed, behind, authority, clock, kept: Mutex::new(kept) })
    }

    /// Which site a verified certificate belongs to.
    ///
    /// # Errors
    /// Why it is none of them; for people.
    pub fn admit(&self, certificate: &CertificateDer<'_>) -> Result<SiteName, String> {
        let site = site_of(certificate).ok_or("the certificate is not a site's")?;
        let kept = self.kept();
        match kept.joined.get(&site) {
            Some(joined) if joined.knows(certificate) => Ok(site),
            Some(_) => Err(format!("the certificate is not one that site {site} joined with")),
            None if kept.removed.contains(&site) => Err(format!("site {site} was removed")),
            None if self.listed.contains(&site) => Ok(site),
            None => Err(format!("site {site} is not in replication.sites and has not joined")),
        }
    }

    /// Whether a site belongs to the cluster, here or behind another.
    pub fn has(&self, site: &SiteName) -> bool {
        self.has_in(&self.kept(), site)
    }

    fn has_in(&self, kept: &Kept, site: &SiteName) -> bool {
        kept.joined.contains_key(site)
            || (self.listed.contains(site) || self.behind.contains(site)) && !kept.removed.contains(site)
    }

    /// All that do.
    pub fn sites(&self) -> BTreeSet<SiteName> {
        let kept = self.kept();
        let configured = self.listed.iter().chain(&self.behind).filter(|site| !kept.removed.contains(*site));
        configured.chain(kept.joined.keys()).cloned().collect()
    }

    /// Makes the token by which a machine becomes `site`, good for `life`: it says where the primary is reached over
    /// UDP and where over TCP. One made before for the same site is void.
    ///
    /// # Errors
    /// When there is such a site, or no authority's key to certify it with.
    pub fn invite(
        &self,
        site: SiteName,
        (addresses, fallback_url): (Vec<String>, String),
        https: Vec<String>,
        life: Duration,
    ) -> Result<JoinToken, MemberError> {
        let authority = self.authority()?;
        if !https.is_empty() {
            check_server_names(&https)?;
        }
        let mut secret = [0; 32];
        random::fill(&mut secret).map_err(|_| MemberError::Randomness)?;
        let expires = Timestamp::from_secs(self.clock.now().plus(life).as_secs());
        self.change(|kept, now| {
            if self.has_in(kept, &site) {
                return Err(MemberError::Already(site.clone()));
            }
            kept.invited.retain(|_, invited| invited.expires_seconds > now.as_secs());
            let invited = Invited {
                secret_sha256: encoded(&fingerprint(&secret)),
                expires_seconds: expires.as_secs(),
                https: https.clone(),
                used_by: None,
            };
            kept.invited.insert(site.clone(), invited);
            Ok(())
        })?;
        let authority = fingerprint(authority.certificate());
        Ok(JoinToken { site, addresses, authority, secret, expires, fallback_url, https })
    }

    /// Makes a machine the site that its token is for.
    ///
    /// # Errors
    /// When the token is not good, or nothing can be certified.
    pub fn join(&self, join: &Join) -> Result<Certificates, MemberError> {
        let (site, secret) = (&join.site, encoded(&fingerprint(&join.secret)));
        let key = encoded(&fingerprint(&requested_key(&join.requests.node)?));
        // Nothing is certified for who has no token.
        let invited = self.kept().invited.get(site).cloned();
        let https = invited.ok_or(MemberError::TokenUnknown)?.good(&secret, &key, self.clock.now())?.https;
        let (certificates, issued) = self.issue(site, &https, &join.requests)?;
        self.change(|kept, now| {
            let invited = kept.invited.get_mut(site).ok_or(MemberError::TokenUnknown)?;
            invited.clone().good(&secret, &key, now)?;
            invited.used_by = Some(key.clone());
            let new =
                JoinedSite { joined_seconds: now.as_secs(), https: https.clone(), certificates: Vec::new() };
            kept.joined.entry(site.clone()).or_insert(new).keep(issued.clone());
            kept.removed.remove(site);
            Ok(())
        })?;
        Ok(certificates)
    }

    /// New certificates for a site, which was let in.
    ///
    /// # Errors
    /// When it is none any more, or nothing can be certified.
    pub fn certify(
        &self,
        site: &SiteName,
        requests: &CertificateRequests,
    ) -> Result<Certificates, MemberError> {
        let https = self.kept().joined.get(site).map(|joined| joined.https.clone()).unwrap_or_default();
        let (certificates, issued) = self.issue(site, &https, requests)?;
        self.change(|kept, _| {
            if !self.has_in(kept, site) {
                return Err(MemberError::Unknown(site.clone()));
            }
            // Of a site that the configuration lists every certificate is good.
            if let Some(joined) = kept.joined.get_mut(site) {
                joined.keep(issued.clone());
            }
            Ok(())
        })?;
        Ok(certificates)
    }

    /// Lets a site in no more, and makes its token void.
    ///
    /// # Errors
    /// When there is no such site and no token for one.
    pub fn remove(&self, site: &SiteName) -> Result<(), MemberError> {
        self.change(|kept, _| {
            let is_configured = self.listed.contains(site) || self.behind.contains(site);
            let was_here = self.has_in(kept, site);
            let was_invited = kept.invited.remove(site).is_some();
            if !was_here && !was_invited {
                return Err(MemberError::Unknown(site.clone()));
            }
            kept.joined.remove(site);
            if is_configured {
                kept.removed.insert(site.clone());
            }
            Ok(())
        })
    }

    fn authority(&self) -> Result<Authority, MemberError> {
        let key = self.authority.key.as_ref().ok_or(MemberError::NoAuthority)?;
        Ok(Authority::load(&self.authority.certificate, key)?)
    }

    fn issue(
        &self,
        site: &SiteName,
        https: &[String],
        requests: &CertificateRequests,
    ) -> Result<(Certificates, Issued), MemberError> {
        let node = NodeIdentity::Site(site.clone());
        let believed = &self.authority.certificate;
        let certificates = self.authority()?.certify(requests, &node, https, believed, self.clock.now())?;
        let leaf = certificates.node.first().map_or(&[][..], Vec::as_slice);
        let issued = Issued { sha256: encoded(&fingerprint(leaf)) };
        Ok((certificates, issued))
    }

    /// On disk first.
    fn change(
        &self,
        change: impl Fn(&mut Kept, Timestamp) -> Result<(), MemberError>,
    ) -> Result<(), MemberError> {
        let mut kept = self.kept();
        let mut changed = kept.clone();
        change(&mut changed, self.clock.now())?;
        let text = serde_json::to_string_pretty(&changed)
            .map_err(|error| MemberError::Damaged { file: self.file.clone(), reason: error.to_string() })?;
        write_private(&self.file, &text)?;
        *kept = changed;
        Ok(())
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        // It is replaced whole.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn encoded(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

impl Invited {
    /// Itself, if it is good for whoever has this secret and this key.
    fn good(self, secret_sha256: &str, key: &str, now: Timestamp) -> Result<Self, MemberError> {
        if verify_slices_are_equal(self.secret_sha256.as_bytes(), secret_sha256.as_bytes()).is_err() {
            return Err(MemberError::TokenUnknown);
        }
        if self.expires_seconds <= now.as_secs() {
            return Err(MemberError::TokenExpired);
        }
        // The same machine asks again when it did not hear the answer.
        if self.used_by.as_ref().is_some_and(|used_by| used_by != key) {
            return Err(MemberError::TokenUsed);
        }
        Ok(self)
    }
}

impl JoinedSite {
    fn knows(&self, certificate: &[u8]) -> bool {
        let shown = encoded(&fingerprint(certificate));
        self.certificates.iter().any(|issued| issued.sha256 == shown)
    }

    fn keep(&mut self, issued: Issued) {
        self.certificates.insert(0, issued);
        self.certificates.truncate(CERTIFICATES_MAX);
    }
}

impl std::fmt::Debug for Members {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Members").field("file", &self.file).finish_non_exhaustive()
    }
}

/// Why a site does not become one, or stays one.
#[derive(Debug, thiserror::Error)]
pub enum MemberError {
    /// There is one of that name.
    #[error("{0} is a site already; to give its place to another machine, remove it first")]
    Already(SiteName),
    /// There is none.
    #[error("there is no site {0}, and no token for it")]
    Unknown(SiteName),
    /// Nobody was given that token, or it was replaced, or the site removed.
    #[error("the join token is not known here: another one was made since, or the site was removed")]
    TokenUnknown,
    /// Another machine was faster.
    #[error("the join token was used before, by another machine")]
    TokenUsed,
    /// Too late.
    #[error("the join token has expired")]
    TokenExpired,
    /// Certificates are made elsewhere.
    #[error("this primary certifies no sites: replication.authority_key is not configured")]
    NoAuthority,
    /// A request or an authority that cannot be used.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// The file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The file holds something else.
    #[error("{}: {reason}", file.display())]
    Damaged {
        /// Which.
        file: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The system has none to give.
    #[error("no token can be made: the system gives no randomness")]
    Randomness,
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{auth::CertificateRequest, clock::SystemClock};

    struct Bed {
        dir: tempfile::TempDir,
        members: Members,
    }

    impl Bed {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let clock = SystemClock;
            let authority = Authority::create("test", crate::clock::Clock::now(&clock)).unwrap();
            authority.save(&dir.path().join("ca.crt"), &dir.path().join("ca.key")).unwrap();
            let members = Self::open(&dir, true);
            Self { dir, members }
        }

        fn open(dir: &tempfile::TempDir, has_key: bool) -> Members {
            let authority = AuthorityFiles {
                certificate: dir.path().join("ca.crt"),
                key: has_key.then(|| dir.path().join("ca.key")),
            };
            let sites = |names: &[&str]| names.iter().map(|name| site(name)).collect::<Vec<_>>();
            let (listed, behind) = (sites(&["mumbai"]), sites(&["goa"]));
            Members::open(dir.path().join("sites.json"), listed, behind, authority, Arc::new(SystemClock))
                .unwrap()
        }

        fn invite(&self, name: &str, life_seconds: u64) -> JoinToken {
            let life = Duration::from_secs(life_seconds);
            self.members
                .invite(site(name), (vec!["localhost:1".to_owned()], String::new()), Vec::new(), life)
                .unwrap()
        }

        fn request(&self, machine: &str, token: &JoinToken) -> Join {
            let key = CertificateRequest::of_key(&self.dir.path().join(machine)).unwrap();
            let requests = CertificateRequests { node: key.der().to_vec(), https: None };
            let (node, program) = (machine.to_owned(), String::new());
            Join { site: token.site.clone(), secret: token.secret, requests, node, program }
        }
    }

    fn site(name: &str) -> SiteName {
        name.parse().unwrap()
    }

    fn leaf(certificates: &Certificates) -> CertificateDer<'static> {
        certificates.node[0].clone().into()
    }

    #[test]
    fn a_token_makes_one_machine_a_site_until_it_is_removed() {
        let bed = Bed::new();
        let token = bed.invite("pune", 60);
        assert!(!bed.members.has(&site("pune")));
        let first = bed.members.join(&bed.request("one", &token)).unwrap();
        let again = bed.members.join(&bed.request("one", &token)).unwrap();
        let other = bed.members.join(&bed.request("two", &token)).unwrap_err();
        assert!(matches!(other, MemberError::TokenUsed), "{other}");
        let reopened = Bed::open(&bed.dir, false);
        for members in [&bed.members, &reopened] {
            assert_eq!(members.admit(&leaf(&first)), Ok(site("pune")));
            assert_eq!(members.admit(&leaf(&again)), Ok(site("pune")));
            assert_eq!(members.sites(), ["goa", "mumbai", "pune"].map(site).into());
        }
        let already = bed
            .members
            .invite(site("pune"), (Vec::new(), String::new()), Vec::new(), Duration::ZERO)
            .unwrap_err();
        assert!(matches!(already, MemberError::Already(_)));
        bed.members.remove(&site("pune")).unwrap();
        assert!(bed.members.admit(&leaf(&first)).unwrap_err().contains("has not joined"));
        assert!(matches!(bed.members.join(&bed.request("one", &token)), Err(MemberError::TokenUnknown)));
        assert!(matches!(bed.members.remove(&site("pune")), Err(MemberError::Unknown(_))));
        // Another machine may have the place; the certificate of the first one stays void.
        let token = bed.invite("pune", 60);
        let second = bed.members.join(&bed.request("two", &token)).unwrap();
        assert_eq!(bed.members.admit(&leaf(&second)), Ok(site("pune")));
        assert!(bed.members.admit(&leaf(&first)).unwrap_err().contains("not one that site pune joined with"));
    }

    #[test]
    fn a_token_is_good_for_who_knows_its_secret_in_its_time_and_while_it_is_the_last() {
        let bed = Bed::new();
        let late = bed.invite("pune", 0);
        let error = bed.members.join(&bed.request("one", &late)).unwrap_err();
        assert!(matches!(error, MemberError::TokenExpired), "{error}");
        let old = bed.invite("pune", 60);
        let new = bed.invite("pune", 60);
        let guessed = JoinToken { secret: [0; 32], ..new.clone() };
        let elsewhere = JoinToken { site: site("delhi"), ..new.clone() };
        for token in [&old, &guessed, &elsewhere] {
            let error = bed.members.join(&bed.request("one", token)).unwrap_err();
            assert!(matches!(error, MemberError::TokenUnknown), "{error}");
        }
        let written = std::fs::read_to_string(bed.dir.path().join("sites.json")).unwrap();
        assert!(!written.contains(&encoded(&new.secret)), "the secret itself is kept nowhere");
        bed.members.join(&bed.request("one", &new)).unwrap();
        let keyless = Bed::open(&bed.dir, false);
        let error = keyless
            .invite(site("delhi"), (Vec::new(), String::new()), Vec::new(), Duration::ZERO)
            .unwrap_err();
        assert!(matches!(error, MemberError::NoAuthority), "{error}");
    }

    #[test]
    fn what_the_configuration_lists_can_be_removed_and_join_again() {
        let bed = Bed::new();
        let authority =
            Authority::load(&bed.dir.path().join("ca.crt"), &bed.dir.path().join("ca.key")).unwrap();
        let issued = |name: &str| {
            authority
                .issue_node(&NodeIdentity::Site(site(name)), bed.members.clock.now())
                .unwrap()
                .chain
                .remove(0)
        };
        let (mumbai, goa) = (issued("mumbai"), issued("goa"));
        assert_eq!(bed.members.admit(&mumbai), Ok(site("mumbai")));
        assert!(bed.members.has(&site("goa")) && bed.members.admit(&goa).is_err(), "it follows another");
        assert!(bed.members.admit(&issued("delhi")).is_err());
        for name in ["mumbai", "goa"] {
            bed.members.remove(&site(name)).unwrap();
            assert!(!bed.members.has(&site(name)), "{name}");
        }
        assert!(bed.members.admit(&mumbai).unwrap_err().contains("was removed"));
        let token = bed.invite("mumbai", 60);
        let joined = bed.members.join(&bed.request("one", &token)).unwrap();
        assert_eq!(bed.members.admit(&leaf(&joined)), Ok(site("mumbai")));
        assert!(bed.members.admit(&mumbai).is_err(), "what it was let in by before stays void");
        let renewed = bed.members.certify(&site("mumbai"), &bed.request("one", &token).requests).unwrap();
        assert_eq!(bed.members.admit(&leaf(&renewed)), Ok(site("mumbai")));
        assert!(bed.members.certify(&site("goa"), &bed.request("one", &token).requests).is_err());
    }
}
