//! Where an image is: which sites show it, which hold it whole, and why one does not.
//!
//! - [`Whereabouts`] is what a node answers; a primary knows of every site what it acknowledged,
//!   a site knows itself.
//! - `standing`: where a reference stands in a node's own log and index.
//! - `missing`: which of an image's blobs a store lacks.
//! - [`why`]: one pure function from facts to a cause.

pub mod answer;
mod missing;
mod standing;
pub mod why;

use std::{fmt, str::FromStr, time::Duration};

use outport_proto::{Digest, Reference, RepoName, SiteName};

use self::{
    answer::{Waited, Why},
    why::Asked,
};
pub use self::{
    missing::{Missing, missing, missing_blobs},
    standing::{Deletion, Standing, standing},
};
use crate::{blocking, fetch::BoxFuture, index::IndexError, store::StoreError};

/// An image by name: `repository:tag` or `repository@digest`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageRef {
    /// The repository.
    pub repo: RepoName,
    /// The tag or digest.
    pub reference: Reference,
}

impl FromStr for ImageRef {
    type Err = InvalidImageRef;

    fn from_str(text: &str) -> Result<Self, InvalidImageRef> {
        let (repo, reference) = match text.split_once('@') {
            Some((repo, digest)) => (repo, digest.parse().ok().map(Reference::Digest)),
            None => {
                let (repo, tag) = text.rsplit_once(':').ok_or(InvalidImageRef)?;
                (repo, tag.parse().ok().map(Reference::Tag))
            }
        };
        let repo = repo.parse().map_err(|_| InvalidImageRef)?;
        Ok(Self { repo, reference: reference.ok_or(InvalidImageRef)? })
    }
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.reference {
            Reference::Tag(tag) => write!(f, "{}:{tag}", self.repo),
            Reference::Digest(digest) => write!(f, "{}@{digest}", self.repo),
        }
    }
}

/// A text that names no image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an image is named repository:tag or repository@digest, without a host")]
pub struct InvalidImageRef;

/// What a wait waits for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// The site's index shows the image; blobs that are not there yet are filled when pulled.
    #[default]
    Visible,
    /// The site holds every blob that its policy keeps, up to the event that put the image. That
    /// is conservative: it includes the blobs of everything pushed before.
    Complete,
}

/// Whose turn is waited for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Sites {
    /// Those the asked node answers for: at a primary every site, at a site itself.
    #[default]
    Answered,
    /// Every site; only a primary knows them.
    All,
    /// This one.
    Named(SiteName),
}

/// A question to wait with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WaitFor {
    /// The image.
    pub image: ImageRef,
    /// What a tag must name; `None` for what the primary shows when the wait begins, or first
    /// shows afterwards.
    pub digest: Option<Digest>,
    /// Who must show or hold it.
    pub sites: Sites,
    /// What they must.
    pub stage: Stage,
    /// The longest wait.
    pub timeout: Duration,
}

/// A question for a cause.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WhyNot {
    /// The image.
    pub image: ImageRef,
    /// The site; at a site itself it may be left out.
    pub site: Option<SiteName>,
    /// Who cannot pull it; without a caller everybody is taken to be allowed. Only a primary knows
    /// who may do what.
    pub caller: Option<Caller>,
}

/// Who pulls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    /// Somebody without login.
    Anonymous,
    /// A user of the token service.
    User(String),
}

/// Answers where images are.
pub trait Whereabouts: Send + Sync + 'static {
    /// Resolves when the sites show or hold the image, or the time is over. Dropping it ends it.
    fn wait(&self, question: WaitFor) -> BoxFuture<'_, Result<Waited, AskError>>;

    /// Why a site shows the image, or does not.
    fn why(&self, question: WhyNot) -> BoxFuture<'_, Result<Why, AskError>>;
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// No site has this name.
    #[error("no site is called {0}")]
    UnknownSite(SiteName),
    /// No repository has this name.
    #[error("the registry has no repository {0}")]
    UnknownRepository(RepoName),
    /// A site knows itself alone.
    #[error("this is site {0}; ask the primary about other sites")]
    OtherSite(SiteName),
    /// A primary has to be told which site is meant.
    #[error("say which site is meant")]
    WhichSite,
    /// A site does not know who may do what.
    #[error("who may pull is the primary's to say; ask it")]
    WhoseRights,
    /// The index failed.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// The blob store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A bug in Outport.
    #[error("looking it up crashed: {0}")]
    Crashed(String),
}

/// Runs a look into index, log and store on a thread that may block.
///
/// # Errors
/// Those of `look`, and [`AskError::Crashed`].
pub async fn looked_up<T: Send + 'static>(
    look: impl FnOnce() -> Result<T, AskError> + Send + 'static,
) -> Result<T, AskError> {
    let looked = blocking::spawn(look).await;
    looked.unwrap_or_else(|error| Err(AskError::Crashed(error.to_string())))
}

impl Asked {
    /// The role as the status page spells it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Primary => "primary",
            Self::Site => "secondary",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_by_name() {
        let digest = Digest::sha256(b"x");
        for text in ["app:1", "team/app:v1.2-rc", &format!("team/app@{digest}")] {
            assert_eq!(text.parse::<ImageRef>().unwrap().to_string(), text);
        }
        for bad in ["", "app", "app:", ":1", "app@sha256:1", "host:5000/app", "App:1", "app:1@", "a@b@c"] {
            assert_eq!(bad.parse::<ImageRef>(), Err(InvalidImageRef), "{bad:?}");
        }
    }
}
