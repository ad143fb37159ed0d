//! Tokens verified lately, so that the many requests of one pull check one signature.

use std::{
    collections::hash_map::RandomState,
    hash::BuildHasher as _,
    sync::{Mutex, PoisonError},
};

use lru::LruCache;

/// Tokens at most.
const TOKENS_MAX: usize = 8192;
/// Bytes of tokens at most.
const TOKEN_BYTES_TOTAL_MAX: usize = 4 * 1024 * 1024;
/// Independent parts, each with its own lock, so that threads rarely meet.
const SHARDS: usize = 16;
/// Bytes of a token's end that are hashed: they belong to its signature and differ in all tokens.
const HASHED_BYTES: usize = 32;

/// Verified tokens, least recently used out first. An entry is found by a hash under a key random
/// to this process, so nobody can aim at a slot, and believed only when the whole token is equal.
pub(super) struct TokenCache<V> {
    shards: [Mutex<Shard<V>>; SHARDS],
    hasher: RandomState,
}

struct Shard<V> {
    entries: LruCache<u64, (Box<str>, V)>,
    bytes: usize,
}

impl<V: Clone> TokenCache<V> {
    /// An empty cache.
    pub(super) fn new() -> Self {
        let shard = || Mutex::new(Shard { entries: LruCache::unbounded(), bytes: 0 });
        Self { shards: std::array::from_fn(|_| shard()), hasher: RandomState::new() }
    }

    /// What was kept for exactly this token.
    pub(super) fn get(&self, token: &str) -> Option<V> {
        let (hash, shard) = self.place(token);
        let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
        let (kept, value) = shard.entries.get(&hash)?;
        (**kept == *token).then(|| value.clone())
    }

    /// Keeps `value` for this token.
    pub(super) fn insert(&self, token: &str, value: V) {
        let (hash, shard) = self.place(token);
        let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
        shard.bytes += token.len();
        if let Some((_, (replaced, _))) = shard.entries.push(hash, (token.into(), value)) {
            shard.bytes -= replaced.len();
        }
        while shard.entries.len() > TOKENS_MAX / SHARDS || shard.bytes > TOKEN_BYTES_TOTAL_MAX / SHARDS {
            let Some((_, (oldest, _))) = shard.entries.pop_lru() else { break };
            shard.bytes -= oldest.len();
        }
    }

    fn place(&self, token: &str) -> (u64, &Mutex<Shard<V>>) {
        let bytes = token.as_bytes();
        let hash = self.hasher.hash_one(&bytes[bytes.len().saturating_sub(HASHED_BYTES)..]);
        (hash, &self.shards[(hash >> 60) as usize % SHARDS])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_token_finds_its_entry() {
        let cache = TokenCache::new();
        let tail = "s".repeat(HASHED_BYTES);
        cache.insert(&format!("a.{tail}"), 1);
        assert_eq!(cache.get(&format!("a.{tail}")), Some(1));
        assert_eq!(cache.get(&format!("b.{tail}")), None);
        assert_eq!(cache.get(&tail), None);
        assert_eq!(cache.get(""), None);
        cache.insert(&format!("b.{tail}"), 2);
        assert_eq!(cache.get(&format!("b.{tail}")), Some(2));
        assert_eq!(cache.get(&format!("a.{tail}")), None);
    }

    #[test]
    fn entries_and_bytes_are_bounded() {
        let cache = TokenCache::new();
        for number in 0..2 * TOKENS_MAX {
            cache.insert(&format!("{number:0600}"), number);
        }
        let (entries, bytes) = cache.shards.iter().fold((0, 0), |(entries, bytes), shard| {
            let shard = shard.lock().unwrap();
            assert_eq!(shard.bytes, shard.entries.iter().map(|(_, (token, _))| token.len()).sum::<usize>());
            (entries + shard.entries.len(), bytes + shard.bytes)
        });
        assert!(entries <= TOKENS_MAX && bytes <= TOKEN_BYTES_TOTAL_MAX, "{entries} {bytes}");
        assert_eq!(cache.get(&format!("{:0600}", 2 * TOKENS_MAX - 1)), Some(2 * TOKENS_MAX - 1));
    }
}
