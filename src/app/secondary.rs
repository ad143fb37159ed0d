//! Wires a secondary: journal, store, pull, subscriber, copying ahead, the redirect, listeners.

use crate::watch;
use std::{sync::Arc, time::Duration};

use outport_proto::{
    Digest, Offset,
    frame::{ALPN, FILLS_MAX, MISSING_REPOS_MAX},
};
use rustls::ClientConfig;
use tokio::sync::{Semaphore, mpsc};

use super::{
    StartError, audit,
    certificates::{Certificates, Statuses},
    data_dir::DataDir,
    listen::{admin_token, bind, chart, serve_admin, serve_registry},
    open_store,
    otlp::{self, Traces},
    relay::{Followers, Relay},
    renewal, store_status,
    traffic::Traffic,
    trust::Trust,
};
use crate::{
    admin::{Admin, FOLLOWERS_MAX, PREFETCHES_MAX, StatusCollector, WAITS_MAX},
    auth::{NodeTls, authority::load_certificates, tls},
    blocking,
    clock::{SharedClock, SystemClock},
    config,
    fetch::{
        FlightMetrics, FlightOptions, Flights, Linked, Pace, Upstream,
        primary::{QuicUpstream, QuicUpstreamOptions},
        quic::TransportOptions,
        tunnel::Way,
    },
    http::{Api, HttpMetrics, Proxy, PushMode, Redirects, Role, TOKEN_PATH},
    index::{Index, boot_id},
    log::disk::OsDisk,
    policy::{Bandwidth, Policy},
    primary::above::Above,
    registry::{
        Edge, Exclusion, Intents, Journal, Past, PullMetrics, PullRules, PullService, SessionView, Site,
        Verification,
        canary::Watcher,
        journal::{JournalCollector, JournalOptions, Origin},
        verification::IsFault,
    },
    secondary::{
        complete::Lacking,
        detail::{About, CanarySource, FillsSource},
        dial::Dialer,
        downstream::{Downstream, PassedOn},
        memory::Memory,
        on_demand::OnDemand,
        prefetch::{Prefetch, PrefetchOptions, Progress},
        propagation::PropagationMetrics,
        ranks::ranks,
        subscriber::{Subscription, SubscriptionOptions, SubscriptionParts},
        view::SiteView,
        whereabouts::OwnWhereabouts,
    },
    shutdown::Shutdown,
    status::{CanaryStatus, FillStatus, MissingRepo, Readiness, SiteState, Status, StatusSource},
    store::{Rank, Ranks, Store, StoreOptions},
    telemetry::{Metrics, audit::Audit},
};

/// Redirected pushes remembered at once; beyond that the whole site revalidates.
const INTENTS_MAX: usize = 100_000;

/// Bad copies that wait to be filled again, at most.
const LOSSES_MAX: usize = 1024;
/// How often it is looked whether displaced blobs are still wanted.
const REVIEW_INTERVAL: Duration = Duration::from_secs(60);

/// A running secondary.
pub struct Running {
    journal: Journal,
    shutdown: Shutdown,
    journal_shutdown: Shutdown,
    traces: Traces,
    audit: Audit,
    _data_dir: DataDir,
}

impl Running {
    /// Waits until the index shows `offset`.
    pub async fn wait_applied(&self, offset: Offset) {
        let mut applied = self.journal.watch_applied();
        // The sender lives as long as the journal does.
        let _ = applied.wait_for(|applied| *applied >= offset).await;
    }

    /// Stops listening, lets requests in flight end, makes everything durable.
    ///
    /// # Errors
    /// When that takes too long, or the journal had failed.
    pub async fn stop(self) -> Result<(), StartError> {
        let stopped = super::stop((&self.shutdown, &self.journal_shutdown), &self.journal, "secondary").await;
        self.traces.stop().await;
        audit::stop(self.audit).await;
        stopped
    }
}

