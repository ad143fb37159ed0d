//! Blobs: uploads and mounts.

use bytes::Bytes;
use outport_proto::{Algorithm, Change, Digest, RepoName, route::UploadId};
use tokio::task::JoinHandle;

use super::{BlobPut, ContentRange, Mounted, PushError, PushService, UploadRight, UploadStatus, allowed};
use crate::{
    auth::{Action, Caller},
    blocking,
    store::{Sink as _, StoreError, Upload},
};

/// Bytes that are worth a write.
const BATCH_BYTES_MIN: usize = 256 * 1024;
/// Bytes taken in and not yet written, at most (and one piece more).
const BATCH_BYTES_MAX: usize = 4 * 1024 * 1024;

impl PushService {
    /// Begins an upload (`POST /blobs/uploads/`). Any supported algorithm may be used to finish,
    /// whichever the client announced.
    ///
    /// # Errors
    /// [`PushError::Denied`] without push on `repo`.
    pub async fn start_upload(
        &self,
        caller: &Caller,
        repo: &RepoName,
        _announced: Option<Algorithm>,
    ) -> Result<(UploadRight, UploadStatus), PushError> {
        allowed(caller, repo, Action::Push)?;
        self.new_upload(caller, repo).await
    }

    async fn new_upload(
        &self,
        caller: &Caller,
        repo: &RepoName,
    ) -> Result<(UploadRight, UploadStatus), PushError> {
        let (uploads, of, now) = (self.store.uploads(), repo.clone(), self.clock.now());
        let upload = Self::blocking(move || uploads.create(&of, now)).await?;
        let right = UploadRight { repo: repo.clone(), upload, actor: caller.subject.to_string() };
        Ok((right, UploadStatus { length: 0 }))
    }

    /// The right to act on an upload for a caller who holds push on `repo`. A verified upload
    /// state is the other way to an [`UploadRight`].
    ///
    /// # Errors
    /// [`PushError::Denied`] without push on `repo`.
    pub fn upload_right(
        &self,
        caller: &Caller,
        repo: &RepoName,
        upload: UploadId,
    ) -> Result<UploadRight, PushError> {
        allowed(caller, repo, Action::Push)?;
        Ok(UploadRight { repo: repo.clone(), upload, actor: caller.subject.to_string() })
    }

    /// How far an upload is (`GET`).
    ///
    /// # Errors
    /// [`PushError::BlobUploadUnknown`].
    pub async fn upload_status(&self, upload: &UploadRight) -> Result<UploadStatus, PushError> {
        let (uploads, repo, id) = (self.store.uploads(), upload.repo.clone(), upload.upload);
        let length = Self::blocking(move || uploads.len(&repo, id)).await?;
        Ok(UploadStatus { length })
    }

    /// Begins to append to an upload (`PATCH`, or the body of a `PUT`). Without a range the bytes
    /// follow what is there.
    ///
    /// # Errors
    /// [`PushError::RangeInvalid`] with the current length when `range` does not start there;
    /// [`PushError::BlobUploadUnknown`]; [`PushError::BlobUploadInvalid`] while another request writes to it.
    pub async fn append(
        &self,
        upload: &UploadRight,
        range: Option<ContentRange>,
    ) -> Result<UploadAppend, PushError> {
        let opened = self.open(upload).await?;
        let length = opened.len();
        if range.is_some_and(|range| range.first != length || range.last < range.first) {
            return Err(PushError::RangeInvalid { length });
        }
        Ok(UploadAppend {
            state: State::Idle(Box::new(opened)),
            batch: Vec::new(),
            batch_bytes: 0,
            length,
            announced: range.map(|range| range.last.saturating_add(1)),
            bytes_max: self.limits.blob_bytes_max,
        })
    }

    async fn open(&self, upload: &UploadRight) -> Result<Upload, PushError> {
        let (uploads, repo, id) = (self.store.uploads(), upload.repo.clone(), upload.upload);
        Self::blocking(move || uploads.open(&repo, id)).await
    }

