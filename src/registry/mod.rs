//! The registry itself: read decisions, pushes, and the journal that both stand on. No HTTP types.

mod caller;
pub mod decide;
mod intents;
mod pull;
mod push;
mod session;

pub use caller::Caller;
pub use intents::Intents;
pub use pull::{
    BlobAnswer, BlobContent, FillReader, Filling, Listing, ManifestAnswer, Next, Page, PullError,
    PullOptions, PullService, Referrer, Referrers, Staleness, Want,
};
pub use push::{
    BlobPut, ContentRange, Deleted, ManifestPushed, Mounted, NewManifest, PushError, PushLimits, PushService,
    UploadAppend, UploadId, UploadRight, UploadStatus,
};
pub use session::{Session, SessionView};
