//! `outport status`.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context as _, bail};
use clap::Args;
use comfy_table::{Table, presets};
use http::{Request, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::say;
use crate::status::{SiteStatus, Status as NodeStatus};

/// Largest status page in bytes: thousands of sites fit.
const PAGE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// An admin listener that does not answer within this is treated as down.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
const WATCH_INTERVAL: Duration = Duration::from_secs(1);
/// Clears the screen and puts the cursor home.
const CLEAR: &str = "\x1b[2J\x1b[H";

/// Show roles, offsets and lag.
#[derive(Debug, Args)]
pub(super) struct Status {
    /// Admin address of any node
    #[arg(long, env = "OUTPORT_ADMIN", default_value = "127.0.0.1:9000")]
    admin: String,
    /// File with the admin token, where one is configured
    #[arg(long, env = "OUTPORT_ADMIN_TOKEN_FILE")]
    token_file: Option<PathBuf>,
    /// Print the page as JSON
    #[arg(long)]
    json: bool,
    /// Go on printing every second
    #[arg(long)]
    watch: bool,
}

impl Status {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        loop {
            let page = self.fetch().await?;
            if self.watch && !self.json {
                say(format_args!("{CLEAR}{}", render(&page)?));
            } else if self.json {
                say(&page);
            } else {
                say(render(&page)?);
            }
            if !self.watch {
                return Ok(());
            }
            tokio::select! {
                () = tokio::time::sleep(WATCH_INTERVAL) => {}
                _ = tokio::signal::ctrl_c() => return Ok(()),
            }
        }
    }

    async fn fetch(&self) -> anyhow::Result<String> {
        let token = match &self.token_file {
            Some(file) => {
                Some(std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?)
            }
            None => None,
        };
        tokio::time::timeout(ANSWER_TIMEOUT, get_status(&self.admin, token.as_deref().map(str::trim)))
            .await
            .with_context(|| format!("ask {}: no answer within {ANSWER_TIMEOUT:?}", self.admin))?
            .with_context(|| format!("ask {}", self.admin))
    }
}

async fn get_status(admin: &str, token: Option<&str>) -> anyhow::Result<String> {
    let stream = TcpStream::connect(admin).await.context("connect")?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.context("open connection")?;
    let connection = tokio::spawn(connection);
    let mut request = Request::get("/v1/status").header(header::HOST, admin);
    if let Some(token) = token {
        request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
    }
    let response = sender.send_request(request.body(Empty::<Bytes>::new())?).await.context("send request")?;
    let status = response.status();
    let body = Limited::new(response.into_body(), PAGE_BYTES_MAX).collect().await;
    connection.abort();
    let body = body.map_err(|error| anyhow::anyhow!(error)).context("read answer")?.to_bytes();
    let text = String::from_utf8(body.to_vec()).context("read answer")?;
    if !status.is_success() {
        bail!("{status}: {}", text.trim());
    }
    Ok(text)
}

fn render(page: &str) -> anyhow::Result<String> {
    let status: NodeStatus = serde_json::from_str(page).context("read answer")?;
    let (title, sites) = match &status {
        NodeStatus::Primary(primary) => (
            format!(
                "primary   cluster {}   epoch {}   head {}   floor {}   store {} in {} blobs",
                primary.cluster,
                primary.epoch,
                primary.head_seq,
                primary.floor_seq,
                bytes(primary.store.bytes),
                primary.store.blobs,
            ),
            primary.sites.as_slice(),
        ),
        NodeStatus::Secondary(site) => (
            format!("secondary   cluster {}   epoch {}   head {}", site.cluster, site.epoch, site.head_seq),
            std::slice::from_ref(site.as_ref()),
        ),
    };
    if sites.is_empty() {
        return Ok(format!("{title}\nno site has ever connected"));
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header([
        "SITE",
        "STATE",
        "LAG",
        "COMPLETE",
        "EVENTS",
        "BYTES",
        "MISSING",
        "APPLIED",
        "HEARTBEAT",
        "TRANSPORT",
        "RTT",
        "STORE",
    ]);
    for site in sites {
        table.add_row(row(site)?);
    }
    Ok(format!("{title}\n{table}"))
}

fn row(site: &SiteStatus) -> anyhow::Result<[String; 12]> {
    let state = serde_json::to_value(site.state)?.as_str().unwrap_or_default().to_owned();
    Ok([
        site.site.clone(),
        state,
        seconds(site.lag_seconds.applied),
        seconds(site.lag_seconds.complete),
        site.lag_events.to_string(),
        bytes(site.lag_bytes),
        site.missing_blobs.to_string(),
        site.applied_seq.to_string(),
        seconds(site.heartbeat_age_seconds),
        if site.transport.is_empty() { "-".to_owned() } else { site.transport.clone() },
        seconds(site.rtt_seconds),
        bytes(site.store.bytes),
    ])
}

fn seconds(value: Option<f64>) -> String {
    match value {
        None => "unknown".to_owned(),
        Some(value) if value < 1.0 => format!("{:.1} ms", value * 1000.0),
        Some(value) => format!("{value:.1} s"),
    }
}

fn bytes(value: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut scaled = value as f64;
    let mut unit = 0;
    while scaled >= 1024.0 && unit + 1 < UNITS.len() {
        scaled /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{value} B") } else { format!("{scaled:.1} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_of_each_role() {
        let secondary = serde_json::to_string(&NodeStatus::Secondary(Box::new(SiteStatus {
            site: "mumbai".into(),
            lag_bytes: 2048,
            ..SiteStatus::default()
        })))
        .unwrap();
        let text = render(&secondary).unwrap();
        assert!(text.contains("mumbai") && text.contains("unknown") && text.contains("2.0 KiB"), "{text}");
        assert!(text.contains("disconnected"), "{text}");
        let primary =
            serde_json::to_string(&NodeStatus::Primary(crate::status::PrimaryStatus::default())).unwrap();
        assert!(render(&primary).unwrap().contains("no site has ever connected"));
    }
}
