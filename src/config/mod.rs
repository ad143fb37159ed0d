//! Configuration: a TOML file and environment variables, parsed once into values that cannot be
//! wrong. Every key is documented in `deploy/examples/`.
//!
//! An environment variable overrides the file: `OUTPORT_REGISTRY__LISTEN` is `registry.listen`,
//! with `__` for each dot. Lists and tables are given as TOML.

mod audit;
mod auth;
mod check;
mod gateway;
mod load;
mod value;
mod webhook;

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, time::Duration};

use outport_proto::SiteName;
use serde::Deserialize;

pub use audit::Audit;
pub use auth::{Auth, DelegatedAuth, JwksPlace, OutportAuth, TokenAuth};
pub use gateway::{Gateway, Notifications, Reconcile};
pub use load::{ConfigError, load, load_with_environment};
pub use value::{ByteSize, HostPort, HostPorts, HttpUrl, PublicUrl, TrustedNetwork};
pub use webhook::Webhook;

use crate::{
    fetch::quic::Congestion,
    log::Retention,
    policy::{self, Bandwidth, BandwidthWindow, Policy, PolicyRule},
    registry::journal::JournalOptions,
};

/// Configuration of a primary.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Primary {
    /// Where everything durable lives.
    pub data_dir: PathBuf,
    /// The registry that clients talk to.
    pub registry: PrimaryRegistry,
    /// How the registry behind it is asked, if there is one.
    pub gateway: Option<Gateway>,
    /// Tokens, users and rules.
    pub auth: Auth,
    /// How much of the replication log is kept.
    #[serde(default)]
    pub log: Log,
    /// The blob store.
    #[serde(default)]
    pub store: PrimaryStore,
    /// A tiny image that shows how long an image takes to each site.
    #[serde(default)]
    pub canary: Canary,
    /// Who is told what becomes of images at each site.
    #[serde(default)]
    pub webhooks: Vec<Webhook>,
    /// The log's way to the secondaries.
    pub replication: PrimaryReplication,
    /// Where it stands, for maps.
    #[serde(default)]
    pub location: Location,
    /// The admin listener.
    #[serde(default)]
    pub admin: Admin,
    /// The audit log.
    #[serde(default)]
    pub audit: Audit,
    /// Logs.
    #[serde(default)]
    pub telemetry: Telemetry,
}

/// Configuration of a secondary.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Secondary {
    /// Where everything durable lives.
    pub data_dir: PathBuf,
    /// Name of the site, as in its certificate.
    pub site: SiteName,
    /// The registry that clients talk to.
    pub registry: SecondaryRegistry,
    /// The way to the primary.
    pub primary: Upstream,
    /// Where the site stands, for maps.
    #[serde(default)]
    pub location: Location,
    /// Sites that follow this one instead of the primary.
    pub relay: Option<Relay>,
    /// How reads are decided.
    #[serde(default)]
    pub read: Read,
    /// What the site keeps, in rules; the first that matches decides.
    #[serde(default)]
    pub policy: Vec<PolicyRule>,
    /// How fast blobs are copied ahead; the first window that is open holds.
    #[serde(default)]
    pub bandwidth: Vec<BandwidthWindow>,
    /// How pushes reach the primary.
    #[serde(default)]
    pub push: Push,
    /// The blob store.
    #[serde(default)]
    pub store: SecondaryStore,
    /// How much of the replication log is kept.
    #[serde(default)]
    pub log: Log,
    /// The admin listener.
    #[serde(default)]
    pub admin: Admin,
    /// The audit log.
    #[serde(default)]
    pub audit: Audit,
    /// Logs.
    #[serde(default)]
    pub telemetry: Telemetry,
}

/// A listener for clients.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrimaryRegistry {
    /// Address to listen at.
    pub listen: SocketAddr,
    /// Certificate and key; without them the listener speaks plain HTTP.
    pub tls: Option<Tls>,
    /// Allows plain HTTP on an address that is not loopback.
    #[serde(default)]
    pub insecure: bool,
    /// Connections at once.
    #[serde(default = "connections_max")]
    pub connections_max: usize,
    /// Proxies in front of it.
    #[serde(default)]
    pub proxies: Proxies,
    /// Absolute URL under which clients reach the primary, without a path: redirects, upload
    /// locations and the token realm are made from it and from nothing else.
    pub public_url: PublicUrl,
    /// The registry that is here already and stays: this primary stands in front of it, as a gateway.
    /// Without it the primary is a registry itself.
    pub upstream: Option<PublicUrl>,
    /// Accepts an index whose manifests, or an image whose blobs, are not in the repository.
    #[serde(default)]
    pub sparse_manifests: bool,
    /// Mounts a blob that names no source repository when the client may pull it from some.
    #[serde(default = "yes")]
    pub anonymous_mount: bool,
    /// Hours until an upload that nobody finishes is removed.
    #[serde(default = "upload_age_max_hours")]
    pub upload_age_max_hours: u32,
}

