//! The frames two peers exchange. `proto/README.md` draws who sends what when.

use bytes::Bytes;

use crate::{
    Digest, Offset, Reference, RepoName, SiteName, Timestamp, Traceparent,
    codec::{Decode, Encode},
    snapshot::{Entry, SnapshotPlace},
};

/// The QUIC application protocol of the log and request connection.
pub const ALPN: &[u8] = b"outport/1";
/// The newest protocol version this build speaks.
pub const VERSION: u16 = 3;
/// All it can speak, best first: `Hello` lists those, `Welcome` picks one.
pub const VERSIONS: [u16; 3] = [VERSION, 2, 1];
/// The QUIC application protocol of a connection on which a machine asks to become a site.
pub const JOIN_ALPN: &[u8] = b"outport-join/1";
/// Largest frame in bytes, envelope included, checked before anything is decoded: a manifest of
/// 4 MiB and its envelope fit with room.
pub const FRAME_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Most sites behind one another, the one that asks included: a longer way is taken for a ring.
pub const HOPS_MAX: usize = 8;

/// Most reports about other sites in one [`Ack`].
pub const BEHIND_MAX: usize = 64;

/// Most sites that one [`FromSecondary::Details`] is about.
pub const DETAILS_MAX: usize = 64;
/// Repositories with missing blobs in a [`SiteDetail`].
pub const MISSING_REPOS_MAX: usize = 8;
/// Fills in a [`SiteDetail`].
pub const FILLS_MAX: usize = 8;

/// The protocol version from which on either end may tell of traces.
pub const TRACES_SINCE: u16 = 2;

/// The protocol version from which on a primary knows [`Request::Certify`].
pub const CERTIFY_SINCE: u16 = 2;

/// The protocol version from which on the ends compare clocks that nobody sets.
pub const READINGS_SINCE: u16 = 3;

/// Most events that one [`FromPrimary::Traces`] is about.
pub const TRACES_MAX: usize = 1024;

/// Most buckets that one [`DiffStep::Entries`] asks for.
pub const DIFF_BUCKETS_MAX: usize = 64;

/// What a lag in a [`SiteReport`] says when the site does not know it.
pub const LAG_UNKNOWN_MICROS: u64 = u64::MAX;

/// A frame from a secondary to its upstream on the log stream.
#[derive(Clone, Debug, PartialEq)]
pub enum FromSecondary {
    /// The first frame on the stream.
    Hello(Hello),
    /// How far the secondary is; sent when it changes and with every heartbeat received.
    Ack(Ack),
    /// What people want to know beside that of the secondary and the sites behind it, as far as it changed;
    /// at most [`DETAILS_MAX`] sites, and since version 2.
    Details(Vec<SiteDetail>),
    /// The secondary's own time, which is to come back in a [`Reading`]: microseconds of a clock that nobody
    /// sets; since version 3.
    Probe(u64),
}

/// A frame from the upstream to a secondary on the log stream.
#[derive(Clone, Debug, PartialEq)]
pub enum FromPrimary {
    /// The session is open.
    Welcome(Box<Welcome>),
    /// The session is not possible; the stream ends.
    Refused(Refusal),
    /// Consecutive events, each in its encoded form (`codec::decode_event`).
    Append(Vec<Bytes>),
    /// Head and closed time, every [`crate::session::HEARTBEAT_INTERVAL`] and after every append.
    Heartbeat(Heartbeat),
    /// New keys: they replace those of `Welcome`.
    Keys(Keys),
    /// In which spans events that follow were made, as far as anybody records those; for people.
    Traces(Vec<(Offset, Traceparent)>),
    /// How old the heartbeat behind it is; since version 3.
    Reading(Reading),
}

/// A secondary introduces itself.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Hello {
    /// Protocol versions it speaks, best first.
    pub versions: Vec<u16>,
    /// Its site; must be the one its certificate names.
    pub site: SiteName,
    /// Which node of the site; any text, for people.
    pub node: String,
    /// Its program version; for people.
    pub program: String,
    /// The newest event it has on disk; `None` when it has nothing.
    pub have: Option<Offset>,
    /// SHA-256 of that event's encoded form, so that another history with the same offsets shows;
    /// `None` when it has the state there and not the event.
    pub have_digest: Option<Digest>,
    /// The newest epoch it has heard of; 0 before its first session.
    pub epoch: u64,
    /// The cluster it belongs to; `None` before its first session.
    pub cluster: Option<String>,
}

