//! One file a command.

mod cert;
mod config;
mod demo;
mod primary;
mod secondary;
mod status;
mod user;

use std::io::Write as _;

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
    /// Make the cluster authority and the certificates of its nodes
    #[command(subcommand)]
    Cert(cert::Cert),
    /// Keep the users of the token service
    #[command(subcommand)]
    User(user::User),
    /// Work with configuration files
    #[command(subcommand)]
    Config(config::Config),
}

impl Cli {
    /// Runs the command to its end.
    ///
    /// # Errors
    /// What `main` should say before it exits with a failure.
    pub async fn run(self) -> anyhow::Result<()> {
        match self.command {
            Command::Demo(demo) => demo.run().await,
            Command::Primary(primary) => primary.run().await,
            Command::Secondary(secondary) => secondary.run().await,
            Command::Status(status) => status.run().await,
            Command::Cert(cert) => cert.run(),
            Command::User(user) => user.run(),
            Command::Config(config) => config.run(),
        }
    }
}

/// Prints a line. A reader that went away (`outport status | head`) is no error.
fn say(text: impl std::fmt::Display) {
    let _ = writeln!(std::io::stdout().lock(), "{text}");
}
