//! The token endpoint of a primary.
//!
//! Sources: CNCF Distribution "Token authentication specification" (`GET`) and "OAuth2 token
//! authentication" (`POST`).

use std::borrow::Cow;

use http::{HeaderValue, Response, StatusCode, header};

use super::{
    action::{Query, TokenMethod},
    body::Body,
    error::ApiError,
    headers::response,
    request::{Asked, RequestBody},
};
use crate::{
    auth::{Authorization, Scope, Secret, TokenGrant, TokenRequest, TokenService},
    telemetry::audit,
};

/// A token request's form: passwords and scopes, nothing large.
const FORM_BYTES_MAX: usize = 64 * 1024;

/// Answers a token request. `sealed` is the `Authorization` that came in a ticket and wins over
/// the header; `Some(None)` is a ticket without one.
pub(super) async fn answer<B: RequestBody>(
    service: &TokenService,
    method: TokenMethod,
    sealed: Option<Option<Secret>>,
    asked: &mut Asked<B>,
) -> Result<Response<Body>, ApiError> {
    let request = match method {
        TokenMethod::Get => {
            let header = asked.headers.get(header::AUTHORIZATION).map(|value| value.to_str());
            let authorization: Option<Cow<'_, str>> = match (sealed, header) {
                (Some(sealed), _) => sealed.map(|secret| secret.into_exposed().into()),
                (None, Some(header)) => Some(header.map_err(|_| ApiError::Header("Authorization"))?.into()),
                (None, None) => None,
            };
            by_query(asked.query(), authorization.as_deref())?
        }
        TokenMethod::Post => by_form(Query(&form(asked).await?))?,
    };
    if let TokenGrant::Password { user, .. } = &request.grant {
        audit::note(|notes| notes.subject = Some(user.as_str().into()));
    }
    let token = service.answer(&request).await.map_err(ApiError::Token)?;
    let mut response = response(StatusCode::OK, Body::full(token.to_json()));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

fn by_query(query: Query<'_>, authorization: Option<&str>) -> Result<TokenRequest, ApiError> {
    let grant = match authorization.map(Authorization::parse).transpose() {
        Ok(None) => TokenGrant::Anonymous,
        // How clients without credentials say so.
        Ok(Some(Authorization::Basic { user, password }))
            if user.is_empty() && password.expose().is_empty() =>
        {
            TokenGrant::Anonymous
        }
        Ok(Some(Authorization::Basic { user, password })) => TokenGrant::Password { user, password },
        Ok(Some(Authorization::Bearer(_))) | Err(_) => return Err(ApiError::Header("Authorization")),
    };
    let offline = query.get("offline_token").is_some_and(|value| value == "true");
    Ok(TokenRequest { service: service_of(query), scopes: scopes_of(query), grant, offline })
}

fn by_form(form: Query<'_>) -> Result<TokenRequest, ApiError> {
    let required = |name: &'static str| form.get(name).ok_or(ApiError::TokenForm(name));
    let grant = match &*required("grant_type")? {
        "password" => TokenGrant::Password {
            user: required("username")?.into_owned(),
            password: required("password")?.into_owned().into(),
        },
        "refresh_token" => TokenGrant::Refresh(required("refresh_token")?.into_owned().into()),
        _ => return Err(ApiError::TokenForm("grant_type")),
    };
    let offline = form.get("access_type").is_some_and(|value| value == "offline");
    Ok(TokenRequest { service: service_of(form), scopes: scopes_of(form), grant, offline })
}

async fn form<B: RequestBody>(asked: &mut Asked<B>) -> Result<String, ApiError> {
    let is_form = asked
        .headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split(';').next())
        .is_some_and(|value| value.trim().eq_ignore_ascii_case("application/x-www-form-urlencoded"));
    if !is_form {
        return Err(ApiError::Header("Content-Type"));
    }
    let bytes = asked.read_whole(FORM_BYTES_MAX).await?;
    String::from_utf8(bytes.into()).map_err(|_| ApiError::TokenForm("grant_type"))
}

fn service_of(parameters: Query<'_>) -> Option<String> {
    parameters.get("service").map(Cow::into_owned).filter(|service| !service.is_empty())
}

/// Scopes come in one parameter, separated by blanks, or in several.
fn scopes_of(parameters: Query<'_>) -> Vec<Scope> {
    let scopes = parameters.pairs().filter(|(name, _)| name == "scope");
    scopes.flat_map(|(_, value)| Scope::parse_list(&value).collect::<Vec<_>>()).collect()
}
