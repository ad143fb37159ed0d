//! Frames over QUIC streams.

use std::{collections::VecDeque, mem, time::Duration};

use bytes::{Bytes, BytesMut};
use outport_proto::codec::{self, CodecError, FrameReader, WireFrame};

use super::quic::StreamKind;

/// Most bytes taken from a stream at once.
const READ_BYTES: usize = 256 * 1024;

/// Pieces of a raw body taken from a stream at once. A piece is what one packet carried.
const PIECES: usize = 64;

/// Pieces smaller than this on average are joined: copying costs less than handling each.
const PIECE_BYTES_MIN: usize = 4 * 1024;

/// Frames of one kind from a stream.
#[derive(Debug)]
pub struct FrameStream<F> {
    stream: quinn::RecvStream,
    reader: FrameReader<F>,
}

impl<F: WireFrame> FrameStream<F> {
    /// Reads frames from `stream`.
    pub fn new(stream: quinn::RecvStream) -> Self {
        Self { stream, reader: FrameReader::new() }
    }

    /// What comes next. May be dropped at any time and called again.
    ///
    /// # Errors
    /// [`FramedError::Frame`] as soon as the bytes cannot be a frame, or announce one over the limit.
    pub async fn incoming(&mut self) -> Result<Incoming<F>, FramedError> {
        if let Some(frame) = self.reader.next()? {
            return Ok(Incoming::Frame(frame));
        }
        match self.stream.read_chunk(READ_BYTES, true).await? {
            Some(chunk) => self.reader.push(&chunk.bytes),
            None if self.reader.is_mid_frame() => return Err(FramedError::CutOff),
            None => return Ok(Incoming::End),
        }
        Ok(self.reader.next()?.map_or(Incoming::Bytes, Incoming::Frame))
    }

    /// The next frame; `None` when the peer finished the stream between two frames. May be
    /// dropped at any time and called again.
    ///
    /// # Errors
    /// As [`FrameStream::incoming`].
    pub async fn frame(&mut self) -> Result<Option<F>, FramedError> {
        loop {
            match self.incoming().await? {
                Incoming::Frame(frame) => return Ok(Some(frame)),
                Incoming::Bytes => {}
                Incoming::End => return Ok(None),
            }
        }
    }

    /// [`FrameStream::frame`] where one must come, and within `limit`.
    ///
    /// # Errors
    /// Also [`FramedError::CutOff`] at the end of the stream, and [`FramedError::Stalled`].
    pub async fn expect(&mut self, limit: Duration) -> Result<F, FramedError> {
        within(limit, self.frame()).await?.ok_or(FramedError::CutOff)
    }

    /// What follows the frames read so far, as raw bytes.
    pub fn into_raw(self) -> RawStream {
        RawStream { ready: VecDeque::from([self.reader.into_rest()]), stream: self.stream }
    }
}

/// What came on a stream.
#[derive(Debug)]
pub enum Incoming<F> {
    /// A whole frame.
    Frame(F),
    /// Bytes of one that is not whole yet: the peer is alive.
    Bytes,
    /// The peer finished the stream between two frames.
    End,
}

/// Raw bytes from a stream.
#[derive(Debug)]
pub struct RawStream {
    ready: VecDeque<Bytes>,
    stream: quinn::RecvStream,
}

impl RawStream {
    /// The next bytes; `None` at the end.
    ///
    /// # Errors
    /// When the stream broke, or nothing came within `limit`.
    pub async fn chunk(&mut self, limit: Duration) -> Result<Option<Bytes>, FramedError> {
        if let Some(piece) = self.ready.pop_front().filter(|piece| !piece.is_empty()) {
            return Ok(Some(piece));
        }
        let mut pieces = [const { Bytes::new() }; PIECES];
        let taken = within(limit, async { Ok(self.stream.read_chunks(&mut pieces).await?) }).await?;
        let Some(taken) = taken else { return Ok(None) };
        let pieces = &mut pieces[..taken];
        let bytes: usize = pieces.iter().map(Bytes::len).sum();
        if bytes < taken * PIECE_BYTES_MIN {
            return Ok(Some(join(pieces, bytes)));
        }
        self.ready.extend(pieces.iter_mut().map(mem::take));
        Ok(self.ready.pop_front())
    }
}

fn join(pieces: &[Bytes], bytes: usize) -> Bytes {
    if let [piece] = pieces {
        return piece.clone();
    }
    let mut joined = BytesMut::with_capacity(bytes);
    for piece in pieces {
        joined.extend_from_slice(piece);
    }
    joined.freeze()
}

