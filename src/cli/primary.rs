//! `outport primary`.

use std::{path::PathBuf, pin::pin};

use clap::Args;

use crate::{app, config, registry::journal::History, shutdown::Shutdown, telemetry};

/// Run a primary.
#[derive(Debug, Args)]
pub(super) struct Primary {
    /// Configuration file
    #[arg(long, env = "OUTPORT_CONFIG")]
    config: PathBuf,
    /// The data directory was restored from a backup: begin a new epoch of the log. Say it once, at
    /// the first start after the restore
    #[arg(long)]
    restored: bool,
}

impl Primary {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let config: config::Primary = config::load(&self.config)?;
        telemetry::init_log(config.telemetry.log_format, &config.telemetry.log_filter)?;
        let shutdown = Shutdown::new();
        config.check(&self.config)?;
        let history = if self.restored { History::Restored } else { History::Continues };
        // Whoever sees it answer may tell it to stop.
        let mut stopped = pin!(app::until_stopped(&shutdown));
        let started = app::primary::start(&config, history, &shutdown);
        let Some(running) = app::started(started, stopped.as_mut(), &shutdown).await? else { return Ok(()) };
        stopped.await;
        Ok(running.stop().await?)
    }
}
