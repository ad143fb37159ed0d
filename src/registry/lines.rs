//! Many who ask the same thing at once share one question to the primary.
//!
//! An answer may only be given to those who asked before the question was sent: somebody who
//! asks later may know of a push the answer knows nothing of. So a key has at most one
//! question under way and one waiting behind it, which everybody who comes meanwhile joins.

use crate::watch;
use std::{
    collections::HashMap,
    future::Future,
    hash::Hash,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::oneshot;

use crate::{bounds, shutdown::Shutdown, telemetry::trace};

/// The questions under way, by key.
#[derive(Debug)]
pub(super) struct Lines<K, T> {
    lines: Arc<Mutex<HashMap<K, Line<T>>>>,
    keys_max: usize,
    shutdown: Shutdown,
}

/// A question is under way for this key.
#[derive(Debug)]
struct Line<T> {
    next: Option<Next<T>>,
}

/// The question behind it, not sent yet.
#[derive(Debug)]
struct Next<T> {
    start: oneshot::Sender<()>,
    answer: watch::Receiver<Option<T>>,
}

impl<K, T> Lines<K, T>
where
    K: Clone + Eq + Hash + Send + 'static,
    T: Clone + Send + Sync + 'static,
{
    /// No question. Beyond `keys_max` different ones at once everybody asks alone.
    pub(super) fn new(keys_max: usize, shutdown: Shutdown) -> Self {
        Self { lines: Arc::default(), keys_max, shutdown }
    }

    /// The answer to `question`, sent after this call began. `None` when the site shuts down. The
    /// question goes on when the caller leaves: others may wait for its answer.
    pub(super) async fn ask<F>(&self, key: &K, question: F) -> Option<T>
    where
        F: Future<Output = T> + Send + 'static,
    {
        let mut answer = match self.join(key) {
            Place::Shared(answer) => answer,
            Place::First(sender, answer) => {
                let turn = Turn { lines: Arc::clone(&self.lines), key: key.clone() };
                self.send(std::future::ready(Some(turn)), sender, question);
                answer
            }
            Place::Behind(started, sender, answer) => {
                let (lines, key) = (Arc::clone(&self.lines), key.clone());
                let turn = async move { started.await.ok().map(|()| Turn { lines, key }) };
                self.send(turn, sender, question);
                answer
            }
            Place::Alone => return Some(question.await),
        };
        answer.wait_for(Option::is_some).await.ok().and_then(|answer| answer.clone())
    }

    fn join(&self, key: &K) -> Place<T> {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(line) = lines.get_mut(key) {
            if let Some(next) = &line.next {
                return Place::Shared(next.answer.clone());
            }
            let (start, started) = oneshot::channel();
            let (sender, answer) = watch::channel(None);
            line.next = Some(Next { start, answer: answer.clone() });
            return Place::Behind(started, sender, answer);
        }
        if lines.len() >= self.keys_max {
            return Place::Alone;
        }
        lines.insert(key.clone(), Line { next: None });
        bounds::note("questions under way", lines.len(), self.keys_max);
        let (sender, answer) = watch::channel(None);
        Place::First(sender, answer)
    }

    /// Asks in a task of its own, once `turn` comes.
    fn send<F>(
        &self,
        turn: impl Future<Output = Option<Turn<K, T>>> + Send + 'static,
        sender: watch::Sender<Option<T>>,
        question: F,
    ) where
        F: Future<Output = T> + Send + 'static,
    {
        let (token, question) = (self.shutdown.token().clone(), trace::carried(question));
        self.shutdown.spawn(async move {
            let Some(_turn) = turn.await else {
                return;
            };
            if let Some(value) = token.run_until_cancelled(question).await {
                sender.send_replace(Some(value));
            }
        });
    }
}

/// Where somebody who asks finds himself.
enum Place<T> {
    /// The first: he sends his question.
    First(watch::Sender<Option<T>>, watch::Receiver<Option<T>>),
    /// Behind a question under way: he sends his when that one has ended.
    Behind(oneshot::Receiver<()>, watch::Sender<Option<T>>, watch::Receiver<Option<T>>),
    /// With others whose question is not sent yet.
    Shared(watch::Receiver<Option<T>>),
    /// There is no room.
    Alone,
}

/// The one question under way for a key. However it ends, the one behind it starts.
struct Turn<K: Eq + Hash, T> {
    lines: Arc<Mutex<HashMap<K, Line<T>>>>,
    key: K,
}

impl<K: Eq + Hash, T> Drop for Turn<K, T> {
    fn drop(&mut self) {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let next = lines.get_mut(&self.key).and_then(|line| line.next.take());
        if next.is_none_or(|next| next.start.send(()).is_err()) {
            lines.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::Notify;

    use super::*;

    #[tokio::test]
    async fn late_comers_share_the_next_question() {
        let lines = Arc::new(Lines::<&str, usize>::new(10, Shutdown::new()));
        let (sent, go) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
        let ask = || {
            let (lines, sent, go) = (Arc::clone(&lines), Arc::clone(&sent), Arc::clone(&go));
            tokio::spawn(async move {
                let question = async move {
                    let number = sent.fetch_add(1, Ordering::SeqCst) + 1;
                    go.notified().await;
                    number
                };
                lines.ask(&"key", question).await
            })
        };
        let first = ask();
        while sent.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        let others: Vec<_> = (0..5).map(|_| ask()).collect();
        while lines.lines.lock().unwrap().get("key").is_none_or(|line| line.next.is_none()) {
            tokio::task::yield_now().await;
        }
        go.notify_one();
        assert_eq!(first.await.unwrap(), Some(1));
        go.notify_one();
        for other in others {
            assert_eq!(other.await.unwrap(), Some(2));
        }
        assert!(lines.lines.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn the_first_leaves_and_the_rest_are_answered() {
        let lines = Arc::new(Lines::<&str, usize>::new(10, Shutdown::new()));
        let go = Arc::new(Notify::new());
        let waiting = Arc::clone(&go);
        let first = tokio::time::timeout(
            std::time::Duration::from_millis(1),
            lines.ask(&"key", async move {
                waiting.notified().await;
                1
            }),
        );
        assert!(first.await.is_err());
        go.notify_one();
        assert_eq!(lines.ask(&"key", async { 2 }).await, Some(2));
    }

    #[tokio::test]
    async fn too_many_keys_ask_alone_and_shutdown_answers_nobody() {
        let shutdown = Shutdown::new();
        let lines = Lines::<u32, u32>::new(0, shutdown.clone());
        assert_eq!(lines.ask(&1, async { 7 }).await, Some(7));
        let lines = Lines::<u32, u32>::new(1, shutdown.clone());
        shutdown.request();
        assert_eq!(lines.ask(&1, std::future::pending()).await, None);
    }
}
