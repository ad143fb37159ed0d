//! Traces: one request is one trace, from the client through this site to the primary and its registry.
//!
//! Every request gets a trace, so that the lines it leaves in the logs of several sites can be put
//! together; only those that are *sampled* leave spans. The span that work belongs to goes with the task
//! ([`Span::within`]), so what is deep below needs no argument for it: [`span`] begins a part of whatever
//! is under way, and costs next to nothing when nobody records that.
//!
//! Where spans go is not known here: `app` hands a tracer in.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{self, Poll},
    time::{Duration, SystemTime},
};

use http::{HeaderMap, HeaderValue};
use opentelemetry::{
    Context, KeyValue, Value,
    context::{FutureExt as _, WithContext},
    trace::{
        Link, SpanBuilder, SpanContext, SpanId, SpanKind, Status, TraceContextExt as _, TraceFlags, TraceId,
        TraceState, Tracer as _,
    },
};
use opentelemetry_sdk::trace::SdkTracer;
use outport_proto::Traceparent;
use pin_project_lite::pin_project;
use tokio::time::Instant;

use crate::random;

/// Requests recorded in a second at most because their senders ask for it, whatever the ratio says.
const FOLLOWED_MAX: f64 = 100.0;

/// Begins traces at one node. Cloning gives another handle. By default it records nothing.
#[derive(Clone, Default)]
pub struct Tracing(Option<Arc<Recording>>);

struct Recording {
    tracer: SdkTracer,
    /// A random number below this begins a trace that is recorded.
    sampled_below: u64,
    followed: Mutex<Budget>,
}

impl fmt::Debug for Tracing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tracing").field("records", &self.0.is_some()).finish_non_exhaustive()
    }
}

/// What a span is to the one that it is a part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// A client's request, answered here.
    ByClient,
    /// Another site's question, answered here: if that records it, so does this.
    BySite,
}

impl Tracing {
    /// Records a share `ratio` (0 to 1) of what begins here, with `tracer`.
    pub fn recording(tracer: SdkTracer, ratio: f64) -> Self {
        // A float as large as any number here is saturated to it.
        let sampled_below = (ratio.clamp(0.0, 1.0) * u64::MAX as f64) as u64;
        let followed = Mutex::new(Budget { left: FOLLOWED_MAX, at: None });
        Self(Some(Arc::new(Recording { tracer, sampled_below, followed })))
    }

    /// The span of a request that came with `parent`.
    pub fn asked(&self, name: &'static str, asked: Asked, parent: Option<Traceparent>) -> Span {
        // Of every request: the generator is asked once.
        let mut ids = [0; 32];
        let _ = random::fill(&mut ids);
        let [trace_high, trace_low, span, share] = numbers(ids);
        let sampled = self.0.as_deref().is_some_and(|recording| match (parent, asked) {
            (Some(parent), Asked::BySite) => parent.sampled,
            (Some(parent), Asked::ByClient) if parent.sampled => recording.follows(),
            _ => share < recording.sampled_below,
        });
        let context = Context::new();
        match (self.0.as_deref().filter(|_| sampled), parent) {
            (Some(recording), parent) => {
                let context = match parent {
                    Some(parent) => context.with_remote_span_context(span_context(parent)),
                    None => context,
                };
                let builder = SpanBuilder::from_name(name).with_kind(SpanKind::Server);
                Span::recorded(self, recording, builder, &context)
            }
            (None, parent) => {
                let new_id = (u128::from(trace_high) << 64 | u128::from(trace_low.max(1))).to_be_bytes();
                let trace_id = parent.map_or(new_id, |parent| parent.trace_id);
                let span_id = span.max(1).to_be_bytes();
                let unrecorded = Traceparent { trace_id, span_id, sampled: false };
                Span(Some(context.with_remote_span_context(span_context(unrecorded))))
            }
        }
    }

    /// Records something that took from `begun` to now, because of what was done in span `cause`
    /// elsewhere: a trace of its own that is linked to it.
    pub fn followed_from(
        &self,
        name: &'static str,
        cause: Traceparent,
        begun: SystemTime,
        attributes: impl IntoIterator<Item = (&'static str, Value)>,
    ) {
        let Some(recording) = self.0.as_deref().filter(|_| cause.sampled) else { return };
        let builder = SpanBuilder::from_name(name)
            .with_kind(SpanKind::Consumer)
            .with_start_time(begun)
            .with_attributes(attributes.into_iter().map(|(key, value)| KeyValue::new(key, value)))
            .with_links(vec![Link::with_context(span_context(cause))]);
        drop(Span::recorded(self, recording, builder, &Context::new()));
    }
}

impl Recording {
    fn follows(&self) -> bool {
        self.followed.lock().unwrap_or_else(PoisonError::into_inner).take(Instant::now())
    }
}

/// A bucket that fills up within a second.
struct Budget {
    left: f64,
    at: Option<Instant>,
}

impl Budget {
    fn take(&mut self, now: Instant) -> bool {
        let passed = self.at.replace(now).map_or(Duration::ZERO, |at| now.duration_since(at));
        self.left = (self.left + passed.as_secs_f64() * FOLLOWED_MAX).min(FOLLOWED_MAX);
        let is_left = self.left >= 1.0;
        if is_left {
            self.left -= 1.0;
        }
        is_left
    }
}

/// A part of a trace that is under way; it ends when this is dropped.
#[derive(Debug)]
pub struct Span(Option<Context>);

impl Span {
    fn recorded(tracing: &Tracing, recording: &Recording, builder: SpanBuilder, parent: &Context) -> Self {
        let span = recording.tracer.build_with_context(builder, parent);
        Self(Some(parent.with_span(span).with_value(tracing.clone())))
    }

