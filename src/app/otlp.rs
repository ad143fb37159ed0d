//! Sending traces, metrics and the audit log to a collector by OTLP.

mod exposition;
pub(super) mod metrics;

use std::{fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use opentelemetry::{
    KeyValue,
    logs::{LogRecord as _, Logger as _, LoggerProvider as _, Severity},
    trace::TracerProvider as _,
};
use opentelemetry_http::{HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{
    ExporterBuildError, LogExporter, Protocol, SpanExporter, WithExportConfig, WithHttpConfig,
    WithTonicConfig,
    tonic_types::transport::{Certificate, ClientTlsConfig},
};
use opentelemetry_sdk::{
    Resource,
    logs::{self, BatchLogProcessor, SdkLogger, SdkLoggerProvider},
    trace::{BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracerProvider},
};
use tokio::runtime::Handle;

use super::StartError;
use crate::{
    blocking,
    config::{Otlp, OtlpProtocol},
    fetch::client::{self, http_client},
    telemetry::{
        audit::{Line, Sink},
        trace::Tracing,
    },
};

/// A collector that takes longer loses what it was sent.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a span waits for others to be sent with it.
const EXPORT_INTERVAL: Duration = Duration::from_secs(1);
/// Spans that wait for the collector; more are dropped.
const QUEUE_SPANS_MAX: usize = 8192;
/// The same of records of the audit log.
const QUEUE_RECORDS_MAX: usize = 65_536;
/// How long a node that stops waits for its last spans to be taken.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);
/// An answer of the collector's is short.
const ANSWER_BYTES_MAX: usize = 64 * 1024;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The traces of a node, and their way out.
#[derive(Default)]
pub(super) struct Traces {
    /// Where they begin.
    pub(super) tracing: Tracing,
    provider: Option<SdkTracerProvider>,
}

impl Traces {
    /// Begins to send them to where `otlp` says, as those of `role` at `site`; without it there are none.
    ///
    /// # Errors
    /// When what it names cannot be read or understood. That the collector cannot be reached is none.
    pub(super) fn start(otlp: Option<&Otlp>, role: &'static str, site: &str) -> Result<Self, StartError> {
        let Some(otlp) = otlp else { return Ok(Self::default()) };
        let exporter =
            exporter(otlp).map_err(|error| StartError::new("set up traces (telemetry.otlp)", error))?;
        let batches = BatchConfigBuilder::default()
            .with_max_queue_size(QUEUE_SPANS_MAX)
            .with_scheduled_delay(EXPORT_INTERVAL)
            .build();
        let provider = SdkTracerProvider::builder()
            // What is not to be recorded does not come this far.
            .with_sampler(Sampler::AlwaysOn)
            .with_resource(resource(role, site))
            .with_span_processor(BatchSpanProcessor::builder(exporter).with_batch_config(batches).build())
            .build();
        let tracing = Tracing::recording(provider.tracer("outport"), otlp.trace_ratio);
        Ok(Self { tracing, provider: Some(provider) })
    }

    /// Sends what is left, unless that takes too long.
    pub(super) async fn stop(self) {
        let Some(provider) = self.provider else { return };
        let flushed = blocking::spawn(move || provider.shutdown_with_timeout(FLUSH_TIMEOUT)).await;
        match flushed {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the last spans were not taken"),
            Err(error) => tracing::error!(%error, "sending the last spans crashed"),
        }
    }
}

type Failed = Box<dyn std::error::Error + Send + Sync>;

fn attributes<'a>(role: &'static str, site: &'a str) -> [(&'static str, &'a str); 5] {
    [
        ("service.name", "outport"),
        ("service.version", env!("CARGO_PKG_VERSION")),
        ("service.instance.id", site),
        ("outport.role", role),
        ("outport.site", site),
    ]
}

fn resource(role: &'static str, site: &str) -> Resource {
    let attributes = attributes(role, site).map(|(key, value)| KeyValue::new(key, value.to_owned()));
    Resource::builder_empty().with_attributes(attributes).build()
}

fn exporter(otlp: &Otlp) -> Result<SpanExporter, Failed> {
    let builder = SpanExporter::builder();
    let built = match otlp.protocol {
        OtlpProtocol::Grpc => over_grpc(builder.with_tonic(), otlp)?.build(),
        OtlpProtocol::Http => over_http(builder.with_http(), otlp, "/v1/traces")?.build(),
    };
    Ok(built.map_err(|error: ExporterBuildError| error.to_string())?)
}

fn log_exporter(otlp: &Otlp) -> Result<LogExporter, Failed> {
    let builder = LogExporter::builder();
    let built = match otlp.protocol {
        OtlpProtocol::Grpc => over_grpc(builder.with_tonic(), otlp)?.build(),
        OtlpProtocol::Http => over_http(builder.with_http(), otlp, "/v1/logs")?.build(),
    };
    Ok(built.map_err(|error: ExporterBuildError| error.to_string())?)
}

fn over_grpc<B: WithExportConfig + WithTonicConfig>(builder: B, otlp: &Otlp) -> Result<B, Failed> {
    let builder = builder.with_endpoint(otlp.endpoint.as_str()).with_timeout(EXPORT_TIMEOUT);
    Ok(match grpc_tls(otlp)? {
        Some(tls) => builder.with_tls_config(tls),
        None => builder,
    })
}

fn grpc_tls(otlp: &Otlp) -> Result<Option<ClientTlsConfig>, Failed> {
    if !otlp.endpoint.as_str().starts_with("https://") {
        return Ok(None);
    }
    Ok(Some(match &otlp.authorities {
        Some(file) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(
            std::fs::read(file).map_err(|error| format!("{}: {error}", file.display()))?,
        )),
        None => ClientTlsConfig::new().with_native_roots(),
    }))
}

