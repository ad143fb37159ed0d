//! `outport drain`.

use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use http::Method;
use outport_proto::SiteName;
use serde::Deserialize;
use tokio::time::Instant;

use super::{admin::AdminAddress, say, wait::duration};
use crate::status::SiteStatus;

const TIMEOUT: Duration = Duration::from_secs(10);
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// Let a primary take no more pushes, to hand it over.
#[derive(Debug, Args)]
#[command(after_help = "\
Pulls and tokens go on. Pushes are answered 503 with Retry-After until --undo, also after a restart: a primary that was
handed over must not go on beside the new one. See deploy/README.md for the whole of a failover.")]
pub(super) struct Drain {
    /// Take pushes again
    #[arg(long, conflicts_with = "until")]
    undo: bool,
    /// Wait until this site shows and holds all there is
    #[arg(long, value_name = "SITE")]
    until: Option<SiteName>,
    /// How long
    #[arg(long, default_value = "5m", value_parser = duration)]
    timeout: Duration,
    #[command(flatten)]
    admin: AdminAddress,
}

#[derive(Deserialize)]
struct State {
    under_way: usize,
    head_epoch: u64,
    head_seq: u64,
}

impl Drain {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        if self.undo {
            self.ask(Method::DELETE).await?;
            say("pushes are taken again");
            return Ok(());
        }
        let until = Instant::now() + self.timeout;
        let mut state = self.ask(Method::POST).await?;
        while state.under_way > 0 {
            self.pause(until, "pushes are still under way").await?;
            state = self.ask(Method::GET).await?;
        }
        let head = format!("{}.{}", state.head_epoch, state.head_seq);
        let Some(site) = &self.until else {
            say(format_args!("no pushes are taken; the log ends at {head}"));
            return Ok(());
        };
        loop {
            let text = self.admin.page("/v1/sites", TIMEOUT).await?;
            let sites: Vec<SiteStatus> = serde_json::from_str(&text).context("read answer")?;
            let row = sites.iter().find(|row| row.site == site.as_str());
            let row = row.with_context(|| format!("there is no site {site}"))?;
            if row.epoch == state.head_epoch && row.complete_seq >= state.head_seq && row.missing_blobs == 0 {
                say(format_args!("no pushes are taken, and {site} has everything up to {head}"));
                return Ok(());
            }
            self.pause(until, &format!("{site} does not have everything up to {head}")).await?;
        }
    }

    async fn pause(&self, until: Instant, why: &str) -> anyhow::Result<()> {
        if Instant::now() >= until {
            bail!("{why} after {:?}; pushes are refused until `outport drain --undo`", self.timeout);
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
        Ok(())
    }

    async fn ask(&self, method: Method) -> anyhow::Result<State> {
        let text = self.admin.answered(method, "/v1/drain", TIMEOUT).await?;
        serde_json::from_str(&text).context("read answer")
    }
}
