//! The truth: what the primary's log says, and what was promised of it and when. It shares no
//! code with the index.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use outport::log::{Log, Record};
use outport_proto::{
    Change, Digest, Event, Offset, Reference, RepoName, Tag,
    statehash::{Fact, StateHash},
};

use crate::Broken;

/// What something named and from which event on, in ascending order.
type History<T> = Vec<(u64, T)>;

/// All that is true.
#[derive(Debug, Default)]
pub(crate) struct Oracle {
    records: Vec<(Arc<Event>, Bytes)>,
    tags: BTreeMap<(RepoName, Tag), History<Option<Digest>>>,
    manifests: BTreeMap<(RepoName, Digest), History<bool>>,
    links: BTreeMap<(RepoName, Digest), bool>,
    /// When which event was the newest acknowledged one.
    acknowledged: Vec<(Duration, u64)>,
    /// The newest acknowledged write of a reference that went through one run of a site.
    through: BTreeMap<(usize, RepoName, Reference), u64>,
}

/// A site between two of its starts.
pub(crate) type Run = (usize, u64);

impl Oracle {
    /// The newest durable event.
    pub(crate) fn head(&self) -> u64 {
        self.records.len() as u64
    }

    pub(crate) fn event(&self, seq: u64) -> Option<&Arc<Event>> {
        self.records.get(usize::try_from(seq.checked_sub(1)?).ok()?).map(|(event, _)| event)
    }

    /// Everything of `log` is what it was, and nothing that was durable is missing.
    pub(crate) fn check_log(&self, log: &Log, whose: &str, needed: u64) -> Result<(), Broken> {
        if log.head().seq < needed {
            return Err(Broken(format!(
                "{whose} begins with a log up to {}, and {needed} was durable",
                log.head()
            )));
        }
        let mut after = Offset::ZERO;
        while after < log.head() {
            for record in read(log, after)? {
                after = record.event.offset;
                self.check_record(&record.event, &record.encoded, whose)?;
            }
        }
        Ok(())
    }

    /// An event that was received or read is the one with that place. What is newer than all that
    /// is known passes.
    pub(crate) fn check_record(&self, event: &Event, encoded: &Bytes, whose: &str) -> Result<(), Broken> {
        let index = usize::try_from(event.offset.seq).unwrap_or_default().wrapping_sub(1);
        match self.records.get(index) {
            Some((_, truth)) if truth != encoded => {
                Err(Broken(format!("event {} at {whose} is not the primary's", event.offset)))
            }
            _ => Ok(()),
        }
    }

    /// Takes in what became durable at the primary.
    pub(crate) fn observe(&mut self, log: &Log) -> Result<(), Broken> {
        let mut after = Offset::new(1, self.head());
        if self.head() == 0 {
            after = Offset::ZERO;
        }
        while after < log.head() {
            for record in read(log, after)? {
                after = record.event.offset;
                if after.seq != self.head() + 1 {
                    return Err(Broken(format!("event {after} follows event {}", self.head())));
                }
                self.take_in(&record);
            }
        }
        Ok(())
    }

    fn take_in(&mut self, record: &Record) {
        let (event, seq) = (&record.event, record.event.offset.seq);
        match &event.change {
            Change::BlobCommitted { repo, digest, .. } | Change::BlobMounted { repo, digest, .. } => {
                self.links.insert((repo.clone(), *digest), true);
            }
            Change::BlobDeleted { repo, digest } => {
                self.links.insert((repo.clone(), *digest), false);
            }
            Change::ManifestPut(put) => {
                self.manifests.entry((put.repo.clone(), put.digest)).or_default().push((seq, true));
                for tag in &put.tags {
                    let history = self.tags.entry((put.repo.clone(), tag.clone())).or_default();
                    history.push((seq, Some(put.digest)));
                }
            }
            Change::TagDeleted { repo, tag } => {
                self.tags.entry((repo.clone(), tag.clone())).or_default().push((seq, None));
            }
            Change::ManifestDeleted { repo, digest } => {
                self.manifests.entry((repo.clone(), *digest)).or_default().push((seq, false));
                self.untag(seq, repo, |named| named == *digest);
            }
            Change::RepositoryDeleted { repo } => {
                let gone = self.manifests.iter_mut().filter(|((of, _), _)| of == repo);
                gone.for_each(|(_, history)| history.push((seq, false)));
                let gone = self.links.iter_mut().filter(|((of, _), _)| of == repo);
                gone.for_each(|(_, is_linked)| *is_linked = false);
                self.untag(seq, repo, |_| true);
            }
            Change::EpochBegan { .. } => {}
        }
        self.records.push((Arc::clone(event), record.encoded.clone()));
    }

