//! Sending what is measured to a collector.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, header};
use http_body_util::{BodyExt as _, Full, Limited};
use opentelemetry_proto::tonic::{
    collector::metrics::v1::{ExportMetricsServiceRequest, metrics_service_client::MetricsServiceClient},
    common::v1::InstrumentationScope,
    metrics::v1::{Metric, ResourceMetrics, ScopeMetrics},
    resource::v1::Resource,
};
use percent_encoding::percent_decode_str;
use prost::Message as _;
use tonic::{
    metadata::{MetadataKey, MetadataMap, MetadataValue},
    transport::{Channel, Endpoint},
};

use super::{ANSWER_BYTES_MAX, CONNECT_TIMEOUT, EXPORT_TIMEOUT, Failed, attributes, exposition};
use crate::{
    app::{StartError, https_client},
    config::{Otlp, OtlpProtocol},
    fetch::client::{HttpClient, http_client},
    shutdown::Shutdown,
    telemetry::{Exposition, Metrics},
};

/// Headers for the collector.
const HEADERS_VARIABLE: &str = "OTEL_EXPORTER_OTLP_HEADERS";

/// Sends `metrics` to where `otlp` says, as those of `role` at `site`, again and again until shutdown.
///
/// # Errors
/// When what it names cannot be read or understood. That the collector cannot be reached is none.
pub(crate) fn send(
    otlp: Option<&Otlp>,
    (role, site): (&'static str, &str),
    metrics: &Metrics,
    shutdown: &Shutdown,
) -> Result<(), StartError> {
    let Some((otlp, interval)) = otlp.and_then(|otlp| Some((otlp, otlp.metrics_interval()?))) else {
        return Ok(());
    };
    let way = Way::of(otlp).map_err(|error| StartError::new("set up metrics (telemetry.otlp)", error))?;
    let sender = Sender {
        way,
        metrics: metrics.clone(),
        attributes: attributes(role, site).map(|(key, value)| (key, value.to_owned())),
        started: now(),
    };
    shutdown.spawn(sender.run(interval, shutdown.clone()));
    Ok(())
}

struct Sender {
    way: Way,
    metrics: Metrics,
    attributes: [(&'static str, String); 5],
    started: u64,
}

/// How they travel.
enum Way {
    Grpc(MetricsServiceClient<Channel>, MetadataMap),
    Http(HttpClient<Full<Bytes>>, String, Vec<(HeaderName, HeaderValue)>),
}

impl Way {
    fn of(otlp: &Otlp) -> Result<Self, Failed> {
        let headers = std::env::var(HEADERS_VARIABLE).unwrap_or_default();
        let headers = headers.split(',').filter_map(|header| header.split_once('='));
        let headers = headers.map(|(name, value)| (name.trim(), decoded(value)));
        Ok(match otlp.protocol {
            OtlpProtocol::Grpc => {
                let mut endpoint = Endpoint::from_shared(otlp.endpoint.as_str().to_owned())?
                    .timeout(EXPORT_TIMEOUT)
                    .connect_timeout(CONNECT_TIMEOUT);
                if let Some(tls) = super::grpc_tls(otlp)? {
                    endpoint = endpoint.tls_config(tls)?;
                }
                let mut metadata = MetadataMap::new();
                for (name, value) in headers {
                    let value: MetadataValue<_> = value?.parse()?;
                    metadata.insert(MetadataKey::from_bytes(name.to_ascii_lowercase().as_bytes())?, value);
                }
                Self::Grpc(MetricsServiceClient::new(endpoint.connect_lazy()), metadata)
            }
            OtlpProtocol::Http => {
                let mut all =
                    vec![(header::CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"))];
                for (name, value) in headers {
                    all.push((name.parse()?, value?.parse()?));
                }
                let client = http_client(&https_client(otlp.authorities.as_deref())?, CONNECT_TIMEOUT, 1);
                Self::Http(client, super::url(otlp, "/v1/metrics"), all)
            }
        })
    }
}

impl Sender {
    async fn run(mut self, interval: Duration, shutdown: Shutdown) {
        while crate::app::pause(&shutdown, interval).await {
            let metrics =
                exposition::metrics(&self.metrics.encode(Exposition::OpenMetrics), self.started, now());
            let request = self.request(metrics);
            // Counters are cumulative: what was missed is in the next.
            if let Err(error) = self.way.send(request).await {
                tracing::warn!(%error, "the collector did not take the metrics");
            }
        }
    }

    fn request(&self, metrics: Vec<Metric>) -> ExportMetricsServiceRequest {
        let attributes = self.attributes.iter();
        let attributes = attributes.map(|(key, value)| exposition::attribute(key, value.clone())).collect();
        let scope = InstrumentationScope { name: "outport".to_owned(), ..InstrumentationScope::default() };
        let scope = ScopeMetrics { scope: Some(scope), metrics, ..ScopeMetrics::default() };
        let resource = Resource { attributes, ..Resource::default() };
        let resource = ResourceMetrics {
            resource: Some(resource),
            scope_metrics: vec![scope],
            ..ResourceMetrics::default()
        };
        ExportMetricsServiceRequest { resource_metrics: vec![resource] }
    }
}

impl Way {
    async fn send(&mut self, request: ExportMetricsServiceRequest) -> Result<(), Failed> {
        match self {
            Self::Grpc(client, metadata) => {
                let mut request = tonic::Request::new(request);
                *request.metadata_mut() = metadata.clone();
                client.export(request).await?;
                Ok(())
            }
            Self::Http(client, url, headers) => {
                let body = Full::new(Bytes::from(request.encode_to_vec()));
                let mut request = http::Request::post(url.as_str()).body(body)?;
                request.headers_mut().extend(headers.iter().cloned());
                let exchange = async {
                    let (head, body) = client.request(request).await?.into_parts();
                    Limited::new(body, ANSWER_BYTES_MAX).collect().await?;
                    Ok::<_, Failed>(head.status)
                };
                match tokio::time::timeout(EXPORT_TIMEOUT, exchange).await?? {
                    status if status.is_success() => Ok(()),
                    status => Err(status.to_string().into()),
                }
            }
        }
    }
}

fn decoded(value: &str) -> Result<String, std::str::Utf8Error> {
    percent_decode_str(value.trim()).decode_utf8().map(std::borrow::Cow::into_owned)
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
