//! How rows are named, so that plain key order is the order listings want.
//!
//! A key is one byte for its table, then its parts. A repository name ends with a NUL, which no
//! name contains; a digest is a byte for its algorithm and its raw hash, so it delimits itself;
//! a tag or a repository name may also stand last, undelimited.

use outport_proto::{Algorithm, Digest, RepoName, Tag, snapshot::Entry, statehash::Fact};

use super::IndexError;

/// Ends a repository name inside a key.
const SEPARATOR: u8 = 0;
/// Sorts after [`SEPARATOR`] and before everything a longer repository name goes on with.
const AFTER_SEPARATOR: u8 = 1;

/// The tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(super) enum Table {
    /// The applied offset and the state hash.
    State = b'0',
    /// Where days begin: number of the day.
    Day = b'1',
    /// Repository tombstones: repo.
    DeadRepository = b'A',
    /// Manifest tombstones: repo, digest.
    DeadManifest = b'B',
    /// Link tombstones: repo, digest.
    DeadLink = b'C',
    /// Tag tombstones: repo, tag.
    DeadTag = b'D',
    /// Links: repo, digest.
    Link = b'l',
    /// Manifests without their bytes: repo, digest.
    Manifest = b'm',
    /// Tags: repo, tag.
    Tag = b't',
    /// Bytes of manifests in pieces: digest, number of the piece.
    Body = b'u',
    /// Who links a blob: digest, repo.
    Linker = b'w',
    /// Who holds a manifest: digest, repo.
    Holder = b'x',
    /// What refers to a subject: repo, subject, digest.
    Referrer = b'y',
    /// Which tags name a manifest: repo, digest, tag.
    Naming = b'z',
}

/// The one key of [`Table::State`].
pub(super) fn state() -> Vec<u8> {
    vec![Table::State as u8]
}

/// number of a day.
pub(super) fn day(day: u64) -> Vec<u8> {
    let mut key = table(Table::Day);
    key.extend_from_slice(&day.to_be_bytes());
    key
}

/// Prefix of every key of a table.
pub(super) fn table(table: Table) -> Vec<u8> {
    vec![table as u8]
}

/// Prefix of everything a table holds of a repository.
pub(super) fn of_repo(table: Table, repo: &RepoName) -> Vec<u8> {
    let mut key = Vec::with_capacity(repo.as_str().len() + 2 + 65);
    key.push(table as u8);
    key.extend_from_slice(repo.as_str().as_bytes());
    key.push(SEPARATOR);
    key
}

/// Where a table's repositories after `last`, which need not exist, begin.
pub(super) fn after_repo(table: Table, last: &str) -> Vec<u8> {
    let mut key = vec![table as u8];
    key.extend_from_slice(last.as_bytes());
    key.push(AFTER_SEPARATOR);
    key
}

/// repo, tag.
pub(super) fn repo_tag(table: Table, repo: &RepoName, tag: &str) -> Vec<u8> {
    let mut key = of_repo(table, repo);
    key.extend_from_slice(tag.as_bytes());
    key
}

/// repo, digest.
pub(super) fn repo_digest(table: Table, repo: &RepoName, digest: &Digest) -> Vec<u8> {
    let mut key = of_repo(table, repo);
    push_digest(&mut key, digest);
    key
}

/// repo, digest, tag.
pub(super) fn naming(repo: &RepoName, digest: &Digest, tag: &Tag) -> Vec<u8> {
    let mut key = repo_digest(Table::Naming, repo, digest);
    key.extend_from_slice(tag.as_str().as_bytes());
    key
}

/// repo, subject, digest.
pub(super) fn referrer(repo: &RepoName, subject: &Digest, digest: &Digest) -> Vec<u8> {
    let mut key = repo_digest(Table::Referrer, repo, subject);
    push_digest(&mut key, digest);
    key
}

/// Prefix of everything a table holds of a digest.
pub(super) fn of_digest(table: Table, digest: &Digest) -> Vec<u8> {
    let mut key = Vec::with_capacity(1 + 65 + 62);
    key.push(table as u8);
    push_digest(&mut key, digest);
    key
}

/// digest, repo.
pub(super) fn digest_repo(table: Table, digest: &Digest, repo: &RepoName) -> Vec<u8> {
    let mut key = of_digest(table, digest);
    key.extend_from_slice(repo.as_str().as_bytes());
    key
}

/// digest, number of a piece.
pub(super) fn body(digest: &Digest, piece: u16) -> Vec<u8> {
    let mut key = of_digest(Table::Body, digest);
    key.extend_from_slice(&piece.to_be_bytes());
    key
}

