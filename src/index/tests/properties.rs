//! Random histories, held against a naive model and against each other.

use std::collections::{BTreeMap, BTreeSet};

use outport_proto::{
    snapshot::Entry,
    statehash::{Fact, StateHash},
};
use proptest::{collection::vec, prelude::*};

use super::*;

const REPOS: [&str; 3] = ["a", "a/b", "c"];

pub(super) fn change() -> impl Strategy<Value = Change> {
    let repo = || prop::sample::select(&REPOS[..]);
    let name = || (0..4_u8).prop_map(|number| number.to_string());
    // Enough tags that listings take more than one page.
    let tags = || vec((0..40_u8).prop_map(|number| format!("t{number}")), 0..12);
    let one_tag = || (0..40_u8).prop_map(|number| format!("t{number}"));
    prop_oneof![
        6 => (repo(), name(), tags()).prop_map(|(repo, name, tags)| {
            put(repo, &name, &tags.iter().map(String::as_str).collect::<Vec<_>>())
        }),
        1 => (repo(), name(), name()).prop_map(|(repo, name, subject)| put_referrer(repo, &name, &subject)),
        3 => (repo(), name()).prop_map(|(repo, name)| link(repo, &name)),
        2 => (repo(), one_tag()).prop_map(|(repo, name)| delete_tag(repo, &name)),
        2 => (repo(), name()).prop_map(|(repo, name)| delete_manifest(repo, &name)),
        1 => (repo(), name()).prop_map(|(repo, name)| delete_link(repo, &name)),
        1 => repo().prop_map(delete_repo),
    ]
}

/// What a history leads to when it is applied once and in order.
#[derive(Default)]
struct Model {
    tags: BTreeMap<(RepoName, Tag), Digest>,
    manifests: BTreeSet<(RepoName, Digest)>,
    links: BTreeSet<(RepoName, Digest)>,
}

impl Model {
    fn of(events: &[Arc<Event>]) -> Self {
        let mut model = Self::default();
        for event in events {
            model.apply(&event.change);
        }
        model
    }

    fn apply(&mut self, change: &Change) {
        match change.clone() {
            Change::BlobCommitted { repo, digest, .. } | Change::BlobMounted { repo, digest, .. } => {
                self.links.insert((repo, digest));
            }
            Change::ManifestPut(put) => {
                for tag in put.tags {
                    self.tags.insert((put.repo.clone(), tag), put.digest);
                }
                self.manifests.insert((put.repo, put.digest));
            }
            Change::TagDeleted { repo, tag } => {
                self.tags.remove(&(repo, tag));
            }
            Change::ManifestDeleted { repo, digest } => {
                self.tags.retain(|(in_repo, _), named| *in_repo != repo || *named != digest);
                self.manifests.remove(&(repo, digest));
            }
            Change::BlobDeleted { repo, digest } => {
                self.links.remove(&(repo, digest));
            }
            Change::RepositoryDeleted { repo: gone } => {
                self.tags.retain(|(repo, _), _| *repo != gone);
                self.manifests.retain(|(repo, _)| *repo != gone);
                self.links.retain(|(repo, _)| *repo != gone);
            }
            Change::EpochBegan { .. } => {}
        }
    }

    fn hash(&self) -> [u8; 32] {
        let mut hash = StateHash::EMPTY;
        for ((repo, tag), digest) in &self.tags {
            hash.add(&Fact::Tag { repo, tag, digest });
        }
        for (repo, digest) in &self.manifests {
            hash.add(&Fact::Manifest { repo, digest });
        }
        for (repo, digest) in &self.links {
            hash.add(&Fact::Link { repo, digest });
        }
        hash.bytes()
    }

