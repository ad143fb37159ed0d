//! The connection for blobs and snapshots. It is open only while it is of use: a primary with a
//! thousand sites that have everything should not hold two thousand connections.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::OnceCell, time::Instant};

use super::{BoxFuture, UpstreamError, quic::CloseCode};

/// A connection that nothing was asked on for this long is given up.
const REST_AFTER: Duration = Duration::from_secs(20);

/// Opens a connection; the error is for people.
pub type Open = Box<dyn Fn() -> BoxFuture<'static, Result<quinn::Connection, String>> + Send + Sync>;

/// The bulk connection of a session, opened when it is asked for. Cloning gives another handle to
/// the same connection.
#[derive(Clone)]
pub struct Bulk(Arc<Shared>);

struct Shared {
    open: Open,
    state: Mutex<State>,
}

struct State {
    /// Filled by the first who asks; the others wait for it.
    current: Arc<OnceCell<quinn::Connection>>,
    asked: Instant,
    closed: bool,
}

impl Bulk {
    /// A connection that `open` opens.
    pub fn new(open: Open) -> Self {
        let state = State { current: Arc::default(), asked: Instant::now(), closed: false };
        Self(Arc::new(Shared { open, state: Mutex::new(state) }))
    }

    /// The open connection; opens it if there is none. The caller ends when the session does.
    ///
    /// # Errors
    /// When it cannot be opened, or the session ended.
    pub async fn connection(&self) -> Result<quinn::Connection, UpstreamError> {
        let current = self.current()?;
        let connection = current.get_or_try_init(&*self.0.open).await.map_err(UpstreamError::Unreachable)?;
        if self.state().closed {
            connection.close(CloseCode::Bye.into(), b"");
        }
        Ok(connection.clone())
    }

    fn current(&self) -> Result<Arc<OnceCell<quinn::Connection>>, UpstreamError> {
        let mut state = self.state();
        if state.closed {
            return Err(UpstreamError::Unreachable("the session ended".to_owned()));
        }
        if state.current.get().is_some_and(|connection| connection.close_reason().is_some()) {
            state.current = Arc::default();
        }
        state.asked = Instant::now();
        Ok(Arc::clone(&state.current))
    }

    /// Gives the connection up when nothing was asked on it for a while; to be called now and then.
    /// What is under way on it goes on, and it closes with the last of that.
    pub fn rest(&self) {
        self.rest_after(REST_AFTER);
    }

    fn rest_after(&self, unasked: Duration) {
        let mut state = self.state();
        if state.current.initialized() && state.asked.elapsed() >= unasked {
            state.current = Arc::default();
        }
    }

    /// Closes it, for good.
    pub fn close(&self, code: CloseCode, reason: &str) {
        let current = {
            let mut state = self.state();
            state.closed = true;
            Arc::clone(&state.current)
        };
        if let Some(connection) = current.get() {
            connection.close(code.into(), reason.as_bytes());
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No code that holds the lock can panic midway.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Bulk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state();
        f.debug_struct("Bulk").field("open", &state.current.initialized()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::fetch::testing::{TestAuthority, connected, listening};

    /// A bulk connection to a primary that says nothing, and how often it was opened.
    fn bulk() -> (Bulk, Arc<AtomicUsize>) {
        let authority = Arc::new(TestAuthority::new());
        let (endpoint, address) = listening(&authority);
        tokio::spawn(async move {
            let mut kept = Vec::new();
            while let Some(incoming) = endpoint.accept().await {
                kept.push(incoming.await.unwrap());
            }
        });
        let opened = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&opened);
        let open = move || -> BoxFuture<'static, _> {
            count.fetch_add(1, Ordering::Relaxed);
            let authority = Arc::clone(&authority);
            Box::pin(async move {
                connected(&authority, address, "mumbai").await.map_err(|error| error.to_string())
            })
        };
        (Bulk::new(Box::new(open)), opened)
    }

    #[tokio::test]
    async fn it_is_opened_once_for_all_who_ask_and_again_when_it_is_lost() {
        let (bulk, opened) = bulk();
        assert_eq!(opened.load(Ordering::Relaxed), 0);
        let (one, other) = tokio::join!(bulk.connection(), bulk.connection());
        assert_eq!(one.unwrap().stable_id(), other.as_ref().unwrap().stable_id());
        assert_eq!(opened.load(Ordering::Relaxed), 1);
        other.unwrap().close(0_u32.into(), b"");
        assert!(bulk.connection().await.unwrap().close_reason().is_none());
        assert_eq!(opened.load(Ordering::Relaxed), 2);
    }

    #[tokio::test]
    async fn it_rests_after_a_while_and_what_is_under_way_goes_on() {
        let (bulk, opened) = bulk();
        let used = bulk.connection().await.unwrap();
        bulk.rest();
        assert_eq!(bulk.connection().await.unwrap().stable_id(), used.stable_id());
        bulk.rest_after(Duration::ZERO);
        assert!(used.close_reason().is_none());
        assert_ne!(bulk.connection().await.unwrap().stable_id(), used.stable_id());
        assert_eq!(opened.load(Ordering::Relaxed), 2);
    }

    #[tokio::test]
    async fn after_the_session_there_is_none() {
        let (bulk, _) = bulk();
        let open = bulk.connection().await.unwrap();
        bulk.close(CloseCode::Bye, "");
        assert!(open.close_reason().is_some());
        assert!(bulk.connection().await.is_err());
    }
}
