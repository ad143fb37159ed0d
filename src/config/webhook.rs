//! `[[webhooks]]`: who is told what becomes of images at each site.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use outport_proto::SiteName;
use serde::Deserialize;

use super::{ConfigError, HttpUrl};
use crate::{
    glob::{Glob, InvalidGlob},
    primary::webhooks::Kind,
};

/// A receiver of messages.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Webhook {
    /// Its name, for the status, metrics and what it was told.
    pub name: String,
    /// Messages are posted there.
    pub url: HttpUrl,
    /// Allows plain HTTP to a host that is not loopback: messages are signed, and can be read on their way.
    #[serde(default)]
    pub insecure: bool,
    /// A file with what messages are signed with.
    pub secret_file: PathBuf,
    /// What is told.
    #[serde(default = "all_kinds")]
    pub events: BTreeSet<Kind>,
    /// Globs of the repositories whose images are told of.
    #[serde(default = "all_repositories")]
    pub repositories: Vec<String>,
    /// The sites that are told of; without it, all.
    pub sites: Option<BTreeSet<SiteName>>,
    /// A site is behind once its images are whole later than this, in seconds, or it is cut off for so long.
    #[serde(default = "behind_seconds")]
    pub behind_seconds: u32,
    /// A file with the certificates (PEM) of authorities that the receiver's is believed from; without it, the
    /// system's.
    pub authorities: Option<PathBuf>,
}

impl Webhook {
    /// The repositories, ready to be asked.
    ///
    /// # Errors
    /// Says which is no glob.
    pub fn repositories(&self) -> Result<Vec<Glob>, InvalidGlob> {
        self.repositories.iter().map(|glob| Glob::new(glob)).collect()
    }

    /// Checks `webhooks`; `sites` are all there are, if that is known.
    pub(super) fn check(
        webhooks: &[Self],
        sites: Option<&BTreeSet<&SiteName>>,
        path: &Path,
    ) -> Result<(), ConfigError> {
        for (number, webhook) in webhooks.iter().enumerate() {
            let of_key =
                |key: &str, reason: String| ConfigError::of_key(path, &format!("webhooks.{key}"), reason);
            if webhook.name.is_empty() {
                return Err(of_key("name", "must not be empty".to_owned()));
            }
            if webhooks[..number].iter().any(|other| other.name == webhook.name) {
                return Err(of_key("name", format!("{} stands there twice", webhook.name)));
            }
            if webhook.url.is_readable_on_the_way() && !webhook.insecure {
                let reason = "plain HTTP to another host needs insecure = true".to_owned();
                return Err(of_key("url", reason));
            }
            if webhook.events.is_empty() {
                return Err(of_key("events", "must not be empty".to_owned()));
            }
            if webhook.behind_seconds == 0 {
                return Err(of_key("behind_seconds", "must be at least 1".to_owned()));
            }
            webhook.repositories().map_err(|error| of_key("repositories", error.to_string()))?;
            let is_unknown = |site: &&SiteName| sites.is_some_and(|sites| !sites.contains(site));
            let unknown = webhook.sites.iter().flatten().find(is_unknown);
            if let Some(site) = unknown {
                return Err(of_key("sites", format!("{site} is none of the sites")));
            }
            super::check::check_files(path, "webhooks.secret_file", &[&webhook.secret_file])?;
            let authorities: Vec<_> = webhook.authorities.iter().collect();
            super::check::check_files(path, "webhooks.authorities", &authorities)?;
        }
        Ok(())
    }
}

fn all_kinds() -> BTreeSet<Kind> {
    [Kind::Visible, Kind::Complete, Kind::Behind, Kind::Back].into()
}

fn all_repositories() -> Vec<String> {
    vec!["**".to_owned()]
}

const fn behind_seconds() -> u32 {
    30
}
