//! Reading a range of a file piece by piece from asynchronous code.
//!
//! Bytes that the operating system has in memory are copied on the calling thread: that takes
//! some microseconds a piece and no hop to another thread. Only what must come from the disk is
//! read on a blocking thread, which also asks for the bytes after it ahead of time.

use std::{
    fs::File,
    io::{self, IoSliceMut},
    ops::Range,
    os::unix::fs::FileExt as _,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use rustix::{
    fs::{Advice, fadvise},
    io::{Errno, ReadWriteFlags, preadv2},
};
use tokio::task::JoinHandle;

use super::StoreError;
use crate::{blocking, process::is_simulated};

/// Bytes read at once. Measured over TCP on loopback, with two CPUs: 4.0 GiB a CPU-second with 128 KiB, 4.3
/// with 256 KiB, 4.9 with 512 KiB, 5.8 with 1 MiB; hyper queues about 400 KiB a connection anyway.
const CHUNK_BYTES: usize = 512 * 1024;
/// Asked for ahead of a reader that has to wait for the disk.
const READ_AHEAD_BYTES: u64 = 2 * 1024 * 1024;
/// Buffers kept for the next reader.
const SPARE_BUFFERS_MAX: usize = 8;

static SPARE_BUFFERS: Mutex<Vec<Box<[u8]>>> = Mutex::new(Vec::new());

/// A range of an open file. Dropping it stops reading.
#[derive(Debug)]
pub struct FileReader {
    file: Arc<File>,
    next: u64,
    end: u64,
    /// A piece that is being read from the disk.
    waiting: Option<JoinHandle<io::Result<Bytes>>>,
}

impl FileReader {
    /// Reads `range` of `file`; positions beyond the file's end are an error when they are reached.
    pub fn new(file: Arc<File>, range: Range<u64>) -> Self {
        Self { file, next: range.start, end: range.end, waiting: None }
    }

    /// Bytes not yet given.
    pub fn remaining(&self) -> u64 {
        self.end.saturating_sub(self.next)
    }

    /// The next piece, at most 512 KiB; `None` at the end of the range.
    ///
    /// # Errors
    /// When the disk fails or the file is shorter than the range. The reader is at its end then.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, StoreError> {
        std::future::poll_fn(|cx| self.poll_chunk(cx)).await.transpose()
    }

    /// As [`FileReader::chunk`], for hand-written bodies.
    pub fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, StoreError>>> {
        let read = if let Some(waiting) = &mut self.waiting {
            let joined = ready!(Pin::new(waiting).poll(cx));
            self.waiting = None;
            joined.unwrap_or_else(|lost| Err(io::Error::other(lost)))
        } else {
            let wanted = CHUNK_BYTES.min(usize::try_from(self.remaining()).unwrap_or(CHUNK_BYTES));
            if wanted == 0 {
                return Poll::Ready(None);
            }
            let Some(bytes) = read_now(&self.file, self.next, wanted) else {
                let (file, at) = (Arc::clone(&self.file), self.next);
                self.waiting = Some(blocking::spawn(move || read_waiting(&file, at, wanted)));
                return self.poll_chunk(cx);
            };
            Ok(bytes)
        };
        match &read {
            Ok(bytes) => self.next += bytes.len() as u64,
            Err(_) => self.next = self.end,
        }
        Poll::Ready(Some(read.map_err(StoreError::when("read a blob"))))
    }
}

