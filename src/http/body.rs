//! Response bodies: one type for everything the listener sends. Never encoded, and of exactly
//! the length the headers say; a body that cannot be had whole is cut off, never ended properly.

use std::{
    collections::VecDeque,
    future::Future,
    mem,
    ops::Range,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Instant,
};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use prometheus_client::metrics::counter::Counter;

use super::connection::InFlight;
use crate::{
    registry::{BlobContent, FillReader, PullError},
    store::{BlobReader, StoreError},
    telemetry::{
        audit::{Ended, Ending, Telling},
        trace::Span,
    },
};

/// A response's body.
#[derive(Debug)]
pub struct Body {
    kind: Kind,
    /// Bytes handed to the connection are counted here.
    served_bytes: Option<Counter>,
    /// Keeps the request in flight until its last byte is out.
    in_flight: Option<InFlight>,
    traced: Option<Box<Traced>>,
    audited: Option<Audited>,
}

#[derive(Debug)]
enum Kind {
    Empty,
    Full(Bytes),
    Content(Box<Content>),
    Proxied(Incoming),
}

/// The span of a request that is recorded, until its last byte is out.
#[derive(Debug)]
struct Traced {
    span: Span,
    has_begun: bool,
}

impl Traced {
    fn first_byte(&mut self) {
        if !mem::replace(&mut self.has_begun, true) {
            self.span.happened("first byte");
        }
    }

    fn last_byte(self) {
        self.span.happened("last byte");
    }
}

/// What the audit log is told of the answer once its body has ended.
#[derive(Debug)]
pub(super) struct Audited {
    pub(super) telling: Telling,
    pub(super) bytes: u64,
    pub(super) started: Instant,
}

impl Audited {
    const fn sent(&mut self, bytes: usize) {
        self.bytes = self.bytes.saturating_add(bytes as u64);
    }

    fn end(self, ending: Ending) {
        self.telling.end(Some(Ended { bytes: self.bytes, ending, took: self.started.elapsed() }));
    }
}

