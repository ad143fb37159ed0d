//! A hash of a site's state that does not depend on the order in which it came about, and is
//! kept up to date by adding and removing single facts.
//!
//! The hash is the sum of the SHA-256 hashes of all facts, each hash read as four little-endian
//! 64-bit lanes that are added modulo 2^64. It finds mistakes and damage; it does not withstand
//! somebody who chooses facts to make two states look alike (Bellare and Micciancio, "A New
//! Paradigm for Collision-free Hashing", 1997), which only the primary could do.
//!
//! To find where two states differ, each fact belongs to one of [`BUCKETS`] buckets, which have
//! sums of their own: the hash of the state is the sum of theirs. A bucket is chosen by what a
//! fact is about and not by what it says, so a tag that names something else stays in its bucket.

use sha2::{Digest as _, Sha256};

use crate::{Algorithm, Digest, RepoName, Tag};

/// How many buckets there are. With a million facts one holds about 250.
pub const BUCKETS: usize = 4096;

/// One fact of a site's state. A state is a set: a fact is added when it becomes true and
/// removed when it ceases to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fact<'a> {
    /// A tag names a manifest.
    Tag {
        /// The repository.
        repo: &'a RepoName,
        /// The tag.
        tag: &'a Tag,
        /// What it names.
        digest: &'a Digest,
    },
    /// A repository holds a manifest.
    Manifest {
        /// The repository.
        repo: &'a RepoName,
        /// The manifest.
        digest: &'a Digest,
    },
    /// A repository links a blob.
    Link {
        /// The repository.
        repo: &'a RepoName,
        /// The blob.
        digest: &'a Digest,
    },
}

impl Fact<'_> {
    /// Which of the [`BUCKETS`] it belongs to: CRC-32C, modulo their number, of a letter for its
    /// kind (`t`, `m`, `l`), the repository, a NUL, and the tag or the digest; a digest as a byte
    /// for its algorithm (1 for SHA-256, 2 for SHA-512) and its raw hash.
    pub fn bucket(&self) -> u16 {
        let mut crc = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
        let mut about = |kind: &[u8], repo: &RepoName| {
            crc.update(kind);
            crc.update(repo.as_str().as_bytes());
            crc.update(&[0]);
        };
        match self {
            Self::Tag { repo, tag, .. } => {
                about(b"t", repo);
                crc.update(tag.as_str().as_bytes());
            }
            Self::Manifest { repo, digest } | Self::Link { repo, digest } => {
                about(if matches!(self, Self::Link { .. }) { b"l" } else { b"m" }, repo);
                crc.update(match digest.algorithm() {
                    Algorithm::Sha256 => &[1],
                    Algorithm::Sha512 => &[2],
                });
                crc.update(digest.as_bytes());
            }
        }
        bucket_of_crc(crc.finalize() as u32)
    }

    /// SHA-256 of the kind, the names and the digest as texts, each after its length.
    fn lanes(&self) -> [u64; LANES] {
        // Collected first: many small pieces cost a hasher more than the bytes do.
        let mut texts = Vec::with_capacity(512);
        let mut text = |text: &str| {
            texts.extend_from_slice(&(text.len() as u64).to_le_bytes());
            texts.extend_from_slice(text.as_bytes());
        };
        let (kind, repo, tag, digest) = match self {
            Self::Tag { repo, tag, digest } => ("tag", repo, Some(tag), digest),
            Self::Manifest { repo, digest } => ("manifest", repo, None, digest),
            Self::Link { repo, digest } => ("link", repo, None, digest),
        };
        text(kind);
        text(repo.as_str());
        if let Some(tag) = tag {
            text(tag.as_str());
        }
        let algorithm = digest.algorithm().as_str();
        let len = algorithm.len() + 1 + 2 * digest.as_bytes().len();
        texts.extend_from_slice(&(len as u64).to_le_bytes());
        texts.extend_from_slice(algorithm.as_bytes());
        texts.push(b':');
        digest.push_hex(&mut texts);
        to_lanes(&Sha256::digest(&texts).into())
    }
}

/// The bucket of what has this CRC-32C.
pub const fn bucket_of_crc(crc: u32) -> u16 {
    (crc as usize % BUCKETS) as u16
}

const LANES: usize = 4;

/// The hash of a set of facts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct StateHash([u64; LANES]);

impl StateHash {
    /// The hash of the empty state: 32 zero bytes.
    pub const EMPTY: Self = Self([0; LANES]);

    /// A hash from its 32 bytes.
    pub fn from_bytes(bytes: &[u8; 32]) -> Self {
        Self(to_lanes(bytes))
    }

    /// Its 32 bytes, as heartbeats carry them.
    pub fn bytes(&self) -> [u8; 32] {
        let mut bytes = [0; 32];
        for (piece, lane) in bytes.chunks_exact_mut(8).zip(self.0) {
            piece.copy_from_slice(&lane.to_le_bytes());
        }
        bytes
    }

