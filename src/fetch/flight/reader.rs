//! One reader's cursor on a flight.

use crate::watch;
use std::{
    fs::File,
    ops::Range,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use outport_proto::RepoName;
use tokio_util::sync::ReusableBoxFuture;

use super::{
    FillError, Node,
    passthrough::PassThrough,
    progress::{Progress, Shared, Stage, Unkept, readable},
};
use crate::store::FileReader;

/// Reads a range of a blob while it is filled. Dropping it stops reading; the fill goes on.
pub struct FlightReader {
    remaining: u64,
    /// Between two pieces; else it is inside `step`.
    cursor: Option<Cursor>,
    step: Option<ReusableBoxFuture<'static, Stepped>>,
}

type Stepped = (Cursor, Result<Bytes, FillError>);

impl FlightReader {
    pub(super) fn new(node: &Arc<Node>, shared: &Arc<Shared>, repo: &RepoName, range: Range<u64>) -> Self {
        let progress = shared.watch();
        let end = progress.borrow().size.map_or(range.end, |size| range.end.min(size));
        let cursor = Cursor {
            node: Arc::clone(node),
            shared: Arc::clone(shared),
            progress,
            repo: repo.clone(),
            next: range.start,
            end,
            alone: None,
        };
        Self { remaining: end.saturating_sub(range.start), cursor: Some(cursor), step: None }
    }

    /// Bytes of the range not yet given.
    pub fn remaining(&self) -> u64 {
        self.remaining
    }

    /// The next piece; `None` at the end of the range.
    ///
    /// # Errors
    /// Why the rest does not come. The reader is at its end then.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, FillError> {
        std::future::poll_fn(|cx| self.poll_chunk(cx)).await.transpose()
    }

    /// As [`FlightReader::chunk`], for hand-written bodies.
    pub fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, FillError>>> {
        if self.remaining == 0 {
            return Poll::Ready(None);
        }
        if let Some(cursor) = self.cursor.take() {
            match &mut self.step {
                Some(step) => step.set(cursor.step()),
                None => self.step = Some(ReusableBoxFuture::new(cursor.step())),
            }
        }
        let Some(step) = &mut self.step else {
            return Poll::Ready(None);
        };
        let (cursor, read) = ready!(step.poll(cx));
        self.remaining = if read.is_ok() { cursor.end.saturating_sub(cursor.next) } else { 0 };
        self.cursor = Some(cursor);
        match read {
            Ok(bytes) if bytes.is_empty() => Poll::Ready(None),
            read => Poll::Ready(Some(read)),
        }
    }
}

impl http_body::Body for FlightReader {
    type Data = Bytes;
    type Error = FillError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, FillError>>> {
        self.poll_chunk(cx).map(|chunk| chunk.map(|bytes| bytes.map(http_body::Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        self.remaining == 0
    }

    fn size_hint(&self) -> http_body::SizeHint {
        http_body::SizeHint::with_exact(self.remaining)
    }
}

struct Cursor {
    node: Arc<Node>,
    shared: Arc<Shared>,
    progress: watch::Receiver<Progress>,
    repo: RepoName,
    next: u64,
    end: u64,
    alone: Option<Box<PassThrough>>,
}

/// What a reader does next.
enum Action {
    Wait,
    Read(Arc<File>, u64),
    GoAlone(Arc<Unkept>, u64),
    End,
}

impl Cursor {
    async fn step(mut self) -> Stepped {
        let read = self.read().await;
        if let Ok(bytes) = &read {
            self.next += bytes.len() as u64;
        }
        (self, read)
    }

    /// The bytes at the cursor; none at the end of the range.
    async fn read(&mut self) -> Result<Bytes, FillError> {
        loop {
            if let Some(alone) = &mut self.alone {
                let mut bytes = alone.next(self.next).await?;
                let wanted = self.end.saturating_sub(self.next);
                bytes.truncate(usize::try_from(wanted).unwrap_or(usize::MAX));
                return Ok(bytes);
            }
            let action = self.look()?;
            match action {
                Action::Wait => self.progress.changed().await.map_err(|_| FillError::Lost)?,
                Action::Read(file, to) => {
                    let chunk = FileReader::new(file, self.next..to).chunk().await?;
                    return Ok(chunk.unwrap_or_default());
                }
                Action::GoAlone(left_off, size) => {
                    let (digest, repo) = (self.shared.digest, &self.repo);
                    let alone = PassThrough::begin(&self.node, repo, digest, size, &left_off).await?;
                    self.alone = Some(Box::new(alone));
                }
                Action::End => return Ok(Bytes::new()),
            }
        }
    }

    fn look(&mut self) -> Result<Action, FillError> {
        let now = self.progress.borrow_and_update();
        now.check(&self.repo)?;
        let Some(size) = now.size else {
            return Ok(Action::Wait);
        };
        self.end = self.end.min(size);
        if self.next >= self.end {
            return Ok(Action::End);
        }
        let (next, end) = (self.next, self.end);
        let read = |file: &Arc<File>, to: u64| Action::Read(Arc::clone(file), to.min(end));
        Ok(match &now.stage {
            Stage::Filling(file) => match readable(now.received, size) {
                to if next < to => read(file, to),
                _ => Action::Wait,
            },
            Stage::Verified(file) | Stage::Kept(file) | Stage::Passed(file) => read(file, end),
            Stage::Unkept(unkept) => match (&unkept.file, readable(unkept.received, size)) {
                (Some(file), to) if next < to => read(file, to),
                _ => Action::GoAlone(Arc::clone(unkept), size),
            },
            Stage::Waiting | Stage::Failed(_) => Action::Wait,
        })
    }
}