/// Starts a secondary. It serves what it has whether or not the primary can be reached.
///
/// # Errors
/// What could not be opened or bound.
pub async fn start(config: &config::Secondary, parent: &Shutdown) -> Result<Running, StartError> {
    let (shutdown, journal_shutdown) = (parent.child(), parent.child());
    let clock: SharedClock = Arc::new(SystemClock);
    let metrics = Metrics::default();
    let traces = Traces::start(config.telemetry.otlp.as_ref(), "secondary", config.site.as_str())?;
    let mut certificates = Certificates::new(&metrics);
    let node_tls = certificates.node(&config.primary.tls, "primary.tls")?;
    let https = config.registry.tls.as_ref().map(|tls| certificates.https(tls)).transpose()?;
    let data_dir = DataDir::open(&config.data_dir)?;
    let audit = audit::start(
        &config.audit,
        config.telemetry.otlp.as_ref(),
        ("secondary", config.site.as_str()),
        &metrics,
    )?;
    let registry_listener = bind(config.registry.listen, "registry.listen").await?;
    let admin_listener = bind(config.admin.listen, "admin.listen").await?;
    let relay = config.relay.as_ref().map(|relay| Relay::bind(relay, &node_tls)).transpose()?;

    let policy = Arc::new(config.policy().map_err(|error| StartError::new("read the policy", error))?);
    audit::tell_rules(&audit, &data_dir, &policy)?;
    let bandwidth =
        config.bandwidth().map_err(|error| StartError::new("read the bandwidth limits", error))?;
    let memory = Memory::open(&config.data_dir)
        .map_err(|error| StartError::new("read what the site remembers of its primary", error))?;
    // Without a primary nothing was ever led to one.
    let past = if memory.last().is_none() { Past::None } else { Past::Perhaps };
    let limit_bytes = config.store.limit.map(|limit| limit.0);
    let store =
        open_store(&data_dir, StoreOptions { limit_bytes, clock: Arc::clone(&clock), witness: None }).await?;
    metrics.register(|registry| store.register(registry));
    super::scrub(&store, config.store.scrub_mib_per_second, &shutdown);
    let journal = Journal::open(
        &config.data_dir,
        JournalOptions { origin: Origin::Followed, ..config.log.journal() },
        Arc::clone(&clock),
        &journal_shutdown,
    )
    .await
    .map_err(|error| StartError::new("open the journal", error))?;

    let pull_metrics = metrics.register(PullMetrics::new);
    let flight_metrics = metrics.register(FlightMetrics::new);
    let http_metrics = metrics.register(HttpMetrics::new);
    let traffic = Traffic::new(pull_metrics.clone(), http_metrics.clone(), flight_metrics.clone());
    shutdown.spawn(traffic.clone().run(shutdown.clone()));
    let (link, upstream) = QuicUpstream::new(&QuicUpstreamOptions::default());
    let flights = Flights::paced(
        store.clone(),
        Arc::new(upstream.clone()),
        shutdown.clone(),
        FlightOptions::default(),
        flight_metrics.clone(),
        pace(bandwidth, &clock),
    );
    let (session_feed, session) = SessionView::new();
    let watched = session.clone();
    let intents = open_intents(config, &data_dir, past, &clock).await?;
    let site = |metrics: PullMetrics| Site {
        index: journal.index().clone(),
        store: store.clone(),
        clock: Arc::clone(&clock),
        rules: rules(&config.read, &policy),
        metrics,
    };
    let quic_upstream = upstream.clone();
    renewal::of_site(config, &upstream, &clock, &shutdown);
    let upstream: Arc<dyn Upstream> = Arc::new(upstream);
    let edge = || Edge {
        upstream: Arc::clone(&upstream),
        flights: flights.clone(),
        session: session.clone(),
        intents: intents.clone(),
        shutdown: shutdown.clone(),
    };
    let pull = PullService::secondary(site(pull_metrics.clone()), edge());
    let canary = {
        let pull = PullService::secondary(site(PullMetrics::hidden()), edge());
        Watcher::new(pull, journal.index().clone(), session.clone(), Arc::clone(&clock))
    };

    let primary_https = primary_https(&config.primary)?;
    let way = way(&config.primary, &primary_https);
    let trust = Trust::new(&config.site, &clock, &quic_upstream)?;
    metrics.register(|registry| trust.authenticator.register(registry));
    let ranks = ranks(Arc::clone(&policy), journal.index().clone());
    store.let_go_by(Arc::clone(&ranks));
    refill(&store, journal.index(), &flights, &shutdown);
    shutdown.spawn(review_displaced(store.clone(), shutdown.clone()));
    let (prefetch, progress) = Prefetch::new(
        &config.data_dir,
        journal.clone(),
        store.clone(),
        Arc::clone(&policy),
        flights.clone(),
        PrefetchOptions::default(),
    );
    let lacking = prefetch.lacking();
    let should_be_here = should_be_here(&store, ranks, &progress, &journal);
    let fills = fills_source(&flights);
    let downstream = Downstream::default();
    pull.follow(&journal, &shutdown);
    let (on_identity, learning) = (trust.clone(), way.clone().filter(|_| config.primary.relay.is_none()));
    let (subscription, view) = Subscription::new(
        SubscriptionOptions {
            site: config.site.clone(),
            node: node_name(),
            primaries: config.primary.address.texts(),
            staleness_bound_ms: config.read.staleness_bound_ms,
        },
        SubscriptionParts {
            dialer: dialer(&config.primary, &node_tls, way)?,
            journal: journal.clone(),
            store: store.clone(),
            memory,
            clock: Arc::clone(&clock),
            progress: progress.clone(),
            link,
            session: session_feed,
            on_identity: Arc::new(move |welcome| {
                on_identity.learn(welcome);
                learning.iter().for_each(|way| way.learn(&welcome.public_url));
            }),
            downstream: downstream.clone(),
            reports: relay.as_ref().map(Relay::reports),
            tracing: traces.tracing.clone(),
            about: About {
                traffic: Some(traffic.source()),
                location: config.location.status(),
                propagation: metrics.register(PropagationMetrics::new),
                canary: Some(canary_source(&canary)),
                lacking: lacking.clone(),
                fills: Some(Arc::clone(&fills)),
                behind: relay.as_ref().map(Relay::details),
            },
        },
    );

    let on_demand = OnDemand {
        journal: journal.clone(),
        store: store.clone(),
        upstream: Arc::clone(&upstream),
        flights: flights.clone(),
        shutdown: shutdown.clone(),
    };
    let tunnels = relay.as_ref().map(|relay| relay.tunnels(&shutdown)).transpose()?;
    let followers = relay.map(|relay| {
        let passed_on = PassedOn::new(
            config.site.clone(),
            &config.data_dir,
            downstream,
            journal.clone(),
            Arc::clone(&clock),
            quic_upstream,
        );
        let exclusion = Arc::new(Exclusion::new(Arc::clone(&policy), journal.index().clone()));
        let above = Above { upstream: Arc::clone(&upstream), flights, exclusion };
        let followers = relay.followers(&passed_on, &journal);
        relay.serve(passed_on, &journal, &store, above, (traces.tracing.clone(), tunnels.clone()), &shutdown);
        followers
    });

    let whereabouts = OwnWhereabouts {
        site: config.site.clone(),
        journal: journal.clone(),
        store: store.clone(),
        policy,
        progress,
        upstream,
        session: session.clone(),
        view: view.clone(),
        clock: Arc::clone(&clock),
    };

    let readiness = readiness(view.clone(), journal.clone());
    let api = Api {
        readiness: Arc::clone(&readiness),
        proxies: config.registry.proxies.believed(),
        tunnels,
        pull,
        authenticator: trust.authenticator,
        addresses: trust.addresses,
        clock: Arc::clone(&clock),
        metrics: http_metrics,
        tracing: traces.tracing.clone(),
        audit: audit.clone(),
        role: Role::Secondary(Box::new(Redirects {
            mode: match config.push.mode {
                config::PushMode::Redirect => PushMode::Redirect,
                config::PushMode::Proxy => PushMode::Proxy,
            },
            sealer: trust.sealer,
            intents,
            session,
            proxy: Proxy::new(primary_https, "the primary site"),
            own_realm: own_realm(config),
        })),
    };
    let status = status(
        (&view, &store, followers),
        (traffic, canary_source(&canary)),
        (lacking, fills),
        certificates.statuses(),
    );
    certificates.watch(&clock, &shutdown)?;
    shutdown.spawn(canary.run(shutdown.clone()));
    shutdown.spawn(subscription.run(shutdown.clone()));
    shutdown.spawn(prefetch.run(shutdown.clone()));
    shutdown.spawn(super::end_on_failure(journal.clone(), shutdown.clone(), parent.clone()));

    metrics.register(|registry| registry.register_collector(Box::new(JournalCollector(journal.clone()))));
    metrics.register(|registry| registry.register_collector(Box::new(StatusCollector(Arc::clone(&status)))));
    let verification =
        Verification::new(journal.clone(), store.clone(), Some(watched), should_be_here, shutdown.clone());
    let collector = super::collector(&journal, &store, config.store.gc_grace_minutes, &shutdown);
    let status_of_history = Arc::clone(&status);
    let admin = Admin {
        status,
        readiness,
        metrics,
        token: admin_token(config.admin.token_file.as_deref())?,
        whereabouts: Arc::new(whereabouts),
        waits: Semaphore::new(WAITS_MAX),
        prefetches: Some(Arc::new(on_demand)),
        revoke: None,
        drain: None,
        membership: None,
        prefetch_turns: Arc::new(Semaphore::new(PREFETCHES_MAX)),
        gateway: None,
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
    otlp::metrics::send(otlp, ("secondary", config.site.as_str()), &admin.metrics, &shutdown)?;
    serve_admin(admin_listener, admin, &shutdown);
    serve_registry(registry_listener, https, config.registry.connections_max, api, &shutdown);
    tracing::info!(
        site = %config.site, registry = %config.registry.listen, admin = %config.admin.listen,
        primary = ?config.primary.address.texts(), applied = %journal.applied(), "secondary started"
    );
    Ok(Running { journal, shutdown, journal_shutdown, traces, audit, _data_dir: data_dir })
}

async fn open_intents(
    config: &config::Secondary,
    data_dir: &DataDir,
    past: Past,
    clock: &SharedClock,
) -> Result<Intents, StartError> {
    let (dir, site, now) = (data_dir.join("intents"), config.site.clone(), clock.steady_time());
    let opening = blocking::spawn(move || {
        let disk = OsDisk::open(&dir)?;
        Ok(Intents::open_on(disk, boot_id().as_deref(), past, (site, INTENTS_MAX), now))
    });
    let failed = |error: std::io::Error| StartError::new("open the write intents", error);
    opening.await.map_err(std::io::Error::other).and_then(|opened| opened).map_err(failed)
}

fn rules(config: &config::Read, policy: &Arc<Policy>) -> PullRules {
    PullRules {
        policy: Arc::clone(policy),
        staleness_bound: Duration::from_millis(config.staleness_bound_ms),
        stale_max: config.stale_max_seconds.map(Duration::from_secs),
        wait_max: Duration::from_millis(config.wait_ms),
        token_freshness: !config.ignore_token_age,
        remembered_max: config.remembered_max,
        ..PullRules::default()
    }
}

fn pace(bandwidth: Bandwidth, clock: &SharedClock) -> Pace {
    let clock = Arc::clone(clock);
    Pace::new(move || bandwidth.limit_at(clock.now()))
}

/// Fills blobs again whose copy was bad.
fn refill(store: &Store, index: &Index, flights: &Flights, shutdown: &Shutdown) {
    let (lost, mut losses) = mpsc::channel::<Digest>(LOSSES_MAX);
    // More at once are filled when somebody asks for them.
    store.on_rotten(Arc::new(move |digest| _ = lost.try_send(*digest)));
    let (index, flights, stop) = (index.clone(), flights.clone(), shutdown.clone());
    shutdown.spawn(async move {
        loop {
            let digest = tokio::select! {
                biased;
                () = stop.requested() => return,
                lost = losses.recv() => match lost {
                    Some(digest) => digest,
                    None => return,
                },
            };
            // A manifest that was too large for its event is named and has no link.
            let repo = match index.naming(&digest, 1) {
                Ok(repos) => repos.into_iter().next(),
                Err(error) => {
                    tracing::warn!(%digest, %error, "cannot tell which repository names a bad copy");
                    None
                }
            };
            let Some(repo) = repo else { continue };
            if let Err(error) = flights.ensure(&repo, &digest, Linked { size: None }).await {
                tracing::info!(%digest, %error, "a bad copy is not replaced yet");
            }
        }
    });
}

/// Whether a blob should be here: copied ahead by now, and not gone for want of room.
fn should_be_here(
    store: &Store,
    ranks: Ranks,
    progress: &watch::Receiver<Progress>,
    journal: &Journal,
) -> IsFault {
    let (store, progress, journal) = (store.clone(), progress.clone(), journal.clone());
    Arc::new(move |digest| {
        // Nothing that the rank depends on is behind the head that is read after it.
        ranks(digest) == Rank::Eager && !store.is_displaced(digest) && {
            let head = journal.log().head();
            progress.borrow().complete >= head
        }
    })
}

/// What had to go for want of room may be deleted since.
async fn review_displaced(store: Store, shutdown: Shutdown) {
    while super::pause(&shutdown, REVIEW_INTERVAL).await {
        let store = store.clone();
        if let Err(error) = blocking::spawn(move || store.review_displaced()).await {
            tracing::error!(%error, "reviewing displaced blobs crashed");
        }
    }
}

fn dialer(config: &config::Upstream, tls: &Arc<NodeTls>, way: Option<Way>) -> Result<Dialer, StartError> {
    let failed = |error: Box<dyn std::error::Error + Send + Sync>| {
        StartError::new("set up replication (primary.tls)", error)
    };
    let tls = tls.client(&[ALPN]).map_err(|error| failed(error.into()))?;
    let dialer = Dialer::new(&tls, &TransportOptions::log(), &TransportOptions::bulk())
        .map_err(|error| failed(error.into()))?;
    let dialer = match way {
        Some(way) => dialer.or_over_tcp(way),
        None => dialer,
    };
    Ok(match &config.relay {
        Some(relay) => dialer.to_relay(relay.clone()),
        None => dialer,
    })
}

/// How packets travel where the network carries no UDP. A site that relays has to be named.
fn way(config: &config::Upstream, https: &Arc<ClientConfig>) -> Option<Way> {
    let url = config.fallback_url.as_ref().and_then(|url| url.as_str().parse().ok());
    let proxy = config.http_proxy.as_ref().map(|proxy| proxy.as_str().to_owned());
    config.tcp_fallback.then(|| Way::new(url, Arc::clone(https), proxy))
}

/// Whom HTTPS at the primary is believed by.
fn primary_https(config: &config::Upstream) -> Result<Arc<ClientConfig>, StartError> {
    let failed = |error: Box<dyn std::error::Error + Send + Sync>| {
        StartError::new("load primary.https_authorities", error)
    };
    let mut authorities = super::system_authorities();
    if let Some(file) = &config.https_authorities {
        authorities.extend(load_certificates(file).map_err(|error| failed(error.into()))?);
    }
    tls::https_client(&authorities).map(Arc::new).map_err(|error| failed(error.into()))
}

/// Where clients ask for tokens that reach this site and not the primary.
fn own_realm(config: &config::Secondary) -> Option<String> {
    let url = config.registry.public_url.as_ref().filter(|_| config.push.mode == config::PushMode::Proxy)?;
    Some(format!("{url}{TOKEN_PATH}"))
}

/// For people who look at the status page.
pub(super) fn node_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

fn status(
    (view, store, followers): (&SiteView, &Store, Option<Followers>),
    (traffic, canary): (Traffic, CanarySource),
    (lacking, fills): (Lacking, FillsSource),
    certificates: Statuses,
) -> StatusSource {
    let (view, store) = (view.clone(), store.clone());
    Arc::new(move || {
        let mut own = view.status(store_status(&store));
        own.traffic = traffic.read();
        own.canary = canary().as_ref().map(CanaryStatus::from);
        own.missing_repos = lacking.most(MISSING_REPOS_MAX).iter().map(MissingRepo::from).collect();
        own.certificates = certificates.read();
        own.fills = fills().iter().map(FillStatus::from).collect();
        own.sites = followers.as_ref().map(|followers| followers.statuses(&own)).unwrap_or_default();
        Status::Secondary(Box::new(own))
    })
}

fn fills_source(flights: &Flights) -> FillsSource {
    let flights = flights.clone();
    Arc::new(move || flights.fills(FILLS_MAX))
}

fn canary_source(canary: &Watcher) -> CanarySource {
    let canary = canary.clone();
    Arc::new(move || canary.reading())
}

/// A site that is cut off sends new clients elsewhere: others are fresher.
fn readiness(view: SiteView, journal: Journal) -> Readiness {
    Arc::new(move || match view.state() {
        _ if journal.failed().is_some() => super::able(&journal),
        SiteState::Streaming | SiteState::CatchingUp => Ok(()),
        SiteState::Snapshot => Err("taking a snapshot".to_owned()),
        SiteState::Disconnected => Err("cut off from the primary".to_owned()),
    })
}
