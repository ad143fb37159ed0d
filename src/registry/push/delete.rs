//! Deletes.

use outport_proto::{Change, Digest, Reference, RepoName};

use super::{Deleted, PushError, PushService, allowed};
use crate::auth::{Action, Caller};

impl PushService {
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
        allowed(caller, repo, Action::Delete)?;
        let (service, repo, reference) = (self.clone(), repo.clone(), reference.clone());
        let change = match reference.clone() {
            Reference::Tag(tag) => Change::TagDeleted { repo: repo.clone(), tag },
            Reference::Digest(digest) => Change::ManifestDeleted { repo: repo.clone(), digest },
        };
        let actor = caller.subject.clone();
        self.to_its_end(async move {
            let _alone = service.locks.remove(&repo).await;
            let exists = || {
                let exists = match &reference {
                    Reference::Tag(tag) => service.index().tag(&repo, tag)?.is_some(),
                    Reference::Digest(digest) => service.index().manifest_record(&repo, digest)?.is_some(),
                };
                if exists { Ok(()) } else { Err(service.unknown(&repo, PushError::ManifestUnknown)?) }
            };
            Ok(Deleted { offset: service.commit_once(&actor, change, exists).await? })
        })
        .await
    }

    /// Deletes a repository's link to a blob; other repositories keep theirs.
    ///
    /// # Errors
    /// [`PushError::Denied`] without delete on `repo`; `BlobUnknown`, `NameUnknown`.
    pub async fn delete_blob(
        &self,
        caller: &Caller,
        repo: &RepoName,
        digest: &Digest,
    ) -> Result<Deleted, PushError> {
        allowed(caller, repo, Action::Delete)?;
        let (service, repo, digest) = (self.clone(), repo.clone(), *digest);
        let actor = caller.subject.clone();
        self.to_its_end(async move {
            let _alone = service.locks.remove(&repo).await;
            let exists = || match service.link(&repo, &digest)? {
                Some(_) => Ok(()),
                None => Err(service.unknown(&repo, PushError::BlobUnknown)?),
            };
            let change = Change::BlobDeleted { repo: repo.clone(), digest };
            Ok(Deleted { offset: service.commit_once(&actor, change, exists).await? })
        })
        .await
    }

    /// `what` in a repository that exists, else that there is none.
    fn unknown(&self, repo: &RepoName, what: PushError) -> Result<PushError, PushError> {
        Ok(if self.index().has_repository(repo)? { what } else { PushError::NameUnknown })
    }
}