fn over_http<B: WithExportConfig + WithHttpConfig>(builder: B, otlp: &Otlp, path: &str) -> Result<B, Failed> {
    let client = Client {
        client: http_client(&super::https_client(otlp.authorities.as_deref())?, CONNECT_TIMEOUT, 1),
        runtime: Handle::current(),
    };
    Ok(builder
        .with_shared_http_client(Arc::new(client))
        .with_protocol(Protocol::HttpBinary)
        .with_endpoint(url(otlp, path))
        .with_timeout(EXPORT_TIMEOUT))
}

fn url(otlp: &Otlp, path: &str) -> String {
    format!("{}{path}", otlp.endpoint.as_str().trim_end_matches('/'))
}

/// The audit log's way to the collector: a log record each, with the line for its body.
pub(super) struct AuditLog {
    provider: SdkLoggerProvider,
    logger: SdkLogger,
}

impl AuditLog {
    /// Begins to send them as [`Traces::start`] does.
    ///
    /// # Errors
    /// As there.
    pub(super) fn start(otlp: &Otlp, role: &'static str, site: &str) -> Result<Self, StartError> {
        let exporter = log_exporter(otlp)
            .map_err(|error| StartError::new("set up the audit log (telemetry.otlp)", error))?;
        let batches = logs::BatchConfigBuilder::default()
            .with_max_queue_size(QUEUE_RECORDS_MAX)
            .with_scheduled_delay(EXPORT_INTERVAL)
            .build();
        let processor = BatchLogProcessor::builder(exporter).with_batch_config(batches).build();
        let provider = SdkLoggerProvider::builder()
            .with_resource(resource(role, site))
            .with_log_processor(processor)
            .build();
        let logger = provider.logger("outport.audit");
        Ok(Self { provider, logger })
    }
}

impl Sink for AuditLog {
    fn take(&mut self, lines: &[Line], text: &[u8]) -> std::io::Result<()> {
        for (line, text) in lines.iter().zip(text.split(|byte| *byte == b'\n')) {
            let mut log = self.logger.create_log_record();
            log.set_timestamp(line.time);
            log.set_severity_number(Severity::Info);
            log.set_event_name(line.kind.as_str());
            log.set_body(String::from_utf8_lossy(text).into_owned().into());
            self.logger.emit(log);
        }
        Ok(())
    }

    fn sync(&mut self) {
        if let Err(error) = self.provider.force_flush() {
            tracing::warn!(%error, "the last records of the audit log were not taken by the collector");
        }
    }
}

/// The exporter has a thread of its own and no runtime there.
struct Client {
    client: client::HttpClient<Full<Bytes>>,
    runtime: Handle,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").finish_non_exhaustive()
    }
}

#[async_trait::async_trait]
impl HttpClient for Client {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let client = self.client.clone();
        let sent = self.runtime.spawn(async move {
            let exchange = async {
                let (head, body) = client.request(request.map(Full::new)).await?.into_parts();
                let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await?.to_bytes();
                Ok::<_, HttpError>(Response::from_parts(head, body))
            };
            tokio::time::timeout(EXPORT_TIMEOUT, exchange).await?
        });
        sent.await?
    }
}
