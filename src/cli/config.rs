//! `outport config`.

use std::path::PathBuf;

use clap::Subcommand;

use super::say;
use crate::app;

/// Work with configuration files.
#[derive(Debug, Subcommand)]
pub(super) enum Config {
    /// Say whether a file and the paths in it would be accepted, without starting anything
    Check {
        /// The file
        file: PathBuf,
    },
}

impl Config {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let Self::Check { file } = self;
        let app::Checked { role, warnings } = app::check_config(&file)?;
        warnings.iter().for_each(|warning| say(format_args!("warning: {warning}")));
        say(format_args!("{}: a valid configuration of a {role}", file.display()));
        Ok(())
    }
}
