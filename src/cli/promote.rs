//! `outport promote`.

use std::{path::PathBuf, process::ExitCode};

use clap::Args;

use super::{bytes, say};
use crate::{
    app::promote::{PromoteOptions, promote},
    config,
};

/// The exit code when something is missing, and nothing was changed.
const MISSING: u8 = 3;

/// Make what a site has a primary's, in a failover.
#[derive(Debug, Args)]
#[command(after_help = "\
The site must be stopped. What it has goes on as a new epoch of the log at the next start of `outport primary`; other
sites follow it there, and leave behind what only the lost primary had. Planned: `outport drain --until SITE` at the
primary first, and stop it. The new configuration lists the sites (replication.sites), and names the same public URL.")]
pub(super) struct Promote {
    /// The site's configuration
    #[arg(long, env = "OUTPORT_CONFIG")]
    config: PathBuf,
    /// The configuration of the primary it becomes, with the same data_dir
    #[arg(long)]
    primary_config: PathBuf,
    /// What could be saved of the data_dir of the primary before: the directory `keys`, so that tokens stay good, and
    /// `sites.json`, so that sites that joined are let in
    #[arg(long, value_name = "DIR")]
    saved: Option<PathBuf>,
    /// Go on although blobs are missing here: pulls that need them will fail
    #[arg(long)]
    accept_missing: bool,
}

impl Promote {
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        let site: config::Secondary = config::load(&self.config)?;
        let primary: config::Primary = config::load(&self.primary_config)?;
        primary.check(&self.primary_config)?;
        let options =
            PromoteOptions { site, primary, saved: self.saved, accept_missing: self.accept_missing };
        let promoted = promote(&options).await?;
        for image in &promoted.missing {
            say(format_args!("{} lacks {}, in {} of its blobs", image.name, bytes(image.bytes), image.blobs));
        }
        if !promoted.is_done {
            say("nothing was changed: --accept-missing goes on without them");
            return Ok(ExitCode::from(MISSING));
        }
        say(format_args!(
            "it goes on behind {}: start `outport primary --config {}`",
            promoted.head,
            self.primary_config.display()
        ));
        Ok(ExitCode::SUCCESS)
    }
}
