//! Wires a primary: journal, store, push and pull, token service, publisher, listeners.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use arc_swap::ArcSwapOption;
use outport_proto::Offset;
use tokio::sync::Semaphore;

use super::{
    StartError, audit,
    callers::{Callers, Told},
    certificates::{Certificates, Statuses},
    data_dir::DataDir,
    gateway::{Parts, Registry, Upstream},
    issuer::KeysAlarm,
    listen::{admin_token, bind, chart, serve_admin, serve_registry},
    membership::{self, Membership},
    open_store,
    otlp::{self, Traces},
    promote, renewal,
    replication::{CONNECTIONS_MAX, listen, time_after, tunnelled},
    store_status,
    traffic::Traffic,
    webhooks,
};
use crate::{
    admin::{Admin, FOLLOWERS_MAX, GatewayAdmin, PREFETCHES_MAX, StatusCollector, WAITS_MAX},
    auth::{PrimaryKeys, random_text, ticket::WRITE_TIME_MAX},
    blocking,
    clock::{SharedClock, SystemClock},
    config,
    fetch::FlightMetrics,
    http::{Addresses, Api, HttpMetrics, PrimaryRole, Role, Tunnels, Writes},
    primary::{
        fleet::{Fleet, Head},
        joins::Joins,
        log_stream::LogPublisher,
        publisher::{Admit, Publisher},
        requests::Answerer,
        source::{OwnSource, PrimaryIdentity, Relays, Source},
        webhooks::{Sources, Webhooks},
        whereabouts::FleetWhereabouts,
    },
    registry::{
        Drain, Journal, PullMetrics, PullRules, PullService, PushLimits, PushService, Site, Verification,
        canary::Pusher,
        journal::{History, JournalCollector, JournalOptions},
    },
    shutdown::Shutdown,
    status::{Location, PrimaryStatus, Readiness, Status, StatusSource},
    store::{Store, StoreOptions},
    telemetry::{Metrics, audit::Audit},
};

/// How often seal keys are looked at for their age.
const KEY_ROTATION_INTERVAL: Duration = Duration::from_secs(600);
/// How often abandoned uploads are looked for.
const SWEEP_INTERVAL: Duration = Duration::from_secs(600);

/// A running primary.
pub struct Running {
    journal: Journal,
    push: Option<PushService>,
    replication: SocketAddr,
    shutdown: Shutdown,
    journal_shutdown: Shutdown,
    traces: Traces,
    audit: Audit,
    _data_dir: DataDir,
}

impl Running {
    /// Where secondaries connect.
    pub fn replication_address(&self) -> SocketAddr {
        self.replication
    }

    /// Takes pushes; `None` in front of a registry.
    pub fn push(&self) -> Option<&PushService> {
        self.push.as_ref()
    }

    /// Newest durable event.
    pub fn head(&self) -> Offset {
        self.journal.log().head()
    }

    /// Stops listening, lets requests in flight end, makes everything durable.
    ///
    /// # Errors
    /// When that takes too long, or the journal had failed.
    pub async fn stop(self) -> Result<(), StartError> {
        let stopped = super::stop((&self.shutdown, &self.journal_shutdown), &self.journal, "primary").await;
        self.traces.stop().await;
        audit::stop(self.audit).await;
        stopped
    }
}

