//! Manifests asked for lately, kept in memory up to a limit in bytes.
//!
//! A reader that misses reads the store and offers what it found. An apply in between may have
//! made that stale, so each shard counts its invalidations, and an offer made on an old count is
//! refused: whoever finds an entry finds what the store held after the last apply.

use std::{
    hash::{DefaultHasher, Hash, Hasher as _},
    sync::{Mutex, MutexGuard, PoisonError},
};

use lru::LruCache;
use outport_proto::{Reference, RepoName};

use super::Manifest;
use crate::{bounds, random};

/// Enough that readers on a few cores seldom meet, and few enough that one shard's share of the
/// limit still holds the largest inline manifest.
const SHARDS: usize = 8;
/// What an entry costs besides its texts and bytes: key, value, links and table slot.
const ENTRY_BYTES: usize = 384;

/// What a manifest is found by.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct HotKey {
    pub(super) repo: RepoName,
    pub(super) reference: Reference,
}

impl HotKey {
    fn bytes(&self, manifest: &Manifest) -> usize {
        let reference = match &self.reference {
            Reference::Tag(tag) => tag.as_str().len(),
            Reference::Digest(_) => 0,
        };
        let bytes = manifest.bytes.as_ref().map_or(0, |bytes| bytes.len());
        ENTRY_BYTES + self.repo.as_str().len() + reference + manifest.media_type.len() + bytes
    }
}

/// The cache.
pub(super) struct Hot {
    shards: [Mutex<Shard>; SHARDS],
    /// Which shard a key is in nobody knows before.
    seed: u64,
    shard_bytes_max: usize,
}

struct Shard {
    manifests: LruCache<HotKey, Manifest>,
    bytes: usize,
    invalidations: u64,
}

/// How often the shard of a key had been invalidated when the key was not found there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Missed(u64);

impl Hot {
    /// An empty cache of at most `bytes_max` bytes.
    pub(super) fn new(bytes_max: usize) -> Self {
        let shard = || Mutex::new(Shard { manifests: LruCache::unbounded(), bytes: 0, invalidations: 0 });
        Self {
            shards: std::array::from_fn(|_| shard()),
            seed: random::number(),
            shard_bytes_max: bytes_max / SHARDS,
        }
    }

    /// The manifest under `key`.
    pub(super) fn get(&self, key: &HotKey) -> Result<Manifest, Missed> {
        let mut shard = self.shard(key);
        match shard.manifests.get(key) {
            Some(manifest) => Ok(manifest.clone()),
            None => Err(Missed(shard.invalidations)),
        }
    }

    /// Offers what the store held after the miss.
    pub(super) fn offer(&self, key: HotKey, manifest: &Manifest, missed: Missed) {
        let bytes = key.bytes(manifest);
        let mut shard = self.shard(&key);
        if shard.invalidations != missed.0 || bytes > self.shard_bytes_max {
            return;
        }
        shard.bytes += bytes;
        if let Some((key, old)) = shard.manifests.push(key, manifest.clone()) {
            shard.bytes -= key.bytes(&old);
        }
        while shard.bytes > self.shard_bytes_max {
            let Some((key, old)) = shard.manifests.pop_lru() else { break };
            shard.bytes -= key.bytes(&old);
        }
        bounds::note("bytes of hot manifests", shard.bytes, self.shard_bytes_max);
    }

    /// Forgets keys whose manifests changed in the store; to be called after the change is there.
    pub(super) fn invalidate(&self, keys: &[HotKey]) {
        for key in keys {
            let mut shard = self.shard(key);
            shard.invalidations += 1;
            if let Some((key, old)) = shard.manifests.pop_entry(key) {
                shard.bytes -= key.bytes(&old);
            }
        }
    }

    /// Forgets everything; to be called after the store is empty.
    pub(super) fn clear(&self) {
        for shard in &self.shards {
            let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            shard.invalidations += 1;
            shard.manifests.clear();
            shard.bytes = 0;
        }
    }

    fn shard(&self, key: &HotKey) -> MutexGuard<'_, Shard> {
        let mut hasher = DefaultHasher::new();
        (self.seed, key).hash(&mut hasher);
        let shard = hasher.finish() as usize % SHARDS;
        self.shards[shard].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use outport_proto::Digest;

    use super::*;

    fn key(tag: &str) -> HotKey {
        HotKey { repo: "team/app".parse().unwrap(), reference: Reference::Tag(tag.parse().unwrap()) }
    }

    fn manifest(len: usize) -> Manifest {
        let bytes = Bytes::from(vec![7; len]);
        Manifest {
            digest: Digest::sha256(&bytes),
            media_type: "m".into(),
            size: len as u64,
            bytes: Some(bytes),
        }
    }

    #[test]
    fn what_was_read_before_an_invalidation_is_not_kept() {
        let hot = Hot::new(1 << 20);
        let missed = hot.get(&key("1")).unwrap_err();
        hot.invalidate(&[key("1")]);
        hot.offer(key("1"), &manifest(1), missed);
        let missed = hot.get(&key("1")).unwrap_err();
        hot.offer(key("1"), &manifest(2), missed);
        assert_eq!(hot.get(&key("1")).unwrap(), manifest(2));
        hot.invalidate(&[key("1")]);
        assert!(hot.get(&key("1")).is_err());
    }

    #[test]
    fn the_limit_is_in_bytes_and_the_oldest_goes_first() {
        let limit = SHARDS * 16 * 1024;
        let hot = Hot::new(limit);
        for number in 0..1000 {
            let key = key(&number.to_string());
            if let Err(missed) = hot.get(&key) {
                hot.offer(key, &manifest(1000), missed);
            }
            hot.get(&super::tests::key("0")).unwrap();
        }
        let bytes: usize = hot.shards.iter().map(|shard| shard.lock().unwrap().bytes).sum();
        assert!(bytes <= limit && bytes > limit / 2, "{bytes} of {limit}");
        assert!(hot.get(&key("999")).is_ok(), "the newest is there");
        assert!(hot.get(&key("1")).is_err(), "an old one is not");
        let missed = hot.get(&key("large")).unwrap_err();
        hot.offer(key("large"), &manifest(limit), missed);
        assert!(hot.get(&key("large")).is_err(), "larger than its share: not kept");
        assert!(hot.get(&key("0")).is_ok(), "one in use stays");
    }
}
