//! One record, and the line it becomes.

use std::{
    cell::Cell,
    io::Write as _,
    net::IpAddr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use http::{HeaderMap, header};
use outport_proto::{Digest, Reference, RepoName, Tag};
use time::OffsetDateTime;

/// What is longer in a header is cut.
const HEADER_BYTES_MAX: usize = 256;
/// `2026-01-02T03:04:05`.
const SECOND_BYTES: usize = 19;

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

/// What something was asked for by.
#[derive(Clone, Copy, Debug)]
pub enum Named<'a> {
    /// A tag.
    Tag(&'a Tag),
    /// A digest.
    Digest(&'a Digest),
}

impl<'a> From<&'a Reference> for Named<'a> {
    fn from(reference: &'a Reference) -> Self {
        match reference {
            Reference::Tag(tag) => Self::Tag(tag),
            Reference::Digest(digest) => Self::Digest(digest),
        }
    }
}

/// What happened. Fields that say nothing are not written.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// When it began.
    pub time: SystemTime,
    /// What kind of thing it is.
    pub kind: Kind,
    /// Who: the subject of the token; empty for nobody in particular.
    pub subject: Option<&'a str>,
    /// What was asked for, as in the log and in metrics.
    pub action: Option<&'static str>,
    /// The HTTP method.
    pub method: Option<&'static str>,
    /// The repository.
    pub repository: Option<&'a RepoName>,
    /// The tag or digest that it was asked for by.
    pub reference: Option<Named<'a>>,
    /// The digest of the content.
    pub digest: Option<Digest>,
    /// The status of the answer.
    pub status: Option<u16>,
    /// How a pull was answered: the `result` of `outport_pulls_total`.
    pub result: Option<&'static str>,
    /// The read rule that decided it.
    pub rule: Option<&'static str>,
    /// Why it was denied, what an administrator asked for, or which rules are new.
    pub detail: Option<&'a str>,
    /// The client's address.
    pub client: Option<IpAddr>,
    /// What it calls itself; what is longer than 256 bytes is cut.
    pub user_agent: Option<&'a [u8]>,
    /// The trace that it belongs to: 32 hexadecimal digits.
    pub trace_id: Option<[u8; 16]>,
}

/// What is known once an answer has ended.
#[derive(Clone, Copy, Debug)]
pub struct Ended {
    /// Bytes of the body that were handed to the connection.
    pub bytes: u64,
    /// How the body ended.
    pub ending: Ending,
    /// From the request to the end of the answer.
    pub took: Duration,
}

impl<'a> Record<'a> {
    /// A record of what began at `time`, of which nothing is known yet.
    pub const fn at(time: SystemTime, kind: Kind) -> Self {
        Self {
            time,
            kind,
            subject: None,
            action: None,
            method: None,
            repository: None,
            reference: None,
            digest: None,
            status: None,
            result: None,
            rule: None,
            detail: None,
            client: None,
            user_agent: None,
            trace_id: None,
        }
    }

    /// What a client calls itself.
    pub fn agent_in(headers: &'a HeaderMap) -> Option<&'a [u8]> {
        Some(headers.get(header::USER_AGENT)?.as_bytes())
    }

    /// Begins its line in `line`, which is empty. It is written by hand, as it is written for every pull: names and
    /// digests, which cannot hold what JSON would have to escape, as they are.
    pub(super) fn begin(&self, site: &str, line: &mut Vec<u8>) {
        let mut object = Object(line);
        object.open();
        object.time(self.time);
        object.bare("kind", self.kind.as_str());
        object.bare("site", site);
        object.text("subject", self.subject);
        for (name, word) in [("action", self.action), ("method", self.method)] {
            word.into_iter().for_each(|word| object.bare(name, word));
        }
        self.repository.iter().for_each(|repo| object.bare("repository", repo.as_str()));
        match self.reference {
            None => {}
            Some(Named::Tag(tag)) => object.bare("reference", tag.as_str()),
            Some(Named::Digest(digest)) => object.digest("reference", digest),
        }
        self.digest.iter().for_each(|digest| object.digest("digest", digest));
        self.status.iter().for_each(|status| object.number("status", u64::from(*status)));
        for (name, word) in [("result", self.result), ("rule", self.rule)] {
            word.into_iter().for_each(|word| object.bare(name, word));
        }
        object.text("detail", self.detail);
        self.client.iter().for_each(|client| object.address("client", client));
        let agent = self.user_agent.map(|agent| &agent[..agent.len().min(HEADER_BYTES_MAX)]);
        object.text("user_agent", agent.map(String::from_utf8_lossy).as_deref());
        self.trace_id.iter().for_each(|id| object.hexadecimal("trace_id", id));
    }
}

/// Ends a line that [`Record::begin`] began.
pub(super) fn end(line: &mut Vec<u8>, ended: Option<Ended>) {
    let mut object = Object(line);
    if let Some(ended) = ended {
        object.number("bytes", ended.bytes);
        object.bare("ending", ended.ending.as_str());
        object.seconds("seconds", ended.took);
    }
    object.close();
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

    /// Any text. Most need no escape.
    fn text(&mut self, name: &str, text: Option<&str>) {
        let Some(text) = text else { return };
        if text.bytes().all(|byte| matches!(byte, b' '..=b'~') && byte != b'"' && byte != b'\\') {
            return self.bare(name, text);
        }
        self.name(name);
        let _ = serde_json::to_writer(&mut *self.0, text);
    }

    /// RFC 3339, to the microsecond: finer says nothing.
    fn time(&mut self, time: SystemTime) {
        thread_local! {
            /// The last second written, and its text.
            static SECOND: Cell<(u64, [u8; SECOND_BYTES])> = const { Cell::new((u64::MAX, [0; SECOND_BYTES])) };
        }
        let since_epoch = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        self.name("time");
        self.0.push(b'"');
        let (second, text) = SECOND.get();
        if second == since_epoch.as_secs() {
            self.0.extend_from_slice(&text);
        } else {
            let begin = self.0.len();
            self.second(time);
            if let Ok(text) = self.0[begin..].try_into() {
                SECOND.set((since_epoch.as_secs(), text));
            }
        }
        self.0.push(b'.');
        self.digits(since_epoch.subsec_micros().into(), 6);
        self.0.extend_from_slice(b"Z\"");
    }

    fn second(&mut self, time: SystemTime) {
        let time = OffsetDateTime::from(time);
        let (year, month, day) = (time.year(), u8::from(time.month()), time.day());
        let (hour, minute, second) = time.to_hms();
        self.digits(year.unsigned_abs().into(), 4);
        for (mark, number) in b"--T::".iter().zip([month, day, hour, minute, second]) {
            self.0.push(*mark);
            self.digits(number.into(), 2);
        }
    }
}
