//! A transaction: reads that see its own writes, and one atomic batch at the end.

use std::{collections::BTreeSet, mem};

use bytes::Bytes;
use outport_proto::{
    Digest, Offset, Reference, RepoName, Tag,
    statehash::{Fact, StateHash},
};

use super::{
    IndexError, TagEntry,
    hot::{Hot, HotKey},
    key::{self, Table},
    kv::{Batch, Kv, Rows},
    row::{self, Held, Link, State},
    sums::{self, Change, Tally},
    tombstones::Tombstones,
    view,
};

/// Rows from which on a deletion is stored in steps, so that readers do not wait for all of it.
const STEP_ROWS_MAX: usize = 4096;

/// Pending writes over the store, and what they do to the state.
pub(super) struct Tx<'a> {
    kv: &'a dyn Kv,
    hot: &'a Hot,
    /// The state the store holds.
    stored: &'a mut State,
    /// The sums of what the store holds.
    tally: &'a mut Tally,
    pending: Batch,
    /// References that no longer lead to what they led to before.
    stale: Vec<HotKey>,
    changes: Vec<Change>,
    /// Buckets with other rows than before.
    touched: Vec<u16>,
    hash: StateHash,
    pub(super) applied: Offset,
    pub(super) day: u64,
    tombstones: Tombstones,
    /// Newest event of which anything is here.
    at: Offset,
    /// The states between events.
    pub(super) passed: Vec<(Offset, [u8; 32])>,
}

impl<'a> Tx<'a> {
    /// A transaction on top of what is stored.
    pub(super) fn new(kv: &'a dyn Kv, hot: &'a Hot, stored: &'a mut State, tally: &'a mut Tally) -> Self {
        let State { applied, hash, tombstones, day } = *stored;
        Self {
            hash: StateHash::from_bytes(&hash),
            applied,
            at: applied,
            day,
            tombstones,
            kv,
            hot,
            stored,
            tally,
            pending: Batch::new(),
            stale: Vec::new(),
            changes: Vec::new(),
            touched: Vec::new(),
            passed: Vec::new(),
        }
    }

    /// What follows comes from the event at `offset`.
    pub(super) fn begin_event(&mut self, offset: Offset) {
        self.at = self.at.max(offset);
    }

    /// All of that event is here.
    pub(super) fn end_event(&mut self, offset: Offset) {
        if offset > self.applied {
            self.applied = offset;
            self.passed.push((offset, self.hash.bytes()));
        }
    }

    /// What is here came all at once, and is what the events up to `offset` led to, or newer.
    pub(super) fn begin_anew(&mut self, offset: Offset) {
        self.applied = self.applied.max(offset);
        self.tally.forget();
    }

    /// A fact becomes true that was not.
    pub(super) fn gain(&mut self, fact: &Fact<'_>) {
        let hash = StateHash::of(fact);
        self.hash.include(&hash);
        self.changes.extend(self.tally.change(fact, hash, true));
    }

    /// A fact ceases to be true.
    pub(super) fn lose(&mut self, fact: &Fact<'_>) {
        let hash = StateHash::of(fact);
        self.hash.exclude(&hash);
        self.changes.extend(self.tally.change(fact, hash, false));
    }

    fn touch(&mut self, key: &[u8]) {
        if self.tally.is_kept() {
            self.touched.extend(sums::bucket_of_key(key));
        }
    }

    /// Stores what is pending, atomically and with the state it leads to, and makes it visible.
    pub(super) fn store(&mut self) -> Result<State, IndexError> {
        let (tombstones, day) = (self.tombstones, self.day);
        let state = State { applied: self.applied, hash: self.hash.bytes(), tombstones, day };
        self.pending.extend([state_row(&state)]);
        self.kv.write(mem::take(&mut self.pending))?;
        self.tally.take(&mem::take(&mut self.changes));
        self.tally.touch(&mem::take(&mut self.touched), self.at);
        self.hot.invalidate(&mem::take(&mut self.stale));
        *self.stored = state;
        Ok(state)
    }

    /// Stores what is pending if it is much. Only where the event in progress, applied again,
    /// would go on from there: `applied` does not cover it yet.
    pub(super) fn store_step(&mut self) -> Result<(), IndexError> {
        if self.pending.len() >= STEP_ROWS_MAX {
            self.store()?;
        }
        Ok(())
    }

    pub(super) fn put(&mut self, key: Vec<u8>, fields: &[u8]) {
        let value = row::seal(&key, fields);
        self.touch(&key);
        self.pending.insert(key, Some(value));
    }

    pub(super) fn remove(&mut self, key: Vec<u8>) {
        self.touch(&key);
        self.pending.insert(key, None);
    }

    pub(super) fn get(&self, key: &[u8]) -> Result<Option<Bytes>, IndexError> {
        let value = match self.pending.get(key) {
            Some(value) => value.clone(),
            None => self.kv.get(key)?,
        };
        value.map(|value| row::unseal(key, &value)).transpose()
    }

