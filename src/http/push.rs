//! Pushes and deletes at the primary.

use http::{HeaderValue, Response, StatusCode, header};
use outport_proto::{
    Digest, Reference, RepoName, Tag,
    oci::{MANIFEST_BYTES_MAX, media_type},
    route::{Endpoint, UploadId},
};

use super::{
    action::{Action, UploadStart, UploadStep},
    body::Body,
    error::{ApiError, upload_range},
    headers::{DOCKER_UPLOAD_UUID, header_value, response},
    pushed,
    range::parse_content_range,
    request::{Asked, RequestBody},
};
use crate::{
    auth::{
        Caller,
        upload_state::{UPLOAD_LIFE, UPLOAD_STATE_PARAMETER, UploadState, UploadStates},
    },
    clock::SharedClock,
    registry::{
        BlobPut, ContentRange, Mounted, NewManifest, PushError, PushService, UploadRight, UploadStatus,
    },
};

/// The pushing half of a primary's API.
pub(super) struct Pushes<'a> {
    pub(super) service: &'a PushService,
    pub(super) upload_states: &'a UploadStates,
    pub(super) clock: &'a SharedClock,
    /// Where clients reach this primary: `https://host[:port]`.
    pub(super) public_url: &'a str,
}

impl Pushes<'_> {
    /// A request that changes something and belongs to no upload.
    pub(super) async fn change<B: RequestBody>(
        &self,
        caller: &Caller,
        action: &Action,
        asked: &mut Asked<B>,
    ) -> Result<Response<Body>, ApiError> {
        match action {
            Action::StartUpload { repo, start } => self.start_upload(caller, repo, start, asked).await,
            Action::PutManifest { repo, reference, tags } => {
                self.put_manifest(caller, (repo, reference, tags), asked).await
            }
            Action::DeleteManifest { repo, reference } => self.delete_manifest(caller, repo, reference).await,
            Action::DeleteBlob { repo, digest } => self.delete_blob(caller, repo, digest).await,
            _ => Err(ApiError::Internal),
        }
    }

    /// `POST /v2/<name>/blobs/uploads/`.
    async fn start_upload<B: RequestBody>(
        &self,
        caller: &Caller,
        repo: &RepoName,
        start: &UploadStart,
        asked: &mut Asked<B>,
    ) -> Result<Response<Body>, ApiError> {
        match start {
            UploadStart::Session(algorithm) => {
                let (right, status) =
                    self.service.start_upload(caller, repo, *algorithm).await.map_err(ApiError::Push)?;
                self.upload_goes_on(StatusCode::ACCEPTED, &right, status)
            }
            UploadStart::Whole(digest) => {
                let algorithm = Some(digest.algorithm());
                let (right, _) =
                    self.service.start_upload(caller, repo, algorithm).await.map_err(ApiError::Push)?;
                match self.append_and_finish(&right, digest, asked).await {
                    Ok(put) => pushed::blob(self.public_url, repo, &put),
                    Err(error) => {
                        // Nobody knows this upload's name, so nobody could go on with it.
                        let _ = self.service.cancel_upload(&right).await;
                        Err(error)
                    }
                }
            }
            UploadStart::Mount { digest, from } => {
                match self.service.mount(caller, repo, digest, from.as_ref()).await.map_err(ApiError::Push)? {
                    Mounted::Linked(put) => pushed::blob(self.public_url, repo, &put),
                    Mounted::Upload(right, status) => {
                        self.upload_goes_on(StatusCode::ACCEPTED, &right, status)
                    }
                }
            }
        }
    }

    /// A request to `/v2/<name>/blobs/uploads/<id>` by somebody who may.
    pub(super) async fn upload<B: RequestBody>(
        &self,
        right: &UploadRight,
        step: UploadStep,
        asked: &mut Asked<B>,
    ) -> Result<Response<Body>, ApiError> {
        match step {
            UploadStep::Status => {
                let status = self.service.upload_status(right).await.map_err(ApiError::Push)?;
                self.upload_goes_on(StatusCode::NO_CONTENT, right, status)
            }
            UploadStep::Append => {
                let status = self.append(right, asked).await?;
                self.upload_goes_on(StatusCode::ACCEPTED, right, status)
            }
            UploadStep::Finish(digest) => {
                let put = self.append_and_finish(right, &digest, asked).await?;
                pushed::blob(self.public_url, &right.repo, &put)
            }
            UploadStep::Cancel => {
                self.service.cancel_upload(right).await.map_err(ApiError::Push)?;
                Ok(response(StatusCode::NO_CONTENT, Body::empty()))
            }
        }
    }

    async fn append_and_finish<B: RequestBody>(
        &self,
        right: &UploadRight,
        digest: &Digest,
        asked: &mut Asked<B>,
    ) -> Result<BlobPut, ApiError> {
        // Without a body a Content-Range says nothing; an empty blob is sent like that.
        if asked.has_body() {
            self.append(right, asked).await?;
        }
        self.service.finish_upload(right, digest).await.map_err(ApiError::Push)
    }

    async fn append<B: RequestBody>(
        &self,
        right: &UploadRight,
        asked: &mut Asked<B>,
    ) -> Result<UploadStatus, ApiError> {
        let range = announced_range(asked)?;
        let mut append =
            self.service.append(right, range).await.map_err(|error| self.chunk_error(right, error))?;
        loop {
            match asked.chunk().await {
                Ok(Some(bytes)) => append.write(bytes).await.map_err(ApiError::Push)?,
                Ok(None) => return append.finish().await.map_err(ApiError::Push),
                Err(error) => {
                    // What came stays: the client asks for the status and goes on from there.
                    let _ = append.finish().await;
                    return Err(error);
                }
            }
        }
    }

    fn chunk_error(&self, right: &UploadRight, error: PushError) -> ApiError {
        match error {
            PushError::RangeInvalid { length } => match self.upload_location(right) {
                Ok(location) => ApiError::ChunkOutOfOrder { length, location },
                Err(error) => error,
            },
            other => ApiError::Push(other),
        }
    }

    /// `PUT /v2/<name>/manifests/<reference>`.
    async fn put_manifest<B: RequestBody>(
        &self,
        caller: &Caller,
        (repo, reference, tags): (&RepoName, &Reference, &[Tag]),
        asked: &mut Asked<B>,
    ) -> Result<Response<Body>, ApiError> {
        let manifest = new_manifest(reference, tags, asked).await?;
        let pushed = self.service.put_manifest(caller, repo, manifest).await.map_err(ApiError::Push)?;
        pushed::manifest(self.public_url, repo, &pushed)
    }

    /// `DELETE /v2/<name>/manifests/<reference>`.
    async fn delete_manifest(
        &self,
        caller: &Caller,
        repo: &RepoName,
        reference: &Reference,
    ) -> Result<Response<Body>, ApiError> {
        let deleted = self.service.delete_manifest(caller, repo, reference).await.map_err(ApiError::Push)?;
        Ok(pushed::deleted(&deleted))
    }

    /// `DELETE /v2/<name>/blobs/<digest>`.
    async fn delete_blob(
        &self,
        caller: &Caller,
        repo: &RepoName,
        digest: &Digest,
    ) -> Result<Response<Body>, ApiError> {
        let deleted = self.service.delete_blob(caller, repo, digest).await.map_err(ApiError::Push)?;
        Ok(pushed::deleted(&deleted))
    }

    /// Who sends a request for this upload: the bearer of its state, whatever `Authorization` says.
    pub(super) fn right_by_state(
        &self,
        state: &str,
        repo: &RepoName,
        id: &UploadId,
    ) -> Result<UploadRight, ApiError> {
        let opened = self.upload_states.open(state, repo, &id.to_string(), self.clock.now());
        let state = opened.map_err(|error| {
            tracing::debug!(%repo, %error, "upload state refused");
            ApiError::Denied("the upload state in the query is not valid or has expired")
        })?;
        Ok(UploadRight { repo: state.repository, upload: *id, actor: state.actor })
    }

    fn upload_goes_on(
        &self,
        status: StatusCode,
        right: &UploadRight,
        progress: UploadStatus,
    ) -> Result<Response<Body>, ApiError> {
        let mut response = response(status, Body::empty());
        let headers = response.headers_mut();
        headers.insert(header::LOCATION, self.upload_location(right)?);
        let range = header_value(upload_range(progress.length)).ok_or(ApiError::Internal)?;
        headers.insert(header::RANGE, range);
        headers.insert(DOCKER_UPLOAD_UUID, header_value(right.upload).ok_or(ApiError::Internal)?);
        Ok(response)
    }

    /// Absolute, because some clients resolve a relative one against the host they asked first;
    /// with the state in the query, because clients send no credentials there.
    fn upload_location(&self, right: &UploadRight) -> Result<HeaderValue, ApiError> {
        let state = UploadState {
            upload: right.upload.to_string(),
            repository: right.repo.clone(),
            actor: right.actor.clone(),
            expires: self.clock.now().plus(UPLOAD_LIFE),
            site: None,
            behind: None,
            authorization: None,
        };
        let state = self.upload_states.seal(&state).map_err(|error| {
            tracing::error!(repo = %right.repo, %error, "cannot seal an upload's state");
            ApiError::Internal
        })?;
        let path = Endpoint::Upload { repo: right.repo.clone(), id: right.upload }.path();
        let base = self.public_url;
        header_value(format_args!("{base}{path}?{UPLOAD_STATE_PARAMETER}={state}")).ok_or(ApiError::Internal)
    }
}