    /// The hash of the state that consists of one fact.
    pub fn of(fact: &Fact<'_>) -> Self {
        Self(fact.lanes())
    }

    /// Adds a fact that was not part of the state.
    pub fn add(&mut self, fact: &Fact<'_>) {
        self.include(&Self::of(fact));
    }

    /// Removes a fact that was part of the state.
    pub fn remove(&mut self, fact: &Fact<'_>) {
        self.exclude(&Self::of(fact));
    }

    /// Adds facts that were not part of the state, by their hash.
    pub fn include(&mut self, facts: &Self) {
        for (lane, more) in self.0.iter_mut().zip(facts.0) {
            *lane = lane.wrapping_add(more);
        }
    }

    /// Removes facts that were part of the state, by their hash.
    pub fn exclude(&mut self, facts: &Self) {
        for (lane, less) in self.0.iter_mut().zip(facts.0) {
            *lane = lane.wrapping_sub(less);
        }
    }
}

fn to_lanes(bytes: &[u8; 32]) -> [u64; LANES] {
    let mut lanes = [0; LANES];
    for (lane, piece) in lanes.iter_mut().zip(bytes.chunks_exact(8)) {
        let mut word = [0; 8];
        word.copy_from_slice(piece);
        *lane = u64::from_le_bytes(word);
    }
    lanes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_does_not_matter_and_remove_undoes_add() {
        let (repo, other): (RepoName, RepoName) = ("a/b".parse().unwrap(), "a".parse().unwrap());
        let (tag, digest) = ("1".parse().unwrap(), Digest::sha256(b"1"));
        let facts = [
            Fact::Tag { repo: &repo, tag: &tag, digest: &digest },
            Fact::Manifest { repo: &repo, digest: &digest },
            Fact::Link { repo: &repo, digest: &digest },
            Fact::Link { repo: &other, digest: &digest },
        ];
        let mut forward = StateHash::EMPTY;
        facts.iter().for_each(|fact| forward.add(fact));
        let mut backward = StateHash::EMPTY;
        facts.iter().rev().for_each(|fact| backward.add(fact));
        assert_eq!(forward, backward);
        assert_eq!(StateHash::from_bytes(&forward.bytes()), forward);

        let mut seen = vec![forward];
        for fact in &facts {
            forward.remove(fact);
            assert!(!seen.contains(&forward), "every fact counts");
            seen.push(forward);
        }
        assert_eq!(forward.bytes(), [0; 32]);
    }

    #[test]
    fn the_hash_of_a_fact_never_changes() {
        let mut hash = StateHash::EMPTY;
        let (repo, tag) = ("team/app".parse().unwrap(), "1".parse().unwrap());
        hash.add(&Fact::Tag { repo: &repo, tag: &tag, digest: &Digest::sha256(b"") });
        assert_eq!(
            Digest::Sha256(hash.bytes()).hex(),
            "bdb13b5123c074ea07b6222cb7d993525dc1d331bc9a01554012cfc601eb8dcd"
        );
    }

    #[test]
    fn the_bucket_of_a_fact_never_changes() {
        let (repo, tag): (RepoName, Tag) = ("team/app".parse().unwrap(), "1".parse().unwrap());
        let digest = Digest::sha256(b"");
        let long = Digest::of(Algorithm::Sha512, b"");
        let tagged = |digest| Fact::Tag { repo: &repo, tag: &tag, digest };
        assert_eq!(tagged(&digest).bucket(), tagged(&long).bucket(), "whatever the tag names");
        let facts = [
            tagged(&digest),
            Fact::Manifest { repo: &repo, digest: &digest },
            Fact::Link { repo: &repo, digest: &digest },
            Fact::Link { repo: &repo, digest: &long },
        ];
        assert_eq!(facts.map(|fact| fact.bucket()), [439, 3637, 1444, 530]);
    }

    #[test]
    fn the_hash_of_the_whole_is_the_sum_of_its_parts() {
        let repo: RepoName = "a".parse().unwrap();
        let digests: Vec<_> = (0..100_u8).map(|number| Digest::sha256(&[number])).collect();
        let mut whole = StateHash::EMPTY;
        let mut parts = vec![StateHash::EMPTY; BUCKETS];
        for digest in &digests {
            let fact = Fact::Link { repo: &repo, digest };
            whole.add(&fact);
            parts[usize::from(fact.bucket())].include(&StateHash::of(&fact));
        }
        assert!(parts.iter().filter(|part| **part != StateHash::EMPTY).count() > 90, "they are spread");
        for part in &parts {
            whole.exclude(part);
        }
        assert_eq!(whole, StateHash::EMPTY);
    }
}
