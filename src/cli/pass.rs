//! Following a pass that a node makes over all it has: garbage collection, verification.

use std::time::Duration;

use anyhow::{Context as _, bail};
use http::{Method, StatusCode};
use serde::de::DeserializeOwned;
use tokio::time::sleep;

use super::admin::AdminAddress;

const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// How far a pass is.
pub(super) trait Pass: DeserializeOwned {
    /// Counts the passes since the node's start.
    fn number(&self) -> u64;
    /// Whether it goes on.
    fn is_running(&self) -> bool;
}

/// Begins a pass with a POST to `path` with `query`, behind the one that may be under way, shows it
/// every time it was looked at, and returns what it came to.
pub(super) async fn follow<P: Pass>(
    admin: &AdminAddress,
    path: &str,
    query: &str,
    mut show: impl FnMut(&P) -> anyhow::Result<()>,
) -> anyhow::Result<P> {
    let begin = format!("{path}?{query}");
    let mut now: P = loop {
        let (status, text) = admin.ask(Method::POST, &begin, ANSWER_TIMEOUT).await?;
        match status {
            StatusCode::ACCEPTED => break serde_json::from_str(&text).context("read answer")?,
            StatusCode::CONFLICT => sleep(LOOK_INTERVAL).await,
            _ => bail!("ask {}: {status}: {}", admin.address(), text.trim()),
        }
    };
    let number = now.number();
    while now.is_running() {
        show(&now)?;
        sleep(LOOK_INTERVAL).await;
        let text = admin.page(path, ANSWER_TIMEOUT).await?;
        now = serde_json::from_str(&text).context("read answer")?;
        if now.number() != number {
            bail!("the node restarted, or began another pass before this one's result was read");
        }
    }
    Ok(now)
}
