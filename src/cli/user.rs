//! `outport user`.

use std::{
    io::{BufRead as _, IsTerminal as _},
    path::PathBuf,
};

use anyhow::{Context as _, bail};
use clap::Subcommand;

use super::say;
use crate::auth::{password, random_text};

/// Keep the users of the token service. A running primary sees changes at once.
#[derive(Debug, Subcommand)]
pub(super) enum User {
    /// Add a user or change a password; without --password-stdin a password is made and printed
    Add {
        /// The user's name
        name: String,
        /// The file of users
        #[arg(long, env = "OUTPORT_AUTH__USERS_FILE")]
        file: PathBuf,
        /// Read the password from the first line of standard input
        #[arg(long)]
        password_stdin: bool,
    },
    /// List users by name
    List {
        /// The file of users
        #[arg(long, env = "OUTPORT_AUTH__USERS_FILE")]
        file: PathBuf,
    },
    /// Remove a user; refresh tokens end with it
    Remove {
        /// The user's name
        name: String,
        /// The file of users
        #[arg(long, env = "OUTPORT_AUTH__USERS_FILE")]
        file: PathBuf,
    },
}

impl User {
    pub(super) fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Add { name, file, password_stdin } => {
                let given = if password_stdin { Some(read_password()?) } else { None };
                let password = match &given {
                    Some(password) => password.clone(),
                    None => random_text().context("make a password")?,
                };
                let is_new = password::add(&file, &name, &password)?;
                say(format_args!("{name} {}", if is_new { "added" } else { "changed" }));
                if given.is_none() {
                    say(format_args!("password: {password}"));
                }
            }
            Self::List { file } => password::list(&file)?.into_iter().for_each(say),
            Self::Remove { name, file } => {
                if !password::remove(&file, &name)? {
                    bail!("{}: no user {name}", file.display());
                }
                say(format_args!("{name} removed"));
            }
        }
        Ok(())
    }
}

fn read_password() -> anyhow::Result<String> {
    let input = std::io::stdin();
    if input.is_terminal() {
        say("password (it shows as you type):");
    }
    let mut line = String::new();
    input.lock().read_line(&mut line).context("read the password")?;
    let password = line.trim_end_matches(['\r', '\n']);
    if password.is_empty() {
        bail!("read the password: standard input is empty");
    }
    Ok(password.to_owned())
}
