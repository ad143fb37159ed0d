//! Making a bucket of this index equal to the same bucket of another.
//!
//! Two buckets may be compared when the offsets over which they had their content overlap: there,
//! one log led to both, and only one of them can be right. What the other one has too much or too
//! little is then set right as it stands, by none of the rules for events: those rules, or what
//! was lost of their outcome, led to the difference.

use std::collections::BTreeMap;

use outport_proto::{
    Offset,
    snapshot::Entry,
    statehash::{BUCKETS, StateHash},
};

use super::{
    Index, IndexError, RowsDiffer, TagEntry, Writer, dump,
    key::{self, Table},
    kv::Rows,
    lock,
    row::Link,
    sums,
    tx::Tx,
};

/// Entries of the buckets that are read at once: beyond that, too much is asked for.
const ENTRIES_MAX: usize = 200_000;
/// How often a bucket that changes while it is read is read again.
const READS_MAX: usize = 3;

/// The sum of a bucket and since when it is that, if sums are known.
type Mark = Option<(StateHash, Offset)>;

/// All that is in a bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// Which one.
    pub bucket: u16,
    /// It has this content since this offset ..
    pub since: Offset,
    /// .. and had it at least until this one. Older than `since`: it changed while it was read.
    pub until: Offset,
    /// Tags, links, and manifests without their bytes.
    pub entries: Vec<Entry>,
    /// The sum of what `entries` say.
    pub sum: StateHash,
}

/// What makes an entry of one bucket equal to that of another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Correction {
    /// It is missing, or another.
    Put {
        /// What it should be.
        entry: Entry,
        /// Whether the fact itself is there, and only said otherwise.
        is_known: bool,
    },
    /// It should not be there.
    Drop(Entry),
}

/// What makes `own` entries of a bucket equal to `theirs`.
pub fn corrections(own: &[Entry], theirs: Vec<Entry>) -> Vec<Correction> {
    let mut left: BTreeMap<_, _> =
        own.iter().filter_map(|entry| Some((key::of_entry(entry)?, entry))).collect();
    let mut corrections = Vec::new();
    for entry in theirs {
        let Some(key) = key::of_entry(&entry) else { continue };
        match left.remove(&key) {
            Some(own) if *own == entry => {}
            own => corrections.push(Correction::Put { is_known: own.is_some(), entry }),
        }
    }
    corrections.extend(left.into_values().map(|entry| Correction::Drop(entry.clone())));
    corrections
}

impl Index {
    /// All there is in the `wanted` buckets, in their order. Reads every row.
    ///
    /// # Errors
    /// As [`Index::walk_on`], and when there is too much in them.
    pub fn buckets(&self, wanted: &[u16], differ: RowsDiffer) -> Result<Vec<Bucket>, IndexError> {
        let mut found = self.read_buckets(wanted, differ)?;
        for _ in 1..READS_MAX {
            let moved: Vec<u16> =
                found.iter().filter(|bucket| bucket.since > bucket.until).map(|b| b.bucket).collect();
            if moved.is_empty() {
                break;
            }
            for again in self.read_buckets(&moved, differ)? {
                if let Some(bucket) = found.iter_mut().find(|bucket| bucket.bucket == again.bucket) {
                    *bucket = again;
                }
            }
        }
        Ok(found)
    }

    fn read_buckets(&self, wanted: &[u16], differ: RowsDiffer) -> Result<Vec<Bucket>, IndexError> {
        self.bucket_sums(differ)?;
        let (before, _) = self.marks(wanted)?;
        let mut contents = self.shared.read(|kv| {
            let mut contents: BTreeMap<u16, (Vec<Entry>, StateHash)> =
                wanted.iter().map(|bucket| (*bucket, Default::default())).collect();
            let mut entries = 0;
            for table in sums::FACTS {
                for row in Rows::all(kv, key::table(table)) {
                    let row = row?;
                    let bucket = sums::bucket_of_key(&row.0).unwrap_or(BUCKETS as u16);
                    let Some((listed, sum)) = contents.get_mut(&bucket) else { continue };
                    entries += 1;
                    if entries > ENTRIES_MAX {
                        let reason = format!("they hold more than {ENTRIES_MAX} entries");
                        return Err(IndexError::Database { action: "read buckets", reason });
                    }
                    sums::with_fact(&row, |fact| sum.add(fact))?;
                    listed.push(dump::entry_without_bytes(table, &row)?);
                }
            }
            Ok(contents)
        })?;
        let (after, applied) = self.marks(wanted)?;
        let mut found = Vec::with_capacity(wanted.len());
        for ((bucket, before), after) in wanted.iter().zip(before).zip(after) {
            let (entries, sum) = contents.remove(bucket).unwrap_or_default();
            let stood_still = before.is_some() && before == after;
            let (since, until) = match before {
                Some((_, since)) if stood_still => (since, applied),
                _ => (Offset::new(u64::MAX, u64::MAX), Offset::ZERO),
            };
            if stood_still && before.is_some_and(|(known, _)| known != sum) {
                return self.doubt(*bucket, differ);
            }
            found.push(Bucket { bucket: *bucket, since, until, entries, sum });
        }
        Ok(found)
    }

