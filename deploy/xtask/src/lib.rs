//! Makes what Outport is installed from, with plain code and no container engine: [`image`], a container image in
//! the OCI layout, and [`files`], completions and manual pages for packages.

pub mod files;
pub mod image;
mod root;

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, bail};
use clap::{Args, Parser};

/// Make what Outport is installed from.
#[derive(Debug, Parser)]
pub enum Xtask {
    /// Write a container image of Outport in the OCI layout
    Image(Image),
    /// Write completions and manual pages below target/package, for `cargo deb`
    Files(Files),
}

/// Write a container image of Outport in the OCI layout.
#[derive(Debug, Args)]
pub struct Image {
    /// A directory, or with the ending .tar an archive, as skopeo, podman and ctr read them
    #[arg(long, default_value = "target/outport.tar")]
    out: PathBuf,
    /// The image's tag
    #[arg(long, default_value = env!("CARGO_PKG_VERSION"))]
    tag: String,
    /// The program, built for this machine; without it the one of the profile `dist` is built
    #[arg(long)]
    binary: Option<PathBuf>,
}

/// Write completions and manual pages.
#[derive(Debug, Args)]
pub struct Files {
    /// Below this directory
    #[arg(long, default_value = "target/package")]
    out: PathBuf,
    /// The program; without it the one of the profile `dist` is built
    #[arg(long)]
    binary: Option<PathBuf>,
}

impl Xtask {
    /// Runs the command.
    ///
    /// # Errors
    /// What cannot be read, built or written.
    pub fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Image(Image { out, tag, binary }) => {
                let binary = built(binary)?;
                let image = image::write(&binary, &tag, &out)?;
                say(&format!("{}: {} ({} MiB to pull)", out.display(), image.digest, image.bytes >> 20));
                Ok(())
            }
            Self::Files(Files { out, binary }) => files::write(&built(binary)?, &out),
        }
    }
}

/// The program to package.
fn built(binary: Option<PathBuf>) -> anyhow::Result<PathBuf> {
    if let Some(binary) = binary {
        return Ok(binary);
    }
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let built = Command::new(cargo)
        .args(["build", "--locked", "--profile", "dist", "--package", "outport", "--bin", "outport"])
        .status();
    if !built.context("run cargo")?.success() {
        bail!("the program cannot be built");
    }
    let target = std::env::var("CARGO_TARGET_DIR").unwrap_or_else(|_| "target".to_owned());
    Ok(Path::new(&target).join("dist/outport"))
}

fn say(text: &str) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stdout(), "{text}");
}
