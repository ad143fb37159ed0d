//! The sums of the state hash by bucket, and the walk over all rows that finds them.
//!
//! Sums live in memory alone. A walk adds up the rows in key order while events go on changing
//! them: what changes before the walk's place is taken into its sums, what changes behind it will
//! be met there. When it is through, its sums are those of what the index holds, and are kept up
//! to date with every change from then on. They add up to the state hash, which is kept with the
//! rows, unless rows were lost or came without an event.

use outport_proto::{
    Offset,
    statehash::{self, BUCKETS, Fact, StateHash},
};

use super::{
    IndexError,
    key::{self, Parts, Table},
    kv::Row,
    row,
};

/// The tables whose rows are facts, in key order.
pub(super) const FACTS: [Table; 3] = [Table::Link, Table::Manifest, Table::Tag];

/// The sum of every bucket, and since when it has had no other content.
#[derive(Clone, Debug)]
pub(super) struct Sums {
    sums: Vec<StateHash>,
    since: Vec<Offset>,
}

impl Sums {
    fn nothing(at: Offset) -> Self {
        Self { sums: vec![StateHash::EMPTY; BUCKETS], since: vec![at; BUCKETS] }
    }

    /// The sum of a bucket, and since when it is that.
    pub(super) fn of(&self, bucket: u16) -> (StateHash, Offset) {
        let at = usize::from(bucket) % BUCKETS;
        (self.sums[at], self.since[at])
    }

    /// All sums in order.
    pub(super) fn all(&self) -> impl Iterator<Item = StateHash> {
        self.sums.iter().copied()
    }

    /// The hash of everything.
    pub(super) fn total(&self) -> StateHash {
        let mut total = StateHash::EMPTY;
        self.sums.iter().for_each(|sum| total.include(sum));
        total
    }

    fn take(&mut self, change: &Change) {
        let sum = &mut self.sums[usize::from(change.bucket) % BUCKETS];
        if change.gained { sum.include(&change.hash) } else { sum.exclude(&change.hash) }
    }

    fn touch(&mut self, bucket: u16, at: Offset) {
        let since = &mut self.since[usize::from(bucket) % BUCKETS];
        *since = at.max(*since);
    }
}

/// A fact that began or ended.
#[derive(Debug)]
pub(super) struct Change {
    bucket: u16,
    hash: StateHash,
    gained: bool,
    /// Whether a walk under way has passed its row.
    walked: bool,
}

/// A walk under way.
#[derive(Debug)]
pub(super) struct Walk {
    /// Everything before this key is walked.
    pub(super) cursor: Vec<u8>,
    /// Rows met.
    pub(super) rows: u64,
    sums: Sums,
}

impl Walk {
    /// The table it is in; `None` when it is through.
    pub(super) fn table(&self) -> Option<Table> {
        FACTS.into_iter().find(|table| self.cursor.first() == Some(&(*table as u8)))
    }

    /// Takes in the rows that come next in its table. `is_last`: there are no more in it.
    pub(super) fn take_in(&mut self, page: &[Row], is_last: bool) -> Result<(), IndexError> {
        for row in page {
            let change = with_fact(row, |fact| Change::of(fact, StateHash::of(fact), true, false))?;
            self.sums.take(&change);
        }
        self.rows += page.len() as u64;
        if let Some((key, _)) = page.last() {
            self.cursor.clone_from(key);
            self.cursor.push(0);
        }
        if is_last {
            let here = self.cursor.first().copied();
            let next = FACTS.into_iter().find(|table| Some(*table as u8) > here);
            self.cursor = next.map_or_else(|| vec![u8::MAX], key::table);
        }
        Ok(())
    }
}

impl Change {
    fn of(fact: &Fact<'_>, hash: StateHash, gained: bool, walked: bool) -> Self {
        Self { bucket: fact.bucket(), hash, gained, walked }
    }
}

/// Sums as far as they are known.
#[derive(Debug, Default)]
pub(super) struct Tally {
    known: Option<Sums>,
    walk: Option<Walk>,
}

impl Tally {
    /// Whether anybody wants to know of changes.
    pub(super) const fn is_kept(&self) -> bool {
        self.known.is_some() || self.walk.is_some()
    }

    /// A change of the state by a fact, whose hash is `hash`, if anybody wants to know.
    pub(super) fn change(&self, fact: &Fact<'_>, hash: StateHash, gained: bool) -> Option<Change> {
        let walked = self.walk.as_ref().is_some_and(|walk| key::of_fact(fact) < walk.cursor);
        self.is_kept().then(|| Change::of(fact, hash, gained, walked))
    }

