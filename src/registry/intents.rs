//! Write intents: this site just redirected a push or delete, so what it changes is about to move.
//!
//! An intent ends with the first event that does what it announced, else when its ticket does.
//! Two pushes of one tag at once open two intents and end by two events.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use outport_proto::{Change, Event, Reference, RepoName, Timestamp};

/// The open write intents of a site. Cloning gives another handle to the same set.
#[derive(Clone, Debug)]
pub struct Intents {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    intents_max: usize,
    /// Readers pass without the lock while there is no intent, which is nearly always.
    any: AtomicBool,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    repos: HashMap<RepoName, Vec<Intent>>,
    count: usize,
    /// Until then everything counts as open, because an intent found no room.
    overflow_until: Timestamp,
}

#[derive(Debug)]
struct Intent {
    reference: Reference,
    expires: Timestamp,
}

impl Intents {
    /// No intent. At most `intents_max` are kept one by one; beyond that every read of the site
    /// counts as having one, until the one without room expires.
    pub fn new(intents_max: usize) -> Self {
        let shared = Shared { intents_max, any: AtomicBool::new(false), open: Mutex::default() };
        Self { shared: Arc::new(shared) }
    }

    /// A push or delete of `reference` in `repo` is being redirected with a ticket that ends at
    /// `expires`; both times by the local clock. To be called before the redirect is sent.
    pub fn open(&self, repo: &RepoName, reference: &Reference, now: Timestamp, expires: Timestamp) {
        let mut open = self.lock();
        self.shared.any.store(true, Ordering::Release);
        if open.count >= self.shared.intents_max {
            open.sweep(now);
        }
        if open.count >= self.shared.intents_max {
            open.overflow_until = open.overflow_until.max(expires);
            return;
        }
        open.count += 1;
        let intent = Intent { reference: reference.clone(), expires };
        open.repos.entry(repo.clone()).or_default().push(intent);
    }

    /// Whether an intent on `reference` in `repo` is open. One on a digest concerns every tag as
    /// well: deleting a manifest takes its tags.
    pub fn is_open(&self, repo: &RepoName, reference: &Reference, now: Timestamp) -> bool {
        let is_tag = matches!(reference, Reference::Tag(_));
        self.any_open(repo, now, |intent| {
            intent.reference == *reference || is_tag && matches!(intent.reference, Reference::Digest(_))
        })
    }

    /// Whether any intent in `repo` is open: referrers and listings may move with each.
    pub fn is_open_in(&self, repo: &RepoName, now: Timestamp) -> bool {
        self.any_open(repo, now, |_| true)
    }

    fn any_open(&self, repo: &RepoName, now: Timestamp, concerns: impl Fn(&Intent) -> bool) -> bool {
        if !self.shared.any.load(Ordering::Acquire) {
            return false;
        }
        let mut open = self.lock();
        open.sweep(now);
        self.shared.any.store(open.count > 0 || open.overflow_until > now, Ordering::Release);
        open.overflow_until > now || open.repos.get(repo).is_some_and(|intents| intents.iter().any(concerns))
    }

    /// An event was applied: the intents it fulfils end.
    pub fn note_applied(&self, event: &Event) {
        if !self.shared.any.load(Ordering::Acquire) {
            return;
        }
        let mut open = self.lock();
        match &event.change {
            Change::ManifestPut(put) => {
                for tag in &put.tags {
                    open.end(&put.repo, &Reference::Tag(tag.clone()));
                }
                open.end(&put.repo, &Reference::Digest(put.digest));
            }
            Change::TagDeleted { repo, tag } => open.end(repo, &Reference::Tag(tag.clone())),
            Change::ManifestDeleted { repo, digest } | Change::BlobDeleted { repo, digest } => {
                open.end(repo, &Reference::Digest(*digest));
            }
            Change::RepositoryDeleted { .. }
            | Change::BlobCommitted { .. }
            | Change::BlobMounted { .. }
            | Change::EpochBegan { .. } => {}
        }
    }

