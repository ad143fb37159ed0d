//! Wires what makes and removes sites at a primary.

use std::{net::SocketAddr, sync::Arc};

use outport_proto::SiteName;

use super::{StartError, callers::Told, data_dir::DataDir};
use crate::{
    admin::{self, Invitation, NewSite, SiteError},
    auth::{NodeTls, PrimaryKeys, join_tls::join_server},
    clock::SharedClock,
    config,
    fetch::quic::{Listener, join_server_config},
    primary::{
        fleet::Fleet,
        joins::OnJoined,
        members::{AuthorityFiles, MemberError, Members},
        publisher::Publisher,
        source::Relays,
        webhooks::Webhooks,
    },
};

/// Which sites have joined, in the primary's data directory.
pub(super) const MEMBERS_FILE: &str = "sites.json";

/// Which sites there are.
pub(super) fn members(
    config: &config::PrimaryReplication,
    data_dir: &DataDir,
    relays: &Relays,
    clock: &SharedClock,
) -> Result<Arc<Members>, StartError> {
    let authority =
        AuthorityFiles { certificate: config.tls.authority.clone(), key: config.authority_key.clone() };
    let (listed, behind) = (config.sites.iter().cloned(), relays.behind_any());
    let members = Members::open(data_dir.join(MEMBERS_FILE), listed, behind, authority, Arc::clone(clock));
    members.map(Arc::new).map_err(|error| StartError::new("read which sites have joined", error))
}

/// Lets machines without a certificate in as well, to join.
pub(super) fn joining(listener: Listener, tls: &Arc<NodeTls>) -> Result<Listener, StartError> {
    let failed = |error: Box<dyn std::error::Error + Send + Sync>| {
        StartError::new("let machines join (replication.authority_key)", error)
    };
    let tls = join_server(tls).map_err(|error| failed(error.into()))?;
    Ok(listener.joining(join_server_config(&tls).map_err(|error| failed(error.into()))?))
}

/// Where the replication listener is for others.
pub(super) fn addresses(config: &config::Primary, listening: SocketAddr) -> Vec<String> {
    match &config.replication.public_address {
        Some(addresses) => addresses.texts(),
        None => vec![format!("{}:{}", config.registry.public_url.host(), listening.port())],
    }
}

/// Shows a site that joined, and tells of it.
pub(super) fn on_joined(fleet: &Fleet, webhooks: &Webhooks) -> OnJoined {
    let (fleet, webhooks) = (fleet.clone(), webhooks.clone());
    Arc::new(move |site| {
        // A machine that asks twice with its token is one site.
        if fleet.follow(site).is_none() {
            fleet.add(site);
            webhooks.follow(site);
        }
    })
}

/// Makes and removes sites.
pub(super) struct Membership {
    /// Where machines are told to go that join, over UDP and over TCP.
    pub(super) addresses: (Vec<String>, String),
    pub(super) members: Arc<Members>,
    pub(super) fleet: Fleet,
    pub(super) publisher: Publisher,
    pub(super) keys: Arc<PrimaryKeys>,
    pub(super) told: Told,
}

impl admin::Membership for Membership {
    fn invite(&self, new: NewSite) -> Result<Invitation, SiteError> {
        let NewSite { site, https, life } = new;
        let token = self.members.invite(site, self.addresses.clone(), https, life).map_err(refused)?;
        tracing::info!(site = %token.site, expires = token.expires.as_secs(), "join token made");
        Ok(Invitation { token: token.to_string(), expires: token.expires })
    }

    /// Refused first, so that no key is made for it again; then cut off; then its tickets open no more.
    fn remove(&self, site: &SiteName) -> Result<(), SiteError> {
        self.members.remove(site).map_err(refused)?;
        let reason = format!("site {site} was removed");
        self.publisher.close(site, &reason);
        self.keys.keep_sites(&self.members.sites()).map_err(|error| SiteError::Failed(error.to_string()))?;
        // Those that relay ask for the keys of the sites behind them again, and are told.
        self.told.moved();
        self.fleet.remove(site);
        tracing::info!(%site, "site removed");
        Ok(())
    }
}

fn refused(error: MemberError) -> SiteError {
    let reason = error.to_string();
    match error {
        MemberError::Already(_) | MemberError::NoAuthority => SiteError::Conflict(reason),
        MemberError::Unknown(_) => SiteError::Unknown(reason),
        MemberError::Authority(_) => SiteError::Invalid(reason),
        _ => SiteError::Failed(reason),
    }
}
