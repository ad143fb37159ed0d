//! `outport site`.

use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use comfy_table::{Table, presets};

use super::{admin::AdminAddress, bytes, say, status::seconds};
use crate::status::{Location, SiteStatus};

const TIMEOUT: Duration = Duration::from_secs(5);

/// The sites of a cluster.
#[derive(Debug, Subcommand)]
pub(super) enum Site {
    /// List them: at a primary all, at a site itself and those behind it
    List(List),
}

/// List the sites that a node knows.
#[derive(Debug, Args)]
pub(super) struct List {
    #[command(flatten)]
    admin: AdminAddress,
    /// Print their statuses as JSON
    #[arg(long)]
    json: bool,
}

impl Site {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let Self::List(list) = self;
        list.run().await
    }
}

impl List {
    async fn run(self) -> anyhow::Result<()> {
        let (status, text) = self.admin.get("/v1/sites", TIMEOUT).await?;
        if !status.is_success() {
            bail!("ask {}: {status}: {}", self.admin.address(), text.trim());
        }
        if self.json {
            say(text);
            return Ok(());
        }
        let sites: Vec<SiteStatus> = serde_json::from_str(&text).context("read answer")?;
        if sites.is_empty() {
            say("there is no site yet");
            return Ok(());
        }
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        table.set_header(["SITE", "STATE", "LAG", "VERSION", "FOLLOWS", "LOCATION", "STORE", "LAST ERROR"]);
        for site in &sites {
            table.add_row(row(site)?);
        }
        say(table);
        Ok(())
    }
}

fn row(site: &SiteStatus) -> anyhow::Result<[String; 8]> {
    let state = serde_json::to_value(site.state)?.as_str().unwrap_or_default().to_owned();
    let or_none = |text: &str| if text.is_empty() { "-" } else { text }.to_owned();
    Ok([
        site.site.clone(),
        state,
        seconds(site.lag_seconds.applied),
        or_none(&site.version),
        site.via.last().map_or("primary", String::as_str).to_owned(),
        location(site.location),
        bytes(site.store.bytes),
        or_none(site.last_error.as_ref().map_or("", |error| &error.text)),
    ])
}

fn location(at: Location) -> String {
    match at {
        Location { latitude: Some(north), longitude: Some(east) } => format!("{north:.1}, {east:.1}"),
        _ => "-".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::LastError;

    #[test]
    fn a_site_says_whom_it_follows_and_what_went_wrong() {
        let site = SiteStatus {
            site: "goa".into(),
            via: vec!["mumbai".into(), "pune".into()],
            location: Location { latitude: Some(15.49), longitude: Some(73.83) },
            last_error: Some(LastError { text: "no route".into(), at: 0 }),
            ..SiteStatus::default()
        };
        let row = row(&site).unwrap();
        assert_eq!(row[..2], ["goa", "disconnected"]);
        assert_eq!(row[2..], ["unknown", "-", "pune", "15.5, 73.8", "0 B", "no route"]);
    }
}