/// A secondary's listener for clients.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SecondaryRegistry {
    /// Address to listen at.
    pub listen: SocketAddr,
    /// Certificate and key; without them the listener speaks plain HTTP.
    pub tls: Option<Tls>,
    /// Allows plain HTTP on an address that is not loopback.
    #[serde(default)]
    pub insecure: bool,
    /// Connections at once.
    #[serde(default = "connections_max")]
    pub connections_max: usize,
    /// Proxies in front of it.
    #[serde(default)]
    pub proxies: Proxies,
    /// Absolute URL under which clients reach this site, without a path. Those that cannot reach the
    /// primary (`push.mode = "proxy"`) ask for tokens there as well.
    pub public_url: Option<PublicUrl>,
}

/// Proxies in front of a registry, which tell whose a connection or a request is.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Proxies {
    /// Networks and addresses whose word is taken.
    pub trusted: Vec<TrustedNetwork>,
    /// They begin every connection with the PROXY protocol; without it they set `Forwarded` or `X-Forwarded-For`.
    pub proxy_protocol: bool,
}

impl Proxies {
    /// As the listener takes it.
    pub fn believed(&self) -> crate::http::Proxies {
        crate::http::Proxies::new(self.trusted.iter().map(|network| network.0).collect(), self.proxy_protocol)
    }
}

/// A certificate chain and its key, PEM.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// The chain, leaf first.
    pub certificate: PathBuf,
    /// The private key.
    pub key: PathBuf,
    /// Replace the certificate by one of the cluster's authority once two thirds of its time are over.
    #[serde(default)]
    pub renew: bool,
}

/// The QUIC listener of a primary.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrimaryReplication {
    /// UDP address to listen at.
    pub listen: SocketAddr,
    /// Who this node is, and who may connect.
    pub tls: MutualTls,
    /// Sites that may connect with any certificate of the cluster's authority. Others join by a token.
    #[serde(default)]
    pub sites: Vec<SiteName>,
    /// The cluster authority's private key, PEM: with it this primary lets machines join and renews certificates.
    pub authority_key: Option<PathBuf>,
    /// Host and UDP port under which sites reach `listen`, or several, for join tokens; without it the host of
    /// `registry.public_url`, and the port of `listen`.
    pub public_address: Option<HostPorts>,
    /// Sites that follow another site instead: by the one they connect to.
    #[serde(default)]
    pub relays: BTreeMap<SiteName, Vec<SiteName>>,
    /// How fast it sends to sites.
    #[serde(default)]
    pub congestion: Congestion,
}

/// The QUIC listener of a site that others follow.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Relay {
    /// UDP address to listen at.
    pub listen: SocketAddr,
    /// Sites that may connect.
    pub sites: Vec<SiteName>,
    /// How fast it sends to them.
    #[serde(default)]
    pub congestion: Congestion,
}

/// This node's certificate for mutual TLS, and the authority that all nodes share.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MutualTls {
    /// This node's certificate chain, PEM.
    pub certificate: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
    /// The cluster authority's certificate, PEM.
    pub authority: PathBuf,
    /// Replace the certificate by one of the cluster's authority once two thirds of its time are over.
    #[serde(default)]
    pub renew: bool,
}

/// A secondary's way to the primary.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Upstream {
    /// Host and UDP port of the primary's replication listener, or of the site's that `relay` names; or several,
    /// which are tried in turn.
    pub address: HostPorts,
    /// The site that is followed instead of the primary itself: its certificate is expected there.
    pub relay: Option<SiteName>,
    /// Go over TCP, through the primary's registry, while UDP does not work.
    #[serde(default = "yes")]
    pub tcp_fallback: bool,
    /// The registry to go through: the primary's public URL, unless this says otherwise. A site that has never
    /// heard of its primary needs it.
    pub fallback_url: Option<PublicUrl>,
    /// Host and port of an HTTP proxy that leads there.
    pub http_proxy: Option<HostPort>,
    /// This node's certificate for mutual TLS.
    pub tls: MutualTls,
    /// Extra authorities for HTTPS to the primary's public URL, PEM; the system's are always trusted.
    pub https_authorities: Option<PathBuf>,
}

