//! `outport verify`.

use std::{process::ExitCode, time::Duration};

use anyhow::{Context as _, bail};
use clap::Args;
use http::{Method, StatusCode};
use indicatif::{ProgressBar, ProgressStyle};
use tokio::time::sleep;

use super::{admin::AdminAddress, say};
use crate::registry::verification::VerifyReport;

/// Exit code when something was wrong.
const WRONG: u8 = 3;
/// Exit code when a site could not be compared with its primary.
const NOT_COMPARED: u8 = 4;
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// Look whether the index is what the log led to, and a site's what the primary's is.
#[derive(Debug, Args)]
#[command(after_help = "\
Exit codes: 0 all is right, 1 error, 3 something was wrong, 4 the site could not be compared with its primary.

The node does the same by itself, slowly. A site repairs what is wrong from its primary; a primary whose index
is wrong stops, and rebuilds it from its log when it is started again.")]
pub(super) struct Verify {
    #[command(flatten)]
    admin: AdminAddress,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

impl Verify {
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        let ended = self.watch(self.begin().await?).await?;
        if let Some(reason) = &ended.error {
            bail!("verify {}: {reason}", self.admin.address());
        }
        if self.json {
            say(serde_json::to_string(&ended)?);
        } else {
            say(render(&ended));
        }
        Ok(exit_code(&ended))
    }

    /// Begins a pass, behind the one that may be under way.
    async fn begin(&self) -> anyhow::Result<VerifyReport> {
        loop {
            let (status, text) = self.admin.ask(Method::POST, "/v1/verify", ANSWER_TIMEOUT).await?;
            match status {
                StatusCode::ACCEPTED => return serde_json::from_str(&text).context("read answer"),
                StatusCode::CONFLICT => sleep(LOOK_INTERVAL).await,
                _ => bail!("ask {}: {status}: {}", self.admin.address(), text.trim()),
            }
        }
    }

    async fn watch(&self, begun: VerifyReport) -> anyhow::Result<VerifyReport> {
        let bar = begun.rows_expected.map_or_else(ProgressBar::no_length, ProgressBar::new);
        bar.set_style(ProgressStyle::with_template("{msg} {wide_bar} {human_pos} rows")?);
        bar.set_message("walking the index");
        let mut now = begun;
        let number = now.pass;
        while now.running {
            bar.set_position(now.rows);
            if now.adds_up.is_some() {
                bar.set_message("comparing with the primary");
            }
            sleep(LOOK_INTERVAL).await;
            let (status, text) = self.admin.ask(Method::GET, "/v1/verify", ANSWER_TIMEOUT).await?;
            if status != StatusCode::OK {
                bail!("ask {}: {status}: {}", self.admin.address(), text.trim());
            }
            now = serde_json::from_str(&text).context("read answer")?;
            if now.pass != number {
                bail!("the node restarted, or began another pass before this one's result was read");
            }
        }
        bar.finish_and_clear();
        Ok(now)
    }
}

/// Whether the node is a primary does not matter here: it has nobody to be compared with, and says so.
fn exit_code(report: &VerifyReport) -> ExitCode {
    let is_right = report.adds_up == Some(true) && report.repaired == 0;
    match report.equals_primary {
        _ if !is_right => ExitCode::from(WRONG),
        Some(false) => ExitCode::from(WRONG),
        None if report.is_site => ExitCode::from(NOT_COMPARED),
        Some(true) | None => ExitCode::SUCCESS,
    }
}

fn render(report: &VerifyReport) -> String {
    let VerifyReport { rows, adds_up, equals_primary, repaired, is_site, .. } = report;
    let mut text = match adds_up {
        Some(true) => format!("{rows} rows, and they are those that the log led to"),
        _ => format!("{rows} rows, and they were not those that the log led to"),
    };
    text += match equals_primary {
        Some(true) => "\nthe index is in the primary's state",
        Some(false) => "\nthe index is not in the primary's state: repairs go on",
        None if *is_site => "\nthe index could not be compared with the primary's",
        None => "",
    };
    if *repaired > 0 {
        text += &format!("\n{repaired} tags, manifests and links were repaired");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_are_told_what_people_are() {
        let right = VerifyReport { rows: 7, adds_up: Some(true), ..VerifyReport::default() };
        let of = |report: &VerifyReport| (format!("{:?}", exit_code(report)), render(report));
        let code = |code: u8| format!("{:?}", ExitCode::from(code));
        assert_eq!(of(&right), (code(0), "7 rows, and they are those that the log led to".to_owned()));
        let site = VerifyReport { is_site: true, ..right.clone() };
        assert_eq!(of(&site).0, code(NOT_COMPARED));
        let equal = VerifyReport { equals_primary: Some(true), ..site.clone() };
        assert_eq!(of(&equal).0, code(0));
        let repaired = VerifyReport { repaired: 1, adds_up: Some(false), ..equal.clone() };
        assert_eq!(of(&repaired).0, code(WRONG));
        assert!(of(&repaired).1.contains("were not") && of(&repaired).1.contains("were repaired"));
        let other = VerifyReport { equals_primary: Some(false), ..site };
        assert_eq!(of(&other).0, code(WRONG));
    }
}
