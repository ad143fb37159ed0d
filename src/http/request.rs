//! A request on its way to its answer: head, and a body that is read at most once.

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method, Uri, header};
use http_body::Body as HttpBody;
use http_body_util::BodyExt as _;

use outport_proto::Traceparent;

use super::{action::Query, error::ApiError, headers::content_length};

/// Why a body breaks, in hyper's or a test's words.
pub(super) type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What the listener needs of a request's body.
pub trait RequestBody: HttpBody<Data = Bytes, Error: Into<BoxError>> + Send + Unpin + 'static {}

impl<B: HttpBody<Data = Bytes, Error: Into<BoxError>> + Send + Unpin + 'static> RequestBody for B {}

/// Unread bytes of a refused request that are taken in, so that the client reads the refusal
/// instead of a reset connection.
const DRAIN_BYTES_MAX: usize = 8 * 1024 * 1024;
/// And for how long.
const DRAIN_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);

/// W3C Trace Context: a header, and a parameter of a redirect, which cannot carry headers.
pub(super) const TRACEPARENT: &str = "traceparent";

/// A request.
pub(super) struct Asked<B> {
    pub(super) method: Method,
    pub(super) uri: Uri,
    pub(super) headers: HeaderMap,
    body: Option<B>,
}

impl<B: RequestBody> Asked<B> {
    pub(super) fn new(request: http::Request<B>) -> Self {
        let (parts, body) = request.into_parts();
        let body = (!body.is_end_stream()).then_some(body);
        Self { method: parts.method, uri: parts.uri, headers: parts.headers, body }
    }

    pub(super) fn is_head(&self) -> bool {
        self.method == Method::HEAD
    }

    /// The span that it is a part of: in its header, or where a site that led it here put it.
    pub(super) fn traceparent(&self) -> Option<Traceparent> {
        let led = self.query().get(TRACEPARENT).and_then(|parent| parent.parse().ok());
        led.or_else(|| self.headers.get(TRACEPARENT)?.to_str().ok()?.parse().ok())
    }

    pub(super) fn query(&self) -> Query<'_> {
        Query(self.uri.query().unwrap_or_default())
    }

    /// Whether bytes may come. A body of unknown length counts.
    pub(super) fn has_body(&self) -> bool {
        self.body.is_some()
    }

    /// The length announced for the body; `None` when it is not known.
    pub(super) fn body_length(&self) -> Option<u64> {
        match &self.body {
            None => Some(0),
            Some(_) => content_length(&self.headers),
        }
    }

    /// The body, to be streamed elsewhere.
    pub(super) fn take_body(&mut self) -> Option<B> {
        self.body.take()
    }

    /// The next bytes of the body.
    pub(super) async fn chunk(&mut self) -> Result<Option<Bytes>, ApiError> {
        while let Some(body) = &mut self.body {
            match body.frame().await {
                None => self.body = None,
                Some(Ok(frame)) => {
                    if let Ok(bytes) = frame.into_data()
                        && !bytes.is_empty()
                    {
                        return Ok(Some(bytes));
                    }
                }
                Some(Err(_)) => {
                    self.body = None;
                    return Err(ApiError::BodyBroken);
                }
            }
        }
        Ok(None)
    }

    /// The whole body, unless it is larger than `bytes_max`; then at most that much was read.
    pub(super) async fn read_whole(&mut self, bytes_max: usize) -> Result<Bytes, ApiError> {
        let announced = self.body_length();
        if announced.is_some_and(|length| length > bytes_max as u64) {
            return Err(ApiError::BodyTooLarge(bytes_max));
        }
        let Some(first) = self.chunk().await? else {
            return Ok(Bytes::new());
        };
        if announced == Some(first.len() as u64) {
            return Ok(first);
        }
        let room = announced.and_then(|length| usize::try_from(length).ok()).unwrap_or(first.len() * 2);
        let mut whole = BytesMut::with_capacity(room);
        let mut next = Some(first);
        while let Some(bytes) = next {
            if whole.len() + bytes.len() > bytes_max {
                return Err(ApiError::BodyTooLarge(bytes_max));
            }
            whole.extend_from_slice(&bytes);
            next = self.chunk().await?;
        }
        Ok(whole.freeze())
    }

    /// Takes in what is left of the body while the answer is already on its way. A client that
    /// waits for `100 Continue` must not be asked for what nobody wants.
    pub(super) fn drain(self) {
        let Some(mut body) = self.body else { return };
        let length = content_length(&self.headers);
        if self.headers.contains_key(header::EXPECT)
            || length.is_some_and(|length| length > DRAIN_BYTES_MAX as u64)
        {
            return;
        }
        drop(tokio::spawn(tokio::time::timeout(DRAIN_TIMEOUT, async move {
            let mut bytes = 0;
            while let Some(Ok(frame)) = body.frame().await {
                bytes += frame.data_ref().map_or(0, Bytes::len);
                if bytes > DRAIN_BYTES_MAX {
                    return;
                }
            }
        })));
    }
}
