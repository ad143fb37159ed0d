//! Pushes and deletes at the primary.

mod answer;

pub use answer::{
    BlobPut, ContentRange, Deleted, ManifestPushed, Mounted, NewManifest, PushError, PushLimits, UploadId,
    UploadRight, UploadStatus,
};

use bytes::Bytes;
use outport_proto::{Algorithm, Digest, Reference, RepoName};

use super::Caller;

/// Takes pushes and deletes. Cloning gives another handle to the same service.
#[derive(Clone, Debug)]
pub struct PushService {}

impl PushService {
    /// Begins an upload (`POST /blobs/uploads/`). `algorithm` is the one the client announced
    /// (`digest-algorithm`), if any; any supported one may be used to finish.
    ///
    /// # Errors
    /// [`PushError::Denied`] without push on `repo`.
    pub async fn start_upload(
        &self,
        caller: &Caller,
        repo: &RepoName,
        algorithm: Option<Algorithm>,
    ) -> Result<(UploadRight, UploadStatus), PushError> {
        todo!("{caller:?} {repo} {algorithm:?}")
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
        todo!("{caller:?} {repo} {upload:?}")
    }

    /// How far an upload is (`GET`).
    ///
    /// # Errors
    /// [`PushError::BlobUploadUnknown`].
    pub async fn upload_status(&self, upload: &UploadRight) -> Result<UploadStatus, PushError> {
        todo!("{upload:?}")
    }

    /// Begins to append to an upload (`PATCH`, or the body of a `PUT`). Without a range the bytes
    /// follow what is there.
    ///
    /// # Errors
    /// [`PushError::RangeInvalid`] with the current length when `range` does not start there;
    /// [`PushError::BlobUploadUnknown`].
    pub async fn append(
        &self,
        upload: &UploadRight,
        range: Option<ContentRange>,
    ) -> Result<UploadAppend, PushError> {
        todo!("{upload:?} {range:?}")
    }

    /// Ends an upload: verifies it, publishes the blob and links it in the repository (`PUT`). An
    /// upload whose content is not `digest` is gone afterwards.
    ///
    /// # Errors
    /// [`PushError::DigestInvalid`] when the content is not `digest`.
    pub async fn finish_upload(&self, upload: &UploadRight, digest: &Digest) -> Result<BlobPut, PushError> {
        todo!("{upload:?} {digest}")
    }

    /// Gives an upload up (`DELETE`).
    ///
    /// # Errors
    /// [`PushError::BlobUploadUnknown`].
    pub async fn cancel_upload(&self, upload: &UploadRight) -> Result<(), PushError> {
        todo!("{upload:?}")
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
        todo!("{caller:?} {repo} {digest} {from:?}")
    }

    /// Puts a manifest and moves tags to it (`PUT /manifests/<reference>[?tag=]`).
    ///
    /// # Errors
    /// [`PushError`]: `Denied`, `TooLarge`, `ManifestInvalid`, `DigestInvalid`, `ManifestBlobUnknown`.
    pub async fn put_manifest(
        &self,
        caller: &Caller,
        repo: &RepoName,
        manifest: NewManifest,
    ) -> Result<ManifestPushed, PushError> {
        todo!("{caller:?} {repo} {manifest:?}")
    }

    /// Deletes a tag, or a manifest with every tag that names it.
    ///
    /// # Errors
    /// [`PushError::Denied`] without delete on `repo`; `ManifestUnknown`, `NameUnknown`.
    pub async fn delete_manifest(
        &self,
        caller: &Caller,
        repo: &RepoName,
        reference: &Reference,
    ) -> Result<Deleted, PushError> {
        todo!("{caller:?} {repo} {reference}")
    }

    /// Deletes a repository's link to a blob.
    ///
    /// # Errors
    /// [`PushError::Denied`] without delete on `repo`; `BlobUnknown`, `NameUnknown`.
    pub async fn delete_blob(
        &self,
        caller: &Caller,
        repo: &RepoName,
        digest: &Digest,
    ) -> Result<Deleted, PushError> {
        todo!("{caller:?} {repo} {digest}")
    }
}

/// Bytes being appended to an upload; it holds the upload alone. Dropped before
/// [`UploadAppend::finish`], what was written stays: a client that was cut off asks for the
/// status and resumes.
#[derive(Debug)]
pub struct UploadAppend {}

impl UploadAppend {
    /// Appends the next bytes.
    ///
    /// # Errors
    /// [`PushError::SizeInvalid`] when they go past the announced range; `TooLarge`; `Unavailable` when the disk is full.
    pub async fn write(&mut self, bytes: Bytes) -> Result<(), PushError> {
        todo!("{}", bytes.len())
    }

    /// Ends this append.
    ///
    /// # Errors
    /// [`PushError::SizeInvalid`] when fewer bytes came than the announced range.
    pub async fn finish(self) -> Result<UploadStatus, PushError> {
        todo!()
    }
}
