//! The truth: what the primary's log says, and what was promised of it and when. It shares no
//! code with the index.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use outport::log::{Log, Record};
use outport_proto::{
    Change, Digest, Event, Offset, Reference, RepoName, Tag,
    statehash::{Fact, StateHash},
};
use tokio::time::Instant;

use crate::Broken;

/// What something named and from which event on, in ascending order.
type History<T> = Vec<(u64, T)>;

/// All that is true, and all that was before the primary was restored.
#[derive(Debug, Default)]
pub(crate) struct Oracle {
    now: Branch,
    dead: Vec<Branch>,
}

/// One history of the log.
#[derive(Clone, Debug, Default)]
struct Branch {
    records: Vec<(Arc<Event>, Bytes)>,
    /// The state's hash after each event.
    hashes: Vec<[u8; 32]>,
    hash: StateHash,
    tags: BTreeMap<(RepoName, Tag), History<Option<Digest>>>,
    manifests: BTreeMap<(RepoName, Digest), History<bool>>,
    links: BTreeMap<(RepoName, Digest), History<bool>>,
    /// Up to which event this history is that of the one before.
    fork: u64,
    /// When it ended, if it did.
    ended: Option<Instant>,
    /// When which event was the newest acknowledged one.
    acknowledged: Vec<(Instant, u64)>,
    /// The newest acknowledged write of something that went through a site.
    through: BTreeMap<(usize, RepoName, What), u64>,
}

/// What is asked for or written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum What {
    Manifest(Reference),
    Blob(Digest),
}

/// A place in one history.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Mark {
    branch: usize,
    seq: u64,
}

impl Oracle {
    /// The newest durable event.
    pub(crate) fn head(&self) -> u64 {
        self.now.head()
    }

    /// Everything of `log` is what it was, and nothing that was durable is missing.
    pub(crate) fn check_log(&self, log: &Log, whose: &str, needed: u64) -> Result<(), Broken> {
        if log.head().seq < needed {
            return Err(Broken(format!(
                "{whose} begins with a log up to {}, and {needed} was durable",
                log.head()
            )));
        }
        let mut after = log.floor();
        while after < log.head() {
            for record in read(log, after)? {
                after = record.event.offset;
                let known = self.branch_of(after).map(|branch| &branch.records[after.seq as usize - 1]);
                if known.is_some_and(|(_, truth)| *truth != record.encoded) {
                    return Err(Broken(format!("event {after} at {whose} is not the primary's")));
                }
            }
        }
        Ok(())
    }

    /// Takes in what became durable at the primary.
    pub(crate) fn observe(&mut self, log: &Log) -> Result<(), Broken> {
        let mut after =
            self.now.records.last().map_or(log.floor().min(Offset::ZERO), |(event, _)| event.offset);
        while after < log.head() {
            for record in read(log, after)? {
                after = record.event.offset;
                if after.seq != self.head() + 1 {
                    return Err(Broken(format!("event {after} follows event {}", self.head())));
                }
                self.now.take_in(&record);
            }
        }
        Ok(())
    }

    /// The primary begins anew with a copy that holds `log`, of whichever history.
    pub(crate) fn rewind(&mut self, now: Instant, log: &Log) {
        let known = self.dead.iter().chain([&self.now]).map(|branch| branch.known_of(log));
        let copied = known.max_by_key(|records| records.len()).unwrap_or_default().to_vec();
        let both = copied.iter().zip(&self.now.records);
        let fork = both.take_while(|((copied, _), (now, _))| copied.offset == now.offset).count() as u64;
        let mut branch = Branch { fork, ..Branch::default() };
        for (event, encoded) in copied {
            branch.take_in(&Record { event, encoded, trace: None });
        }
        branch.acknowledged = self.now.acknowledged.iter().map(|(at, seq)| (*at, (*seq).min(fork))).collect();
        let through = self.now.through.iter().filter(|(_, seq)| **seq <= fork);
        branch.through = through.map(|(key, seq)| (key.clone(), *seq)).collect();
        self.now.ended = Some(now);
        self.dead.push(std::mem::replace(&mut self.now, branch));
    }

    /// The newest epoch that any history came to.
    pub(crate) fn newest_epoch(&self) -> u64 {
        let last = self.dead.iter().chain([&self.now]).filter_map(|branch| branch.records.last());
        last.map(|(event, _)| event.offset.epoch).max().unwrap_or_default()
    }

    /// The history that `offset` is a place of; the present one first.
    fn branch_of(&self, offset: Offset) -> Option<&Branch> {
        let holds = |branch: &&Branch| {
            let index = usize::try_from(offset.seq).unwrap_or_default().wrapping_sub(1);
            branch.records.get(index).is_some_and(|(event, _)| event.offset == offset)
        };
        [&self.now].into_iter().chain(self.dead.iter().rev()).find(holds)
    }

    /// Whether the present history has `offset`, or nothing has it because nothing happened yet.
    pub(crate) fn is_present(&self, offset: Offset) -> bool {
        offset.seq == 0 || self.branch_of(offset).is_some_and(|branch| std::ptr::eq(branch, &self.now))
    }

