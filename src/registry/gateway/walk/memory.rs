//! How far walks came, on disk: a walk of a large registry takes longer than some nodes run.

use std::{
    fs,
    io::{self, Write as _},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use outport_proto::RepoName;
use serde::{Deserialize, Serialize};

use crate::blocking;

/// What is remembered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Last {
    /// When a walk over everything ended, in seconds since the Unix epoch.
    pub(super) reconciled_at: Option<u64>,
    /// What it had found.
    pub(super) drift: Option<u64>,
    /// How far the one is that did not end.
    pub(super) cursor: Option<Cursor>,
    /// Whether more was gone at once than is removed unasked: then nothing more is, until somebody says so
    /// or it is back.
    #[serde(default)]
    pub(super) removals_refused: bool,
}

/// Where a walk is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Cursor {
    /// All repositories up to this one were walked.
    pub(super) after: RepoName,
    /// What was found in them.
    pub(super) drift: u64,
}

/// The file. It may be lost: then a walk begins at the beginning.
#[derive(Debug)]
pub(super) struct Memory {
    file: PathBuf,
    last: Arc<Mutex<Last>>,
}

impl Memory {
    pub(super) fn open(file: PathBuf) -> io::Result<Self> {
        let last = match fs::read(&file) {
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Last::default(),
            Err(error) => return Err(error),
        };
        Ok(Self { file, last: Arc::new(Mutex::new(last)) })
    }

    /// Remembers nothing of before, nor does the next start.
    pub(super) fn anew(file: PathBuf) -> io::Result<Self> {
        match fs::remove_file(&file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(Self { file, last: Arc::default() }),
        }
    }

    pub(super) fn last(&self) -> Last {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) async fn reached(&self, cursor: Cursor) -> io::Result<()> {
        self.change(|last| last.cursor = Some(cursor)).await
    }

    pub(super) async fn ended(&self, now: u64, drift: u64) -> io::Result<()> {
        self.change(|last| *last = Last { reconciled_at: Some(now), drift: Some(drift), ..Last::default() })
            .await
    }

    pub(super) async fn removals_refused(&self) -> io::Result<()> {
        self.change(|last| last.removals_refused = true).await
    }

    async fn change(&self, change: impl FnOnce(&mut Last)) -> io::Result<()> {
        let text = {
            let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
            change(&mut last);
            serde_json::to_vec(&*last)?
        };
        let file = self.file.clone();
        let written = blocking::spawn(move || {
            let new = file.with_extension("new");
            let mut written = fs::File::create(&new)?;
            written.write_all(&text)?;
            written.sync_all()?;
            fs::rename(&new, &file)
        });
        written.await.map_err(io::Error::other)?
    }
}
