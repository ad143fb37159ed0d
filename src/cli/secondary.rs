//! `outport secondary`.

use std::{net::SocketAddr, path::PathBuf, pin::pin};

use clap::Args;

use super::say;
use crate::{app, auth::JoinToken, config, shutdown::Shutdown, telemetry};

/// Run a secondary.
#[derive(Debug, Args)]
#[command(after_help = "\
With --join a new machine makes its keys, gets its certificates, writes its configuration, and runs. If it has
joined before, it just runs. A configuration that is there already is used as it is, and says where the
certificates go.")]
pub(super) struct Secondary {
    /// Configuration file
    #[arg(long, env = "OUTPORT_CONFIG")]
    config: PathBuf,
    /// Become a site first, with the token that `outport site add` printed at the primary
    #[arg(long, env = "OUTPORT_JOIN_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    join: Option<JoinToken>,
    #[command(flatten)]
    first: First,
}

/// What a configuration is written from that is not there yet.
#[derive(Debug, Args)]
#[command(next_help_heading = "Options of --join, for a machine without a configuration")]
struct First {
    /// Where everything durable will live
    #[arg(long, requires = "join", default_value = "/var/lib/outport")]
    data_dir: PathBuf,
    /// Where the registry listens [default: 0.0.0.0:443 with a certificate, else 127.0.0.1:5000]
    #[arg(long, requires = "join")]
    listen: Option<SocketAddr>,
    /// Where the admin listener is
    #[arg(long, requires = "join", default_value = "127.0.0.1:9000")]
    admin: SocketAddr,
    /// Certificate for HTTPS, PEM, if the token brings none
    #[arg(long, requires_all = ["join", "key"])]
    certificate: Option<PathBuf>,
    /// Its private key, PEM
    #[arg(long, requires_all = ["join", "certificate"])]
    key: Option<PathBuf>,
    /// Speak plain HTTP to other machines
    #[arg(long, requires = "join")]
    insecure: bool,
}

impl Secondary {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        if let Some(token) = self.join {
            let site = token.site.clone();
            let options = app::join::JoinOptions {
                token,
                config: self.config.clone(),
                data_dir: self.first.data_dir,
                listen: self.first.listen,
                admin: self.first.admin,
                https: self.first.certificate.zip(self.first.key),
                insecure: self.first.insecure,
            };
            if app::join::join(&options).await? {
                say(format_args!("joined as site {site}; the configuration is {}", self.config.display()));
            }
        }
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
