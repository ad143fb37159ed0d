//! A hash of a site's state that does not depend on the order in which it came about, and is
//! kept up to date by adding and removing single facts.
//!
//! The hash is the sum of the SHA-256 hashes of all facts, each hash read as four little-endian
//! 64-bit lanes that are added modulo 2^64. It finds mistakes and damage; it does not withstand
//! somebody who chooses facts to make two states look alike (Bellare and Micciancio, "A New
//! Paradigm for Collision-free Hashing", 1997), which only the primary could do.

use sha2::{Digest as _, Sha256};

use crate::{Digest, RepoName, Tag};

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
    /// SHA-256 of the kind, the names and the digest as texts, each after its length.
    fn lanes(&self) -> [u64; LANES] {
        let mut hasher = Sha256::new();
        let mut text = |text: &str| {
            hasher.update((text.len() as u64).to_le_bytes());
            hasher.update(text);
        };
        match self {
            Self::Tag { repo, tag, digest } => {
                text("tag");
                text(repo.as_str());
                text(tag.as_str());
                text(&digest.to_string());
            }
            Self::Manifest { repo, digest } => {
                text("manifest");
                text(repo.as_str());
                text(&digest.to_string());
            }
            Self::Link { repo, digest } => {
                text("link");
                text(repo.as_str());
                text(&digest.to_string());
            }
        }
        to_lanes(&hasher.finalize().into())
    }
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

    /// Adds a fact that was not part of the state.
    pub fn add(&mut self, fact: &Fact<'_>) {
        for (lane, more) in self.0.iter_mut().zip(fact.lanes()) {
            *lane = lane.wrapping_add(more);
        }
    }

    /// Removes a fact that was part of the state.
    pub fn remove(&mut self, fact: &Fact<'_>) {
        for (lane, less) in self.0.iter_mut().zip(fact.lanes()) {
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
}