/// Starts a primary whose data has this `history`.
///
/// # Errors
/// What could not be opened or bound.
pub async fn start(
    config: &config::Primary,
    history: History,
    parent: &Shutdown,
) -> Result<Running, StartError> {
    let (shutdown, journal_shutdown) = (parent.child(), parent.child());
    let clock: SharedClock = Arc::new(SystemClock);
    let metrics = Metrics::default();
    let traces = Traces::start(config.telemetry.otlp.as_ref(), "primary", "primary")?;
    let mut certificates = Certificates::new(&metrics);
    let node_tls = certificates.node(&config.replication.tls, "replication.tls")?;
    let https = config.registry.tls.as_ref().map(|tls| certificates.https(tls)).transpose()?;
    let data_dir = DataDir::open(&config.data_dir)?;
    let audit =
        audit::start(&config.audit, config.telemetry.otlp.as_ref(), ("primary", "primary"), &metrics)?;
    let cluster = data_dir.remembered("cluster", || {
        random_text().map_err(|error| StartError::new("make the cluster's identity", error))
    })?;
    // What may be taken by another process comes first: nothing has to be undone then.
    let registry_listener = bind(config.registry.listen, "registry.listen").await?;
    let admin_listener = bind(config.admin.listen, "admin.listen").await?;
    let listener = listen(
        config.replication.listen,
        &node_tls,
        "replication.listen, replication.tls",
        config.replication.congestion,
    )?;
    let listener = match config.replication.authority_key {
        Some(_) => membership::joining(listener, &node_tls)?,
        None => listener,
    };
    let replication = listener
        .endpoint
        .local_addr()
        .map_err(|error| StartError::new("listen (replication.listen)", error))?;

    let keys = Arc::new(
        PrimaryKeys::open(&data_dir.join("keys"))
            .map_err(|error| StartError::new("open the primary's keys", error))?,
    );
    let relays = Relays::new(config.replication.relays.clone());
    let members = membership::members(&config.replication, &data_dir, &relays, &clock)?;
    keys.keep_sites(&members.sites())
        .map_err(|error| StartError::new("forget the keys of sites that were removed", error))?;
    let behind = config.registry.upstream.as_ref().map(|url| Upstream::of(config, url)).transpose()?;
    let limit_bytes = behind.as_ref().map(|behind| behind.cache_bytes);
    let store =
        open_store(&data_dir, StoreOptions { limit_bytes, clock: Arc::clone(&clock), witness: None }).await?;
    metrics.register(|registry| store.register(registry));
    super::scrub(&store, config.store.scrub_mib_per_second, &shutdown);
    let is_promoted = promote::is_promoted(&data_dir);
    let history = if is_promoted { History::Restored } else { history };
    let options = JournalOptions { history, ..config.log.journal() };
    let journal = Journal::open(&config.data_dir, options, Arc::clone(&clock), &journal_shutdown)
        .await
        .map_err(|error| StartError::new("open the journal", error))?;
    if is_promoted {
        promote::begun(&data_dir)?;
    }
    let pull_metrics = metrics.register(PullMetrics::new);
    let flight_metrics = metrics.register(FlightMetrics::new);
    let http_metrics = metrics.register(HttpMetrics::new);
    let traffic = Traffic::new(pull_metrics.clone(), http_metrics.clone(), flight_metrics.clone());
    shutdown.spawn(traffic.clone().run(shutdown.clone()));
    let site = Site {
        index: journal.index().clone(),
        store: store.clone(),
        clock: Arc::clone(&clock),
        rules: PullRules::default(),
        metrics: pull_metrics.clone(),
    };
    let Parts { pull, push, writes, behind } = match behind {
        None => {
            let push = push_service(config, &journal, &store, &clock, &shutdown);
            let (pull, writes) = (PullService::primary(site), Writes::Own(push.clone()));
            Parts { pull, push: Some(push), writes, behind: None }
        }
        Some(upstream) => {
            let restored = history == History::Restored;
            upstream.parts(site, (&data_dir, restored), &journal, (&metrics, flight_metrics), &shutdown)?
        }
    };
    let canary_push =
        push.clone().unwrap_or_else(|| push_service(config, &journal, &store, &clock, &shutdown));
    let canary = Pusher::new(canary_push, journal.index().clone(), config.canary.interval());
    let is_gateway = behind.is_some();
    let (above, gateway, registry, unsure) = match behind {
        Some(Registry { backend, above, admin, unsure }) => {
            (Some(above), Some(admin), Some(backend), Some(unsure))
        }
        None => (None, None, None, None),
    };

    let public_url = config.registry.public_url.as_str();
    let callers = Callers::new(config, registry, &keys, &clock, journal.log(), &shutdown).await?;
    metrics.register(|registry| callers.authenticator.register(registry));
    let addresses = Addresses::new(public_url, &callers.realm, &callers.service)
        .map_err(|error| StartError::new("use registry.public_url", error))?;
    let readiness = readiness(&journal);
    let drain = Drain::open(data_dir.join("drained"));
    let tunnels = Tunnels::new(replication, shutdown.clone());
    let api = Api {
        readiness: Arc::clone(&readiness),
        proxies: config.registry.proxies.believed(),
        tunnels: Some(tunnels.clone()),
        pull,
        authenticator: Arc::clone(&callers.authenticator),
        addresses: Arc::new(ArcSwapOption::from_pointee(addresses)),
        clock: Arc::clone(&clock),
        metrics: http_metrics,
        tracing: traces.tracing.clone(),
        audit: audit.clone(),
        role: Role::Primary(Box::new(PrimaryRole {
            writes,
            drain: drain.clone(),
            tokens: callers.tokens,
            tickets: keys.opener(),
            upload_states: keys.upload_states(),
            write_time_max: WRITE_TIME_MAX,
        })),
    };

    if let config::Auth::Outport(auth) = &config.auth {
        audit::tell_rules(&audit, &data_dir, auth.rules_as_text())?;
    }
    let fleet = Fleet::new(members.sites(), relays.clone());
    let source: Arc<dyn Source> = Arc::new(OwnSource {
        identity: PrimaryIdentity {
            cluster: cluster.clone(),
            token_realm: callers.realm,
            token_service: callers.service,
            public_url: public_url.to_owned(),
            path: Vec::new(),
        },
        journal: journal.clone(),
        clock: Arc::clone(&clock),
        keys_of: callers.told.keys_of(),
        keys_changed: callers.told.changed(),
        relays,
        authenticator: Some(Arc::clone(&callers.authenticator)),
        unsure,
        members: Some(Arc::clone(&members)),
    });
    let sources = Sources {
        cluster: cluster.clone(),
        log: journal.log().clone(),
        fleet: fleet.clone(),
        clock: Arc::clone(&clock),
    };
    let webhooks = webhooks::start(&config.webhooks, &sources, &data_dir, &metrics, &shutdown)?;
    let publisher = LogPublisher {
        source: Arc::clone(&source),
        journal: journal.clone(),
        fleet: fleet.clone(),
        tunnelled: Some(tunnelled(tunnels.clone())),
    };
    let answerer = match above {
        None => Answerer::new(journal.clone(), store.clone(), source),
        Some(above) => Answerer::relaying(journal.clone(), store.clone(), source, above),
    };
    let answerer = answerer.traced(traces.tracing.clone());
    let joins = Joins::new(Arc::clone(&members), membership::on_joined(&fleet, &webhooks));
    let admits = Arc::clone(&members);
    let admit: Admit = Arc::new(move |certificate| admits.admit(certificate));
    let publisher = Publisher::joined_by(Some(joins), admit, publisher, answerer, CONNECTIONS_MAX);
    shutdown.spawn(publisher.clone().serve(listener, shutdown.clone()));
    let membership = Membership {
        addresses: (membership::addresses(config, replication), public_url.to_owned()),
        members,
        fleet: fleet.clone(),
        publisher,
        keys: Arc::clone(&keys),
        told: callers.told.clone(),
    };
    shutdown.spawn(rotate_keys(keys, callers.told, Arc::clone(&clock), shutdown.clone()));
    let upload_age_max = Duration::from_secs(u64::from(config.registry.upload_age_max_hours) * 3600);
    shutdown.spawn(sweep_uploads(store.clone(), upload_age_max, Arc::clone(&clock), shutdown.clone()));
    shutdown.spawn(super::end_on_failure(journal.clone(), shutdown.clone(), parent.clone()));
    shutdown.spawn(canary.run(shutdown.clone()));

    let whereabouts = FleetWhereabouts {
        journal: journal.clone(),
        fleet: fleet.clone(),
        rules: callers.rules,
        clock: Arc::clone(&clock),
    };
    let statuses = certificates.statuses();
    certificates.watch(&clock, &shutdown)?;
    renewal::of_primary(config, &clock, &shutdown);
    let about =
        Own { cluster, traffic, location: config.location.status(), certificates: statuses, webhooks };
    let status = status(about, &journal, &store, fleet, (&clock, gateway.as_ref(), callers.alarm));
    metrics.register(|registry| registry.register_collector(Box::new(JournalCollector(journal.clone()))));
    metrics.register(|registry| registry.register_collector(Box::new(StatusCollector(Arc::clone(&status)))));
    // It is what everybody else fills from; with a registry behind it, it is but a cache of that.
    let all = Arc::new(move |_: &_| !is_gateway);
    let verification = Verification::new(journal.clone(), store.clone(), None, all, shutdown.clone());
    let collector = super::collector(&journal, &store, config.store.gc_grace_minutes, &shutdown);
    let status_of_history = Arc::clone(&status);
    let admin = Admin {
        status,
        readiness,
        metrics,
        token: admin_token(config.admin.token_file.as_deref())?,
        whereabouts: Arc::new(whereabouts),
        waits: Semaphore::new(WAITS_MAX),
        prefetches: None,
        revoke: callers.revoke,
        drain: Some(drain),
        membership: Some(Arc::new(membership)),
        prefetch_turns: Arc::new(Semaphore::new(PREFETCHES_MAX)),
        gateway,
        collector,
        verification: Arc::new(verification),
        log: journal.log().clone(),
        history: chart(&data_dir, &clock, status_of_history, &shutdown)?,
        followers: Arc::new(Semaphore::new(FOLLOWERS_MAX)),
        audit: audit.clone(),
        clock: Arc::clone(&clock),
        shutdown: shutdown.clone(),
    };
    let otlp = config.telemetry.otlp.as_ref();
    otlp::metrics::send(otlp, ("primary", "primary"), &admin.metrics, &shutdown)?;
    serve_admin(admin_listener, admin, &shutdown);
    serve_registry(registry_listener, https, config.registry.connections_max, api, &shutdown);
    tracing::info!(
        registry = %config.registry.listen, admin = %config.admin.listen, %replication, %public_url,
        head = %journal.log().head(), "primary started"
    );
    Ok(Running { journal, push, replication, shutdown, journal_shutdown, traces, audit, _data_dir: data_dir })
}