/// The `Content-Range` of a chunk; it must fit the length the request announces.
fn announced_range<B: RequestBody>(asked: &Asked<B>) -> Result<Option<ContentRange>, ApiError> {
    let Some(value) = asked.headers.get(header::CONTENT_RANGE) else {
        return Ok(None);
    };
    let range = value.to_str().ok().and_then(parse_content_range);
    let range = range.ok_or(ApiError::Header("Content-Range"))?;
    match asked.body_length() {
        Some(length) if length != range.last - range.first + 1 => Err(ApiError::Push(PushError::SizeInvalid)),
        _ => Ok(Some(range)),
    }
}

/// The manifest in a request's body.
pub(super) async fn new_manifest<B: RequestBody>(
    reference: &Reference,
    tags: &[Tag],
    asked: &mut Asked<B>,
) -> Result<NewManifest, ApiError> {
    let bytes = asked.read_whole(MANIFEST_BYTES_MAX).await?;
    let content_type = match asked.headers.get(header::CONTENT_TYPE) {
        Some(value) => media_type_of(value.to_str().map_err(|_| ApiError::Header("Content-Type"))?),
        None => declared_media_type(&bytes),
    };
    Ok(NewManifest { reference: reference.clone(), tags: tags.to_vec(), content_type, bytes })
}

fn media_type_of(content_type: &str) -> String {
    content_type.split(';').next().unwrap_or_default().trim().to_owned()
}

/// What a manifest without a `Content-Type` says it is.
fn declared_media_type(bytes: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Declared {
        media_type: String,
    }
    let declared: Option<Declared> = serde_json::from_slice(bytes).ok();
    declared.map_or_else(|| media_type::OCTET_STREAM.to_owned(), |declared| declared.media_type)
}
