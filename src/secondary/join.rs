//! A machine becomes a site: it shows the primary the token that it was given.

use std::{net::SocketAddr, time::Duration};

use outport_proto::frame::{CertificateRequests, Certificates, Join, Joined};

use super::dial::UDP_AHEAD;
use crate::{
    auth::{
        JoinToken,
        authority::PRIMARY_NAME,
        join_tls::{fingerprint, join_client},
        tls::TlsError,
    },
    fetch::{
        framed::{FrameSink, FrameStream, FramedError},
        quic::{self, CloseCode, QuicError, TransportOptions, Udp},
        race,
        tunnel::{Tunnel, Way},
    },
};

/// An address must lead to an answer within this.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Becomes the site of `token`, with certificates for the keys of `requests`; `node` is for people, and `way` leads
/// to the primary where UDP does not work.
///
/// # Errors
/// When no address answers, or the primary refuses.
pub async fn join(
    token: &JoinToken,
    way: &Way,
    requests: CertificateRequests,
    node: String,
) -> Result<Certificates, JoinError> {
    let config = quic::join_client_config(&join_client(token.authority)?)?;
    let join = Join {
        site: token.site.clone(),
        secret: token.secret,
        requests,
        node,
        program: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let names = token.addresses.join(", ");
    let directly = async {
        let addresses = race::addresses(&token.addresses).await.map_err(|error| error.to_string())?;
        let connection = race::first(addresses, |address| connect(address, &config)).await;
        let (endpoint, connection) =
            connection.map_err(|error| error.unwrap_or_else(|| "no address".to_owned()))?;
        Ok::<_, String>(Connected { endpoint, connection, _tunnel: None })
    };
    let over_tcp = async {
        let tunnel = way.open().await.map_err(|error| error.to_string())?;
        let (endpoint, connection) = connect(tunnel.address, &config).await?;
        Ok::<_, String>(Connected { endpoint, connection, _tunnel: Some(tunnel) })
    };
    let asked = async { ask(&race::with_spare(directly, UDP_AHEAD, over_tcp).await?, &join).await };
    let asked = tokio::time::timeout(TIMEOUT, asked).await;
    match asked.unwrap_or_else(|_| Err(format!("no answer within {TIMEOUT:?}"))) {
        Ok(Joined::Joined(certificates)) => checked(token, certificates),
        Ok(Joined::Refused(reason)) => Err(JoinError::Refused(reason)),
        Err(reason) => Err(JoinError::Unreachable(format!("{names}: {reason}"))),
    }
}

/// The token is shown on one connection alone, however many are tried.
async fn connect(
    address: SocketAddr,
    config: &quinn::ClientConfig,
) -> Result<(quinn::Endpoint, quinn::Connection), String> {
    let failed = |reason: String| format!("{address}: {reason}");
    let endpoint = quic::dialer(&Udp, address, &TransportOptions::joining());
    let endpoint = endpoint.map_err(|error| failed(error.to_string()))?;
    let connecting = endpoint.connect_with(config.clone(), address, PRIMARY_NAME);
    let connecting = connecting.map_err(|error| failed(error.to_string()))?;
    let connection = connecting.await.map_err(|error| failed(error.to_string()))?;
    Ok((endpoint, connection))
}

struct Connected {
    endpoint: quinn::Endpoint,
    connection: quinn::Connection,
    /// What it travels through, if it does.
    _tunnel: Option<Tunnel>,
}

async fn ask(Connected { endpoint, connection, .. }: &Connected, join: &Join) -> Result<Joined, String> {
    let (send, receive) = connection.open_bi().await.map_err(|error| error.to_string())?;
    let asked = async {
        let mut sink = FrameSink::new(send, TIMEOUT);
        sink.send(join).await?;
        sink.finish();
        FrameStream::<Joined>::new(receive).expect(TIMEOUT).await
    };
    let answer = asked.await.map_err(|error: FramedError| error.to_string());
    connection.close(CloseCode::Bye.into(), b"");
    // The primary waits to hear it.
    endpoint.wait_idle().await;
    answer
}

/// What the site believes from now on must be what the token says.
fn checked(token: &JoinToken, certificates: Certificates) -> Result<Certificates, JoinError> {
    match certificates.authorities.iter().any(|authority| fingerprint(authority) == token.authority) {
        true => Ok(certificates),
        false => Err(JoinError::Refused("its authority is not the one of the join token".to_owned())),
    }
}

/// Why the machine is no site.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The primary said no; for people.
    #[error("the primary refused: {0}")]
    Refused(String),
    /// What was tried, and what came of it.
    #[error("the primary cannot be reached: {0}")]
    Unreachable(String),
    /// No endpoint.
    #[error(transparent)]
    Quic(#[from] QuicError),
    /// No TLS.
    #[error(transparent)]
    Tls(#[from] TlsError),
}
