//! A primary and its sites on loopback: real QUIC, real TLS, real files.

use outport::watch;
use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use outport::{
    app::relay::Relayed,
    auth::{
        Authenticator,
        authority::{Authority, Identity, NodeIdentity, site_of},
        tls,
    },
    clock::{Clock as _, SharedClock, SystemClock},
    fetch::{
        FlightMetrics, FlightOptions, Flights,
        primary::{QuicUpstream, QuicUpstreamOptions},
        quic::{Listener, TransportOptions},
    },
    index::{Index, Opened},
    log::{Log, faulty::FaultyDisk},
    policy::{Keep, Policy, PolicyRule},
    primary::{
        above::Above,
        fleet::{Fleet, Head},
        log_stream::LogPublisher,
        publisher::{Admit, Publisher},
        requests::Answerer,
        source::{OwnSource, PrimaryIdentity, Relays, Source},
    },
    registry::{
        Exclusion, Session, SessionView,
        journal::{History, Journal, JournalOptions, Origin},
    },
    secondary::{
        detail::{About, DetailsBehind},
        dial::Dialer,
        downstream::{Downstream, PassedOn, Reports},
        memory::Memory,
        prefetch::{Prefetch, PrefetchOptions, Progress},
        subscriber::{Subscription, SubscriptionOptions, SubscriptionParts},
        view::SiteView,
    },
    shutdown::Shutdown,
    status::SiteStatus,
    store::Store,
};
use outport_proto::{
    Change, Digest, ManifestPut, Offset, RepoName, SiteName, Timestamp,
    frame::{ALPN, AuthMode, Keys, Welcome},
    oci::{ChildKind, Descriptor},
};
use tempfile::TempDir;

/// Longer than anything here should take, shorter than patience.
pub(crate) const LIMIT: Duration = Duration::from_secs(10);

pub(crate) fn now() -> Timestamp {
    SystemClock.now()
}

pub(crate) fn repo(name: &str) -> RepoName {
    name.parse().unwrap()
}

pub(crate) fn site(name: &str) -> SiteName {
    name.parse().unwrap()
}

/// Resolves once `check` holds for what `watch` shows.
pub(crate) async fn until<T: Clone>(
    what: &str,
    watch: &mut watch::Receiver<T>,
    check: impl FnMut(&T) -> bool,
) -> T {
    let reached = tokio::time::timeout(LIMIT, watch.wait_for(check)).await;
    reached.unwrap_or_else(|_| panic!("{what} took too long")).unwrap().clone()
}

/// The parts of a node that outlive a restart.
pub(crate) struct Disk(TempDir);

impl Disk {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    /// Everything in it, as a backup would copy it.
    pub(crate) fn copy(&self) -> Self {
        let copy = Self::new();
        copy_dir(self.path(), copy.path());
        copy
    }

    async fn open(
        &self,
        options: JournalOptions,
        clock: SharedClock,
        shutdown: &Shutdown,
    ) -> (Journal, Store) {
        let journal = Journal::open(self.path(), options, clock, shutdown).await.unwrap();
        let (store, _) = Store::open(&self.path().join("store")).unwrap();
        (journal, store)
    }
}

fn copy_dir(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            std::fs::create_dir_all(&to).unwrap();
            copy_dir(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}

pub(crate) struct Primary {
    pub(crate) address: SocketAddr,
    pub(crate) journal: Journal,
    pub(crate) store: Store,
    pub(crate) fleet: Fleet,
    pub(crate) keys: watch::Sender<u64>,
    shutdown: Shutdown,
}

/// What a primary is, beside what is on its disk.
pub(crate) struct PrimaryConfig<'a> {
    pub(crate) identity: &'a Identity,
    pub(crate) trusts: &'a Authority,
    pub(crate) cluster: &'a str,
    pub(crate) sites: &'static [&'static str],
    pub(crate) relays: Relays,
    pub(crate) address: SocketAddr,
    pub(crate) journal: JournalOptions,
    pub(crate) clock: SharedClock,
    pub(crate) callers: Option<Arc<Authenticator>>,
}

