//! One pull is one trace, and so is a push with all that follows from it, as a collector gets to see
//! them: a real one for both ways that OTLP travels.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::{KeyValue, any_value::Value},
    trace::v1::Span,
};
use prost::Message as _;
use tokio::{net::TcpListener, runtime::Runtime};

use crate::support::{
    Cluster, Options, PATIENCE,
    session::{OCI_MANIFEST, Session, bytes},
    wait_for,
};

const PULL: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
const PUSH: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// A collector that speaks OTLP over gRPC and over HTTP.
struct Collector {
    grpc: SocketAddr,
    http: SocketAddr,
    received: Received,
    _runtime: Runtime,
}

/// A span and the site that sent it.
#[derive(Clone, Debug)]
struct Sent {
    site: String,
    span: Span,
}

#[derive(Clone, Default)]
struct Received(Arc<Mutex<Vec<Sent>>>);

impl Received {
    fn take_in(&self, request: ExportTraceServiceRequest) {
        let mut received = self.0.lock().unwrap();
        for resource in request.resource_spans {
            let attributes = resource.resource.map(|resource| resource.attributes).unwrap_or_default();
            assert_eq!(text(&attributes, "service.name"), "outport");
            let site = text(&attributes, "outport.site");
            for span in resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                received.push(Sent { site: site.clone(), span });
            }
        }
    }
}

#[tonic::async_trait]
impl TraceService for Received {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        self.take_in(request.into_inner());
        Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    fn start() -> Self {
        let runtime = Runtime::new().unwrap();
        let received = Received::default();
        let (grpc, http) = runtime.block_on(async {
            let bind = || TcpListener::bind("127.0.0.1:0");
            let (grpc, http) = (bind().await.unwrap(), bind().await.unwrap());
            let addresses = (grpc.local_addr().unwrap(), http.local_addr().unwrap());
            let service = TraceServiceServer::new(received.clone());
            tokio::spawn(async move {
                loop {
                    let (stream, _) = grpc.accept().await.unwrap();
                    let service = hyper_util::service::TowerToHyperService::new(service.clone());
                    tokio::spawn(
                        hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                            .serve_connection(TokioIo::new(stream), service),
                    );
                }
            });
            let received = received.clone();
            tokio::spawn(async move {
                loop {
                    let (stream, _) = http.accept().await.unwrap();
                    let received = received.clone();
                    let service =
                        hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| {
                            let received = received.clone();
                            async move {
                                assert_eq!(request.uri().path(), "/v1/traces");
                                let body = request.into_body().collect().await.unwrap().to_bytes();
                                received.take_in(ExportTraceServiceRequest::decode(body).unwrap());
                                Ok::<_, Infallible>(http::Response::new(Empty::<bytes::Bytes>::new()))
                            }
                        });
                    tokio::spawn(
                        hyper::server::conn::http1::Builder::new()
                            .serve_connection(TokioIo::new(stream), service),
                    );
                }
            });
            addresses
        });
        Self { grpc, http, received, _runtime: runtime }
    }

    /// The spans of a trace, or linked to it, once `enough` of them are there.
    fn spans(&self, traceparent: &str, enough: impl Fn(&[Sent]) -> bool) -> Vec<Sent> {
        let trace = trace_id(traceparent);
        let of_trace = || {
            let all = self.received.0.lock().unwrap();
            let belongs = |sent: &&Sent| {
                hex(&sent.span.trace_id) == trace
                    || sent.span.links.iter().any(|link| hex(&link.trace_id) == trace)
            };
            all.iter().filter(belongs).cloned().collect::<Vec<_>>()
        };
        let deadline = std::time::Instant::now() + PATIENCE;
        wait_for("the spans", || {
            let spans = of_trace();
            if std::time::Instant::now() + std::time::Duration::from_secs(2) > deadline {
                panic!("only these came: {:#?}", names(&spans));
            }
            enough(&spans).then_some(spans)
        })
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn trace_id(traceparent: &str) -> String {
    traceparent.split('-').nth(1).unwrap().to_owned()
}

fn text(attributes: &[KeyValue], key: &str) -> String {
    let value = attributes.iter().find(|attribute| attribute.key == key);
    match value.and_then(|attribute| attribute.value.as_ref()?.value.as_ref()) {
        Some(Value::StringValue(text)) => text.clone(),
        Some(Value::IntValue(number)) => number.to_string(),
        other => format!("{other:?}"),
    }
}

fn names(spans: &[Sent]) -> Vec<(String, String)> {
    spans.iter().map(|sent| (sent.site.clone(), sent.span.name.clone())).collect()
}

/// The span called `name` of `site`.
fn find<'a>(spans: &'a [Sent], site: &str, name: &str) -> &'a Span {
    let found = spans.iter().find(|sent| sent.site == site && sent.span.name == name);
    &found.unwrap_or_else(|| panic!("no span {name} of {site}: {:#?}", names(spans))).span
}

fn has(spans: &[Sent], site: &str, name: &str) -> bool {
    spans.iter().any(|sent| sent.site == site && sent.span.name == name)
}

