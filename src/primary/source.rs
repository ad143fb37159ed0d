//! On whose word a log is published: the primary's own, or what a site that relays was told.

use crate::watch;
use std::{collections::BTreeMap, sync::Arc, time::Duration};

use outport_proto::{
    SiteName,
    frame::{CertificateRequests, Certificates, Credentials, HOPS_MAX, Heartbeat, Keys, Question, Verdict},
    session::{LogState, begun},
};

use super::members::Members;
use crate::{
    auth::{Authenticator, Secret},
    blocking,
    clock::SharedClock,
    fetch::BoxFuture,
    registry::journal::Journal,
};

/// What every site is told about the primary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrimaryIdentity {
    /// The cluster's identity.
    pub cluster: String,
    /// Absolute URL of the token endpoint.
    pub token_realm: String,
    /// The `service` of challenges and the audience of tokens.
    pub token_service: String,
    /// Absolute public URL of the primary, without a trailing slash.
    pub public_url: String,
    /// The sites up to the primary, the one that says this last; empty at the primary.
    pub path: Vec<SiteName>,
}

/// Whoever publishes a log: the primary, or a site that relays.
pub trait Source: Send + Sync + 'static {
    /// Who the primary is; a reason for people while that is not known, or while the log and its
    /// view are not fit to be followed.
    fn identity(&self) -> Result<PrimaryIdentity, String>;

    /// Whether the index may be handed on as the primary's; a reason for people when it may not.
    ///
    /// # Errors
    /// Why not; for people.
    fn sound(&self) -> Result<(), String>;

    /// Where the log is, and what the primary said last.
    fn state(&self) -> LogState;

    /// Moves when the primary said something new, or [`Source::identity`] changed. Its end, when
    /// the sender is gone, says that neither happens by itself.
    fn news(&self) -> watch::Receiver<u64>;

    /// The keys of `site`, for the last site of `via`: every other one of `via` follows the one
    /// behind it, and `site` follows the first. Without `via`, for `site` itself, which follows this one.
    fn keys<'a>(&'a self, site: &'a SiteName, via: &'a [SiteName])
    -> BoxFuture<'a, Result<Keys, KeysDenied>>;

    /// New certificates of `site`, for the last site of `via`, as with [`Source::keys`].
    fn certify<'a>(
        &'a self,
        site: &'a SiteName,
        via: &'a [SiteName],
        requests: CertificateRequests,
    ) -> BoxFuture<'a, Result<Certificates, KeysDenied>>;

    /// Looks for the key that a token calls `unknown`: [`Source::keys`] know it afterwards, if there is one.
    ///
    /// # Errors
    /// Why it cannot be looked for; for people.
    fn find_key<'a>(&'a self, unknown: &'a str) -> BoxFuture<'a, Result<(), String>>;

    /// What the registry behind the primary says to `question` by whoever sends this `Authorization`.
    ///
    /// # Errors
    /// When it says neither yes nor no; for people.
    fn verdict<'a>(
        &'a self,
        authorization: Option<Credentials>,
        question: Question,
    ) -> BoxFuture<'a, Result<Verdict, String>>;

    /// Moves when sites must be sent their keys again.
    fn keys_changed(&self) -> watch::Receiver<u64>;
}

/// Why there are no keys, or certificates.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeysDenied {
    /// It is no site of the cluster any more.
    #[error("{0} was removed")]
    Removed(SiteName),
    /// They are not for the site that asks.
    #[error("{asker} does not relay to {site}")]
    NotBehind {
        /// Whose keys.
        site: SiteName,
        /// Who asked.
        asker: SiteName,
    },
    /// They cannot be had now; for people.
    #[error("{0}")]
    Unavailable(String),
}

/// Makes the keys of a site. Called on a blocking thread; the error is for people.
pub type KeysOf = Arc<dyn Fn(&SiteName) -> Result<Keys, String> + Send + Sync>;

/// Which sites may follow which, apart from those that may follow the primary.
#[derive(Clone, Debug, Default)]
pub struct Relays(BTreeMap<SiteName, Vec<SiteName>>);

impl Relays {
    /// Every site that relays, with the sites that follow it.
    pub fn new(relays: BTreeMap<SiteName, Vec<SiteName>>) -> Self {
        Self(relays)
    }

    /// Whether `site` follows the first of `via`, that one the second, and so on.
    pub fn lead(&self, site: &SiteName, via: &[SiteName]) -> bool {
        let mut below = site;
        via.len() <= HOPS_MAX
            && via.iter().all(|relay| {
                let follows = self.0.get(relay).is_some_and(|sites| sites.contains(below));
                below = relay;
                follows
            })
    }

    /// Whether one of the ways down from `site` comes back to it, or goes on too long.
    pub fn is_ring(&self, site: &SiteName) -> bool {
        let mut level: Vec<&SiteName> = vec![site];
        for _ in 0..HOPS_MAX {
            level = level.iter().filter_map(|relay| self.0.get(*relay)).flatten().collect();
            level.sort();
            level.dedup();
            if level.is_empty() {
                return false;
            }
        }
        true
    }

    /// All sites that follow a relay, by name.
    pub fn behind_any(&self) -> Vec<SiteName> {
        let mut sites: Vec<_> = self.0.values().flatten().cloned().collect();
        sites.sort();
        sites.dedup();
        sites
    }
}

