//! Machines that become sites: one question on a connection that shows no certificate.

use std::{sync::Arc, time::Duration};

use outport_proto::{
    SiteName,
    frame::{Join, Joined},
};
use tokio::sync::Semaphore;

use super::members::{MemberError, Members};
use crate::{
    blocking,
    fetch::{
        framed::{FrameSink, FrameStream, FramedError},
        quic::{CloseCode, Listener},
    },
};

/// Machines that are listened to at once; they are strangers until they show a token.
const JOINS_MAX: usize = 4;
/// All of it must be done within this.
const TIMEOUT: Duration = Duration::from_secs(10);

/// An answer is under way for no longer than this.
const FAREWELL: Duration = Duration::from_secs(2);

/// Called with every site that joined.
pub type OnJoined = Arc<dyn Fn(&SiteName) + Send + Sync>;

/// Lets machines with a token become sites.
pub struct Joins {
    members: Arc<Members>,
    on_joined: OnJoined,
    turns: Semaphore,
}

impl Joins {
    /// As `members` know the tokens.
    pub fn new(members: Arc<Members>, on_joined: OnJoined) -> Self {
        Self { members, on_joined, turns: Semaphore::new(JOINS_MAX) }
    }

    /// Serves one machine.
    pub(super) async fn serve(&self, incoming: quinn::Incoming, listener: &Listener) {
        let peer = incoming.remote_address();
        let Ok(_turn) = self.turns.try_acquire() else {
            tracing::warn!(%peer, "a machine that wants to join was sent away: too many at once");
            return incoming.refuse();
        };
        match tokio::time::timeout(TIMEOUT, self.answer(incoming, listener)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%peer, %error, "a machine did not say how it wants to join"),
            Err(_) => tracing::warn!(%peer, "a machine took too long to join"),
        }
    }

    async fn answer(&self, incoming: quinn::Incoming, listener: &Listener) -> Result<(), FramedError> {
        let peer = incoming.remote_address();
        let broken = |error: quinn::ConnectionError| FramedError::Broken(error.to_string());
        let connection = listener.accept(incoming).map_err(broken)?.await.map_err(broken)?;
        let (send, receive) = connection.accept_bi().await.map_err(broken)?;
        let join = FrameStream::<Join>::new(receive).expect(TIMEOUT).await?;
        let mut sink = FrameSink::new(send, TIMEOUT);
        sink.send(&self.joined(join, peer).await).await?;
        sink.finish();
        // The machine closes the connection once it has the answer; one that does not holds up no other.
        let _ = tokio::time::timeout(FAREWELL, connection.closed()).await;
        connection.close(CloseCode::Bye.into(), b"");
        Ok(())
    }

    async fn joined(&self, join: Join, peer: std::net::SocketAddr) -> Joined {
        let (members, site) = (Arc::clone(&self.members), join.site.clone());
        let (node, program) = (join.node.clone(), join.program.clone());
        let joined = match blocking::spawn(move || members.join(&join)).await {
            Ok(joined) => joined,
            Err(error) => {
                tracing::error!(%site, %peer, %error, "letting a machine join crashed");
                return Joined::Refused("the primary failed; its log says why".to_owned());
            }
        };
        match joined {
            Ok(certificates) => {
                tracing::info!(%site, %peer, node, program, "site joined");
                (self.on_joined)(&site);
                Joined::Joined(certificates)
            }
            Err(error) => {
                tracing::warn!(%site, %peer, node, program, %error, "a machine was refused that wants to join");
                Joined::Refused(match error {
                    MemberError::TokenUnknown | MemberError::TokenUsed | MemberError::TokenExpired => {
                        error.to_string()
                    }
                    // Not for strangers.
                    _ => "the primary cannot certify a site now; its log says why".to_owned(),
                })
            }
        }
    }
}
