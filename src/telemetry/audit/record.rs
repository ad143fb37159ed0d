//! One record, and the line it becomes.

use std::{
    io::Write as _,
    net::IpAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use http::{HeaderMap, header};
use outport_proto::{Digest, Reference, RepoName};
use time::OffsetDateTime;

/// What is longer in a header is cut.
const HEADER_BYTES_MAX: usize = 256;

/// What kind of thing happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// All of it was sent.
    Whole,
    /// The client left, or the rest could not be had.
    Cut,
}

impl Ending {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Whole => "whole",
            Self::Cut => "cut",
        }
    }
}

/// What happened. Fields that say nothing are not written.
#[derive(Clone, Debug)]
pub struct Record {
    /// When it began.
    pub time: SystemTime,
    /// What kind of thing it is.
    pub kind: Kind,
    /// Where: the name of the site, or `primary`.
    pub site: Arc<str>,
    /// Who: the subject of the token; empty for nobody in particular.
    pub subject: Option<Arc<str>>,
    /// What was asked for, as in the log and in metrics.
    pub action: Option<&'static str>,
    /// The HTTP method.
    pub method: Option<&'static str>,
    /// The repository.
    pub repository: Option<RepoName>,
    /// The tag or digest that it was asked for by.
    pub reference: Option<Reference>,
    /// The digest of the content.
    pub digest: Option<Digest>,
    /// The status of the answer.
    pub status: Option<u16>,
    /// How a pull was answered: the `result` of `outport_pulls_total`.
    pub result: Option<&'static str>,
    /// The read rule that decided it.
    pub rule: Option<&'static str>,
    /// Bytes of the body that were handed to the connection.
    pub bytes: Option<u64>,
    /// How the body ended.
    pub ending: Option<Ending>,
    /// From the request to the end of the answer.
    pub took: Option<Duration>,
    /// Why it was denied, what an administrator asked for, or which rules are new.
    pub detail: Option<String>,
    /// The client's address.
    pub client: Option<IpAddr>,
    /// What it calls itself: [`user_agent`].
    pub user_agent: Option<Box<str>>,
    /// The trace that it belongs to: 32 hexadecimal digits.
    pub trace_id: Option<[u8; 16]>,
}

/// What a client calls itself. It is copied: the header itself holds all that its connection read with it, which
/// could not be read into again until the record is written.
pub fn user_agent(headers: &HeaderMap) -> Option<Box<str>> {
    let bytes = headers.get(header::USER_AGENT)?.as_bytes();
    Some(String::from_utf8_lossy(&bytes[..bytes.len().min(HEADER_BYTES_MAX)]).into())
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

    /// Adds its line to `lines`. It is written by hand, as it is written for every pull: names and digests, which
    /// cannot hold what JSON would have to escape, as they are.
    pub(super) fn write_to(&self, lines: &mut Vec<u8>) {
        let mut object = Object(lines);
        object.open();
        object.time(self.time);
        object.bare("kind", self.kind.as_str());
        object.bare("site", &self.site);
        object.text("subject", self.subject.as_deref());
        for (name, word) in [("action", self.action), ("method", self.method)] {
            word.into_iter().for_each(|word| object.bare(name, word));
        }
        self.repository.iter().for_each(|repo| object.bare("repository", repo.as_str()));
        match &self.reference {
            None => {}
            Some(Reference::Tag(tag)) => object.bare("reference", tag.as_str()),
            Some(Reference::Digest(digest)) => object.digest("reference", digest),
        }
        self.digest.iter().for_each(|digest| object.digest("digest", digest));
        self.status.iter().for_each(|status| object.number("status", u64::from(*status)));
        for (name, word) in [("result", self.result), ("rule", self.rule)] {
            word.into_iter().for_each(|word| object.bare(name, word));
        }
        self.bytes.iter().for_each(|bytes| object.number("bytes", *bytes));
        self.ending.iter().for_each(|ending| object.bare("ending", ending.as_str()));
        self.took.iter().for_each(|took| object.seconds("seconds", *took));
        object.text("detail", self.detail.as_deref());
        self.client.iter().for_each(|client| object.address("client", client));
        object.text("user_agent", self.user_agent.as_deref());
        self.trace_id.iter().for_each(|id| object.hexadecimal("trace_id", id));
        object.close();
    }
}