    /// Nothing in here can be half done by a panic: every change is one step.
    fn lock(&self) -> MutexGuard<'_, Open> {
        self.shared.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Open {
    fn sweep(&mut self, now: Timestamp) {
        self.repos.retain(|_, intents| {
            intents.retain(|intent| intent.expires > now);
            !intents.is_empty()
        });
        self.count = self.repos.values().map(Vec::len).sum();
    }

    /// Ends the oldest intent on `reference`.
    fn end(&mut self, repo: &RepoName, reference: &Reference) {
        let Some(intents) = self.repos.get_mut(repo) else {
            return;
        };
        if let Some(position) = intents.iter().position(|intent| intent.reference == *reference) {
            intents.remove(position);
            self.count -= 1;
        }
        if intents.is_empty() {
            self.repos.remove(repo);
        }
    }
}

#[cfg(test)]
mod tests {
    use outport_proto::{Digest, ManifestPut, Offset};

    use super::*;

    const NOW: Timestamp = Timestamp::from_secs(100);
    const EXPIRES: Timestamp = Timestamp::from_secs(160);

    fn repo() -> RepoName {
        "team/app".parse().unwrap()
    }

    fn tag(text: &str) -> Reference {
        Reference::Tag(text.parse().unwrap())
    }

    fn put(tags: &[&str]) -> Event {
        let put = ManifestPut {
            repo: repo(),
            digest: Digest::sha256(b"m"),
            media_type: String::new(),
            size: 1,
            bytes: None,
            tags: tags.iter().map(|tag| tag.parse().unwrap()).collect(),
            subject: None,
            artifact_type: None,
            platform: None,
            annotations: Vec::new(),
            children: Vec::new(),
        };
        let change = Change::ManifestPut(Box::new(put));
        Event { offset: Offset::new(1, 1), time: NOW, actor: String::new(), intent: None, change }
    }

    #[test]
    fn the_event_ends_it() {
        let intents = Intents::new(10);
        assert!(!intents.is_open(&repo(), &tag("1"), NOW));
        intents.open(&repo(), &tag("1"), NOW, EXPIRES);
        assert!(intents.is_open(&repo(), &tag("1"), NOW));
        assert!(intents.is_open_in(&repo(), NOW));
        assert!(!intents.is_open(&repo(), &tag("2"), NOW));
        assert!(!intents.is_open(&"team/other".parse().unwrap(), &tag("1"), NOW));
        intents.note_applied(&put(&["2"]));
        assert!(intents.is_open(&repo(), &tag("1"), NOW));
        intents.note_applied(&put(&["1", "2"]));
        assert!(!intents.is_open_in(&repo(), NOW));
    }

    #[test]
    fn a_digest_concerns_every_tag() {
        let intents = Intents::new(10);
        let digest = Reference::Digest(Digest::sha256(b"m"));
        intents.open(&repo(), &digest, NOW, EXPIRES);
        assert!(intents.is_open(&repo(), &tag("1"), NOW));
        assert!(!intents.is_open(&repo(), &Reference::Digest(Digest::sha256(b"n")), NOW));
        intents.note_applied(&put(&[]));
        assert!(!intents.is_open(&repo(), &tag("1"), NOW));
    }

    #[test]
    fn the_ticket_ends_it() {
        let intents = Intents::new(10);
        intents.open(&repo(), &tag("1"), NOW, EXPIRES);
        assert!(!intents.is_open(&repo(), &tag("1"), EXPIRES));
        assert!(!intents.shared.any.load(Ordering::Acquire));
    }

    #[test]
    fn two_pushes_end_by_two_events() {
        let intents = Intents::new(10);
        intents.open(&repo(), &tag("1"), NOW, EXPIRES);
        intents.open(&repo(), &tag("1"), NOW, EXPIRES);
        intents.note_applied(&put(&["1"]));
        assert!(intents.is_open(&repo(), &tag("1"), NOW));
        intents.note_applied(&put(&["1"]));
        assert!(!intents.is_open(&repo(), &tag("1"), NOW));
    }

    #[test]
    fn without_room_everything_counts_as_open_for_a_while() {
        let intents = Intents::new(1);
        intents.open(&repo(), &tag("1"), NOW, EXPIRES);
        intents.open(&repo(), &tag("2"), NOW, EXPIRES);
        assert!(intents.is_open(&"other".parse().unwrap(), &tag("x"), NOW));
        assert!(!intents.is_open(&"other".parse().unwrap(), &tag("x"), EXPIRES));
    }
}
