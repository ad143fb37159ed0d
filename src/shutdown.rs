//! Who owns a task, who tells it to stop, who waits for it.

use std::{future::Future, time::Duration};

use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::process;

/// A group of tasks that stop together. Cloning gives another handle to the same group.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    token: CancellationToken,
    tasks: TaskTracker,
    /// The groups this one is a part of: they wait for its tasks too.
    above: Vec<TaskTracker>,
}

impl Shutdown {
    /// A group with no task yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// A group that stops when this one does, and can stop alone before it. This one waits for its tasks too.
    #[must_use]
    pub fn child(&self) -> Self {
        let above = self.above.iter().chain([&self.tasks]).cloned().collect();
        Self { token: self.token.child_token(), tasks: TaskTracker::new(), above }
    }

    /// Runs a task in the group. It is expected to end soon after [`Shutdown::requested`] resolves.
    pub fn spawn<F>(&self, task: F) -> tokio::task::JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let above: Vec<_> = self.above.iter().map(TaskTracker::token).collect();
        self.tasks.spawn(process::inherit(async move {
            let _above = above;
            task.await
        }))
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

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_millis(50);

    fn group_with_a_task(parent: &Shutdown) -> Shutdown {
        let group = parent.child();
        let told = group.clone();
        group.spawn(async move { told.requested().await });
        group
    }

    #[tokio::test]
    async fn a_child_stops_alone() {
        let parent = Shutdown::new();
        let (first, second) = (group_with_a_task(&parent), group_with_a_task(&parent));
        assert!(first.finish(GRACE).await);
        assert!(!second.is_requested() && !parent.is_requested());
    }

    #[tokio::test]
    async fn a_parent_stops_its_children_and_waits_for_them() {
        let parent = Shutdown::new();
        let child = group_with_a_task(&parent);
        let stubborn = child.spawn(std::future::pending::<()>());
        assert!(!parent.finish(GRACE).await);
        assert!(child.is_requested());
        stubborn.abort();
        assert!(parent.finish(GRACE).await);
    }
}
