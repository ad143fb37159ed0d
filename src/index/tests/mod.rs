//! What users of the index see.

mod defer;
mod disk;
mod mending;
mod properties;
mod reading;
mod rules;

use std::sync::Arc;

use bytes::Bytes;
use outport_proto::{Change, Digest, Event, ManifestPut, Offset, Reference, RepoName, Tag, Timestamp};

use super::{Index, IndexOptions, Opened, kv::Row};

pub(super) fn options() -> IndexOptions {
    IndexOptions { hot_bytes_max: 1 << 20, cache_bytes_max: 1 << 20 }
}

pub(super) fn in_memory() -> Index {
    Index::in_memory(options())
}

pub(super) fn repo(name: &str) -> RepoName {
    name.parse().unwrap()
}

pub(super) fn tag(name: &str) -> Tag {
    name.parse().unwrap()
}

pub(super) fn by_tag(name: &str) -> Reference {
    Reference::Tag(tag(name))
}

/// Bytes of a made-up manifest, and their digest.
pub(super) fn content(name: &str) -> (Digest, Bytes) {
    let bytes = Bytes::from(format!("manifest {name}"));
    (Digest::sha256(&bytes), bytes)
}

pub(super) fn digest(name: &str) -> Digest {
    content(name).0
}

pub(super) fn put(in_repo: &str, name: &str, tags: &[&str]) -> Change {
    let (digest, bytes) = content(name);
    Change::ManifestPut(Box::new(ManifestPut {
        repo: repo(in_repo),
        digest,
        media_type: "application/vnd.oci.image.manifest.v1+json".into(),
        size: bytes.len() as u64,
        bytes: Some(bytes),
        tags: tags.iter().map(|name| tag(name)).collect(),
        subject: None,
        artifact_type: None,
        platform: None,
        annotations: Vec::new(),
        children: Vec::new(),
    }))
}

pub(super) fn put_referrer(in_repo: &str, name: &str, subject: &str) -> Change {
    let Change::ManifestPut(mut manifest) = put(in_repo, name, &[]) else { unreachable!() };
    manifest.subject = Some(digest(subject));
    manifest.artifact_type = Some("application/spdx+json".into());
    manifest.annotations = vec![("kind".into(), "sbom".into())];
    Change::ManifestPut(manifest)
}

pub(super) fn link(in_repo: &str, name: &str) -> Change {
    let (digest, bytes) = content(name);
    Change::BlobCommitted { repo: repo(in_repo), digest, size: bytes.len() as u64 }
}

pub(super) fn delete_tag(in_repo: &str, name: &str) -> Change {
    Change::TagDeleted { repo: repo(in_repo), tag: tag(name) }
}

pub(super) fn delete_manifest(in_repo: &str, name: &str) -> Change {
    Change::ManifestDeleted { repo: repo(in_repo), digest: digest(name) }
}

pub(super) fn delete_link(in_repo: &str, name: &str) -> Change {
    Change::BlobDeleted { repo: repo(in_repo), digest: digest(name) }
}

pub(super) fn delete_repo(name: &str) -> Change {
    Change::RepositoryDeleted { repo: repo(name) }
}

pub(super) fn event(seq: u64, change: Change) -> Arc<Event> {
    let (offset, time) = (Offset::new(1, seq), Timestamp::from_secs(seq));
    Arc::new(Event { offset, time, actor: String::new(), intent: None, change })
}

/// Numbers changes from 1 on.
pub(super) fn events(changes: impl IntoIterator<Item = Change>) -> Vec<Arc<Event>> {
    (1..).zip(changes).map(|(seq, change)| event(seq, change)).collect()
}

/// Applies one event.
pub(super) fn apply(index: &Index, seq: u64, change: Change) {
    index.apply(&[event(seq, change)]).unwrap();
}

/// What a tag leads to: the manifest's bytes as text.
pub(super) fn pull(index: &Index, in_repo: &str, name: &str) -> Option<String> {
    let manifest = index.manifest(&repo(in_repo), &by_tag(name)).unwrap()?;
    Some(String::from_utf8(manifest.bytes.unwrap().to_vec()).unwrap())
}

/// Every row, derived ones included.
pub(super) fn rows(index: &Index) -> Vec<Row> {
    index.shared.read(|kv| kv.page(&[], &[], 1 << 30)).unwrap()
}
