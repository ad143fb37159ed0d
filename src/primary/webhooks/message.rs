//! What receivers get: CloudEvents in their JSON form, signed as Standard Webhooks say.
//!
//! Sources: CloudEvents 1.0.2, "JSON Event Format"; Standard Webhooks, "Signature scheme".

use aws_lc_rs::hmac;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use outport_proto::{Change, Event, SiteName, Tag, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::status::SiteStatus;

/// What is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// A site shows an image.
    #[serde(rename = "image.visible")]
    Visible,
    /// A site holds all that it keeps of an image ahead.
    #[serde(rename = "image.complete")]
    Complete,
    /// A site is behind.
    #[serde(rename = "site.behind")]
    Behind,
    /// A site that was behind is not any longer.
    #[serde(rename = "site.back")]
    Back,
}

impl Kind {
    /// As it stands in the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Visible => "image.visible",
            Self::Complete => "image.complete",
            Self::Behind => "site.behind",
            Self::Back => "site.back",
        }
    }
}

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Message {
    /// The same for the same thing, however often it is told.
    pub(super) id: String,
    /// The event as JSON.
    pub(super) body: String,
}

impl Message {
    /// An image came to `site` with `event`, under `tag`; it is `now` by the primary's clock.
    pub(super) fn of_image(
        cluster: &str,
        site: &SiteName,
        kind: Kind,
        event: &Event,
        tag: &Tag,
        now: Timestamp,
    ) -> Self {
        let (repository, digest) = match &event.change {
            Change::ManifestPut(put) => (put.repo.to_string(), put.digest.to_string()),
            _ => Default::default(),
        };
        let data = json!({
            "site": site.as_str(),
            "repository": repository,
            "tag": tag.as_str(),
            "digest": digest,
            "offset": event.offset.to_string(),
            "pushed": time(event.time),
            "lag_seconds": now.since(event.time).as_secs_f64(),
        });
        let id = format!("{}:{tag}:{site}:{}", event.offset, kind.as_str());
        Self::new(id, cluster, site.as_str(), kind, Some(format!("{repository}:{tag}")), now, &data)
    }

    /// A site is behind, or back.
    pub(super) fn of_site(cluster: &str, status: &SiteStatus, kind: Kind, now: Timestamp) -> Self {
        let data = json!({
            "site": status.site,
            "state": status.state,
            "lag_seconds": status.lag_seconds,
            "lag_events": status.lag_events,
        });
        let id = format!("{}:{}:{}", now.as_micros(), status.site, kind.as_str());
        Self::new(id, cluster, &status.site, kind, None, now, &data)
    }

    fn new(
        id: String,
        cluster: &str,
        site: &str,
        kind: Kind,
        subject: Option<String>,
        now: Timestamp,
        data: &Value,
    ) -> Self {
        let mut event = json!({
            "specversion": "1.0",
            "id": id,
            "source": format!("/outport/{cluster}/{site}"),
            "type": format!("outport.{}", kind.as_str()),
            "time": time(now),
            "datacontenttype": "application/json",
            "data": data,
        });
        if let Some(subject) = subject {
            event["subject"] = subject.into();
        }
        Self { id, body: event.to_string() }
    }

    /// The signature of this message when it is sent at `at`, in seconds since the Unix epoch.
    pub(super) fn signature(&self, secret: &Secret, at: u64) -> String {
        let signed = format!("{}.{at}.{}", self.id, self.body);
        format!("v1,{}", STANDARD.encode(hmac::sign(&secret.0, signed.as_bytes())))
    }
}

/// What messages are signed with.
#[derive(Clone)]
pub struct Secret(hmac::Key);

impl Secret {
    /// From the text of its file: `whsec_` and base64, as Standard Webhooks write it, or any other text.
    /// `None` when there is nothing in it.
    pub fn new(text: &str) -> Option<Self> {
        let text = text.trim();
        let decoded = text.strip_prefix("whsec_").and_then(|text| STANDARD.decode(text).ok());
        let bytes = decoded.unwrap_or_else(|| text.as_bytes().to_vec());
        (!bytes.is_empty()).then(|| Self(hmac::Key::new(hmac::HMAC_SHA256, &bytes)))
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

/// RFC 3339; the primary's clock is not so far off that it could not be said.
fn time(at: Timestamp) -> String {
    let nanos = i128::from(at.as_micros()) * 1000;
    let time = OffsetDateTime::from_unix_timestamp_nanos(nanos).ok();
    time.and_then(|time| time.format(&Rfc3339).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use outport_proto::{Digest, ManifestPut, Offset};

    use super::*;

    #[test]
    fn a_signature_is_what_the_reference_implementation_makes() {
        // From the tests of the reference libraries.
        let message = Message {
            id: "msg_p5jXN8AQM9LWM0D4loKWxJek".to_owned(),
            body: r#"{"test": 2432232314}"#.to_owned(),
        };
        let secret = Secret::new("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n").unwrap();
        assert_eq!(
            message.signature(&secret, 1_614_265_330),
            "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
        );
        assert!(Secret::new(" \n").is_none());
        assert_eq!(format!("{secret:?}"), "Secret");
    }

    #[test]
    fn an_image_is_told_as_a_cloud_event() {
        let put = ManifestPut {
            repo: "team/app".parse().unwrap(),
            digest: Digest::sha256(b"m"),
            media_type: String::new(),
            size: 1,
            bytes: None,
            tags: vec!["1".parse().unwrap()],
            children: Vec::new(),
            subject: None,
            artifact_type: None,
            annotations: Vec::new(),
            platform: None,
        };
        let event = Event {
            offset: Offset::new(1, 40),
            time: Timestamp::from_secs(1_000_000_000),
            actor: String::new(),
            intent: None,
            change: Change::ManifestPut(Box::new(put)),
        };
        let site: SiteName = "mumbai".parse().unwrap();
        let now = Timestamp::from_secs(1_000_000_002);
        let message = Message::of_image("c1", &site, Kind::Visible, &event, &"1".parse().unwrap(), now);
        let told: Value = serde_json::from_str(&message.body).unwrap();
        assert_eq!(message.id, "1.40:1:mumbai:image.visible");
        assert_eq!(
            told,
            json!({
                "specversion": "1.0",
                "id": "1.40:1:mumbai:image.visible",
                "source": "/outport/c1/mumbai",
                "type": "outport.image.visible",
                "subject": "team/app:1",
                "time": "2001-09-09T01:46:42Z",
                "datacontenttype": "application/json",
                "data": {
                    "site": "mumbai",
                    "repository": "team/app",
                    "tag": "1",
                    "digest": Digest::sha256(b"m").to_string(),
                    "offset": "1.40",
                    "pushed": "2001-09-09T01:46:40Z",
                    "lag_seconds": 2.0,
                },
            })
        );
    }
}
