//! Outport: one registry URL, many sites, every pull served from the nearest one.
//!
//! # The idea
//!
//! A *primary* takes every push and writes what happened to a replication *log*. A *secondary*
//! follows that log over QUIC, answers pulls from its own disk, and sends pushes to the primary.
//! **The log is the truth, the index is a view**: every site keeps the log it has, durable, and
//! derives from it an index of tags, manifests and links that may be lost or doubted at the cost
//! of a rebuild, never of data. Blobs are content-addressed and stored once; a *link* says which
//! repository may serve which blob.
//!
//! What makes a replica honest is not how fast it follows but how it answers while it is behind.
//! [`registry::decide`] is that answer: one pure function from what a site knows to serve, wait,
//! ask the primary, fill, or say that it cannot know. A 404 is only ever the primary's word.
//!
//! # The house
//!
//! Modules stand on floors and import downward only (`tests/architecture.rs` checks it); those of
//! one floor do not know each other and meet in [`app`].
//!
//! | floor | modules | what lives there |
//! |---|---|---|
//! | 0 | `outport_proto` | names, digests, events, frames, and the two ends of a session as state machines without I/O |
//! | 1 | [`clock`] [`glob`] [`history`] [`shutdown`] [`status`] [`telemetry`] [`watch`] | small tools, which may use each other |
//! | 1 | [`process`] [`blocking`] [`random`] [`planted`] [`bounds`] | what differs between a real process and one of a simulation |
//! | 2 | [`store`] | blobs: verified while written, visible only when whole and durable |
//! | 2 | [`log`] | append-only, checksummed, chained segments; group commit |
//! | 2 | [`index`] | tags, manifests, links, referrers: a view of the log |
//! | 3 | [`auth`] | who callers are and what they may do: tokens, scopes, passwords, the registry's own word; tickets, certificates, join tokens |
//! | 3 | [`policy`] | what a site keeps, in which order and how fast it copies |
//! | 3 | [`fetch`] | whoever is asked for what is not here: the upstream of a secondary, the registry behind a gateway; *flights*, the fills that many readers share |
//! | 4 | [`registry`] | pull decisions, pushes, the gateway to a registry that is here already, the canary, where images are, garbage collection, verification, and the journal that joins log and index |
//! | 5 | [`http`] | the OCI distribution API: routes, handlers, the redirect |
//! | 5 | [`primary`] [`secondary`] | the two ends of replication, driving the state machines of `outport_proto`; a site that relays has both |
//! | 5 | [`admin`] | health, metrics, status, wait, why, gc, verify |
//! | 6 | [`config`] [`app`] | from a file to running parts |
//! | 7 | [`cli`] | one file a command |
//!
//! # Follow one pull
//!
//! [`http`] parses method and path into an action, verifies the token ([`auth`]) and calls
//! [`registry::PullService`]. That gathers facts (is the tag in the [`index`]? how old is the
//! session?), lets [`registry::decide`] decide, and serves from the [`store`], asks the
//! [`fetch::Upstream`], or joins a flight ([`fetch`]) whose growing file the client reads while it
//! is still being verified; the last bytes are held back until it is.
//!
//! # Follow one event
//!
//! A push at the primary ends in [`registry::PushService`], which commits a change to the journal:
//! appended to the [`log`], made durable together with its neighbours by one fsync, applied to the
//! [`index`], and only then acknowledged. The publisher ([`primary`]) sends the record as it stands
//! on disk to every subscriber ([`secondary`]), which appends it to its own log, applies it, and
//! acknowledges how far it is.
//!
//! A site with `[relay]` is a subscriber and publishes what it has to sites of its own, on the
//! primary's word ([`primary::source::Source`]): what it heard of the primary's clock, head and state
//! goes down as it came, questions go up, and what a site behind it lacks is filled through it.
//! Acknowledgements tell the primary of everybody behind.
//!
//! # How a site comes, travels and takes over
//!
//! A machine with a token joins on a connection that shows no certificate ([`primary::joins`], [`secondary::join`]); from then on
//! [`primary::members`] knows it by the certificates that it was given. A session's packets go over UDP, and through the primary's
//! registry where there is none ([`fetch::tunnel`]); nothing above knows the difference. When a primary is handed over or lost, a
//! site's data directory becomes a primary's ([`app::promote`]): it has the log, and a new epoch begins behind it.
//!
//! # A registry that is here already
//!
//! With `registry.upstream` a primary is a *gateway*. Pushes go through [`http`] to the registry and are
//! recorded by [`registry::gateway`] before they are acknowledged; what the registry has otherwise is
//! recorded when somebody looks. To everything else the gateway is an upstream like any other
//! ([`registry::gateway::GatewayUpstream`]): pulls at the primary and questions of sites are answered from
//! the index and the store, and what is missing there is asked for and filled.
//!
//! # What is on disk
//!
//! ```text
//! data_dir/
//!   log/        segments; the only thing that must never be lost
//!   log.damaged/ a secondary's log that was found damaged and fetched again, for who wants to look
//!   store/      blobs by digest, uploads in progress, temporary files
//!   snapshots/  of the index, so that a rebuild need not begin at the first event
//!   index/      rebuilt from snapshot and log whenever it is in doubt
//!   keys/       a primary's own secrets
//!   intents/    what a secondary led to its primary and did not see happen yet
//!   delegated.json  what the registry behind a primary demands of callers, and when its word was revoked
//!   session     what a secondary was told by its primary
//!   history/    a day of lag for the dashboard's charts
//!   webhooks.json  how far each receiver of a primary's webhooks was told of each site
//!   rules       who may do what, or what is kept, at the last start: the audit log tells when that changes
//! ```

pub mod blocking;
pub mod bounds;
pub mod clock;
pub mod glob;
pub mod history;
pub mod planted;
pub mod process;
pub mod random;
pub mod shutdown;
pub mod status;
pub mod telemetry;
pub mod watch;

pub mod index;
pub mod log;
pub mod store;

pub mod auth;
pub mod fetch;
pub mod policy;

pub mod registry;

pub mod admin;
pub mod http;
pub mod primary;
pub mod secondary;

pub mod app;
pub mod config;

pub mod cli;