/// A JSON object on its way into a line.
struct Object<'a>(&'a mut Vec<u8>);

impl Object<'_> {
    fn open(&mut self) {
        self.0.push(b'{');
    }

    fn close(&mut self) {
        self.0.extend_from_slice(b"}\n");
    }

    fn name(&mut self, name: &str) {
        if self.0.last() != Some(&b'{') {
            self.0.push(b',');
        }
        self.0.push(b'"');
        self.0.extend_from_slice(name.as_bytes());
        self.0.extend_from_slice(b"\":");
    }

    /// A text that needs no escape.
    fn bare(&mut self, name: &str, text: &str) {
        self.name(name);
        self.0.push(b'"');
        self.0.extend_from_slice(text.as_bytes());
        self.0.push(b'"');
    }

    fn digest(&mut self, name: &str, digest: &Digest) {
        self.name(name);
        self.0.push(b'"');
        digest.push_to(self.0);
        self.0.push(b'"');
    }

    fn number(&mut self, name: &str, value: u64) {
        self.name(name);
        self.digits(value, 1);
    }

    /// At least `width` digits. The formatter of the standard library takes ten times as long.
    fn digits(&mut self, mut value: u64, width: usize) {
        const MOST: usize = 20;
        let mut digits = [b'0'; MOST];
        let mut first = MOST;
        while value > 0 || MOST - first < width {
            first -= 1;
            digits[first] = b'0' + (value % 10) as u8;
            value /= 10;
        }
        self.0.extend_from_slice(&digits[first..]);
    }

    /// To the microsecond.
    fn seconds(&mut self, name: &str, time: Duration) {
        self.number(name, time.as_secs());
        self.0.push(b'.');
        self.digits(time.subsec_micros().into(), 6);
    }

    fn address(&mut self, name: &str, address: &IpAddr) {
        self.name(name);
        match address {
            IpAddr::V4(address) => {
                for (mark, octet) in b"\"...".iter().zip(address.octets()) {
                    self.0.push(*mark);
                    self.digits(octet.into(), 1);
                }
                self.0.push(b'"');
            }
            // Nothing fails that is written to memory.
            IpAddr::V6(address) => _ = write!(self.0, "\"{address}\""),
        }
    }

    fn hexadecimal(&mut self, name: &str, bytes: &[u8]) {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        self.name(name);
        self.0.push(b'"');
        for byte in bytes {
            self.0.extend_from_slice(&[byte >> 4, byte & 15].map(|digit| DIGITS[usize::from(digit)]));
        }
        self.0.push(b'"');
    }

    /// Any text.
    fn text(&mut self, name: &str, text: Option<&str>) {
        let Some(text) = text else { return };
        self.name(name);
        let _ = serde_json::to_writer(&mut *self.0, text);
    }

    /// RFC 3339, to the microsecond: finer says nothing.
    fn time(&mut self, time: SystemTime) {
        let time = OffsetDateTime::from(time);
        let (year, month, day) = (time.year(), u8::from(time.month()), time.day());
        let (hour, minute, second, micros) = time.to_hms_micro();
        self.name("time");
        self.0.push(b'"');
        self.digits(year.unsigned_abs().into(), 4);
        for (mark, number) in b"--T::".iter().zip([month, day, hour, minute, second]) {
            self.0.push(*mark);
            self.digits(number.into(), 2);
        }
        self.0.push(b'.');
        self.digits(micros.into(), 6);
        self.0.extend_from_slice(b"Z\"");
    }
}
