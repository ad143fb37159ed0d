//! `outport log`.

use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use http::Method;

use super::{admin::AdminAddress, bytes, go_on_saying};
use crate::admin::EventLine;

const TIMEOUT: Duration = Duration::from_secs(30);

/// Read the replication log.
#[derive(Debug, Subcommand)]
pub(super) enum Log {
    /// Show events, the newest without --from
    Show(Show),
}

/// Show events of the log, a line each.
#[derive(Debug, Args)]
pub(super) struct Show {
    /// Begin with this event, by its number
    #[arg(long, value_name = "SEQ")]
    from: Option<u64>,
    /// How many, at most 1000
    #[arg(long, default_value_t = 20)]
    limit: u64,
    /// Go on with further ones as they happen
    #[arg(long)]
    follow: bool,
    #[command(flatten)]
    admin: AdminAddress,
    /// Print a JSON object a line
    #[arg(long)]
    json: bool,
}

impl Log {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let Self::Show(show) = self;
        show.run().await
    }
}

impl Show {
    async fn run(self) -> anyhow::Result<()> {
        let from = self.from.map(|seq| format!("&from={seq}")).unwrap_or_default();
        let target = format!("/v1/events?limit={}{from}", self.limit);
        if self.follow {
            let mut lines = self.admin.lines(Method::GET, &format!("{target}&follow")).await?;
            while let Some(line) = lines.next().await? {
                if !self.show(&serde_json::from_str(&line).context("read answer")?)? {
                    return Ok(());
                }
            }
            bail!("ask {}: the node ended the stream", self.admin.address());
        }
        let text = self.admin.page(&target, TIMEOUT).await?;
        let events: Vec<EventLine> = serde_json::from_str(&text).context("read answer")?;
        events.iter().try_for_each(|event| self.show(event).map(drop))
    }

    /// Whether somebody reads it.
    fn show(&self, event: &EventLine) -> anyhow::Result<bool> {
        if self.json {
            return Ok(go_on_saying(serde_json::to_string(event)?));
        }
        let EventLine { offset, time, kind, .. } = event;
        let tags: String = event.tags.iter().map(|tag| format!(":{tag}")).collect();
        let image = format!("{}{tags}", event.repository.as_deref().unwrap_or("-"));
        let digest = event.digest.as_deref().unwrap_or("-");
        let size = event.size.map(|size| format!(" {}", bytes(size))).unwrap_or_default();
        let actor = if event.actor.is_empty() { "" } else { " by " };
        let through = event.site.as_ref().map(|site| format!(" through {site}")).unwrap_or_default();
        Ok(go_on_saying(format_args!(
            "{offset} {time} {kind} {image} {digest}{size}{actor}{}{through}",
            event.actor
        )))
    }
}
