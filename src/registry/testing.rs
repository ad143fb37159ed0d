//! A primary and a secondary in one process, for tests: the secondary asks the primary by
//! calls, and gets events when the test says so.

use crate::watch;
use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use outport_proto::{
    Digest, Event, IntentId, ManifestPut, Offset, Reference, RepoName, Timestamp, oci::media_type,
};
use prometheus_client::registry::Registry;
use tempfile::TempDir;
use tokio::sync::Semaphore;

use super::{
    Edge, Intents, Journal, ManifestPushed, NewManifest, PullMetrics, PullRules, PullService, PushError,
    PushLimits, PushService, Session, SessionView, Site, journal::JournalOptions,
};
use crate::{
    auth::{Access, Actions, Caller, Scope},
    clock::ManualClock,
    fetch::{At, Body, BoxFuture, FlightMetrics, FlightOptions, Flights, Upstream, UpstreamError},
    index::{Index, IndexOptions, Opened},
    log::{Log, LogOptions, faulty::FaultyDisk},
    shutdown::Shutdown,
    store::Store,
};

/// What the clocks of both sites read.
pub(crate) const NOW: Timestamp = Timestamp::from_secs(1_000_000);

pub(super) fn repo(name: &str) -> RepoName {
    name.parse().unwrap()
}

pub(crate) fn reference(text: &str) -> Reference {
    text.parse().unwrap()
}

/// Somebody whose token allows `actions` on `repos`.
pub(super) fn caller(repos: &[&str], actions: Actions) -> Caller {
    let access: Access = repos.iter().map(|name| Scope::repository(&repo(name), actions)).collect();
    Caller {
        subject: "tester".into(),
        access: Arc::new(access),
        issued_at: None,
        offset: None,
        anonymous: false,
    }
}

pub(super) fn puller() -> Caller {
    caller(&["team/app"], Actions::PULL)
}

pub(super) fn pusher() -> Caller {
    caller(&["team/app"], Actions::ALL)
}

pub(super) fn index() -> Index {
    Index::in_memory(IndexOptions { hot_bytes_max: 1 << 20, cache_bytes_max: 1 << 20 })
}

/// A journal in memory. Its tasks run until `shutdown`.
async fn journal(clock: &Arc<ManualClock>, shutdown: &Shutdown) -> Journal {
    let (log, _) = Log::open_on(Arc::new(FaultyDisk::new()), LogOptions::default(), clock.clone()).unwrap();
    let index = (index(), Opened::Empty("it is new".to_owned()));
    let snapshots = Arc::new(FaultyDisk::new());
    Journal::over(log, index, snapshots, JournalOptions::default(), shutdown).await.unwrap()
}

/// The journal's tasks end with it: a runtime waits for them.
impl Drop for Primary {
    fn drop(&mut self) {
        self.shutdown.request();
    }
}

/// A primary in a temporary directory.
pub(crate) struct Primary {
    pub(super) journal: Journal,
    pub(super) store: Store,
    pub(crate) push: PushService,
    pub(crate) pull: PullService,
    shutdown: Shutdown,
    _dir: TempDir,
}

impl Primary {
    pub(crate) async fn new() -> Self {
        Self::with(PushLimits::default()).await
    }