    /// A place of the present history.
    pub(crate) fn mark(&self, seq: u64) -> Mark {
        Mark { branch: self.dead.len(), seq }
    }

    /// The place of whichever history has it.
    pub(crate) fn mark_at(&self, offset: Offset) -> Mark {
        let holder = self.branch_of(offset);
        let dead =
            self.dead.iter().position(|branch| holder.is_some_and(|holder| std::ptr::eq(branch, holder)));
        Mark { branch: dead.unwrap_or(self.dead.len()), seq: offset.seq }
    }

    /// Where the present history has what was at `mark`.
    pub(crate) fn seq(&self, mark: Mark) -> u64 {
        let forks = self.dead.iter().chain([&self.now]).skip(mark.branch + 1).map(|branch| branch.fork);
        forks.fold(mark.seq, u64::min)
    }

    /// Whether `mark` is of a history that ended.
    pub(crate) fn is_dead(&self, mark: Mark) -> bool {
        mark.branch < self.dead.len()
    }

    /// The hash of the state that the events up to `offset` lead to; `None` when nobody knows it.
    pub(crate) fn hash_at(&self, offset: Offset) -> Option<[u8; 32]> {
        if offset.seq == 0 {
            return Some(StateHash::EMPTY.bytes());
        }
        self.branch_of(offset)?.hashes.get(offset.seq as usize - 1).copied()
    }

    /// The primary acknowledges a write; `through` is where it was redirected from.
    pub(crate) fn acknowledge(&mut self, now: Instant, seq: u64, through: Option<(usize, RepoName, What)>) {
        let newest = self.now.acknowledged.last().map_or(0, |(_, newest)| *newest);
        self.now.acknowledged.push((now, newest.max(seq)));
        if let Some(through) = through {
            let newest = self.now.through.entry(through).or_default();
            *newest = seq.max(*newest);
        }
    }

    /// The newest event acknowledged before `time`. What happens at the very same instant happened in some
    /// order that an instant does not tell.
    pub(crate) fn acknowledged_at(&self, time: Instant) -> Mark {
        let later = self.now.acknowledged.partition_point(|(at, _)| *at < time);
        let last = later.checked_sub(1).and_then(|last| self.now.acknowledged.get(last));
        self.mark(last.map_or(0, |(_, seq)| *seq))
    }

    /// The newest acknowledged write that concerns `what` and went through `site`.
    pub(crate) fn written_through(&self, site: usize, repo: &RepoName, what: &What) -> Mark {
        let of_site = self.now.through.iter().filter(|((of, in_repo, _), _)| *of == site && in_repo == repo);
        let concerns = of_site.filter(|((_, _, written), _)| {
            // Deleting a manifest takes its tags along.
            written == what
                || matches!(
                    (what, written),
                    (What::Manifest(Reference::Tag(_)), What::Manifest(Reference::Digest(_)))
                )
        });
        self.mark(concerns.map(|(_, seq)| *seq).max().unwrap_or_default())
    }

    /// Whether `what` named `digest` at `offset`, or at some moment of its history since.
    pub(crate) fn was(&self, repo: &RepoName, what: &What, offset: Offset, digest: Option<Digest>) -> bool {
        if offset.seq == 0 {
            return digest.is_none() || self.now.was(repo, what, 0, digest);
        }
        self.branch_of(offset).is_none_or(|branch| branch.was(repo, what, offset.seq, digest))
    }

    /// The same from `mark` on, in the present history.
    pub(crate) fn was_since(&self, repo: &RepoName, what: &What, mark: Mark, digest: Option<Digest>) -> bool {
        self.now.was(repo, what, self.seq(mark), digest)
    }

    /// Whether something was not there at `mark` or later in the history of `mark`, which has ended since.
    pub(crate) fn was_absent_before_end(&self, repo: &RepoName, what: &What, mark: Mark) -> bool {
        self.dead.get(mark.branch).is_some_and(|branch| branch.was(repo, what, mark.seq, None))
    }

    /// Whether something was not there at the end of a history that ended at `since` or later.
    pub(crate) fn was_absent_lately(&self, repo: &RepoName, what: &What, since: Instant) -> bool {
        let mut lately = self.dead.iter().filter(|branch| branch.ended.is_some_and(|ended| ended >= since));
        lately.any(|branch| branch.was(repo, what, branch.head(), None))
    }
}

impl Branch {
    fn head(&self) -> u64 {
        self.records.len() as u64
    }

    /// What of `log` this history has as well.
    fn known_of(&self, log: &Log) -> &[(Arc<Event>, Bytes)] {
        let longest = &self.records[..self.records.len().min(log.head().seq as usize)];
        let newest = longest.iter().rposition(|(event, _)| log.contains(event.offset));
        &longest[..newest.map_or(0, |newest| newest + 1)]
    }

