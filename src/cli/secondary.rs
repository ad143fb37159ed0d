//! `outport secondary`.

use std::{path::PathBuf, pin::pin};

use clap::Args;

use crate::{app, config, shutdown::Shutdown, telemetry};

/// Run a secondary.
#[derive(Debug, Args)]
pub(super) struct Secondary {
    /// Configuration file
    #[arg(long, env = "OUTPORT_CONFIG")]
    config: PathBuf,
}

impl Secondary {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let config: config::Secondary = config::load(&self.config)?;
        telemetry::init_log(config.telemetry.log_format, &config.telemetry.log_filter)?;
        let shutdown = Shutdown::new();
        config.check(&self.config)?;
        for warning in config.warnings(&self.config) {
            tracing::warn!("{warning}");
        }
        // Whoever sees it answer may tell it to stop.
        let mut stopped = pin!(app::until_stopped(&shutdown));
        let started = app::secondary::start(&config, &shutdown);
        let Some(running) = app::started(started, stopped.as_mut(), &shutdown).await? else { return Ok(()) };
        stopped.await;
        Ok(running.stop().await?)
    }
}