/// The row of a fact.
pub(super) fn of_fact(fact: &Fact<'_>) -> Vec<u8> {
    match fact {
        Fact::Tag { repo, tag, .. } => repo_tag(Table::Tag, repo, tag.as_str()),
        Fact::Manifest { repo, digest } => repo_digest(Table::Manifest, repo, digest),
        Fact::Link { repo, digest } => repo_digest(Table::Link, repo, digest),
    }
}

/// The row that an entry stands for, unless it is a tombstone.
pub(super) fn of_entry(entry: &Entry) -> Option<Vec<u8>> {
    Some(match entry {
        Entry::Tag { repo, tag, .. } => repo_tag(Table::Tag, repo, tag.as_str()),
        Entry::Manifest { manifest, .. } => repo_digest(Table::Manifest, &manifest.repo, &manifest.digest),
        Entry::Link { repo, digest, .. } => repo_digest(Table::Link, repo, digest),
        Entry::Tombstone { .. } => return None,
    })
}

fn push_digest(key: &mut Vec<u8>, digest: &Digest) {
    key.push(match digest.algorithm() {
        Algorithm::Sha256 => 1,
        Algorithm::Sha512 => 2,
    });
    key.extend_from_slice(digest.as_bytes());
}

/// Takes a key apart, in the order it was put together.
pub(super) struct Parts<'a> {
    key: &'a [u8],
    rest: &'a [u8],
}

impl<'a> Parts<'a> {
    /// Begins behind the table's byte.
    pub(super) fn of(key: &'a [u8]) -> Self {
        Self { key, rest: key.get(1..).unwrap_or_default() }
    }

    /// A repository name and its separator.
    pub(super) fn repo(&mut self) -> Result<RepoName, IndexError> {
        let end = self.rest.iter().position(|byte| *byte == SEPARATOR).ok_or_else(|| self.damaged())?;
        let (name, rest) = self.rest.split_at(end);
        self.rest = &rest[1..];
        self.text(name)
    }

    /// A digest.
    pub(super) fn digest(&mut self) -> Result<Digest, IndexError> {
        let algorithm = match self.rest.first() {
            Some(1) => Algorithm::Sha256,
            Some(2) => Algorithm::Sha512,
            _ => return Err(self.damaged()),
        };
        let end = 1 + algorithm.len_bytes();
        let digest = self.rest.get(1..end).and_then(|hash| Digest::from_bytes(algorithm, hash));
        let digest = digest.ok_or_else(|| self.damaged())?;
        self.rest = &self.rest[end..];
        Ok(digest)
    }

    /// What is left, as a tag or a repository name.
    pub(super) fn last<T: std::str::FromStr>(self) -> Result<T, IndexError> {
        self.text(self.rest)
    }

    fn text<T: std::str::FromStr>(&self, bytes: &[u8]) -> Result<T, IndexError> {
        let text = std::str::from_utf8(bytes).map_err(|_| self.damaged())?;
        text.parse().map_err(|_| self.damaged())
    }

    fn damaged(&self) -> IndexError {
        IndexError::Damaged(format!("the key {:?} has not the form of its table", self.key.escape_ascii()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn repo(name: &str) -> RepoName {
        name.parse().unwrap()
    }

    #[test]
    fn keys_come_apart_as_they_were_put_together() {
        let (subject, digest) = (Digest::sha256(b"s"), Digest::of(Algorithm::Sha512, b"d"));
        let key = referrer(&repo("team/app"), &subject, &digest);
        let mut parts = Parts::of(&key);
        assert_eq!(parts.repo().unwrap(), repo("team/app"));
        assert_eq!(parts.digest().unwrap(), subject);
        assert_eq!(parts.digest().unwrap(), digest);
        let tag: Tag = "1.2".parse().unwrap();
        let key = naming(&repo("team/app"), &digest, &tag);
        let mut parts = Parts::of(&key);
        assert_eq!((parts.repo().unwrap(), parts.digest().unwrap()), (repo("team/app"), digest));
        assert_eq!(parts.last::<Tag>().unwrap(), tag);
        assert!(matches!(Parts::of(b"tno-separator").repo(), Err(IndexError::Damaged(_))));
        assert!(matches!(Parts::of(b"l\x09x").digest(), Err(IndexError::Damaged(_))));
    }

    #[test]
    fn key_order_is_name_order_and_jumps_over_a_whole_repository() {
        let names = ["a", "a-b", "a.b", "a/b", "a/b/c", "a0", "a_b", "aa", "b"];
        let digest = Digest::Sha256([255; 32]);
        for pair in names.windows(2) {
            let (one, two) = (repo(pair[0]), repo(pair[1]));
            assert!(one < two, "{pair:?}");
            let last_of_one = repo_digest(Table::Manifest, &one, &digest);
            let jump = after_repo(Table::Manifest, one.as_str());
            assert!(last_of_one < jump && jump < of_repo(Table::Manifest, &two), "{pair:?}");
        }
    }
}
