//! What a site is told by its primary, and what it asks to let callers in.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use outport_proto::{
    SiteName,
    frame::{Credentials, Question, Verdict, Welcome},
};

use super::StartError;
use crate::{
    auth::{
        AccessRules, Authenticator, FindKey, Judge, JudgeError, Leeway, Secret, TicketSealer, Verdicts,
        Verifier,
    },
    clock::SharedClock,
    fetch::{BoxFuture, UpstreamError, primary::QuicUpstream},
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
    /// Nobody has said anything yet; who is let in is asked through `upstream` where it must be.
    pub(super) fn new(
        site: &SiteName,
        clock: &SharedClock,
        upstream: &QuicUpstream,
    ) -> Result<Self, StartError> {
        let judge = Arc::new(AskWhoMay(upstream.clone()));
        let verdicts = Verdicts::new(judge, Arc::clone(clock))
            .map_err(|error| StartError::new("make a key for what is remembered of callers", error))?;
        let verifier = Verifier::new(Arc::clone(clock), Leeway::default());
        let trust = Self {
            authenticator: Arc::new(Authenticator::new(verifier, Some(verdicts))),
            sealer: Arc::new(TicketSealer::new(site.clone())),
            addresses: Arc::default(),
        };
        trust.authenticator.find_keys_by(Arc::new(AskForKeys {
            upstream: upstream.clone(),
            authenticator: Arc::downgrade(&trust.authenticator),
            addresses: Arc::clone(&trust.addresses),
        }));
        Ok(trust)
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
struct AskForKeys {
    upstream: QuicUpstream,
    authenticator: Weak<Authenticator>,
    addresses: SharedAddresses,
}

impl FindKey for AskForKeys {
    fn find<'a>(&'a self, unknown: &'a str) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(async move {
            let asked = tokio::time::timeout(FIND_KEY_TIMEOUT, self.upstream.own_keys(unknown.to_owned()));
            let keys = asked.await.unwrap_or(Err(UpstreamError::Timeout(FIND_KEY_TIMEOUT)));
            let keys = keys.map_err(|error| {
                tracing::info!(kid = unknown, %error, "a key of tokens that is not known here cannot be asked for");
                error.to_string()
            })?;
            // Those that the session brings are the same, and may come later.
            let (authenticator, addresses) = (self.authenticator.upgrade(), self.addresses.load_full());
            if let (Some(authenticator), Some(addresses)) = (authenticator, addresses)
                && let Err(error) = authenticator.learn(&keys.auth, &addresses.service)
            {
                tracing::error!(%error, "the primary's token keys cannot be used; the old ones stay");
                return Err(error.to_string());
            }
            Ok(())
        })
    }
}

/// Asks the primary what the registry behind it lets callers do.
struct AskWhoMay(QuicUpstream);

impl Judge for AskWhoMay {
    fn judge<'a>(
        &'a self,
        authorization: Option<&'a Secret>,
        question: &'a Question,
    ) -> BoxFuture<'a, Result<Verdict, JudgeError>> {
        let authorization = authorization.map(|secret| Credentials(secret.expose().to_owned()));
        Box::pin(async move {
            let said = self.0.authorize(authorization, question.clone()).await;
            said.map_err(|error| JudgeError(error.to_string()))
        })
    }
}
