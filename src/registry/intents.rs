//! Write intents: this site leads a push or delete to the primary, so what it names is about to
//! move, and reads of it ask the primary until it has moved.
//!
//! An intent has a number that travels with the request it announces and comes back in the event
//! that the request ends in: that event ends the intent, and no other does. A request that is
//! refused ends in no event; its intent ends when no request can be acknowledged any longer.
//!
//! On disk an intent is noted before its client is sent away, so that a restart forgets none. A
//! start that cannot know what it may have forgotten takes everything for announced for as long.

mod notes;

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use outport_proto::{Event, Reference, RepoName, SiteName, Timestamp};

use self::notes::{Note, Notes};
use crate::{
    auth::ticket::{TICKET_LIFE_MAX, WRITE_TIME_MAX},
    bounds,
    log::disk::SharedDisk,
};

/// How long an intent waits for its event: no request that was led to the primary is acknowledged
/// later than this.
pub const INTENT_LIFE: Duration = TICKET_LIFE_MAX.saturating_add(WRITE_TIME_MAX);
/// Intents that have run out are looked for this often; until then they count for nothing.
const SWEEP_INTERVAL: Duration = Duration::from_secs(10);

/// What a request that is led to the primary will change there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Intent {
    /// Drawn at random.
    pub number: u64,
    /// The repository.
    pub repo: RepoName,
    /// The tags, manifests and blobs it names.
    pub names: Vec<Reference>,
    /// Whether tags go that it does not name: a deleted manifest takes those that name it along.
    pub takes_tags: bool,
}

/// The open write intents of a site. Cloning gives another handle to the same set.
#[derive(Clone, Debug)]
pub struct Intents {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    site: SiteName,
    intents_max: usize,
    /// Readers pass without the lock while there is no intent, which is nearly always.
    any: AtomicBool,
    open: Mutex<Open>,
    /// `None` when a restart may forget them.
    notes: Option<Mutex<Notes>>,
}

#[derive(Debug, Default)]
struct Open {
    repos: HashMap<RepoName, Vec<Waiting>>,
    count: usize,
    /// Until then everything counts as announced.
    everything_until: Timestamp,
    swept: Timestamp,
}

#[derive(Debug)]
struct Waiting {
    intent: Intent,
    expires: Timestamp,
}

/// Whether a site can have opened an intent before this start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Past {
    /// It never knew a primary.
    None,
    /// It may have led requests to its primary.
    Perhaps,
}

impl Intents {
    /// No intent, and none survives a restart. At most `intents_max` are kept one by one; beyond
    /// that every read counts as announced until the one without room has run out.
    pub fn in_memory(site: SiteName, intents_max: usize) -> Self {
        Self::with(site, intents_max, None, Vec::new(), Timestamp::default())
    }

    /// Those that stand on `disk`, which is theirs alone. `boot` names the run of the kernel: what
    /// another one left in its caches is lost. What cannot be read is no error, it is doubt. May
    /// block on the disk.
    pub fn open_on(
        disk: SharedDisk,
        boot: Option<&str>,
        past: Past,
        (site, intents_max): (SiteName, usize),
        now: Timestamp,
    ) -> Self {
        let (notes, standing) = Notes::open(disk, boot, past);
        Self::with(site, intents_max, Some(Mutex::new(notes)), standing, now)
    }

    /// Intents that stood on disk live as long as if they were opened now: how long ago that was
    /// is not known for sure.
    fn with(
        site: SiteName,
        intents_max: usize,
        notes: Option<Mutex<Notes>>,
        standing: Vec<Note>,
        now: Timestamp,
    ) -> Self {
        let mut open = Open::default();
        let expires = now.plus(INTENT_LIFE);
        for note in standing {
            match note {
                Note::Intent(intent) => open.add(intent, expires),
                Note::Everything => open.everything_until = expires,
            }
        }
        let any = AtomicBool::new(open.is_any());
        let open = Mutex::new(open);
        Self { shared: Arc::new(Shared { site, intents_max, any, open, notes }) }
    }