    /// Takes in changes that are stored now.
    pub(super) fn take(&mut self, changes: &[Change]) {
        for change in changes {
            if let Some(known) = &mut self.known {
                known.take(change);
            }
            if let Some(walk) = self.walk.as_mut().filter(|_| change.walked) {
                walk.sums.take(change);
            }
        }
    }

    /// Notes that buckets have other rows from `at` on.
    pub(super) fn touch(&mut self, buckets: &[u16], at: Offset) {
        let kept = [self.known.as_mut(), self.walk.as_mut().map(|walk| &mut walk.sums)];
        for sums in kept.into_iter().flatten() {
            buckets.iter().for_each(|bucket| sums.touch(*bucket, at));
        }
    }

    /// The sums, when a walk was through.
    pub(super) const fn known(&self) -> Option<&Sums> {
        self.known.as_ref()
    }

    /// The walk under way.
    pub(super) const fn walk(&mut self) -> Option<&mut Walk> {
        self.walk.as_mut()
    }

    /// Begins a walk, from the first row, where everything up to `at` is applied.
    pub(super) fn begin_walk(&mut self, at: Offset) {
        self.walk = Some(Walk { cursor: key::table(FACTS[0]), rows: 0, sums: Sums::nothing(at) });
    }

    /// The walk is through: its sums are the known ones from here on. Returns the rows it met.
    pub(super) fn end_walk(&mut self) -> u64 {
        let Some(walk) = self.walk.take() else { return 0 };
        self.known = Some(walk.sums);
        walk.rows
    }

    /// Forgets everything: nobody can say what the index holds.
    pub(super) fn forget(&mut self) {
        *self = Self::default();
    }
}

/// The bucket that a row belongs to, a tombstone's being that of what it deleted.
pub(super) fn bucket_of_key(key: &[u8]) -> Option<u16> {
    let (table, about) = key.split_first()?;
    let kind = match *table {
        t if t == Table::Tag as u8 || t == Table::DeadTag as u8 => Table::Tag,
        t if t == Table::Manifest as u8 || t == Table::DeadManifest as u8 => Table::Manifest,
        t if t == Table::Link as u8 || t == Table::DeadLink as u8 => Table::Link,
        _ => return None,
    };
    let mut crc = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
    crc.update(&[kind as u8]);
    crc.update(about);
    Some(statehash::bucket_of_crc(crc.finalize() as u32))
}

/// What `use_fact` makes of the fact that a row states.
pub(super) fn with_fact<T>(
    (key, value): &Row,
    use_fact: impl FnOnce(&Fact<'_>) -> T,
) -> Result<T, IndexError> {
    let fields = row::unseal(key, value)?;
    let mut parts = Parts::of(key);
    let repo = &parts.repo()?;
    let is_of = |table: Table| key.first() == Some(&(table as u8));
    if is_of(Table::Tag) {
        let (tag, digest) = (&parts.last()?, &row::decode_tag(&fields)?.digest);
        return Ok(use_fact(&Fact::Tag { repo, tag, digest }));
    }
    let digest = &parts.digest()?;
    Ok(use_fact(&if is_of(Table::Link) {
        Fact::Link { repo, digest }
    } else {
        Fact::Manifest { repo, digest }
    }))
}

#[cfg(test)]
mod tests {
    use outport_proto::{Algorithm, Digest, RepoName, Tag};

    use super::*;

    #[test]
    fn a_row_is_in_the_bucket_of_its_fact() {
        let (repo, tag): (RepoName, Tag) = ("team/app".parse().unwrap(), "1".parse().unwrap());
        for digest in [Digest::sha256(b"1"), Digest::of(Algorithm::Sha512, b"1")] {
            let (repo, tag, digest) = (&repo, &tag, &digest);
            for (fact, dead) in [
                (Fact::Tag { repo, tag, digest }, Table::DeadTag),
                (Fact::Manifest { repo, digest }, Table::DeadManifest),
                (Fact::Link { repo, digest }, Table::DeadLink),
            ] {
                let mut key = key::of_fact(&fact);
                assert_eq!(bucket_of_key(&key), Some(fact.bucket()));
                key[0] = dead as u8;
                assert_eq!(bucket_of_key(&key), Some(fact.bucket()));
            }
        }
        assert_eq!(bucket_of_key(&key::state()), None);
        assert!(FACTS.is_sorted(), "the walk goes in key order");
    }
}
