//! Looking for bit rot before anybody reads it: every blob is hashed again from time to time, slowly,
//! going on after a restart where it was. What was checked otherwise meanwhile is passed over.

use std::{fs, fs::File, io, num::NonZeroU64, sync::Arc, time::Duration};

use outport_proto::{Digest, digest::Hasher};
use rustix::fs::{Advice, fadvise};
use tokio::time::{Instant, sleep_until};

use super::{
    SHARDS, Store, StoreError, found,
    verify::{Stamp, hash},
};
use crate::{blocking, shutdown::Shutdown};

/// A pass over the store does not begin sooner than this after the one before.
const PASS_INTERVAL: Duration = Duration::from_secs(24 * 3600);
/// Where the disk fails it is tried again after this.
const RETRY: Duration = Duration::from_secs(600);
/// Bytes hashed in one go.
const SLICE_BYTES: u64 = 4 * 1024 * 1024;

/// A blob being looked at.
struct Look {
    store: Store,
    digest: Digest,
    file: Arc<File>,
    stamp: Stamp,
    /// How much was hashed.
    at: u64,
    hasher: Hasher,
    /// Keep out of memory what is read for this alone.
    is_cold: bool,
}

/// How a look goes.
enum Looked {
    On(Box<Look>),
    Done { is_sound: bool },
}

/// What a look at all blobs came to, or has by now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scrubbed {
    /// Blobs hashed to their end.
    pub blobs: u64,
    /// Bytes hashed.
    pub bytes: u64,
    /// Blobs whose copy was bad.
    pub rotten: u64,
}

impl Store {
    /// Hashes every blob again, at `bytes_per_second`, until shutdown. Bad copies are set aside.
    pub async fn scrub(self, bytes_per_second: NonZeroU64, shutdown: Shutdown) {
        tokio::select! {
            biased;
            () = shutdown.requested() => {}
            () = self.scrub_for_ever(bytes_per_second) => {}
        }
    }

    /// Hashes every blob again now, as fast as it goes, also what was checked not long ago. Bad
    /// copies are set aside. `note` is told how far it is; dropping it ends it.
    ///
    /// # Errors
    /// When the disk fails.
    pub async fn scrub_now(&self, mut note: impl FnMut(Scrubbed)) -> Result<Scrubbed, StoreError> {
        let mut scrubbed = Scrubbed::default();
        for part in 0..SHARDS {
            let store = self.clone();
            for digest in joined(blocking::spawn(move || store.shard(part)).await)? {
                let store = self.clone();
                let mut next = joined(blocking::spawn(move || store.look_again(digest)).await)?;
                while let Some(look) = next.take() {
                    let (bytes, looked) = joined(blocking::spawn(move || look.slice()).await)?;
                    scrubbed.bytes += bytes;
                    match looked {
                        Looked::On(look) => next = Some(*look),
                        Looked::Done { is_sound } => {
                            scrubbed.blobs += 1;
                            scrubbed.rotten += u64::from(!is_sound);
                        }
                    }
                    note(scrubbed);
                }
            }
        }
        Ok(scrubbed)
    }

    async fn scrub_for_ever(&self, rate: NonZeroU64) {
        let mut part = self.scrubbed_to();
        loop {
            let began = Instant::now();
            while part < SHARDS {
                match self.scrub_part(part, rate).await {
                    Ok(()) => part += 1,
                    Err(error) => {
                        tracing::warn!(%error, "blobs cannot be checked");
                        sleep_until(Instant::now() + RETRY).await;
                    }
                }
            }
            part = 0;
            self.note_scrubbed_to(part);
            sleep_until(began + PASS_INTERVAL).await;
        }
    }

    async fn scrub_part(&self, part: usize, rate: NonZeroU64) -> Result<(), StoreError> {
        let store = self.clone();
        let digests = joined(blocking::spawn(move || store.shard(part)).await)?;
        let is_empty = digests.is_empty();
        for digest in digests {
            let store = self.clone();
            let mut next = joined(blocking::spawn(move || store.look(digest)).await)?;
            while let Some(look) = next {
                let began = Instant::now();
                let (bytes, looked) = joined(blocking::spawn(move || look.slice()).await)?;
                self.inner.metrics.scrubbed_bytes.inc_by(bytes);
                sleep_until(began + Duration::from_secs_f64(bytes as f64 / rate.get() as f64)).await;
                next = match looked {
                    Looked::On(look) => Some(*look),
                    Looked::Done { .. } => None,
                };
            }
        }
        if !is_empty {
            self.note_scrubbed_to(part + 1);
        }
        Ok(())
    }

    /// Opens a blob to look at it, unless it is gone or was checked not long ago.
    fn look(&self, digest: Digest) -> Result<Option<Look>, StoreError> {
        let look = self.look_again(digest)?;
        Ok(look.filter(|look| !self.inner.is_sound(&digest, look.stamp)))
    }

    /// As [`Store::look`], however long ago it was checked.
    fn look_again(&self, digest: Digest) -> Result<Option<Look>, StoreError> {
        let Some(file) = found(File::open(self.inner.layout.blob(&digest)), "open a blob")? else {
            return Ok(None);
        };
        let stamp = Stamp::of(&file.metadata().map_err(StoreError::when("look at a blob"))?);
        let is_cold = !self.inner.hot.contains(&digest);
        let hasher = Hasher::new(digest.algorithm());
        Ok(Some(Look { store: self.clone(), digest, file: Arc::new(file), stamp, at: 0, hasher, is_cold }))
    }

