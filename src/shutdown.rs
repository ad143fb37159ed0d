//! Who owns a task, who tells it to stop, who waits for it.

use std::{future::Future, time::Duration};

use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// A group of tasks that stop together. Cloning gives another handle to the same group.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    token: CancellationToken,
    tasks: TaskTracker,
}

impl Shutdown {
    /// A group with no task yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// A group that stops when this one does, and can stop alone before it; the parent waits for its tasks too.
    #[must_use]
    pub fn child(&self) -> Self {
        Self { token: self.token.child_token(), tasks: self.tasks.clone() }
    }

    /// Runs a task in the group. It is expected to end soon after [`Shutdown::requested`] resolves.
    pub fn spawn<F>(&self, task: F) -> tokio::task::JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.tasks.spawn(task)
    }

    /// Resolves when the group is told to stop.
    pub async fn requested(&self) {
        self.token.cancelled().await;
    }

    /// Whether the group was told to stop.
    pub fn is_requested(&self) -> bool {
        self.token.is_cancelled()
    }

    /// The token behind it, for `select!` in nested futures.
    pub fn token(&self) -> &CancellationToken {
        &self.token
    }

    /// Tells every task of the group to stop.
    pub fn request(&self) {
        self.token.cancel();
    }

    /// Tells every task to stop and waits for them, at most `grace`; returns whether all ended.
    pub async fn finish(&self, grace: Duration) -> bool {
        self.request();
        self.tasks.close();
        tokio::time::timeout(grace, self.tasks.wait()).await.is_ok()
    }
}