    pub(super) async fn with(limits: PushLimits) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = Store::open(&dir.path().join("store")).unwrap();
        let (clock, shutdown) = (ManualClock::at(NOW), Shutdown::new());
        let journal = journal(&clock, &shutdown).await;
        let push = PushService::new(journal.clone(), store.clone(), clock.clone(), limits, shutdown.clone());
        let pull = PullService::primary(Site {
            index: journal.index().clone(),
            store: store.clone(),
            clock,
            rules: PullRules::default(),
            metrics: PullMetrics::new(&mut Registry::default()),
        });
        Self { journal, store, push, pull, shutdown, _dir: dir }
    }

    /// Pushes a blob in one piece.
    pub(super) async fn blob(&self, repo: &RepoName, content: &'static [u8]) -> Digest {
        let digest = Digest::sha256(content);
        let (right, _) = self.push.start_upload(&pusher_of(repo), repo, None).await.unwrap();
        let mut append = self.push.append(&right, None).await.unwrap();
        append.write(Bytes::from_static(content)).await.unwrap();
        append.finish().await.unwrap();
        assert_eq!(self.push.finish_upload(&right, &digest).await.unwrap().digest, digest);
        digest
    }

    pub(super) async fn put(
        &self,
        repo: &RepoName,
        named: &str,
        content_type: &str,
        bytes: impl Into<Bytes>,
    ) -> Result<ManifestPushed, PushError> {
        let manifest = NewManifest {
            reference: reference(named),
            tags: Vec::new(),
            content_type: content_type.to_owned(),
            bytes: bytes.into(),
        };
        self.push.put_manifest(&pusher_of(repo), repo, manifest).await
    }

    /// This primary as site `mumbai` leads requests to it that it announced as `number`.
    pub(super) fn led(&self, number: u64) -> PushService {
        self.push.led(IntentId { site: "mumbai".parse().unwrap(), number })
    }

    /// Pushes an image without layers whose config is `text`.
    pub(super) async fn image(&self, repo: &RepoName, named: &str, text: &'static str) -> ManifestPushed {
        self.image_as(&self.push, repo, named, text).await
    }

    /// [`Primary::image`] with another handle for the manifest.
    pub(super) async fn image_as(
        &self,
        push: &PushService,
        repo: &RepoName,
        named: &str,
        text: &'static str,
    ) -> ManifestPushed {
        let config = self.blob(repo, text.as_bytes()).await;
        push.put_manifest(&pusher_of(repo), repo, new_image(named, image(&config, ""))).await.unwrap()
    }

    /// Every event from `after` on.
    pub(super) fn events(&self, after: Offset) -> Vec<Arc<Event>> {
        let records = self.journal.log().read(after, usize::MAX).unwrap();
        records.into_iter().map(|record| record.event).collect()
    }
}

fn new_image(named: &str, bytes: String) -> NewManifest {
    let content_type = media_type::OCI_MANIFEST.to_owned();
    NewManifest { reference: reference(named), tags: Vec::new(), content_type, bytes: bytes.into() }
}

pub(super) fn pusher_of(repo: &RepoName) -> Caller {
    caller(&[repo.as_str()], Actions::ALL)
}

pub(super) fn image(config: &Digest, extra: &str) -> String {
    format!(
        r#"{{"schemaVersion":2,"config":{{"mediaType":"a/config","digest":"{config}","size":1}},"layers":[]{extra}}}"#
    )
}

/// The primary as a secondary sees it.
pub(super) struct Link {
    index: Index,
    store: Store,
    /// Nothing comes through.
    pub(super) cut: AtomicBool,
    /// Questions asked, but for bytes.
    pub(super) asked: AtomicUsize,
    /// Blobs fetched.
    pub(super) fetched: AtomicUsize,
    /// No bytes are given.
    pub(super) withholds: AtomicBool,
    /// Every question is answered "no", as of there.
    pub(super) denies_at: Mutex<Option<Offset>>,
    /// Each question takes one; a test that holds them back holds the answers back.
    pub(super) permits: Semaphore,
}

impl Link {
    fn of(primary: &Primary) -> Arc<Self> {
        Arc::new(Self {
            index: primary.journal.index().clone(),
            store: primary.store.clone(),
            cut: AtomicBool::new(false),
            asked: AtomicUsize::new(0),
            fetched: AtomicUsize::new(0),
            withholds: AtomicBool::new(false),
            denies_at: Mutex::default(),
            permits: Semaphore::new(1_000_000),
        })
    }

    async fn ask<T: Default>(&self, answer: impl FnOnce(&Index) -> T) -> Result<At<T>, UpstreamError> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        if self.cut.load(Ordering::SeqCst) {
            return Err(UpstreamError::Unreachable("cut".to_owned()));
        }
        if let Some(at) = *self.denies_at.lock().unwrap() {
            return Ok(At { value: T::default(), at });
        }
        let at = self.index.applied();
        let value = answer(&self.index);
        self.permits.acquire().await.unwrap().forget();
        Ok(At { value, at })
    }

    pub(super) fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

