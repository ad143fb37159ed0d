//! Resumable uploads: content that arrives in several requests, and over restarts.
//!
//! What was appended survives the end of the process at any instant (the operating system has
//! it); a power cut may take what was not synced, and the upload's length tells the client so.

use std::{
    collections::HashMap,
    fs::{self, File, OpenOptions},
    io::{IoSlice, Read as _, Seek as _, SeekFrom},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, UNIX_EPOCH},
};

use bytes::Bytes;
use outport_proto::{Algorithm, Digest, RepoName, Timestamp, digest::Hasher, route::UploadId};
use serde::{Deserialize, Serialize};

use super::{Inner, Sink, StoreError, found};

/// Hash states of resting uploads kept in memory; beyond it a prefix is hashed again from disk.
const RESTING_MAX: usize = 4096;
const REHASH_CHUNK_BYTES: usize = 256 * 1024;

/// The uploads of a store. Cloning gives another handle.
#[derive(Clone, Debug)]
pub struct Uploads {
    store: Arc<Inner>,
}

/// One upload, opened for writing by nobody else. Dropping it leaves it as it is, to be resumed.
#[derive(Debug)]
pub struct Upload {
    store: Arc<Inner>,
    id: UploadId,
    file: File,
    len: u64,
    /// Over the first `len` bytes; `None` when they were not seen by this process.
    hasher: Option<Hasher>,
}

/// What this process knows of uploads.
#[derive(Debug, Default)]
pub(super) struct Table(Mutex<HashMap<UploadId, Seen>>);

#[derive(Debug)]
enum Seen {
    /// Somebody writes it.
    Busy,
    /// Its hash after so many bytes.
    Resting(u64, Box<Hasher>),
}

/// Kept beside an upload.
#[derive(Debug, Serialize, Deserialize)]
struct Meta {
    repository: RepoName,
    started_at: Timestamp,
}

impl Uploads {
    pub(super) fn of(store: Arc<Inner>) -> Self {
        Self { store }
    }

    /// Begins an upload for `repo`.
    ///
    /// # Errors
    /// When its files cannot be made or no random numbers are to be had.
    pub fn create(&self, repo: &RepoName, now: Timestamp) -> Result<UploadId, StoreError> {
        let id = random_id()?;
        let meta = serde_json::to_vec(&Meta { repository: repo.clone(), started_at: now })
            .map_err(|error| StoreError::io("describe an upload", error.into()))?;
        // Busy while it is made, so that a sweep does not take it for remains.
        self.store.uploads.take(id)?;
        let made = fs::write(self.store.meta_path(id), meta)
            .and_then(|()| self.store.disk.create(&self.store.data_path(id)))
            .map_err(StoreError::when("begin an upload"));
        self.store.uploads.rest(id, made.is_ok().then(|| (0, Hasher::new(Algorithm::Sha256))));
        made.map(|_| id)
    }

    /// Opens an upload of `repo` to append to it, resume it or finish it.
    ///
    /// # Errors
    /// [`StoreError::UploadUnknown`] when there is none or it is another repository's;
    /// [`StoreError::UploadBusy`] while somebody else has it open.
    pub fn open(&self, repo: &RepoName, id: UploadId) -> Result<Upload, StoreError> {
        self.check(repo, id)?;
        let seen = self.store.uploads.take(id)?;
        let opened = self.open_taken(id, seen);
        if opened.is_err() {
            self.store.uploads.lock().remove(&id);
        }
        opened
    }

    fn open_taken(&self, id: UploadId, seen: Option<(u64, Hasher)>) -> Result<Upload, StoreError> {
        let path = self.store.data_path(id);
        let file = found(OpenOptions::new().read(true).write(true).open(path), "open an upload")?;
        let mut file = file.ok_or(StoreError::UploadUnknown)?;
        let len = file.seek(SeekFrom::End(0)).map_err(StoreError::when("resume an upload"))?;
        let hasher = match seen {
            Some((hashed, hasher)) if hashed == len => Some(hasher),
            _ if len == 0 => Some(Hasher::new(Algorithm::Sha256)),
            _ => None,
        };
        Ok(Upload { store: Arc::clone(&self.store), id, file, len, hasher })
    }