/// The upstream's answer to an acceptable `Hello`.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub struct Welcome {
    /// The version both ends use from here on.
    pub version: u16,
    /// The cluster's identity.
    pub cluster: String,
    /// Newest durable event.
    pub head: Offset,
    /// Oldest place the log can still be read after.
    pub floor: Offset,
    /// How the secondary gets from `have` to `head`.
    pub resume: Resume,
    /// Keys of this site.
    pub keys: Keys,
    /// Absolute URL of the token endpoint.
    pub token_realm: String,
    /// The `service` of challenges and the audience of tokens.
    pub token_service: String,
    /// Absolute public URL of the primary, without a trailing slash.
    pub public_url: String,
    /// The sites between the secondary and the primary, nearest to the primary first: empty when
    /// the primary itself answers.
    pub path: Vec<SiteName>,
}

/// How a secondary catches up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Resume {
    /// Events after `have` follow on this stream.
    Tail,
    /// The secondary must take a snapshot (a `Snapshot` request) first; events after the
    /// snapshot's offset follow once it says `Hello` again.
    Snapshot,
    /// As [`Resume::Snapshot`], because what the secondary has behind `fork` is of an epoch that
    /// the log's history left there: it never happened.
    Rewind {
        /// The newest event of the secondary's epoch that is part of the history.
        fork: Offset,
    },
}

/// Why a session is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Encode, Decode)]
pub enum Refusal {
    /// No common protocol version.
    #[error("no common protocol version (the peer speaks {0:?})")]
    Version(Vec<u16>),
    /// The certificate does not name the site that `Hello` claims, or the site is not listed.
    #[error("the certificate is not that of site {0}")]
    Site(String),
    /// The secondary belongs to another cluster.
    #[error("this is cluster {0}")]
    Cluster(String),
    /// The first frame was not `Hello`, or a frame came out of place.
    #[error("protocol violation: {0}")]
    Violation(String),
    /// What the secondary has is no part of the primary's history, and the primary's epoch is not
    /// a newer one: the primary was restored from an older copy, or there are two of them.
    #[error(
        "the site is at {have} and knows epoch {epoch}, the primary's log is another or ends earlier, \
         at {head}: if this primary was restored from a backup, start it with --restored once; \
         otherwise another primary of this cluster is running"
    )]
    Fork {
        /// The newest event of the secondary; epoch and seq 0 when it has none.
        have: Offset,
        /// The newest epoch that the secondary knows.
        epoch: u64,
        /// The newest event of the primary.
        head: Offset,
    },
    /// The upstream is a site that relays, and cannot tell yet: it has not heard of the primary, or is
    /// itself behind what the secondary has.
    #[error("not yet: {0}")]
    Unready(String),
    /// The upstream's own way to the primary leads through the site.
    #[error("the way to the primary is a ring: it leads through {}", names(.0))]
    Ring(Vec<SiteName>),
}

/// Sites, as people read them.
pub(crate) fn names(path: &[SiteName]) -> String {
    path.iter().map(SiteName::as_str).collect::<Vec<_>>().join(", ")
}

/// What every heartbeat says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Heartbeat {
    /// Newest durable event.
    pub head: Offset,
    /// Every change acknowledged before this primary time is at or below `head`. Zero, which is
    /// always true, from a site that relays and has not heard of the primary since it started.
    pub closed_time: Timestamp,
    /// The primary's clock when this was sent, as far as the sender knows it. What it is ahead of
    /// `closed_time` is how long ago the primary said the rest.
    pub now: Timestamp,
    /// Bytes of log up to `head` since the log began, for lag in bytes.
    pub log_bytes: u64,
    /// The sender's index state at `state_at`, order-independent.
    pub state_hash: [u8; 32],
    /// The offset `state_hash` was taken at.
    pub state_at: Offset,
    /// The primary stands in front of a registry and cannot tell yet what happened there: `closed_time`
    /// is of its own log, and tags are to be asked about.
    pub unsure: bool,
}

/// How old a heartbeat is, by clocks that nobody sets. Whoever knows when its own word had come there at the latest
/// knows how old the heartbeat is at most, however long it travelled: see [`crate::session::Subscriber::as_of_micros`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Reading {
    /// Microseconds between the first `Hello` on this stream and a moment before the heartbeat was made.
    pub at_micros: u64,
    /// How long before that moment the primary said it, in microseconds: 0 at the primary, [`LAG_UNKNOWN_MICROS`] at a
    /// site that relays and has not heard of the primary since it started.
    pub age_micros: u64,
    /// The newest probe that came since the reading before.
    pub echo: Option<Echo>,
}

