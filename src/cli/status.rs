//! `outport status`.

use std::{
    io::{IsTerminal as _, Write as _},
    time::Duration,
};

use anyhow::Context as _;
use clap::Args;
use comfy_table::{Cell, Color, Table, presets};
use time::format_description::well_known::Rfc3339;

use super::{admin::AdminAddress, bytes, go_on_saying};
use crate::{
    clock::{Clock as _, SystemClock},
    status::{
        CanaryStatus, CertificateStatus, GatewayStatus, SiteState, SiteStatus, Status as NodeStatus,
        WebhookStatus,
    },
    telemetry::is_colored,
};

/// An admin listener that does not answer within this is treated as down.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
const WATCH_INTERVAL: Duration = Duration::from_secs(1);
/// No clock that is set has shown an earlier time since there is this program, in Unix seconds.
const EPOCHS_FROM: i64 = 1_600_000_000;
const DAY_SECONDS: u64 = 24 * 3600;
/// A certificate that ends earlier is told of.
const DAYS_LEFT: u64 = 21;
/// Clears the screen and puts the cursor home.
const CLEAR: &str = "\x1b[2J\x1b[H";

/// Show roles, offsets and lag.
#[derive(Debug, Args)]
pub(super) struct Status {
    #[command(flatten)]
    admin: AdminAddress,
    /// Print the page as JSON
    #[arg(long)]
    json: bool,
    /// Go on printing every second
    #[arg(long)]
    watch: bool,
}

impl Status {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        // Before a first answer the address is more likely wrong than the node down.
        let mut shown = self.show(&self.fetch().await?)?;
        loop {
            let is_read = if self.watch && !self.json && std::io::stdout().is_terminal() {
                go_on_saying(format_args!("{CLEAR}{shown}"))
            } else {
                go_on_saying(&shown)
            };
            if !self.watch || !is_read {
                return Ok(());
            }
            shown = loop {
                tokio::select! {
                    () = tokio::time::sleep(WATCH_INTERVAL) => {}
                    _ = tokio::signal::ctrl_c() => return Ok(()),
                }
                match self.fetch().await {
                    Ok(page) => break self.show(&page)?,
                    // A node that restarts is what one watches for.
                    Err(error) if self.json => {
                        let _ = writeln!(std::io::stderr().lock(), "outport: {error:#}");
                    }
                    Err(error) => break format!("{error:#}"),
                }
            };
        }
    }

    fn show(&self, page: &str) -> anyhow::Result<String> {
        if self.json { Ok(page.to_owned()) } else { render(page) }
    }

    async fn fetch(&self) -> anyhow::Result<String> {
        self.admin.page("/v1/status", ANSWER_TIMEOUT).await
    }
}

fn alarm(alarm: Option<&String>) -> String {
    alarm.map(|alarm| format!("\nALARM: {alarm}")).unwrap_or_default()
}

/// Certificates whose new files cannot be used, and those that end soon.
fn troubled(certificates: &[CertificateStatus], now: u64) -> String {
    let line = |certificate: &CertificateStatus| {
        let CertificateStatus { name, expires_at, refused } = certificate;
        let days = expires_at.saturating_sub(now) / DAY_SECONDS;
        let ending = (days < DAYS_LEFT).then(|| format!("\nALARM: certificate {name} ends in {days} days"));
        let refusal =
            refused.as_ref().map(|why| format!("\nALARM: certificate {name} is not replaced: {why}"));
        ending.into_iter().chain(refusal).collect::<String>()
    };
    certificates.iter().map(line).collect()
}

/// Webhooks that do not take what they are told.
fn refused(webhooks: &[WebhookStatus]) -> String {
    let failing = webhooks.iter().filter(|webhook| webhook.retrying > 0);
    let line = |webhook: &WebhookStatus| {
        let why = webhook.last_error.as_ref().map_or("", |error| &error.text);
        format!("\nwebhook {} does not take what it is told: {why}", webhook.name)
    };
    failing.map(line).collect()
}

/// How far the log is from the registry behind a primary.
fn behind(gateway: Option<&GatewayStatus>) -> String {
    let Some(gateway) = gateway else { return String::new() };
    let walked = match (gateway.last_reconciled_at, gateway.reconciling) {
        (None, _) => "the registry's content is being walked for the first time".to_owned(),
        (Some(at), going_on) => {
            let time = time::OffsetDateTime::from_unix_timestamp(at.cast_signed()).ok();
            let time = time.and_then(|time| time.format(&time::format_description::well_known::Rfc3339).ok());
            let drift = gateway.last_drift.unwrap_or_default();
            let now = if going_on { ", being reconciled now" } else { "" };
            format!(
                "reconciled with the registry {}, drift {drift}{now}",
                time.unwrap_or_else(|| at.to_string())
            )
        }
    };
    let unfit = match gateway.unfit {
        0 => String::new(),
        count => format!(
            "\n{count} tags and manifests of the registry cannot be replicated: outport reconcile names them"
        ),
    };
    format!("\n{walked}{unfit}{}", alarm(gateway.alarm.as_ref()))
}

