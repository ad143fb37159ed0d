//! One pull is one trace, and so is a push with all that follows from it, as a collector gets to see
//! them: a real one for both ways that OTLP travels.

use std::collections::BTreeSet;

use opentelemetry_proto::tonic::{
    metrics::v1::{Metric, metric, number_data_point},
    trace::v1::Span,
};

use crate::{
    collector::{Collector, Sent, text},
    support::{
        Cluster, Options, PATIENCE,
        http::get_plain,
        session::{OCI_MANIFEST, Session, bytes},
        wait_for,
    },
};

const PULL: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
const PUSH: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// The spans of a trace, or linked to it, once `enough` of them are there.
fn spans(
    collector: &Collector,
    traceparent: &str,
    enough: impl Fn(&[Sent<Span>]) -> bool,
) -> Vec<Sent<Span>> {
    let trace = trace_id(traceparent);
    let of_trace = || {
        let all = collector.all();
        let belongs = |sent: &&Sent<Span>| {
            hex(&sent.what.trace_id) == trace
                || sent.what.links.iter().any(|link| hex(&link.trace_id) == trace)
        };
        all.spans.iter().filter(belongs).cloned().collect::<Vec<_>>()
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

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn trace_id(traceparent: &str) -> String {
    traceparent.split('-').nth(1).unwrap().to_owned()
}

fn names(spans: &[Sent<Span>]) -> Vec<(String, String)> {
    spans.iter().map(|sent| (sent.site.clone(), sent.what.name.clone())).collect()
}

/// The span called `name` of `site`.
fn find<'a>(spans: &'a [Sent<Span>], site: &str, name: &str) -> &'a Span {
    let found = spans.iter().find(|sent| sent.site == site && sent.what.name == name);
    &found.unwrap_or_else(|| panic!("no span {name} of {site}: {:#?}", names(spans))).what
}

fn has(spans: &[Sent<Span>], site: &str, name: &str) -> bool {
    spans.iter().any(|sent| sent.site == site && sent.what.name == name)
}

fn cluster(collector: &Collector) -> Cluster {
    Cluster::start(Options {
        sites: vec!["mumbai"],
        primary_toml: collector.by_http("trace_ratio = 0.0"),
        site_toml: collector.by_grpc("trace_ratio = 0.0")
            + "\n[[policy]]\nrepository = \"**\"\nkeep = \"lazy\"\n",
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

    let spans =
        spans(&collector, PULL, |spans| has(spans, "mumbai", "blob") && has(spans, "primary", "fetch"));
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
    assert!(!collector.all().spans.iter().any(|sent| { hex(&sent.what.trace_id) == trace_id(&unrecorded) }));
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

    let spans = spans(&collector, PUSH, |spans| {
        has(spans, "primary", "manifest-put")
            && has(spans, "mumbai", "complete")
            && spans.iter().filter(|sent| sent.what.name == "manifest-put").count() == 3
    });
    let parent = PUSH.split('-').nth(2).unwrap();
    let at_site = spans.iter().filter(|sent| sent.site == "mumbai" && sent.what.name == "manifest-put");
    for sent in at_site {
        assert_eq!(hex(&sent.what.parent_span_id), parent);
        assert_eq!(text(&sent.what.attributes, "http.response.status_code"), "307");
    }
    let at_primary = find(&spans, "primary", "manifest-put");
    assert_eq!(text(&at_primary.attributes, "http.response.status_code"), "201");
    for stage in ["apply", "complete"] {
        let stage = find(&spans, "mumbai", stage);
        assert_ne!(stage.trace_id, at_primary.trace_id);
        assert_eq!(stage.links[0].span_id, at_primary.span_id);
    }
}

#[test]
fn a_collector_is_sent_what_scrapers_see() {
    let collector = Collector::start();
    let cluster = Cluster::start(Options {
        sites: vec!["mumbai"],
        primary_toml: collector.by_http("metrics_seconds = 1"),
        site_toml: collector.by_grpc("metrics_seconds = 1"),
        ..Options::default()
    });
    let session = Session::user(&cluster, &cluster.primary, &["team/app"]);
    session.push_image("team/app", "1", &[&bytes(1000, 1)]);
    cluster.wait_complete();
    assert_eq!(session.at(&cluster.sites[0]).get("/v2/team/app/manifests/1").status, 200);
    for node in cluster.nodes() {
        let (_, scraped) = get_plain(&node.admin(), "/metrics").unwrap();
        let types = scraped.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
        let families: BTreeSet<_> = types.collect();
        wait_for("all families", || {
            let all = collector.all();
            let last = all.metrics.iter().rev().find(|sent| sent.site == node.name)?;
            // Counters and infos are called otherwise by Prometheus.
            let called = |metric: &Metric| match &metric.data {
                Some(metric::Data::Sum(_)) => format!("{}_total", metric.name),
                _ if metric.name == "outport_build" => "outport_build_info".to_owned(),
                _ => metric.name.clone(),
            };
            let sent: BTreeSet<_> = last.what.iter().map(called).collect();
            families.iter().all(|family| sent.contains(*family)).then_some(())
        });
    }
    wait_for("the pull to be counted", || {
        let all = collector.all();
        let last = all.metrics.iter().rev().find(|sent| sent.site == "mumbai")?;
        let pulls = last.what.iter().find(|metric| metric.name == "outport_pulls")?;
        let Some(metric::Data::Sum(pulls)) = &pulls.data else { panic!("{pulls:?}") };
        let values = pulls.data_points.iter().map(|point| match point.value {
            Some(number_data_point::Value::AsDouble(value)) => value,
            other => panic!("{other:?}"),
        });
        (values.sum::<f64>() == 1.0).then_some(())
    });
}