impl Primary {
    pub(crate) async fn start(disk: &Disk, config: &PrimaryConfig<'_>) -> Self {
        let shutdown = Shutdown::new();
        let (journal, store) = disk.open(config.journal.clone(), Arc::clone(&config.clock), &shutdown).await;
        let relays = config.relays.clone();
        let fleet =
            Fleet::new(config.sites.iter().map(|name| site(name)).chain(relays.behind_any()), relays.clone());
        let (keys, keys_changed) = watch::channel(1);
        let generation = keys_changed.clone();
        let source: Arc<dyn Source> = Arc::new(OwnSource {
            identity: PrimaryIdentity {
                cluster: config.cluster.to_owned(),
                token_realm: "https://hub.test/token".to_owned(),
                token_service: "hub.test".to_owned(),
                public_url: "https://hub.test".to_owned(),
                path: Vec::new(),
            },
            journal: journal.clone(),
            clock: Arc::clone(&config.clock),
            keys_of: Arc::new(move |site| {
                Ok(Keys {
                    auth: AuthMode::Outport {
                        jwks: format!("keys of {site}"),
                        issuer: "hub.test".to_owned(),
                    },
                    public_pull: Vec::new(),
                    seal: Vec::new(),
                    generation: *generation.borrow(),
                })
            }),
            keys_changed,
            relays,
            authenticator: config.callers.clone(),
            unsure: None,
            members: None,
        });
        let publisher = LogPublisher {
            source: Arc::clone(&source),
            journal: journal.clone(),
            fleet: fleet.clone(),
            tunnelled: None,
        };
        let answerer = Answerer::new(journal.clone(), store.clone(), source);
        let admit = admit(config.sites);
        let listener = listen(config.identity, config.trusts, config.address);
        let address = listener.endpoint.local_addr().unwrap();
        shutdown.spawn(Publisher::new(admit, publisher, answerer, 64).serve(listener, shutdown.clone()));
        Self { address, journal, store, fleet, keys, shutdown }
    }

    pub(crate) async fn commit(&self, changes: Vec<Change>) -> Offset {
        self.journal.commit("tester", changes).await.unwrap()
    }

    pub(crate) fn blob(&self, content: &[u8]) -> Digest {
        let digest = Digest::sha256(content);
        let mut ingest = self.store.ingest(digest.algorithm()).unwrap();
        ingest.write(content).unwrap();
        ingest.commit(&digest).unwrap();
        digest
    }

    pub(crate) fn statuses(&self) -> Vec<SiteStatus> {
        let log = self.journal.log();
        let (offset, log_bytes) = (log.head(), log.bytes());
        let head = Head { cluster: "c1".to_owned(), offset, log_bytes, now: now() };
        self.fleet.statuses(&head, |after| Some(log.read(after, 1).ok()?.first()?.event.time))
    }

    pub(crate) async fn stop(self) {
        assert!(self.shutdown.finish(LIMIT).await, "the primary's tasks end");
    }
}

fn admit(sites: &'static [&'static str]) -> Admit {
    Arc::new(move |certificate: &rustls_pki_types::CertificateDer<'_>| {
        let site = site_of(certificate).ok_or("not a site's certificate")?;
        let is_listed = sites.contains(&site.as_str());
        if is_listed { Ok(site) } else { Err(format!("site {site} is not listed")) }
    })
}

fn listen(identity: &Identity, trusts: &Authority, address: SocketAddr) -> Listener {
    let tls = tls::node_server(identity, &[trusts.certificate().clone()], &[ALPN]).unwrap();
    Listener::bind(address, &tls, &TransportOptions::upstream()).unwrap()
}

pub(crate) struct Site {
    /// Where sites that follow this one connect.
    pub(crate) relay: Option<SocketAddr>,
    /// Blobs that were brought here from upstream.
    pub(crate) fills: FlightMetrics,
    pub(crate) journal: Journal,
    pub(crate) store: Store,
    pub(crate) upstream: QuicUpstream,
    pub(crate) session: SessionView,
    pub(crate) session_changes: watch::Receiver<Session>,
    pub(crate) progress: watch::Receiver<Progress>,
    pub(crate) view: SiteView,
    pub(crate) identity: watch::Receiver<Option<Welcome>>,
    shutdown: Shutdown,
}

