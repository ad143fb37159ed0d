//! A value that others follow, as `tokio::sync::watch` offers it, but for one thing: when it
//! changes, those who wait are woken in the order in which they began to wait. tokio's wakes them
//! in a random order, which no simulation could repeat.

use std::{
    ops::Deref,
    sync::{
        Arc, PoisonError, RwLock, RwLockReadGuard,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::sync::Notify;

/// A channel whose value begins as `value`.
pub fn channel<T>(value: T) -> (Sender<T>, Receiver<T>) {
    let sender = Sender::new(value);
    let receiver = sender.subscribe();
    (sender, receiver)
}

#[derive(Debug)]
struct Shared<T> {
    state: RwLock<State<T>>,
    changed: Notify,
    senders: AtomicUsize,
}

#[derive(Debug)]
struct State<T> {
    value: T,
    version: u64,
    is_closed: bool,
}

impl<T> Shared<T> {
    fn read(&self) -> RwLockReadGuard<'_, State<T>> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut T) -> bool) -> bool {
        let is_changed = {
            let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
            let is_changed = change(&mut state.value);
            state.version += u64::from(is_changed);
            is_changed
        };
        if is_changed {
            self.changed.notify_waiters();
        }
        is_changed
    }
}

/// Changes the value. Cloning gives another handle; when the last one goes the channel is closed.
#[derive(Debug)]
pub struct Sender<T> {
    shared: Arc<Shared<T>>,
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        self.shared.senders.fetch_add(1, Ordering::Relaxed);
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        if self.shared.senders.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.shared.state.write().unwrap_or_else(PoisonError::into_inner).is_closed = true;
            self.shared.changed.notify_waiters();
        }
    }
}

impl<T: Default> Default for Sender<T> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

impl<T> Sender<T> {
    /// The end that changes the value; those who follow [`subscribe`](Self::subscribe).
    pub fn new(value: T) -> Self {
        let state = RwLock::new(State { value, version: 0, is_closed: false });
        Self { shared: Arc::new(Shared { state, changed: Notify::new(), senders: AtomicUsize::new(1) }) }
    }

    /// Follows the value; the present one counts as seen.
    pub fn subscribe(&self) -> Receiver<T> {
        let seen = self.shared.read().version;
        Receiver { shared: Arc::clone(&self.shared), seen }
    }

    /// The value. Whoever holds it keeps it from changing.
    pub fn borrow(&self) -> Ref<'_, T> {
        Ref(self.shared.read())
    }

    /// Puts `value` there and returns what was.
    pub fn send_replace(&self, mut value: T) -> T {
        self.send_modify(|now| std::mem::swap(now, &mut value));
        value
    }

    /// Changes the value.
    pub fn send_modify(&self, change: impl FnOnce(&mut T)) {
        self.shared.change(|value| {
            change(value);
            true
        });
    }

    /// Changes the value if `change` says that it did; says whether it did.
    pub fn send_if_modified(&self, change: impl FnOnce(&mut T) -> bool) -> bool {
        self.shared.change(change)
    }
}

/// Follows the value. Cloning gives another one that has seen the same.
#[derive(Debug)]
pub struct Receiver<T> {
    shared: Arc<Shared<T>>,
    seen: u64,
}

impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared), seen: self.seen }
    }
}

impl<T> Receiver<T> {
    /// The value, which does not count as seen by that.
    pub fn borrow(&self) -> Ref<'_, T> {
        Ref(self.shared.read())
    }

    /// The value, which counts as seen.
    pub fn borrow_and_update(&mut self) -> Ref<'_, T> {
        let state = self.shared.read();
        self.seen = state.version;
        Ref(state)
    }

    /// The present value counts as seen.
    pub fn mark_unchanged(&mut self) {
        self.seen = self.shared.read().version;
    }

    /// Whether the value changed since it was seen.
    ///
    /// # Errors
    /// When nobody can change it any more.
    pub fn has_changed(&self) -> Result<bool, Closed> {
        let state = self.shared.read();
        if state.is_closed { Err(Closed) } else { Ok(state.version != self.seen) }
    }

    /// Waits for a value that was not seen; it counts as seen then. May be dropped at any time.
    ///
    /// # Errors
    /// When nobody can change it any more.
    pub async fn changed(&mut self) -> Result<(), Closed> {
        loop {
            let changed = self.shared.changed.notified();
            {
                let state = self.shared.read();
                if state.version != self.seen {
                    self.seen = state.version;
                    return Ok(());
                }
                if state.is_closed {
                    return Err(Closed);
                }
            }
            changed.await;
        }
    }

    /// Waits until `is_so` holds for the value, which counts as seen then.
    ///
    /// # Errors
    /// When it does not, and nobody can change it any more.
    pub async fn wait_for(&mut self, mut is_so: impl FnMut(&T) -> bool) -> Result<Ref<'_, T>, Closed> {
        loop {
            let changed = self.shared.changed.notified();
            {
                let state = self.shared.read();
                self.seen = state.version;
                if is_so(&state.value) {
                    break;
                }
                if state.is_closed {
                    return Err(Closed);
                }
            }
            changed.await;
        }
        Ok(Ref(self.shared.read()))
    }
}

/// The value, read.
#[derive(Debug)]
pub struct Ref<'a, T>(RwLockReadGuard<'a, State<T>>);

impl<T> Deref for Ref<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0.value
    }
}

/// Nobody can change the value any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("nobody can change the value any more")]
pub struct Closed;

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[tokio::test]
    async fn those_who_wait_are_woken_in_the_order_in_which_they_began() {
        let sender = Sender::new(0);
        let woken = Arc::new(Mutex::new(Vec::new()));
        let waiting: Vec<_> = (0..20)
            .map(|number| {
                let (mut receiver, woken) = (sender.subscribe(), Arc::clone(&woken));
                tokio::spawn(async move {
                    receiver.wait_for(|value| *value == 1).await.unwrap();
                    woken.lock().unwrap().push(number);
                })
            })
            .collect();
        tokio::task::yield_now().await;
        assert_eq!(sender.send_replace(1), 0);
        for task in waiting {
            task.await.unwrap();
        }
        assert_eq!(*woken.lock().unwrap(), (0..20).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn a_change_is_seen_once_and_the_end_is_told() {
        let (sender, mut receiver) = channel(1);
        assert!(!receiver.has_changed().unwrap());
        assert!(!sender.send_if_modified(|_| false));
        assert!(!receiver.has_changed().unwrap());
        sender.send_modify(|value| *value = 2);
        receiver.changed().await.unwrap();
        assert_eq!((*receiver.borrow(), receiver.has_changed()), (2, Ok(false)));
        drop(sender.clone());
        drop(sender);
        assert_eq!(receiver.changed().await, Err(Closed));
        assert!(receiver.wait_for(|value| *value == 2).await.is_ok());
        assert!(receiver.wait_for(|value| *value == 3).await.is_err());
    }
}
