//! The admin listener: health, readiness, metrics, status, where images are, garbage collection,
//! copying on demand, verification, the registry behind a gateway; and a dashboard of it all.
//!
//! [`Admin::respond`] leads from request to response; `app` puts it behind a listener. Only
//! `/v1/wait` and `/v1/prefetch` take their time.

mod ask;
mod audited;
mod dashboard;
mod drain;
mod events;
mod gateway;
mod gc;
mod live;
mod metrics;
mod prefetch;
mod revoke;
mod sites;
mod verify;

use std::sync::Arc;

use aws_lc_rs::constant_time;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{Either, Full};
use serde::Serialize;
use tokio::sync::Semaphore;

pub use ask::{TIMEOUT_MAX, WAITS_MAX};
pub use events::{EVENTS_MAX, EventLine};
pub use gateway::{GatewayAdmin, GatewayCollector};
pub use live::{FOLLOWERS_MAX, Live};
pub use metrics::StatusCollector;
pub use prefetch::{Lines, PREFETCHES_MAX};
pub use revoke::Revoke;
pub use sites::{Invitation, Membership, NewSite, SiteError};

use crate::{
    clock::SharedClock,
    history::History,
    log::Log,
    registry::{Collector, Drain, Verify, prefetch::Prefetches, whereabouts::Whereabouts},
    shutdown::Shutdown,
    status::{Readiness, Status, StatusSource},
    telemetry::{Exposition, Metrics, audit::Audit},
};

/// What the admin listener shows.
pub struct Admin {
    /// The status page's source.
    pub status: StatusSource,
    /// Whether geo DNS may send clients here.
    pub readiness: Readiness,
    /// Everything measured.
    pub metrics: Metrics,
    /// The token that requests must carry, when one is configured. Health and readiness never need it.
    pub token: Option<String>,
    /// Where images are.
    pub whereabouts: Arc<dyn Whereabouts>,
    /// A permit for each wait under way: [`WAITS_MAX`] of them.
    pub waits: Semaphore,
    /// Removes what no repository names.
    pub collector: Collector,
    /// Looks whether all is as it should be.
    pub verification: Arc<dyn Verify>,
    /// Copies what is asked for; `None` at a primary.
    pub prefetches: Option<Arc<dyn Prefetches>>,
    /// A permit for each such request under way: [`PREFETCHES_MAX`] of them.
    pub prefetch_turns: Arc<Semaphore>,
    /// Makes void what is remembered of callers; `None` where nothing is, or it is another's to say.
    pub revoke: Option<Revoke>,
    /// Whether pushes are taken; `None` at a secondary.
    pub drain: Option<Drain>,
    /// Makes and removes sites; `None` at a secondary.
    pub membership: Option<Arc<dyn Membership>>,
    /// The registry that a primary stands in front of.
    pub gateway: Option<Arc<GatewayAdmin>>,
    /// What happened.
    pub log: Log,
    /// How the sites were.
    pub history: Arc<History>,
    /// A permit for each who follows: [`FOLLOWERS_MAX`] of them.
    pub followers: Arc<Semaphore>,
    /// Who is told what administrators did.
    pub audit: Audit,
    /// The wall clock.
    pub clock: SharedClock,
    /// Ends the waits.
    pub shutdown: Shutdown,
}

/// An answer's body: at once, line by line, or as things happen.
pub type Body = Either<Full<Bytes>, Either<Lines, Live>>;