pub(crate) struct SiteConfig<'a> {
    pub(crate) name: &'a str,
    pub(crate) identity: &'a Identity,
    pub(crate) trusts: &'a Authority,
    pub(crate) primary: SocketAddr,
    pub(crate) policy: Arc<Policy>,
    pub(crate) journal: JournalOptions,
    /// The site that is followed instead of the primary.
    pub(crate) upstream: Option<&'a str>,
    /// Who may follow this one, where.
    pub(crate) relays_to: Option<(&'static [&'static str], SocketAddr)>,
}

impl Site {
    pub(crate) async fn start(disk: &Disk, config: SiteConfig<'_>) -> Self {
        let shutdown = Shutdown::new();
        let (journal, store) = disk.open(config.journal.clone(), Arc::new(SystemClock), &shutdown).await;
        Self::start_on(disk, journal, store, config, shutdown)
    }

    /// With everything but its log on `disk`.
    async fn start_logging_to(log: &FaultyDisk, disk: &Disk, config: SiteConfig<'_>) -> Self {
        let shutdown = Shutdown::new();
        let options = config.journal.clone();
        let (log, _) =
            Log::open_on(Arc::new(log.clone()), options.log.clone(), Arc::new(SystemClock)).unwrap();
        let index = (Index::in_memory(options.index.clone()), Opened::Empty("new".to_owned()));
        let snapshots = Arc::new(FaultyDisk::new());
        let journal = Journal::over(log, index, snapshots, options, &shutdown).await.unwrap();
        let (store, _) = Store::open(&disk.path().join("store")).unwrap();
        Self::start_on(disk, journal, store, config, shutdown)
    }

    fn start_on(
        disk: &Disk,
        journal: Journal,
        store: Store,
        config: SiteConfig<'_>,
        shutdown: Shutdown,
    ) -> Self {
        let (link, upstream) = QuicUpstream::new(&QuicUpstreamOptions::default());
        let policy = Arc::clone(&config.policy);
        let fills = FlightMetrics::default();
        let flights = Flights::new(
            store.clone(),
            Arc::new(upstream.clone()),
            shutdown.clone(),
            FlightOptions::default(),
            fills.clone(),
        );
        let (prefetch, progress) = Prefetch::new(
            disk.path(),
            journal.clone(),
            store.clone(),
            Arc::clone(&policy),
            flights.clone(),
            PrefetchOptions::default(),
        );
        let (session_sender, session) = SessionView::new();
        let session_changes = session_sender.subscribe();
        let (identity_sender, identity) = watch::channel(None);
        let tls = tls::node_client(config.identity, &[config.trusts.certificate().clone()], &[ALPN]).unwrap();
        let downstream = Downstream::default();
        let relay = config.relays_to.map(|(sites, address)| {
            let listener = listen(config.identity, config.trusts, address);
            let address = listener.endpoint.local_addr().unwrap();
            let passed_on = PassedOn::new(
                site(config.name),
                disk.path(),
                downstream.clone(),
                journal.clone(),
                Arc::new(SystemClock),
                upstream.clone(),
            );
            let source: Arc<dyn Source> = Arc::new(Relayed(passed_on));
            let exclusion = Arc::new(Exclusion::new(Arc::clone(&policy), journal.index().clone()));
            let above = Above { upstream: Arc::new(upstream.clone()), flights, exclusion };
            let answerer = Answerer::relaying(journal.clone(), store.clone(), Arc::clone(&source), above);
            let fleet = Fleet::of_relay(sites.iter().map(|name| site(name)));
            let publisher =
                LogPublisher { source, journal: journal.clone(), fleet: fleet.clone(), tunnelled: None };
            let publisher = Publisher::new(admit(sites), publisher, answerer, 64);
            shutdown.spawn(publisher.serve(listener, shutdown.clone()));
            (address, fleet)
        });
        let reports = relay.as_ref().map(|(_, fleet)| {
            let fleet = fleet.clone();
            Arc::new(move || fleet.behind()) as Reports
        });
        let behind = relay.as_ref().map(|(_, fleet)| {
            let fleet = fleet.clone();
            Arc::new(move || fleet.details()) as DetailsBehind
        });
        let dialer = Dialer::new(&tls, &TransportOptions::log(), &TransportOptions::bulk()).unwrap();
        let parts = SubscriptionParts {
            dialer: match config.upstream {
                Some(upstream) => dialer.to_relay(site(upstream)),
                None => dialer,
            },
            journal: journal.clone(),
            store: store.clone(),
            memory: Memory::open(disk.path()).unwrap(),
            clock: Arc::new(SystemClock),
            progress: progress.clone(),
            link,
            session: session_sender,
            on_identity: Arc::new(move |welcome| _ = identity_sender.send_replace(Some(welcome.clone()))),
            downstream,
            reports,
            tracing: outport::telemetry::trace::Tracing::default(),
            about: About { behind, ..About::default() },
        };
        let options = SubscriptionOptions {
            site: site(config.name),
            node: "node-1".to_owned(),
            primaries: vec![config.primary.to_string()],
            staleness_bound_ms: 1000,
        };
        let (subscription, view) = Subscription::new(options, parts);
        shutdown.spawn(subscription.run(shutdown.clone()));
        shutdown.spawn(prefetch.run(shutdown.clone()));
        let relay = relay.map(|(address, _)| address);
        Self {
            relay,
            fills,
            journal,
            store,
            upstream,
            session,
            session_changes,
            progress,
            view,
            identity,
            shutdown,
        }
    }