    /// Ends an upload: verifies it, publishes the blob and links it in the repository (`PUT`). An
    /// upload whose content is not `digest` is gone afterwards.
    ///
    /// # Errors
    /// [`PushError::DigestInvalid`] when the content is not `digest`.
    pub async fn finish_upload(&self, upload: &UploadRight, digest: &Digest) -> Result<BlobPut, PushError> {
        let (service, right, digest) = (self.clone(), upload.clone(), *digest);
        self.to_its_end(async move {
            let opened = service.open(&right).await?;
            // From before it is published until it is linked.
            let _lease = service.lease(&digest).await?;
            let size = Self::blocking(move || opened.finish(&digest)).await?;
            let change = Change::BlobCommitted { repo: right.repo, digest, size };
            service.linked(&right.actor, digest, size, change).await
        })
        .await
    }

    /// Uploads a blob that is in memory.
    ///
    /// # Errors
    /// [`PushError`].
    pub async fn put_blob(
        &self,
        caller: &Caller,
        repo: &RepoName,
        bytes: Bytes,
    ) -> Result<BlobPut, PushError> {
        let digest = Digest::sha256(&bytes);
        let (upload, _) = self.start_upload(caller, repo, None).await?;
        let mut append = self.append(&upload, None).await?;
        append.write(bytes).await?;
        append.finish().await?;
        self.finish_upload(&upload, &digest).await
    }

    /// Whether a repository links a blob that is here.
    ///
    /// # Errors
    /// [`PushError::Internal`].
    pub async fn holds_blob(&self, repo: &RepoName, digest: &Digest) -> Result<bool, PushError> {
        let Some(linked) = self.link(repo, digest)? else { return Ok(false) };
        let (store, digest) = (self.store.clone(), *digest);
        Ok(Self::blocking(move || store.size(&digest)).await? == Some(linked))
    }

    /// Gives an upload up (`DELETE`).
    ///
    /// # Errors
    /// [`PushError::BlobUploadUnknown`].
    pub async fn cancel_upload(&self, upload: &UploadRight) -> Result<(), PushError> {
        let (uploads, repo, id) = (self.store.uploads(), upload.repo.clone(), upload.upload);
        Self::blocking(move || uploads.cancel(&repo, id)).await
    }

    /// Links a blob another repository holds (`POST ?mount=[&from=]`). Without one the caller may
    /// read it begins an upload instead.
    ///
    /// # Errors
    /// [`PushError::Denied`] without push on `repo`. Without pull on `from` it is as if `from` did
    /// not hold the blob.
    pub async fn mount(
        &self,
        caller: &Caller,
        repo: &RepoName,
        digest: &Digest,
        from: Option<&RepoName>,
    ) -> Result<Mounted, PushError> {
        allowed(caller, repo, Action::Push)?;
        // From before the look until it is linked.
        let lease = self.lease(digest).await?;
        let Some(size) = self.mountable(caller, repo, digest, from)? else {
            let (right, status) = self.new_upload(caller, repo).await?;
            return Ok(Mounted::Upload(right, status));
        };
        let change = Change::BlobMounted { repo: repo.clone(), digest: *digest, size, from: from.cloned() };
        let (service, actor, digest) = (self.clone(), caller.subject.clone(), *digest);
        let linked = self.to_its_end(async move {
            let linked = service.linked(&actor, digest, size, change).await;
            drop(lease);
            linked
        });
        linked.await.map(Mounted::Linked)
    }

    /// The blob's size, if the caller may read it where it is to come from.
    fn mountable(
        &self,
        caller: &Caller,
        repo: &RepoName,
        digest: &Digest,
        from: Option<&RepoName>,
    ) -> Result<Option<u64>, PushError> {
        let may_pull = |repo: &RepoName| caller.access.allows(repo, Action::Pull);
        match from {
            Some(from) if may_pull(from) => self.link(from, digest),
            Some(_) => Ok(None),
            None if !self.limits.anonymous_mount => Ok(None),
            None => match self.link(repo, digest)? {
                Some(size) => Ok(Some(size)),
                None => {
                    let held = self.index().any_link(digest)?;
                    Ok(held.filter(|(holder, _)| may_pull(holder)).map(|(_, size)| size))
                }
            },
        }
    }