fn render(page: &str) -> anyhow::Result<String> {
    let status: NodeStatus = serde_json::from_str(page).context("read answer")?;
    let now = SystemClock.now().as_secs();
    let (title, own_alarm, sites) = match &status {
        NodeStatus::Primary(primary) => (
            format!(
                "primary   cluster {}   epoch {}   head {}   floor {}   store {} in {} blobs",
                primary.cluster,
                epoch(primary.epoch),
                primary.head_seq,
                primary.floor_seq,
                bytes(primary.store.bytes),
                primary.store.blobs,
            ),
            behind(primary.gateway.as_deref())
                + &troubled(&primary.certificates, now)
                + &refused(&primary.webhooks)
                + &alarm(primary.alarm.as_ref())
                + &alarm(primary.auth_alarm.as_ref()),
            primary.sites.iter().collect::<Vec<_>>(),
        ),
        NodeStatus::Secondary(site) => (
            format!(
                "secondary   cluster {}   epoch {}   head {}",
                site.cluster,
                epoch(site.epoch),
                site.head_seq
            ),
            troubled(&site.certificates, now),
            std::iter::once(site.as_ref()).chain(&site.sites).collect(),
        ),
    };
    if sites.is_empty() {
        return Ok(format!("{title}\nno site has ever connected{own_alarm}"));
    }
    let mut table = Table::new();
    // Most clusters have no relays.
    let is_relayed = sites.iter().any(|site| !site.via.is_empty());
    let mut header = vec![
        "SITE",
        "STATE",
        "LAG",
        "COMPLETE",
        "CANARY",
        "EVENTS",
        "BYTES",
        "MISSING",
        "APPLIED",
        "HEARTBEAT",
        "TRANSPORT",
        "RTT",
        "STORE",
    ];
    header.extend(is_relayed.then_some("VIA"));
    table.load_style(presets::NOTHING).set_header(header);
    if !is_colored(&std::io::stdout()) {
        table.force_no_tty();
    }
    for site in &sites {
        let via = is_relayed.then(|| if site.via.is_empty() { "-".to_owned() } else { site.via.join(" > ") });
        let color = match site.state {
            _ if site.alarm.is_some() => Color::Red,
            SiteState::Disconnected => Color::Red,
            SiteState::Streaming => Color::Green,
            SiteState::CatchingUp | SiteState::Snapshot => Color::Yellow,
        };
        let mut cells: Vec<_> = row(site)?.into_iter().chain(via).map(Cell::new).collect();
        cells[1] = cells[1].clone().fg(color);
        table.add_row(cells);
    }
    let alarms = sites.iter().filter_map(|site| Some((&site.site, site.alarm.as_ref()?)));
    let failing = sites.iter().filter_map(|site| Some((&site.site, site.canary.as_ref()?.error.as_ref()?)));
    let alarms: String = alarms
        .map(|(site, alarm)| format!("\nALARM {site}: {alarm}"))
        .chain(failing.map(|(site, error)| format!("\n{site} cannot pull the canary: {error}")))
        .collect();
    Ok(format!("{title}\n{table}{own_alarm}{alarms}"))
}

fn row(site: &SiteStatus) -> anyhow::Result<[String; 13]> {
    let state = serde_json::to_value(site.state)?.as_str().unwrap_or_default().to_owned();
    Ok([
        site.site.clone(),
        state,
        seconds(site.lag_seconds.applied),
        seconds(site.lag_seconds.complete),
        canary(site.canary.as_ref()),
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

/// An epoch after the first has the time in seconds for its number at which it began.
fn epoch(number: u64) -> String {
    let begun = i64::try_from(number).ok().filter(|seconds| *seconds >= EPOCHS_FROM);
    let begun = begun.and_then(|seconds| time::OffsetDateTime::from_unix_timestamp(seconds).ok());
    let begun = begun.and_then(|begun| begun.format(&Rfc3339).ok());
    begun.map_or(number.to_string(), |begun| format!("{number} (begun {begun})"))
}

fn canary(canary: Option<&CanaryStatus>) -> String {
    match canary {
        None => "-".to_owned(),
        Some(canary) if canary.error.is_some() => "fails".to_owned(),
        Some(canary) => seconds(canary.lag_seconds),
    }
}

pub(super) fn seconds(value: Option<f64>) -> String {
    match value {
        None => "unknown".to_owned(),
        Some(value) if value < 1.0 => format!("{:.1} ms", value * 1000.0),
        Some(value) => format!("{value:.1} s"),
    }
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
        assert!(!text.contains("VIA"), "{text}");
        let behind = SiteStatus {
            site: "goa".into(),
            via: vec!["mumbai".into(), "pune".into()],
            ..SiteStatus::default()
        };
        let text = render(&serde_json::to_string(&NodeStatus::Secondary(Box::new(behind))).unwrap()).unwrap();
        assert!(text.contains("VIA") && text.contains("mumbai > pune"), "{text}");
        let primary = serde_json::to_string(&NodeStatus::Primary(Box::default())).unwrap();
        assert!(render(&primary).unwrap().contains("no site has ever connected"));
    }

    #[test]
    fn a_later_epoch_says_when_it_began() {
        assert_eq!(epoch(1), "1");
        assert_eq!(epoch(1_764_131_608), "1764131608 (begun 2025-11-26T04:33:28Z)");
    }
}
