//! From an asynchronous source of bytes to the disk, with both ends at work at the same time.

use std::{future::Future, io, pin::pin, time::Duration};

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use tokio::{task::JoinHandle, time::Instant};

use super::StoreError;
use crate::blocking;

/// Takes in content, blocking.
pub trait Sink: Send + 'static {
    /// Appends all of `batch`.
    ///
    /// # Errors
    /// When the disk fails or is full.
    fn write(&mut self, batch: &[Bytes]) -> Result<(), StoreError>;
}

/// Gives content piece by piece. Every `http_body::Body` of [`Bytes`] is one.
pub trait ByteSource: Send {
    /// Why it broke.
    type Error: Send;

    /// The next bytes; `None` at the end.
    fn next(&mut self) -> impl Future<Output = Result<Option<Bytes>, Self::Error>> + Send;
}

/// How a [`pump`] works.
#[derive(Clone, Copy, Debug)]
pub struct PumpOptions {
    /// Bytes read from the source and not yet written, at most (and one piece of the source more).
    pub in_flight_bytes_max: usize,
    /// Bytes that are worth a write.
    pub batch_bytes_min: usize,
    /// Fewer bytes than that are written after this time.
    pub gather_time_max: Duration,
}

impl Default for PumpOptions {
    fn default() -> Self {
        Self {
            in_flight_bytes_max: 4 * 1024 * 1024,
            batch_bytes_min: 256 * 1024,
            gather_time_max: Duration::from_millis(10),
        }
    }
}

/// How a [`pump`] ended.
#[derive(Debug)]
pub struct Pumped<S, E> {
    /// The sink, with all that was read written to it unless writing failed; `None` when its
    /// thread was lost to a stopping runtime.
    pub sink: Option<S>,
    /// Bytes written.
    pub bytes: u64,
    /// Whether the source came to its end.
    pub end: Result<(), PumpError<E>>,
}

/// Which end of a [`pump`] failed.
#[derive(Debug, thiserror::Error)]
pub enum PumpError<E> {
    /// The source broke; what it gave before was written.
    #[error("the source broke: {0}")]
    Source(E),
    /// The sink failed.
    #[error(transparent)]
    Store(StoreError),
}

/// Writes what `source` gives to `sink` on blocking threads, in batches and without copying, while
/// the next bytes arrive. No thread is held while the source is idle. When this future is
/// dropped, a write in progress ends and then the sink is dropped.
pub async fn pump<S, B>(sink: S, source: &mut B, options: PumpOptions) -> Pumped<S, B::Error>
where
    S: Sink,
    B: ByteSource,
{
    let mut writer = Writer { state: State::Idle(sink), written: 0 };
    let mut batch = Batch::default();
    let mut gathered = pin!(tokio::time::sleep(Duration::ZERO));
    let end = loop {
        let mut next = pin!(source.next());
        let item = loop {
            let has_room = batch.bytes + writer.busy_bytes() < options.in_flight_bytes_max;
            tokio::select! {
                biased;
                done = writer.done(), if writer.is_busy() => {
                    if let Err(error) = done {
                        return writer.end(Err(PumpError::Store(error)));
                    }
                    if batch.bytes >= options.batch_bytes_min {
                        writer.start(batch.take());
                    }
                }
                item = &mut next, if has_room => break item,
                () = &mut gathered, if !writer.is_busy() && batch.bytes > 0 => writer.start(batch.take()),
            }
        };
        match item {
            Ok(Some(bytes)) => {
                if batch.bytes == 0 {
                    gathered.as_mut().reset(Instant::now() + options.gather_time_max);
                }
                batch.push(bytes);
                // The first bytes are not kept waiting: somebody may be watching for them.
                let is_first = writer.written == 0;
                if !writer.is_busy() && (is_first || batch.bytes >= options.batch_bytes_min) {
                    writer.start(batch.take());
                }
            }
            Ok(None) => break Ok(()),
            Err(error) => break Err(PumpError::Source(error)),
        }
    };
    let mut flushed = writer.done().await;
    if flushed.is_ok() && batch.bytes > 0 {
        writer.start(batch.take());
        flushed = writer.done().await;
    }
    writer.end(flushed.map_err(PumpError::Store).and(end))
}

/// Bytes that wait for the writer.
#[derive(Default)]
struct Batch {
    parts: Vec<Bytes>,
    bytes: usize,
}

/// Parts smaller than this on average are copied together: cheaper than a vector of them, and
/// they may each hold on to a much larger buffer.
const PART_BYTES_MIN: usize = 4 * 1024;

impl Batch {
    fn push(&mut self, part: Bytes) {
        self.bytes += part.len();
        self.parts.push(part);
    }

    fn take(&mut self) -> Self {
        let batch = std::mem::take(self);
        if batch.parts.len() < 2 || batch.bytes / batch.parts.len() >= PART_BYTES_MIN {
            return batch;
        }
        let mut whole = BytesMut::with_capacity(batch.bytes);
        batch.parts.iter().for_each(|part| whole.extend_from_slice(part));
        Self { bytes: batch.bytes, parts: vec![whole.freeze()] }
    }
}

struct Writer<S> {
    state: State<S>,
    written: u64,
}

enum State<S> {
    Idle(S),
    Busy { bytes: usize, write: JoinHandle<(S, Result<(), StoreError>)> },
    Lost,
}

impl<S: Sink> Writer<S> {
    fn is_busy(&self) -> bool {
        matches!(self.state, State::Busy { .. })
    }

    fn busy_bytes(&self) -> usize {
        if let State::Busy { bytes, .. } = self.state { bytes } else { 0 }
    }

