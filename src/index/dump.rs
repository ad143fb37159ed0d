//! Walking the whole index as entries of a snapshot, while it may be changing.

use std::io;

use outport_proto::snapshot::{Deleted, Entry, EntryKey};

use super::{
    IndexError, TagEntry,
    key::{self, Parts, Table},
    kv::{Kv, Row, Rows},
    row, view,
};

/// In this order: what is deleted during the walk moves from a table to one further down, so it is
/// met at least once; what comes back does so by an event after the walk began.
const TABLES: [Table; 7] = [
    Table::Link,
    Table::Manifest,
    Table::Tag,
    Table::DeadTag,
    Table::DeadLink,
    Table::DeadManifest,
    Table::DeadRepository,
];
/// About what an entry takes besides its bytes and texts of unusual length.
const ENTRY_BYTES: usize = 256;
/// About what a child of a manifest takes.
const CHILD_BYTES: usize = 64;

/// Hands every entry behind `after` to `sink`, in parts of about `part_bytes`.
pub(super) fn dump(
    kv: &dyn Kv,
    after: Option<&EntryKey>,
    part_bytes: usize,
    sink: &mut dyn FnMut(Vec<Entry>) -> io::Result<()>,
) -> Result<(), IndexError> {
    let mut part = Vec::new();
    let mut bytes = 0;
    let mut hand_over = |part: Vec<Entry>| {
        sink(part).map_err(|error| IndexError::Database {
            action: "hand over a part of the snapshot",
            reason: error.to_string(),
        })
    };
    let after = after.map(place);
    let is_ahead = |table: &Table| after.as_ref().is_some_and(|(last, _)| table == last);
    for table in TABLES.into_iter().skip_while(|table| after.is_some() && !is_ahead(table)) {
        let rows = match &after {
            Some((last, key)) if *last == table => {
                let mut from = key.clone();
                from.push(0);
                Rows::starting(kv, key::table(table), from)
            }
            _ => Rows::all(kv, key::table(table)),
        };
        for row in rows {
            let Some(entry) = entry(kv, table, row?)? else { continue };
            let entry_bytes = size(&entry);
            if !part.is_empty() && bytes + entry_bytes > part_bytes {
                hand_over(std::mem::take(&mut part))?;
                bytes = 0;
            }
            bytes += entry_bytes;
            part.push(entry);
        }
    }
    if part.is_empty() { Ok(()) } else { hand_over(part) }
}

/// The row an entry stands for.
fn place(entry: &EntryKey) -> (Table, Vec<u8>) {
    match entry {
        EntryKey::Link(repo, digest) => (Table::Link, key::repo_digest(Table::Link, repo, digest)),
        EntryKey::Manifest(repo, digest) => {
            (Table::Manifest, key::repo_digest(Table::Manifest, repo, digest))
        }
        EntryKey::Tag(repo, tag) => (Table::Tag, key::repo_tag(Table::Tag, repo, tag.as_str())),
        EntryKey::Tombstone(Deleted::Tag(repo, tag)) => {
            (Table::DeadTag, key::repo_tag(Table::DeadTag, repo, tag.as_str()))
        }
        EntryKey::Tombstone(Deleted::Blob(repo, digest)) => {
            (Table::DeadLink, key::repo_digest(Table::DeadLink, repo, digest))
        }
        EntryKey::Tombstone(Deleted::Manifest(repo, digest)) => {
            (Table::DeadManifest, key::repo_digest(Table::DeadManifest, repo, digest))
        }
        EntryKey::Tombstone(Deleted::Repository(repo)) => {
            (Table::DeadRepository, key::of_repo(Table::DeadRepository, repo))
        }
    }
}

/// The entry a row stands for; `None` when it has gone in the meantime.
fn entry(kv: &dyn Kv, table: Table, (key, value): Row) -> Result<Option<Entry>, IndexError> {
    let fields = row::unseal(&key, &value)?;
    let mut parts = Parts::of(&key);
    let repo = parts.repo()?;
    let of = match table {
        Table::DeadRepository => Deleted::Repository(repo),
        Table::DeadManifest => Deleted::Manifest(repo, parts.digest()?),
        Table::DeadLink => Deleted::Blob(repo, parts.digest()?),
        Table::DeadTag => Deleted::Tag(repo, parts.last()?),
        Table::Link | Table::Tag => return entry_without_bytes(table, &(key, value)).map(Some),
        _ => {
            let held = view::held(kv, &repo, &parts.digest()?)?;
            return Ok(held.map(|held| Entry::Manifest { manifest: Box::new(held.put), offset: held.offset }));
        }
    };
    Ok(Some(Entry::Tombstone { of, offset: row::decode_offset(&fields)? }))
}

/// The entry that a row of a tag, a link or a manifest stands for, without the bytes of a manifest.
pub(super) fn entry_without_bytes(table: Table, (key, value): &Row) -> Result<Entry, IndexError> {
    let fields = row::unseal(key, value)?;
    let mut parts = Parts::of(key);
    let repo = parts.repo()?;
    if table == Table::Tag {
        let tag = parts.last()?;
        let TagEntry { digest, offset, time } = row::decode_tag(&fields)?;
        return Ok(Entry::Tag { repo, tag, digest, offset, time });
    }
    let digest = parts.digest()?;
    if table == Table::Link {
        let row::Link { size, offset } = row::decode_link(&fields)?;
        return Ok(Entry::Link { repo, digest, size, offset });
    }
    let held = row::decode_held(&repo, &digest, &fields)?;
    Ok(Entry::Manifest { manifest: Box::new(held.put), offset: held.offset })
}

fn size(entry: &Entry) -> usize {
    let Entry::Manifest { manifest, .. } = entry else { return ENTRY_BYTES };
    let annotations: usize = manifest.annotations.iter().map(|(name, value)| name.len() + value.len()).sum();
    let bytes = manifest.bytes.as_ref().map_or(0, |bytes| bytes.len());
    ENTRY_BYTES + manifest.media_type.len() + annotations + manifest.children.len() * CHILD_BYTES + bytes
}