/// The primary's own word. Cloning gives another handle.
#[derive(Clone)]
pub struct OwnSource {
    /// What every site is told.
    pub identity: PrimaryIdentity,
    /// The log and its view.
    pub journal: Journal,
    /// The primary's clock.
    pub clock: SharedClock,
    /// Keys by site.
    pub keys_of: KeysOf,
    /// Moves when sites must be sent their keys again.
    pub keys_changed: watch::Receiver<u64>,
    /// Who may have the keys of whom.
    pub relays: Relays,
    /// Looks for keys of tokens that are not known, and asks the registry who may, if there is one.
    pub authenticator: Option<Arc<Authenticator>>,
    /// Whether a registry behind may have gone on without the log.
    pub unsure: Option<watch::Receiver<bool>>,
    /// Which sites there are, and what certifies them; without it all that are let in, and nothing.
    pub members: Option<Arc<Members>>,
}

impl OwnSource {
    fn belongs(&self, site: &SiteName, via: &[SiteName]) -> Result<(), KeysDenied> {
        if let Some(asker) = via.last()
            && !self.relays.lead(site, via)
        {
            return Err(KeysDenied::NotBehind { site: site.clone(), asker: asker.clone() });
        }
        match &self.members {
            Some(members) if !members.has(site) => Err(KeysDenied::Removed(site.clone())),
            _ => Ok(()),
        }
    }
}

impl Source for OwnSource {
    fn identity(&self) -> Result<PrimaryIdentity, String> {
        Ok(self.identity.clone())
    }

    fn sound(&self) -> Result<(), String> {
        Ok(())
    }

    /// Every change is acknowledged only once it is durable, and the clock is read before the
    /// head: so whatever was acknowledged before `closed_time` is at or below `head`.
    fn state(&self) -> LogState {
        let now = self.clock.now();
        let log = self.journal.log();
        let (head, log_bytes) = (begun(log.head()), log.bytes());
        let (state_hash, state_at) = self.journal.index().state_hash();
        let heartbeat = Heartbeat {
            head,
            closed_time: now,
            now,
            log_bytes,
            state_hash,
            state_at,
            unsure: self.unsure.as_ref().is_some_and(|unsure| *unsure.borrow()),
        };
        let tail_events_max = self.journal.tail_events_max();
        LogState {
            heartbeat,
            age: Some(Duration::ZERO),
            durable: head,
            is_level: true,
            floor: begun(log.floor()),
            tail_events_max,
        }
    }

    fn news(&self) -> watch::Receiver<u64> {
        watch::channel(0).1
    }

    fn keys<'a>(
        &'a self,
        site: &'a SiteName,
        via: &'a [SiteName],
    ) -> BoxFuture<'a, Result<Keys, KeysDenied>> {
        Box::pin(async move {
            self.belongs(site, via)?;
            let (keys_of, of) = (Arc::clone(&self.keys_of), site.clone());
            let made = blocking::spawn(move || keys_of(&of)).await.map_err(|error| error.to_string());
            made.flatten().map_err(KeysDenied::Unavailable)
        })
    }

    fn certify<'a>(
        &'a self,
        site: &'a SiteName,
        via: &'a [SiteName],
        requests: CertificateRequests,
    ) -> BoxFuture<'a, Result<Certificates, KeysDenied>> {
        Box::pin(async move {
            self.belongs(site, via)?;
            let nobody = || KeysDenied::Unavailable("nothing is certified here".to_owned());
            let (members, site) = (self.members.clone().ok_or_else(nobody)?, site.clone());
            let certified = blocking::spawn(move || members.certify(&site, &requests)).await;
            let certified = certified.map_err(|error| KeysDenied::Unavailable(error.to_string()))?;
            certified.map_err(|error| KeysDenied::Unavailable(error.to_string()))
        })
    }

    fn find_key<'a>(&'a self, unknown: &'a str) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(async move {
            match &self.authenticator {
                Some(authenticator) => authenticator.find_key(unknown).await,
                None => Ok(()),
            }
        })
    }

    fn verdict<'a>(
        &'a self,
        authorization: Option<Credentials>,
        question: Question,
    ) -> BoxFuture<'a, Result<Verdict, String>> {
        Box::pin(async move {
            let authenticator = self.authenticator.as_ref();
            let authenticator = authenticator.ok_or("there is no registry behind this primary")?;
            let authorization = authorization.map(|Credentials(text)| Secret::from(text));
            let said = authenticator.said_now(authorization.as_ref(), &question).await;
            said.map_err(|error| error.to_string())
        })
    }

    fn keys_changed(&self) -> watch::Receiver<u64> {
        self.keys_changed.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sites(names: &[&str]) -> Vec<SiteName> {
        names.iter().map(|name| name.parse().unwrap()).collect()
    }

    #[test]
    fn keys_go_down_the_configured_way_alone() {
        let relays = [("frankfurt", &["pune", "oslo"][..]), ("pune", &["goa"]), ("sydney", &["perth"])];
        let relays = relays.map(|(relay, behind)| (relay.parse().unwrap(), sites(behind)));
        let relays = Relays::new(relays.into_iter().collect());
        let lead = |site: &str, via: &[&str]| relays.lead(&site.parse().unwrap(), &sites(via));
        assert!(lead("pune", &["frankfurt"]) && lead("goa", &["pune", "frankfurt"]));
        assert!(!lead("perth", &["frankfurt"]), "behind another relay");
        assert!(!lead("goa", &["frankfurt"]), "the way leaves out a site");
        assert!(!lead("oslo", &["pune", "frankfurt"]), "beside it, not behind it");
        assert!(!lead("frankfurt", &["frankfurt"]) && !lead("mumbai", &["frankfurt"]));
        assert!(!relays.is_ring(&"frankfurt".parse().unwrap()));
        let ring = [("oslo", sites(&["bergen"])), ("bergen", sites(&["oslo"]))];
        let ring = Relays::new(ring.map(|(relay, behind)| (relay.parse().unwrap(), behind)).into());
        assert!(ring.is_ring(&"oslo".parse().unwrap()));
        assert_eq!(relays.behind_any(), sites(&["goa", "oslo", "perth", "pune"]));
    }
}