/// How much of the replication log is kept on disk. Whoever is further behind takes a snapshot.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// Old segments go once newer ones hold this much, in bytes.
    pub retain_bytes: u64,
    /// Old segments go once their newest event is older than this, in hours.
    pub retain_hours: u32,
    /// Whoever is more events behind than this takes a snapshot, even if the log has them all.
    pub snapshot_after_events: u64,
    /// What was deleted is remembered for at least this long, in hours.
    pub tombstones_hours: u32,
}

impl Log {
    /// How it is kept, and the index with it.
    pub fn journal(&self) -> JournalOptions {
        let hours = |hours: u32| Duration::from_secs(u64::from(hours) * 3600);
        JournalOptions {
            retention: Retention { bytes: self.retain_bytes, age: hours(self.retain_hours) },
            tail_events_max: self.snapshot_after_events,
            tombstone_age: hours(self.tombstones_hours),
            ..JournalOptions::default()
        }
    }
}

/// A tiny image that the primary pushes to a repository of its own and every site pulls.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Canary {
    /// How often one is pushed, in seconds; 0 pushes none.
    pub interval_seconds: u32,
}

impl Canary {
    /// How often one is pushed, if any is.
    pub fn interval(self) -> Option<Duration> {
        (self.interval_seconds > 0).then(|| Duration::from_secs(u64::from(self.interval_seconds)))
    }
}

impl Default for Canary {
    fn default() -> Self {
        Self { interval_seconds: 10 }
    }
}

/// The blob store of a primary. It has no limit: it holds what sites fill from.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PrimaryStore {
    /// How fast blobs are checked for bit rot while nobody asks for them; 0 does not check.
    pub scrub_mib_per_second: u32,
    /// How long a blob stays that no repository names any more, in minutes.
    pub gc_grace_minutes: u32,
}

/// The blob store of a secondary.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SecondaryStore {
    /// How fast blobs are checked for bit rot while nobody asks for them; 0 does not check.
    pub scrub_mib_per_second: u32,
    /// Most bytes of blobs it holds: those used longest ago make room for new ones. Without it,
    /// they do when the disk is full.
    pub limit: Option<ByteSize>,
    /// How long a blob stays that no repository names any more, in minutes.
    pub gc_grace_minutes: u32,
}

/// How reads are decided at a secondary.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Read {
    /// A tag answered while connected is never older than this.
    pub staleness_bound_ms: u64,
    /// How long a read waits for replication to reach what a token has seen, before asking the primary.
    pub wait_ms: u64,
    /// How long a site that is cut off goes on answering tags; without it, for ever.
    pub stale_max_seconds: Option<u64>,
    /// Rely on the staleness bound alone instead of comparing tokens with what is applied.
    pub ignore_token_age: bool,
    /// How many answers "no" of the primary are remembered until their repository changes; 0 asks
    /// each time. For as long as the staleness bound, a pull without a newer token then misses what
    /// was just pushed elsewhere.
    pub remembered_max: usize,
}

/// How pushes reach the primary.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Push {
    /// By redirect, or through this site.
    pub mode: PushMode,
}

/// How pushes reach the primary.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PushMode {
    /// The client is sent to the primary.
    #[default]
    Redirect,
    /// The site streams everything through, token requests too, for clients that cannot reach the
    /// primary.
    Proxy,
}

/// Where a node stands: both, or neither.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Location {
    /// Degrees north, -90 to 90.
    pub latitude: Option<f64>,
    /// Degrees east, -180 to 180.
    pub longitude: Option<f64>,
}

impl Location {
    /// As the status shows it.
    pub const fn status(self) -> crate::status::Location {
        crate::status::Location { latitude: self.latitude, longitude: self.longitude }
    }
}

/// The admin listener.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Admin {
    /// Address to listen at; anything but loopback needs a token.
    pub listen: SocketAddr,
    /// A file holding the token that requests must carry.
    pub token_file: Option<PathBuf>,
}

/// Logs of the process.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Telemetry {
    /// `human` or `json`.
    pub log_format: crate::telemetry::LogFormat,
    /// A `tracing` filter such as `info` or `outport=debug`.
    pub log_filter: String,
    /// Where traces go; without it there are none.
    pub otlp: Option<Otlp>,
}

