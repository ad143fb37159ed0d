//! How commands ask a node's admin listener.

use std::{path::PathBuf, time::Duration};

use anyhow::Context as _;
use clap::Args;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// Largest page in bytes: the status of thousands of sites fits.
const PAGE_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Whom to ask.
#[derive(Debug, Args)]
pub(super) struct AdminAddress {
    /// Admin address of any node
    #[arg(long, env = "OUTPORT_ADMIN", default_value = "127.0.0.1:9000")]
    admin: String,
    /// File with the admin token, where one is configured
    #[arg(long, env = "OUTPORT_ADMIN_TOKEN_FILE")]
    token_file: Option<PathBuf>,
}

impl AdminAddress {
    pub(super) fn address(&self) -> &str {
        &self.admin
    }

    /// Status and text of a page that has to come within `timeout`.
    pub(super) async fn get(&self, target: &str, timeout: Duration) -> anyhow::Result<(StatusCode, String)> {
        self.ask(Method::GET, target, timeout).await
    }

    /// Status and text of the answer to a request without a body.
    pub(super) async fn ask(
        &self,
        method: Method,
        target: &str,
        timeout: Duration,
    ) -> anyhow::Result<(StatusCode, String)> {
        let token = match &self.token_file {
            Some(file) => {
                Some(std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?)
            }
            None => None,
        };
        tokio::time::timeout(timeout, send(&self.admin, method, target, token.as_deref().map(str::trim)))
            .await
            .with_context(|| format!("ask {}: no answer within {timeout:?}", self.admin))?
            .with_context(|| format!("ask {}", self.admin))
    }
}

async fn send(
    admin: &str,
    method: Method,
    target: &str,
    token: Option<&str>,
) -> anyhow::Result<(StatusCode, String)> {
    let stream = TcpStream::connect(admin).await.context("connect")?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.context("open connection")?;
    let connection = tokio::spawn(connection);
    let mut request = Request::builder().method(method).uri(target).header(header::HOST, admin);
    if let Some(token) = token {
        request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
    }
    let response = sender.send_request(request.body(Empty::<Bytes>::new())?).await.context("send request")?;
    let status = response.status();
    let body = Limited::new(response.into_body(), PAGE_BYTES_MAX).collect().await;
    connection.abort();
    let body = body.map_err(|error| anyhow::anyhow!(error)).context("read answer")?.to_bytes();
    Ok((status, String::from_utf8(body.to_vec()).context("read answer")?))
}
