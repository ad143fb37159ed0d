//! Completions and manual pages, as the program itself writes them.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, ensure};

/// Where each shell looks, below `out`.
const COMPLETIONS: [(&str, &str); 3] =
    [("bash", "outport.bash"), ("zsh", "_outport"), ("fish", "outport.fish")];

/// Writes `completions/` and `man/` below `out`.
///
/// # Errors
/// When the program does not run, or nothing can be written.
pub fn write(binary: &Path, out: &Path) -> anyhow::Result<()> {
    let completions = out.join("completions");
    fs::create_dir_all(&completions).with_context(|| format!("make {}", completions.display()))?;
    for (shell, file) in COMPLETIONS {
        let script = run(binary, &["completions", shell])?;
        fs::write(completions.join(file), script).with_context(|| format!("write {file}"))?;
    }
    let man = out.join("man");
    let directory = man.to_str().context("a path is not UTF-8")?;
    run(binary, &["man", directory])?;
    Ok(())
}

fn run(binary: &Path, arguments: &[&str]) -> anyhow::Result<Vec<u8>> {
    let run = Command::new(binary).args(arguments).output();
    let output = run.with_context(|| format!("run {}", binary.display()))?;
    ensure!(
        output.status.success(),
        "{}: {}",
        binary.display(),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(output.stdout)
}
