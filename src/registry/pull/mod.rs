//! Pulls: what a client may read, answered by the read rules on both roles.

mod answer;

pub use answer::{
    BlobAnswer, BlobContent, FillReader, Filling, Listing, ManifestAnswer, Next, Page, PullError,
    PullOptions, Referrer, Referrers, Staleness, Want,
};

use outport_proto::{Digest, Offset, Reference, RepoName, Tag};

use super::Caller;

/// Answers pulls. Cloning gives another handle to the same service.
#[derive(Clone, Debug)]
pub struct PullService {}

impl PullService {
    /// The manifest `reference` names in `repo`.
    ///
    /// # Errors
    /// [`PullError`]; a "no" is [`PullError::ManifestUnknown`] or [`PullError::NameUnknown`].
    pub async fn manifest(
        &self,
        caller: &Caller,
        repo: &RepoName,
        reference: &Reference,
        options: PullOptions,
    ) -> Result<ManifestAnswer, PullError> {
        todo!("{caller:?} {repo} {reference} {options:?}")
    }

    /// Blob `digest` of `repo`. With [`Want::Headers`] nothing is fetched for it.
    ///
    /// # Errors
    /// [`PullError`]; a "no" is [`PullError::BlobUnknown`], and the same whether the blob is absent
    /// or merely not linked in `repo`.
    pub async fn blob(
        &self,
        caller: &Caller,
        repo: &RepoName,
        digest: &Digest,
        options: PullOptions,
    ) -> Result<BlobAnswer, PullError> {
        todo!("{caller:?} {repo} {digest} {options:?}")
    }

    /// A page of the tags of `repo`, in lexical order.
    ///
    /// # Errors
    /// [`PullError`]; [`PullError::NameUnknown`] when there is no such repository.
    pub async fn tags(
        &self,
        caller: &Caller,
        repo: &RepoName,
        page: &Page,
        options: PullOptions,
    ) -> Result<Listing<Tag>, PullError> {
        todo!("{caller:?} {repo} {page:?} {options:?}")
    }

    /// A page of the repositories the caller may list, in lexical order.
    ///
    /// # Errors
    /// [`PullError`]; [`PullError::Denied`] when the caller may not list the catalog.
    pub async fn catalog(
        &self,
        caller: &Caller,
        page: &Page,
        options: PullOptions,
    ) -> Result<Listing<RepoName>, PullError> {
        todo!("{caller:?} {page:?} {options:?}")
    }

    /// The manifests of `repo` that refer to `subject`, of one artifact type or of all. Never a
    /// "no": without any the list is empty.
    ///
    /// # Errors
    /// [`PullError`].
    pub async fn referrers(
        &self,
        caller: &Caller,
        repo: &RepoName,
        subject: &Digest,
        artifact_type: Option<&str>,
        options: PullOptions,
    ) -> Result<Referrers, PullError> {
        todo!("{caller:?} {repo} {subject} {artifact_type:?} {options:?}")
    }

    /// Newest event applied here.
    pub fn applied(&self) -> Offset {
        todo!()
    }
}
