//! What two Outport peers must agree on, and nothing else: the vocabulary of the OCI
//! specifications, the events of the replication log, the frames on the wire and the state
//! machines of the two ends of a replication session.
//!
//! Nothing here does I/O, reads a clock, draws a random number or needs a runtime: time and
//! bytes come in as arguments and leave as return values, so every transition can be replayed
//! in a test or a simulation. `proto/README.md` specifies the wire.
//!
//! - [`digest`], [`name`], [`oci`]: values that cannot hold anything invalid once parsed.
//! - [`offset`], [`event`], [`snapshot`]: places and records of the replication log, and the state they led to.
//! - [`frame`], [`session`]: what the two ends say to each other, and the logic of each end.
//! - [`codec`]: frames and records as bytes. [`route`]: the paths of the OCI API. [`statehash`]:
//!   do two sites hold the same state? [`trace`]: which trace does this belong to?

pub mod codec;
pub mod digest;
pub mod event;
pub mod frame;
pub mod name;
pub mod oci;
pub mod offset;
pub mod route;
pub mod session;
pub mod snapshot;
pub mod statehash;
pub mod trace;

pub use digest::{Algorithm, Digest, Hasher};
pub use event::{Change, Event, IntentId, ManifestPut};
pub use name::{CANARY_REPO, Reference, RepoName, SiteName, Tag};
pub use offset::{Offset, Timestamp};
pub use trace::Traceparent;
