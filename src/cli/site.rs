//! `outport site`.

use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use comfy_table::{Table, presets};
use http::Method;
use outport_proto::SiteName;
use serde::Deserialize;

use super::{admin::AdminAddress, bytes, say, status::seconds};
use crate::status::{Location, SiteStatus};

const TIMEOUT: Duration = Duration::from_secs(5);

/// The sites of a cluster.
#[derive(Debug, Subcommand)]
pub(super) enum Site {
    /// List them: at a primary all, at a site itself and those behind it
    List(List),
    /// Make a token by which a machine becomes a site
    Add(Add),
    /// Cut a site off for good: its connections, its certificates and its tickets
    Remove(Remove),
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

/// Make a token by which a machine becomes a site.
#[derive(Debug, Args)]
#[command(after_help = "\
The token is good for one machine, until it expires or another one is made for the site. Whoever has it can become the
site: hand it over as you would a password. The primary needs replication.authority_key.")]
pub(super) struct Add {
    /// Name of the site
    name: SiteName,
    /// Certify these host names and addresses for its HTTPS as well; clients then need the cluster's authority
    #[arg(long, value_delimiter = ',', value_name = "HOST")]
    https: Vec<String>,
    /// How long the token is good
    #[arg(long, default_value_t = 24)]
    hours: u32,
    #[command(flatten)]
    admin: AdminAddress,
    /// Print the token as JSON
    #[arg(long)]
    json: bool,
}

/// Cut a site off for good.
#[derive(Debug, Args)]
pub(super) struct Remove {
    /// Name of the site
    name: SiteName,
    #[command(flatten)]
    admin: AdminAddress,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Deserialize)]
struct Token {
    token: String,
}

impl Site {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        match self {
            Self::List(list) => list.run().await,
            Self::Add(add) => add.run().await,
            Self::Remove(remove) => remove.run().await,
        }
    }
}

impl Add {
    async fn run(self) -> anyhow::Result<()> {
        let mut query = form_urlencoded::Serializer::new(String::new());
        query.append_pair("site", self.name.as_str()).append_pair("hours", &self.hours.to_string());
        query.extend_pairs(self.https.iter().map(|host| ("https", host)));
        let target = format!("/v1/sites?{}", query.finish());
        let text = self.admin.answered(Method::POST, &target, TIMEOUT).await?;
        if self.json {
            say(text);
            return Ok(());
        }
        let Token { token } = serde_json::from_str(&text).context("read answer")?;
        say(format_args!(
            "On the new machine, within {} h, as the user that Outport runs as:\n\n  \
             outport secondary --config /etc/outport/secondary.toml --join {token}",
            self.hours
        ));
        Ok(())
    }
}

impl Remove {
    async fn run(self) -> anyhow::Result<()> {
        let target = format!("/v1/sites?site={}", self.name);
        let text = self.admin.answered(Method::DELETE, &target, TIMEOUT).await?;
        say(if self.json { text } else { format!("{} is cut off", self.name) });
        Ok(())
    }
}

impl List {
    async fn run(self) -> anyhow::Result<()> {
        let text = self.admin.page("/v1/sites", TIMEOUT).await?;
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
