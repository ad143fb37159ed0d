//! Wires a primary to the registry that it stands in front of.

use std::sync::Arc;

use super::StartError;
use crate::{
    auth::{Identity, authority::load_certificates, tls},
    config,
    fetch::{
        FlightMetrics, FlightOptions, Flights,
        backend::{Backend, BackendOptions},
    },
    http::{Behind, Proxy, Writes},
    primary::above::Above,
    registry::{
        Edge, Exclusion, Intents, Journal, PullService, PushService, SessionView, Site,
        gateway::{Gateway, GatewayUpstream},
    },
    shutdown::Shutdown,
    telemetry::Metrics,
};

/// What a primary is made of that depends on whether there is a registry behind it.
pub(super) struct Parts {
    /// Answers reads.
    pub(super) pull: PullService,
    /// Takes pushes into its own store.
    pub(super) push: Option<PushService>,
    /// Where pushes go.
    pub(super) writes: Writes,
    /// Who is asked for what is not here.
    pub(super) above: Option<Above>,
    /// The registry itself.
    pub(super) registry: Option<Backend>,
}

/// The registry behind, ready to be asked.
pub(super) struct Upstream {
    options: BackendOptions,
    tls: Arc<rustls::ClientConfig>,
    /// Most bytes of its blobs that are kept here.
    pub(super) cache_bytes: u64,
    /// Whether it knows its callers itself.
    shows_callers: bool,
}

impl Upstream {
    pub(super) fn of(config: &config::Primary, url: &config::PublicUrl) -> Result<Self, StartError> {
        let gateway = config.gateway.clone().unwrap_or_default();
        let options = gateway.backend(url);
        let options = options.map_err(|(key, reason)| StartError::new(format!("use {key}"), reason))?;
        let tls = Arc::new(client(&gateway)?);
        let shows_callers = !matches!(config.auth, config::Auth::Outport(_));
        Ok(Self { options, tls, cache_bytes: gateway.cache.0, shows_callers })
    }

    pub(super) fn parts(
        self,
        site: Site,
        journal: &Journal,
        metrics: &Metrics,
        shutdown: &Shutdown,
    ) -> Result<Parts, StartError> {
        let backend = Backend::new(self.options, &self.tls);
        let gateway =
            Gateway::new(backend.clone(), journal.clone(), Arc::clone(&site.clock), shutdown.clone());
        let upstream: Arc<dyn crate::fetch::Upstream> = Arc::new(GatewayUpstream::new(gateway.clone()));
        let flights = Flights::new(
            site.store.clone(),
            Arc::clone(&upstream),
            shutdown.clone(),
            FlightOptions::default(),
            metrics.register(FlightMetrics::new),
        );
        let own =
            "primary".parse().map_err(|error| StartError::new("name the primary", format!("{error:?}")))?;
        let exclusion = Exclusion::new(Arc::default(), site.index.clone());
        let edge = Edge {
            upstream: Arc::clone(&upstream),
            flights: flights.clone(),
            session: SessionView::of_gateway(),
            intents: Intents::in_memory(own, 0),
            shutdown: shutdown.clone(),
        };
        let pull = PullService::secondary(site, edge);
        let above = Above { upstream, flights, exclusion: Arc::new(exclusion) };
        let proxy = Proxy::new(self.tls, "the registry behind this site");
        let behind = Behind { gateway, proxy, shows_callers: self.shows_callers };
        Ok(Parts {
            pull,
            push: None,
            writes: Writes::Behind(Box::new(behind)),
            above: Some(above),
            registry: Some(backend),
        })
    }
}

fn client(gateway: &config::Gateway) -> Result<rustls::ClientConfig, StartError> {
    let failed = |key: &str| {
        let action = format!("load {key}");
        move |error: Box<dyn std::error::Error + Send + Sync>| StartError::new(action.clone(), error)
    };
    let mut authorities = super::system_authorities();
    if let Some(file) = &gateway.authorities {
        let loaded = load_certificates(file).map_err(|error| failed("gateway.authorities")(error.into()))?;
        authorities.extend(loaded);
    }
    let failed = failed("gateway.client_certificate and gateway.client_key");
    let client = match (&gateway.client_certificate, &gateway.client_key) {
        (Some(certificate), Some(key)) => {
            let identity = Identity::load(certificate, key).map_err(|error| failed(error.into()))?;
            tls::https_client_as(&identity, &authorities)
        }
        _ => tls::https_client(&authorities),
    };
    client.map_err(|error| failed(error.into()))
}
