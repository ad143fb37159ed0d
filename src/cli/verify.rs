//! `outport verify`.

use std::{process::ExitCode, time::Duration};

use anyhow::bail;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use super::{
    admin::AdminAddress,
    bytes,
    pass::{self, Pass},
    say,
    wait::duration,
};
use crate::registry::verification::{BlobsVerified, VerifyReport};

/// Exit code when something was wrong.
const WRONG: u8 = 3;
/// Exit code when a site could not be compared with its primary.
const NOT_COMPARED: u8 = 4;

/// Look whether the index is what the log led to, a site's what the primary's is, and blobs what they were.
#[derive(Debug, Args)]
#[command(after_help = "\
Exit codes: 0 all is right, 1 error, 3 something was wrong, 4 the site could not be compared with its primary.

The node does the same by itself, slowly. A site repairs what is wrong from its primary; a primary whose index
is wrong stops, and rebuilds it from its log when it is started again. Bad copies of blobs are set aside in
store/quarantine; a site fetches them again, and those that are missing. At a site only what it copies ahead
can be missing; at the primary everything that a repository links.")]
pub(super) struct Verify {
    /// Look for all blobs as well, and hash them again
    #[arg(long)]
    blobs: bool,
    /// How long a site waits to be compared with its primary, and to be repaired: seconds, or with a
    /// unit as in 500ms, 90s, 5m; at most 10m
    #[arg(long, default_value = "60s", value_parser = duration)]
    timeout: Duration,
    #[command(flatten)]
    admin: AdminAddress,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

impl Verify {
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        let ended = self.follow().await?;
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

    async fn follow(&self) -> anyhow::Result<VerifyReport> {
        let bar = ProgressBar::no_length();
        bar.set_style(ProgressStyle::with_template("{msg} {wide_bar} {human_pos} rows")?);
        bar.set_message("walking the index");
        let show = |now: &VerifyReport| {
            match (&now.blobs, now.adds_up) {
                (Some(blobs), _) => {
                    bar.set_style(ProgressStyle::with_template(
                        "{msg} {wide_bar} {bytes} of {total_bytes} {eta}",
                    )?);
                    bar.set_message("hashing blobs");
                    bar.set_length(blobs.bytes_expected.max(blobs.bytes));
                    bar.set_position(blobs.bytes);
                }
                (None, adds_up) => {
                    if let Some(rows) = now.rows_expected {
                        bar.set_length(rows);
                    }
                    bar.set_position(now.rows);
                    if adds_up.is_some() {
                        bar.set_message("comparing with the primary");
                    }
                }
            }
            Ok(())
        };
        let query = format!("blobs={}&timeout={}", self.blobs, self.timeout.as_secs_f64());
        let ended = pass::follow(&self.admin, "/v1/verify", &query, show).await?;
        bar.finish_and_clear();
        Ok(ended)
    }
}

impl Pass for VerifyReport {
    fn number(&self) -> u64 {
        self.pass
    }

    fn is_running(&self) -> bool {
        self.running
    }
}

/// Whether the node is a primary does not matter here: it has nobody to be compared with, and says so.
fn exit_code(report: &VerifyReport) -> ExitCode {
    let has_bad = report.blobs.is_some_and(|blobs| blobs.rotten > 0 || blobs.missing > 0);
    let is_right = report.adds_up == Some(true) && report.repaired == 0 && !has_bad;
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
    if let Some(BlobsVerified { blobs, bytes: hashed, rotten, missing, .. }) = report.blobs {
        text += &format!("\n{blobs} blobs ({}) hashed again, ", bytes(hashed));
        text += &match rotten {
            0 => "and they are what they were".to_owned(),
            _ => format!("and {rotten} of them had rotted: their copies were set aside"),
        };
        if missing > 0 {
            text += &format!("\nof the blobs that should be here, {missing} are not:");
            report.missing.iter().for_each(|name| text += &format!("\n  {name}"));
            if missing > report.missing.len() as u64 {
                text += "\n  ...";
            }
        }
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
        let blobs = BlobsVerified { blobs: 7, bytes: 4096, ..BlobsVerified::default() };
        let hashed = VerifyReport { blobs: Some(blobs), ..equal.clone() };
        assert_eq!(of(&hashed).0, code(0));
        assert!(of(&hashed).1.ends_with("7 blobs (4.0 KiB) hashed again, and they are what they were"));
        let rotten = VerifyReport { blobs: Some(BlobsVerified { rotten: 1, ..blobs }), ..equal };
        assert_eq!(of(&rotten).0, code(WRONG));
        assert!(of(&rotten).1.contains("1 of them had rotted"));
        let lost = Some(BlobsVerified { missing: 2, ..blobs });
        let missing = vec!["team/app@sha256:12".to_owned()];
        let lost = VerifyReport { blobs: lost, missing, ..hashed };
        assert_eq!(of(&lost).0, code(WRONG));
        assert!(of(&lost).1.ends_with("should be here, 2 are not:\n  team/app@sha256:12\n  ..."));
        let other = VerifyReport { equals_primary: Some(false), ..site };
        assert_eq!(of(&other).0, code(WRONG));
    }
}
