//! A primary and a secondary as their clients see them.

use std::{
    collections::VecDeque,
    convert::Infallible,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll},
};

use arc_swap::ArcSwapOption;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body::Frame;
use http_body_util::BodyExt as _;
use outport_proto::{Digest, RepoName, SiteName};
use prometheus_client::registry::Registry;
use tempfile::TempDir;
use tokio::net::TcpListener;

use super::*;
use crate::{
    auth::{
        Access, AccessRules, Actions, Authenticator, Grant, Leeway, PrimaryKeys, Scope, TicketSealer,
        TokenIssuer, TokenLives, TokenService, Users, Verifier,
    },
    clock::{Clock as _, ManualClock},
    registry::testing::{self, NOW},
    shutdown::Shutdown,
};

mod alone;
mod hostile;
mod intents;
mod leading;
mod modes;
mod pulling;
mod pushing;
mod tokens;

const ISSUER: &str = "outport";
const SERVICE: &str = "registry.example.com";

/// A primary that also listens, because requests are streamed through to it.
struct Primary {
    api: Arc<Api>,
    inner: testing::Primary,
    keys: PrimaryKeys,
    clock: Arc<ManualClock>,
    url: String,
    _dir: TempDir,
    shutdown: Shutdown,
}

impl Drop for Primary {
    fn drop(&mut self) {
        self.shutdown.request();
    }
}

struct Secondary {
    api: Arc<Api>,
    inner: testing::Secondary,
}

impl Primary {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let dir = tempfile::tempdir().unwrap();
        let clock = ManualClock::at(NOW);
        let keys = PrimaryKeys::open(&dir.path().join("keys")).unwrap();
        keys.keys_of(&site(), keys.own_mode(ISSUER), NOW).unwrap();
        let inner = testing::Primary::new().await;
        let role = PrimaryRole {
            writes: Writes::Own(inner.push.clone()),
            drain: crate::registry::Drain::open(dir.path().join("drained")),
            tokens: Some(Arc::new(token_service(&dir, &keys, &clock))),
            tickets: keys.opener(),
            upload_states: keys.upload_states(),
            write_time_max: std::time::Duration::ZERO,
        };
        let api = Arc::new(Api {
            readiness: Arc::new(|| Ok(())),
            proxies: Proxies::default(),
            tunnels: None,
            pull: inner.pull.clone(),
            authenticator: authenticator(&keys, &clock),
            addresses: addresses(&url),
            clock: clock.clone(),
            metrics: HttpMetrics::new(&mut Registry::default()),
            tracing: crate::telemetry::trace::Tracing::default(),
            audit: crate::telemetry::audit::Audit::default(),
            role: Role::Primary(Box::new(role)),
        });
        let shutdown = Shutdown::new();
        let served = api.clone();
        let answer = move |request, connection| {
            let api = served.clone();
            async move { api.answer(request, connection).await }
        };
        drop(tokio::spawn(serve(listener, None, ServerOptions::default(), answer, shutdown.clone())));
        Self { api, inner, keys, clock, url, _dir: dir, shutdown }
    }

    /// A token for `actions` on `repos`.
    fn token(&self, repos: &[&str], actions: Actions) -> String {
        let access: Access = repos.iter().map(|name| Scope::repository(&repo(name), actions)).collect();
        self.token_of(&access)
    }

    fn token_of(&self, access: &Access) -> String {
        let issuer = TokenIssuer::new(self.keys.signing_key().clone(), ISSUER, SERVICE);
        let life = std::time::Duration::from_secs(300);
        let grant = Grant { subject: "tester", access, offset: None, life };
        format!("Bearer {}", issuer.issue(&grant, self.clock.now()).unwrap().token.expose())
    }

    async fn ask(&self, ask: Ask) -> Answer {
        ask.of(&self.api).await
    }

    fn secondary(&self, mode: PushMode) -> Secondary {
        let inner = testing::Secondary::of(&self.inner);
        inner.catch_up(&self.inner);
        let sealer = TicketSealer::new(site());
        sealer.set_keys(&self.keys.keys_of(&site(), self.keys.own_mode(ISSUER), NOW).unwrap().seal).unwrap();
        let redirects = Redirects {
            mode,
            sealer: Arc::new(sealer),
            intents: inner.intents.clone(),
            session: crate::registry::SessionView::new().1,
            proxy: Proxy::new(client_config(), "the primary site"),
            own_realm: None,
        };
        let api = Arc::new(Api {
            readiness: Arc::new(|| Ok(())),
            proxies: Proxies::default(),
            tunnels: None,
            pull: inner.pull.clone(),
            authenticator: authenticator(&self.keys, &self.clock),
            addresses: addresses(&self.url),
            clock: self.clock.clone(),
            metrics: HttpMetrics::new(&mut Registry::default()),
            tracing: crate::telemetry::trace::Tracing::default(),
            audit: crate::telemetry::audit::Audit::default(),
            role: Role::Secondary(Box::new(redirects)),
        });
        Secondary { api, inner }
    }

    /// The path and query of an absolute URL of this primary.
    fn path_of(&self, url: &str) -> String {
        url.strip_prefix(&self.url).unwrap_or_else(|| panic!("{url} is not at {}", self.url)).to_owned()
    }
}

