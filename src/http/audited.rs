//! What of a request the audit log is told.

use std::net::IpAddr;

use http::{HeaderMap, Method, Response, StatusCode, header};
use outport_proto::{Digest, Reference};

use super::{
    action::{Action, UploadStart, UploadStep},
    body::Body,
    headers::DOCKER_CONTENT_DIGEST,
    request::{Asked, RequestBody},
};
use crate::telemetry::audit::{Audit, Kind, Record, user_agent};

/// The record of a request and its answer, but for what is known when its body has ended; `None` when there is
/// nothing to tell. `why` is why it was refused.
pub(super) fn record<B: RequestBody>(
    audit: &Audit,
    asked: &Asked<B>,
    action: Option<&Action>,
    response: &Response<Body>,
    why: Option<String>,
    client: IpAddr,
) -> Option<Box<Record>> {
    if !audit.is_kept() {
        return None;
    }
    let action = action?;
    let status = response.status();
    let kind = kind(action, status, &asked.headers)?;
    // Of a pull it was noted, which costs less.
    let told = || response.headers().get(DOCKER_CONTENT_DIGEST)?.to_str().ok()?.parse().ok();
    let mut record = audit.record(kind, Some(client))?;
    record.action = Some(action.name());
    record.method = Some(name(&asked.method));
    record.repository = action.repo().cloned();
    record.reference = reference(action);
    record.digest = (kind != Kind::Pull).then(told).flatten().or_else(|| digest(action));
    record.status = Some(status.as_u16());
    record.detail = why;
    record.user_agent = user_agent(&asked.headers);
    Some(record)
}

fn kind(action: &Action, status: StatusCode, headers: &HeaderMap) -> Option<Kind> {
    match status {
        // How every client begins, to learn where tokens are: nobody was denied anything.
        StatusCode::UNAUTHORIZED if !headers.contains_key(header::AUTHORIZATION) => return None,
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::TOO_MANY_REQUESTS => {
            return Some(Kind::Denial);
        }
        StatusCode::TEMPORARY_REDIRECT => return Some(Kind::Redirect),
        _ => {}
    }
    match action {
        Action::GetManifest { .. } | Action::GetBlob { .. } => Some(Kind::Pull),
        Action::Catalog(_) | Action::Tags { .. } | Action::Referrers { .. } => Some(Kind::List),
        Action::DeleteManifest { .. } | Action::DeleteBlob { .. } => Some(Kind::Delete),
        Action::PutManifest { .. } | Action::Upload { step: UploadStep::Finish(_), .. } => Some(Kind::Push),
        // What the client has to upload after all is told of when that ends.
        Action::StartUpload { start: UploadStart::Session(_), .. } => None,
        Action::StartUpload { .. } => (status != StatusCode::ACCEPTED).then_some(Kind::Push),
        Action::Token(_) => Some(Kind::Token),
        Action::Ping | Action::Upload { .. } => None,
    }
}

fn reference(action: &Action) -> Option<Reference> {
    match action {
        Action::GetManifest { reference, .. }
        | Action::PutManifest { reference, .. }
        | Action::DeleteManifest { reference, .. } => Some(reference.clone()),
        Action::GetBlob { digest, .. }
        | Action::DeleteBlob { digest, .. }
        | Action::Referrers { digest, .. } => Some(Reference::Digest(*digest)),
        _ => None,
    }
}

fn digest(action: &Action) -> Option<Digest> {
    match (action, reference(action)) {
        (_, Some(Reference::Digest(digest))) => Some(digest),
        (Action::Upload { step: UploadStep::Finish(digest), .. }, _)
        | (
            Action::StartUpload {
                start: UploadStart::Whole(digest) | UploadStart::Mount { digest, .. }, ..
            },
            _,
        ) => Some(*digest),
        _ => None,
    }
}

/// Others ask for nothing that there is.
fn name(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::PUT => "PUT",
        Method::POST => "POST",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        _ => "",
    }
}