fn cluster(collector: &Collector) -> Cluster {
    let otlp = |endpoint: SocketAddr, protocol: &str| {
        format!(
            "\n[telemetry.otlp]\nendpoint = 'http://{endpoint}'\nprotocol = '{protocol}'\ntrace_ratio = 0.0\n"
        )
    };
    Cluster::start(Options {
        sites: vec!["mumbai"],
        primary_toml: otlp(collector.http, "http"),
        site_toml: otlp(collector.grpc, "grpc") + "\n[[policy]]\nrepository = \"**\"\nkeep = \"lazy\"\n",
        ..Options::default()
    })
}

#[test]
fn a_pull_is_one_trace_from_the_client_to_the_primary() {
    let collector = Collector::start();
    let cluster = cluster(&collector);
    let session = Session::user(&cluster, &cluster.primary, &["team/app"]);
    let layer = bytes(300_000, 1);
    session.push_image("team/app", "1", &[&layer]);
    cluster.wait_complete();

    let digest = outport_proto::Digest::sha256(&layer);
    let target = format!("/v2/team/app/blobs/{digest}");
    let site = session.at(&cluster.sites[0]);
    let pulled = site.send("GET", &target, &[("traceparent", PULL)], b"");
    assert_eq!((pulled.status, pulled.body.len()), (200, layer.len()));

    let spans = collector.spans(PULL, |spans| has(spans, "mumbai", "blob") && has(spans, "primary", "fetch"));
    let pull = find(&spans, "mumbai", "blob");
    assert_eq!(hex(&pull.parent_span_id), PULL.split('-').nth(2).unwrap());
    assert_eq!(text(&pull.attributes, "outport.repository"), "team/app");
    assert_eq!(text(&pull.attributes, "outport.result"), "filled");
    assert_eq!(text(&pull.attributes, "http.response.status_code"), "200");
    let events: Vec<_> = pull.events.iter().map(|event| event.name.as_str()).collect();
    assert_eq!(events, ["first byte", "last byte"]);
    for part in ["authorise", "index", "decide", "fill"] {
        assert_eq!(find(&spans, "mumbai", part).parent_span_id, pull.span_id, "{part}");
    }
    assert_eq!(text(&find(&spans, "mumbai", "decide").attributes, "outport.decision"), "Fill");
    let fill = find(&spans, "mumbai", "fill");
    assert_eq!(text(&fill.attributes, "outport.bytes"), layer.len().to_string());
    let asked = find(&spans, "mumbai", "ask the primary");
    assert_eq!(asked.parent_span_id, fill.span_id);
    let fetch = find(&spans, "primary", "fetch");
    assert_eq!(fetch.parent_span_id, asked.span_id);
    assert_eq!(text(&fetch.attributes, "outport.site"), "mumbai");
    assert!(fetch.trace_id == pull.trace_id);

    // Nobody asked for this one, and none of it is recorded; yet its lines belong together.
    let unrecorded = PULL.replace("4bf9", "0000").replace("-01", "-00");
    let refused = site.send("GET", "/v2/team/app/manifests/none", &[("traceparent", &unrecorded)], b"");
    assert_eq!(refused.status, 404);
    let led = site.once("DELETE", "/v2/team/app/manifests/1", &[("traceparent", &unrecorded)], b"");
    assert_eq!(led.status, 307);
    let line = format!("trace_id={}", trace_id(&unrecorded));
    wait_for("the line", || cluster.sites[0].log().contains(&line).then_some(()));
    assert!(
        !collector
            .received
            .0
            .lock()
            .unwrap()
            .iter()
            .any(|sent| { hex(&sent.span.trace_id) == trace_id(&unrecorded) })
    );
}

#[test]
fn a_push_through_a_site_is_one_trace_and_what_sites_make_of_it_is_linked() {
    let collector = Collector::start();
    let cluster = cluster(&collector);
    let session = Session::user(&cluster, &cluster.primary, &["team/app"]);
    let image = session.push_image("team/app", "1", &[&bytes(1000, 1)]);
    let site = session.at(&cluster.sites[0]);
    let headers = [("traceparent", PUSH), ("Content-Type", OCI_MANIFEST)];
    let led = site.once("PUT", "/v2/team/app/manifests/2", &headers, &image.manifest);
    assert_eq!(led.status, 307);
    // What was added for the redirect's own sake is not passed on from hop to hop.
    assert_eq!(led.header("location").unwrap().matches("traceparent=").count(), 1);
    let pushed = site.send("PUT", "/v2/team/app/manifests/3", &headers, &image.manifest);
    assert_eq!(pushed.status, 201);

    let spans = collector.spans(PUSH, |spans| {
        has(spans, "primary", "manifest-put")
            && has(spans, "mumbai", "complete")
            && spans.iter().filter(|sent| sent.span.name == "manifest-put").count() == 3
    });
    let parent = PUSH.split('-').nth(2).unwrap();
    let at_site = spans.iter().filter(|sent| sent.site == "mumbai" && sent.span.name == "manifest-put");
    for sent in at_site {
        assert_eq!(hex(&sent.span.parent_span_id), parent);
        assert_eq!(text(&sent.span.attributes, "http.response.status_code"), "307");
    }
    let at_primary = find(&spans, "primary", "manifest-put");
    assert_eq!(text(&at_primary.attributes, "http.response.status_code"), "201");
    for stage in ["apply", "complete"] {
        let stage = find(&spans, "mumbai", stage);
        assert_ne!(stage.trace_id, at_primary.trace_id);
        assert_eq!(stage.links[0].span_id, at_primary.span_id);
    }
}