/// A [`FromSecondary::Probe`], and when it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Echo {
    /// What it said.
    pub probe_micros: u64,
    /// Microseconds after the first `Hello` on this stream.
    pub came_at_micros: u64,
}

/// How far a secondary is.
#[derive(Clone, Debug, Default, PartialEq, Encode, Decode)]
pub struct Ack {
    /// Got it.
    pub received: Offset,
    /// Has it on disk.
    pub durable: Offset,
    /// The index shows it.
    pub applied: Offset,
    /// Every blob it needs, by policy, is local.
    pub complete: Offset,
    /// Everything else the primary shows about the site.
    pub report: SiteReport,
    /// The sites that follow this one, and those behind them, as far as anything changed since the
    /// last `Ack` on this stream; at most [`BEHIND_MAX`].
    pub behind: Vec<Behind>,
}

/// A site that follows another one, as that one last heard of it.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub struct Behind {
    /// The site.
    pub site: SiteName,
    /// The sites between the one that says this and `site`, nearest to the former first.
    pub via: Vec<SiteName>,
    /// Its program version; for people.
    pub program: String,
    /// Whether it has a session, and what it does there.
    pub link: BehindLink,
    /// How long ago anything was heard of it, in microseconds.
    pub silent_micros: u64,
    /// Got it.
    pub received: Offset,
    /// Has it on disk.
    pub durable: Offset,
    /// The index shows it.
    pub applied: Offset,
    /// Every blob it needs, by policy, is local.
    pub complete: Offset,
    /// Its numbers.
    pub report: SiteReport,
    /// Why it was last refused because of a fork.
    pub alarm: Option<String>,
    /// Sessions refused because of a fork.
    pub forks_refused: u64,
}

/// A session between two sites, as the upstream one sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum BehindLink {
    /// None, or nothing was heard in time.
    Down,
    /// Events follow.
    Up {
        /// Round trip of the path in microseconds.
        rtt_micros: u64,
    },
    /// It takes a snapshot.
    Snapshot {
        /// Round trip of the path in microseconds.
        rtt_micros: u64,
    },
}

/// A site's numbers for the primary's status page.
#[derive(Clone, Debug, Default, PartialEq, Encode, Decode)]
pub struct SiteReport {
    /// Bytes in the blob store.
    pub store_bytes: u64,
    /// Its limit; `None` without one.
    pub store_limit_bytes: Option<u64>,
    /// Blobs in the store.
    pub store_blobs: u64,
    /// Blobs it should hold by policy and does not.
    pub missing_blobs: u64,
    /// Bytes of log received so far, comparable with `Heartbeat::log_bytes`.
    pub log_bytes: u64,
    /// Age in primary time of the oldest event not applied, in microseconds; 0 when caught up,
    /// [`LAG_UNKNOWN_MICROS`] when unknown.
    pub lag_applied_micros: u64,
    /// The same for complete.
    pub lag_complete_micros: u64,
    /// Staleness bound in microseconds.
    pub staleness_bound_micros: u64,
}

/// What people want to know of a site beside how far it is. Nothing is decided by it.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub struct SiteDetail {
    /// The site.
    pub site: SiteName,
    /// When it will have caught up, at the pace of the last half minute; `None` when unknown.
    pub eta_micros: Option<u64>,
    /// How long events of the last five minutes took until the index showed them.
    pub applied: Option<Spread>,
    /// The same until their blobs were local.
    pub complete: Option<Spread>,
    /// Pulls since its start, by how they were answered.
    pub pulls: Vec<(String, u64)>,
    /// Pulls of the last five minutes that were answered from its disk, in millionths; `None` without pulls.
    pub hits_ppm: Option<u32>,
    /// Bytes of response bodies sent since its start.
    pub served_bytes: u64,
    /// Bytes fetched from upstream since its start.
    pub upstream_bytes: u64,
    /// Its wall clock against the primary's; `None` before the first heartbeat.
    pub clock: Option<ClockOffset>,
    /// What went wrong last, and when by its own clock.
    pub last_error: Option<(String, Timestamp)>,
    /// Where it stands, in millionths of degrees north and east.
    pub location: Option<(i32, i32)>,
    /// How the primary's canary does there; `None` without one.
    pub canary: Option<Canary>,
    /// Repositories with blobs still to be copied, those with the most bytes first; at most
    /// [`MISSING_REPOS_MAX`].
    pub missing: Vec<MissingBlobs>,
    /// Blobs that are on their way there; at most [`FILLS_MAX`].
    pub fills: Vec<Fill>,
}

