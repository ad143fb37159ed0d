//! Reading the index. A read may take several rows while they are being changed; then it looks
//! again, so that it never reports as absent what was there at every instant.

use bytes::{Bytes, BytesMut};
use outport_proto::{Digest, ManifestPut, Reference, RepoName, Tag};

use super::{
    IndexError, Manifest, TagEntry,
    key::{self, Parts, Table},
    kv::{Kv, Rows},
    row::{self, Held, Link},
};

/// Manifests are stored in pieces of this size: a page of the database holds a few rows, and
/// rewriting one must not mean rewriting megabytes.
pub(super) const BODY_PIECE_BYTES: usize = 4096;

/// How many pieces hold a manifest of `size` bytes.
pub(super) fn body_pieces(size: u64) -> u16 {
    u16::try_from(size.div_ceil(BODY_PIECE_BYTES as u64)).unwrap_or(u16::MAX)
}

/// The fields of the row under `key`.
pub(super) fn get(kv: &dyn Kv, key: &[u8]) -> Result<Option<Bytes>, IndexError> {
    kv.get(key)?.map(|value| row::unseal(key, &value)).transpose()
}

/// What a tag names.
pub(super) fn tag(kv: &dyn Kv, repo: &RepoName, tag: &Tag) -> Result<Option<TagEntry>, IndexError> {
    let fields = get(kv, &key::repo_tag(Table::Tag, repo, tag.as_str()))?;
    fields.map(|fields| row::decode_tag(&fields)).transpose()
}

/// The manifest a reference names.
pub(super) fn manifest(
    kv: &dyn Kv,
    repo: &RepoName,
    reference: &Reference,
) -> Result<Option<Manifest>, IndexError> {
    let name = match reference {
        Reference::Digest(digest) => return manifest_by_digest(kv, repo, digest),
        Reference::Tag(name) => name,
    };
    let mut entry = tag(kv, repo, name)?;
    while let Some(named) = entry {
        if let Some(manifest) = manifest_by_digest(kv, repo, &named.digest)? {
            return Ok(Some(manifest));
        }
        // It may have moved on, and what it named been deleted.
        entry = tag(kv, repo, name)?;
        if entry == Some(named) {
            return Ok(None);
        }
    }
    Ok(None)
}

fn manifest_by_digest(kv: &dyn Kv, repo: &RepoName, digest: &Digest) -> Result<Option<Manifest>, IndexError> {
    with_body(kv, repo, digest, |fields, bytes| {
        let (manifest, _) = row::decode_served(digest, fields)?;
        Ok(Manifest { bytes, ..manifest })
    })
}

/// All that is known of a manifest, with its bytes if inline.
pub(super) fn held(kv: &dyn Kv, repo: &RepoName, digest: &Digest) -> Result<Option<Held>, IndexError> {
    with_body(kv, repo, digest, |fields, bytes| {
        let mut held = row::decode_held(repo, digest, fields)?;
        held.put.bytes = bytes;
        Ok(held)
    })
}

fn with_body<T>(
    kv: &dyn Kv,
    repo: &RepoName,
    digest: &Digest,
    make: impl Fn(&Bytes, Option<Bytes>) -> Result<T, IndexError>,
) -> Result<Option<T>, IndexError> {
    let key = key::repo_digest(Table::Manifest, repo, digest);
    let mut row = get(kv, &key)?;
    while let Some(fields) = row {
        let (manifest, inline) = row::decode_served(digest, &fields)?;
        if !inline {
            return make(&fields, None).map(Some);
        }
        if let Some(bytes) = body(kv, digest, manifest.size)? {
            return make(&fields, Some(bytes)).map(Some);
        }
        row = get(kv, &key)?;
        if row.as_ref() == Some(&fields) {
            return Err(IndexError::Damaged(format!("the bytes of {digest} in {repo} are missing")));
        }
    }
    Ok(None)
}

fn body(kv: &dyn Kv, digest: &Digest, size: u64) -> Result<Option<Bytes>, IndexError> {
    let pieces = body_pieces(size);
    if pieces <= 1 {
        let whole = if pieces == 0 { Some(Bytes::new()) } else { get(kv, &key::body(digest, 0))? };
        return Ok(whole.filter(|bytes| bytes.len() as u64 == size));
    }
    let mut bytes = BytesMut::new();
    for piece in 0..pieces {
        match get(kv, &key::body(digest, piece))? {
            Some(part) => bytes.extend_from_slice(&part),
            None => return Ok(None),
        }
    }
    Ok(Some(bytes.freeze()).filter(|bytes| bytes.len() as u64 == size))
}

/// A repository's link to a blob.
pub(super) fn link(kv: &dyn Kv, repo: &RepoName, digest: &Digest) -> Result<Option<Link>, IndexError> {
    let fields = get(kv, &key::repo_digest(Table::Link, repo, digest))?;
    fields.map(|fields| row::decode_link(&fields)).transpose()
}

