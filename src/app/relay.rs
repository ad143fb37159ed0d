//! Wires what a site publishes to the sites that follow it: the publishing half of replication on
//! the word that the following half heard.

use crate::watch;
use std::sync::Arc;

use outport_proto::{
    SiteName,
    frame::{CertificateRequests, Certificates, Credentials, Heartbeat, Keys, Question, Verdict},
    session::LogState,
};

use super::{
    StartError,
    replication::{CONNECTIONS_MAX, admit, listen, time_after, tunnelled},
};
use crate::{
    auth::NodeTls,
    config,
    fetch::{BoxFuture, quic::Listener},
    http::Tunnels,
    log::Log,
    primary::{
        above::Above,
        fleet::{Fleet, Head},
        log_stream::LogPublisher,
        publisher::Publisher,
        requests::Answerer,
        source::{KeysDenied, PrimaryIdentity, Source},
    },
    registry::Journal,
    secondary::{
        detail::DetailsBehind,
        downstream::{PassedOn, Reports},
    },
    shutdown::Shutdown,
    status::{Lag, SiteState, SiteStatus},
    store::Store,
    telemetry::trace::Tracing,
};

/// A listener for sites that follow, and the table of those.
pub(super) struct Relay {
    listener: Listener,
    sites: Vec<SiteName>,
    fleet: Fleet,
}

impl Relay {
    /// Binds the listener; it shows the certificate that the site has for its upstream as well.
    pub(super) fn bind(config: &config::Relay, tls: &Arc<NodeTls>) -> Result<Self, StartError> {
        let listener = listen(config.listen, tls, "relay.listen, primary.tls", config.congestion)?;
        let fleet = Fleet::of_relay(config.sites.iter().cloned());
        Ok(Self { listener, sites: config.sites.clone(), fleet })
    }

    /// How the sites are that follow.
    pub(super) fn reports(&self) -> Reports {
        let fleet = self.fleet.clone();
        Arc::new(move || fleet.behind())
    }

    /// What the sites that follow told for people.
    pub(super) fn details(&self) -> DetailsBehind {
        let fleet = self.fleet.clone();
        Arc::new(move || fleet.details())
    }

    /// The way to the listener for sites whose network carries no UDP.
    pub(super) fn tunnels(&self, shutdown: &Shutdown) -> Result<Tunnels, StartError> {
        let listening = self.listener.endpoint.local_addr();
        let listening = listening.map_err(|error| StartError::new("listen (relay.listen)", error))?;
        Ok(Tunnels::new(listening, shutdown.clone()))
    }

    /// Shows the sites that follow.
    pub(super) fn followers(&self, passed_on: &PassedOn, journal: &Journal) -> Followers {
        Followers { fleet: self.fleet.clone(), passed_on: passed_on.clone(), log: journal.log().clone() }
    }

    /// Serves the sites that follow until shutdown.
    pub(super) fn serve(
        self,
        passed_on: PassedOn,
        journal: &Journal,
        store: &Store,
        above: Above,
        (tracing, tunnels): (Tracing, Option<Tunnels>),
        shutdown: &Shutdown,
    ) {
        let source: Arc<dyn Source> = Arc::new(Relayed(passed_on));
        let answerer = Answerer::relaying(journal.clone(), store.clone(), Arc::clone(&source), above);
        let answerer = answerer.traced(tracing);
        let publisher = LogPublisher {
            source,
            journal: journal.clone(),
            fleet: self.fleet,
            tunnelled: tunnels.map(tunnelled),
        };
        let admit = admit(self.sites, "relay.sites");
        let publisher = Publisher::new(admit, publisher, answerer, CONNECTIONS_MAX);
        shutdown.spawn(publisher.serve(self.listener, shutdown.clone()));
    }
}

/// Shows the sites that follow this one, and those behind them, as the primary would.
pub(super) struct Followers {
    fleet: Fleet,
    passed_on: PassedOn,
    log: Log,
}

impl Followers {
    /// How they are, behind the site that is as `own` says.
    pub(super) fn statuses(&self, own: &SiteStatus) -> Vec<SiteStatus> {
        let Heartbeat { head, log_bytes, now, .. } = self.passed_on.state().heartbeat;
        let head = Head { cluster: own.cluster.clone(), offset: head, log_bytes, now };
        let mut sites = self.fleet.statuses(&head, |after| time_after(&self.log, after));
        for site in &mut sites {
            site.via.splice(0..0, own.via.iter().chain([&own.site]).cloned());
            // Nobody behind this site has heard more of the primary than it has itself.
            if own.lag_seconds.applied.is_none() {
                site.lag_seconds = Lag::default();
                site.eta_seconds = None;
                site.state = SiteState::Disconnected;
            }
        }
        sites
    }
}

/// The primary's word, at second hand.
pub struct Relayed(pub PassedOn);

impl Source for Relayed {
    fn identity(&self) -> Result<PrimaryIdentity, String> {
        let (welcome, path) = self.0.told()?;
        Ok(PrimaryIdentity {
            cluster: welcome.cluster.clone(),
            token_realm: welcome.token_realm.clone(),
            token_service: welcome.token_service.clone(),
            public_url: welcome.public_url.clone(),
            path,
        })
    }

    fn sound(&self) -> Result<(), String> {
        self.0.sound()
    }

    fn state(&self) -> LogState {
        self.0.state()
    }

    fn news(&self) -> watch::Receiver<u64> {
        self.0.news()
    }

    fn keys<'a>(
        &'a self,
        site: &'a SiteName,
        via: &'a [SiteName],
    ) -> BoxFuture<'a, Result<Keys, KeysDenied>> {
        Box::pin(async move { given(self.0.keys(site, via).await, site, via) })
    }

    fn certify<'a>(
        &'a self,
        site: &'a SiteName,
        via: &'a [SiteName],
        requests: CertificateRequests,
    ) -> BoxFuture<'a, Result<Certificates, KeysDenied>> {
        Box::pin(async move { given(self.0.certify(site, via, requests).await, site, via) })
    }

    fn find_key<'a>(&'a self, unknown: &'a str) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(self.0.find_key(unknown))
    }

    fn verdict<'a>(
        &'a self,
        authorization: Option<Credentials>,
        question: Question,
    ) -> BoxFuture<'a, Result<Verdict, String>> {
        Box::pin(self.0.verdict(authorization, question))
    }

    fn keys_changed(&self) -> watch::Receiver<u64> {
        self.0.keys_changed()
    }
}

/// What the primary gave for `site`; nothing means that it is not for whoever asked.
fn given<T>(asked: Result<Option<T>, String>, site: &SiteName, via: &[SiteName]) -> Result<T, KeysDenied> {
    let asker = || via.last().unwrap_or(site).clone();
    let not_behind = || KeysDenied::NotBehind { site: site.clone(), asker: asker() };
    asked.map_err(KeysDenied::Unavailable)?.ok_or_else(not_behind)
}
