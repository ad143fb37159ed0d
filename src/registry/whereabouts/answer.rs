//! The shapes of `/v1/wait` and `/v1/why`. Offsets are `epoch.seq`, times RFC 3339 in UTC.

use outport_proto::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Stage, why::Cause};

/// Where a wait came to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Waited {
    /// What was asked for.
    pub reference: String,
    /// The digest that was waited for; `null` when the primary never showed one.
    pub digest: Option<String>,
    /// The event that put it there, or a later one; `null` when it was never seen.
    pub offset: Option<String>,
    /// What the sites had to do.
    pub stage: Stage,
    /// Whether all did in time.
    pub reached: bool,
    /// How long it took.
    pub waited_seconds: f64,
    /// Each site, by name.
    pub sites: Vec<WaitedSite>,
}

/// A site at the end of a wait.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WaitedSite {
    /// Its name.
    pub site: String,
    /// Whether it did in time.
    pub reached: bool,
    /// Newest event its index shows.
    pub applied: String,
    /// Up to here it holds every blob that it keeps.
    pub complete: String,
}

/// Why a site shows an image, or does not.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Why {
    /// What was asked for.
    pub reference: String,
    /// The site.
    pub site: String,
    /// Which role answered: a `primary` knows of a site what it acknowledged, a `secondary` knows itself.
    pub asked: String,
    /// The cause: `code` and what belongs to it.
    #[serde(flatten)]
    pub cause: Cause,
    /// The cause in a sentence.
    pub sentence: String,
    /// What the primary shows.
    pub primary: Shown,
    /// What the site shows.
    pub shown: Shown,
    /// Newest event the site's index shows.
    pub applied: String,
    /// Up to here the site holds every blob that it keeps.
    pub complete: String,
    /// What the asked node cannot know of it.
    pub not_known_here: Vec<String>,
}

/// What a node shows of a reference.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shown {
    /// `shown`, `absent`, `deleted`, `unreachable` or `not-known`.
    pub state: String,
    /// What it names.
    pub digest: Option<String>,
    /// The event that made it so, or the place in the log at which it is so.
    pub offset: Option<String>,
}

/// A reading of a clock as text.
pub(crate) fn rfc3339(time: Timestamp) -> Option<String> {
    let nanos = i128::from(time.as_micros()) * 1000;
    let time = time::OffsetDateTime::from_unix_timestamp_nanos(nanos).ok()?;
    time.format(&time::format_description::well_known::Rfc3339).ok()
}
