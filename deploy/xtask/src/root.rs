//! The file system of an image, as archives that come out the same for the same content.

use std::{collections::BTreeMap, fs, path::Path, process::Command};

use anyhow::{Context as _, bail};
use tar::{Builder, EntryType, Header};

/// Files, directories and their modes, by path without a leading slash.
#[derive(Debug, Default)]
pub(crate) struct Root(BTreeMap<String, Entry>);

#[derive(Debug)]
struct Entry {
    mode: u32,
    owner: u64,
    /// `None` for a directory.
    content: Option<Vec<u8>>,
}

impl Root {
    pub(crate) fn directory(&mut self, path: &str, mode: u32, owner: u64) {
        self.parents(path);
        self.0.insert(format!("{path}/"), Entry { mode, owner, content: None });
    }

    pub(crate) fn file(&mut self, path: &str, mode: u32, content: impl Into<Vec<u8>>) {
        self.parents(path);
        self.0.insert(path.to_owned(), Entry { mode, owner: 0, content: Some(content.into()) });
    }

    fn parents(&mut self, path: &str) {
        for (at, _) in path.match_indices('/') {
            let parent = format!("{}/", &path[..at]);
            self.0.entry(parent).or_insert(Entry { mode: 0o755, owner: 0, content: None });
        }
    }

    /// What the dynamic linker loads for a program, and the linker itself, where the program looks for them.
    pub(crate) fn libraries_of(&mut self, binary: &Path) -> anyhow::Result<()> {
        let output = Command::new("ldd").arg(binary).output().context("run ldd")?;
        let text = String::from_utf8(output.stdout).context("read what ldd says")?;
        if text.contains("not found") {
            bail!("{}: {text}", binary.display());
        }
        // `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x..)`, `/lib64/ld-linux-x86-64.so.2 (0x..)`
        let paths = text.lines().filter_map(|line| {
            let path = line.split_once("=> ").map_or(line, |(_, path)| path).trim();
            path.starts_with('/').then(|| path.split(' ').next().unwrap_or_default())
        });
        for path in paths {
            let content = fs::read(path).with_context(|| format!("read {path}"))?;
            self.file(path.trim_start_matches('/'), 0o755, content);
        }
        Ok(())
    }

    /// A tar archive of it, with all times zero.
    pub(crate) fn archive(&self) -> anyhow::Result<Vec<u8>> {
        let mut archive = Builder::new(Vec::new());
        for (path, Entry { mode, owner, content }) in &self.0 {
            let mut header = Header::new_gnu();
            header.set_mode(*mode);
            header.set_uid(*owner);
            header.set_gid(*owner);
            header.set_mtime(0);
            let content = content.as_deref();
            header.set_entry_type(if content.is_some() { EntryType::Regular } else { EntryType::Directory });
            header.set_size(content.map_or(0, |content| content.len() as u64));
            archive.append_data(&mut header, path, content.unwrap_or_default())?;
        }
        Ok(archive.into_inner()?)
    }
}
