//! What of a request the audit log is told.

use std::{net::IpAddr, time::SystemTime};

use http::{HeaderMap, Method, Response, StatusCode, header};
use outport_proto::Digest;

use super::{
    action::{Action, UploadStart, UploadStep},
    body::Body,
    headers::DOCKER_CONTENT_DIGEST,
    request::{Asked, RequestBody},
};
use crate::telemetry::audit::{Audit, Kind, Named, Notes, Record, Telling};

/// What of a request the audit log is told beside the request itself.
pub(super) struct Answered<'a> {
    /// What it asked for.
    pub(super) action: Option<&'a Action>,
    /// What is answered.
    pub(super) response: &'a Response<Body>,
    /// Why it was refused.
    pub(super) why: Option<&'a str>,
    /// Who sent it.
    pub(super) client: IpAddr,
    /// What was noted meanwhile.
    pub(super) notes: Notes,
    /// The trace that it belongs to.
    pub(super) trace_id: Option<[u8; 16]>,
}

/// Begins the line of a request and its answer, but for what is known when its body has ended; `None` when there is
/// nothing to tell.
pub(super) fn begin<B: RequestBody>(
    audit: &Audit,
    asked: &Asked<B>,
    answered: &Answered<'_>,
) -> Option<Telling> {
    if !audit.is_kept() {
        return None;
    }
    let (action, notes) = (answered.action?, &answered.notes);
    let status = answered.response.status();
    let kind = kind(action, status, &asked.headers)?;
    let is_pull = kind == Kind::Pull;
    // Of a pull it was noted, which costs less.
    let in_header = || answered.response.headers().get(DOCKER_CONTENT_DIGEST)?.to_str().ok()?.parse().ok();
    let noted = if is_pull { notes.digest } else { in_header() };
    audit.begin(&Record {
        subject: notes.subject.as_deref(),
        action: Some(action.name()),
        method: Some(name(&asked.method)),
        repository: action.repo(),
        reference: reference(action),
        digest: noted.or_else(|| digest(action)),
        status: Some(status.as_u16()),
        result: notes.result.filter(|_| is_pull),
        rule: notes.rule.filter(|_| is_pull),
        detail: answered.why,
        client: Some(answered.client),
        user_agent: Record::agent_in(&asked.headers),
        trace_id: answered.trace_id,
        ..Record::at(SystemTime::now(), kind)
    })
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

fn reference(action: &Action) -> Option<Named<'_>> {
    match action {
        Action::GetManifest { reference, .. }
        | Action::PutManifest { reference, .. }
        | Action::DeleteManifest { reference, .. } => Some(reference.into()),
        Action::GetBlob { digest, .. }
        | Action::DeleteBlob { digest, .. }
        | Action::Referrers { digest, .. } => Some(Named::Digest(digest)),
        _ => None,
    }
}

fn digest(action: &Action) -> Option<Digest> {
    match (action, reference(action)) {
        (_, Some(Named::Digest(digest))) => Some(*digest),
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
