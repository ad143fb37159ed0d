//! The two listeners every node has: the registry's and the admin's.

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use tokio::net::TcpListener;

use super::{StartError, data_dir::DataDir};
use crate::{
    admin::{Admin, TIMEOUT_MAX},
    blocking,
    clock::SharedClock,
    history::{History, STEP},
    http::{Api, Connection, Patience, ServerOptions, TlsConfig, serve},
    shutdown::Shutdown,
    status::{Status, StatusSource},
};

/// Binds a TCP listener; `key` is what configured its address.
pub(super) async fn bind(address: SocketAddr, key: &str) -> Result<TcpListener, StartError> {
    TcpListener::bind(address)
        .await
        .map_err(|error| StartError::new(format!("listen at {address} ({key})"), error))
}

/// Reads the token that admin requests must carry.
pub(super) fn admin_token(file: Option<&Path>) -> Result<Option<String>, StartError> {
    let Some(file) = file else { return Ok(None) };
    let failed =
        |reason: String| StartError::new(format!("read admin.token_file {}", file.display()), reason);
    let token = std::fs::read_to_string(file).map_err(|error| failed(error.to_string()))?;
    match token.trim() {
        "" => Err(failed("it is empty".to_owned())),
        token => Ok(Some(token.to_owned())),
    }
}

/// Answers clients until shutdown, then drains.
pub(super) fn serve_registry(
    listener: TcpListener,
    tls: Option<TlsConfig>,
    connections_max: usize,
    api: Api,
    shutdown: &Shutdown,
) {
    let proxies = api.proxies.clone();
    let api = Arc::new(api);
    let answer = move |request, connection| {
        let api = Arc::clone(&api);
        async move { api.answer(request, connection).await }
    };
    let options = ServerOptions { connections_max, proxies, ..ServerOptions::default() };
    shutdown.spawn(serve(listener, tls, options, answer, shutdown.clone()));
}

/// Takes a sample of every site's lag now and then, for charts.
pub(super) fn chart(
    data_dir: &DataDir,
    clock: &SharedClock,
    status: StatusSource,
    shutdown: &Shutdown,
) -> Result<Arc<History>, StartError> {
    let opened = History::open(&data_dir.join("history"), clock.now().as_secs());
    let history = Arc::new(opened.map_err(|error| StartError::new("open the history of lag", error))?);
    let (clock, stop, taken) = (Arc::clone(clock), shutdown.clone(), Arc::clone(&history));
    shutdown.spawn(async move {
        while super::pause(&stop, STEP).await {
            let now = clock.now().as_secs();
            let batch = match (status)() {
                Status::Primary(primary) => taken.take(now, &primary.sites),
                Status::Secondary(own) => taken.take(now, std::iter::once(&*own).chain(&own.sites)),
            };
            let Some(batch) = batch else { continue };
            let history = Arc::clone(&taken);
            match blocking::spawn(move || history.write(now, &batch)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!(%error, "the history of lag is not kept"),
                Err(error) => tracing::error!(%error, "keeping the history of lag crashed"),
            }
        }
    });
    Ok(history)
}

/// Connections of an admin listener at once: monitoring and a few people.
const ADMIN_CONNECTIONS_MAX: usize = 256;

/// Answers admin requests until shutdown.
pub(super) fn serve_admin(listener: TcpListener, admin: Admin, shutdown: &Shutdown) {
    let admin = Arc::new(admin);
    let answer = move |request, connection: Arc<Connection>| {
        let (admin, in_flight) = (Arc::clone(&admin), connection.begin_request());
        async move {
            let response = if admin.is_notification(&request) {
                admin.notified(request).await
            } else {
                let act = admin.act(&request, connection.peer().ip());
                let response = admin.respond(&request).await;
                admin.audit(act, response.status());
                response
            };
            drop(in_flight);
            response
        }
    };
    let options = ServerOptions::default();
    // A wait moves no bytes for as long as it lasts.
    let patience = Patience { request_stall: TIMEOUT_MAX + Duration::from_secs(60), ..options.patience };
    let options = ServerOptions { connections_max: ADMIN_CONNECTIONS_MAX, patience, ..options };
    shutdown.spawn(serve(listener, None, options, answer, shutdown.clone()));
}
