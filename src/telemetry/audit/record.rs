//! One record, and the line it becomes.

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use http::HeaderValue;
use outport_proto::{Digest, Reference, RepoName};
use serde::{Serialize, Serializer};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// What is longer in a header is cut.
const HEADER_BYTES_MAX: usize = 256;

/// What kind of thing happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A manifest or blob was asked for.
    Pull,
    /// Tags, repositories or referrers were listed.
    List,
    /// A manifest was put, a blob committed or mounted.
    Push,
    /// A tag, manifest or blob was deleted.
    Delete,
    /// A request was led to the primary.
    Redirect,
    /// A token was asked for.
    Token,
    /// Somebody may not do what they asked for.
    Denial,
    /// An administrator did something.
    Admin,
    /// The rules are others than at the last start.
    Policy,
}

impl Kind {
    pub(super) const ALL: [Self; 9] = [
        Self::Pull,
        Self::List,
        Self::Push,
        Self::Delete,
        Self::Redirect,
        Self::Token,
        Self::Denial,
        Self::Admin,
        Self::Policy,
    ];

    /// As it stands in a line.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pull => "pull",
            Self::List => "list",
            Self::Push => "push",
            Self::Delete => "delete",
            Self::Redirect => "redirect",
            Self::Token => "token",
            Self::Denial => "denial",
            Self::Admin => "admin",
            Self::Policy => "policy",
        }
    }
}

/// How the body of an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Ending {
    /// All of it was sent.
    Whole,
    /// The client left, or the rest could not be had.
    Cut,
}

/// What happened. Fields that say nothing are not written.
#[derive(Clone, Debug, Serialize)]
pub struct Record {
    /// When it began.
    #[serde(serialize_with = "rfc3339")]
    pub time: SystemTime,
    /// What kind of thing it is.
    pub kind: Kind,
    /// Where: the name of the site, or `primary`.
    pub site: Arc<str>,
    /// Who: the subject of the token; empty for nobody in particular.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subject: Option<Arc<str>>,
    /// What was asked for, as in the log and in metrics.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub action: Option<&'static str>,
    /// The HTTP method.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<&'static str>,
    /// The repository.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repository: Option<RepoName>,
    /// The tag or digest that it was asked for by.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "reference")]
    pub reference: Option<Reference>,
    /// The digest of the content.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
    /// The status of the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// How a pull was answered: the `result` of `outport_pulls_total`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub result: Option<&'static str>,
    /// The read rule that decided it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<&'static str>,
    /// Bytes of the body that were handed to the connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// How the body ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ending: Option<Ending>,
    /// From the request to the end of the answer.
    #[serde(rename = "seconds", skip_serializing_if = "Option::is_none", serialize_with = "seconds")]
    pub took: Option<Duration>,
    /// Why it was denied, what an administrator asked for, or which rules are new.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// The client's address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client: Option<IpAddr>,
    /// What it calls itself.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "header")]
    pub user_agent: Option<HeaderValue>,
    /// The trace that it belongs to: 32 hexadecimal digits.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "hexadecimal")]
    pub trace_id: Option<[u8; 16]>,
}

impl Record {
    pub(super) const fn new(time: SystemTime, kind: Kind, site: Arc<str>, client: Option<IpAddr>) -> Self {
        Self {
            time,
            kind,
            site,
            subject: None,
            action: None,
            method: None,
            repository: None,
            reference: None,
            digest: None,
            status: None,
            result: None,
            rule: None,
            bytes: None,
            ending: None,
            took: None,
            detail: None,
            client,
            user_agent: None,
            trace_id: None,
        }
    }

    /// Adds its line to `lines`.
    pub(super) fn write_to(&self, lines: &mut Vec<u8>) {
        let begin = lines.len();
        match serde_json::to_writer(&mut *lines, self) {
            Ok(()) => lines.push(b'\n'),
            // Nothing in it can fail; half a line must never stand there.
            Err(_) => lines.truncate(begin),
        }
    }
}

fn rfc3339<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    let time = OffsetDateTime::from(*time);
    // Finer says nothing.
    let micros = time.nanosecond() / 1000 * 1000;
    let text = time.replace_nanosecond(micros).unwrap_or(time).format(&Rfc3339);
    serializer.serialize_str(&text.map_err(serde::ser::Error::custom)?)
}

fn reference<S: Serializer>(reference: &Option<Reference>, serializer: S) -> Result<S::Ok, S::Error> {
    match reference {
        Some(reference) => serializer.collect_str(reference),
        None => serializer.serialize_none(),
    }
}

fn header<S: Serializer>(value: &Option<HeaderValue>, serializer: S) -> Result<S::Ok, S::Error> {
    let bytes = value.as_ref().map_or(&[][..], HeaderValue::as_bytes);
    serializer.serialize_str(&String::from_utf8_lossy(&bytes[..bytes.len().min(HEADER_BYTES_MAX)]))
}

fn hexadecimal<S: Serializer>(id: &Option<[u8; 16]>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{:032x}", u128::from_be_bytes(id.unwrap_or_default())))
}

fn seconds<S: Serializer>(took: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    took.map(|took| took.as_micros() as f64 / 1e6).serialize(serializer)
}