    fn scrubbed_to(&self) -> usize {
        let text = fs::read_to_string(self.inner.layout.scrubbed()).unwrap_or_default();
        text.trim().parse().unwrap_or_default()
    }

    /// Losing it costs another look at the same blobs.
    fn note_scrubbed_to(&self, part: usize) {
        if let Err(error) = fs::write(self.inner.layout.scrubbed(), part.to_string()) {
            tracing::debug!(%error, "cannot note which blobs were checked");
        }
    }
}

impl Look {
    /// Hashes the next bytes; returns how many, and how it goes on.
    fn slice(mut self) -> Result<(u64, Looked), StoreError> {
        let wanted = SLICE_BYTES.min(self.stamp.size - self.at);
        let end = self.at + wanted;
        hash(&self.file, self.at..end, &mut self.hasher)?;
        if let Some(length) = NonZeroU64::new(wanted).filter(|_| self.is_cold) {
            // Advice alone.
            let _ = fadvise(&self.file, self.at, Some(length), Advice::DontNeed);
        }
        self.at = end;
        if self.at < self.stamp.size {
            return Ok((wanted, Looked::On(Box::new(self))));
        }
        let actual = self.hasher.finish();
        let is_sound = self.store.inner.judge(&self.digest, &self.file, self.stamp, actual);
        Ok((wanted, Looked::Done { is_sound }))
    }
}

fn joined<T>(done: Result<Result<T, StoreError>, tokio::task::JoinError>) -> Result<T, StoreError> {
    done.unwrap_or_else(|lost| Err(StoreError::io("check blobs", io::Error::other(lost))))
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::FileExt as _, path::Path};

    use outport_proto::Algorithm;

    use super::*;

    const RATE: NonZeroU64 = NonZeroU64::MAX;

    fn put(store: &Store, content: &[u8]) -> Digest {
        let digest = Digest::sha256(content);
        let mut ingest = store.ingest(Algorithm::Sha256).unwrap();
        ingest.write(content).unwrap();
        ingest.commit(&digest).unwrap();
        digest
    }

    fn flip(root: &Path, digest: &Digest) {
        let path = root.join("blobs/sha256").join(&digest.hex()[..2]).join(digest.hex());
        File::options().write(true).open(path).unwrap().write_all_at(b"!", 0).unwrap();
    }

    #[tokio::test]
    async fn rot_is_found_before_anybody_reads_it_and_the_look_goes_on_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let contents: Vec<Vec<u8>> = (0..20_u8).map(|seed| vec![seed; 100_000]).collect();
        let (store, _) = Store::open(dir.path()).unwrap();
        let digests: Vec<Digest> = contents.iter().map(|content| put(&store, content)).collect();
        drop(store);
        digests[..2].iter().for_each(|digest| flip(dir.path(), digest));

        let (store, _) = Store::open(dir.path()).unwrap();
        for part in 0..SHARDS / 4 {
            store.scrub_part(part, RATE).await.unwrap();
        }
        let halfway = store.scrubbed_to();
        assert!(halfway > 0 && halfway <= SHARDS / 4, "{halfway}");
        drop(store);
        let (store, _) = Store::open(dir.path()).unwrap();
        for part in store.scrubbed_to()..SHARDS {
            store.scrub_part(part, RATE).await.unwrap();
        }
        for part in 0..SHARDS / 4 {
            store.scrub_part(part, RATE).await.unwrap();
        }
        for (at, digest) in digests.iter().enumerate() {
            assert_eq!(store.size(digest).unwrap().is_some(), at >= 2, "blob {at}");
        }
        assert_eq!(fs::read_dir(dir.path().join("quarantine")).unwrap().count(), 2);
        let scrubbed = store.inner.metrics.scrubbed_bytes.get();
        store.scrub_part(usize::from(digests[3].as_bytes()[0]), RATE).await.unwrap();
        assert_eq!(store.inner.metrics.scrubbed_bytes.get(), scrubbed, "it was checked a moment ago");
    }

    #[tokio::test]
    async fn everything_is_looked_at_when_somebody_asks_for_it() {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = Store::open(dir.path()).unwrap();
        let digests: Vec<Digest> = (0..5_u8).map(|seed| put(&store, &vec![seed; 1000])).collect();
        put(&store, &vec![9; 9 << 20]);
        let bytes = 5 * 1000 + (9 << 20);
        let all = Scrubbed { blobs: 6, bytes, rotten: 0 };
        let mut noted = Vec::new();
        assert_eq!(store.scrub_now(|so_far| noted.push(so_far)).await.unwrap(), all, "though just taken in");
        assert!(noted.len() == 8 && noted.is_sorted_by_key(|so_far| so_far.bytes), "{noted:?}");
        flip(dir.path(), &digests[3]);
        assert_eq!(store.scrub_now(drop).await.unwrap(), Scrubbed { rotten: 1, ..all });
        assert_eq!(store.size(&digests[3]).unwrap(), None);
        let left = Scrubbed { blobs: 5, bytes: bytes - 1000, rotten: 0 };
        assert_eq!(store.scrub_now(drop).await.unwrap(), left);
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_no_faster_than_it_may() {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = Store::open(dir.path()).unwrap();
        let digest = put(&store, &vec![1; 9 << 20]);
        drop(store);
        let (store, _) = Store::open(dir.path()).unwrap();
        let began = Instant::now();
        store.scrub_part(usize::from(digest.as_bytes()[0]), NonZeroU64::new(1 << 20).unwrap()).await.unwrap();
        assert!(began.elapsed() >= Duration::from_secs(9));
    }
}
