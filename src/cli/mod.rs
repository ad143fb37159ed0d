//! One file a command.

mod admin;
mod cert;
mod config;
mod demo;
mod drain;
mod gc;
mod log;
mod manual;
mod pass;
mod prefetch;
mod primary;
mod promote;
mod reconcile;
mod revoke;
mod secondary;
mod site;
mod status;
mod user;
mod verify;
mod wait;
mod why;

use std::{io::Write as _, process::ExitCode};

use clap::{Parser, Subcommand};

/// Geo-aware edge read replicas for container registries.
#[derive(Debug, Parser)]
#[command(name = "outport", version, about, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a primary and sites on loopback, with a sample image, to try things out
    Demo(demo::Demo),
    /// Run a primary
    Primary(primary::Primary),
    /// Run a secondary
    Secondary(secondary::Secondary),
    /// Show roles, offsets and lag
    Status(status::Status),
    /// List the sites, add one, remove one
    #[command(subcommand)]
    Site(site::Site),
    /// Let a primary take no more pushes, to hand it over
    Drain(drain::Drain),
    /// Make what a site has a primary's, in a failover
    Promote(promote::Promote),
    /// Wait until sites show an image, or hold all of it
    Wait(wait::Wait),
    /// Say why a site shows an image, or does not
    Why(why::Why),
    /// Read the replication log
    #[command(subcommand)]
    Log(log::Log),
    /// Remove blobs that no repository names any more
    Gc(gc::Gc),
    /// Copy images to a site now, whatever its policy says
    Prefetch(prefetch::Prefetch),
    /// Ask the registry again about every caller
    Revoke(revoke::Revoke),
    /// Walk the registry that the primary stands in front of, and record what the log does not tell
    Reconcile(reconcile::Reconcile),
    /// Look whether the index is what the log led to, and a site's what the primary's is
    Verify(verify::Verify),
    /// Make the cluster authority and the certificates of its nodes
    #[command(subcommand)]
    Cert(cert::Cert),
    /// Keep the users of the token service
    #[command(subcommand)]
    User(user::User),
    /// Work with configuration files
    #[command(subcommand)]
    Config(config::Config),
    /// Print completions for a shell
    Completions(manual::Completions),
    /// Write manual pages, one a command
    Man(manual::Man),
}

impl Cli {
    /// Runs the command to its end; returns the exit code, which is 0 but for commands that tell
    /// scripts more.
    ///
    /// # Errors
    /// What `main` should say before it exits with a failure.
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        match self.command {
            Command::Wait(wait) => return wait.run().await,
            Command::Promote(promote) => return promote.run().await,
            Command::Prefetch(prefetch) => return prefetch.run().await,
            Command::Reconcile(reconcile) => return reconcile.run().await,
            Command::Verify(verify) => return verify.run().await,
            Command::Demo(demo) => demo.run().await,
            Command::Primary(primary) => primary.run().await,
            Command::Secondary(secondary) => secondary.run().await,
            Command::Status(status) => status.run().await,
            Command::Site(site) => site.run().await,
            Command::Drain(drain) => drain.run().await,
            Command::Why(why) => why.run().await,
            Command::Log(log) => log.run().await,
            Command::Gc(gc) => gc.run().await,
            Command::Revoke(revoke) => revoke.run().await,
            Command::Cert(cert) => cert.run(),
            Command::User(user) => user.run(),
            Command::Config(config) => config.run(),
            Command::Completions(completions) => completions.run(),
            Command::Man(man) => man.run(),
        }?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Prints a line. A reader that went away (`outport status | head`) is no error.
fn say(text: impl std::fmt::Display) {
    let _ = go_on_saying(text);
}

/// Prints a line of what goes on for ever; `false` when its reader went away, which ends it.
#[must_use]
fn go_on_saying(text: impl std::fmt::Display) -> bool {
    writeln!(std::io::stdout().lock(), "{text}").is_ok()
}

/// A size for people.
fn bytes(value: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut scaled = value as f64;
    let mut unit = 0;
    while scaled >= 1024.0 && unit + 1 < UNITS.len() {
        scaled /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{value} B") } else { format!("{scaled:.1} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use outport_proto::Timestamp;

    use super::*;
    use crate::auth::JoinToken;

    /// What stands for itself in the documentation.
    fn spelt_out(word: &str) -> String {
        let token = JoinToken {
            site: "mumbai".parse().unwrap(),
            addresses: Vec::new(),
            authority: [0; 32],
            secret: [0; 32],
            expires: Timestamp::from_secs(1),
            fallback_url: String::new(),
            https: Vec::new(),
        };
        match word {
            _ if word.starts_with("outport-join-") => token.to_string(),
            _ => word.to_owned(),
        }
    }

    #[test]
    fn every_command_in_the_documentation_is_one() {
        let mut commands = 0;
        for text in [include_str!("../../README.md"), include_str!("../../deploy/README.md")] {
            for line in text.lines().filter(|line| line.starts_with("outport ")) {
                let line = line.split(" #").next().unwrap_or_default();
                let words = line.split_whitespace().map(spelt_out);
                let parsed = Cli::try_parse_from(words);
                assert!(
                    parsed.is_ok(),
                    "{line}: {}",
                    parsed.err().map(|error| error.to_string()).unwrap_or_default()
                );
                commands += 1;
            }
        }
        assert!(commands > 25, "{commands} commands were found");
    }
}
