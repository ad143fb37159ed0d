//! `/v1/notifications` and `/v1/reconcile` of a primary that stands in front of a registry.

use std::{fmt, sync::Arc};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body::Body;
use http_body_util::{BodyExt as _, Full, Limited};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
};

use super::{Admin, ask::flag, error, json, text};
use crate::registry::gateway::{
    intake::{Intake, NotTaken},
    walk::{ReconcileWanted, Reconciler},
};

/// A notification, at most: zot sends a whole manifest along, as a text.
const NOTIFICATION_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Its body must be here within this.
const BODY_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);

/// What a primary that stands in front of a registry has beside others.
pub struct GatewayAdmin {
    /// Walks the registry.
    pub reconciler: Reconciler,
    /// Takes in what the registry tells.
    pub intake: Intake,
}

impl GatewayAdmin {
    /// What a person should look at.
    pub fn alarm(&self) -> Option<String> {
        self.reconciler.alarm().or_else(|| self.intake.alarm())
    }
}

/// `outport_gateway_*`, read when they are asked for.
pub struct GatewayCollector(pub Arc<GatewayAdmin>);

impl fmt::Debug for GatewayCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("GatewayCollector")
    }
}

impl Collector for GatewayCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let report = self.0.reconciler.report();
        let last = report.last_reconciled_at.map_or(f64::NAN, |seconds| seconds as f64);
        let drift = report.last_drift.map_or(f64::NAN, |drift| drift as f64);
        for (name, help, value) in [
            (
                "gateway_reconciled_timestamp_seconds",
                "When the last walk over the whole registry ended; NaN before",
                last,
            ),
            ("gateway_drift", "Changes that the last walk over the whole registry found; NaN before", drift),
            (
                "gateway_missed_notifications",
                "Changes that walks found and no notification has told of, since the start",
                report.missed as f64,
            ),
            (
                "gateway_alarm",
                "1 while a walk is stopped, notifications do not all come, or a person should look for another reason",
                f64::from(u8::from(self.0.alarm().is_some())),
            ),
        ] {
            let family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            ConstGauge::new(value).encode(family)?;
        }
        let (sources, refused) = self.0.intake.counts();
        let help = "Notifications by source and what they led to";
        let mut family =
            encoder.encode_descriptor("gateway_notifications", help, None, MetricType::Counter)?;
        for (source, counts) in &sources {
            for (result, count) in [
                ("new", counts.new),
                ("known", counts.known),
                ("idle", counts.idle),
                ("unknown", counts.unknown),
                ("failed", counts.failed),
            ] {
                let labels = [("source", source.as_str()), ("result", result)];
                ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
            }
        }
        let help = "Notifications that carried no source's secret";
        let family =
            encoder.encode_descriptor("gateway_notifications_refused", help, None, MetricType::Counter)?;
        ConstCounter::new(refused).encode(family)
    }
}

/// The page that notifications are sent to.
pub(super) const NOTIFICATIONS: &str = "/v1/notifications";

impl Admin {
    /// `POST /v1/notifications`: 200 once what the registry says of it is durable, 401 without a source's
    /// secret, 400 when it cannot be read, 503 when it should be sent again.
    pub async fn notified<B>(&self, request: Request<B>) -> Response<super::Body>
    where
        B: Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>>,
    {
        self.noticed(request).await.map(http_body_util::Either::Left)
    }

    /// Whether a request is a notification.
    pub fn is_notification<B>(&self, request: &Request<B>) -> bool {
        request.uri().path() == NOTIFICATIONS && request.method() == Method::POST
    }

    async fn noticed<B>(&self, request: Request<B>) -> Response<Full<Bytes>>
    where
        B: Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>>,
    {
        let Some(gateway) = &self.gateway else { return no_gateway() };
        let (parts, body) = request.into_parts();
        let header = |name: &str| parts.headers.get(name).and_then(|value| value.to_str().ok());
        let admitted = match gateway.intake.admit(header("authorization")) {
            Ok(admitted) => admitted,
            Err(reason) => return not_taken(&reason),
        };
        let body = Limited::new(body, NOTIFICATION_BYTES_MAX);
        let body = match tokio::time::timeout(BODY_TIMEOUT, body.collect()).await {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(reason)) => return error(StatusCode::BAD_REQUEST, &reason.to_string()),
            Err(_) => return error(StatusCode::REQUEST_TIMEOUT, "the body did not come"),
        };
        match admitted.take(header("ce-type"), &body).await {
            Ok(()) => text(StatusCode::OK, "ok\n"),
            Err(reason) => not_taken(&reason),
        }
    }

    /// `GET /v1/reconcile`: what the last walk found, or how far this one is.
    pub(super) fn reconciled(&self) -> Response<Full<Bytes>> {
        match &self.gateway {
            Some(gateway) => json(StatusCode::OK, &gateway.reconciler.report()),
            None => no_gateway(),
        }
    }

    /// `POST /v1/reconcile[?repo=NAME]..[&accept_removals]`: 202 when a walk began, 409 with the one that is
    /// under way.
    pub(super) fn reconcile(&self, query: &str) -> Response<Full<Bytes>> {
        let Some(gateway) = &self.gateway else { return no_gateway() };
        let wanted = match wanted(query) {
            Ok(wanted) => wanted,
            Err(reason) => return error(StatusCode::BAD_REQUEST, &reason),
        };
        match gateway.reconciler.start(wanted) {
            Some(begun) => json(StatusCode::ACCEPTED, &begun),
            None => json(StatusCode::CONFLICT, &gateway.reconciler.report()),
        }
    }
}

fn not_taken(reason: &NotTaken) -> Response<Full<Bytes>> {
    let status = match reason {
        NotTaken::Stranger => StatusCode::UNAUTHORIZED,
        NotTaken::Unreadable(_) => StatusCode::BAD_REQUEST,
        NotTaken::Later(_) => StatusCode::SERVICE_UNAVAILABLE,
    };
    error(status, &reason.to_string())
}

fn no_gateway() -> Response<Full<Bytes>> {
    error(StatusCode::NOT_FOUND, "this node stands in front of no registry (registry.upstream)")
}

fn wanted(query: &str) -> Result<ReconcileWanted, String> {
    let mut wanted = ReconcileWanted::default();
    for (key, value) in form_urlencoded::parse(query.as_bytes()) {
        match &*key {
            "repo" => {
                let repo = value.parse().map_err(|_| format!("not a repository name: {value}"))?;
                wanted.repositories.push(repo);
            }
            "accept_removals" => wanted.accept_removals = flag(&key, &value)?,
            _ => return Err(format!("no such parameter: {key}")),
        }
    }
    Ok(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_to_be_walked() {
        assert_eq!(wanted(""), Ok(ReconcileWanted::default()));
        let some = wanted("repo=team%2Fapp&repo=b&accept_removals").unwrap();
        assert_eq!(some.repositories.iter().map(|repo| repo.as_str()).collect::<Vec<_>>(), ["team/app", "b"]);
        assert!(some.accept_removals);
        for wrong in ["repo=Not%20One", "accept_removals=perhaps", "repos=a"] {
            assert!(wanted(wrong).is_err(), "{wrong}");
        }
    }
}
