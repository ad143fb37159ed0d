//! Which blobs are still to be copied, and up to where in the log none is: pure bookkeeping.

use std::{
    cmp::Reverse,
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use outport_proto::{Digest, Offset, RepoName, frame::MissingBlobs};

/// A blob to copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Want {
    /// A repository that may serve it.
    pub(super) repo: RepoName,
    /// The blob.
    pub(super) digest: Digest,
    /// Its size in bytes.
    pub(super) size: u64,
    /// Higher is copied first.
    pub(super) priority: i32,
}

/// What each repository lacks, as a [`Window`] counts it. Cloning gives another handle.
#[derive(Clone, Debug, Default)]
pub struct Lacking(Arc<Mutex<BTreeMap<RepoName, Lack>>>);

#[derive(Clone, Copy, Debug, Default)]
struct Lack {
    blobs: u64,
    bytes: u64,
}

impl Lacking {
    /// Those that lack the most bytes, the most first.
    pub fn most(&self, repos_max: usize) -> Vec<MissingBlobs> {
        let repos = self.lock();
        let mut most: Vec<_> = repos.iter().map(|(repo, lack)| (Reverse(lack.bytes), repo, lack)).collect();
        if most.len() > repos_max {
            most.select_nth_unstable_by_key(repos_max, |(bytes, repo, _)| (*bytes, *repo));
            most.truncate(repos_max);
        }
        most.sort_unstable_by_key(|(bytes, repo, _)| (*bytes, *repo));
        let told = |(_, repo, lack): (_, &RepoName, &Lack)| MissingBlobs {
            repo: repo.clone(),
            blobs: lack.blobs,
            bytes: lack.bytes,
        };
        most.into_iter().map(told).collect()
    }

    fn add(&self, want: &Want) {
        let mut repos = self.lock();
        let lack = repos.entry(want.repo.clone()).or_default();
        lack.blobs += 1;
        lack.bytes = lack.bytes.saturating_add(want.size);
    }

