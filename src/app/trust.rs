//! What a site is told by its primary, and what it asks to let callers in.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use outport_proto::{SiteName, frame::Welcome};

use crate::{
    auth::{AccessRules, Authenticator, FindKey, Leeway, TicketSealer, Verifier},
    clock::SharedClock,
    fetch::{BoxFuture, primary::QuicUpstream},
    http::{Addresses, SharedAddresses},
};

/// How long a request waits for a key of tokens that is not known here.
const FIND_KEY_TIMEOUT: Duration = Duration::from_secs(3);

/// What the primary tells a site about itself, and who has to know.
#[derive(Clone)]
pub(super) struct Trust {
    pub(super) authenticator: Arc<Authenticator>,
    pub(super) sealer: Arc<TicketSealer>,
    pub(super) addresses: SharedAddresses,
}

impl Trust {
    /// Nobody has said anything yet.
    pub(super) fn new(site: &SiteName, clock: &SharedClock) -> Self {
        let verifier = Verifier::new(Arc::clone(clock), Leeway::default());
        Self {
            authenticator: Arc::new(Authenticator::new(verifier, None)),
            sealer: Arc::new(TicketSealer::new(site.clone())),
            addresses: Arc::default(),
        }
    }

    /// Asks through `upstream` for keys of tokens that are not known here.
    pub(super) fn ask_for_keys(&self, upstream: QuicUpstream) {
        self.authenticator.find_keys_by(Arc::new(AskPrimary {
            upstream,
            authenticator: Arc::downgrade(&self.authenticator),
            addresses: Arc::clone(&self.addresses),
        }));
    }

    pub(super) fn learn(&self, welcome: &Welcome) {
        let keys = &welcome.keys;
        if let Err(error) = self.authenticator.learn(&keys.auth, &welcome.token_service) {
            tracing::error!(%error, "the primary's token keys cannot be used; the old ones stay");
        }
        match AccessRules::only_public_pull(&keys.public_pull) {
            Ok(rules) => self.authenticator.set_public(rules),
            Err(error) => tracing::error!(%error, "the primary's public repositories cannot be used"),
        }
        if let Err(error) = self.sealer.set_keys(&keys.seal) {
            tracing::error!(%error, "the primary's ticket keys cannot be used; the old ones stay");
        }
        match Addresses::new(&welcome.public_url, &welcome.token_realm, &welcome.token_service) {
            Ok(addresses) => self.addresses.store(Some(Arc::new(addresses))),
            Err(error) => {
                tracing::error!(%error, "the primary's addresses cannot be used; the old ones stay")
            }
        }
    }
}

/// Asks the primary for keys of tokens that this site does not know.
struct AskPrimary {
    upstream: QuicUpstream,
    authenticator: Weak<Authenticator>,
    addresses: SharedAddresses,
}

impl FindKey for AskPrimary {
    fn find<'a>(&'a self, unknown: &'a str) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            let asked = tokio::time::timeout(FIND_KEY_TIMEOUT, self.upstream.own_keys(unknown.to_owned()));
            let keys = match asked.await {
                Ok(Ok(keys)) => keys,
                Ok(Err(error)) => {
                    tracing::info!(kid = unknown, %error, "a key of tokens that is not known here cannot be asked for");
                    return;
                }
                Err(_) => return,
            };
            // Those that the session brings are the same, and may come later.
            let (authenticator, addresses) = (self.authenticator.upgrade(), self.addresses.load_full());
            if let (Some(authenticator), Some(addresses)) = (authenticator, addresses)
                && let Err(error) = authenticator.learn(&keys.auth, &addresses.service)
            {
                tracing::error!(%error, "the primary's token keys cannot be used; the old ones stay");
            }
        })
    }
}