    fn untag(&mut self, seq: u64, repo: &RepoName, names: impl Fn(Digest) -> bool) {
        for (_, history) in self.tags.iter_mut().filter(|((of, _), _)| of == repo) {
            if history.last().is_some_and(|(_, named)| named.is_some_and(&names)) {
                history.push((seq, None));
            }
        }
    }

    /// The primary acknowledges a write of `reference`; `through` is where it was redirected from.
    pub(crate) fn acknowledge(
        &mut self,
        now: Duration,
        seq: u64,
        through: Option<(usize, RepoName, Reference)>,
    ) {
        let newest = self.acknowledged.last().map_or(0, |(_, newest)| *newest);
        self.acknowledged.push((now, newest.max(seq)));
        if let Some(through) = through {
            let newest = self.through.entry(through).or_default();
            *newest = seq.max(*newest);
        }
    }

    /// The newest event acknowledged up to `time`.
    pub(crate) fn acknowledged_at(&self, time: Duration) -> u64 {
        let later = self.acknowledged.partition_point(|(at, _)| *at <= time);
        later.checked_sub(1).and_then(|last| self.acknowledged.get(last)).map_or(0, |(_, seq)| *seq)
    }

    /// The newest acknowledged write that concerns `reference` and went through `site`.
    pub(crate) fn written_through(&self, site: usize, repo: &RepoName, reference: &Reference) -> u64 {
        let of_site = self.through.iter().filter(|((of, in_repo, _), _)| *of == site && in_repo == repo);
        let concerns = of_site.filter(|((_, _, written), _)| {
            // Deleting a manifest takes its tags along.
            written == reference || matches!((reference, written), (Reference::Tag(_), Reference::Digest(_)))
        });
        concerns.map(|(_, seq)| *seq).max().unwrap_or_default()
    }

    /// What `reference` named once event `seq` was applied.
    pub(crate) fn named(&self, repo: &RepoName, reference: &Reference, seq: u64) -> Option<Digest> {
        match reference {
            Reference::Tag(tag) => at(self.tags.get(&(repo.clone(), tag.clone()))?, seq).flatten(),
            Reference::Digest(digest) => {
                at(self.manifests.get(&(repo.clone(), *digest))?, seq)?.then_some(*digest)
            }
        }
    }

    /// Whether `reference` named `digest` at some moment since event `seq`.
    pub(crate) fn named_since(
        &self,
        repo: &RepoName,
        reference: &Reference,
        seq: u64,
        digest: Option<Digest>,
    ) -> bool {
        if self.named(repo, reference, seq) == digest {
            return true;
        }
        match reference {
            Reference::Tag(tag) => {
                let history = self.tags.get(&(repo.clone(), tag.clone()));
                history.is_some_and(|history| {
                    history.iter().any(|(since, named)| *since > seq && *named == digest)
                })
            }
            Reference::Digest(asked) => {
                let history = self.manifests.get(&(repo.clone(), *asked));
                history.is_some_and(|history| {
                    history.iter().any(|(since, held)| *since > seq && *held == digest.is_some())
                })
            }
        }
    }

    /// The hash of the state all events lead to.
    pub(crate) fn state_hash(&self) -> [u8; 32] {
        let mut hash = StateHash::EMPTY;
        for ((repo, tag), history) in &self.tags {
            if let Some((_, Some(digest))) = history.last() {
                hash.add(&Fact::Tag { repo, tag, digest });
            }
        }
        for ((repo, digest), history) in &self.manifests {
            if let Some((_, true)) = history.last() {
                hash.add(&Fact::Manifest { repo, digest });
            }
        }
        for ((repo, digest), is_linked) in &self.links {
            if *is_linked {
                hash.add(&Fact::Link { repo, digest });
            }
        }
        hash.bytes()
    }
}

/// Bytes of log read at once: few, so that reads end in the midst of segments.
const READ_BYTES: usize = 4096;

/// Some records after `after`; there are some.
pub(crate) fn read(log: &Log, after: Offset) -> Result<Vec<Record>, Broken> {
    let records = log.read(after, READ_BYTES).map_err(|error| Broken(format!("read a log: {error}")))?;
    if records.is_empty() {
        return Err(Broken(format!("a log that reaches {} has nothing after {after}", log.head())));
    }
    Ok(records)
}

fn at<T: Copy>(history: &History<T>, seq: u64) -> Option<T> {
    let later = history.partition_point(|(since, _)| *since <= seq);
    later.checked_sub(1).and_then(|last| history.get(last)).map(|(_, value)| *value)
}