/// Why a body was cut off.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The disk failed.
    #[error(transparent)]
    Disk(#[from] StoreError),
    /// A fill failed, or did not give the whole blob.
    #[error(transparent)]
    Fill(#[from] PullError),
    /// The content ended early.
    #[error("content ended {missing} bytes early")]
    Short {
        /// Bytes that were announced and did not come.
        missing: u64,
    },
    /// The primary broke off.
    #[error("primary broke off: {0}")]
    Proxied(#[from] hyper::Error),
}

impl Body {
    /// No bytes.
    pub fn empty() -> Self {
        Self::of(Kind::Empty)
    }

    /// These bytes.
    pub fn full(bytes: impl Into<Bytes>) -> Self {
        Self::of(Kind::Full(bytes.into()))
    }

    /// Parts of a blob and what stands between them, one after the other.
    pub(super) fn content(content: BlobContent, parts: impl IntoIterator<Item = Part>) -> Self {
        Self::of(Kind::Content(Box::new(Content::new(content, parts.into_iter().collect()))))
    }

    /// What the primary answers, as it comes.
    pub(super) fn proxied(body: Incoming) -> Self {
        Self::of(Kind::Proxied(body))
    }

    const fn of(kind: Kind) -> Self {
        Self { kind, served_bytes: None, in_flight: None, traced: None, audited: None }
    }

    /// Counts the bytes it sends, and keeps the request in flight and its span open until it is sent.
    #[must_use]
    pub(super) fn accounted(
        mut self,
        served_bytes: &Counter,
        in_flight: InFlight,
        span: Option<Span>,
    ) -> Self {
        self.traced = span.map(|span| Box::new(Traced { span, has_begun: false }));
        match &self.kind {
            Kind::Empty => {}
            Kind::Full(bytes) => drop(served_bytes.inc_by(bytes.len() as u64)),
            Kind::Content(_) | Kind::Proxied(_) => {
                self.served_bytes = Some(served_bytes.clone());
                self.in_flight = Some(in_flight);
            }
        }
        self
    }

    /// Tells the audit log when it has ended, and how.
    #[must_use]
    pub(super) fn audited(mut self, audited: Option<Audited>) -> Self {
        self.audited = audited;
        self
    }

    /// Length in bytes, when it is known beforehand.
    pub(super) fn length(&self) -> Option<u64> {
        http_body::Body::size_hint(self).exact()
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        let is_whole = http_body::Body::is_end_stream(self);
        if let Some(traced) = self.traced.take().filter(|_| !is_whole) {
            traced.span.failed("the client broke off");
        }
        if let Some(audited) = self.audited.take() {
            audited.end(if is_whole { Ending::Whole } else { Ending::Cut });
        }
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let polled = match &mut self.kind {
            Kind::Empty => return Poll::Ready(None),
            Kind::Full(bytes) => {
                let bytes = mem::take(bytes);
                self.kind = Kind::Empty;
                if let Some(audited) = &mut self.audited {
                    audited.sent(bytes.len());
                }
                if let Some(mut traced) = self.traced.take() {
                    traced.first_byte();
                    traced.last_byte();
                }
                return Poll::Ready((!bytes.is_empty()).then(|| Ok(Frame::data(bytes))));
            }
            Kind::Content(content) => ready!(content.poll_chunk(cx)).map(|chunk| chunk.map(Frame::data)),
            Kind::Proxied(body) => {
                ready!(Pin::new(body).poll_frame(cx)).map(|frame| frame.map_err(BodyError::Proxied))
            }
        };
        match &polled {
            Some(Ok(frame)) => {
                if let Some(traced) = &mut self.traced {
                    traced.first_byte();
                }
                if let Some(data) = frame.data_ref() {
                    if let Some(served) = &self.served_bytes {
                        served.inc_by(data.len() as u64);
                    }
                    if let Some(audited) = &mut self.audited {
                        audited.sent(data.len());
                    }
                }
            }
            Some(Err(error)) => {
                tracing::info!(%error, "response cut off");
                if let Some(traced) = self.traced.take() {
                    traced.span.failed(error);
                }
                if let Some(audited) = self.audited.take() {
                    audited.end(Ending::Cut);
                }
                self.in_flight = None;
            }
            None => self.in_flight = None,
        }
        if self.traced.is_some()
            && (polled.is_none() || self.is_end_stream())
            && let Some(traced) = self.traced.take()
        {
            traced.last_byte();
        }
        Poll::Ready(polled)
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Empty => true,
            Kind::Full(bytes) => bytes.is_empty(),
            Kind::Content(content) => content.left == 0,
            Kind::Proxied(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Empty => SizeHint::with_exact(0),
            Kind::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Kind::Content(content) => SizeHint::with_exact(content.left),
            Kind::Proxied(body) => body.size_hint(),
        }
    }
}

/// A part of a body made from a blob.
#[derive(Debug)]
pub(super) enum Part {
    /// These bytes, such as the head of a part of a `multipart/byteranges`.
    Bytes(Bytes),
    /// Bytes of the blob.
    Range(Range<u64>),
}

impl Part {
    fn length(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Range(range) => range.end - range.start,
        }
    }
}

struct Content {
    blob: BlobContent,
    parts: VecDeque<Part>,
    /// Bytes that are still to be sent.
    left: u64,
    state: State,
}

enum State {
    BetweenParts,
    File(BlobReader),
    Fill(FillReader),
    /// A fill's reader is away until its next piece has arrived.
    Filling(Arriving),
}

type Arriving = Pin<Box<dyn Future<Output = (FillReader, Result<Option<Bytes>, PullError>)> + Send>>;

impl State {
    fn open(blob: &BlobContent, range: Range<u64>) -> Self {
        match blob {
            BlobContent::Local(blob) => Self::File(blob.reader(range)),
            BlobContent::Filling(filling) => Self::Fill(filling.reader(range)),
        }
    }
}

impl std::fmt::Debug for Content {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Content").field("left", &self.left).finish_non_exhaustive()
    }
}