    fn start(&mut self, batch: Batch) {
        if let State::Idle(mut sink) = std::mem::replace(&mut self.state, State::Lost) {
            let bytes = batch.bytes;
            let write = blocking::spawn(move || {
                let result = sink.write(&batch.parts);
                (sink, result)
            });
            self.state = State::Busy { bytes, write };
        }
    }

    /// Waits for the write in progress, if there is one.
    async fn done(&mut self) -> Result<(), StoreError> {
        let State::Busy { bytes, write } = &mut self.state else {
            return Ok(());
        };
        let bytes = *bytes as u64;
        match write.await {
            Ok((sink, result)) => {
                self.state = State::Idle(sink);
                result.inspect(|()| self.written += bytes)
            }
            Err(lost) => {
                self.state = State::Lost;
                Err(StoreError::io("write on a blocking thread", io::Error::other(lost)))
            }
        }
    }

    fn end<E>(self, end: Result<(), PumpError<E>>) -> Pumped<S, E> {
        let sink = if let State::Idle(sink) = self.state { Some(sink) } else { None };
        Pumped { sink, bytes: self.written, end }
    }
}

impl<B> ByteSource for B
where
    B: http_body::Body<Data = Bytes> + Send + Unpin,
    B::Error: Send,
{
    type Error = B::Error;

    async fn next(&mut self) -> Result<Option<Bytes>, B::Error> {
        while let Some(frame) = self.frame().await {
            if let Ok(bytes) = frame?.into_data() {
                return Ok(Some(bytes));
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex, PoisonError};

    use tokio::sync::mpsc;

    use super::*;

    /// Writes into memory, only while a permit is there.
    struct Slow {
        content: Arc<Mutex<Vec<u8>>>,
        permits: std::sync::mpsc::Receiver<()>,
    }

    impl Sink for Slow {
        fn write(&mut self, batch: &[Bytes]) -> Result<(), StoreError> {
            self.permits.recv().map_err(|_| StoreError::Full { action: "write" })?;
            let mut content = self.content.lock().unwrap_or_else(PoisonError::into_inner);
            batch.iter().for_each(|part| content.extend_from_slice(part));
            Ok(())
        }
    }

    struct Pieces(mpsc::Receiver<Result<Bytes, &'static str>>);

    impl ByteSource for Pieces {
        type Error = &'static str;

        async fn next(&mut self) -> Result<Option<Bytes>, &'static str> {
            self.0.recv().await.transpose()
        }
    }

    fn slow() -> (Slow, Arc<Mutex<Vec<u8>>>, std::sync::mpsc::Sender<()>) {
        let content = Arc::new(Mutex::new(Vec::new()));
        let (permit, permits) = std::sync::mpsc::channel();
        (Slow { content: Arc::clone(&content), permits }, content, permit)
    }

    #[tokio::test]
    async fn a_slow_disk_slows_the_source_down() {
        let (sink, content, permit) = slow();
        let (give, pieces) = mpsc::channel(1);
        let options = PumpOptions { in_flight_bytes_max: 64, batch_bytes_min: 16, ..PumpOptions::default() };
        let pumped = tokio::spawn(async move { pump(sink, &mut Pieces(pieces), options).await });
        let mut given = 0;
        // The first piece is being written, more wait: the bound is reached and giving blocks.
        while tokio::time::timeout(Duration::from_millis(50), give.send(Ok(Bytes::from_static(&[7; 8]))))
            .await
            .is_ok()
        {
            given += 1;
        }
        assert!((8..=10).contains(&given), "{given} pieces of 8 bytes were taken with 64 allowed");
        for _ in 0..16 {
            permit.send(()).unwrap();
        }
        drop(give);
        let pumped = pumped.await.unwrap();
        assert!(pumped.end.is_ok());
        assert_eq!(pumped.bytes, given * 8);
        assert_eq!(content.lock().unwrap().len() as u64, given * 8);
    }

    #[tokio::test]
    async fn what_came_before_the_source_broke_is_written() {
        let (sink, content, permit) = slow();
        (0..4).for_each(|_| permit.send(()).unwrap());
        let (give, pieces) = mpsc::channel(4);
        for piece in [Ok(Bytes::from_static(b"left")), Ok(Bytes::from_static(b" over")), Err("gone")] {
            give.send(piece).await.unwrap();
        }
        let pumped = pump(sink, &mut Pieces(pieces), PumpOptions::default()).await;
        assert!(matches!(pumped.end, Err(PumpError::Source("gone"))));
        assert!(pumped.sink.is_some());
        assert_eq!(*content.lock().unwrap(), b"left over");
    }

    #[tokio::test]
    async fn a_failed_write_gives_the_sink_back() {
        let (sink, _, permit) = slow();
        drop(permit);
        let mut body = http_body_util::Full::new(Bytes::from_static(b"bytes"));
        let pumped = pump(sink, &mut body, PumpOptions::default()).await;
        assert!(matches!(pumped.end, Err(PumpError::Store(StoreError::Full { .. }))));
        assert!(pumped.sink.is_some());
        assert_eq!(pumped.bytes, 0);
    }

    #[tokio::test]
    async fn a_few_bytes_do_not_wait_for_more() {
        let (sink, content, permit) = slow();
        (0..4).for_each(|_| permit.send(()).unwrap());
        let (give, pieces) = mpsc::channel(4);
        let pumped =
            tokio::spawn(async move { pump(sink, &mut Pieces(pieces), PumpOptions::default()).await });
        for piece in [b"a", b"b"] {
            give.send(Ok(Bytes::from_static(piece))).await.unwrap();
        }
        while content.lock().unwrap().len() < 2 {
            tokio::task::yield_now().await;
        }
        drop(give);
        assert_eq!(pumped.await.unwrap().bytes, 2);
    }
}