impl Upstream for Link {
    fn resolve<'a>(
        &'a self,
        repo: &'a RepoName,
        reference: &'a Reference,
    ) -> BoxFuture<'a, Result<At<Option<ManifestPut>>, UpstreamError>> {
        Box::pin(self.ask(move |index| {
            let manifest = index.manifest(repo, reference).unwrap()?;
            index.manifest_record(repo, &manifest.digest).unwrap()
        }))
    }

    fn link<'a>(
        &'a self,
        repo: &'a RepoName,
        digest: &'a Digest,
    ) -> BoxFuture<'a, Result<At<Option<u64>>, UpstreamError>> {
        Box::pin(self.ask(move |index| index.link(repo, digest).unwrap()))
    }

    fn referrers<'a>(
        &'a self,
        repo: &'a RepoName,
        subject: &'a Digest,
    ) -> BoxFuture<'a, Result<At<Vec<ManifestPut>>, UpstreamError>> {
        Box::pin(self.ask(move |index| index.referrers(repo, subject).unwrap()))
    }

    fn fetch<'a>(
        &'a self,
        repo: &'a RepoName,
        digest: &'a Digest,
        offset: u64,
    ) -> BoxFuture<'a, Result<Option<Box<dyn Body>>, UpstreamError>> {
        Box::pin(async move {
            if self.cut.load(Ordering::SeqCst) {
                return Err(UpstreamError::Unreachable("cut".to_owned()));
            }
            if self.withholds.load(Ordering::SeqCst) || self.denies_at.lock().unwrap().is_some() {
                return Ok(None);
            }
            self.fetched.fetch_add(1, Ordering::SeqCst);
            let holds = self.index.is_named_in(repo, digest).unwrap();
            let Some(blob) = self.store.get(digest).unwrap().filter(|_| holds) else {
                return Ok(None);
            };
            let mut bytes = vec![0; blob.size as usize];
            std::os::unix::fs::FileExt::read_exact_at(&*blob.file, &mut bytes, 0).unwrap();
            let left = Some(Bytes::from(bytes).slice(offset as usize..));
            Ok(Some(Box::new(Whole { size: blob.size, left }) as Box<dyn Body>))
        })
    }
}

struct Whole {
    size: u64,
    left: Option<Bytes>,
}

impl Body for Whole {
    fn size(&self) -> u64 {
        self.size
    }

    fn chunk(&mut self) -> BoxFuture<'_, Result<Option<Bytes>, UpstreamError>> {
        Box::pin(async move { Ok(self.left.take()) })
    }
}

/// A secondary of a primary in the same process.
pub(crate) struct Secondary {
    pub(super) index: Index,
    pub(super) store: Store,
    pub(crate) pull: PullService,
    pub(super) link: Arc<Link>,
    pub(super) session: watch::Sender<Session>,
    pub(crate) intents: Intents,
    pub(super) metrics: PullMetrics,
    _dir: TempDir,
}

impl Secondary {
    pub(crate) fn of(primary: &Primary) -> Self {
        Self::with(primary, PullRules::default())
    }

    pub(super) fn with(primary: &Primary, rules: PullRules) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = Store::open(dir.path()).unwrap();
        let (index, link, metrics) = (index(), Link::of(primary), PullMetrics::new(&mut Registry::default()));
        let (session, view) = SessionView::new();
        let (intents, shutdown) = (Intents::in_memory("mumbai".parse().unwrap(), 100), Shutdown::new());
        let site = Site {
            index: index.clone(),
            store: store.clone(),
            clock: ManualClock::at(NOW),
            rules,
            metrics: metrics.clone(),
        };
        let upstream: Arc<dyn Upstream> = Arc::clone(&link) as _;
        let options = FlightOptions { attempts_max: 1, ..FlightOptions::default() };
        let flights = Flights::new(
            store.clone(),
            Arc::clone(&upstream),
            shutdown.clone(),
            options,
            FlightMetrics::default(),
        );
        let edge = Edge { upstream, flights, session: view, intents: intents.clone(), shutdown };
        let pull = PullService::secondary(site, edge);
        Self { index, store, pull, link, session, intents, metrics, _dir: dir }
    }

    /// Applies every event the primary has, and hears its heartbeat.
    pub(crate) fn catch_up(&self, primary: &Primary) {
        let events = primary.events(self.index.applied());
        self.index.apply(&events).unwrap();
        events.iter().for_each(|event| self.pull.note_applied(event));
        self.connect(Duration::ZERO);
    }

    /// A live session whose closed time is `age` old.
    pub(super) fn connect(&self, age: Duration) {
        let closed_time = Timestamp::from_micros(NOW.as_micros() - age.as_micros() as u64);
        let head = self.index.applied();
        self.session.send_replace(Session {
            live: true,
            reachable: true,
            closed_time,
            head,
            ..Session::default()
        });
    }

    /// The line is cut; heartbeats were last heard `ago`.
    pub(crate) fn cut_off(&self, ago: Duration) {
        self.connect(ago);
        self.session.send_modify(|session| (session.live, session.reachable) = (false, false));
        self.link.cut.store(true, Ordering::SeqCst);
    }
}