    pub(crate) async fn applied(&self, offset: Offset) {
        until("applying", &mut self.journal.watch_applied(), |applied| *applied >= offset).await;
    }

    pub(crate) async fn complete(&self, offset: Offset) {
        until("copying", &mut self.progress.clone(), |progress| progress.complete >= offset).await;
    }

    pub(crate) async fn session(&self, what: &str, check: impl FnMut(&Session) -> bool) -> Session {
        until(what, &mut self.session_changes.clone(), check).await
    }

    pub(crate) async fn stop(self) {
        assert!(self.shutdown.finish(LIMIT).await, "the site's tasks end");
    }
}

/// A cluster: one authority, a primary, and one site unless a test wants more.
pub(crate) struct World {
    pub(crate) authority: Authority,
    pub(crate) primary_identity: Identity,
    pub(crate) primary_disk: Disk,
    pub(crate) site_disk: Disk,
    /// Sites that follow other sites.
    pub(crate) relays: Relays,
    /// Whom the primary asks about callers.
    pub(crate) callers: Option<Arc<Authenticator>>,
}

impl World {
    pub(crate) fn new() -> Self {
        let authority = Authority::create("c1", now()).unwrap();
        let primary_identity = authority.issue_node(&NodeIdentity::Primary, now()).unwrap();
        Self {
            authority,
            primary_identity,
            primary_disk: Disk::new(),
            site_disk: Disk::new(),
            relays: Relays::default(),
            callers: None,
        }
    }

    pub(crate) async fn primary(&self) -> Primary {
        self.primary_at("127.0.0.1:0".parse().unwrap()).await
    }

    pub(crate) async fn primary_at(&self, address: SocketAddr) -> Primary {
        self.primary_on(&self.primary_disk, History::Continues, address).await
    }

    /// The primary with what is on another disk.
    pub(crate) async fn primary_on(&self, disk: &Disk, history: History, address: SocketAddr) -> Primary {
        self.primary_with(disk, JournalOptions { history, ..JournalOptions::default() }, address).await
    }

    /// The same, by another clock than the machine's.
    pub(crate) async fn primary_by(
        &self,
        clock: SharedClock,
        disk: &Disk,
        history: History,
        address: SocketAddr,
    ) -> Primary {
        let journal = JournalOptions { history, ..JournalOptions::default() };
        self.start_primary(disk, journal, address, clock).await
    }

