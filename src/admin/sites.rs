//! `/v1/sites`: a token by which a machine becomes a site (POST), and the end of a site (DELETE).

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Method, Response, StatusCode};
use http_body_util::Full;
use outport_proto::{SiteName, Timestamp};

use super::{Admin, error, json};
use crate::blocking;

/// How long a token is good, unless something else is said, in hours.
const HOURS: u32 = 24;
/// How long at most.
const HOURS_MAX: u32 = 30 * 24;
/// Host names of a site at most.
const HTTPS_MAX: usize = 32;

/// Makes and removes sites. Both block for the disk.
pub trait Membership: Send + Sync {
    /// Makes a token for a site that is none yet.
    ///
    /// # Errors
    /// Why there is none.
    fn invite(&self, site: NewSite) -> Result<Invitation, SiteError>;

    /// Cuts a site off, for good.
    ///
    /// # Errors
    /// Why it is not.
    fn remove(&self, site: &SiteName) -> Result<(), SiteError>;
}

/// A site to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewSite {
    /// Its name.
    pub site: SiteName,
    /// Host names and addresses that its HTTPS certificate is for, if it is to get one.
    pub https: Vec<String>,
    /// How long the token is good.
    pub life: Duration,
}

/// A token for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invitation {
    /// The token, which nobody else should see.
    pub token: String,
    /// Until when it is good.
    pub expires: Timestamp,
}

/// Why a site is not made or removed; for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SiteError {
    /// It is not as asked for now.
    Conflict(String),
    /// There is no such site.
    Unknown(String),
    /// What was asked for cannot be.
    Invalid(String),
    /// The primary failed.
    Failed(String),
}

impl Admin {
    /// `POST /v1/sites?site=NAME[&hours=N][&https=HOST]..`: 201 with the token. `DELETE /v1/sites?site=NAME`:
    /// 200 once the site is cut off. 409 when it is not as asked for, or the primary is to be asked.
    pub(super) async fn change_sites(&self, method: &Method, query: &str) -> Response<Full<Bytes>> {
        let wanted = match wanted(query, *method == Method::POST) {
            Ok(wanted) => wanted,
            Err(reason) => return error(StatusCode::BAD_REQUEST, &reason),
        };
        let Some(membership) = self.membership.clone() else {
            return error(StatusCode::CONFLICT, "sites are made and removed at the primary");
        };
        let site = wanted.site.clone();
        if *method == Method::POST {
            return match changed(membership, move |membership| membership.invite(wanted)).await {
                Ok(Invitation { token, expires }) => {
                    let answer = serde_json::json!({ "site": site, "token": token, "expires_seconds": expires.as_secs() });
                    json(StatusCode::CREATED, &answer)
                }
                Err(failed) => refused(&failed),
            };
        }
        match changed(membership, move |membership| membership.remove(&wanted.site)).await {
            Ok(()) => json(StatusCode::OK, &serde_json::json!({ "site": site, "removed": true })),
            Err(failed) => refused(&failed),
        }
    }
}

async fn changed<T: Send + 'static>(
    membership: Arc<dyn Membership>,
    change: impl FnOnce(&dyn Membership) -> Result<T, SiteError> + Send + 'static,
) -> Result<T, SiteError> {
    let changed = blocking::spawn(move || change(&*membership)).await;
    changed.unwrap_or_else(|error| Err(SiteError::Failed(error.to_string())))
}

fn refused(failed: &SiteError) -> Response<Full<Bytes>> {
    match failed {
        SiteError::Conflict(reason) => error(StatusCode::CONFLICT, reason),
        SiteError::Unknown(reason) => error(StatusCode::NOT_FOUND, reason),
        SiteError::Invalid(reason) => error(StatusCode::BAD_REQUEST, reason),
        SiteError::Failed(reason) => error(StatusCode::INTERNAL_SERVER_ERROR, reason),
    }
}

fn wanted(query: &str, is_new: bool) -> Result<NewSite, String> {
    let (mut site, mut hours, mut https) = (None, HOURS, Vec::new());
    for (key, value) in form_urlencoded::parse(query.as_bytes()) {
        match &*key {
            "site" => site = Some(value.parse().map_err(|error| format!("site: {error}"))?),
            "hours" if is_new => {
                let asked = value.parse().ok().filter(|hours| (1..=HOURS_MAX).contains(hours));
                hours = asked.ok_or_else(|| format!("hours: expected 1 to {HOURS_MAX}"))?;
            }
            "https" if is_new && https.len() < HTTPS_MAX => https.push(value.into_owned()),
            "https" if is_new => return Err(format!("https: at most {HTTPS_MAX} names")),
            _ => return Err(format!("no such parameter: {key}")),
        }
    }
    let site = site.ok_or("site: which?")?;
    Ok(NewSite { site, https, life: Duration::from_secs(u64::from(hours) * 3600) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_is_said_whole_and_nothing_else() {
        let asked = wanted("site=mumbai&hours=2&https=a.example.com&https=10.0.0.1", true).unwrap();
        assert_eq!((asked.site.as_str(), asked.life), ("mumbai", Duration::from_secs(7200)));
        assert_eq!(asked.https, ["a.example.com", "10.0.0.1"]);
        let many = format!("site=mumbai{}", "&https=a".repeat(HTTPS_MAX + 1));
        for bad in [
            "",
            "site=",
            "site=Mumbai!",
            "site=a&hours=0",
            "site=a&hours=721",
            "site=a&hours=x",
            "site=a&x=1",
            &many,
        ] {
            assert!(wanted(bad, true).is_err(), "{bad}");
        }
        assert!(wanted("site=mumbai", false).is_ok() && wanted("site=mumbai&hours=1", false).is_err());
    }
}