    /// Whether anybody will see it: what is costly to find out is set only then.
    pub fn is_recorded(&self) -> bool {
        self.0.as_ref().is_some_and(|context| context.span().is_recording())
    }

    /// Says something about it.
    pub fn set(&self, key: &'static str, value: impl Into<Value>) {
        if let Some(context) = &self.0 {
            let span = context.span();
            if span.is_recording() {
                span.set_attribute(KeyValue::new(key, value));
            }
        }
    }

    /// Something happened in it, just now.
    pub fn happened(&self, what: &'static str) {
        if let Some(context) = &self.0 {
            context.span().add_event(what, Vec::new());
        }
    }

    /// It did not end well.
    pub fn failed(&self, reason: impl fmt::Display) {
        if self.is_recorded()
            && let Some(context) = &self.0
        {
            context.span().set_status(Status::error(reason.to_string()));
        }
    }

    /// Does `work` as a part of it.
    pub fn within<F: Future>(&self, work: F) -> Within<F> {
        match &self.0 {
            None => Within { work: Work::Alone { work } },
            Some(context) => Within { work: Work::InSpan { work: work.with_context(context.clone()) } },
        }
    }

    /// What is told of it to others.
    pub fn traceparent(&self) -> Option<Traceparent> {
        self.0.as_ref().and_then(told)
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        if let Some(context) = &self.0
            && context.span().is_recording()
        {
            context.span().end();
        }
    }
}

/// Begins a part of what is under way here, if that is recorded.
pub fn span(name: &'static str) -> Span {
    Context::map_current(|current| {
        let Some(tracing) = current.get::<Tracing>() else { return Span(None) };
        let Some(recording) = tracing.0.as_deref() else { return Span(None) };
        Span::recorded(tracing, recording, SpanBuilder::from_name(name), current)
    })
}

/// Does `work` as a part, called `name`, of what is under way here.
pub fn part<F: Future>(name: &'static str, work: F) -> Part<F> {
    let span = span(name);
    Part { within: span.within(work), _span: span }
}

pin_project! {
    /// Work in a span. It is no `async fn`: one would hold its work once as what it was given and again as what it
    /// waits for, and requests go through many.
    #[derive(Debug)]
    pub struct Within<F> {
        #[pin]
        work: Work<F>,
    }
}

pin_project! {
    #[project = WorkProjection]
    #[derive(Debug)]
    enum Work<F> {
        /// There is no span to be in.
        Alone { #[pin] work: F },
        InSpan { #[pin] work: WithContext<F> },
    }
}

impl<F: Future> Future for Within<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<F::Output> {
        match self.project().work.project() {
            WorkProjection::Alone { work } => work.poll(cx),
            WorkProjection::InSpan { work } => work.poll(cx),
        }
    }
}

pin_project! {
    /// Work in a span that ends with it.
    #[derive(Debug)]
    pub struct Part<F> {
        #[pin]
        within: Within<F>,
        _span: Span,
    }
}

impl<F: Future> Future for Part<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<F::Output> {
        self.project().within.poll(cx)
    }
}

/// Says something about the innermost span that is under way here.
pub fn set(key: &'static str, value: impl Into<Value>) {
    Context::map_current(|current| {
        let span = current.span();
        if span.is_recording() {
            span.set_attribute(KeyValue::new(key, value));
        }
    });
}

/// What is under way here, for whoever is asked on its behalf; `None` when nothing is.
pub fn current() -> Option<Traceparent> {
    Context::map_current(told)
}

/// [`current`], if it is recorded.
pub fn recorded() -> Option<Traceparent> {
    current().filter(|current| current.sampled)
}

/// Puts [`recorded`] among the headers of a request that is sent on, in place of what is there.
pub fn tell(headers: &mut HeaderMap) {
    let parent = recorded().and_then(|parent| HeaderValue::try_from(parent.to_string()).ok());
    if let Some(parent) = parent {
        headers.insert("traceparent", parent);
    }
}

/// Does `work`, which another task takes over, as a part of what is under way here.
pub fn carried<F: Future>(work: F) -> impl Future<Output = F::Output> {
    work.with_context(Context::current())
}

fn told(context: &Context) -> Option<Traceparent> {
    let span = context.span();
    let context = span.span_context();
    context.is_valid().then(|| Traceparent {
        trace_id: context.trace_id().to_bytes(),
        span_id: context.span_id().to_bytes(),
        sampled: context.is_sampled(),
    })
}

fn span_context(parent: Traceparent) -> SpanContext {
    let flags = TraceFlags::default().with_sampled(parent.sampled);
    let (trace_id, span_id) = (TraceId::from_bytes(parent.trace_id), SpanId::from_bytes(parent.span_id));
    SpanContext::new(trace_id, span_id, flags, true, TraceState::default())
}

fn numbers(bytes: [u8; 32]) -> [u64; 4] {
    let (parts, _) = bytes.as_chunks::<8>();
    std::array::from_fn(|number| u64::from_le_bytes(parts[number]))
}

#[cfg(test)]
mod tests {
    use opentelemetry::trace::TracerProvider as _;
    use opentelemetry_sdk::trace::{InMemorySpanExporter, SdkTracerProvider};