impl Admin {
    /// Answers one request. Dropping it ends a wait.
    pub async fn respond<B>(&self, request: &Request<B>) -> Response<Body> {
        let (method, uri, headers) = (request.method(), request.uri(), request.headers());
        let (path, query) = (uri.path(), uri.query().unwrap_or_default());
        let is_read = matches!(*method, Method::GET | Method::HEAD);
        if is_read && let Some(open) = self.open(path, headers) {
            return open.map(Either::Left);
        }
        if !self.admits(headers) {
            let mut response = error(StatusCode::UNAUTHORIZED, "the admin token is missing or wrong");
            let challenge = HeaderValue::from_static("Bearer realm=\"outport admin\"");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
            return response.map(Either::Left);
        }
        // Browsers say where a page is from that sends something elsewhere; nobody else does.
        if !is_read && headers.contains_key(header::ORIGIN) {
            return error(StatusCode::FORBIDDEN, "not for web pages").map(Either::Left);
        }
        let answer = match (method, path) {
            (&Method::GET, "/v1/events") => return self.events(query).await,
            (&Method::GET, "/v1/live") => return self.live(),
            (&Method::POST, "/v1/prefetch") => return self.prefetch(query),
            (&Method::POST | &Method::DELETE, "/v1/sites") => self.change_sites(method, query).await,
            (&Method::GET | &Method::HEAD | &Method::POST | &Method::DELETE, "/v1/drain") => {
                self.drained(method).await
            }
            (&Method::POST, "/v1/gc") => self.collect(query),
            (&Method::POST, "/v1/verify") => self.verify(query),
            (&Method::POST, "/v1/revoke") => self.revoked(),
            (&Method::POST, "/v1/reconcile") => self.reconcile(query),
            _ if is_read => self.page(path, query, headers).await,
            _ => error(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD are answered here"),
        };
        answer.map(Either::Left)
    }

    /// What anybody may read.
    fn open(&self, path: &str, headers: &HeaderMap) -> Option<Response<Full<Bytes>>> {
        match path {
            "/healthz" => Some(text(StatusCode::OK, "ok\n")),
            "/readyz" => Some(match (self.readiness)() {
                Ok(()) => text(StatusCode::OK, "ready\n"),
                Err(reason) => text(StatusCode::SERVICE_UNAVAILABLE, &format!("{reason}\n")),
            }),
            _ => dashboard::file(path, headers),
        }
    }

    async fn page(&self, path: &str, query: &str, headers: &HeaderMap) -> Response<Full<Bytes>> {
        match path {
            "/metrics" => {
                let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok());
                let exposition = Exposition::accepted(accept);
                answer(StatusCode::OK, exposition.content_type(), self.metrics.encode(exposition))
            }
            "/v1/status" => json(StatusCode::OK, &(self.status)()),
            "/v1/sites" => match (self.status)() {
                Status::Primary(primary) => json(StatusCode::OK, &primary.sites),
                Status::Secondary(mut site) => {
                    let behind = std::mem::take(&mut site.sites);
                    json(StatusCode::OK, &std::iter::once(*site).chain(behind).collect::<Vec<_>>())
                }
            },
            "/v1/gc" => self.collection(),
            "/v1/verify" => self.verified(),
            "/v1/reconcile" => self.reconciled(),
            "/v1/history" => self.history(query),
            "/v1/wait" => self.wait(query).await,
            "/v1/why" => self.why(query).await,
            "/v1/revoke" => error(StatusCode::METHOD_NOT_ALLOWED, "only POST revokes anything"),
            "/v1/prefetch" => error(StatusCode::METHOD_NOT_ALLOWED, "only POST copies anything"),
            _ => error(StatusCode::NOT_FOUND, "no such page"),
        }
    }

    fn admits(&self, headers: &HeaderMap) -> bool {
        let Some(token) = &self.token else {
            return true;
        };
        headers
            .get(header::AUTHORIZATION)
            .and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "))
            .is_some_and(|given| {
                constant_time::verify_slices_are_equal(given.as_bytes(), token.as_bytes()).is_ok()
            })
    }
}

fn text(status: StatusCode, text: &str) -> Response<Full<Bytes>> {
    answer(status, "text/plain; charset=utf-8", text.to_owned())
}

fn json(status: StatusCode, value: &impl Serialize) -> Response<Full<Bytes>> {
    match serde_json::to_string(value) {
        Ok(text) => answer(status, "application/json", text),
        Err(reason) => text_error(&reason.to_string()),
    }
}

fn error(status: StatusCode, message: &str) -> Response<Full<Bytes>> {
    json(status, &serde_json::json!({ "error": message }))
}

fn text_error(reason: &str) -> Response<Full<Bytes>> {
    text(StatusCode::INTERNAL_SERVER_ERROR, reason)
}