fn push_service(
    config: &config::Primary,
    journal: &Journal,
    store: &Store,
    clock: &SharedClock,
    shutdown: &Shutdown,
) -> PushService {
    let limits = PushLimits {
        sparse_indexes: config.registry.sparse_manifests,
        sparse_manifests: config.registry.sparse_manifests,
        anonymous_mount: config.registry.anonymous_mount,
        ..PushLimits::default()
    };
    PushService::new(journal.clone(), store.clone(), Arc::clone(clock), limits, shutdown.clone())
}

async fn rotate_keys(keys: Arc<PrimaryKeys>, told: Told, clock: SharedClock, shutdown: Shutdown) {
    while super::pause(&shutdown, KEY_ROTATION_INTERVAL).await {
        let (of, now) = (Arc::clone(&keys), clock.now());
        match blocking::spawn(move || of.rotate(now)).await {
            Ok(Ok(true)) => told.moved(),
            Ok(Ok(false)) => {}
            Ok(Err(error)) => tracing::error!(%error, "ticket keys cannot be rotated"),
            Err(error) => tracing::error!(%error, "rotating ticket keys crashed"),
        }
    }
}

async fn sweep_uploads(store: Store, age_max: Duration, clock: SharedClock, shutdown: Shutdown) {
    loop {
        let (uploads, now) = (store.uploads(), clock.now());
        match blocking::spawn(move || uploads.sweep(now, age_max)).await {
            Ok(Ok(0)) => {}
            Ok(Ok(removed)) => tracing::info!(removed, "abandoned uploads removed"),
            Ok(Err(error)) => tracing::warn!(%error, "abandoned uploads cannot be removed"),
            Err(error) => tracing::error!(%error, "sweeping uploads crashed"),
        }
        if !super::pause(&shutdown, SWEEP_INTERVAL).await {
            return;
        }
    }
}

