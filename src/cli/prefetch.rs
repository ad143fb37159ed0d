//! `outport prefetch`.

use std::{
    io::{IsTerminal as _, Write as _},
    process::ExitCode,
    time::Duration,
};

use anyhow::bail;
use clap::Args;
use http::Method;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::time::Instant;

use super::{admin::AdminAddress, bytes, say};
use crate::registry::prefetch::{Step, Wanted};

/// Exit code when not all of it could be copied.
const NOT_ALL: u8 = 3;
/// How often a line says how far it is where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// Copy images to a site now, whatever its policy says.
#[derive(Debug, Args)]
#[command(after_help = "\
Exit codes: 0 all of it is at the site, 1 error, 3 not all of it could be copied.

Asks the admin listener of the site that is to have it. A bandwidth limit of the site holds here too. What
the site's policy excludes stays until the policy changes or room is needed.

  outport prefetch team/app:2 base/os --admin 10.0.0.7:9000")]
pub(super) struct Prefetch {
    /// `repository`, `repository:tag` or `repository@digest`, without a host
    #[arg(value_name = "REF", required = true)]
    wanted: Vec<Wanted>,
    #[command(flatten)]
    admin: AdminAddress,
    /// Print every step as a line of JSON
    #[arg(long)]
    json: bool,
}

impl Prefetch {
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        let mut query = form_urlencoded::Serializer::new(String::new());
        self.wanted.iter().for_each(|wanted| {
            query.append_pair("ref", &wanted.to_string());
        });
        let target = format!("/v1/prefetch?{}", query.finish());
        let mut lines = self.admin.lines(Method::POST, &target).await?;
        let mut show = Show::new(self.json)?;
        while let Some(line) = lines.next().await? {
            let step: Step = serde_json::from_str(&line)?;
            show.step(&line, &step);
            if let Step::Done { failed, .. } = step {
                return Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::from(NOT_ALL) });
            }
        }
        bail!("ask {}: the site broke off", self.admin.address())
    }
}

/// What a person, or a script, sees of it.
struct Show {
    json: bool,
    bar: ProgressBar,
    is_terminal: bool,
    line_at: Instant,
    blobs: u64,
    bytes: u64,
}

impl Show {
    fn new(json: bool) -> anyhow::Result<Self> {
        let bar = if json { ProgressBar::hidden() } else { ProgressBar::new(0) };
        bar.set_style(ProgressStyle::with_template("{msg} {wide_bar} {bytes}/{total_bytes} {eta}")?);
        bar.set_message("copying");
        let is_terminal = std::io::stderr().is_terminal();
        Ok(Self { json, bar, is_terminal, line_at: Instant::now() + LINE_INTERVAL, blobs: 0, bytes: 0 })
    }

    fn step(&mut self, line: &str, step: &Step) {
        if let Step::Found { blobs, bytes, .. } = step {
            self.blobs += blobs;
            self.bytes += bytes;
            self.bar.set_length(self.bytes);
        }
        if self.json {
            say(line);
            return;
        }
        match step {
            Step::Found { reference, blobs: 0, .. } => self.say(&format!("{reference}: nothing is missing")),
            Step::Found { reference, blobs, bytes: size } => {
                self.say(&format!("{reference}: {blobs} blobs ({}) are missing", bytes(*size)));
            }
            Step::Unknown { reference, reason } => self.complain(&format!("{reference}: {reason}")),
            Step::Failed { digest, reason } => self.complain(&format!("{digest}: {reason}")),
            Step::Progress { blobs, bytes: here } => {
                self.bar.set_position(*here);
                if !self.is_terminal && Instant::now() >= self.line_at {
                    self.line_at = Instant::now() + LINE_INTERVAL;
                    let (here, all) = (bytes(*here), bytes(self.bytes));
                    self.complain(&format!("{blobs} of {} blobs, {here} of {all}", self.blobs));
                }
            }
            Step::Done { blobs, bytes: copied, failed } => {
                self.bar.finish_and_clear();
                let failed = if *failed > 0 { format!(", {failed} failed") } else { String::new() };
                say(format_args!("{blobs} blobs ({}) copied{failed}", bytes(*copied)));
            }
        }
    }

    fn say(&self, text: &str) {
        self.bar.suspend(|| say(text));
    }

    /// What is no result does not go where results go.
    fn complain(&self, text: &str) {
        self.bar.suspend(|| {
            let _ = writeln!(std::io::stderr().lock(), "{text}");
        });
    }
}
