//! The registry that a primary stands in front of.

use std::{path::PathBuf, time::Duration};

use outport_proto::RepoName;
use serde::Deserialize;

use super::{ByteSize, PublicUrl};
use crate::{
    fetch::backend::{BackendOptions, Credentials, GitLab, Password},
    registry::gateway::{
        notice::Format,
        walk::{Listed, ReconcileOptions},
    },
};

/// How the registry named by `registry.upstream` is asked.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Gateway {
    /// Who the gateway is at the registry. It needs the right to read everything, and with
    /// `auth.mode = "outport"` to write and delete everything.
    pub username: Option<String>,
    /// A file holding its password.
    pub password_file: Option<PathBuf>,
    /// An environment variable holding its password.
    pub password_env: Option<String>,
    /// A file holding a bearer token, instead of user and password; read again for every request.
    pub token_file: Option<PathBuf>,
    /// The token endpoint that the credentials may be sent to, if it is not at the registry's own host;
    /// by default the one of `auth.token`.
    pub token_realm: Option<String>,
    /// Extra authorities for the registry's HTTPS, PEM; the system's are always trusted.
    pub authorities: Option<PathBuf>,
    /// A certificate that the gateway shows to the registry.
    pub client_certificate: Option<PathBuf>,
    /// Its private key.
    pub client_key: Option<PathBuf>,
    /// Hosts that the registry may send a reader of blobs to (presigned URLs of its storage): exact, or
    /// `*.` and a domain. They are never sent credentials.
    pub redirect_hosts: Vec<String>,
    /// Questions to the registry at once.
    pub requests_max: usize,
    /// Blobs on their way from the registry at once.
    pub bodies_max: usize,
    /// How long the registry may take to begin an answer, in seconds.
    pub answer_seconds: u32,
    /// The directory of the registry's own storage, if it is to be read here: blobs come from its files
    /// instead of through it. The one that holds `docker/registry/v2`.
    pub storage: Option<PathBuf>,
    /// Most bytes of blobs kept here: those used longest ago make room for new ones.
    pub cache: ByteSize,
    /// Whether an upload that outlives the token it was begun with goes on with the gateway's own
    /// credentials; what the registry sees of its callers otherwise is their own.
    pub finish_expired_uploads: bool,
    /// Who tells of what happens at the registry.
    pub notifications: Vec<Notifications>,
    /// How everything the registry has is walked.
    pub reconcile: Reconcile,
}

/// A source of notifications: `POST /v1/notifications` of the admin listener.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Notifications {
    /// Its name, in metrics.
    pub name: String,
    /// How it spells them: `docker`, `harbor` or `zot`.
    pub format: Format,
    /// A file holding the secret that it proves itself with.
    pub secret_file: PathBuf,
}

/// How everything the registry has is walked.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Reconcile {
    /// Seconds between two walks.
    pub interval_seconds: u32,
    /// Looks at the registry a second.
    pub requests_per_second: u32,
    /// Repositories at once.
    pub concurrency: usize,
    /// Tags and manifests that a walk removes at most without being told to.
    pub removals_max: u64,
    /// Where the names of repositories come from.
    pub source: Source,
    /// With the source `list`: their names.
    pub repositories: Vec<RepoName>,
    /// With the source `file`: a file with a name a line.
    pub file: Option<PathBuf>,
    /// With the source `gitlab`: its URL.
    pub gitlab_url: Option<PublicUrl>,
    /// And a file holding a token for its API.
    pub gitlab_token_file: Option<PathBuf>,
}

/// Where the names of repositories come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// The registry's catalog.
    #[default]
    Catalog,
    /// The configuration.
    List,
    /// A file.
    File,
    /// GitLab's API.
    GitLab,
}

impl Default for Reconcile {
    fn default() -> Self {
        Self {
            interval_seconds: 3600,
            requests_per_second: 50,
            concurrency: 4,
            removals_max: 1000,
            source: Source::Catalog,
            repositories: Vec::new(),
            file: None,
            gitlab_url: None,
            gitlab_token_file: None,
        }
    }
}