/// A collector that speaks OTLP. Headers it wants, such as `Authorization`, are taken from the
/// environment variable `OTEL_EXPORTER_OTLP_HEADERS`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Otlp {
    /// `http://collector:4317`, or with `protocol = "http"` `http://collector:4318`: the part before
    /// `/v1/traces`.
    pub endpoint: HttpUrl,
    /// `grpc` or `http`.
    #[serde(default)]
    pub protocol: OtlpProtocol,
    /// Share of requests that are recorded, from 0 to 1. Those whose client records them are as well, up
    /// to 100 in a second.
    #[serde(default = "trace_ratio")]
    pub trace_ratio: f64,
    /// How often what is measured is sent, in seconds; 0 sends none of it.
    #[serde(default = "metrics_seconds")]
    pub metrics_seconds: u32,
    /// A file with the certificates (PEM) of authorities that the collector's is believed from; without
    /// it, the system's.
    pub authorities: Option<PathBuf>,
}

/// How OTLP travels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OtlpProtocol {
    /// gRPC.
    #[default]
    Grpc,
    /// Protobuf over HTTP/1.1.
    Http,
}

impl PrimaryRegistry {
    /// Plain HTTP at an address, everything else by default.
    pub fn plain(listen: SocketAddr, public_url: PublicUrl) -> Self {
        Self {
            listen,
            tls: None,
            insecure: false,
            connections_max: connections_max(),
            proxies: Proxies::default(),
            public_url,
            upstream: None,
            sparse_manifests: false,
            anonymous_mount: yes(),
            upload_age_max_hours: upload_age_max_hours(),
        }
    }
}

impl SecondaryRegistry {
    /// Plain HTTP at an address, everything else by default.
    pub fn plain(listen: SocketAddr) -> Self {
        Self {
            listen,
            tls: None,
            insecure: false,
            connections_max: connections_max(),
            proxies: Proxies::default(),
            public_url: None,
        }
    }
}

impl Secondary {
    /// The rules, ready to be asked.
    ///
    /// # Errors
    /// Names the rule and its key.
    pub fn policy(&self) -> Result<Policy, policy::RuleError> {
        Policy::new(&self.policy)
    }

    /// The limits, ready to be asked.
    ///
    /// # Errors
    /// Names the window and its key.
    pub fn bandwidth(&self) -> Result<Bandwidth, policy::RuleError> {
        Bandwidth::new(&self.bandwidth)
    }
}

impl Default for Read {
    fn default() -> Self {
        Self {
            staleness_bound_ms: 1000,
            wait_ms: 150,
            stale_max_seconds: None,
            ignore_token_age: false,
            remembered_max: 0,
        }
    }
}

impl Default for PrimaryStore {
    fn default() -> Self {
        Self { gc_grace_minutes: GC_GRACE_MINUTES, scrub_mib_per_second: SCRUB_MIB_PER_SECOND }
    }
}

impl Default for SecondaryStore {
    fn default() -> Self {
        Self { limit: None, gc_grace_minutes: GC_GRACE_MINUTES, scrub_mib_per_second: SCRUB_MIB_PER_SECOND }
    }
}

const GC_GRACE_MINUTES: u32 = 60;
/// A terabyte in a bit more than a day.
const SCRUB_MIB_PER_SECOND: u32 = 10;

impl Default for Log {
    fn default() -> Self {
        Self {
            retain_bytes: 4 * 1024 * 1024 * 1024,
            retain_hours: 14 * 24,
            snapshot_after_events: 1_000_000,
            tombstones_hours: 30 * 24,
        }
    }
}

impl Default for Admin {
    fn default() -> Self {
        Self { listen: SocketAddr::from(([127, 0, 0, 1], 9000)), token_file: None }
    }
}

impl Default for Telemetry {
    fn default() -> Self {
        Self { log_format: crate::telemetry::LogFormat::Human, log_filter: "info".to_owned(), otlp: None }
    }
}

impl Otlp {
    /// How often what is measured is sent, if it is.
    pub fn metrics_interval(&self) -> Option<Duration> {
        (self.metrics_seconds > 0).then(|| Duration::from_secs(u64::from(self.metrics_seconds)))
    }
}

const fn metrics_seconds() -> u32 {
    60
}

const fn trace_ratio() -> f64 {
    0.01
}

const fn yes() -> bool {
    true
}

const fn connections_max() -> usize {
    10_000
}

const fn upload_age_max_hours() -> u32 {
    24
}
