//! Cuts a stream of bytes into frames.

use std::marker::PhantomData;

use bytes::{Buf, Bytes, BytesMut};

use super::{CodecError, WireFrame, envelope::Envelope};
use crate::frame::FRAME_BYTES_MAX;

/// Most bytes in one [`FrameReader::push`].
const PUSH_BYTES_MAX: usize = 1024 * 1024;

/// Collects the bytes of a stream and gives its frames. Call [`FrameReader::next`] until it says
/// `None` after every [`FrameReader::push`]: then it holds less than one frame.
#[derive(Debug)]
pub struct FrameReader<F> {
    buffer: BytesMut,
    failed: Option<CodecError>,
    frame: PhantomData<fn() -> F>,
}

impl<F: WireFrame> FrameReader<F> {
    /// A reader at the beginning of a stream.
    pub fn new() -> Self {
        Self { buffer: BytesMut::new(), failed: None, frame: PhantomData }
    }

    /// Takes in the next bytes of the stream, at most 1 MiB at once. More than a frame and such a
    /// piece is never held: a driver that goes on pushing without calling [`FrameReader::next`]
    /// gets [`CodecError::TooLarge`] from it.
    pub fn push(&mut self, bytes: &[u8]) {
        let buffered = self.buffer.len() + bytes.len();
        if self.failed.is_some() {
            return;
        }
        if buffered > FRAME_BYTES_MAX + PUSH_BYTES_MAX {
            self.fail(CodecError::TooLarge { bytes: buffered });
            return;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame; `None` until more bytes are pushed.
    ///
    /// # Errors
    /// See [`CodecError`]. After an error the place of the next frame is unknown, so every later
    /// call gives the same error: close the stream.
    #[expect(clippy::should_implement_trait, reason = "a None here does not end it, as an iterator's does")]
    pub fn next(&mut self) -> Result<Option<F>, CodecError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let result = match Envelope::parse(&self.buffer) {
            Ok(None) => return Ok(None),
            Ok(Some(envelope)) => {
                let frame_bytes = envelope.len_bytes();
                F::decode(envelope).map(|frame| (frame, frame_bytes))
            }
            Err(error) => Err(error),
        };
        match result {
            Ok((frame, frame_bytes)) => {
                self.buffer.advance(frame_bytes);
                Ok(Some(frame))
            }
            Err(error) => {
                self.fail(error.clone());
                Err(error)
            }
        }
    }

    /// Whether bytes of an unfinished frame are held: a stream must not end there.
    pub fn is_mid_frame(&self) -> bool {
        !self.buffer.is_empty()
    }

    /// The bytes after the last frame: the beginning of the raw body that follows `Response::Body`.
    pub fn into_rest(self) -> Bytes {
        self.buffer.freeze()
    }

    fn fail(&mut self, error: CodecError) {
        self.buffer = BytesMut::new();
        self.failed = Some(error);
    }
}

impl<F: WireFrame> Default for FrameReader<F> {
    fn default() -> Self {
        Self::new()
    }
}
