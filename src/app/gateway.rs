//! Wires a primary to the registry that it stands in front of.

use crate::watch;
use std::sync::Arc;

use super::{StartError, data_dir::DataDir};
use crate::{
    admin::{GatewayAdmin, GatewayCollector},
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
        gateway::{
            Gateway, GatewayUpstream,
            intake::{Intake, NoticeSource},
            walk::{ReconcileOptions, Reconciler},
        },
    },
    shutdown::Shutdown,
    status::GatewayStatus,
    store::Rank,
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
    /// Who is asked for what is not here, and what keeps the log in agreement with it.
    pub(super) behind: Option<Registry>,
}

/// The registry behind.
pub(super) struct Registry {
    /// It itself.
    pub(super) backend: Backend,
    /// It is asked for what is not here.
    pub(super) above: Above,
    /// What administrators see of it.
    pub(super) admin: Arc<GatewayAdmin>,
    /// Whether the log may be of an older state than it.
    pub(super) unsure: watch::Receiver<bool>,
}

impl Registry {
    /// What `/v1/status` says of it.
    pub(super) fn status(admin: &GatewayAdmin) -> Box<GatewayStatus> {
        let report = admin.reconciler.report();
        Box::new(GatewayStatus {
            last_reconciled_at: report.last_reconciled_at,
            last_drift: report.last_drift,
            reconciling: report.running,
            missed: report.missed,
            unfit: report.unfit,
            alarm: admin.alarm(),
        })
    }
}

/// The registry behind, ready to be asked.
pub(super) struct Upstream {
    options: BackendOptions,
    tls: Arc<rustls::ClientConfig>,
    tls_as_nobody: rustls::ClientConfig,
    reconcile: ReconcileOptions,
    sources: Vec<NoticeSource>,
    /// Most bytes of its blobs that are kept here.
    pub(super) cache_bytes: u64,
    /// Whether it knows its callers itself.
    shows_callers: bool,
    /// Whether the gateway ends uploads whose token has ended.
    finishes_expired: bool,
}

impl Upstream {
    pub(super) fn of(config: &config::Primary, url: &config::PublicUrl) -> Result<Self, StartError> {
        let gateway = config.gateway.clone().unwrap_or_default();
        let options = gateway.backend(url);
        let mut options = options.map_err(|(key, reason)| StartError::new(format!("use {key}"), reason))?;
        if let config::Auth::Token(token) = &config.auth {
            // Clients are sent there with their passwords as well.
            options.token_realm.get_or_insert_with(|| token.realm.as_str().to_owned());
        }
        let (tls, tls_as_nobody) = clients(&gateway)?;
        let sources = gateway.notifications.iter().map(source).collect::<Result<Vec<_>, _>>()?;
        let reconcile = gateway.reconcile.options(!sources.is_empty());
        let reconcile = reconcile.map_err(|(key, reason)| StartError::new(format!("use {key}"), reason))?;
        let shows_callers = !matches!(config.auth, config::Auth::Outport(_));
        let cache_bytes = gateway.cache.0;
        Ok(Self {
            options,
            tls: Arc::new(tls),
            tls_as_nobody,
            reconcile,
            sources,
            cache_bytes,
            shows_callers,
            finishes_expired: gateway.finish_expired_uploads,
        })
    }

    pub(super) fn parts(
        self,
        site: Site,
        (data_dir, is_restored): (&DataDir, bool),
        journal: &Journal,
        (metrics, flight_metrics): (&Metrics, FlightMetrics),
        shutdown: &Shutdown,
    ) -> Result<Parts, StartError> {
        // What is kept of the registry's blobs is a cache: nothing is worth more than something newer.
        site.store.let_go_by(Arc::new(|_: &_| Rank::Lazy));
        let backend = Backend::new(self.options, &self.tls, &self.tls_as_nobody);
        let gateway = {
            let (clock, removals_max) = (Arc::clone(&site.clock), self.reconcile.removals_max);
            Gateway::new(backend.clone(), journal.clone(), clock, removals_max, shutdown.clone())
        };
        let upstream: Arc<dyn crate::fetch::Upstream> = Arc::new(GatewayUpstream::new(gateway.clone()));
        let flights = Flights::new(
            site.store.clone(),
            Arc::clone(&upstream),
            shutdown.clone(),
            FlightOptions::default(),
            flight_metrics,
        );
        let own =
            "primary".parse().map_err(|error| StartError::new("name the primary", format!("{error:?}")))?;
        let exclusion = Exclusion::new(Arc::default(), site.index.clone());
        let edge = Edge {
            upstream: Arc::clone(&upstream),
            flights: flights.clone(),
            session: SessionView::of_gateway(gateway.unsure()),
            intents: Intents::in_memory(own, 0),
            shutdown: shutdown.clone(),
        };
        let pull = PullService::secondary(site, edge);
        let above = Above { upstream, flights, exclusion: Arc::new(exclusion) };
        let reconciler =
            Reconciler::new(gateway.clone(), self.reconcile, data_dir.join("reconcile"), is_restored)
                .map_err(|error| StartError::new("read how far the registry was walked", error))?;
        shutdown.spawn(reconciler.clone().run(shutdown.clone()));
        let intake = Intake::new(gateway.clone(), reconciler.clone(), self.sources);
        let admin = Arc::new(GatewayAdmin { reconciler, intake });
        metrics.register(|registry| {
            registry.register_collector(Box::new(GatewayCollector(Arc::clone(&admin))));
        });
        let unsure = gateway.unsure();
        let proxy = Proxy::new(self.tls, "the registry behind this site");
        let behind = Behind {
            gateway,
            proxy,
            shows_callers: self.shows_callers,
            finishes_expired: self.finishes_expired,
        };
        let registry = Registry { backend, above, admin, unsure };
        Ok(Parts { pull, push: None, writes: Writes::Behind(Box::new(behind)), behind: Some(registry) })
    }
}

fn source(source: &config::Notifications) -> Result<NoticeSource, StartError> {
    let file = &source.secret_file;
    let failed = |reason: String| {
        StartError::new(format!("read gateway.notifications.secret_file {}", file.display()), reason)
    };
    let secret = std::fs::read_to_string(file).map_err(|error| failed(error.to_string()))?;
    match secret.trim() {
        "" => Err(failed("it is empty".to_owned())),
        secret => {
            let (name, secret) = (source.name.clone(), secret.to_owned());
            Ok(NoticeSource { name, format: source.format, secret })
        }
    }
}

/// How the registry is met, and how whoever it sends the gateway to.
fn clients(gateway: &config::Gateway) -> Result<(rustls::ClientConfig, rustls::ClientConfig), StartError> {
    let failed = |key: &str| {
        let action = format!("load {key}");
        move |error: Box<dyn std::error::Error + Send + Sync>| StartError::new(action.clone(), error)
    };
    let mut authorities = super::system_authorities();
    if let Some(file) = &gateway.authorities {
        let loaded = load_certificates(file).map_err(|error| failed("gateway.authorities")(error.into()))?;
        authorities.extend(loaded);
    }
    let as_nobody =
        tls::https_client(&authorities).map_err(|error| failed("gateway.authorities")(error.into()))?;
    let failed = failed("gateway.client_certificate and gateway.client_key");
    let (Some(certificate), Some(key)) = (&gateway.client_certificate, &gateway.client_key) else {
        return Ok((as_nobody.clone(), as_nobody));
    };
    let identity = Identity::load(certificate, key).map_err(|error| failed(error.into()))?;
    let client = tls::https_client_as(&identity, &authorities).map_err(|error| failed(error.into()))?;
    Ok((client, as_nobody))
}