impl Reconcile {
    /// How walks go; `notified` when notifications are expected.
    ///
    /// # Errors
    /// The key that does not fit, and why.
    pub fn options(&self, notified: bool) -> Result<ReconcileOptions, (&'static str, String)> {
        for (key, number) in [
            ("gateway.reconcile.interval_seconds", u64::from(self.interval_seconds)),
            ("gateway.reconcile.requests_per_second", self.requests_per_second.into()),
            ("gateway.reconcile.concurrency", self.concurrency as u64),
        ] {
            if number == 0 {
                return Err((key, "must be at least 1".to_owned()));
            }
        }
        Ok(ReconcileOptions {
            interval: Duration::from_secs(self.interval_seconds.into()),
            requests_per_second: self.requests_per_second,
            concurrency: self.concurrency,
            listed: self.listed()?,
            notified,
            removals_max: self.removals_max,
        })
    }

    fn listed(&self) -> Result<Listed, (&'static str, String)> {
        let missing = |key, source: &str| (key, format!("is needed with the source {source}"));
        let unused = |key, is_set: bool| match is_set {
            true => Err((key, "is not used with this source".to_owned())),
            false => Ok(()),
        };
        let source = self.source;
        unused("gateway.reconcile.repositories", source != Source::List && !self.repositories.is_empty())?;
        unused("gateway.reconcile.file", source != Source::File && self.file.is_some())?;
        unused("gateway.reconcile.gitlab_url", source != Source::GitLab && self.gitlab_url.is_some())?;
        Ok(match source {
            Source::Catalog => Listed::Catalog,
            Source::List if self.repositories.is_empty() => {
                return Err(missing("gateway.reconcile.repositories", "list"));
            }
            Source::List => Listed::Names(self.repositories.clone()),
            Source::File => {
                Listed::File(self.file.clone().ok_or_else(|| missing("gateway.reconcile.file", "file"))?)
            }
            Source::GitLab => {
                let url = self
                    .gitlab_url
                    .as_ref()
                    .ok_or_else(|| missing("gateway.reconcile.gitlab_url", "gitlab"))?;
                let token = self.gitlab_token_file.clone();
                let token = token.ok_or_else(|| missing("gateway.reconcile.gitlab_token_file", "gitlab"))?;
                let url = url
                    .as_str()
                    .parse()
                    .map_err(|_| ("gateway.reconcile.gitlab_url", "not a URL".to_owned()))?;
                Listed::GitLab(GitLab { url, token: Password::File(token) })
            }
        })
    }
}

impl Default for Gateway {
    fn default() -> Self {
        Self {
            username: None,
            password_file: None,
            password_env: None,
            token_file: None,
            token_realm: None,
            authorities: None,
            client_certificate: None,
            client_key: None,
            redirect_hosts: Vec::new(),
            requests_max: 64,
            bodies_max: 64,
            answer_seconds: 10,
            storage: None,
            cache: ByteSize(10 << 30),
            finish_expired_uploads: false,
            notifications: Vec::new(),
            reconcile: Reconcile::default(),
        }
    }
}

impl Gateway {
    /// How the registry at `url` is asked.
    ///
    /// # Errors
    /// The key that does not fit, and why.
    pub fn backend(&self, url: &PublicUrl) -> Result<BackendOptions, (&'static str, String)> {
        let url = url.as_str().parse().map_err(|_| ("registry.upstream", "not a URL".to_owned()))?;
        Ok(BackendOptions {
            credentials: self.credentials()?,
            token_realm: self.token_realm.clone(),
            redirect_hosts: self.redirect_hosts.clone(),
            requests_max: self.requests_max,
            bodies_max: self.bodies_max,
            answer_timeout: Duration::from_secs(self.answer_seconds.into()),
            storage: self.storage.clone(),
            ..BackendOptions::new(url)
        })
    }

    fn credentials(&self) -> Result<Credentials, (&'static str, String)> {
        let password = match (&self.password_file, &self.password_env) {
            (Some(_), Some(_)) => {
                return Err(("gateway.password_env", "there is a password_file already".to_owned()));
            }
            (Some(file), None) => Some(Password::File(file.clone())),
            (None, Some(variable)) => Some(Password::Environment(variable.clone())),
            (None, None) => None,
        };
        match (&self.username, password, &self.token_file) {
            (None, None, None) => Ok(Credentials::None),
            (Some(name), Some(password), None) => Ok(Credentials::User { name: name.clone(), password }),
            (None, None, Some(file)) => Ok(Credentials::Token(Password::File(file.clone()))),
            (_, _, Some(_)) => {
                Err(("gateway.token_file", "it stands instead of user and password".to_owned()))
            }
            (Some(_), None, None) => {
                Err(("gateway.username", "needs gateway.password_file or gateway.password_env".to_owned()))
            }
            (None, Some(_), None) => Err(("gateway.username", "is missing beside a password".to_owned())),
        }
    }
}