impl http_body::Body for FileReader {
    type Data = Bytes;
    type Error = StoreError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, StoreError>>> {
        self.poll_chunk(cx).map(|chunk| chunk.map(|bytes| bytes.map(http_body::Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        self.remaining() == 0
    }

    fn size_hint(&self) -> http_body::SizeHint {
        http_body::SizeHint::with_exact(self.remaining())
    }
}

/// What of `file` at `at` is in memory, at most `wanted` bytes; `None` when nothing is, or when it cannot be
/// known without waiting.
fn read_now(file: &File, at: u64, wanted: usize) -> Option<Bytes> {
    if is_simulated() {
        // What the operating system has in memory does not follow from any seed.
        return None;
    }
    let mut buffer = Buffer::take(wanted);
    loop {
        let mut slices = [IoSliceMut::new(&mut buffer.bytes[..wanted])];
        match preadv2(file, &mut slices, at, ReadWriteFlags::NOWAIT) {
            Ok(0) => return None,
            Ok(read) => return Some(buffer.filled(read)),
            Err(Errno::INTR) => {}
            Err(_) => return None,
        }
    }
}

pub(super) fn read_waiting(file: &File, at: u64, wanted: usize) -> io::Result<Bytes> {
    let mut buffer = Buffer::take(wanted);
    file.read_exact_at(&mut buffer.bytes[..wanted], at)?;
    // Advice alone: a filesystem that does not take it is only slower.
    let _ = fadvise(file, at + wanted as u64, std::num::NonZeroU64::new(READ_AHEAD_BYTES), Advice::WillNeed);
    Ok(buffer.filled(wanted))
}

/// A buffer that goes back to the spare ones when its last reader has let go of it.
struct Buffer {
    bytes: Box<[u8]>,
    len: usize,
}

impl Buffer {
    /// A buffer of at least `wanted` bytes; small ones are made to measure.
    fn take(wanted: usize) -> Self {
        let is_small = wanted <= CHUNK_BYTES / 4;
        let spare = if is_small { None } else { spare_buffers().pop() };
        let size = if is_small { wanted } else { CHUNK_BYTES };
        Self { bytes: spare.unwrap_or_else(|| vec![0; size].into_boxed_slice()), len: 0 }
    }

    fn filled(mut self, len: usize) -> Bytes {
        self.len = len;
        Bytes::from_owner(self)
    }
}

fn spare_buffers() -> MutexGuard<'static, Vec<Box<[u8]>>> {
    SPARE_BUFFERS.lock().unwrap_or_else(PoisonError::into_inner)
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut spare = spare_buffers();
        if self.bytes.len() == CHUNK_BYTES && spare.len() < SPARE_BUFFERS_MAX {
            spare.push(std::mem::take(&mut self.bytes));
        }
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    fn file_of(content: &[u8]) -> Arc<File> {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(content, 0).unwrap();
        Arc::new(file)
    }

    fn content(size: usize) -> Vec<u8> {
        (0..size).map(|at| (at * 31 / 7) as u8).collect()
    }

    #[tokio::test]
    async fn ranges_come_back_exactly() {
        let content = content(3 * CHUNK_BYTES + 17);
        let file = file_of(&content);
        let size = content.len();
        for range in [0..size, 0..0, 5..6, 1..CHUNK_BYTES + 1, size - 1..size, size..size] {
            let reader = FileReader::new(Arc::clone(&file), range.start as u64..range.end as u64);
            assert_eq!(http_body::Body::size_hint(&reader).exact(), Some(range.len() as u64));
            let bytes = reader.collect().await.unwrap().to_bytes();
            assert_eq!(bytes, content[range.clone()], "{range:?}");
        }
    }

    #[tokio::test]
    async fn a_cold_file_is_read_on_another_thread() {
        let content = content(2 * CHUNK_BYTES);
        let file = file_of(&content);
        let mut reader = FileReader::new(Arc::clone(&file), 0..content.len() as u64);
        let at = Arc::clone(&file);
        reader.waiting = Some(blocking::spawn(move || read_waiting(&at, 0, CHUNK_BYTES)));
        assert_eq!(reader.collect().await.unwrap().to_bytes(), content);
    }

    #[tokio::test]
    async fn a_file_that_is_too_short_is_an_error_not_a_short_answer() {
        let mut reader = FileReader::new(file_of(b"short"), 0..10);
        let error = loop {
            match reader.chunk().await {
                Ok(bytes) => assert_eq!(bytes.unwrap(), b"short"[..]),
                Err(error) => break error,
            }
        };
        assert!(matches!(error, StoreError::Io { .. }));
        assert!(reader.chunk().await.unwrap().is_none());
    }
}
