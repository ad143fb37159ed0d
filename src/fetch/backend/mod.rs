//! The registry behind a primary that is a gateway, asked over HTTP.
//!
//! What it says is a stranger's word: every answer is bounded, bytes are not believed before they
//! hash to what they should, and nothing but the registry's own "there is no such thing" is a "no".
//! A 404 of whatever stands in front of it, a 401 or a 5xx is an error and never an absence.
//!
//! - `client`: connections, timeouts, the request itself; `credentials`: who the gateway is there;
//! - `answer`: manifests and blobs, `body`: their bytes; `pages`: tags and repositories; `write`: what changes something;
//! - `verdict`: what it lets callers do; `storage`: its own files; `gitlab`: its names where its own list is
//!   closed.

mod answer;
mod body;
mod challenge;
mod client;
mod credentials;
mod gitlab;
mod pages;
mod storage;
mod verdict;
mod write;

use std::{
    fmt,
    path::PathBuf,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use http::{Uri, uri::PathAndQuery};
use outport_proto::Digest;
use rustls::ClientConfig;
use tokio::sync::Semaphore;

pub use answer::{Manifest, ManifestHead};
pub use challenge::Challenge;
pub use client::Asker;
pub use credentials::{Credentials, Needs, Password};
pub use gitlab::GitLab;
pub use pages::NamePage;
pub use verdict::Judgement;
pub use write::{Answered, Refusal};

use super::UpstreamError;
use credentials::Tokens;

/// How the registry is asked.
#[derive(Clone, Debug)]
pub struct BackendOptions {
    /// Its URL: scheme and host, without a path.
    pub url: Uri,
    /// Who the gateway is there.
    pub credentials: Credentials,
    /// The token endpoint that the gateway's credentials may be sent to, if it is not the registry's own.
    pub token_realm: Option<String>,
    /// Hosts that it may send a reader of blobs to: exact, or `*.` and a domain. Itself is one.
    pub redirect_hosts: Vec<String>,
    /// Questions on their way at once, and as many writes.
    pub requests_max: usize,
    /// Blobs on their way at once.
    pub bodies_max: usize,
    /// The directory of its storage, if blobs are to be read there.
    pub storage: Option<PathBuf>,
    /// It must begin to answer within this.
    pub answer_timeout: Duration,
    /// The same for what changes something: it may have to look at every layer of an image.
    pub write_timeout: Duration,
    /// And go on with an answer within this.
    pub stall_timeout: Duration,
}

impl BackendOptions {
    /// The registry at `url`, without credentials.
    pub fn new(url: Uri) -> Self {
        Self {
            url,
            credentials: Credentials::None,
            token_realm: None,
            redirect_hosts: Vec::new(),
            requests_max: 64,
            bodies_max: 64,
            storage: None,
            answer_timeout: Duration::from_secs(10),
            write_timeout: Duration::from_secs(120),
            stall_timeout: Duration::from_secs(20),
        }
    }
}

/// Asks the registry. Cloning gives another handle to the same connections.
#[derive(Clone)]
pub struct Backend {
    shared: Arc<Shared>,
}

struct Shared {
    options: BackendOptions,
    client: client::Connections,
    tokens: Tokens,
    /// What the registry wants to be told was learnt once.
    introduced: AtomicBool,
    requests: Semaphore,
    writes: Semaphore,
    bodies: Arc<Semaphore>,
}

/// Why the registry gave no answer. Never a "no".
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BackendError {
    /// No connection, or it broke.
    #[error("the registry cannot be reached: {0}")]
    Unreachable(String),
    /// It did not answer, or not go on with its answer.
    #[error("the registry did not answer within {0:?}")]
    Timeout(Duration),
    /// It does not let the gateway, or the caller, do that: 401 or 403.
    #[error("the registry refused with status {status}")]
    Refused {
        /// 401 or 403.
        status: u16,
    },
    /// It wants to be asked less often: 429.
    #[error("the registry wants to be asked less often")]
    TooMany {
        /// When to ask again, as it says.
        retry_after: Option<Duration>,
    },
    /// It failed, or something in front of it answered.
    #[error("the registry answered with status {status}")]
    Status {
        /// The status.
        status: u16,
    },
    /// It said what makes no sense.
    #[error("the registry broke the protocol: {0}")]
    Protocol(String),
    /// The bytes are not those of the digest it gave for them.
    #[error("the registry gave {actual} for {expected}")]
    Content {
        /// What they should be.
        expected: Digest,
        /// What they are.
        actual: Box<Digest>,
    },
    /// It sends the gateway for a token to where that must not send its credentials.
    #[error("the registry wants a token from {0}: say gateway.token_realm = \"{0}\" if that is right")]
    Realm(String),
    /// Its credentials cannot be read.
    #[error("the registry's credentials: {0}")]
    Credentials(String),
}

impl From<BackendError> for UpstreamError {
    fn from(error: BackendError) -> Self {
        match error {
            BackendError::Unreachable(_) => Self::Unreachable(error.to_string()),
            BackendError::Timeout(limit) => Self::Timeout(limit),
            BackendError::Refused { .. }
            | BackendError::TooMany { .. }
            | BackendError::Status { .. }
            | BackendError::Realm(_)
            | BackendError::Credentials(_) => Self::Unavailable(error.to_string()),
            BackendError::Protocol(_) | BackendError::Content { .. } => Self::Protocol(error.to_string()),
        }
    }
}

impl Backend {
    /// A registry that is asked as `options` say, believing certificates and showing one as `tls` does.
    /// Whoever else it sends the gateway to is asked by `tls_as_nobody`.
    pub fn new(options: BackendOptions, tls: &ClientConfig, tls_as_nobody: &ClientConfig) -> Self {
        let client = client::Connections::new(options.url.clone(), tls, tls_as_nobody);
        let [requests, writes, bodies] =
            [options.requests_max, options.requests_max, options.bodies_max].map(Semaphore::new);
        let tokens = Tokens::new(options.credentials.clone());
        let shared = Shared {
            options,
            client,
            tokens,
            introduced: AtomicBool::new(false),
            requests,
            writes,
            bodies: Arc::new(bodies),
        };
        Self { shared: Arc::new(shared) }
    }

    /// The registry's URL of `path`, which begins with a slash and may have a query.
    ///
    /// # Errors
    /// When it cannot stand in a URL.
    pub fn uri(&self, path: &str) -> Result<Uri, BackendError> {
        let cannot = |error: http::Error| BackendError::Protocol(format!("no URL: {error}"));
        let path: PathAndQuery = path.parse().map_err(|error: http::uri::InvalidUri| cannot(error.into()))?;
        let url = &self.shared.options.url;
        let mut parts = url.clone().into_parts();
        parts.path_and_query = Some(path);
        Uri::from_parts(parts).map_err(|error| cannot(error.into()))
    }

    /// The path and query of `location`, an answer's `Location`, if it leads to this registry: it may be
    /// relative. Registries behind a proxy name themselves as their clients know them, so that any host
    /// is taken for this one where the path is of its API.
    pub fn own_path(location: &str) -> Option<String> {
        let path = if location.starts_with('/') {
            location.to_owned()
        } else {
            let uri: Uri = location.parse().ok()?;
            uri.scheme().and(uri.path_and_query()).map(|path| path.as_str().to_owned())?
        };
        path.starts_with("/v2/").then_some(path)
    }
}

impl fmt::Debug for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Backend").field("url", &self.shared.options.url).finish_non_exhaustive()
    }
}
