//! How commands ask a node's admin listener.

use std::{path::PathBuf, time::Duration};

use anyhow::Context as _;
use clap::Args;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, task::JoinHandle};

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
        let token = self.token()?;
        tokio::time::timeout(timeout, send(&self.admin, method, target, token.as_deref()))
            .await
            .with_context(|| format!("ask {}: no answer within {timeout:?}", self.admin))?
            .with_context(|| format!("ask {}", self.admin))
    }

    /// The text of the answer to a request without a body. One that is no success is an error, with its reason.
    pub(super) async fn answered(
        &self,
        method: Method,
        target: &str,
        timeout: Duration,
    ) -> anyhow::Result<String> {
        let (status, text) = self.ask(method, target, timeout).await?;
        if status.is_success() {
            return Ok(text);
        }
        let body: Option<serde_json::Value> = serde_json::from_str(&text).ok();
        let reason = body.as_ref().and_then(|body| body["error"].as_str()).unwrap_or(text.trim());
        anyhow::bail!("ask {}: {status}: {reason}", self.admin)
    }

    /// The same of a page.
    pub(super) async fn page(&self, target: &str, timeout: Duration) -> anyhow::Result<String> {
        self.answered(Method::GET, target, timeout).await
    }

    /// The answer to a request without a body as it comes, line by line.
    pub(super) async fn lines(&self, method: Method, target: &str) -> anyhow::Result<Lines> {
        let token = self.token()?;
        let failed = || format!("ask {}", self.admin);
        let (response, connection) =
            begin(&self.admin, method, target, token.as_deref()).await.with_context(failed)?;
        let status = response.status();
        let mut lines = Lines { body: response.into_body(), read: Vec::new(), connection };
        if status != StatusCode::OK {
            let said = lines.next().await?.unwrap_or_default();
            anyhow::bail!("ask {}: {status}: {said}", self.admin);
        }
        Ok(lines)
    }

    fn token(&self) -> anyhow::Result<Option<String>> {
        let Some(file) = &self.token_file else { return Ok(None) };
        let token = std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
        Ok(Some(token.trim().to_owned()))
    }
}

/// The lines of an answer.
pub(super) struct Lines {
    body: Incoming,
    read: Vec<u8>,
    connection: JoinHandle<hyper::Result<()>>,
}

/// Longest line in bytes.
const LINE_BYTES_MAX: usize = 1024 * 1024;

impl Lines {
    /// The next line; `None` at the end.
    pub(super) async fn next(&mut self) -> anyhow::Result<Option<String>> {
        loop {
            if let Some(end) = self.read.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.read.drain(..=end).collect();
                return Ok(Some(String::from_utf8(line).context("read answer")?.trim_end().to_owned()));
            }
            if self.read.len() > LINE_BYTES_MAX {
                anyhow::bail!("read answer: a line of more than {LINE_BYTES_MAX} bytes");
            }
            match self.body.frame().await {
                Some(frame) => {
                    if let Some(data) = frame.context("read answer")?.data_ref() {
                        self.read.extend_from_slice(data);
                    }
                }
                None if self.read.is_empty() => return Ok(None),
                None => self.read.push(b'\n'),
            }
        }
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

async fn send(
    admin: &str,
    method: Method,
    target: &str,
    token: Option<&str>,
) -> anyhow::Result<(StatusCode, String)> {
    let (response, connection) = begin(admin, method, target, token).await?;
    let status = response.status();
    let body = Limited::new(response.into_body(), PAGE_BYTES_MAX).collect().await;
    connection.abort();
    let body = body.map_err(|error| anyhow::anyhow!(error)).context("read answer")?.to_bytes();
    Ok((status, String::from_utf8(body.to_vec()).context("read answer")?))
}

/// The head of an answer, and the task of the connection that its body comes over.
async fn begin(
    admin: &str,
    method: Method,
    target: &str,
    token: Option<&str>,
) -> anyhow::Result<(Response<Incoming>, JoinHandle<hyper::Result<()>>)> {
    let stream = TcpStream::connect(admin).await.context("connect")?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.context("open connection")?;
    let connection = tokio::spawn(connection);
    let mut request = Request::builder().method(method).uri(target).header(header::HOST, admin);
    if let Some(token) = token {
        request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
    }
    let response = sender.send_request(request.body(Empty::<Bytes>::new())?).await.context("send request")?;
    Ok((response, connection))
}
