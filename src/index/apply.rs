//! The rules by which events and snapshot entries change the index.
//!
//! Everything carries the offset of the event that made it. What is put must be newer than what
//! it replaces; a tombstone wins over everything up to and including its offset. So taking in
//! again what was taken in before changes nothing, in whole or in part, and a snapshot taken
//! while the state moved becomes right when the events since are applied to it.
//!
//! A deleted manifest takes its tags along: their tombstones carry the offsets of the tags
//! themselves, not of the deletion, because a tag moved to another manifest before the deletion
//! must survive it whichever of the two is seen first.

use outport_proto::{
    Change, Digest, Event, ManifestPut, Offset, RepoName, Tag,
    snapshot::{Deleted, Entry},
    statehash::Fact,
};

use crate::planted::{Bug, is_planted};

use super::{
    IndexError, TagEntry,
    key::{self, Parts, Table},
    row::{self, Held, Link},
    tx::Tx,
};

impl Tx<'_> {
    /// Applies an event.
    pub(super) fn apply(&mut self, event: &Event) -> Result<(), IndexError> {
        let offset = event.offset;
        self.begin_event(offset);
        self.note_day(event);
        match &event.change {
            Change::BlobCommitted { repo, digest, size } | Change::BlobMounted { repo, digest, size, .. } => {
                self.put_link(repo, digest, Link { size: *size, offset })?;
            }
            Change::ManifestPut(put) => {
                self.put_manifest(put, offset)?;
                for tag in &put.tags {
                    self.put_tag(&put.repo, tag, TagEntry { digest: put.digest, offset, time: event.time })?;
                }
            }
            Change::TagDeleted { repo, tag } => {
                let late = self.tag(repo, tag)?.filter(|_| is_planted(Bug::LatePushOverTombstone));
                if late.is_none_or(|put| put.offset.seq + 20 < offset.seq) {
                    self.delete_tag(repo, tag, offset)?;
                }
            }
            Change::ManifestDeleted { repo, digest } => self.delete_manifest(repo, digest, offset)?,
            Change::BlobDeleted { repo, digest } => self.delete_link(repo, digest, offset)?,
            Change::RepositoryDeleted { repo } => self.delete_repository(repo, offset)?,
            Change::EpochBegan { .. } => {}
        }
        self.end_event(offset);
        Ok(())
    }

    /// Takes in an entry of a snapshot.
    pub(super) fn load(&mut self, entry: &Entry) -> Result<(), IndexError> {
        match entry {
            Entry::Tag { repo, tag, digest, offset, time } => {
                self.put_tag(repo, tag, TagEntry { digest: *digest, offset: *offset, time: *time })
            }
            Entry::Manifest { manifest, offset } => self.put_manifest(manifest, *offset),
            Entry::Link { repo, digest, size, offset } => {
                self.put_link(repo, digest, Link { size: *size, offset: *offset })
            }
            Entry::Tombstone { of, offset } => match of {
                Deleted::Tag(repo, tag) => self.delete_tag(repo, tag, *offset),
                Deleted::Manifest(repo, digest) => self.delete_manifest(repo, digest, *offset),
                Deleted::Blob(repo, digest) => self.delete_link(repo, digest, *offset),
                Deleted::Repository(repo) => self.delete_repository(repo, *offset),
            },
        }
    }

    fn put_link(&mut self, repo: &RepoName, digest: &Digest, link: Link) -> Result<(), IndexError> {
        let dead = self.dead_in(Table::DeadLink, |table| key::repo_digest(table, repo, digest))?;
        let row = key::repo_digest(Table::Link, repo, digest);
        let old = self.link_under(&row)?;
        if old.is_some_and(|old| old.offset >= link.offset)
            || dead.is_some_and(|dead| dead >= link.offset)
            || self.is_repository_dead(repo, link.offset)?
        {
            return Ok(());
        }
        if dead.is_some() {
            self.unbury(key::repo_digest(Table::DeadLink, repo, digest));
        }
        self.set_link(row, (repo, digest), old, link);
        Ok(())
    }

    /// Puts a link under `row`, its key, in the place of the `old` one; nothing says any more that it is deleted.
    pub(super) fn set_link(
        &mut self,
        row: Vec<u8>,
        (repo, digest): (&RepoName, &Digest),
        old: Option<Link>,
        link: Link,
    ) {
        self.put(row, &row::encode_link(&link));
        if old.is_none() {
            self.put(key::digest_repo(Table::Linker, digest, repo), &[]);
            self.gain(&Fact::Link { repo, digest });
        }
    }

    fn delete_link(&mut self, repo: &RepoName, digest: &Digest, offset: Offset) -> Result<(), IndexError> {
        let old = self.link(repo, digest)?;
        if old.is_some_and(|old| old.offset > offset) || self.is_repository_dead(repo, offset)? {
            return Ok(());
        }
        if old.is_some() {
            self.drop_link(repo, digest);
        }
        self.bury(key::repo_digest(Table::DeadLink, repo, digest), offset)
    }

    pub(super) fn drop_link(&mut self, repo: &RepoName, digest: &Digest) {
        self.remove(key::repo_digest(Table::Link, repo, digest));
        self.remove(key::digest_repo(Table::Linker, digest, repo));
        self.lose(&Fact::Link { repo, digest });
    }

    fn put_manifest(&mut self, put: &ManifestPut, offset: Offset) -> Result<(), IndexError> {
        let (repo, digest) = (&put.repo, &put.digest);
        let dead = self.dead_in(Table::DeadManifest, |table| key::repo_digest(table, repo, digest))?;
        let old = self.held(repo, digest)?;
        if old.as_ref().is_some_and(|old| old.offset >= offset)
            || dead.is_some_and(|dead| dead >= offset)
            || self.is_repository_dead(repo, offset)?
        {
            return Ok(());
        }
        if dead.is_some() {
            self.unbury(key::repo_digest(Table::DeadManifest, repo, digest));
        }
        self.set_manifest(put, old, offset)
    }

    /// Puts a manifest in the place of the `old` one; nothing says any more that it is deleted.
    pub(super) fn set_manifest(
        &mut self,
        put: &ManifestPut,
        old: Option<Held>,
        offset: Offset,
    ) -> Result<(), IndexError> {
        let (repo, digest) = (&put.repo, &put.digest);
        let bytes = put.bytes.as_ref().filter(|bytes| {
            bytes.len() as u64 == put.size && Digest::of(digest.algorithm(), bytes) == *digest
        });
        if let Some(bytes) = bytes {
            self.put_body(digest, bytes)?;
        }
        // What a digest names never changes, so bytes stored before stay good.
        let inline =
            bytes.is_some() || old.as_ref().is_some_and(|old| old.inline && old.put.size == put.size);
        self.put(key::repo_digest(Table::Manifest, repo, digest), &row::encode_put(put, offset, inline));
        match old {
            Some(old) => self.replaced(&old, put, inline)?,
            None => {
                self.put(key::digest_repo(Table::Holder, digest, repo), &[]);
                self.gain(&Fact::Manifest { repo, digest });
            }
        }
        if let Some(subject) = &put.subject {
            self.put(key::referrer(repo, subject, digest), &[]);
        }
        Ok(())
    }

    /// The same manifest was put again, perhaps described otherwise.
    fn replaced(&mut self, old: &Held, new: &ManifestPut, inline: bool) -> Result<(), IndexError> {
        let (repo, digest) = (&new.repo, &new.digest);
        if let Some(subject) = &old.put.subject {
            self.remove(key::referrer(repo, subject, digest));
        }
        if (old.inline, old.put.size, &old.put.media_type) != (inline, new.size, &new.media_type) {
            self.digest_is_stale(repo, digest);
            for tag in self.tags_naming(repo, digest)? {
                self.tag_is_stale(repo, &tag);
            }
        }
        Ok(())
    }

    fn delete_manifest(
        &mut self,
        repo: &RepoName,
        digest: &Digest,
        offset: Offset,
    ) -> Result<(), IndexError> {
        if self.is_repository_dead(repo, offset)? {
            return Ok(());
        }
        let old = self.held(repo, digest)?;
        if old.as_ref().is_none_or(|old| old.offset <= offset) {
            if let Some(old) = old {
                self.drop_manifest(&old)?;
            }
            self.bury(key::repo_digest(Table::DeadManifest, repo, digest), offset)?;
        }
        for tag in self.tags_naming(repo, digest)? {
            let named = self.tag(repo, &tag)?.filter(|entry| entry.digest == *digest);
            if let Some(entry) = named.filter(|entry| entry.offset <= offset) {
                self.delete_tag(repo, &tag, entry.offset)?;
            }
            self.store_step()?;
        }
        Ok(())
    }

    pub(super) fn drop_manifest(&mut self, held: &Held) -> Result<(), IndexError> {
        let (repo, digest) = (&held.put.repo, &held.put.digest);
        self.remove(key::repo_digest(Table::Manifest, repo, digest));
        self.remove(key::digest_repo(Table::Holder, digest, repo));
        if let Some(subject) = &held.put.subject {
            self.remove(key::referrer(repo, subject, digest));
        }
        if !self.has_any(key::of_digest(Table::Holder, digest))? {
            self.remove_body(digest)?;
        }
        self.lose(&Fact::Manifest { repo, digest });
        self.digest_is_stale(repo, digest);
        Ok(())
    }

    fn put_tag(&mut self, repo: &RepoName, tag: &Tag, entry: TagEntry) -> Result<(), IndexError> {
        let dead = self.dead_in(Table::DeadTag, |table| key::repo_tag(table, repo, tag.as_str()))?;
        let old = self.tag(repo, tag)?;
        if old.is_some_and(|old| old.offset >= entry.offset)
            || dead.is_some_and(|dead| dead >= entry.offset)
            || self.is_repository_dead(repo, entry.offset)?
        {
            return Ok(());
        }
        let manifest =
            self.dead_in(Table::DeadManifest, |table| key::repo_digest(table, repo, &entry.digest))?;
        if manifest.is_some_and(|dead| dead >= entry.offset) {
            return self.delete_tag(repo, tag, entry.offset);
        }
        if dead.is_some() {
            self.unbury(key::repo_tag(Table::DeadTag, repo, tag.as_str()));
        }
        self.set_tag(repo, tag, old, entry);
        Ok(())
    }

    /// Puts a tag in the place of the `old` one; nothing says any more that it is deleted.
    pub(super) fn set_tag(&mut self, repo: &RepoName, tag: &Tag, old: Option<TagEntry>, entry: TagEntry) {
        if let Some(old) = old {
            self.drop_tag(repo, tag, &old);
        }
        self.put(key::repo_tag(Table::Tag, repo, tag.as_str()), &row::encode_tag(&entry));
        self.put(key::naming(repo, &entry.digest, tag), &[]);
        self.gain(&Fact::Tag { repo, tag, digest: &entry.digest });
    }

    fn delete_tag(&mut self, repo: &RepoName, tag: &Tag, offset: Offset) -> Result<(), IndexError> {
        let old = self.tag(repo, tag)?;
        if old.is_some_and(|old| old.offset > offset) || self.is_repository_dead(repo, offset)? {
            return Ok(());
        }
        if let Some(old) = old {
            self.drop_tag(repo, tag, &old);
        }
        self.bury(key::repo_tag(Table::DeadTag, repo, tag.as_str()), offset)
    }

    pub(super) fn drop_tag(&mut self, repo: &RepoName, tag: &Tag, old: &TagEntry) {
        self.remove(key::repo_tag(Table::Tag, repo, tag.as_str()));
        self.remove(key::naming(repo, &old.digest, tag));
        self.lose(&Fact::Tag { repo, tag, digest: &old.digest });
        self.tag_is_stale(repo, tag);
    }

    fn tags_naming(&self, repo: &RepoName, digest: &Digest) -> Result<Vec<Tag>, IndexError> {
        let keys = self.keys(key::repo_digest(Table::Naming, repo, digest))?;
        let tag = |key: &Vec<u8>| {
            let mut parts = Parts::of(key);
            parts.repo()?;
            parts.digest()?;
            parts.last()
        };
        keys.iter().map(tag).collect()
    }

    pub(super) fn is_repository_dead(&self, repo: &RepoName, offset: Offset) -> Result<bool, IndexError> {
        let dead = self.dead_in(Table::DeadRepository, |table| key::of_repo(table, repo))?;
        Ok(dead.is_some_and(|dead| dead >= offset))
    }

    fn delete_repository(&mut self, repo: &RepoName, offset: Offset) -> Result<(), IndexError> {
        if self.is_repository_dead(repo, offset)? {
            return Ok(());
        }
        for key in self.keys(key::of_repo(Table::Tag, repo))? {
            let mut parts = Parts::of(&key);
            parts.repo()?;
            let tag = parts.last()?;
            if let Some(old) = self.tag(repo, &tag)?.filter(|old| old.offset <= offset) {
                self.drop_tag(repo, &tag, &old);
            }
            self.store_step()?;
        }
        for key in self.keys(key::of_repo(Table::Manifest, repo))? {
            let mut parts = Parts::of(&key);
            parts.repo()?;
            if let Some(old) = self.held(repo, &parts.digest()?)?.filter(|old| old.offset <= offset) {
                self.drop_manifest(&old)?;
            }
            self.store_step()?;
        }
        for key in self.keys(key::of_repo(Table::Link, repo))? {
            let mut parts = Parts::of(&key);
            parts.repo()?;
            let digest = parts.digest()?;
            if self.link(repo, &digest)?.is_some_and(|old| old.offset <= offset) {
                self.drop_link(repo, &digest);
            }
            self.store_step()?;
        }
        // Its own tombstone says what theirs said. It comes last: it is what says that all is done.
        for table in [Table::DeadManifest, Table::DeadLink, Table::DeadTag] {
            for key in self.keys(key::of_repo(table, repo))? {
                if self.dead(&key)?.is_some_and(|dead| dead <= offset) {
                    self.unbury(key);
                }
                self.store_step()?;
            }
        }
        self.bury(key::of_repo(Table::DeadRepository, repo), offset)
    }
}