    /// The sums of buckets, since when they are that, and the applied offset.
    fn marks(&self, wanted: &[u16]) -> Result<(Vec<Mark>, Offset), IndexError> {
        let writer = self.shared.writer_if_open()?;
        let known = writer.tally.known();
        let marks = wanted.iter().map(|bucket| known.map(|known| known.of(*bucket)));
        Ok((marks.collect(), writer.stored.applied))
    }

    /// The rows of a bucket are not those that changes led to.
    fn doubt<T>(&self, bucket: u16, differ: RowsDiffer) -> Result<T, IndexError> {
        let mut writer = self.shared.writer_if_open()?;
        // Only a walk can say what is there.
        writer.tally.forget();
        drop(writer);
        let reason = format!("the rows of bucket {bucket} do not add up");
        match differ {
            RowsDiffer::Refuse => self.shared.noting_damage(Err(IndexError::Damaged(reason))),
            RowsDiffer::Believe => Err(IndexError::Database { action: "read buckets", reason }),
        }
    }

    /// Makes `corrections` to a bucket, if it is still as it was read, `own`, and may be compared
    /// with one that had its content from `since` until `until`. Returns whether it did.
    ///
    /// # Errors
    /// As [`Index::apply`].
    pub fn mend(
        &self,
        own: &Bucket,
        (since, until): (Offset, Offset),
        corrections: &[Correction],
    ) -> Result<bool, IndexError> {
        self.shared.noting_damage(self.mend_now(own, (since, until), corrections))
    }

    fn mend_now(
        &self,
        own: &Bucket,
        (since, until): (Offset, Offset),
        corrections: &[Correction],
    ) -> Result<bool, IndexError> {
        let mut writer = self.shared.writer_if_open()?;
        let now = writer.tally.known().map(|known| known.of(own.bucket));
        let overlap = own.since.max(since) <= until.min(writer.stored.applied);
        if now != Some((own.sum, own.since)) || !overlap || self.is_deferring() {
            return Ok(false);
        }
        let Writer { stored, tally, .. } = &mut *writer;
        let mut tx = Tx::new(&*self.shared.base, &self.shared.hot, stored, tally);
        for correction in corrections {
            match correction {
                Correction::Put { entry, .. } => tx.set(entry)?,
                Correction::Drop(entry) => tx.unset(entry)?,
            }
        }
        let state = tx.store()?;
        *lock(&self.shared.below.state) = state;
        lock(&self.shared.shown).replace(state);
        Ok(true)
    }
}

impl Tx<'_> {
    /// Puts an entry, whatever else there is.
    fn set(&mut self, entry: &Entry) -> Result<(), IndexError> {
        let (repo, offset) = match entry {
            Entry::Tag { repo, offset, .. } | Entry::Link { repo, offset, .. } => (repo, *offset),
            Entry::Manifest { manifest, offset } => (&manifest.repo, *offset),
            Entry::Tombstone { .. } => return Ok(()),
        };
        if self.is_repository_dead(repo, offset)? {
            self.unbury(key::of_repo(Table::DeadRepository, repo));
        }
        let tombstone = match entry {
            Entry::Tag { tag, .. } => key::repo_tag(Table::DeadTag, repo, tag.as_str()),
            Entry::Link { digest, .. } => key::repo_digest(Table::DeadLink, repo, digest),
            Entry::Manifest { manifest, .. } => key::repo_digest(Table::DeadManifest, repo, &manifest.digest),
            Entry::Tombstone { .. } => return Ok(()),
        };
        if self.dead(&tombstone)?.is_some() {
            self.unbury(tombstone);
        }
        match entry {
            Entry::Tag { repo, tag, digest, offset, time } => {
                let old = self.tag(repo, tag)?;
                self.set_tag(repo, tag, old, TagEntry { digest: *digest, offset: *offset, time: *time });
            }
            Entry::Link { repo, digest, size, offset } => {
                let old = self.link(repo, digest)?;
                let row = key::repo_digest(Table::Link, repo, digest);
                self.set_link(row, (repo, digest), old, Link { size: *size, offset: *offset });
            }
            Entry::Manifest { manifest, offset } => {
                let old = self.held(&manifest.repo, &manifest.digest)?;
                self.set_manifest(manifest, old, *offset)?;
            }
            Entry::Tombstone { .. } => {}
        }
        Ok(())
    }

    /// Removes what an entry says, and buries it, so that the event that put it does not again.
    fn unset(&mut self, entry: &Entry) -> Result<(), IndexError> {
        let now = self.applied;
        match entry {
            Entry::Tag { repo, tag, .. } => {
                let Some(old) = self.tag(repo, tag)? else { return Ok(()) };
                self.drop_tag(repo, tag, &old);
                self.bury(key::repo_tag(Table::DeadTag, repo, tag.as_str()), old.offset.min(now))
            }
            Entry::Link { repo, digest, .. } => {
                let Some(old) = self.link(repo, digest)? else { return Ok(()) };
                self.drop_link(repo, digest);
                self.bury(key::repo_digest(Table::DeadLink, repo, digest), old.offset.min(now))
            }
            Entry::Manifest { manifest, .. } => {
                let (repo, digest) = (&manifest.repo, &manifest.digest);
                let Some(old) = self.held(repo, digest)? else { return Ok(()) };
                self.drop_manifest(&old)?;
                self.bury(key::repo_digest(Table::DeadManifest, repo, digest), old.offset.min(now))
            }
            Entry::Tombstone { .. } => Ok(()),
        }
    }
}