impl Content {
    fn new(blob: BlobContent, parts: VecDeque<Part>) -> Self {
        let left = parts.iter().map(Part::length).sum();
        Self { blob, parts, left, state: State::BetweenParts }
    }

    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, BodyError>>> {
        loop {
            match mem::replace(&mut self.state, State::BetweenParts) {
                State::BetweenParts => match self.parts.pop_front() {
                    None if self.left == 0 => return Poll::Ready(None),
                    None => {
                        let missing = mem::take(&mut self.left);
                        return Poll::Ready(Some(Err(BodyError::Short { missing })));
                    }
                    Some(Part::Bytes(bytes)) => return Poll::Ready(Some(Ok(self.sent(bytes)))),
                    Some(Part::Range(range)) => self.state = State::open(&self.blob, range),
                },
                State::File(mut reader) => match reader.poll_chunk(cx) {
                    Poll::Pending => {
                        self.state = State::File(reader);
                        return Poll::Pending;
                    }
                    Poll::Ready(None) => {}
                    Poll::Ready(Some(Ok(bytes))) => {
                        self.state = State::File(reader);
                        return Poll::Ready(Some(Ok(self.sent(bytes))));
                    }
                    Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(error.into()))),
                },
                State::Fill(mut reader) => {
                    self.state = State::Filling(Box::pin(async move {
                        let chunk = reader.chunk().await;
                        (reader, chunk)
                    }));
                }
                State::Filling(mut filling) => match filling.as_mut().poll(cx) {
                    Poll::Pending => {
                        self.state = State::Filling(filling);
                        return Poll::Pending;
                    }
                    Poll::Ready((_, Ok(None))) => {}
                    Poll::Ready((reader, Ok(Some(bytes)))) => {
                        self.state = State::Fill(reader);
                        return Poll::Ready(Some(Ok(self.sent(bytes))));
                    }
                    Poll::Ready((_, Err(error))) => return Poll::Ready(Some(Err(error.into()))),
                },
            }
        }
    }

    fn sent(&mut self, bytes: Bytes) -> Bytes {
        self.left = self.left.saturating_sub(bytes.len() as u64);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Write as _, sync::Arc};

    use http_body_util::BodyExt as _;

    use super::*;
    use crate::store::Blob;

    fn blob(bytes: &[u8]) -> BlobContent {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        BlobContent::Local(Blob::sound(Arc::new(file), bytes.len() as u64))
    }

    #[tokio::test]
    async fn parts_come_one_after_the_other_and_their_length_is_known() {
        let parts = [Part::Range(2..5), Part::Bytes("--".into()), Part::Range(0..1), Part::Bytes("!".into())];
        let body = Body::content(blob(b"abcdef"), parts);
        assert_eq!(body.length(), Some(7));
        assert_eq!(body.collect().await.unwrap().to_bytes(), "cde--a!");
    }

    #[tokio::test]
    async fn a_blob_that_is_too_short_is_an_error_and_not_an_end() {
        let body = Body::content(blob(b"abc"), [Part::Range(0..10)]);
        assert!(body.collect().await.is_err());
    }

    #[tokio::test]
    async fn larger_than_a_read() {
        let bytes: Vec<u8> = (0..3_000_000_u32).map(|number| (number % 251) as u8).collect();
        let body = Body::content(blob(&bytes), [Part::Range(1..2_999_999)]);
        assert_eq!(body.collect().await.unwrap().to_bytes(), bytes[1..2_999_999]);
    }

    #[tokio::test]
    async fn what_is_whole_is_one_frame() {
        let mut body = Body::full("manifest");
        assert_eq!(body.length(), Some(8));
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "manifest");
        assert!(http_body::Body::is_end_stream(&body) && body.frame().await.is_none());
    }
}