/// Some repository that links a blob.
pub(super) fn any_link(kv: &dyn Kv, digest: &Digest) -> Result<Option<(RepoName, u64)>, IndexError> {
    for row in Rows::all(kv, key::of_digest(Table::Linker, digest)) {
        let (key, value) = row?;
        row::unseal(&key, &value)?;
        let mut parts = Parts::of(&key);
        parts.digest()?;
        let repo = parts.last()?;
        if let Some(link) = link(kv, &repo, digest)? {
            return Ok(Some((repo, link.size)));
        }
    }
    Ok(None)
}

/// Whether any repository links a blob, or holds a manifest of that digest.
pub(super) fn is_named(kv: &dyn Kv, digest: &Digest) -> Result<bool, IndexError> {
    for table in [Table::Linker, Table::Holder] {
        let prefix = key::of_digest(table, digest);
        if kv.first(&prefix, &prefix)?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// At most `limit` repositories that link a blob or hold a manifest of that digest.
pub(super) fn naming(kv: &dyn Kv, digest: &Digest, limit: usize) -> Result<Vec<RepoName>, IndexError> {
    let tables = [Table::Linker, Table::Holder].into_iter();
    let rows = tables.flat_map(|table| Rows::all(kv, key::of_digest(table, digest)));
    let repo = |row: Result<(Vec<u8>, _), IndexError>| {
        let (key, _) = row?;
        let mut parts = Parts::of(&key);
        parts.digest()?;
        parts.last()
    };
    rows.take(limit).map(repo).collect()
}

/// The tables that make a repository exist.
const EXISTENCE: [Table; 3] = [Table::Tag, Table::Manifest, Table::Link];

/// Whether a repository exists.
pub(super) fn has_repository(kv: &dyn Kv, repo: &RepoName) -> Result<bool, IndexError> {
    for table in EXISTENCE {
        let prefix = key::of_repo(table, repo);
        if kv.first(&prefix, &prefix)?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// At most `limit` tags after `last`.
pub(super) fn tags(
    kv: &dyn Kv,
    repo: &RepoName,
    last: Option<&str>,
    limit: usize,
) -> Result<Vec<Tag>, IndexError> {
    let prefix = key::of_repo(Table::Tag, repo);
    let mut from = key::repo_tag(Table::Tag, repo, last.unwrap_or_default());
    if last.is_some() {
        from.push(0);
    }
    let mut tags = Vec::new();
    for row in Rows::starting(kv, prefix, from).take(limit) {
        let (key, value) = row?;
        row::unseal(&key, &value)?;
        let mut parts = Parts::of(&key);
        parts.repo()?;
        tags.push(parts.last()?);
    }
    Ok(tags)
}

/// At most `limit` repositories after `last`: each is found by a jump over the one before, so the
/// cost does not grow with what they hold.
pub(super) fn repositories(
    kv: &dyn Kv,
    last: Option<&str>,
    limit: usize,
) -> Result<Vec<RepoName>, IndexError> {
    // No name contains a NUL, so what follows one in `last` makes no difference.
    let last = last.map(|last| last.split('\0').next().unwrap_or_default());
    let mut found = Vec::new();
    let next_after = |table, last: Option<&str>| {
        let from = last.map_or_else(|| key::table(table), |last| key::after_repo(table, last));
        let Some((key, value)) = kv.first(&key::table(table), &from)? else { return Ok(None) };
        row::unseal(&key, &value)?;
        Parts::of(&key).repo().map(Some)
    };
    let mut heads = Vec::with_capacity(EXISTENCE.len());
    for table in EXISTENCE {
        heads.push((table, next_after(table, last)?));
    }
    while found.len() < limit {
        let Some(repo) = heads.iter().filter_map(|(_, repo)| repo.clone()).min() else { break };
        for (table, head) in &mut heads {
            if head.as_ref() == Some(&repo) {
                *head = next_after(*table, Some(repo.as_str()))?;
            }
        }
        found.push(repo);
    }
    Ok(found)
}

/// Manifests of a repository that refer to `subject`.
pub(super) fn referrers(
    kv: &dyn Kv,
    repo: &RepoName,
    subject: &Digest,
) -> Result<Vec<ManifestPut>, IndexError> {
    let mut referrers = Vec::new();
    for row in Rows::all(kv, key::repo_digest(Table::Referrer, repo, subject)) {
        let (key, value) = row?;
        row::unseal(&key, &value)?;
        let mut parts = Parts::of(&key);
        parts.repo()?;
        parts.digest()?;
        let digest = parts.digest()?;
        let fields = get(kv, &key::repo_digest(Table::Manifest, repo, &digest))?;
        if let Some(fields) = fields {
            referrers.push(row::decode_held(repo, &digest, &fields)?.put);
        }
    }
    Ok(referrers)
}