/// What a primary says of itself.
struct Own {
    cluster: String,
    traffic: Traffic,
    location: Location,
    certificates: Statuses,
    webhooks: Webhooks,
}

fn status(
    Own { cluster, traffic, location, certificates, webhooks }: Own,
    journal: &Journal,
    store: &Store,
    fleet: Fleet,
    (clock, gateway, auth_alarm): (&SharedClock, Option<&Arc<GatewayAdmin>>, KeysAlarm),
) -> StatusSource {
    let (journal, store, clock) = (journal.clone(), store.clone(), Arc::clone(clock));
    let gateway = gateway.cloned();
    Arc::new(move || {
        let log = journal.log();
        let offset = log.head();
        let head = Head { cluster: cluster.clone(), offset, log_bytes: log.bytes(), now: clock.now() };
        let sites = fleet.statuses(&head, |after| time_after(log, after));
        Status::Primary(Box::new(PrimaryStatus {
            cluster: cluster.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            epoch: offset.epoch,
            head_seq: offset.seq,
            floor_seq: log.floor().seq,
            store: store_status(&store),
            alarm: super::able(&journal).err(),
            auth_alarm: auth_alarm.reason(),
            gateway: gateway.as_deref().map(Registry::status),
            certificates: certificates.read(),
            webhooks: webhooks.status(),
            traffic: traffic.read(),
            location,
            sites,
        }))
    })
}

/// Who can send pushes elsewhere does so once none is taken here.
fn readiness(journal: &Journal) -> Readiness {
    let journal = journal.clone();
    Arc::new(move || super::able(&journal))
}