    fn check(&self, index: &Index) {
        for in_repo in REPOS {
            let in_repo = repo(in_repo);
            let expected = self.tags.keys().filter(|(repo, _)| *repo == in_repo);
            let expected: Vec<Tag> = expected.map(|(_, tag)| tag.clone()).collect();
            assert_eq!(index.tags(&in_repo, None, usize::MAX).unwrap(), expected);
            for tag in expected {
                let named = self.tags[&(in_repo.clone(), tag.clone())];
                let served = index.manifest(&in_repo, &Reference::Tag(tag)).unwrap().unwrap();
                assert_eq!(served.digest, named);
                assert_eq!(Digest::sha256(&served.bytes.unwrap()), named);
            }
            for name in 0..4 {
                let digest = digest(&name.to_string());
                let held = index.manifest(&in_repo, &Reference::Digest(digest)).unwrap().is_some();
                assert_eq!(held, self.manifests.contains(&(in_repo.clone(), digest)));
                let linked = index.link(&in_repo, &digest).unwrap().is_some();
                assert_eq!(linked, self.links.contains(&(in_repo.clone(), digest)));
            }
        }
        assert_eq!(index.state_hash().0, self.hash());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn histories_lead_to_the_same_state_on_disk_in_memory_and_applied_again(
        changes in vec(change(), 1..60),
        batches in vec((1..9_usize, any::<prop::sample::Index>()), 60),
    ) {
        let events = events(changes);
        let dir = tempfile::tempdir().unwrap();
        let (on_disk, _) = Index::open(dir.path(), options()).unwrap();
        let memory = in_memory();
        let mut applied = 0;
        for (len, again_from) in batches {
            let end = (applied + len).min(events.len());
            on_disk.apply(&events[applied..end]).unwrap();
            // The other one begins each time at some place it was at before.
            let from = again_from.index(applied + 1);
            memory.apply(&events[from..end]).unwrap();
            applied = end;
            prop_assert_eq!(rows(&on_disk), rows(&memory));
        }
        let model = Model::of(&events[..applied]);
        model.check(&on_disk);
        model.check(&memory);
    }

    /// What is deleted stays deleted when its tombstone is gone, as long as what is applied again, in
    /// whatever order, is newer than the place up to which tombstones went.
    #[test]
    fn nothing_comes_back_when_old_tombstones_go(
        changes in vec(change(), 1..60),
        steps in vec((1..9_usize, any::<prop::sample::Index>(), vec(any::<prop::sample::Index>(), 4)), 40),
    ) {
        let events = events(changes);
        let (index, kept) = (in_memory(), in_memory());
        let (mut applied, mut forgotten) = (0, 0);
        for (len, through, again) in steps {
            let end = (applied + len).min(events.len());
            index.apply(&events[applied..end]).unwrap();
            kept.apply(&events[applied..end]).unwrap();
            applied = end;
            forgotten = forgotten.max(through.index(applied + 1));
            index.forget_tombstones(Offset::new(1, forgotten as u64)).unwrap();
            for late in again {
                if forgotten < applied {
                    let at = forgotten + late.index(applied - forgotten);
                    index.apply(&events[at..=at]).unwrap();
                }
            }
            prop_assert_eq!(index.state_hash(), kept.state_hash());
            prop_assert!(index.tombstones() <= kept.tombstones());
            Model::of(&events[..applied]).check(&index);
        }
        index.forget_tombstones(index.applied()).unwrap();
        prop_assert_eq!(index.tombstones(), 0);
        Model::of(&events[..applied]).check(&index);
    }

    /// A database that is behind is seen as one that is not, whatever it holds already.
    #[test]
    fn what_is_kept_above_the_database_is_seen_as_if_it_were_in_it(
        changes in vec(change(), 1..60),
        steps in vec((1..9_usize, 0..9_usize, 0..4000_usize, prop::bool::weighted(0.2)), 60),
    ) {
        let events = events(changes);
        let dir = tempfile::tempdir().unwrap();
        let (mut index, _) = Index::open(dir.path(), options()).unwrap();
        let memory = in_memory();
        let mut applied = 0;
        for (len, settled, memory_bytes_max, is_stopped) in steps {
            index.defer_with(memory_bytes_max).unwrap();
            let end = (applied + len).min(events.len());
            index.apply(&events[applied..end]).unwrap();
            memory.apply(&events[applied..end]).unwrap();
            applied = end;
            prop_assert_eq!(rows(&index), rows(&memory));
            prop_assert_eq!(index.state_hash(), memory.state_hash());
            let at = index.settled().seq as usize;
            let to = (at + settled).min(applied);
            index.settle(&events[at..to]).unwrap();
            prop_assert_eq!(index.settled().seq as usize, to);
            prop_assert_eq!(index.is_deferring(), to < applied);
            prop_assert_eq!(rows(&index), rows(&memory));
            if is_stopped {
                drop(index);
                let (again, opened) = Index::open(dir.path(), options()).unwrap();
                index = again;
                let settled = Offset::new(u64::from(to > 0), to as u64);
                prop_assert_eq!(opened, Opened::Ready(settled));
                index.apply(&events[to..applied]).unwrap();
            }
            // What follows would be the same again.
            if to == events.len() {
                break;
            }
        }
        let model = Model::of(&events[..applied]);
        model.check(&index);
        let at = index.settled().seq as usize;
        index.settle(&events[at..applied]).unwrap();
        prop_assert!(!index.is_deferring());
        model.check(&index);
    }

    /// The source goes on applying events between any two parts of its dump.
    #[test]
    fn a_snapshot_taken_while_events_are_applied_leads_to_the_same_state(
        changes in vec(change(), 2..80),
        start in any::<prop::sample::Index>(),
        older in any::<prop::sample::Index>(),
        steps in vec(0..4_usize, 100),
        part_bytes in 1..4000_usize,
        cut_after in 0..40_usize,
    ) {
        let events = events(changes);
        let source = in_memory();
        let start = start.index(events.len());
        source.apply(&events[..start]).unwrap();

        let mut at = start;
        let mut steps = steps.into_iter();
        let mut parts: Vec<Vec<Entry>> = Vec::new();
        let mut go_on = |at: usize| {
            let end = (at + steps.next().unwrap_or(0)).min(events.len());
            source.apply(&events[at..end]).unwrap();
            end
        };
        let walked = source.dump(part_bytes, &mut |part| {
            parts.push(part);
            at = go_on(at);
            if parts.len() > cut_after { Err(std::io::ErrorKind::BrokenPipe.into()) } else { Ok(()) }
        });
        let from = Offset::new(u64::from(start > 0), start as u64);
        let until = match walked {
            Ok((walked_from, until)) => {
                prop_assert_eq!(walked_from, from);
                until
            }
            // Cut off: the rest is walked later, and events went on meanwhile.
            Err(_) => {
                at = go_on(at);
                at = go_on(at);
                let last = parts.last().and_then(|part| part.last()).map(Entry::key);
                source.dump_after(last.as_ref(), part_bytes, &mut |part| {
                    parts.push(part);
                    at = go_on(at);
                    Ok(())
                }).unwrap().1
            }
        };
        prop_assert_eq!(until.seq, at as u64);

        // Into an empty index, and into one that was left behind long ago.
        let older = older.index(start + 1);
        for left_at in [0, older] {
            let copy = in_memory();
            copy.apply(&events[..left_at]).unwrap();
            for part in &parts {
                copy.load(part).unwrap();
            }
            copy.loaded(from).unwrap();
            prop_assert_eq!(copy.applied(), from);
            copy.apply(&events[start..at]).unwrap();
            prop_assert_eq!(copy.state_hash(), source.state_hash());
            Model::of(&events[..at]).check(&copy);
            let facts = |index: &Index| {
                let mut rows = rows(index);
                rows.retain(|(key, _)| *key != super::super::key::state());
                rows
            };
            prop_assert_eq!(facts(&copy), facts(&source), "left at {}", left_at);
            copy.apply(&events[at..]).unwrap();
            Model::of(&events).check(&copy);
        }
    }
}