/// What a repository lacks at a site.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct MissingBlobs {
    /// The repository.
    pub repo: RepoName,
    /// Blobs.
    pub blobs: u64,
    /// Their size.
    pub bytes: u64,
}

/// A blob that a site is bringing.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Fill {
    /// A repository in whose name it is fetched.
    pub repo: RepoName,
    /// The blob.
    pub digest: Digest,
    /// Bytes that have come.
    pub received_bytes: u64,
    /// Its size; `None` when it is not known yet.
    pub size_bytes: Option<u64>,
}

/// How long the newest canary took to a site.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Canary {
    /// How often one is pushed; 0 when none was pulled yet.
    pub interval_micros: u64,
    /// From its push to the end of its pull, or how long the next one is overdue if that is more; `None` when
    /// unknown.
    pub lag_micros: Option<u64>,
    /// Why it cannot be pulled.
    pub error: Option<String>,
}

/// Two quantiles of how long something took.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Spread {
    /// Half took no longer.
    pub p50_micros: u64,
    /// Of a hundred, all but one took no longer.
    pub p99_micros: u64,
}

/// How far a site's wall clock is ahead of the primary's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ClockOffset {
    /// Below 0 when it is behind.
    pub ahead_micros: i64,
    /// By how much that may be wrong either way.
    pub error_micros: u64,
}

/// What a site needs to let callers in and to seal tickets. Travels only inside mutual TLS.
#[derive(Clone, PartialEq, Eq, Encode, Decode)]
pub struct Keys {
    /// How callers prove what they may do.
    pub auth: AuthMode,
    /// Globs of the repositories that anybody may pull from: served without a token by a site that
    /// cannot send its clients for one. `*` stays within one path component, `**` crosses them.
    pub public_pull: Vec<String>,
    /// Seal keys of this site, newest first; the newest seals, all open.
    pub seal: Vec<SealKey>,
    /// Counts up with every change at the primary.
    pub generation: u64,
}

/// How callers prove what they may do.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum AuthMode {
    /// By tokens of the primary's own token service.
    Outport {
        /// Its public keys: JSON Web Key Set, as text.
        jwks: String,
        /// Issuer that tokens must name.
        issuer: String,
    },
    /// By tokens of another service, which the registry behind the primary trusts.
    Token {
        /// Its public keys: JSON Web Key Set, as text. A key occurs once by each name that tokens may
        /// give it.
        jwks: String,
        /// Issuer that tokens must name.
        issuer: String,
        /// Certificates (DER) that the chain in a token's `x5c` header may lead to; without any, no such
        /// chain is believed.
        roots: Vec<Vec<u8>>,
    },
    /// By whatever the registry behind the primary takes: it is asked ([`Request::Authorize`]).
    Delegated {
        /// What the registry demands of who comes without credentials; `None` when it demands nothing, or
        /// was not heard of yet.
        challenge: Option<RegistryChallenge>,
        /// How long a yes is remembered, in seconds.
        allow_seconds: u32,
        /// How long a no is remembered, in seconds.
        deny_seconds: u32,
        /// Answers remembered at most.
        cached_max: u32,
        /// When all answers were last revoked: whatever was remembered under another value is void.
        revoked: Timestamp,
    },
    /// Not at all: everybody may do everything.
    Anonymous,
}

/// What a registry demands (`WWW-Authenticate`).
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum RegistryChallenge {
    /// A user and a password with every request.
    Basic {
        /// For people.
        realm: String,
    },
    /// A token.
    Bearer {
        /// Absolute URL of the token endpoint.
        realm: String,
        /// The service to ask a token for; empty when the registry names none.
        service: String,
    },
}

/// What somebody wants, as far as the registry is asked whether they may.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub enum Question {
    /// To be let in at all: `GET /v2/`.
    Ping,
    /// To list all repositories.
    Catalog,
    /// To pull from a repository.
    Repository(RepoName),
    /// To read one manifest, of a repository that the registry says does not exist: one without tags
    /// looks so.
    Manifest {
        /// The repository.
        repo: RepoName,
        /// Tag or digest.
        reference: Reference,
    },
    /// To read one blob, likewise.
    Blob {
        /// The repository.
        repo: RepoName,
        /// The blob.
        digest: Digest,
    },
}