/// Frames and raw bytes onto a stream.
#[derive(Debug)]
pub struct FrameSink {
    stream: quinn::SendStream,
    limit: Duration,
}

impl FrameSink {
    /// Writes to `stream`, and gives it up when the peer takes nothing for `limit`.
    pub fn new(stream: quinn::SendStream, limit: Duration) -> Self {
        Self { stream, limit }
    }

    /// Opens the stream as one of `kind`, with its first frame.
    ///
    /// # Errors
    /// When the stream broke or stalled.
    pub async fn open<F: WireFrame>(&mut self, kind: StreamKind, frame: &F) -> Result<(), FramedError> {
        let frame = codec::encode_frame(frame)?;
        self.write(&mut [Bytes::copy_from_slice(&[kind.byte()]), frame]).await
    }

    /// Sends a frame.
    ///
    /// # Errors
    /// When it is too large, or the stream broke or stalled.
    pub async fn send<F: WireFrame>(&mut self, frame: &F) -> Result<(), FramedError> {
        self.write(&mut [codec::encode_frame(frame)?]).await
    }

    /// Sends bytes as they are, without copying.
    ///
    /// # Errors
    /// When the stream broke or stalled.
    pub async fn write(&mut self, chunks: &mut [Bytes]) -> Result<(), FramedError> {
        within(self.limit, async { Ok(self.stream.write_all_chunks(chunks).await?) }).await
    }

    /// Says that nothing more comes.
    pub fn finish(&mut self) {
        // It fails only when the stream is finished or reset already: nothing is left to say then.
        let _ = self.stream.finish();
    }

    /// The stream itself, for its priority or a reset.
    pub fn stream(&mut self) -> &mut quinn::SendStream {
        &mut self.stream
    }
}

/// The kind of stream that `stream` begins to be.
///
/// # Errors
/// When its first byte stands for none, or does not come within `limit`.
pub async fn stream_kind(stream: &mut quinn::RecvStream, limit: Duration) -> Result<StreamKind, FramedError> {
    let mut first = [0];
    within(limit, async {
        stream.read_exact(&mut first).await.map_err(|error| match error {
            quinn::ReadExactError::FinishedEarly(_) => FramedError::CutOff,
            quinn::ReadExactError::ReadError(error) => error.into(),
        })
    })
    .await?;
    StreamKind::from_byte(first[0]).ok_or(FramedError::Kind(first[0]))
}

async fn within<T>(
    limit: Duration,
    work: impl Future<Output = Result<T, FramedError>>,
) -> Result<T, FramedError> {
    tokio::time::timeout(limit, work).await.unwrap_or(Err(FramedError::Stalled(limit)))
}

/// Why frames stopped.
#[derive(Clone, Debug, thiserror::Error)]
pub enum FramedError {
    /// The peer did not want to send or receive the rest.
    #[error("the peer abandoned the stream (code {0})")]
    Abandoned(u64),
    /// The connection ended.
    #[error("{0}")]
    Broken(String),
    /// The stream ended inside a frame, or where one had to come.
    #[error("the stream ended early")]
    CutOff,
    /// Nothing moved in time.
    #[error("nothing moved for {0:?}")]
    Stalled(Duration),
    /// No stream begins with this byte.
    #[error("no stream begins with {0:#04x}")]
    Kind(u8),
    /// Not a frame, or not one that belongs here.
    #[error("bad frame: {0}")]
    Frame(#[from] CodecError),
}

impl FramedError {
    /// Whether the peer spoke something that is not the protocol, so that nothing it says can be used.
    pub const fn is_violation(&self) -> bool {
        matches!(self, Self::Kind(_) | Self::Frame(_))
    }
}

impl From<quinn::ConnectionError> for FramedError {
    fn from(error: quinn::ConnectionError) -> Self {
        Self::Broken(error.to_string())
    }
}

impl From<quinn::ReadError> for FramedError {
    fn from(error: quinn::ReadError) -> Self {
        match error {
            quinn::ReadError::Reset(code) => Self::Abandoned(code.into_inner()),
            quinn::ReadError::ConnectionLost(error) => error.into(),
            other => Self::Broken(other.to_string()),
        }
    }
}

impl From<quinn::WriteError> for FramedError {
    fn from(error: quinn::WriteError) -> Self {
        match error {
            quinn::WriteError::Stopped(code) => Self::Abandoned(code.into_inner()),
            quinn::WriteError::ConnectionLost(error) => error.into(),
            other => Self::Broken(other.to_string()),
        }
    }
}