    /// Opens an intent, and notes it on disk; `now` is by a clock that nobody sets, here and below; the request may be led away
    /// once this returns. May block on the disk.
    pub fn open(&self, intent: Intent, now: Timestamp) {
        let expires = now.plus(INTENT_LIFE);
        let note = {
            let mut open = self.lock();
            self.shared.any.store(true, Ordering::Release);
            if open.count >= self.shared.intents_max {
                open.sweep(now);
            }
            if open.count >= self.shared.intents_max {
                open.everything_until = open.everything_until.max(expires);
                Note::Everything
            } else {
                open.add(intent.clone(), expires);
                bounds::note("write intents", open.count, self.shared.intents_max);
                Note::Intent(intent)
            }
        };
        if let Some(notes) = &self.shared.notes {
            let mut notes = notes.lock().unwrap_or_else(PoisonError::into_inner);
            // Looked at again behind the lock of the file: what is open and not in it yet waits for that.
            let standing = {
                let mut open = self.lock();
                open.sweep_now_and_then(now);
                let rest_is_over = open.count <= 1 && open.everything_until <= now;
                (rest_is_over || notes.is_large()).then(|| open.notes(now))
            };
            match standing {
                Some(standing) => notes.begin_anew(&standing),
                None => notes.add(&note),
            }
        }
    }

    /// Whether `reference` in `repo` is announced to move, or may be.
    pub fn is_open(&self, repo: &RepoName, reference: &Reference, now: Timestamp) -> bool {
        let is_tag = matches!(reference, Reference::Tag(_));
        self.any_open(now, |open| {
            open.of(repo, now).any(|intent| intent.takes_tags && is_tag || intent.names.contains(reference))
        })
    }

    /// Whether anything in `repo` is announced to move: referrers and its tags may.
    pub fn is_open_in(&self, repo: &RepoName, now: Timestamp) -> bool {
        self.any_open(now, |open| open.of(repo, now).next().is_some())
    }

    /// Whether anything is announced to move: the list of repositories may.
    pub fn is_any_open(&self, now: Timestamp) -> bool {
        self.any_open(now, |open| open.repos.values().flatten().any(|waiting| waiting.expires > now))
    }

    fn any_open(&self, now: Timestamp, concerns: impl Fn(&Open) -> bool) -> bool {
        if !self.shared.any.load(Ordering::Acquire) {
            return false;
        }
        let mut open = self.lock();
        open.sweep_now_and_then(now);
        self.shared.any.store(open.is_any(), Ordering::Release);
        open.everything_until > now || concerns(&open)
    }

    /// An event was applied: the intent it fulfils ends, if this site opened it.
    pub fn note_applied(&self, event: &Event) {
        if let (Some(intent), Some(repo)) = (&event.intent, event.change.repo())
            && intent.site == self.shared.site
        {
            self.end(repo, intent.number);
        }
    }

    /// The primary refused the request that intent `number` announced: nothing moves.
    pub fn end(&self, repo: &RepoName, number: u64) {
        if !self.shared.any.load(Ordering::Acquire) {
            return;
        }
        let mut open = self.lock();
        open.end(repo, number);
        self.shared.any.store(open.is_any(), Ordering::Release);
    }

    /// Nothing in here can be half done by a panic: every change is one step.
    fn lock(&self) -> MutexGuard<'_, Open> {
        self.shared.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Open {
    fn add(&mut self, intent: Intent, expires: Timestamp) {
        self.count += 1;
        self.repos.entry(intent.repo.clone()).or_default().push(Waiting { intent, expires });
    }

    fn end(&mut self, repo: &RepoName, number: u64) {
        let Some(waiting) = self.repos.get_mut(repo) else { return };
        let before = waiting.len();
        waiting.retain(|waiting| waiting.intent.number != number);
        self.count -= before - waiting.len();
        if waiting.is_empty() {
            self.repos.remove(repo);
        }
    }

    fn is_any(&self) -> bool {
        self.count > 0 || self.everything_until > Timestamp::default()
    }

    /// Those in `repo` that have not run out.
    fn of(&self, repo: &RepoName, now: Timestamp) -> impl Iterator<Item = &Intent> {
        let waiting = self.repos.get(repo).into_iter().flatten();
        waiting.filter(move |waiting| waiting.expires > now).map(|waiting| &waiting.intent)
    }

    /// What has to stand on disk.
    fn notes(&self, now: Timestamp) -> Vec<Note> {
        let intents = self.repos.values().flatten().map(|waiting| Note::Intent(waiting.intent.clone()));
        let everything = (self.everything_until > now).then_some(Note::Everything);
        everything.into_iter().chain(intents).collect()
    }

    fn sweep_now_and_then(&mut self, now: Timestamp) {
        if now < self.swept || now.since(self.swept) >= SWEEP_INTERVAL {
            self.sweep(now);
        }
    }

    fn sweep(&mut self, now: Timestamp) {
        self.swept = now;
        self.repos.retain(|_, waiting| {
            waiting.retain(|waiting| waiting.expires > now);
            !waiting.is_empty()
        });
        self.count = self.repos.values().map(Vec::len).sum();
        if self.everything_until <= now {
            self.everything_until = Timestamp::default();
        }
    }
}

#[cfg(test)]
mod tests;