    /// All keys that begin with `prefix`.
    pub(super) fn keys(&self, prefix: Vec<u8>) -> Result<BTreeSet<Vec<u8>>, IndexError> {
        let mut keys = BTreeSet::new();
        for (key, value) in self.pending_under(&prefix) {
            if value.is_some() {
                keys.insert(key.clone());
            }
        }
        for row in Rows::all(self.kv, prefix) {
            let (key, _) = row?;
            if !self.pending.contains_key(&key) {
                keys.insert(key);
            }
        }
        Ok(keys)
    }

    /// Whether any key begins with `prefix`.
    pub(super) fn has_any(&self, prefix: Vec<u8>) -> Result<bool, IndexError> {
        if self.pending_under(&prefix).any(|(_, value)| value.is_some()) {
            return Ok(true);
        }
        for row in Rows::all(self.kv, prefix) {
            if !self.pending.contains_key(&row?.0) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn pending_under(&self, prefix: &[u8]) -> impl Iterator<Item = (&Vec<u8>, &Option<Bytes>)> {
        self.pending.range(prefix.to_vec()..).take_while(move |(key, _)| key.starts_with(prefix))
    }

    pub(super) fn tag(&self, repo: &RepoName, tag: &Tag) -> Result<Option<TagEntry>, IndexError> {
        let fields = self.get(&key::repo_tag(Table::Tag, repo, tag.as_str()))?;
        fields.map(|fields| row::decode_tag(&fields)).transpose()
    }

    pub(super) fn held(&self, repo: &RepoName, digest: &Digest) -> Result<Option<Held>, IndexError> {
        let fields = self.get(&key::repo_digest(Table::Manifest, repo, digest))?;
        fields.map(|fields| row::decode_held(repo, digest, &fields)).transpose()
    }

    pub(super) fn link(&self, repo: &RepoName, digest: &Digest) -> Result<Option<Link>, IndexError> {
        self.link_under(&key::repo_digest(Table::Link, repo, digest))
    }

    pub(super) fn link_under(&self, key: &[u8]) -> Result<Option<Link>, IndexError> {
        let fields = self.get(key)?;
        fields.map(|fields| row::decode_link(&fields)).transpose()
    }

    /// The offset of the tombstone in `table` under the key that `key` makes, if there is one: where
    /// there is none at all, no key is made.
    pub(super) fn dead_in(
        &self,
        table: Table,
        key: impl FnOnce(Table) -> Vec<u8>,
    ) -> Result<Option<Offset>, IndexError> {
        if self.tombstones.may_have(&[table as u8]) { self.dead(&key(table)) } else { Ok(None) }
    }

    /// The offset of the tombstone under `key`, if there is one.
    pub(super) fn dead(&self, key: &[u8]) -> Result<Option<Offset>, IndexError> {
        if !self.tombstones.may_have(key) {
            return Ok(None);
        }
        self.get(key)?.map(|fields| row::decode_offset(&fields)).transpose()
    }

    /// Sets the tombstone under `key`, unless there is a newer one.
    pub(super) fn bury(&mut self, key: Vec<u8>, offset: Offset) -> Result<(), IndexError> {
        let dead = self.dead(&key)?;
        if dead.is_none() {
            self.tombstones.added(&key);
        }
        if dead.is_none_or(|dead| dead < offset) {
            self.put(key, &row::encode_offset(offset));
        }
        Ok(())
    }

    /// Removes the tombstone under `key`, where there is one.
    pub(super) fn unbury(&mut self, key: Vec<u8>) {
        self.tombstones.removed(&key);
        self.remove(key);
    }

    /// Stores a manifest's bytes once, whoever else holds it.
    pub(super) fn put_body(&mut self, digest: &Digest, bytes: &Bytes) -> Result<(), IndexError> {
        for (piece, part) in (0_u16..).zip(bytes.chunks(view::BODY_PIECE_BYTES)) {
            let key = key::body(digest, piece);
            if self.get(&key)?.is_none() {
                self.put(key, part);
            }
        }
        Ok(())
    }

    /// Removes the bytes of a manifest.
    pub(super) fn remove_body(&mut self, digest: &Digest) -> Result<(), IndexError> {
        for key in self.keys(key::of_digest(Table::Body, digest))? {
            self.remove(key);
        }
        Ok(())
    }

    /// Notes that a tag no longer leads to what it led to.
    pub(super) fn tag_is_stale(&mut self, repo: &RepoName, tag: &Tag) {
        self.stale.push(HotKey { repo: repo.clone(), reference: Reference::Tag(tag.clone()) });
    }

    /// Notes that a digest no longer leads to what it led to.
    pub(super) fn digest_is_stale(&mut self, repo: &RepoName, digest: &Digest) {
        self.stale.push(HotKey { repo: repo.clone(), reference: Reference::Digest(*digest) });
    }
}

/// The row that says which state the others are.
pub(super) fn state_row(state: &State) -> (Vec<u8>, Option<Bytes>) {
    let key = key::state();
    let value = row::seal(&key, &row::encode_state(state));
    (key, Some(value))
}
