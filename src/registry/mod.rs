//! The registry itself: read decisions, pushes, and the journal that both stand on. No HTTP types.

pub mod canary;
pub mod collect;
pub mod decide;
mod drain;
pub mod gateway;
mod intents;
pub mod journal;
mod lines;
mod metrics;
pub mod prefetch;
mod pull;
mod push;
mod remembered;
mod session;
#[cfg(test)]
pub(crate) mod testing;
pub mod verification;
pub mod whereabouts;

pub use collect::Collector;
pub use drain::{Drain, UnderWay};
pub use intents::{INTENT_LIFE, Intent, Intents, Past};
pub use journal::{Journal, JournalError};
pub use metrics::PullMetrics;
pub use pull::{
    BlobAnswer, BlobContent, Edge, Exclusion, FillReader, Filling, Listing, ManifestAnswer, Next, Page,
    PullError, PullOptions, PullRules, PullService, Referrer, Referrers, Site, Staleness, Want,
};
pub use push::{
    BlobPut, ContentRange, Deleted, ManifestPushed, Mounted, NewManifest, PushError, PushLimits, PushService,
    UploadAppend, UploadRight, UploadStatus,
};
pub use session::{NEVER, Session, SessionView};
pub use verification::{Verification, Verify};
