//! `outport gc`.

use std::{io::IsTerminal as _, time::Duration};

use anyhow::bail;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::time::Instant;

use super::{
    admin::AdminAddress,
    bytes,
    pass::{self, Pass},
    say,
};
use crate::registry::collect::{Collection, Count};

/// How often a line says how far it is where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// Remove blobs that no repository names any more.
#[derive(Debug, Args)]
#[command(after_help = "\
A blob stays for a grace period (store.gc_grace_minutes) after the node first saw that no repository names it.
The node does the same by itself; this does it now.")]
pub(super) struct Gc {
    /// Only say what would be removed
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    admin: AdminAddress,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

impl Gc {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let ended = self.follow().await?;
        if let Some(reason) = &ended.error {
            bail!("collect garbage at {}: {reason}", self.admin.address());
        }
        if self.json {
            say(serde_json::to_string(&ended)?);
        } else {
            say(render(&ended));
        }
        Ok(())
    }

    async fn follow(&self) -> anyhow::Result<Collection> {
        let bar = ProgressBar::no_length();
        bar.set_style(ProgressStyle::with_template("{msg} {wide_bar} {percent}% {eta}")?);
        bar.set_message("looking for unlinked blobs");
        let mut line_at = Instant::now() + LINE_INTERVAL;
        let show = |now: &Collection| {
            bar.set_length(now.parts);
            bar.set_position(now.parts_done);
            if !std::io::stderr().is_terminal() && Instant::now() >= line_at {
                eprintln_line(&format!("{} of {} parts, {} blobs", now.parts_done, now.parts, now.blobs));
                line_at = Instant::now() + LINE_INTERVAL;
            }
            Ok(())
        };
        let ended = pass::follow(&self.admin, "/v1/gc", &format!("dry_run={}", self.dry_run), show).await?;
        bar.finish_and_clear();
        Ok(ended)
    }
}

impl Pass for Collection {
    fn number(&self) -> u64 {
        self.pass
    }

    fn is_running(&self) -> bool {
        self.running
    }
}

/// Progress is no result, so it does not go where results go.
fn eprintln_line(text: &str) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

fn render(collection: &Collection) -> String {
    let Collection { dry_run, blobs, found, grace_seconds, .. } = collection;
    let count = |count: Count| format!("{} ({})", blobs_of(count.blobs), bytes(count.bytes));
    let verb = if *dry_run { "would be removed" } else { "removed" };
    let mut text = format!("{} {verb}, {} looked at", count(found.removed), blobs_of(*blobs));
    if found.in_grace.blobs > 0 {
        text += &format!("\n{} unlinked for less than {} minutes", count(found.in_grace), grace_seconds / 60);
    }
    if found.leased.blobs > 0 {
        text += &format!("\n{} unlinked and in use by a push", count(found.leased));
    }
    text
}

fn blobs_of(count: u64) -> String {
    if count == 1 { "1 blob".to_owned() } else { format!("{count} blobs") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::collect::Found;

    #[test]
    fn a_result_says_what_went_and_what_waits() {
        let found = Found {
            removed: Count { blobs: 1, bytes: 2048 },
            in_grace: Count { blobs: 2, bytes: 10 },
            ..Found::default()
        };
        let collection = Collection { blobs: 9, found, grace_seconds: 3600, ..Collection::default() };
        assert_eq!(
            render(&collection),
            "1 blob (2.0 KiB) removed, 9 blobs looked at\n2 blobs (10 B) unlinked for less than 60 minutes"
        );
        let dry = Collection { dry_run: true, blobs: 9, ..Collection::default() };
        assert_eq!(render(&dry), "0 blobs (0 B) would be removed, 9 blobs looked at");
    }
}