/// What the registry says to a [`Question`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Verdict {
    /// They may.
    Yes,
    /// The credentials are missing or wrong (401).
    Unauthorized,
    /// The credentials are good and do not reach that far (403).
    Denied,
    /// There is no such thing for them (404).
    Unknown,
}

/// The value of an `Authorization` header. `Debug` shows nothing of it.
#[derive(Clone, PartialEq, Eq, Encode, Decode)]
pub struct Credentials(pub String);

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Credentials(..)")
    }
}

/// A symmetric key for tickets.
#[derive(Clone, PartialEq, Eq, Encode, Decode)]
pub struct SealKey {
    /// Names the key in a ticket.
    pub id: u32,
    /// 32 random bytes.
    pub secret: [u8; 32],
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keys").field("generation", &self.generation).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for SealKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SealKey").field("id", &self.id).finish_non_exhaustive()
    }
}

/// A request, the first and only frame a secondary sends on a stream of its own.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Request {
    /// What does `reference` name now? Answer: [`Response::Manifest`] or [`Response::NotFound`].
    Resolve {
        /// The repository.
        repo: RepoName,
        /// Tag or digest.
        reference: Reference,
    },
    /// May `repo` serve blob `digest`? Answer: [`Response::Linked`] or [`Response::NotFound`].
    Link {
        /// The repository.
        repo: RepoName,
        /// The blob.
        digest: Digest,
    },
    /// The bytes of `digest` from `offset` on. Answer: [`Response::Body`], then that many raw
    /// bytes until the stream ends; or [`Response::NotFound`].
    Fetch {
        /// A repository that links it.
        repo: RepoName,
        /// The blob, or a manifest too large for its event.
        digest: Digest,
        /// First byte wanted.
        offset: u64,
    },
    /// Who refers to `digest`? Answer: [`Response::Manifests`].
    Referrers {
        /// The repository.
        repo: RepoName,
        /// The subject.
        digest: Digest,
    },
    /// The whole state. Answer: [`Response::SnapshotBegin`], [`Response::SnapshotPart`]s, [`Response::SnapshotEnd`].
    Snapshot {
        /// Where one that was cut off is to go on.
        resume: Option<SnapshotPlace>,
    },
    /// The keys of a site that follows the one that asks. Answer: [`Response::SiteKeys`], or
    /// [`Response::NotFound`] when it is not for the asking site to have them.
    SiteKeys {
        /// Whose.
        site: SiteName,
        /// Who asks for whom: the site that `site` connects to, the site that one connects to, and so
        /// on; the last is the one that the certificate names.
        via: Vec<SiteName>,
    },
    /// Where do our states differ? Asked in two steps.
    Diff(DiffStep),
    /// May whoever has these credentials do this ([`AuthMode::Delegated`])? Answer:
    /// [`Response::Authorized`]; Unavailable when the registry said neither yes nor no.
    Authorize {
        /// The caller's own `Authorization`; `None` when they sent none.
        authorization: Option<Credentials>,
        /// What they want.
        question: Question,
    },
    /// The keys of the site that asks, once the primary has looked for the key of this name
    /// ([`AuthMode::Token`]): a token names it, and nobody knows it yet. Answer: [`Response::SiteKeys`].
    OwnKeys {
        /// The name in the token's header (`kid`).
        unknown: String,
    },
    /// New certificates for the site that asks, or for one behind it. Answer: [`Response::Certified`], or
    /// [`Response::NotFound`] when they are not for the asking site to have. Since version 2.
    Certify {
        /// Whose, and who asks for whom, as in [`Request::SiteKeys`]; `via` is empty when a site asks for itself.
        site: SiteName,
        /// See `site`.
        via: Vec<SiteName>,
        /// For which keys.
        requests: CertificateRequests,
    },
}

/// Requests for certificates, PKCS #10 in DER. Nothing but the public key in them counts: the primary says
/// what is certified.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct CertificateRequests {
    /// For the site's identity to other nodes.
    pub node: Vec<u8>,
    /// For HTTPS, when the primary is to certify the site's host names as well.
    pub https: Option<Vec<u8>>,
}