impl Secondary {
    async fn ask(&self, ask: Ask) -> Answer {
        ask.of(&self.api).await
    }
}

fn site() -> SiteName {
    "mumbai".parse().unwrap()
}

fn repo(name: &str) -> RepoName {
    name.parse().unwrap()
}

fn addresses(url: &str) -> SharedAddresses {
    let addresses = Addresses::new(url, &format!("{url}{TOKEN_PATH}"), SERVICE).unwrap();
    Arc::new(ArcSwapOption::from_pointee(addresses))
}

fn authenticator(keys: &PrimaryKeys, clock: &Arc<ManualClock>) -> Arc<Authenticator> {
    let authenticator = ignorant(clock);
    authenticator.learn(&keys.own_mode(ISSUER), SERVICE).unwrap();
    Arc::new(authenticator)
}

/// Knows no keys.
fn ignorant(clock: &Arc<ManualClock>) -> Authenticator {
    Authenticator::new(Verifier::new(clock.clone(), Leeway::default()), None)
}

fn token_service(dir: &TempDir, keys: &PrimaryKeys, clock: &Arc<ManualClock>) -> TokenService {
    static HASH: OnceLock<String> = OnceLock::new();
    let hash = HASH.get_or_init(|| bcrypt::hash("s3cret", 4).unwrap());
    let path = dir.path().join("users");
    std::fs::write(&path, format!("demo:{hash}\n")).unwrap();
    let users = Arc::new(Users::open(&path, clock.clone()).unwrap());
    let rules = AccessRules::public_with_owner("demo");
    let head = Arc::new(|| outport_proto::Offset::new(1, 0));
    TokenService::new(keys, ISSUER, SERVICE, TokenLives::default(), rules, Some(users), clock.clone(), head)
        .unwrap()
}

