//! One reader's own way to the upstream, past a disk that does not take the blob.

use std::{collections::VecDeque, fs::File, ops::Range, sync::Arc};

use bytes::Bytes;
use outport_proto::{Digest, RepoName, digest::Hasher};
use tokio::sync::OwnedSemaphorePermit;

use super::{
    FillError, Node,
    progress::{Unkept, readable},
    resuming::{Claim, Resuming},
};
use crate::store::{ByteSource as _, FileReader};

/// The rest of a blob from upstream; its tail is held back in memory until the digest matches.
pub(super) struct PassThrough {
    source: Resuming,
    digest: Digest,
    size: u64,
    /// Over everything up to `hashed`; `None` when it matched.
    hasher: Option<Hasher>,
    hashed: u64,
    /// What the reader has not had yet, up to `hashed`.
    waiting: VecDeque<Bytes>,
    waiting_from: u64,
    _turn: OwnedSemaphorePermit,
}

impl PassThrough {
    /// Goes on where a flight left off.
    pub(super) async fn begin(
        node: &Arc<Node>,
        repo: &RepoName,
        digest: Digest,
        size: u64,
        left_off: &Unkept,
    ) -> Result<Self, FillError> {
        let turn = tokio::select! {
            biased;
            () = node.shutdown.requested() => return Err(FillError::Stopping),
            turn = Arc::clone(&node.unkept_turns).acquire_owned() => turn.map_err(|_| FillError::Stopping)?,
        };
        let hashed = left_off.received;
        let waiting_from = readable(hashed, size);
        // What the file holds of the tail was hashed, and given to nobody.
        let waiting = match &left_off.file {
            Some(file) => read_all(Arc::clone(file), waiting_from..hashed).await?,
            None => VecDeque::new(),
        };
        Ok(Self {
            source: Resuming::new(node, digest, Claim::Repo(repo.clone()), Some(size), hashed),
            digest,
            size,
            hasher: Some(left_off.hasher.clone()),
            hashed,
            waiting,
            waiting_from,
            _turn: turn,
        })
    }

    /// The next bytes from `from` on, at least one, unless the blob ends there. `from` never goes back.
    pub(super) async fn next(&mut self, from: u64) -> Result<Bytes, FillError> {
        loop {
            if let Some(bytes) = self.take(from) {
                return Ok(bytes);
            }
            let Some(hasher) = &mut self.hasher else {
                return Ok(Bytes::new());
            };
            match self.source.next().await? {
                Some(bytes) => {
                    hasher.update(&bytes);
                    self.hashed += bytes.len() as u64;
                    self.waiting.push_back(bytes);
                }
                None => self.verify()?,
            }
        }
    }

    fn verify(&mut self) -> Result<(), FillError> {
        match self.hasher.take().map(Hasher::finish) {
            Some(actual) if actual != self.digest => {
                Err(FillError::WrongContent { actual: Box::new(actual) })
            }
            _ => Ok(()),
        }
    }

    fn take(&mut self, from: u64) -> Option<Bytes> {
        let to = if self.hasher.is_some() { readable(self.hashed, self.size) } else { self.hashed };
        while let Some(first) = self.waiting.front_mut() {
            let unwanted = from.saturating_sub(self.waiting_from).min(first.len() as u64);
            self.waiting_from += unwanted;
            let _ = first.split_to(unwanted as usize);
            if first.is_empty() {
                self.waiting.pop_front();
                continue;
            }
            let ready = to.saturating_sub(self.waiting_from).min(first.len() as u64);
            self.waiting_from += ready;
            return (ready > 0).then(|| first.split_to(ready as usize));
        }
        None
    }
}

async fn read_all(file: Arc<File>, range: Range<u64>) -> Result<VecDeque<Bytes>, FillError> {
    let mut reader = FileReader::new(file, range);
    let mut pieces = VecDeque::new();
    while let Some(piece) = reader.chunk().await? {
        pieces.push_back(piece);
    }
    Ok(pieces)
}
