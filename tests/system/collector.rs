//! A collector that takes what nodes send by OTLP, both ways.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard},
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use opentelemetry_proto::tonic::{
    collector::{
        logs::v1::{
            ExportLogsServiceRequest, ExportLogsServiceResponse,
            logs_service_server::{LogsService, LogsServiceServer},
        },
        metrics::v1::{
            ExportMetricsServiceRequest, ExportMetricsServiceResponse,
            metrics_service_server::{MetricsService, MetricsServiceServer},
        },
        trace::v1::{
            ExportTraceServiceRequest, ExportTraceServiceResponse,
            trace_service_server::{TraceService, TraceServiceServer},
        },
    },
    common::v1::{KeyValue, any_value::Value},
    logs::v1::LogRecord,
    metrics::v1::Metric,
    resource::v1::Resource,
    trace::v1::Span,
};
use prost::Message;
use tokio::{net::TcpListener, runtime::Runtime};
use tonic::codegen::Service as _;

/// It runs until it is dropped.
pub struct Collector {
    grpc: SocketAddr,
    http: SocketAddr,
    taken: Taken,
    _runtime: Runtime,
}

/// Something, and the site that sent it.
#[derive(Clone, Debug)]
pub struct Sent<T> {
    pub site: String,
    pub what: T,
}

/// Everything so far.
#[derive(Debug, Default)]
pub struct All {
    pub spans: Vec<Sent<Span>>,
    pub logs: Vec<Sent<LogRecord>>,
    /// Each time they were sent.
    pub metrics: Vec<Sent<Vec<Metric>>>,
}

#[derive(Clone, Default)]
struct Taken(Arc<Mutex<All>>);

fn site(resource: Option<Resource>) -> String {
    let attributes = resource.map(|resource| resource.attributes).unwrap_or_default();
    assert_eq!(text(&attributes, "service.name"), "outport");
    text(&attributes, "outport.site")
}

/// An attribute as text.
pub fn text(attributes: &[KeyValue], key: &str) -> String {
    let value = attributes.iter().find(|attribute| attribute.key == key);
    match value.and_then(|attribute| attribute.value.as_ref()?.value.as_ref()) {
        Some(Value::StringValue(text)) => text.clone(),
        Some(Value::IntValue(number)) => number.to_string(),
        other => format!("{other:?}"),
    }
}

impl Taken {
    fn spans(&self, request: ExportTraceServiceRequest) {
        for of in request.resource_spans {
            let site = site(of.resource);
            let spans = of.scope_spans.into_iter().flat_map(|scope| scope.spans);
            self.all().spans.extend(spans.map(|what| Sent { site: site.clone(), what }));
        }
    }

    fn logs(&self, request: ExportLogsServiceRequest) {
        for of in request.resource_logs {
            let site = site(of.resource);
            let logs = of.scope_logs.into_iter().flat_map(|scope| scope.log_records);
            self.all().logs.extend(logs.map(|what| Sent { site: site.clone(), what }));
        }
    }

    fn metrics(&self, request: ExportMetricsServiceRequest) {
        for of in request.resource_metrics {
            let site = site(of.resource);
            let what = of.scope_metrics.into_iter().flat_map(|scope| scope.metrics).collect();
            self.all().metrics.push(Sent { site, what });
        }
    }

    fn all(&self) -> MutexGuard<'_, All> {
        self.0.lock().unwrap()
    }

    async fn over_grpc(
        self,
        request: http::Request<Incoming>,
    ) -> Result<http::Response<tonic::body::Body>, Infallible> {
        let service = request.uri().path().split('/').nth(1).unwrap().to_owned();
        match service.rsplit('.').next().unwrap() {
            "TraceService" => TraceServiceServer::new(self).call(request).await,
            "LogsService" => LogsServiceServer::new(self).call(request).await,
            "MetricsService" => MetricsServiceServer::new(self).call(request).await,
            other => panic!("nobody takes {other}"),
        }
    }

    async fn over_http(
        self,
        request: http::Request<Incoming>,
    ) -> Result<http::Response<Full<Bytes>>, Infallible> {
        assert_eq!(request.headers()["content-type"], "application/x-protobuf");
        let path = request.uri().path().to_owned();
        let body = request.into_body().collect().await.unwrap().to_bytes();
        match path.as_str() {
            "/v1/traces" => self.spans(decoded(body)),
            "/v1/logs" => self.logs(decoded(body)),
            "/v1/metrics" => self.metrics(decoded(body)),
            other => panic!("nobody takes {other}"),
        }
        Ok(http::Response::new(Full::default()))
    }
}

fn toml(endpoint: SocketAddr, protocol: &str, more: &str) -> String {
    format!("\n[telemetry.otlp]\nendpoint = 'http://{endpoint}'\nprotocol = '{protocol}'\n{more}\n")
}

fn decoded<T: Message + Default>(body: Bytes) -> T {
    T::decode(body).unwrap()
}

#[tonic::async_trait]
impl TraceService for Taken {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        self.spans(request.into_inner());
        Ok(tonic::Response::new(Default::default()))
    }
}

#[tonic::async_trait]
impl LogsService for Taken {
    async fn export(
        &self,
        request: tonic::Request<ExportLogsServiceRequest>,
    ) -> Result<tonic::Response<ExportLogsServiceResponse>, tonic::Status> {
        self.logs(request.into_inner());
        Ok(tonic::Response::new(Default::default()))
    }
}

#[tonic::async_trait]
impl MetricsService for Taken {
    async fn export(
        &self,
        request: tonic::Request<ExportMetricsServiceRequest>,
    ) -> Result<tonic::Response<ExportMetricsServiceResponse>, tonic::Status> {
        self.metrics(request.into_inner());
        Ok(tonic::Response::new(Default::default()))
    }
}

impl Collector {
    pub fn start() -> Self {
        let runtime = Runtime::new().unwrap();
        let taken = Taken::default();
        let (grpc, http) = runtime.block_on(async {
            let bind = || TcpListener::bind("127.0.0.1:0");
            let (grpc, http) = (bind().await.unwrap(), bind().await.unwrap());
            let addresses = (grpc.local_addr().unwrap(), http.local_addr().unwrap());
            let of_grpc = taken.clone();
            tokio::spawn(async move {
                loop {
                    let (stream, _) = grpc.accept().await.unwrap();
                    let taken = of_grpc.clone();
                    let service = hyper::service::service_fn(move |request| taken.clone().over_grpc(request));
                    let http2 = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                    tokio::spawn(http2.serve_connection(TokioIo::new(stream), service));
                }
            });
            let of_http = taken.clone();
            tokio::spawn(async move {
                loop {
                    let (stream, _) = http.accept().await.unwrap();
                    let taken = of_http.clone();
                    let service = hyper::service::service_fn(move |request| taken.clone().over_http(request));
                    let http1 = hyper::server::conn::http1::Builder::new();
                    tokio::spawn(http1.serve_connection(TokioIo::new(stream), service));
                }
            });
            addresses
        });
        Self { grpc, http, taken, _runtime: runtime }
    }

    /// The configuration of a node that sends to it over gRPC, with `more` of that section.
    pub fn by_grpc(&self, more: &str) -> String {
        toml(self.grpc, "grpc", more)
    }

    /// The same over HTTP.
    pub fn by_http(&self, more: &str) -> String {
        toml(self.http, "http", more)
    }

    /// What came so far.
    pub fn all(&self) -> MutexGuard<'_, All> {
        self.taken.all()
    }
}
