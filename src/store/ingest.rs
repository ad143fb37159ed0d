//! Taking in content whose digest is checked before anybody can see it.

use std::{
    fs::{self, File},
    io::{IoSlice, Seek as _, SeekFrom},
    path::PathBuf,
    sync::Arc,
};

use bytes::Bytes;
use outport_proto::{Algorithm, Digest, digest::Hasher};

use super::{Inner, Sink, StoreError, evict::Reservation};

/// Content being taken in. Dropping it removes the temporary file.
#[derive(Debug)]
pub struct Ingest {
    temp: TempFile,
    hasher: Hasher,
    len: u64,
    room: Option<Reservation>,
}

/// Content that hashes to what it should, not yet durable nor visible. Dropping it removes the
/// temporary file.
#[derive(Debug)]
pub struct Verified {
    temp: TempFile,
    digest: Digest,
    len: u64,
    /// Held until it counts as held.
    _room: Option<Reservation>,
}

impl Ingest {
    pub(super) fn begin(
        store: Arc<Inner>,
        algorithm: Algorithm,
        room: Option<Reservation>,
    ) -> Result<Self, StoreError> {
        let path = store.temp_path();
        let file = store
            .relieved(0, || store.disk.create(&path).map_err(StoreError::when("make a temporary file")))?;
        let temp = TempFile { file: Arc::new(file), name: TempName { path, published: false }, store };
        Ok(Self { temp, hasher: Hasher::new(algorithm), len: 0, room })
    }

    /// Appends bytes.
    ///
    /// # Errors
    /// When the disk fails or is full. The first [`Ingest::len`] bytes of the file are good even then.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.append(bytes.len(), || vec![IoSlice::new(bytes)])?;
        self.took_in(bytes);
        Ok(())
    }

    /// Appends what `slices` gives, which is asked for again when the disk was full and room was made.
    fn append<'a>(&self, bytes: usize, slices: impl Fn() -> Vec<IoSlice<'a>>) -> Result<(), StoreError> {
        self.temp.store.relieved(bytes as u64, || {
            let written = self.temp.write(&mut slices());
            if written.is_err() {
                // Should this fail as well, the next write does.
                let mut file = &*self.temp.file;
                let _ = file.set_len(self.len).and_then(|()| file.seek(SeekFrom::Start(self.len)));
            }
            written
        })
    }

    /// Bytes taken in so far.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether nothing was taken in.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A second handle on the growing file, for readers that follow it with `read_at`.
    pub fn file(&self) -> Arc<File> {
        Arc::clone(&self.temp.file)
    }

    /// The state of the hash after [`Ingest::len`] bytes.
    pub fn hasher(&self) -> &Hasher {
        &self.hasher
    }

    /// Checks the content against `expected`. Quick: the hash is at hand, the disk is not touched
    /// (but for removing the temporary file when it is wrong).
    ///
    /// # Errors
    /// [`StoreError::DigestMismatch`].
    pub fn verify(self, expected: &Digest) -> Result<Verified, StoreError> {
        let actual = self.hasher.finish();
        if actual != *expected {
            return Err(StoreError::DigestMismatch { expected: *expected, actual: Box::new(actual) });
        }
        Ok(Verified { temp: self.temp, digest: actual, len: self.len, _room: self.room })
    }

    /// Verifies, makes durable and publishes; returns the size. When this returns the blob survives a power cut.
    ///
    /// # Errors
    /// [`StoreError::DigestMismatch`] when the content is not `expected`; nothing is published then.
    pub fn commit(self, expected: &Digest) -> Result<u64, StoreError> {
        self.verify(expected)?.publish()
    }

    fn took_in(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
        self.len += bytes.len() as u64;
    }
}

impl Sink for Ingest {
    fn write(&mut self, batch: &[Bytes]) -> Result<(), StoreError> {
        let bytes = batch.iter().map(Bytes::len).sum();
        self.append(bytes, || batch.iter().map(|bytes| IoSlice::new(bytes)).collect())?;
        batch.iter().for_each(|bytes| self.took_in(bytes));
        Ok(())
    }
}

impl Verified {
    /// Makes the content durable and publishes it; returns its size in bytes. When this returns the blob
    /// survives a power cut.
    ///
    /// # Errors
    /// When the disk fails; the content is not published then.
    pub fn publish(mut self) -> Result<u64, StoreError> {
        let store = &self.temp.store;
        // Then it only goes earlier than it should.
        let _ = self.temp.file.set_modified(store.now());
        store.disk.sync_file(&self.temp.file).map_err(StoreError::when("sync a blob"))?;
        store.publish(&self.temp.name.path, &self.digest, self.len)?;
        self.temp.name.published = true;
        store.note_written(&self.digest, &self.temp.file);
        store.hot.published(&self.digest, &self.temp.file);
        Ok(self.len)
    }
}

#[derive(Debug)]
struct TempFile {
    name: TempName,
    file: Arc<File>,
    store: Arc<Inner>,
}

impl TempFile {
    fn write(&self, slices: &mut [IoSlice<'_>]) -> Result<(), StoreError> {
        self.store.disk.write(&self.file, slices).map_err(StoreError::when("write content"))
    }
}

#[derive(Debug)]
struct TempName {
    path: PathBuf,
    published: bool,
}

impl Drop for TempName {
    fn drop(&mut self) {
        if !self.published {
            // What cannot be removed now is removed when the store opens next.
            let _ = fs::remove_file(&self.path);
        }
    }
}
