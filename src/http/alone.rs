//! A site on its own. Tokens come from the primary: while that cannot be reached nobody can get
//! one, and a challenge would only send clients there. So what anybody may pull is served without
//! a token, and the rest is refused as unavailable.

use std::{sync::Arc, time::Duration};

use http::Response;
use outport_proto::frame::RegistryChallenge;
use tokio::{sync::Mutex, time::Instant};

use super::{
    action::Action,
    authenticate::grants_all,
    body::Body,
    error::ApiError,
    router::{Api, Role, ping},
};
use crate::auth::{Caller, Demand};

/// How long a site waits for the primary to say anything.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);
/// How long what a probe found is believed.
const PROBE_AGE_MAX: Duration = Duration::from_secs(2);

/// What the last probe of the primary found. Cloning gives another handle to the same.
#[derive(Clone, Debug, Default)]
pub(super) struct Reachability(Arc<Mutex<Option<(Instant, bool)>>>);

impl Reachability {
    /// What `probe` finds, or found a moment ago: one probe at a time, however many ask.
    pub(super) async fn or_probe(&self, probe: impl Future<Output = bool>) -> bool {
        let mut last = self.0.lock().await;
        if let Some((at, found)) = *last
            && at.elapsed() < PROBE_AGE_MAX
        {
            return found;
        }
        let found = tokio::time::timeout(PROBE_TIMEOUT, probe).await.unwrap_or(false);
        *last = Some((Instant::now(), found));
        found
    }
}

impl Api {
    /// Whoever asks without a token that is good, at a site without a session: they may do what
    /// anybody may. `None` when that is not enough.
    pub(super) fn anybody(&self, action: &Action) -> Option<Caller> {
        let Role::Secondary(redirects) = &self.role else { return None };
        let scopes = action.scopes();
        if scopes.is_empty() || redirects.session.now().live {
            return None;
        }
        self.authenticator.anybody(&scopes).filter(|caller| grants_all(caller, &scopes))
    }

    /// The answer where a client was to be sent for a token, if there is none to be had. Without a
    /// challenge at the ping clients go on without a token.
    pub(super) async fn instead_of_challenge(
        &self,
        action: &Action,
        error: ApiError,
    ) -> Result<Response<Body>, ApiError> {
        // A password needs nobody to issue it.
        let is_for_password =
            matches!(self.authenticator.demand(), Demand::Registry(RegistryChallenge::Basic { .. }));
        let is_challenge = matches!(error, ApiError::Unauthorized { .. }) && !is_for_password;
        if !is_challenge || !self.is_alone().await {
            return Err(error);
        }
        match action {
            Action::Ping => Ok(ping()),
            _ => Err(ApiError::Unavailable(
                "this needs a token, and the primary site that issues them cannot be reached".into(),
            )),
        }
    }

    /// Whether this is a site whose primary answers neither over QUIC nor over HTTP.
    async fn is_alone(&self) -> bool {
        let Role::Secondary(redirects) = &self.role else { return false };
        if redirects.session.now().live {
            return false;
        }
        match self.addresses.load_full() {
            Some(addresses) => !redirects.proxy.reaches(&addresses.token_realm).await,
            None => false,
        }
    }
}
