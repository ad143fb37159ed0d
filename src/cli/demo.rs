//! `outport demo`.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use comfy_table::{Table, presets};
use outport_proto::SiteName;

use super::say;
use crate::{
    app::{
        self,
        demo::{DemoOptions, Running},
    },
    shutdown::Shutdown,
    telemetry::{self, LogFormat},
};

/// Run a primary and sites on loopback, with a sample image, to try things out.
#[derive(Debug, Args)]
pub(super) struct Demo {
    /// Keep state here; without it a temporary directory is removed at exit
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Registry port of the primary; the sites take the next ones
    #[arg(long, default_value_t = 5000)]
    port: u16,
    /// Admin port of the primary; the sites take the next ones
    #[arg(long, default_value_t = 9000)]
    admin_port: u16,
    /// Names of the sites
    #[arg(long, value_delimiter = ',', default_value = "frankfurt,mumbai")]
    sites: Vec<SiteName>,
}

impl Demo {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        telemetry::init_log(LogFormat::Human, "warn")?;
        let temporary = match &self.dir {
            Some(_) => None,
            None => Some(
                tempfile::Builder::new()
                    .prefix("outport-demo-")
                    .tempdir()
                    .context("make a temporary directory")?,
            ),
        };
        let dir = match (&self.dir, &temporary) {
            (Some(dir), _) => dir.clone(),
            (None, Some(temporary)) => temporary.path().to_owned(),
            (None, None) => return Ok(()),
        };
        let shutdown = Shutdown::new();
        let options = DemoOptions { dir, port: self.port, admin_port: self.admin_port, sites: self.sites };
        let Some(running) = app::demo::start(&options, &shutdown).await? else { return Ok(()) };
        print(&running)?;
        app::until_stopped(&shutdown).await;
        Ok(running.stop().await?)
    }
}

fn print(running: &Running) -> anyhow::Result<()> {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(["SITE", "REGISTRY", "ADMIN"]);
    table.add_row(["primary", &running.primary.registry, &running.primary.admin]);
    for site in &running.sites {
        table.add_row([site.name.as_str(), &site.node.registry, &site.node.admin]);
    }
    let near = running.sites.first().map_or(&running.primary, |site| &site.node).local_name();
    let far = running.sites.last().map_or(&running.primary, |site| &site.node).local_name();
    let (user, password) = (&running.user, &running.password);
    let sample = &running.sample;
    // Run by cargo, the program is on nobody's PATH.
    let program = std::env::args().next().unwrap_or_else(|| "outport".to_owned());
    say(format_args!(
        "\
{table}

Anyone may pull. To push, log in as {user} with the password {password}
({file} holds all of this.)

Pull the sample from the far site:
  docker pull {far}/{sample}
  podman pull --tls-verify=false {far}/{sample}
  skopeo inspect --tls-verify=false docker://{far}/{sample}

Push through one site, pull through the other at once:
  docker login -u {user} -p {password} {near}
  docker tag {far}/{sample} {near}/team/app:1
  docker push {near}/team/app:1
  docker pull {far}/team/app:1

  podman push --tls-verify=false --creds {user}:{password} {far}/{sample} {near}/team/app:2
  podman pull --tls-verify=false {far}/team/app:2

  skopeo copy --src-tls-verify=false --dest-tls-verify=false --dest-creds {user}:{password} \\
    docker://{far}/{sample} docker://{near}/team/app:3
  skopeo inspect --tls-verify=false docker://{far}/team/app:3

Watch the lag:
  http://{admin}/
  {program} status --watch --admin {admin}
",
        file = running.file.display(),
        admin = running.primary.admin,
    ));
    say("ready: Ctrl-C stops everything");
    Ok(())
}
