//! The registry that a primary stands in front of.

use std::{path::PathBuf, time::Duration};

use serde::Deserialize;

use super::{ByteSize, PublicUrl};
use crate::fetch::backend::{BackendOptions, Credentials, Password};

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
}

impl Default for Gateway {
    fn default() -> Self {
        Self {
            username: None,
            password_file: None,
            password_env: None,
            token_file: None,
            authorities: None,
            client_certificate: None,
            client_key: None,
            redirect_hosts: Vec::new(),
            requests_max: 64,
            bodies_max: 64,
            answer_seconds: 10,
            storage: None,
            cache: ByteSize(10 << 30),
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