    fn take_in(&mut self, record: &Record) {
        let (event, seq) = (&record.event, record.event.offset.seq);
        match &event.change {
            Change::BlobCommitted { repo, digest, .. } | Change::BlobMounted { repo, digest, .. } => {
                self.link(seq, repo, *digest, true);
            }
            Change::BlobDeleted { repo, digest } => self.link(seq, repo, *digest, false),
            Change::ManifestPut(put) => {
                self.manifest(seq, &put.repo, put.digest, true);
                for tag in &put.tags {
                    self.tag(seq, &put.repo, tag, Some(put.digest));
                }
            }
            Change::TagDeleted { repo, tag } => self.tag(seq, repo, tag, None),
            Change::ManifestDeleted { repo, digest } => {
                self.manifest(seq, repo, *digest, false);
                self.untag(seq, repo, |named| named == *digest);
            }
            Change::RepositoryDeleted { repo } => {
                let manifests: Vec<_> = self.manifests.keys().filter(|(of, _)| of == repo).cloned().collect();
                manifests.iter().for_each(|(repo, digest)| self.manifest(seq, repo, *digest, false));
                let links: Vec<_> = self.links.keys().filter(|(of, _)| of == repo).cloned().collect();
                links.iter().for_each(|(repo, digest)| self.link(seq, repo, *digest, false));
                self.untag(seq, repo, |_| true);
            }
            Change::EpochBegan { .. } => {}
        }
        self.records.push((Arc::clone(event), record.encoded.clone()));
        self.hashes.push(self.hash.bytes());
    }

    fn link(&mut self, seq: u64, repo: &RepoName, digest: Digest, is_linked: bool) {
        let history = self.links.entry((repo.clone(), digest)).or_default();
        let was = history.last().is_some_and(|(_, was)| *was);
        let fact = Fact::Link { repo, digest: &digest };
        match (was, is_linked) {
            (false, true) => self.hash.add(&fact),
            (true, false) => self.hash.remove(&fact),
            _ => {}
        }
        history.push((seq, is_linked));
    }

    fn manifest(&mut self, seq: u64, repo: &RepoName, digest: Digest, is_held: bool) {
        let history = self.manifests.entry((repo.clone(), digest)).or_default();
        let was = history.last().is_some_and(|(_, was)| *was);
        let fact = Fact::Manifest { repo, digest: &digest };
        match (was, is_held) {
            (false, true) => self.hash.add(&fact),
            (true, false) => self.hash.remove(&fact),
            _ => {}
        }
        history.push((seq, is_held));
    }

    fn tag(&mut self, seq: u64, repo: &RepoName, tag: &Tag, digest: Option<Digest>) {
        let history = self.tags.entry((repo.clone(), tag.clone())).or_default();
        if let Some((_, Some(was))) = history.last() {
            self.hash.remove(&Fact::Tag { repo, tag, digest: was });
        }
        if let Some(digest) = &digest {
            self.hash.add(&Fact::Tag { repo, tag, digest });
        }
        history.push((seq, digest));
    }

    fn untag(&mut self, seq: u64, repo: &RepoName, names: impl Fn(Digest) -> bool) {
        let of_repo = self.tags.iter().filter(|((of, _), _)| of == repo);
        let gone =
            of_repo.filter(|(_, history)| history.last().is_some_and(|(_, named)| named.is_some_and(&names)));
        let gone: Vec<_> = gone.map(|((_, tag), _)| tag.clone()).collect();
        gone.iter().for_each(|tag| self.tag(seq, repo, tag, None));
    }

    fn was(&self, repo: &RepoName, what: &What, seq: u64, digest: Option<Digest>) -> bool {
        match what {
            What::Manifest(Reference::Tag(tag)) => {
                let history = self.tags.get(&(repo.clone(), tag.clone()));
                ever_since(history, seq, |named| *named == digest, digest.is_none())
            }
            What::Manifest(Reference::Digest(asked)) => {
                let history = self.manifests.get(&(repo.clone(), *asked));
                ever_since(history, seq, |held| *held == digest.is_some(), digest.is_none())
            }
            What::Blob(asked) => {
                let history = self.links.get(&(repo.clone(), *asked));
                ever_since(history, seq, |held| *held == digest.is_some(), digest.is_none())
            }
        }
    }
}

/// Whether what held at event `seq` or at any later one is as it should; before the first event
/// of a history nothing is there, which `absent` likes or not.
fn ever_since<T>(history: Option<&History<T>>, seq: u64, is_so: impl Fn(&T) -> bool, absent: bool) -> bool {
    let Some(history) = history else { return absent };
    let later = history.partition_point(|(since, _)| *since <= seq);
    let then = later.checked_sub(1).and_then(|last| history.get(last));
    then.map_or(absent, |(_, value)| is_so(value)) || history[later..].iter().any(|(_, value)| is_so(value))
}

/// Bytes of log read at once: few, so that reads end in the midst of segments.
const READ_BYTES: usize = 4096;

/// Some records after `after`; there are some.
fn read(log: &Log, after: Offset) -> Result<Vec<Record>, Broken> {
    let records = log.read(after, READ_BYTES).map_err(|error| Broken(format!("read a log: {error}")))?;
    if records.is_empty() {
        return Err(Broken(format!("a log that reaches {} has nothing after {after}", log.head())));
    }
    Ok(records)
}