    pub(crate) async fn primary_with(
        &self,
        disk: &Disk,
        journal: JournalOptions,
        address: SocketAddr,
    ) -> Primary {
        self.start_primary(disk, journal, address, Arc::new(SystemClock)).await
    }

    async fn start_primary(
        &self,
        disk: &Disk,
        journal: JournalOptions,
        address: SocketAddr,
        clock: SharedClock,
    ) -> Primary {
        let config = PrimaryConfig {
            identity: &self.primary_identity,
            trusts: &self.authority,
            cluster: "c1",
            sites: &["frankfurt", "mumbai"],
            relays: self.relays.clone(),
            address,
            journal,
            clock,
            callers: self.callers.clone(),
        };
        Primary::start(disk, &config).await
    }

    pub(crate) fn issue(&self, name: &str) -> Identity {
        self.authority.issue_node(&NodeIdentity::Site(site(name)), now()).unwrap()
    }

    /// Mumbai, which keeps everything.
    pub(crate) async fn site(&self, primary: &Primary) -> Site {
        self.site_at(primary.address).await
    }

    pub(crate) async fn site_at(&self, primary: SocketAddr) -> Site {
        self.site_on(&self.site_disk, primary).await
    }

    /// Mumbai with what is on another disk.
    pub(crate) async fn site_on(&self, disk: &Disk, primary: SocketAddr) -> Site {
        self.site_with(disk, primary, followed()).await
    }

    pub(crate) async fn site_with(&self, disk: &Disk, primary: SocketAddr, journal: JournalOptions) -> Site {
        let identity = self.issue("mumbai");
        let config = SiteConfig { journal, ..self.site_config(&identity, primary) };
        Site::start(disk, config).await
    }

    /// Mumbai, with its log on a disk that has faults.
    pub(crate) async fn site_logging_to(&self, log: &FaultyDisk, primary: SocketAddr) -> Site {
        let identity = self.issue("mumbai");
        Site::start_logging_to(log, &self.site_disk, self.site_config(&identity, primary)).await
    }

    pub(crate) fn site_config<'a>(&'a self, identity: &'a Identity, primary: SocketAddr) -> SiteConfig<'a> {
        let lazy = PolicyRule {
            repository: Some("lazy/**".to_owned()),
            keep: Some(Keep::Lazy),
            ..PolicyRule::default()
        };
        let policy = Arc::new(Policy::new(&[lazy]).unwrap());
        let journal = followed();
        let (trusts, upstream, relays_to) = (&self.authority, None, None);
        SiteConfig { name: "mumbai", identity, trusts, primary, policy, journal, upstream, relays_to }
    }
}

/// How a site keeps its journal.
pub(crate) fn followed() -> JournalOptions {
    JournalOptions { origin: Origin::Followed, ..JournalOptions::default() }
}

pub(crate) fn committed(repo_name: &str, content: &[u8]) -> Change {
    let digest = Digest::sha256(content);
    Change::BlobCommitted { repo: repo(repo_name), digest, size: content.len() as u64 }
}

pub(crate) fn tagged(repo_name: &str, tag: &str, manifest: &'static [u8], blobs: &[&[u8]]) -> Change {
    let child = |content: &&[u8]| Descriptor {
        digest: Digest::sha256(content),
        size: content.len() as u64,
        kind: ChildKind::Blob,
        platform: None,
    };
    Change::ManifestPut(Box::new(ManifestPut {
        repo: repo(repo_name),
        digest: Digest::sha256(manifest),
        media_type: outport_proto::oci::media_type::OCI_MANIFEST.to_owned(),
        size: manifest.len() as u64,
        bytes: Some(bytes::Bytes::from_static(manifest)),
        tags: vec![tag.parse().unwrap()],
        subject: None,
        artifact_type: None,
        platform: None,
        annotations: Vec::new(),
        children: blobs.iter().map(child).collect(),
    }))
}

/// The public keys of tokens that a site was told.
pub(crate) fn jwks_of(keys: &Keys) -> &str {
    match &keys.auth {
        AuthMode::Outport { jwks, .. } | AuthMode::Token { jwks, .. } => jwks,
        AuthMode::Delegated { .. } | AuthMode::Anonymous => "",
    }
}