fn answer(status: StatusCode, content_type: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http_body_util::BodyExt as _;

    use super::*;
    use crate::{
        clock::SystemClock,
        fetch::BoxFuture,
        index::{Index, IndexOptions},
        log::LogOptions,
        registry::verification::{VerifyReport, VerifyWanted},
        registry::whereabouts::{
            AskError, WaitFor, WhyNot,
            answer::{Waited, Why},
        },
        status::{PrimaryStatus, SiteStatus},
        store::Store,
    };

    /// Nobody ever gets to see anything.
    struct Nowhere;

    impl Whereabouts for Nowhere {
        fn wait(&self, _: WaitFor) -> BoxFuture<'_, Result<Waited, AskError>> {
            Box::pin(std::future::pending())
        }

        fn why(&self, _: WhyNot) -> BoxFuture<'_, Result<Why, AskError>> {
            Box::pin(async { Err(AskError::WhichSite) })
        }
    }

    impl Verify for Nowhere {
        fn start(&self, _: VerifyWanted) -> Option<VerifyReport> {
            Some(VerifyReport { pass: 1, running: true, ..VerifyReport::default() })
        }

        fn report(&self) -> VerifyReport {
            VerifyReport::default()
        }
    }

    fn collector() -> Collector {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = Store::open(dir.path()).unwrap();
        let options = IndexOptions { hot_bytes_max: 0, cache_bytes_max: 0 };
        Collector::new(Index::in_memory(options), store, Duration::ZERO)
    }

    fn admin(token: Option<&str>, ready: bool) -> Admin {
        let site = SiteStatus { site: "mumbai".into(), ..SiteStatus::default() };
        let status =
            Status::Primary(Box::new(PrimaryStatus { sites: vec![site], ..PrimaryStatus::default() }));
        Admin {
            status: Arc::new(move || status.clone()),
            readiness: Arc::new(move || if ready { Ok(()) } else { Err("too stale".to_owned()) }),
            metrics: Metrics::default(),
            token: token.map(str::to_owned),
            whereabouts: Arc::new(Nowhere),
            waits: Semaphore::new(1),
            collector: collector(),
            verification: Arc::new(Nowhere),
            prefetches: None,
            prefetch_turns: Arc::new(Semaphore::new(1)),
            revoke: None,
            drain: None,
            membership: None,
            gateway: None,
            log: Log::open(tempfile::tempdir().unwrap().path(), LogOptions::default(), Arc::new(SystemClock))
                .unwrap()
                .0,
            history: Arc::new(History::open(tempfile::tempdir().unwrap().path(), 0).unwrap()),
            followers: Arc::new(Semaphore::new(1)),
            audit: Audit::default(),
            clock: Arc::new(SystemClock),
            shutdown: Shutdown::new(),
        }
    }

    async fn get(admin: &Admin, path: &str, token: Option<&str>) -> (StatusCode, String) {
        let mut request = Request::get(path);
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let response = admin.respond(&request.body(()).unwrap()).await;
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn pages() {
        let admin = admin(None, false);
        assert_eq!(get(&admin, "/healthz", None).await.0, StatusCode::OK);
        assert_eq!(
            get(&admin, "/readyz", None).await,
            (StatusCode::SERVICE_UNAVAILABLE, "too stale\n".to_owned())
        );
        let (_, status) = get(&admin, "/v1/status", None).await;
        let status: serde_json::Value = serde_json::from_str(&status).unwrap();
        assert_eq!(status["role"], "primary");
        assert_eq!(status["sites"][0]["lag_seconds"]["applied"], serde_json::Value::Null);
        let (_, sites) = get(&admin, "/v1/sites", None).await;
        assert!(sites.starts_with(r#"[{"site":"mumbai""#), "{sites}");
        assert_eq!(get(&admin, "/etc/passwd", None).await.0, StatusCode::NOT_FOUND);
        let post = Request::post("/v1/status").body(()).unwrap();
        assert_eq!(admin.respond(&post).await.status(), StatusCode::METHOD_NOT_ALLOWED);
        let (status, report) = get(&admin, "/v1/verify", None).await;
        assert!(status == StatusCode::OK && report.contains(r#""running":false"#), "{report}");
        let post = Request::post("/v1/verify");
        assert_eq!(admin.respond(&post.body(()).unwrap()).await.status(), StatusCode::ACCEPTED);
        let page = Request::post("/v1/verify").header("origin", "https://example.com").body(()).unwrap();
        assert_eq!(admin.respond(&page).await.status(), StatusCode::FORBIDDEN);
    }

    #[tokio::test]
    async fn waits_are_counted_and_end_with_their_client_or_the_node() {
        let admin = admin(None, true);
        let mut first = Box::pin(get(&admin, "/v1/wait?ref=app:1", None));
        let second = tokio::select! {
            biased;
            _ = first.as_mut() => panic!("there is nothing to see"),
            second = get(&admin, "/v1/wait?ref=app:1", None) => second,
        };
        assert_eq!(second.0, StatusCode::SERVICE_UNAVAILABLE, "{}", second.1);
        assert_eq!(get(&admin, "/v1/wait?ref=app", None).await.0, StatusCode::BAD_REQUEST);
        assert_eq!(get(&admin, "/v1/why?ref=app:1", None).await.0, StatusCode::BAD_REQUEST);
        drop(first);
        let wait = get(&admin, "/v1/wait?ref=app:1", None);
        let stop = async { admin.shutdown.request() };
        let (stopped, ()) = tokio::join!(wait, stop);
        assert_eq!(stopped.0, StatusCode::SERVICE_UNAVAILABLE);
        assert!(stopped.1.contains("shutting down"), "{}", stopped.1);
    }

    #[tokio::test]
    async fn garbage_is_collected_on_demand_and_not_for_web_pages() {
        let admin = admin(None, true);
        let post = |path: &str, header: &str| {
            Request::post(path).header(header, "https://elsewhere.example").body(()).unwrap()
        };
        for (path, header, expected) in [
            ("/v1/gc", "origin", StatusCode::FORBIDDEN),
            ("/v1/gc?dry_run=perhaps", "referer", StatusCode::BAD_REQUEST),
            ("/v1/gc?now", "referer", StatusCode::BAD_REQUEST),
            ("/v1/gc?dry_run=true", "referer", StatusCode::ACCEPTED),
            ("/v1/gc", "referer", StatusCode::CONFLICT),
        ] {
            assert_eq!(admin.respond(&post(path, header)).await.status(), expected, "{path}");
        }
        let (status, text) = get(&admin, "/v1/gc", None).await;
        assert_eq!(status, StatusCode::OK);
        assert!(text.starts_with(r#"{"pass":1,"running":"#), "{text}");
    }

    #[tokio::test]
    async fn what_is_remembered_of_callers_is_revoked_where_it_comes_from() {
        let post = |header: &str| {
            Request::post("/v1/revoke").header(header, "https://elsewhere.example").body(()).unwrap()
        };
        let nothing = admin(None, true);
        assert_eq!(nothing.respond(&post("referer")).await.status(), StatusCode::CONFLICT);
        let revoke: Revoke = Arc::new(|| outport_proto::Timestamp::from_secs(7));
        let admin = Admin { revoke: Some(revoke), ..nothing };
        assert_eq!(get(&admin, "/v1/revoke", None).await.0, StatusCode::METHOD_NOT_ALLOWED);
        assert_eq!(admin.respond(&post("origin")).await.status(), StatusCode::FORBIDDEN);
        let revoked = admin.respond(&post("referer")).await;
        assert_eq!(revoked.status(), StatusCode::OK);
        let body = revoked.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(&body[..], br#"{"revoked_seconds":7.0}"#);
    }

    #[tokio::test]
    async fn a_configured_token_is_needed_for_all_but_health() {
        let admin = admin(Some("secret"), true);
        for (path, token, expected) in [
            ("/healthz", None, StatusCode::OK),
            ("/readyz", None, StatusCode::OK),
            ("/metrics", None, StatusCode::UNAUTHORIZED),
            ("/v1/status", Some("wrong"), StatusCode::UNAUTHORIZED),
            ("/v1/wait?ref=app:1", None, StatusCode::UNAUTHORIZED),
            ("/v1/why?ref=app:1", None, StatusCode::UNAUTHORIZED),
            ("/v1/status", Some("secret"), StatusCode::OK),
        ] {
            assert_eq!(get(&admin, path, token).await.0, expected, "{path}");
        }
    }
}
