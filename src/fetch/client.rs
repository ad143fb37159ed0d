//! The HTTP client that everything is asked with that is not asked over QUIC.

use std::time::Duration;

use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use tokio_rustls::rustls::ClientConfig;

/// Idle connections are kept warm for this long.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// A client that sends bodies `B`.
pub type HttpClient<B> = Client<HttpsConnector<HttpConnector>, B>;

/// A client for `http` and `https` that believes certificates as `tls` says, and keeps at most
/// `idle_connections_max` of a host. HTTP/1.1 alone: with HTTP/2 several uploads would squeeze through one
/// connection's window.
pub fn http_client<B>(
    tls: &ClientConfig,
    connect_timeout: Duration,
    idle_connections_max: usize,
) -> HttpClient<B>
where
    B: http_body::Body<Data: Send> + Send,
{
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(connect_timeout));
    let connector = HttpsConnectorBuilder::new()
        .with_tls_config(tls.clone())
        .https_or_http()
        .enable_http1()
        .wrap_connector(tcp);
    Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE_TIMEOUT)
        .pool_max_idle_per_host(idle_connections_max)
        .build(connector)
}