    fn remove(&self, repo: &RepoName, size: u64) {
        let mut repos = self.lock();
        let Some(lack) = repos.get_mut(repo) else { return };
        lack.blobs -= 1;
        lack.bytes = lack.bytes.saturating_sub(size);
        if lack.blobs == 0 {
            repos.remove(repo);
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<RepoName, Lack>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Who waits for a blob.
#[derive(Debug)]
struct Waiters {
    /// Events, the oldest first.
    events: Vec<Offset>,
    /// The repository that it counts for.
    repo: RepoName,
    size: u64,
}

/// A place in the queue.
type Turn = (Reverse<i32>, u64);

/// A window of the log whose blobs are being copied. Events enter in order at its end; it
/// is complete up to the first event that still waits for a blob.
#[derive(Debug, Default)]
pub(super) struct Window {
    /// The last event that entered.
    scanned: Offset,
    /// Events that wait, with how many blobs each waits for.
    waiting: BTreeMap<Offset, usize>,
    /// Who waits for a blob, and whether somebody copies it.
    missing: BTreeMap<Digest, Waiters>,
    /// The same by repository.
    lacking: Lacking,
    /// Blobs to copy, by priority and in the order in which they came.
    queue: BTreeMap<Turn, Want>,
    /// Where each stands in the queue.
    turns: BTreeMap<Digest, Turn>,
    /// Blobs that ever entered the queue.
    queued: u64,
    /// How complete it was when a walk began that has not ended.
    walk: Option<Offset>,
}

impl Window {
    /// An empty window behind `complete`.
    pub(super) fn after(complete: Offset) -> Self {
        Self { scanned: complete, ..Self::default() }
    }

    /// The last event that entered.
    pub(super) const fn scanned(&self) -> Offset {
        self.scanned
    }

    /// Every event up to here has all its blobs.
    pub(super) fn complete(&self) -> Offset {
        match self.waiting.first_key_value() {
            None => self.scanned,
            Some((first, _)) => Offset { epoch: first.epoch, seq: first.seq.saturating_sub(1) },
        }
    }

    /// What each repository lacks, from now on.
    pub(super) fn lacking(&self) -> Lacking {
        self.lacking.clone()
    }

    /// Blobs known to be missing.
    pub(super) fn missing(&self) -> usize {
        self.missing.len()
    }

    /// The event at `offset` enters, waiting for `wants`.
    pub(super) fn enter(&mut self, offset: Offset, wants: Vec<Want>) {
        self.scanned = offset;
        self.wait(offset, wants);
    }

    /// The log does not reach back to where the window ends: the blobs come from a walk over the
    /// state instead, through [`Window::walked`]. It stays as complete as it is until all are here.
    pub(super) fn begin_walk(&mut self, from: Offset) {
        let held = self.complete();
        let lacking = self.lacking.clone();
        lacking.lock().clear();
        *self = Self { lacking, ..Self::after(from) };
        self.walk = Some(held);
        self.waiting.insert(held.next(), 1);
    }

    /// The walk found `wants`.
    pub(super) fn walked(&mut self, wants: Vec<Want>) {
        if let Some(held) = self.walk {
            self.wait(held.next(), wants);
        }
    }

    /// The walk has seen everything.
    pub(super) fn end_walk(&mut self) {
        if let Some(held) = self.walk.take() {
            self.release(held.next());
        }
    }

    fn wait(&mut self, offset: Offset, wants: Vec<Want>) {
        for want in wants {
            let is_new = !self.missing.contains_key(&want.digest);
            let waiters = self.missing.entry(want.digest).or_insert_with(|| {
                self.lacking.add(&want);
                Waiters { events: Vec::new(), repo: want.repo.clone(), size: want.size }
            });
            if waiters.events.last() != Some(&offset) {
                waiters.events.push(offset);
                *self.waiting.entry(offset).or_default() += 1;
            }
            let turn = self.turns.get(&want.digest).copied();
            if is_new || turn.is_some_and(|(Reverse(priority), _)| priority < want.priority) {
                self.enqueue(want);
            }
        }
    }

    fn release(&mut self, offset: Offset) {
        if let Some(blobs) = self.waiting.get_mut(&offset) {
            *blobs -= 1;
            if *blobs == 0 {
                self.waiting.remove(&offset);
            }
        }
    }

    /// The next blob to copy.
    pub(super) fn take(&mut self) -> Option<Want> {
        let (_, want) = self.queue.pop_first()?;
        self.turns.remove(&want.digest);
        Some(want)
    }

    /// A taken blob is here, or no longer needed.
    pub(super) fn settled(&mut self, digest: &Digest) {
        let Some(waiters) = self.missing.remove(digest) else { return };
        self.lacking.remove(&waiters.repo, waiters.size);
        for offset in waiters.events {
            self.release(offset);
        }
    }

    /// A taken blob could not be copied: its turn comes again behind others of its priority.
    pub(super) fn postponed(&mut self, want: Want) {
        self.enqueue(want);
    }

    fn enqueue(&mut self, want: Want) {
        let turn = (Reverse(want.priority), self.queued);
        self.queued += 1;
        if let Some(before) = self.turns.insert(want.digest, turn) {
            self.queue.remove(&before);
        }
        self.queue.insert(turn, want);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn want(name: &str) -> Want {
        let repo = "team/app".parse().unwrap();
        Want { repo, digest: Digest::sha256(name.as_bytes()), size: 1, priority: 0 }
    }

    fn at(seq: u64) -> Offset {
        Offset::new(1, seq)
    }

    #[test]
    fn complete_stops_before_the_first_event_that_waits() {
        let mut window = Window::after(at(3));
        assert_eq!(window.complete(), at(3));
        window.enter(at(4), vec![]);
        window.enter(at(5), vec![want("a"), want("b"), want("a")]);
        window.enter(at(6), vec![want("b")]);
        window.enter(at(7), vec![]);
        assert_eq!((window.complete(), window.missing()), (at(4), 2));

        let taken: Vec<_> = std::iter::from_fn(|| window.take()).collect();
        assert_eq!(taken, [want("a"), want("b")], "a blob is copied once however many events name it");
        window.settled(&want("b").digest);
        assert_eq!(window.complete(), at(4));
        window.settled(&want("a").digest);
        assert_eq!((window.complete(), window.missing()), (at(7), 0));
    }

    #[test]
    fn higher_priorities_come_first_and_a_queued_blob_is_raised() {
        let mut window = Window::after(at(0));
        let with = |name, priority| Want { priority, ..want(name) };
        window.enter(at(1), vec![with("low", -1), with("a", 0), with("b", 0)]);
        window.enter(at(2), vec![with("high", 7), with("b", 5), with("a", -3)]);
        let taken: Vec<_> = std::iter::from_fn(|| window.take()).collect();
        assert_eq!(taken, [with("high", 7), with("b", 5), with("a", 0), with("low", -1)]);
        assert_eq!(window.complete(), at(0));
        taken.iter().for_each(|want| window.settled(&want.digest));
        assert_eq!((window.complete(), window.missing()), (at(2), 0));
    }

    #[test]
    fn a_walk_holds_complete_until_all_it_found_is_here() {
        let mut window = Window::after(at(2));
        window.begin_walk(at(50));
        window.walked(vec![want("a")]);
        window.enter(at(51), vec![want("a")]);
        window.walked(vec![want("b")]);
        assert_eq!((window.complete(), window.scanned()), (at(2), at(51)));
        window.settled(&want("a").digest);
        window.settled(&want("b").digest);
        assert_eq!(window.complete(), at(2), "the walk may find more");
        window.end_walk();
        assert_eq!(window.complete(), at(51));
    }

    #[test]
    fn what_is_missing_is_counted_by_repository() {
        let mut window = Window::after(at(0));
        let lacking = window.lacking();
        let of = |repo: &str, name: &str, size| Want { repo: repo.parse().unwrap(), size, ..want(name) };
        let most = |repos_max| -> Vec<_> {
            let most = lacking.most(repos_max).into_iter();
            most.map(|missing| (missing.repo.to_string(), missing.blobs, missing.bytes)).collect()
        };
        window.enter(at(1), vec![of("a", "1", 5), of("a", "2", 5), of("b", "3", 30), of("c", "4", 1)]);
        // Another repository waits for it as well; the blob is missing once.
        window.enter(at(2), vec![of("c", "3", 30)]);
        assert_eq!(most(2), [("b".to_owned(), 1, 30), ("a".to_owned(), 2, 10)]);
        window.settled(&want("1").digest);
        window.settled(&want("3").digest);
        window.settled(&want("3").digest);
        assert_eq!(most(9), [("a".to_owned(), 1, 5), ("c".to_owned(), 1, 1)]);
        window.begin_walk(at(9));
        assert_eq!(most(9), []);
        window.walked(vec![of("b", "3", 30)]);
        assert_eq!(most(9), [("b".to_owned(), 1, 30)]);
    }

    #[test]
    fn a_postponed_blob_comes_again() {
        let mut window = Window::after(at(0));
        window.enter(at(1), vec![want("a")]);
        window.enter(at(2), vec![want("b")]);
        let first = window.take().unwrap();
        window.postponed(first);
        assert_eq!(window.take(), Some(want("b")));
        assert_eq!(window.take(), Some(want("a")));
        assert_eq!(window.complete(), at(0));
    }
}
