//! `outport completions` and `outport man`.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Args, Command, CommandFactory as _};
use clap_complete::Shell;

use super::{Cli, say};

const NAME: &str = "outport";

/// Print completions for a shell.
#[derive(Debug, Args)]
pub(super) struct Completions {
    /// For this shell
    shell: Shell,
}

impl Completions {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), NAME, &mut script);
        say(String::from_utf8(script)?.trim_end());
        Ok(())
    }
}

/// Write manual pages, one a command.
#[derive(Debug, Args)]
pub(super) struct Man {
    /// Into this directory
    dir: PathBuf,
}

impl Man {
    pub(super) fn run(self) -> anyhow::Result<()> {
        std::fs::create_dir_all(&self.dir).with_context(|| format!("make {}", self.dir.display()))?;
        let mut command = Cli::command().name(NAME);
        command.build();
        write(&self.dir, NAME, &command)
    }
}

/// The page of `command` and those of the commands below it.
fn write(dir: &Path, name: &str, command: &Command) -> anyhow::Result<()> {
    let file = dir.join(format!("{name}.1"));
    let mut page = Vec::new();
    clap_mangen::Man::new(command.clone())
        .render(&mut page)
        .with_context(|| format!("make {}", file.display()))?;
    std::fs::write(&file, page).with_context(|| format!("write {}", file.display()))?;
    say(file.display());
    command
        .get_subcommands()
        .filter(|command| command.get_name() != "help")
        .try_for_each(|below| write(dir, &format!("{name}-{}", below.get_name()), below))
}