/// Certificates that the primary issued, in DER, each chain with the leaf first.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Certificates {
    /// The site's identity to other nodes.
    pub node: Vec<Vec<u8>>,
    /// For HTTPS; `None` when that was not asked for, or the site has no host names.
    pub https: Option<Vec<Vec<u8>>>,
    /// The authorities that the nodes of the cluster believe.
    pub authorities: Vec<Vec<u8>>,
}

/// A machine asks to become a site: the only frame that it sends on a connection of [`JOIN_ALPN`].
#[derive(Clone, PartialEq, Eq, Encode, Decode)]
pub struct Join {
    /// Which site, as its token says.
    pub site: SiteName,
    /// The token's secret.
    pub secret: [u8; 32],
    /// For which keys.
    pub requests: CertificateRequests,
    /// Which machine; any text, for people.
    pub node: String,
    /// Its program version; for people.
    pub program: String,
}

impl std::fmt::Debug for Join {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Join").field("site", &self.site).field("node", &self.node).finish_non_exhaustive()
    }
}

/// The answer to a [`Join`].
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Joined {
    /// It is that site from now on.
    Joined(Certificates),
    /// The token is not good, or no certificate can be issued; for people.
    Refused(String),
}

/// A question as it stands on its stream.
#[derive(Clone, Debug, PartialEq)]
pub struct Asked {
    /// The span that it is asked in, when that is to be told.
    pub parent: Option<Traceparent>,
    /// The question.
    pub request: Request,
}

impl From<Request> for Asked {
    fn from(request: Request) -> Self {
        Self { parent: None, request }
    }
}

/// A step on the way to what two states differ in.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum DiffStep {
    /// The sums of all buckets. Answer: [`Response::DiffSums`].
    Sums,
    /// All there is in these buckets ([`DIFF_BUCKETS_MAX`] at most). Answer, for each of them in
    /// this order: [`Response::DiffPart`]s, and a [`Response::DiffBucket`] at its end.
    Entries(Vec<u16>),
}

/// An answer to a [`Request`].
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub enum Response {
    /// The manifest a reference names; `at` is the primary's applied offset when it answered.
    Manifest {
        /// The manifest as its event carries it, with `tags` empty; bytes always present up to 4 MiB.
        manifest: Box<crate::ManifestPut>,
        /// The answer holds at this offset.
        at: Offset,
    },
    /// The repository links the blob.
    Linked {
        /// Its size in bytes.
        size: u64,
        /// The answer holds at this offset.
        at: Offset,
    },
    /// The primary's log says: no such thing.
    NotFound {
        /// The answer holds at this offset.
        at: Offset,
    },
    /// Raw bytes follow.
    Body {
        /// Size of the whole content in bytes, not of what follows.
        size: u64,
    },
    /// Manifests, as in [`Response::Manifest`] but without their bytes.
    Manifests {
        /// The manifests.
        manifests: Vec<crate::ManifestPut>,
        /// The answer holds at this offset.
        at: Offset,
    },
    /// A snapshot begins: applying its parts and then every event after `from` gives the state
    /// at any later offset from `until` on.
    SnapshotBegin {
        /// Events after this one must be applied on top.
        from: Offset,
        /// It goes on where it was asked to, and `from` is what it was then.
        resumed: bool,
    },
    /// Some of a snapshot's entries.
    SnapshotPart(Vec<Entry>),
    /// The snapshot is whole.
    SnapshotEnd {
        /// The state is consistent once events up to here are applied.
        until: Offset,
        /// How many entries there were in this answer.
        entries: u64,
    },
    /// The primary cannot answer now; it is not a "no".
    Unavailable {
        /// Why, for logs.
        reason: String,
    },
    /// Keys of the site asked for.
    SiteKeys(Keys),
    /// The sums of all buckets ([`crate::statehash`]), from the first to the last.
    DiffSums {
        /// They hold at this offset.
        at: Offset,
        /// [`crate::statehash::BUCKETS`] of them.
        sums: Vec<[u8; 32]>,
    },
    /// Some of the entries of a bucket: tags, links, and manifests without their bytes.
    DiffPart(Vec<Entry>),
    /// A bucket is whole.
    DiffBucket {
        /// Which one.
        bucket: u16,
        /// Its entries are the same at every offset from this one ..
        since: Offset,
        /// .. to this one. When that is older than `since`, the bucket changed while it was read,
        /// and its entries are to be asked for again.
        until: Offset,
        /// How many there were.
        entries: u64,
    },
    /// What the registry behind the primary says.
    Authorized(Verdict),
    /// Certificates asked for.
    Certified(Certificates),
}
