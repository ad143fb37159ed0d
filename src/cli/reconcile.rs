//! `outport reconcile`.

use std::process::ExitCode;

use anyhow::bail;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use outport_proto::RepoName;

use super::{
    admin::AdminAddress,
    pass::{self, Pass},
    say,
};
use crate::registry::gateway::walk::ReconcileReport;

/// Exit code when something cannot be replicated.
const UNFIT: u8 = 3;

/// Walk the registry that the primary stands in front of, and record what the log does not tell.
#[derive(Debug, Args)]
#[command(after_help = "\
Exit codes: 0 the log agrees with the registry now, 1 error, 3 the same but for what no site could serve, or
what the registry gives no sensible answer about.

The primary does the same by itself: after its start, on a timer, and when a notification was refused.")]
pub(super) struct Reconcile {
    /// Repositories; all without any
    #[arg(value_name = "REPO")]
    repositories: Vec<RepoName>,
    /// Remove all that the registry does not have any more, however much it is
    #[arg(long)]
    accept_removals: bool,
    #[command(flatten)]
    admin: AdminAddress,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

impl Reconcile {
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        let bar = ProgressBar::no_length();
        bar.set_style(ProgressStyle::with_template(
            "{msg} {wide_bar} {human_pos} of {human_len} repositories {eta}",
        )?);
        let show = |now: &ReconcileReport| {
            if let Some(expected) = now.repositories_expected {
                bar.set_length(expected);
            }
            bar.set_position(now.repositories);
            bar.set_message(format!("{} looked at, {} new, {} gone", now.looked_at, now.found, now.gone));
            Ok(())
        };
        let ended = pass::follow(&self.admin, "/v1/reconcile", &self.query(), show).await?;
        bar.finish_and_clear();
        if self.json {
            say(serde_json::to_string(&ended)?);
        } else {
            say(render(&ended));
        }
        if let Some(reason) = &ended.error {
            bail!("reconcile {}: {reason}", self.admin.address());
        }
        Ok(if ended.unfit > 0 || ended.failed > 0 { ExitCode::from(UNFIT) } else { ExitCode::SUCCESS })
    }

    fn query(&self) -> String {
        let mut query = form_urlencoded::Serializer::new(String::new());
        query.append_pair("accept_removals", if self.accept_removals { "true" } else { "false" });
        for repo in &self.repositories {
            query.append_pair("repo", repo.as_str());
        }
        query.finish()
    }
}

impl Pass for ReconcileReport {
    fn number(&self) -> u64 {
        self.pass
    }

    fn is_running(&self) -> bool {
        self.running
    }
}

fn render(report: &ReconcileReport) -> String {
    let ReconcileReport { repositories, looked_at, found, gone, unfit, unfit_names, .. } = report;
    let mut text = format!(
        "{repositories} repositories, {looked_at} tags and manifests looked at: {found} new, {gone} gone"
    );
    for (count, names, what) in [
        (*unfit, unfit_names, "that no site could serve"),
        (report.failed, &report.failed_names, "that the registry gives no sensible answer about"),
    ] {
        if count == 0 {
            continue;
        }
        text += &format!("\n{count} {what}:");
        names.iter().for_each(|name| text += &format!("\n  {name}"));
        if count > names.len() as u64 {
            text += "\n  ...";
        }
    }
    text
}