fn client_config() -> Arc<tokio_rustls::rustls::ClientConfig> {
    let provider = Arc::new(tokio_rustls::rustls::crypto::aws_lc_rs::default_provider());
    let builder = tokio_rustls::rustls::ClientConfig::builder_with_provider(provider);
    let roots = tokio_rustls::rustls::RootCertStore::empty();
    Arc::new(
        builder
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth(),
    )
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

/// A request to be sent.
struct Ask {
    request: http::request::Builder,
    body: Chunks,
}

/// `method` and path with query.
fn ask(method: &str, uri: impl AsRef<str>) -> Ask {
    Ask { request: Request::builder().method(method).uri(uri.as_ref()), body: Chunks::default() }
}

impl Ask {
    fn with(mut self, name: impl AsRef<str>, value: impl AsRef<str>) -> Self {
        self.request = self.request.header(name.as_ref(), value.as_ref());
        self
    }

    fn by(self, authorization: &str) -> Self {
        self.with("authorization", authorization)
    }

    /// A body of announced length.
    fn body(self, bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        let mut this = self.with("content-length", bytes.len().to_string());
        this.body = Chunks::of([bytes]);
        this
    }

    /// A body of unknown length.
    fn chunks(mut self, chunks: impl IntoIterator<Item = Bytes>) -> Self {
        self.body = Chunks::of(chunks);
        self.body.unknown_length = true;
        self
    }

    /// With a pause before each piece of the body.
    fn slowly(mut self, pause: std::time::Duration) -> Self {
        self.body.pause = Some(tokio::time::interval(pause));
        self
    }

    async fn of(self, api: &Arc<Api>) -> Answer {
        let request = self.request.body(self.body).unwrap();
        let connection = Connection::new(([127, 0, 0, 1], 1).into());
        let (parts, body) = api.answer(request, connection).await.into_parts();
        let announced = http_body::Body::size_hint(&body).exact();
        let body = body.collect().await.unwrap().to_bytes();
        assert_eq!(announced, Some(body.len() as u64).or(announced), "exactly as long as announced");
        Answer { status: parts.status, headers: parts.headers, body }
    }
}

#[derive(Debug)]
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Answer {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).unwrap_or_else(|| panic!("no {name} in {self:?}")).to_str().unwrap()
    }

    fn has(&self, name: &str) -> bool {
        self.headers.contains_key(name)
    }

    fn location(&self) -> &str {
        self.header("location")
    }

    fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    /// Status and code of an error.
    fn error(&self) -> (u16, String) {
        assert_eq!(self.header("content-type"), "application/json");
        let error = &self.json()["errors"][0];
        assert!(!error["message"].as_str().unwrap().is_empty());
        (self.status.as_u16(), error["code"].as_str().unwrap().to_owned())
    }

    fn refused(&self, status: u16, code: &str) {
        assert_eq!(self.error(), (status, code.to_owned()), "{self:?}");
    }

    #[track_caller]
    fn is(self, status: u16) -> Self {
        assert_eq!(
            self.status.as_u16(),
            status,
            "{:?} {}",
            self.headers,
            String::from_utf8_lossy(&self.body)
        );
        self
    }
}

/// A request body that comes in pieces.
#[derive(Default)]
struct Chunks {
    chunks: VecDeque<Bytes>,
    unknown_length: bool,
    pause: Option<tokio::time::Interval>,
}

impl Chunks {
    fn of(chunks: impl IntoIterator<Item = Bytes>) -> Self {
        Self { chunks: chunks.into_iter().collect(), ..Self::default() }
    }
}

impl http_body::Body for Chunks {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if let Some(pause) = &mut self.pause {
            std::task::ready!(pause.poll_tick(cx));
        }
        Poll::Ready(self.chunks.pop_front().map(|chunk| Ok(Frame::data(chunk))))
    }

    fn is_end_stream(&self) -> bool {
        !self.unknown_length && self.chunks.iter().all(Bytes::is_empty)
    }
}

/// Pushes a blob by POST and PUT.
async fn push_blob(primary: &Primary, token: &str, name: &str, content: &[u8]) -> Digest {
    let digest = Digest::sha256(content);
    let started = primary.ask(ask("POST", format!("/v2/{name}/blobs/uploads/")).by(token)).await.is(202);
    let path = primary.path_of(started.location());
    let put = ask("PUT", format!("{path}&digest={digest}")).body(content.to_vec());
    primary.ask(put).await.is(201);
    digest
}

/// Pushes an image without layers; its digest and bytes.
async fn push_image(primary: &Primary, token: &str, name: &str, tag: &str, extra: &str) -> (Digest, String) {
    let config = push_blob(primary, token, name, tag.as_bytes()).await;
    let image = image(&config, extra);
    let put = ask("PUT", format!("/v2/{name}/manifests/{tag}"))
        .by(token)
        .with("content-type", outport_proto::oci::media_type::OCI_MANIFEST)
        .body(image.clone());
    primary.ask(put).await.is(201);
    (Digest::sha256(image.as_bytes()), image)
}

fn image(config: &Digest, extra: &str) -> String {
    format!(
        r#"{{"schemaVersion":2,"config":{{"mediaType":"a/config","digest":"{config}","size":1}},"layers":[]{extra}}}"#
    )
}
