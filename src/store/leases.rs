//! Who counts on a blob, so that nobody takes it away meanwhile.
//!
//! A *lease* is held by whoever was told that a blob is here, or is about to say so in the log: an
//! upload from before its content is published until its link can be read, a mount from before it
//! looks for the blob until it is linked, a manifest that is kept as a blob until its event is
//! applied. Whoever was merely *told* (a push session that asked with HEAD) holds one for a while.
//!
//! # Why nothing that is linked is ever taken away
//!
//! [`Store::take_unneeded`] looks for leases, then for links, and then
//! takes the blob out of sight, all under the lock that a lease is made under. So a lease is made
//! either before, and then the blob stays; or after, and then the blob is gone from sight already:
//! its holder looks for it, or for a link to it, only now. A link found now, of a blob that had none
//! under the lock, was made since, by somebody who held a lease since and found a link or published
//! the content: at the beginning of every such chain stands content published after the blob was
//! gone. It is there.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    fs,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use outport_proto::Digest;
use tokio::time::Instant;

use crate::planted::{Bug, is_planted};

use super::{Inner, Store, StoreError, Taken};

const STRIPES: usize = 64;
/// Digests remembered a stripe because somebody was told of them; beyond it all of the stripe count as told.
const TOLD_MAX: usize = 1024;

/// Keeps a blob where it is until it is dropped.
#[derive(Debug)]
pub struct Lease {
    store: Arc<Inner>,
    digest: Digest,
}

/// All leases of a store.
#[derive(Debug)]
pub(super) struct Leases {
    stripes: Vec<Mutex<Stripe>>,
}

/// The leases of some digests. Whoever has it locked may take one of them away that is not leased.
#[derive(Debug, Default)]
pub(super) struct Stripe {
    held: BTreeMap<Digest, usize>,
    told: BTreeMap<Digest, Instant>,
    /// Until then every digest counts as told: more were than could be remembered.
    all_told: Option<Instant>,
}

impl Store {
    /// Keeps `digest` where it is, or will be, until the lease is dropped. To be held by whoever
    /// relies on it or is about to publish it, from before the look. May wait for the disk.
    pub fn lease(&self, digest: &Digest) -> Lease {
        Lease::new(Arc::clone(&self.inner), *digest)
    }

    /// Somebody is told that `digest` is here and may rely on it until then. To be called before
    /// the look. May wait for the disk.
    pub fn lease_until(&self, digest: &Digest, until: Instant) {
        self.inner.leases.of(digest).tell(digest, Instant::now(), until);
    }

    /// Takes the blob away unless somebody holds a lease on it or `is_needed` says that it is
    /// linked. Who has it open reads on.
    ///
    /// # Errors
    /// What `is_needed` says; when the disk fails. The blob stays.
    pub fn take_unneeded<E: From<StoreError>>(
        &self,
        digest: &Digest,
        is_needed: impl FnOnce() -> Result<bool, E>,
    ) -> Result<Taken, E> {
        self.inner.take_unneeded(digest, is_needed)
    }
}

impl Inner {
    pub(super) fn take_unneeded<E: From<StoreError>>(
        &self,
        digest: &Digest,
        is_needed: impl FnOnce() -> Result<bool, E>,
    ) -> Result<Taken, E> {
        let away = self.temp_path();
        let leases = self.leases.of(digest);
        if leases.is_leased(digest, Instant::now()) && !is_planted(Bug::CollectWithoutLeases) {
            return Ok(Taken::Leased);
        }
        if is_needed()? {
            return Ok(Taken::Needed);
        }
        // Out of sight under the lock, which takes no time; given back to the disk behind it.
        let taken = self.take_away(digest, |path| fs::rename(path, &away), "take a blob away")?;
        drop(leases);
        match taken {
            Some(bytes) => {
                // What cannot be removed now is removed when the store opens next.
                let _ = fs::remove_file(&away);
                Ok(Taken::Away { bytes })
            }
            None => Ok(Taken::Absent),
        }
    }
}

impl Leases {
    pub(super) fn new() -> Self {
        Self { stripes: (0..STRIPES).map(|_| Mutex::default()).collect() }
    }

    pub(super) fn of(&self, digest: &Digest) -> MutexGuard<'_, Stripe> {
        let stripe = usize::from(digest.as_bytes()[0]) % STRIPES;
        self.stripes[stripe].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Stripe {
    /// Whether somebody counts on the blob: then it stays.
    pub(super) fn is_leased(&self, digest: &Digest, now: Instant) -> bool {
        self.held.contains_key(digest)
            || self.told.get(digest).is_some_and(|until| *until > now)
            || self.all_told.is_some_and(|until| until > now)
    }

    pub(super) fn tell(&mut self, digest: &Digest, now: Instant, until: Instant) {
        if let Some(known) = self.told.get_mut(digest) {
            *known = until.max(*known);
            return;
        }
        if self.told.len() >= TOLD_MAX {
            self.told.retain(|_, until| *until > now);
        }
        if self.told.len() >= TOLD_MAX {
            self.all_told = self.all_told.max(Some(until));
        } else {
            self.told.insert(*digest, until);
        }
    }
}

impl Lease {
    pub(super) fn new(store: Arc<Inner>, digest: Digest) -> Self {
        *store.leases.of(&digest).held.entry(digest).or_default() += 1;
        Self { store, digest }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut stripe = self.store.leases.of(&self.digest);
        if let Entry::Occupied(mut holders) = stripe.held.entry(self.digest) {
            *holders.get_mut() -= 1;
            if *holders.get() == 0 {
                holders.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn more_that_were_told_than_can_be_remembered_are_all_believed() {
        let (mut stripe, now) = (Stripe::default(), Instant::now());
        let soon = now + Duration::from_secs(1);
        let digest = |n: usize| Digest::sha256(&n.to_be_bytes());
        (0..TOLD_MAX).for_each(|n| stripe.tell(&digest(n), now, soon));
        assert!(stripe.is_leased(&digest(0), now));
        assert!(!stripe.is_leased(&digest(TOLD_MAX), now), "nobody was told");
        stripe.tell(&digest(TOLD_MAX), now, soon);
        assert!(stripe.is_leased(&digest(TOLD_MAX), now));
        assert!(!stripe.is_leased(&digest(0), soon));
        stripe.tell(&digest(TOLD_MAX + 1), soon, soon + Duration::from_secs(1));
        assert_eq!(stripe.told.len(), 1, "what is over makes room");
        assert!(!stripe.is_leased(&digest(0), soon));
    }
}