    /// Bytes an upload of `repo` has taken in, also while somebody writes it.
    ///
    /// # Errors
    /// [`StoreError::UploadUnknown`] when there is none or it is another repository's.
    pub fn len(&self, repo: &RepoName, id: UploadId) -> Result<u64, StoreError> {
        self.check(repo, id)?;
        let metadata = found(fs::metadata(self.store.data_path(id)), "read an upload's length")?;
        Ok(metadata.ok_or(StoreError::UploadUnknown)?.len())
    }

    /// Ends an upload of `repo` and throws its bytes away.
    ///
    /// # Errors
    /// As [`Uploads::open`].
    pub fn cancel(&self, repo: &RepoName, id: UploadId) -> Result<(), StoreError> {
        self.open(repo, id)?.discard()
    }

    /// Removes uploads that nobody has written to for `age_max`, and remains of others; returns how
    /// many. To be called when the store was opened and from time to time.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn sweep(&self, now: Timestamp, age_max: Duration) -> Result<u64, StoreError> {
        let action = "sweep uploads";
        let mut removed = 0;
        for entry in fs::read_dir(self.store.layout.uploads()).map_err(StoreError::when(action))? {
            let name = entry.map_err(StoreError::when(action))?.file_name();
            // An upload whose data file is gone has finished; one without meta cannot be resumed.
            let Some(id) = name.to_str().and_then(|name| name.split('.').next()?.parse::<UploadId>().ok())
            else {
                continue;
            };
            let Ok(seen) = self.store.uploads.take(id) else {
                continue;
            };
            let swept = self.remove_if_old(id, now, age_max);
            match swept {
                Ok(Some(_)) => drop(self.store.uploads.lock().remove(&id)),
                Ok(None) | Err(_) => self.store.uploads.rest(id, seen),
            }
            removed += u64::from(swept? == Some(true));
        }
        Ok(removed)
    }

    /// Whether the data of an upload removed for its age was there; `None` when it is not that old.
    fn remove_if_old(
        &self,
        id: UploadId,
        now: Timestamp,
        age_max: Duration,
    ) -> Result<Option<bool>, StoreError> {
        match self.last_used(id)? {
            Some(at) if now.since(at) <= age_max => Ok(None),
            _ => self.store.remove_upload(id).map(Some),
        }
    }

    /// When the upload was begun or last written; `None` when it is not whole.
    fn last_used(&self, id: UploadId) -> Result<Option<Timestamp>, StoreError> {
        let data = found(fs::metadata(self.store.data_path(id)), "sweep uploads")?;
        let (Some(data), Some(meta)) = (data, self.store.read_meta(id)?) else {
            return Ok(None);
        };
        let written = data.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        let written = written.map_or(meta.started_at, |at| Timestamp::default().plus(at));
        Ok(Some(written.max(meta.started_at)))
    }

    fn check(&self, repo: &RepoName, id: UploadId) -> Result<(), StoreError> {
        match self.store.read_meta(id)? {
            Some(meta) if meta.repository == *repo => Ok(()),
            _ => Err(StoreError::UploadUnknown),
        }
    }
}

impl Upload {
    /// Its name.
    pub fn id(&self) -> UploadId {
        self.id
    }

