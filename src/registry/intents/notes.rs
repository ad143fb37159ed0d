//! What stands on disk of the open write intents: one file, first a name for the run of the kernel
//! that it was written under, then a record for each intent that was opened.
//!
//! Only what a start begins with is synced: what a killed process wrote stays in the kernel's
//! hands. A power cut takes some of it, and the next start sees that by the name. A file that is
//! not there at all would tell it nothing, so one is there for sure before anything is noted.

use std::io;

use bytes::Bytes;
use outport_proto::{
    Reference, RepoName,
    codec::{CodecError, ENVELOPE_BYTES, decode_value, encode_value},
};

use super::{Intent, Past};
use crate::log::disk::{File, SharedDisk, read_all};

const NAME: &str = "open";
const NEW: &str = "open.new";
/// A file that grew by this much, or to twice its size, is written anew with what is still waited for.
const GROWTH_BYTES: u64 = 4 * 1024 * 1024;
/// No file is larger: that many intents of the longest names take less.
const FILE_BYTES_MAX: u64 = 1 << 30;
/// Where in an envelope the length of its payload stands.
const LENGTH_AT: usize = 4;

/// What one record says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Note {
    /// An intent was opened.
    Intent(Intent),
    /// More may have been opened than stands here.
    Everything,
}

/// The repository of a record is `None` in [`Note::Everything`].
type Form = (Option<RepoName>, u64, Vec<Reference>, bool);

impl Note {
    fn encode(&self) -> Result<Bytes, CodecError> {
        let form: Form = match self {
            Self::Intent(Intent { number, repo, names, takes_tags }) => {
                (Some(repo.clone()), *number, names.clone(), *takes_tags)
            }
            Self::Everything => (None, 0, Vec::new(), false),
        };
        encode_value(&form)
    }

    fn decode(record: &[u8]) -> Result<Self, CodecError> {
        let (repo, number, names, takes_tags): Form = decode_value(record)?;
        Ok(match repo {
            Some(repo) => Self::Intent(Intent { number, repo, names, takes_tags }),
            None => Self::Everything,
        })
    }
}

/// The file.
#[derive(Debug)]
pub(super) struct Notes {
    disk: SharedDisk,
    boot: String,
    /// `None` when it could not be written. Then there is none, which is doubt at the next start.
    file: Option<Box<dyn File>>,
    bytes: u64,
    /// When it was last written anew.
    begun_bytes: u64,
}

impl Notes {
    /// Reads what stands there.
    pub(super) fn open(disk: SharedDisk, boot: Option<&str>, past: Past) -> (Self, Vec<Note>) {
        let boot = boot.unwrap_or_default().to_owned();
        let mut notes = Self { disk, boot, file: None, bytes: 0, begun_bytes: 0 };
        let standing = match (notes.read(), past) {
            (Ok(Some(standing)), _) => standing,
            (Ok(None), Past::None) => Vec::new(),
            (Ok(None), Past::Perhaps) => notes.doubt("there are none"),
            (Err(reason), _) => notes.doubt(&reason),
        };
        // What was doubted stays so at a next start soon; a torn end goes.
        notes.begin_anew(&standing);
        if let Err(error) = notes.sync() {
            notes.give_up(&error);
        }
        (notes, standing)
    }

    fn doubt(&self, reason: &str) -> Vec<Note> {
        tracing::info!(reason, "open write intents are not known: reads ask the primary for a while");
        vec![Note::Everything]
    }

    fn read(&self) -> Result<Option<Vec<Note>>, String> {
        let content = match read_all(&*self.disk, NAME, FILE_BYTES_MAX) {
            Ok(content) => content,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.to_string()),
        };
        let damaged = |error: CodecError| error.to_string();
        let mut records = records(&content);
        let boot: String = decode_value(records.next().unwrap_or_default()).map_err(damaged)?;
        if boot.is_empty() || boot != self.boot {
            return Err("the machine went down since".to_owned());
        }
        records.map(Note::decode).collect::<Result<_, _>>().map(Some).map_err(damaged)
    }

    pub(super) fn is_large(&self) -> bool {
        self.file.is_none() || self.bytes >= self.begun_bytes.saturating_mul(2).max(GROWTH_BYTES)
    }

    /// Adds a record.
    pub(super) fn add(&mut self, note: &Note) {
        let added = note.encode().map_err(io::Error::other).and_then(|record| {
            let file = self.file.as_mut().ok_or(io::ErrorKind::NotFound)?;
            file.append(&record)?;
            Ok(record.len() as u64)
        });
        match added {
            Ok(bytes) => self.bytes += bytes,
            Err(error) => self.give_up(&error),
        }
    }

    /// Leaves nothing standing but `notes`.
    pub(super) fn begin_anew(&mut self, notes: &[Note]) {
        match self.replace(notes) {
            Ok((file, bytes)) => (self.file, self.bytes, self.begun_bytes) = (Some(file), bytes, bytes),
            Err(error) => self.give_up(&error),
        }
    }

    fn sync(&mut self) -> io::Result<()> {
        if let Some(file) = &mut self.file {
            file.sync()?;
            self.disk.sync_dir()?;
        }
        Ok(())
    }

    fn replace(&self, notes: &[Note]) -> io::Result<(Box<dyn File>, u64)> {
        let mut content = encode_value(&self.boot).map_err(io::Error::other)?.to_vec();
        for note in notes {
            content.extend_from_slice(&note.encode().map_err(io::Error::other)?);
        }
        self.disk.remove(NEW)?;
        let mut file = self.disk.create(NEW)?;
        file.append(&content)?;
        self.disk.rename(NEW, NAME)?;
        Ok((file, content.len() as u64))
    }

    /// A file that lacks an intent must not be believed.
    fn give_up(&mut self, error: &io::Error) {
        if self.file.take().is_some() {
            tracing::warn!(%error, "write intents cannot be noted; a restart will ask the primary for a while");
        }
        if let Err(error) = self.disk.remove(NAME) {
            tracing::error!(%error, "cannot remove the file of write intents: a restart would believe it");
        }
    }
}

/// The whole records of a file; what a kill tore off its end was never waited for.
fn records(content: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = content;
    std::iter::from_fn(move || {
        let length = rest.get(LENGTH_AT..LENGTH_AT + 4)?.first_chunk().copied().map(u32::from_le_bytes)?;
        let length = usize::try_from(length).ok()?.checked_add(ENVELOPE_BYTES)?;
        let (record, behind) = rest.split_at_checked(length)?;
        rest = behind;
        Some(record)
    })
}
