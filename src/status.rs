//! The shape of `/v1/status`, and the cell in which a running site keeps its own.

use std::{collections::BTreeMap, sync::Arc};

use outport_proto::frame::{Canary, Fill, MissingBlobs, SiteDetail};
use serde::{Deserialize, Serialize};

/// What `/v1/status` answers, by role.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "role", rename_all = "lowercase")]
pub enum Status {
    /// A primary.
    Primary(Box<PrimaryStatus>),
    /// A secondary.
    Secondary(Box<SiteStatus>),
}

/// A primary's own numbers and those of every site it knows.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PrimaryStatus {
    /// Identity of the cluster.
    pub cluster: String,
    /// Program version.
    pub version: String,
    /// Epoch of the log: 1, or the Unix time in seconds at which `--restored` began a later one.
    pub epoch: u64,
    /// Newest durable event.
    pub head_seq: u64,
    /// Events up to here can no longer be read from the log.
    pub floor_seq: u64,
    /// What the blob store holds.
    pub store: StoreStatus,
    /// Why no push is taken, when a person should look at it; `null` otherwise.
    #[serde(default)]
    pub alarm: Option<String>,
    /// What a person should know of whatever says who callers are: keys of tokens that cannot be fetched
    /// again; `null` otherwise.
    #[serde(default)]
    pub auth_alarm: Option<String>,
    /// The registry that it stands in front of; `null` when it is one itself.
    #[serde(default)]
    pub gateway: Option<Box<GatewayStatus>>,
    /// What it shows to other nodes and to clients.
    #[serde(default)]
    pub certificates: Vec<CertificateStatus>,
    /// Who is told what becomes of images.
    #[serde(default)]
    pub webhooks: Vec<WebhookStatus>,
    /// What it serves.
    #[serde(flatten)]
    pub traffic: Traffic,
    /// Where it stands.
    #[serde(flatten)]
    pub location: Location,
    /// The sites, by name.
    pub sites: Vec<SiteStatus>,
}

/// What a node serves.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Traffic {
    /// Pulls since the start, by how they were answered: the `result` of `outport_pulls_total`.
    pub pulls: BTreeMap<String, u64>,
    /// Share of the content served in the last five minutes that came from its disk, 0 to 1; `null` when
    /// there was none.
    pub hit_ratio: Option<f64>,
    /// Bytes of response bodies sent since the start.
    pub served_bytes: u64,
    /// Bytes fetched from upstream since the start.
    pub upstream_bytes: u64,
}

/// Where a node stands, as its configuration says; `null` where it does not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Location {
    /// Degrees north, -90 to 90.
    pub latitude: Option<f64>,
    /// Degrees east, -180 to 180.
    pub longitude: Option<f64>,
}

/// How long the events of the last five minutes took from the push to each stage; `null` without events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Propagation {
    /// Until the index showed them.
    pub applied: Option<Spread>,
    /// Until their blobs were local.
    pub complete: Option<Spread>,
}

/// Two quantiles.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// Half took no longer.
    pub p50_seconds: f64,
    /// Of a hundred, all but one took no longer.
    pub p99_seconds: f64,
}

/// Something that went wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastError {
    /// For people.
    pub text: String,
    /// By the site's clock, in seconds since the Unix epoch.
    pub at: u64,
}

/// A receiver of messages.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WebhookStatus {
    /// Its name.
    pub name: String,
    /// Messages that it does not take and that are tried again, those behind them not counted.
    pub retrying: u64,
    /// When it took one last, in seconds since the Unix epoch; `null` when it took none since the start.
    pub last_taken_at: Option<u64>,
    /// Why it did not take one last; `null` when it took all since the start.
    pub last_error: Option<LastError>,
}

/// How far the log is from the registry behind a primary.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GatewayStatus {
    /// When the last walk over everything ended, in seconds since the Unix epoch; `null` before: until then
    /// sites do not have everything.
    pub last_reconciled_at: Option<u64>,
    /// Changes that it had found.
    pub last_drift: Option<u64>,
    /// Whether a walk goes on.
    pub reconciling: bool,
    /// Changes that walks found and no notification told of, since the start.
    pub missed: u64,
    /// Tags and manifests that no site can serve, as the last walk found them.
    #[serde(default)]
    pub unfit: u64,
    /// What a person should look at; `null` otherwise.
    pub alarm: Option<String>,
}

