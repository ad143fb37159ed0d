//! What the registry lets a caller do: asked with their own credentials.

use http::{HeaderValue, Method, Response, StatusCode, header};
use hyper::body::Incoming;
use outport_proto::{
    frame::{Question as Wanted, RegistryChallenge, Verdict},
    route::Endpoint,
};

use super::{
    Asker, Backend, BackendError, Challenge,
    answer::accepted,
    client::{ERROR_BYTES_MAX, Question, is_absence},
};

/// What the registry said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judgement {
    /// Whether they may.
    pub verdict: Verdict,
    /// What it demands of whoever is not let in, if it said so by the way.
    pub challenge: Option<RegistryChallenge>,
}

impl Backend {
    /// Whether whoever sends this `Authorization` may do what is `wanted`.
    ///
    /// # Errors
    /// When the registry says neither yes nor no.
    pub async fn judge(
        &self,
        authorization: Option<&HeaderValue>,
        wanted: &Wanted,
    ) -> Result<Judgement, BackendError> {
        let (method, path) = put(wanted);
        let question = Question { method: method.clone(), ..Question::get(&path) };
        let question = question.with(header::ACCEPT, accepted());
        let answer = self.ask(&question, Asker::Caller(authorization)).await?;
        let challenge = challenge_of(&answer);
        let verdict = match answer.status() {
            StatusCode::OK => Verdict::Yes,
            // To its storage, where nobody asks any more who somebody is.
            status if status.is_redirection() && matches!(wanted, Wanted::Blob { .. }) => Verdict::Yes,
            StatusCode::UNAUTHORIZED => Verdict::Unauthorized,
            StatusCode::FORBIDDEN => Verdict::Denied,
            // Only asked once the registry itself said that there is no such repository.
            StatusCode::NOT_FOUND if method == Method::HEAD => Verdict::Unknown,
            StatusCode::NOT_FOUND => {
                let body = self.whole(answer.into_body(), ERROR_BYTES_MAX).await?;
                if !is_absence(&body) {
                    return Err(BackendError::Status { status: 404 });
                }
                Verdict::Unknown
            }
            _ => {
                self.no(answer).await?;
                return Err(BackendError::Protocol("a refusal that is none".to_owned()));
            }
        };
        Ok(Judgement { verdict, challenge })
    }
}

/// How a question is put to a registry.
fn put(wanted: &Wanted) -> (Method, String) {
    match wanted {
        Wanted::Ping => (Method::GET, Endpoint::Base.path()),
        Wanted::Catalog => (Method::GET, format!("{}?n=1", Endpoint::Catalog.path())),
        Wanted::Repository(repo) => {
            (Method::GET, format!("{}?n=1", Endpoint::Tags { repo: repo.clone() }.path()))
        }
        Wanted::Manifest { repo, reference } => {
            (Method::HEAD, Endpoint::Manifest { repo: repo.clone(), reference: reference.clone() }.path())
        }
        Wanted::Blob { repo, digest } => {
            (Method::HEAD, Endpoint::Blob { repo: repo.clone(), digest: *digest }.path())
        }
    }
}

fn challenge_of(answer: &Response<Incoming>) -> Option<RegistryChallenge> {
    if answer.status() != StatusCode::UNAUTHORIZED {
        return None;
    }
    Some(match Challenge::of(answer.headers())? {
        Challenge::Basic { realm } => RegistryChallenge::Basic { realm },
        Challenge::Bearer { realm, service } => RegistryChallenge::Bearer { realm, service },
    })
}