    /// Bytes taken in, by this and earlier requests.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether nothing was taken in.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Appends bytes.
    ///
    /// # Errors
    /// When the disk fails or is full; the length is then what it was before.
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.append_slices(&mut [IoSlice::new(bytes)])?;
        self.took_in(bytes);
        Ok(())
    }

    /// Makes what was appended survive a power cut.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn sync(&self) -> Result<(), StoreError> {
        self.store.disk.sync_file(&self.file).map_err(StoreError::when("sync an upload"))
    }

    /// Verifies, makes durable and publishes the content as blob `expected`; returns its size in bytes. The
    /// upload is over, whatever comes of it.
    ///
    /// # Errors
    /// [`StoreError::DigestMismatch`] when the content is not `expected`: nothing is published
    /// and the bytes are thrown away.
    pub fn finish(mut self, expected: &Digest) -> Result<u64, StoreError> {
        let finished = self.publish(expected);
        self.hasher = None;
        // What cannot be removed now is swept later.
        let _ = self.store.remove_upload(self.id);
        finished.map(|()| self.len)
    }

    /// Ends the upload and throws its bytes away.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn discard(mut self) -> Result<(), StoreError> {
        self.hasher = None;
        self.store.remove_upload(self.id).map(|_| ())
    }

    fn publish(&mut self, expected: &Digest) -> Result<(), StoreError> {
        let actual = match self.hasher.take() {
            Some(hasher) if hasher.algorithm() == expected.algorithm() => hasher.finish(),
            _ => self.hash_from_disk(expected.algorithm())?,
        };
        if actual != *expected {
            return Err(StoreError::DigestMismatch { expected: *expected, actual: Box::new(actual) });
        }
        self.sync()?;
        self.store.publish(&self.store.data_path(self.id), expected, self.len)?;
        self.store.note_written(expected, &self.file);
        Ok(())
    }

    fn hash_from_disk(&mut self, algorithm: Algorithm) -> Result<Digest, StoreError> {
        let mut hasher = Hasher::new(algorithm);
        let mut buffer = vec![0; REHASH_CHUNK_BYTES];
        self.file.rewind().map_err(StoreError::when("read an upload back"))?;
        loop {
            match self.file.read(&mut buffer).map_err(StoreError::when("read an upload back"))? {
                0 => return Ok(hasher.finish()),
                read => hasher.update(&buffer[..read]),
            }
        }
    }

    fn append_slices(&mut self, slices: &mut [IoSlice<'_>]) -> Result<(), StoreError> {
        let written = self.store.disk.write(&self.file, slices);
        if written.is_err() {
            // Should this fail as well, the upload is only longer than its client was told.
            let _ = self.file.set_len(self.len);
            let _ = self.file.seek(SeekFrom::Start(self.len));
            self.len = self.file.metadata().map_or(self.len, |metadata| metadata.len());
        }
        written.map_err(StoreError::when("append to an upload"))
    }

    fn took_in(&mut self, bytes: &[u8]) {
        if let Some(hasher) = &mut self.hasher {
            hasher.update(bytes);
        }
        self.len += bytes.len() as u64;
    }
}

impl Sink for Upload {
    fn write(&mut self, batch: &[Bytes]) -> Result<(), StoreError> {
        let mut slices: Vec<_> = batch.iter().map(|bytes| IoSlice::new(bytes)).collect();
        self.append_slices(&mut slices)?;
        batch.iter().for_each(|bytes| self.took_in(bytes));
        Ok(())
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        self.store.uploads.rest(self.id, self.hasher.take().map(|hasher| (self.len, hasher)));
    }
}

impl Table {
    fn lock(&self) -> MutexGuard<'_, HashMap<UploadId, Seen>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Marks the upload busy; returns its hash state where known.
    fn take(&self, id: UploadId) -> Result<Option<(u64, Hasher)>, StoreError> {
        let mut table = self.lock();
        match table.insert(id, Seen::Busy) {
            Some(Seen::Busy) => Err(StoreError::UploadBusy),
            Some(Seen::Resting(len, hasher)) => Ok(Some((len, *hasher))),
            None => Ok(None),
        }
    }

    fn rest(&self, id: UploadId, state: Option<(u64, Hasher)>) {
        let mut table = self.lock();
        match state {
            Some((len, hasher)) if table.len() <= RESTING_MAX => {
                table.insert(id, Seen::Resting(len, Box::new(hasher)));
            }
            _ => {
                table.remove(&id);
            }
        }
    }
}

impl Inner {
    fn data_path(&self, id: UploadId) -> PathBuf {
        self.layout.uploads().join(id.to_string())
    }

    fn meta_path(&self, id: UploadId) -> PathBuf {
        self.layout.uploads().join(format!("{id}.meta"))
    }

    fn read_meta(&self, id: UploadId) -> Result<Option<Meta>, StoreError> {
        let text = found(fs::read(self.meta_path(id)), "read an upload's description")?;
        Ok(text.and_then(|text| serde_json::from_slice(&text).ok()))
    }

    /// Removes what is left of an upload; returns whether its data was there.
    fn remove_upload(&self, id: UploadId) -> Result<bool, StoreError> {
        let data = found(fs::remove_file(self.data_path(id)), "remove an upload")?;
        found(fs::remove_file(self.meta_path(id)), "remove an upload")?;
        Ok(data.is_some())
    }
}

fn random_id() -> Result<UploadId, StoreError> {
    let mut bytes = [0; 16];
    crate::random::fill(&mut bytes)
        .map_err(|_| StoreError::io("draw an upload's name", std::io::Error::other("no random numbers")))?;
    Ok(UploadId::from_bytes(bytes))
}

#[cfg(test)]
mod tests;
