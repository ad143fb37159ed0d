//! Sends a message until its receiver takes it.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use http::{HeaderValue, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Full, Limited};
use outport_proto::session::Backoff;
use prometheus_client::{
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};
use rustls::ClientConfig;
use tokio::sync::Semaphore;

use super::message::{Message, Secret};
use crate::{
    fetch::client::{HttpClient, http_client},
    random,
    status::{LastError, WebhookStatus},
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A receiver that takes longer is asked again.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// What a receiver answers is not read further.
const ANSWER_BYTES_MAX: usize = 64 * 1024;
/// Between the first two tries, and between two when it has long failed.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(300));
/// What a receiver says in `Retry-After` is not believed beyond this.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(3600);
const CLOUD_EVENT: HeaderValue = HeaderValue::from_static("application/cloudevents+json; charset=utf-8");

/// Where messages go, and how they are signed.
#[derive(Clone, Debug)]
pub struct Target {
    /// They are posted there.
    pub url: Uri,
    /// They are signed with it.
    pub secret: Secret,
    /// Whose certificates are believed.
    pub tls: Arc<ClientConfig>,
}

type Labels = Vec<(&'static str, String)>;

/// What becomes of messages.
#[derive(Clone, Debug)]
pub(super) struct WebhookMetrics {
    deliveries: Family<Labels, Counter>,
    skipped: Family<Labels, Counter>,
    retrying: Family<Labels, Gauge>,
}

/// That of one receiver.
#[derive(Clone, Debug)]
pub(super) struct OwnMetrics {
    taken: Counter,
    failed: Counter,
    skipped: Counter,
    retrying: Gauge,
}

impl WebhookMetrics {
    pub(super) fn new(registry: &mut Registry) -> Self {
        let (deliveries, skipped) = (Family::default(), Family::default());
        let retrying = Family::default();
        let help = "Messages to webhooks, by what became of each try";
        registry.register("webhook_deliveries", help, deliveries.clone());
        let help = "Times that the log had let go of what a webhook was still to be told";
        registry.register("webhook_skipped", help, skipped.clone());
        let help = "Messages that a webhook does not take and that are tried again";
        registry.register("webhook_retrying", help, retrying.clone());
        Self { deliveries, skipped, retrying }
    }

    pub(super) fn of(&self, webhook: &str) -> OwnMetrics {
        let own = || vec![("webhook", webhook.to_owned())];
        let result = |result: &str| [own(), vec![("result", result.to_owned())]].concat();
        OwnMetrics {
            taken: self.deliveries.get_or_create_owned(&result("taken")),
            failed: self.deliveries.get_or_create_owned(&result("failed")),
            skipped: self.skipped.get_or_create_owned(&own()),
            retrying: self.retrying.get_or_create_owned(&own()),
        }
    }
}

/// Whoever is told.
pub(super) struct Receiver {
    name: String,
    target: Target,
    client: HttpClient<Full<Bytes>>,
    metrics: OwnMetrics,
    turns: Semaphore,
    last_taken: AtomicU64,
    last_error: Mutex<Option<LastError>>,
}

/// Why a message was not taken, and when the receiver wants to be asked again.
struct NotTaken {
    reason: String,
    after: Option<Duration>,
}

impl Receiver {
    pub(super) fn new(name: String, target: Target, metrics: OwnMetrics, turns: Semaphore) -> Self {
        let client = http_client(&target.tls, CONNECT_TIMEOUT, 4);
        let (last_taken, last_error) = (AtomicU64::new(0), Mutex::default());
        Self { name, target, client, metrics, turns, last_taken, last_error }
    }

    /// Returns once the message was taken.
    pub(super) async fn deliver(&self, message: Message) {
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        let mut is_retrying = false;
        loop {
            let tried = {
                let Ok(_turn) = self.turns.acquire().await else { return };
                self.try_once(&message).await
            };
            let Err(NotTaken { reason, after }) = tried else { break };
            self.metrics.failed.inc();
            if !std::mem::replace(&mut is_retrying, true) {
                self.metrics.retrying.inc();
            }
            tracing::warn!(webhook = self.name, reason, id = message.id, "a webhook did not take a message");
            *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) =
                Some(LastError { text: reason, at: unix_now() });
            let delay = backoff.next_delay(random::number()).max(after.unwrap_or_default());
            tokio::time::sleep(delay).await;
        }
        if is_retrying {
            self.metrics.retrying.dec();
        }
        self.metrics.taken.inc();
        self.last_taken.store(unix_now(), Relaxed);
    }

    async fn try_once(&self, message: &Message) -> Result<(), NotTaken> {
        let failed = |reason: String| NotTaken { reason, after: None };
        let at = unix_now();
        let request = Request::post(self.target.url.clone())
            .header(header::CONTENT_TYPE, CLOUD_EVENT)
            .header("webhook-id", &message.id)
            .header("webhook-timestamp", at)
            .header("webhook-signature", message.signature(&self.target.secret, at))
            .body(Full::new(Bytes::from(message.body.clone())))
            .map_err(|error| failed(error.to_string()))?;
        let exchange = async {
            let answered = self.client.request(request).await;
            let (head, body) =
                answered.map_err(|error| failed(crate::telemetry::causes(&error)))?.into_parts();
            // So that the connection can be used again.
            let _ = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
            Ok(head)
        };
        let head = tokio::time::timeout(ANSWER_TIMEOUT, exchange)
            .await
            .map_err(|_| failed(format!("no answer within {ANSWER_TIMEOUT:?}")))??;
        if head.status.is_success() {
            return Ok(());
        }
        let seconds =
            head.headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
        let asks = matches!(head.status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE);
        let after = seconds.filter(|_| asks).map(|seconds| Duration::from_secs(seconds).min(RETRY_AFTER_MAX));
        Err(NotTaken { reason: head.status.to_string(), after })
    }

    /// The log does not have any more what should have been told.
    pub(super) fn skipped(&self) {
        self.metrics.skipped.inc();
    }

    pub(super) fn status(&self) -> WebhookStatus {
        let last_taken = Some(self.last_taken.load(Relaxed)).filter(|at| *at > 0);
        WebhookStatus {
            name: self.name.clone(),
            retrying: u64::try_from(self.metrics.retrying.get()).unwrap_or_default(),
            last_taken_at: last_taken,
            last_error: self.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }
}

/// As receivers and signatures count it.
fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
