//! `outport primary`.

use std::path::PathBuf;

use clap::Args;

use crate::{app, config, shutdown::Shutdown, telemetry};

/// Run a primary.
#[derive(Debug, Args)]
pub(super) struct Primary {
    /// Configuration file
    #[arg(long, env = "OUTPORT_CONFIG")]
    config: PathBuf,
}

impl Primary {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let config: config::Primary = config::load(&self.config)?;
        telemetry::init_log(config.telemetry.log_format, &config.telemetry.log_filter)?;
        let shutdown = Shutdown::new();
        config.check(&self.config)?;
        let running = app::primary::start(&config, &shutdown).await?;
        app::until_stopped(&shutdown).await;
        Ok(running.stop().await?)
    }
}
