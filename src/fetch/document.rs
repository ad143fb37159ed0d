//! Small documents from elsewhere by HTTP, such as key sets.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use tokio_rustls::rustls::ClientConfig;

use super::client::{HttpClient, http_client};
use crate::telemetry::causes;

/// How long a document may take in all.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Gets documents. Cloning gives another handle.
#[derive(Clone, Debug)]
pub struct Documents(HttpClient<Empty<Bytes>>);

impl Documents {
    /// Believes certificates as `tls` says; for `http` URLs it has no say.
    pub fn new(tls: &Arc<ClientConfig>) -> Self {
        Self(http_client(tls, TIMEOUT, 0))
    }

    /// The text at `url`, of `bytes_max` at most. Redirects are not followed: whoever configured the URL
    /// meant that host.
    ///
    /// # Errors
    /// When it cannot be had; for people.
    pub async fn get(&self, url: &str, bytes_max: usize) -> Result<String, String> {
        let uri: Uri = url.parse().map_err(|_| "not a URL".to_owned())?;
        let request = Request::get(uri).header(header::ACCEPT, "application/json").body(Empty::new());
        let request = request.map_err(|error| error.to_string())?;
        let got = async {
            let response = self.0.request(request).await.map_err(|error| causes(&error))?;
            if response.status() != StatusCode::OK {
                return Err(format!("the answer is {}", response.status()));
            }
            let body = Limited::new(response.into_body(), bytes_max).collect().await;
            let bytes = body.map_err(|error| causes(&*error))?.to_bytes();
            String::from_utf8(bytes.into()).map_err(|_| "the answer is no text".to_owned())
        };
        tokio::time::timeout(TIMEOUT, got)
            .await
            .unwrap_or_else(|_| Err(format!("no answer within {TIMEOUT:?}")))
    }
}