    use super::*;

    fn recording(ratio: f64) -> (Tracing, InMemorySpanExporter) {
        let exporter = InMemorySpanExporter::default();
        let provider = SdkTracerProvider::builder().with_simple_exporter(exporter.clone()).build();
        (Tracing::recording(provider.tracer("outport"), ratio), exporter)
    }

    fn parent(sampled: bool) -> Traceparent {
        Traceparent { trace_id: [7; 16], span_id: [9; 8], sampled }
    }

    #[tokio::test]
    async fn parts_of_a_request_are_one_trace() {
        let (tracing, exporter) = recording(1.0);
        let request = tracing.asked("GET", Asked::ByClient, None);
        let told = request.traceparent().unwrap();
        let inside = request
            .within(async {
                let part = span("index");
                part.set("known", true);
                part.within(async {
                    tokio::task::yield_now().await;
                    current()
                })
                .await
            })
            .await
            .unwrap();
        assert_eq!(inside.trace_id, told.trace_id);
        assert_ne!(inside.span_id, told.span_id);
        assert_eq!(current(), None);
        drop(request);
        let spans = exporter.get_finished_spans().unwrap();
        let names: Vec<_> = spans.iter().map(|span| span.name.as_ref()).collect();
        assert_eq!(names, ["index", "GET"]);
        assert_eq!(spans[0].parent_span_id, spans[1].span_context.span_id());
    }

    #[tokio::test]
    async fn what_is_not_sampled_has_a_trace_and_no_spans() {
        let (tracing, exporter) = recording(0.0);
        let request = tracing.asked("GET", Asked::ByClient, Some(parent(false)));
        let told = request.traceparent().unwrap();
        assert_eq!((told.trace_id, told.sampled), ([7; 16], false));
        assert!(request.within(async { !span("index").is_recorded() && recorded().is_none() }).await);
        drop(request);
        let silent = Tracing::default().asked("GET", Asked::ByClient, Some(parent(true)));
        assert!(!silent.traceparent().unwrap().sampled);
        let one = Tracing::default().asked("GET", Asked::ByClient, None).traceparent();
        let other = Tracing::default().asked("GET", Asked::ByClient, None).traceparent();
        assert_ne!(one.unwrap().trace_id, other.unwrap().trace_id);
        assert!(exporter.get_finished_spans().unwrap().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_asks_for_a_record_gets_it_but_not_without_end() {
        let (tracing, _) = recording(0.0);
        let recorded = |asked| {
            let spans = (0..1000).map(|_| tracing.asked("GET", asked, Some(parent(true))));
            spans.filter(Span::is_recorded).count()
        };
        assert_eq!(recorded(Asked::ByClient), 100);
        assert_eq!(recorded(Asked::BySite), 1000);
        tokio::time::advance(Duration::from_millis(500)).await;
        assert_eq!(recorded(Asked::ByClient), 50);
    }

    #[test]
    fn what_follows_from_another_site_is_linked_to_it() {
        let (tracing, exporter) = recording(0.0);
        tracing.followed_from("apply", parent(false), SystemTime::now(), []);
        tracing.followed_from("apply", parent(true), SystemTime::now(), [("seq", Value::I64(3))]);
        let spans = exporter.get_finished_spans().unwrap();
        assert_eq!(spans.len(), 1);
        let link = &spans[0].links.links[0].span_context;
        assert_eq!(link.trace_id().to_bytes(), [7; 16]);
        assert_ne!(spans[0].span_context.trace_id().to_bytes(), [7; 16]);
    }
}