/// How far a site is behind, and everything beside it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SiteStatus {
    /// Name of the site.
    pub site: String,
    /// Identity of the cluster; empty before the first session.
    pub cluster: String,
    /// Program version.
    pub version: String,
    /// Epoch of the log.
    pub epoch: u64,
    /// Newest durable event at the primary, as last heard.
    pub head_seq: u64,
    /// Newest event received.
    pub received_seq: u64,
    /// Newest event on this site's disk.
    pub durable_seq: u64,
    /// Newest event the index shows.
    pub applied_seq: u64,
    /// Up to here every blob the site should hold is local.
    pub complete_seq: u64,
    /// Age of the oldest event not past each stage.
    pub lag_seconds: Lag,
    /// Events between head and applied.
    pub lag_events: u64,
    /// Bytes of log between head and applied.
    pub lag_bytes: u64,
    /// Blobs it should hold and does not: those still to be copied, and those that had to make room
    /// since. (`complete_seq` counts the latter as copied.)
    pub missing_blobs: u64,
    /// Since the last heartbeat; `null` before the first.
    pub heartbeat_age_seconds: Option<f64>,
    /// A tag answered while connected is never older than this.
    pub staleness_bound_seconds: f64,
    /// What carries the session, `quic`; empty when disconnected.
    pub transport: String,
    /// Round-trip time of the session's path; `null` when disconnected.
    pub rtt_seconds: Option<f64>,
    /// What the blob store holds.
    pub store: StoreStatus,
    /// What the site is doing.
    pub state: SiteState,
    /// Why site and primary do not follow one history, when a person has to decide; `null` otherwise.
    #[serde(default)]
    pub alarm: Option<String>,
    /// Sessions refused because the histories of site and primary forked, since the start.
    #[serde(default)]
    pub forks_refused: u64,
    /// The sites between this one and the primary, nearest to the primary first; empty when it
    /// follows the primary itself.
    #[serde(default)]
    pub via: Vec<String>,
    /// The sites that follow this one and those behind them, by name, as far as this one knows; only
    /// a site that relays shows them, about itself.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sites: Vec<SiteStatus>,
    /// Times the index was found in another state than the primary's, since the start.
    #[serde(default)]
    pub state_mismatches: u64,
    /// Of those, repaired.
    #[serde(default)]
    pub state_repairs: u64,
    /// Tags, manifests and links that repairs put, removed or replaced.
    #[serde(default)]
    pub state_entries_repaired: u64,
    /// When it will be complete, at the pace of the last half minute; 0 when it is, `null` when it does not
    /// come nearer or nobody knows.
    #[serde(default)]
    pub eta_seconds: Option<f64>,
    /// How long events took to get here.
    #[serde(default)]
    pub propagation: Propagation,
    /// What it serves.
    #[serde(flatten)]
    pub traffic: Traffic,
    /// How far its wall clock is ahead of the primary's, estimated from heartbeats; `null` before the first.
    #[serde(default)]
    pub clock_offset_seconds: Option<f64>,
    /// By how much that may be wrong either way.
    #[serde(default)]
    pub clock_offset_error_seconds: Option<f64>,
    /// What went wrong last; `null` when nothing did since the start.
    #[serde(default)]
    pub last_error: Option<LastError>,
    /// Where it stands.
    #[serde(flatten)]
    pub location: Location,
    /// How long the primary's canary takes to here; `null` when there is none.
    #[serde(default)]
    pub canary: Option<CanaryStatus>,
    /// What it shows to other nodes and to clients; only the site itself says it.
    #[serde(default)]
    pub certificates: Vec<CertificateStatus>,
    /// Repositories with blobs still to be copied, those with the most bytes first; at most 8.
    #[serde(default)]
    pub missing_repos: Vec<MissingRepo>,
    /// Blobs on their way here, those that have come furthest first; at most 8.
    #[serde(default)]
    pub fills: Vec<FillStatus>,
}

/// A certificate that a node shows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateStatus {
    /// `replication`, to other nodes, or `https`, to clients.
    pub name: String,
    /// When it ends, in seconds since the Unix epoch.
    pub expires_at: u64,
    /// Why what its files hold is not used instead; `null` when it is.
    pub refused: Option<String>,
}

/// What a repository lacks at a site.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MissingRepo {
    /// The repository.
    pub repo: String,
    /// Blobs.
    pub blobs: u64,
    /// Their size.
    pub bytes: u64,
}

impl From<&MissingBlobs> for MissingRepo {
    fn from(MissingBlobs { repo, blobs, bytes }: &MissingBlobs) -> Self {
        Self { repo: repo.to_string(), blobs: *blobs, bytes: *bytes }
    }
}

/// A blob on its way to a site.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FillStatus {
    /// A repository in whose name it is fetched.
    pub repo: String,
    /// The blob.
    pub digest: String,
    /// Bytes that have come.
    pub received_bytes: u64,
    /// Its size; `null` when it is not known yet.
    pub size_bytes: Option<u64>,
}