    /// Links a blob unless it is linked already.
    async fn linked(
        &self,
        actor: &str,
        digest: Digest,
        size: u64,
        change: Change,
    ) -> Result<BlobPut, PushError> {
        // Read before the link is looked up, so that a link found is no younger than this says.
        let applied = self.journal.applied();
        let linked = match change.repo() {
            Some(repo) => self.link(repo, &digest)?,
            None => None,
        };
        let offset = match linked {
            Some(_) => applied,
            None => self.commit(actor, change).await?,
        };
        Ok(BlobPut { digest, size, offset })
    }
}

/// Bytes being appended to an upload; it holds the upload alone. Dropped before
/// [`UploadAppend::finish`], what was written stays: a client that was cut off asks for the
/// status and resumes.
#[derive(Debug)]
pub struct UploadAppend {
    state: State,
    /// Taken in while the disk was busy.
    batch: Vec<Bytes>,
    batch_bytes: usize,
    /// Of the upload, with the batch.
    length: u64,
    /// The length the client announced.
    announced: Option<u64>,
    bytes_max: u64,
}

#[derive(Debug)]
enum State {
    Idle(Box<Upload>),
    Busy(JoinHandle<(Box<Upload>, Result<(), StoreError>)>),
    Failed,
}

impl UploadAppend {
    /// Appends the next bytes.
    ///
    /// # Errors
    /// [`PushError::SizeInvalid`] when they go past the announced range; `TooLarge`; `Unavailable` when the disk is full.
    pub async fn write(&mut self, bytes: Bytes) -> Result<(), PushError> {
        let length = self.length.saturating_add(bytes.len() as u64);
        if self.announced.is_some_and(|announced| length > announced) {
            return Err(PushError::SizeInvalid);
        }
        if length > self.bytes_max {
            return Err(PushError::TooLarge { bytes_max: self.bytes_max });
        }
        self.length = length;
        self.batch_bytes += bytes.len();
        self.batch.push(bytes);
        let is_busy = matches!(&self.state, State::Busy(write) if !write.is_finished());
        if is_busy && self.batch_bytes < BATCH_BYTES_MAX || self.batch_bytes < BATCH_BYTES_MIN {
            return Ok(());
        }
        self.written().await?;
        self.start_write();
        Ok(())
    }

    /// Ends this append.
    ///
    /// # Errors
    /// [`PushError::SizeInvalid`] when fewer bytes came than the announced range: what came stays.
    pub async fn finish(mut self) -> Result<UploadStatus, PushError> {
        self.written().await?;
        self.start_write();
        self.written().await?;
        if self.announced.is_some_and(|announced| self.length != announced) {
            return Err(PushError::SizeInvalid);
        }
        Ok(UploadStatus { length: self.length })
    }

    /// Hands the batch to a thread that may block, while the next bytes arrive.
    fn start_write(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        match std::mem::replace(&mut self.state, State::Failed) {
            State::Idle(mut upload) => {
                let batch = std::mem::take(&mut self.batch);
                self.batch_bytes = 0;
                self.state = State::Busy(blocking::spawn(move || {
                    let written = upload.write(&batch);
                    (upload, written)
                }));
            }
            other => self.state = other,
        }
    }

    /// Waits for the write under way, if there is one.
    async fn written(&mut self) -> Result<(), PushError> {
        match &mut self.state {
            State::Idle(_) => Ok(()),
            State::Failed => Err(PushError::Internal),
            State::Busy(write) => {
                let done = write.await;
                self.state = State::Failed;
                let (upload, written) = done.map_err(|error| {
                    tracing::error!(%error, "disk work broke off");
                    PushError::Internal
                })?;
                written?;
                self.state = State::Idle(upload);
                Ok(())
            }
        }
    }
}