impl From<&Fill> for FillStatus {
    fn from(Fill { repo, digest, received_bytes, size_bytes }: &Fill) -> Self {
        Self {
            repo: repo.to_string(),
            digest: digest.to_string(),
            received_bytes: *received_bytes,
            size_bytes: *size_bytes,
        }
    }
}

impl Traffic {
    /// Pulls answered from the disk, with what was fetched for them, with a "no", and not at all.
    pub fn pulls_by_kind(&self) -> [u64; 4] {
        let kinds: [&[&str]; 4] = [
            &["local", "waited", "stale"],
            &["revalidated", "filled", "joined"],
            &["not_found", "denied"],
            &["unavailable"],
        ];
        let count = |result: &&str| self.pulls.get(*result).copied().unwrap_or_default();
        kinds.map(|results| results.iter().map(count).sum())
    }
}

impl From<&SiteDetail> for Traffic {
    fn from(detail: &SiteDetail) -> Self {
        Self {
            pulls: detail.pulls.iter().cloned().collect(),
            hit_ratio: detail.hits_ppm.map(|ppm| f64::from(ppm) / 1e6),
            served_bytes: detail.served_bytes,
            upstream_bytes: detail.upstream_bytes,
        }
    }
}

impl SiteStatus {
    /// Takes over what a site told of itself, but for what it serves ([`Traffic`]).
    pub fn describe(&mut self, detail: &SiteDetail) {
        let seconds = |micros: u64| micros as f64 / 1e6;
        let spread = |spread: outport_proto::frame::Spread| Spread {
            p50_seconds: seconds(spread.p50_micros),
            p99_seconds: seconds(spread.p99_micros),
        };
        self.eta_seconds = detail.eta_micros.map(seconds);
        self.propagation =
            Propagation { applied: detail.applied.map(spread), complete: detail.complete.map(spread) };
        self.clock_offset_seconds = detail.clock.map(|clock| clock.ahead_micros as f64 / 1e6);
        self.clock_offset_error_seconds = detail.clock.map(|clock| seconds(clock.error_micros));
        self.canary = detail.canary.as_ref().map(CanaryStatus::from);
        self.missing_repos = detail.missing.iter().map(MissingRepo::from).collect();
        self.fills = detail.fills.iter().map(FillStatus::from).collect();
        self.last_error = detail
            .last_error
            .as_ref()
            .map(|(text, at)| LastError { text: text.clone(), at: at.as_micros() / 1_000_000 });
        let degrees = |micro: i32| Some(f64::from(micro) / 1e6);
        if let Some((north, east)) = detail.location {
            self.location = Location { latitude: degrees(north), longitude: degrees(east) };
        }
    }
}

/// How long a tiny image takes from the primary's push until a site has pulled it as a client would.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CanaryStatus {
    /// How long the newest took, or for how long the next one is overdue if that is more; `null` when nobody
    /// knows.
    pub lag_seconds: Option<f64>,
    /// How often one is pushed; 0 before the first was pulled.
    pub interval_seconds: f64,
    /// Why it cannot be pulled; `null` when it can.
    pub error: Option<String>,
}

impl CanaryStatus {
    /// Whether it says that the site is not in sync: a site that shows what it should has the newest canary
    /// before the next one is pushed.
    pub fn is_late(&self) -> bool {
        self.error.is_some() || self.lag_seconds.is_some_and(|lag| lag > self.interval_seconds)
    }
}

impl From<&Canary> for CanaryStatus {
    fn from(canary: &Canary) -> Self {
        Self {
            lag_seconds: canary.lag_micros.map(|micros| micros as f64 / 1e6),
            interval_seconds: canary.interval_micros as f64 / 1e6,
            error: canary.error.clone(),
        }
    }
}

/// Lag by stage in seconds of the primary's clock; `null` when unknown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Lag {
    /// Until the index shows an event.
    pub applied: Option<f64>,
    /// Until its blobs are local.
    pub complete: Option<f64>,
}

/// Size of a blob store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreStatus {
    /// Bytes held.
    pub bytes: u64,
    /// Its limit; `null` without one.
    pub limit_bytes: Option<u64>,
    /// Blobs held.
    pub blobs: u64,
}

/// What a site is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SiteState {
    /// Following the log, caught up or nearly.
    Streaming,
    /// Connected and behind.
    CatchingUp,
    /// Taking a snapshot.
    Snapshot,
    /// No session, or no heartbeat in time.
    #[default]
    Disconnected,
}

/// Whether the node should get traffic; the text says why not.
pub type Readiness = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// Computes a status when asked; `app` wires one in.
pub type StatusSource = Arc<dyn Fn() -> Status + Send + Sync>;
