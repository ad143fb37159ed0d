//! Why a site shows an image or does not: one pure function from facts to a cause.

use std::time::Duration;

use outport_proto::{Digest, Offset, Reference, SiteName, Timestamp};
use serde::{Deserialize, Serialize};

use super::{
    Caller, Deletion, ImageRef, Missing, Standing,
    answer::{Shown, Why, rfc3339},
};
use crate::policy::Keep;

/// Digests named in an answer at most; their number is always whole.
const DIGESTS_MAX: usize = 100;

/// Everything a cause is found by.
#[derive(Clone, Debug, PartialEq)]
pub struct Facts {
    /// The image.
    pub image: ImageRef,
    /// The site.
    pub site: SiteName,
    /// Somebody who was asked about and may not pull from the repository.
    pub denied: Option<Caller>,
    /// What the primary shows.
    pub primary: Word,
    /// The site's line to the primary is down; `None` while it is up.
    pub cut_off: Option<CutOff>,
    /// Newest event the site's index shows.
    pub applied: Offset,
    /// Up to here the site holds every blob that it keeps.
    pub complete: Offset,
    /// Events between the primary's head and applied.
    pub lag_events: u64,
    /// Age of the oldest of them; `None` when unknown.
    pub lag_seconds: Option<f64>,
    /// What the site lacks of all it keeps.
    pub missing_blobs: u64,
    /// What only the site knows; `None` at the primary.
    pub own: Option<Own>,
}

/// What only the site itself knows.
#[derive(Clone, Debug, PartialEq)]
pub struct Own {
    /// What its index says.
    pub standing: Standing,
    /// What it lacks of the image, as its index shows it.
    pub missing: Missing,
    /// The rule of its policy by which it lacks what it does not copy before anybody asks.
    pub rule: Option<NotKeptBy>,
    /// How fast it copied lately, in bytes a second; `None` when it did not.
    pub fill_rate: Option<u64>,
}

/// A rule of a policy that does not copy ahead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotKeptBy {
    /// What it says.
    pub keep: Keep,
    /// Its number and conditions.
    pub text: String,
}

/// What the primary shows of a reference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Word {
    /// It names this; a site that has applied `offset` shows that too, or something newer.
    Shown {
        /// What it names.
        digest: Digest,
        /// The event that put it there, or a later one.
        offset: Offset,
    },
    /// It was deleted. Only the primary itself says this.
    Deleted(Deletion),
    /// It never was there. Only the primary itself says this.
    NeverSeen,
    /// It is not there.
    Absent {
        /// Where in the log that holds.
        at: Offset,
    },
    /// The primary gave no answer.
    Silent,
}

/// A site without its primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CutOff {
    /// When one last heard of the other; `None` when not since the asked node started.
    pub since: Option<Timestamp>,
}

/// Who was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// The primary.
    Primary,
    /// The site itself.
    Site,
}

/// Why a site shows an image or does not. The codes are stable.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "code", rename_all = "snake_case")]
pub enum Cause {
    /// It shows the image and holds it.
    Visible,
    /// It has not applied what the primary has.
    Behind {
        /// Events it has not applied.
        events: u64,
        /// Age of the oldest of them; `null` when unknown.
        seconds: Option<f64>,
    },
    /// It shows the image and copies its blobs; a pull does not wait for that.
    WaitingForBlobs {
        /// How many are missing: of the image, or of all it keeps when the primary was asked.
        blobs: u64,
        /// Their bytes; `null` when unknown.
        bytes: Option<u64>,
        /// At most 100 of them.
        digests: Vec<Digest>,
        /// At the rate of late; `null` when unknown.
        eta_seconds: Option<f64>,
    },
    /// It shows the image, and its policy does not copy what is missing before anybody asks.
    NotKept {
        /// The rule that says so: its number and conditions.
        rule: String,
        /// `lazy` when the first pull keeps them, `exclude` when no pull does.
        keep: Keep,
        /// How many are not there.
        blobs: u64,
        /// Their bytes.
        bytes: u64,
        /// At most 100 of them.
        digests: Vec<Digest>,
    },
    /// It has no line to the primary.
    CutOff {
        /// RFC 3339; `null` when they have not met since the asked node started.
        since: Option<String>,
    },
    /// The image was deleted.
    Deleted {
        /// The event.
        offset: String,
        /// RFC 3339, by the primary's clock; `null` when the log no longer reaches back.
        time: Option<String>,
        /// Who asked for it; `null` when not known.
        actor: Option<String>,
    },
    /// The registry never had it.
    NeverSeen,
    /// Whoever was asked about may not pull from the repository, whatever the site shows.
    Denied {
        /// The user; `null` for somebody without login.
        user: Option<String>,
    },
}

/// Finds the cause.
pub fn cause(facts: &Facts) -> Cause {
    if let Some(caller) = &facts.denied {
        let user = match caller {
            Caller::Anonymous => None,
            Caller::User(name) => Some(name.clone()),
        };
        return Cause::Denied { user };
    }
    match (&facts.primary, facts.own.as_ref().map(|own| &own.standing)) {
        (Word::Deleted(deletion), _) => deleted(deletion),
        (Word::NeverSeen, _) => Cause::NeverSeen,
        (Word::Shown { offset, .. }, None) if facts.applied >= *offset => held(facts, *offset),
        (Word::Shown { digest, .. }, Some(Standing::Shown { digest: here, .. })) if digest == here => {
            held(facts, facts.applied)
        }
        // The site is past what the primary said: what it shows is as new or newer.
        (Word::Shown { offset: at, .. } | Word::Absent { at }, Some(standing)) if facts.applied >= *at => {
            settled(facts, standing)
        }
        (Word::Absent { .. }, Some(Standing::Deleted(deletion))) => deleted(deletion),
        (Word::Silent, Some(standing)) if is_lasting(&facts.image, standing) => settled(facts, standing),
        (Word::Shown { .. } | Word::Absent { .. } | Word::Silent, _) => late(facts),
    }
}

/// What a digest names never changes: a site that shows it needs nobody's word.
fn is_lasting(image: &ImageRef, standing: &Standing) -> bool {
    matches!((&image.reference, standing), (Reference::Digest(_), Standing::Shown { .. }))
}

/// The site's index is as new as it has to be.
fn settled(facts: &Facts, standing: &Standing) -> Cause {
    match standing {
        Standing::Shown { .. } => held(facts, facts.applied),
        Standing::Deleted(deletion) => deleted(deletion),
        Standing::Unknown => Cause::NeverSeen,
    }
}

/// The site's index is not as new as it has to be.
fn late(facts: &Facts) -> Cause {
    match facts.cut_off {
        Some(cut_off) => cut(cut_off),
        None if facts.primary == Word::Silent => cut(CutOff { since: None }),
        None => Cause::Behind { events: facts.lag_events, seconds: facts.lag_seconds },
    }
}

/// The site shows the image.
fn held(facts: &Facts, offset: Offset) -> Cause {
    let is_here = match &facts.own {
        Some(own) => own.missing.is_none(),
        None => facts.complete >= offset,
    };
    match (&facts.own, facts.cut_off) {
        _ if is_here => Cause::Visible,
        (_, Some(cut_off)) => cut(cut_off),
        (Some(Own { missing, rule: Some(rule), .. }), None) if missing.blobs.is_empty() => Cause::NotKept {
            rule: rule.text.clone(),
            keep: rule.keep,
            blobs: missing.not_kept.len() as u64,
            bytes: missing.not_kept_bytes,
            digests: few(&missing.not_kept),
        },
        (Some(own), None) => {
            let Missing { blobs, bytes, .. } = &own.missing;
            let rate = own.fill_rate.filter(|rate| *rate > 0);
            Cause::WaitingForBlobs {
                blobs: blobs.len() as u64,
                bytes: Some(*bytes),
                digests: few(blobs),
                eta_seconds: rate.map(|rate| *bytes as f64 / rate as f64),
            }
        }
        (None, None) => Cause::WaitingForBlobs {
            blobs: facts.missing_blobs,
            bytes: None,
            digests: Vec::new(),
            eta_seconds: None,
        },
    }
}

fn few(blobs: &[Digest]) -> Vec<Digest> {
    blobs.iter().take(DIGESTS_MAX).copied().collect()
}

fn cut(CutOff { since }: CutOff) -> Cause {
    Cause::CutOff { since: since.and_then(rfc3339) }
}

fn deleted(Deletion { offset, time, actor }: &Deletion) -> Cause {
    Cause::Deleted { offset: offset.to_string(), time: time.and_then(rfc3339), actor: actor.clone() }
}

impl Facts {
    /// The answer: the cause, in a code and in a sentence, and what it was found by.
    pub fn explain(&self) -> Why {
        let cause = cause(self);
        let asked = if self.own.is_some() { Asked::Site } else { Asked::Primary };
        let not_known: &[&str] = match asked {
            Asked::Primary => &["which blobs are missing, their bytes and ETA", "the site's policy"],
            Asked::Site => &[],
        };
        Why {
            reference: self.image.to_string(),
            site: self.site.to_string(),
            asked: asked.as_str().to_owned(),
            sentence: self.sentence(&cause),
            cause,
            primary: self.primary.shown(),
            shown: match &self.own {
                Some(own) => own.standing.shown(),
                None => Shown { state: "not-known".to_owned(), ..Shown::default() },
            },
            applied: self.applied.to_string(),
            complete: self.complete.to_string(),
            not_known_here: not_known.iter().map(|&text| text.to_owned()).collect(),
        }
    }

    fn sentence(&self, cause: &Cause) -> String {
        let (image, site) = (&self.image, &self.site);
        match cause {
            Cause::Visible => format!("{site} shows {image} and holds all of it that it keeps."),
            Cause::Behind { events, seconds } => {
                let age =
                    seconds.map(|seconds| format!(", the oldest {seconds:.1} s old")).unwrap_or_default();
                format!("{site} has not applied {events} events yet{age}; pulls there ask the primary.")
            }
            Cause::WaitingForBlobs { blobs, bytes, eta_seconds, .. } => {
                let bytes = bytes.map(|bytes| format!(" of {bytes} bytes")).unwrap_or_default();
                let eta = eta_seconds.map(|eta| format!(", about {eta:.0} s more")).unwrap_or_default();
                let whose = if self.own.is_some() { "the image" } else { "the site" };
                format!(
                    "{site} shows {image} and copies what {whose} lacks: {blobs} blobs{bytes}{eta}; \
                     pulls there fill what is missing."
                )
            }
            Cause::NotKept { blobs, rule, keep, .. } => {
                let when = match keep {
                    Keep::Exclude => "are streamed through when pulled",
                    Keep::Lazy | Keep::Eager => "come with the first pull",
                };
                format!(
                    "{site} shows {image}; its {blobs} missing blobs are not replicated by policy ({rule}): \
                     they {when}."
                )
            }
            Cause::CutOff { since } => {
                let since = since.as_ref().map(|since| format!(" since {since}")).unwrap_or_default();
                format!("{site} is cut off from the primary{since}; it serves what it has, with its age.")
            }
            Cause::Deleted { offset, time, actor } => {
                let by = actor.as_ref().map(|actor| format!(" by {actor}")).unwrap_or_default();
                let when = time.as_ref().map(|time| format!(" on {time}")).unwrap_or_default();
                format!("{image} was deleted{by}{when}, at offset {offset}.")
            }
            Cause::NeverSeen => format!("The registry never had {image}."),
            Cause::Denied { user } => {
                let who = user.as_deref().unwrap_or("anybody without login");
                format!("No access rule lets {who} pull from {}, at any site.", image.repo)
            }
        }
    }
}

impl Word {
    fn shown(&self) -> Shown {
        let (state, digest, offset) = match self {
            Self::Shown { digest, offset } => ("shown", Some(digest), Some(offset)),
            Self::Deleted(deletion) => ("deleted", None, Some(&deletion.offset)),
            Self::NeverSeen => ("absent", None, None),
            Self::Absent { at } => ("absent", None, Some(at)),
            Self::Silent => ("unreachable", None, None),
        };
        shown(state, digest, offset)
    }
}

impl Standing {
    fn shown(&self) -> Shown {
        match self {
            Self::Shown { digest, offset } => shown("shown", Some(digest), Some(offset)),
            Self::Deleted(deletion) => shown("deleted", None, Some(&deletion.offset)),
            Self::Unknown => shown("absent", None, None),
        }
    }
}

fn shown(state: &str, digest: Option<&Digest>, offset: Option<&Offset>) -> Shown {
    Shown {
        state: state.to_owned(),
        digest: digest.map(Digest::to_string),
        offset: offset.map(Offset::to_string),
    }
}

impl CutOff {
    /// Nothing was heard for `silence`, when the clock reads `now`; `None` for never.
    pub fn after(silence: Option<Duration>, now: Timestamp) -> Self {
        let back = |silence: Duration| u64::try_from(silence.as_micros()).unwrap_or(u64::MAX);
        let since = silence.map(|silence| now.as_micros().saturating_sub(back(silence)));
        Self { since: since.map(Timestamp::from_micros) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seq: u64) -> Offset {
        Offset::new(1, seq)
    }

    fn digest(name: &str) -> Digest {
        Digest::sha256(name.as_bytes())
    }

    fn shown(name: &str, seq: u64) -> Standing {
        Standing::Shown { digest: digest(name), offset: at(seq) }
    }

    fn gone() -> Deletion {
        Deletion { offset: at(6), time: Some(Timestamp::from_secs(9)), actor: Some("alice".to_owned()) }
    }

    /// The primary knows of a site that it is at event 5, and that its tag came with event 5.
    fn at_primary() -> Facts {
        Facts {
            image: "team/app:1".parse().unwrap(),
            site: "mumbai".parse().unwrap(),
            denied: None,
            primary: Word::Shown { digest: digest("a"), offset: at(5) },
            cut_off: None,
            applied: at(5),
            complete: at(5),
            lag_events: 3,
            lag_seconds: Some(1.5),
            missing_blobs: 4,
            own: None,
        }
    }

    /// A site at event 5 that keeps the repository and holds all of the image.
    fn at_site() -> Facts {
        let own =
            Own { standing: shown("a", 5), missing: Missing::default(), rule: None, fill_rate: Some(100) };
        Facts { own: Some(own), ..at_primary() }
    }

    fn own(facts: &mut Facts) -> &mut Own {
        facts.own.as_mut().unwrap()
    }

    fn lacks(facts: &mut Facts) {
        own(facts).missing =
            Missing { blobs: vec![digest("x"), digest("y")], bytes: 500, ..Missing::default() };
    }

    fn lacks_by_policy(facts: &mut Facts) {
        let not_kept = vec![digest("x"), digest("y")];
        own(facts).missing = Missing { not_kept, not_kept_bytes: 500, ..Missing::default() };
        own(facts).rule = Some(NotKeptBy { keep: Keep::Lazy, text: "rule 1: everything".to_owned() });
    }

    fn cut(facts: &mut Facts) {
        facts.cut_off = Some(CutOff { since: Some(Timestamp::from_secs(60)) });
    }

    type Change = fn(&mut Facts);

    #[test]
    fn causes() {
        let behind = || Cause::Behind { events: 3, seconds: Some(1.5) };
        let cut_off = || Cause::CutOff { since: Some("1970-01-01T00:01:00Z".to_owned()) };
        let deleted = || Cause::Deleted {
            offset: "1.6".to_owned(),
            time: Some("1970-01-01T00:00:09Z".to_owned()),
            actor: Some("alice".to_owned()),
        };
        let both = || vec![digest("x"), digest("y")];
        let waits =
            |eta| Cause::WaitingForBlobs { blobs: 2, bytes: Some(500), digests: both(), eta_seconds: eta };
        let unseen = || Cause::WaitingForBlobs { blobs: 4, bytes: None, digests: vec![], eta_seconds: None };
        let rule = || "rule 1: everything".to_owned();
        let lazy =
            || Cause::NotKept { rule: rule(), keep: Keep::Lazy, blobs: 2, bytes: 500, digests: both() };
        #[rustfmt::skip]
        let primary: [(&str, Change, Cause); 12] = [
            ("shows and holds",            |_| {},                                                Cause::Visible),
            ("shows, copies",              |f| f.complete = at(4),                                unseen()),
            ("shows, copies, cut off",     |f| { f.complete = at(4); cut(f) },                    cut_off()),
            ("holds, cut off",             cut,                                                   Cause::Visible),
            ("not there yet",              |f| f.applied = at(4),                                 behind()),
            ("not there yet, cut off",     |f| { f.applied = at(4); cut(f) },                     cut_off()),
            ("an older epoch is behind",   |f| f.applied = Offset::new(0, 9),                     behind()),
            ("deleted",                    |f| f.primary = Word::Deleted(gone()),                 deleted()),
            ("deleted, cut off",           |f| { f.primary = Word::Deleted(gone()); cut(f) },     deleted()),
            ("never seen",                 |f| f.primary = Word::NeverSeen,                       Cause::NeverSeen),
            ("may not, without login",     |f| f.denied = Some(Caller::Anonymous),                Cause::Denied { user: None }),
            ("may not",                    |f| f.denied = Some(Caller::User("bob".to_owned())),   Cause::Denied { user: Some("bob".to_owned()) }),
        ];
        #[rustfmt::skip]
        let site: [(&str, Change, Cause); 19] = [
            ("shows and holds",            |_| {},                                                Cause::Visible),
            ("shows, copies",              lacks,                                                 waits(Some(5.0))),
            ("shows, copies, no rate",     |f| { lacks(f); own(f).fill_rate = None },             waits(None)),
            ("shows, copies, cut off",     |f| { lacks(f); cut(f) },                              cut_off()),
            ("shows, not kept",            lacks_by_policy,                                       lazy()),
            ("holds, not kept",            |f| { lacks_by_policy(f); own(f).missing = Missing::default() }, Cause::Visible),
            ("shows an older one",         |f| { own(f).standing = shown("o", 2); f.applied = at(4) }, behind()),
            ("shows nothing yet",          |f| { own(f).standing = Standing::Unknown; f.applied = at(4) }, behind()),
            ("shows a newer one",          |f| own(f).standing = shown("n", 5),                   Cause::Visible),
            ("knows a newer deletion",     |f| own(f).standing = Standing::Deleted(gone()),       deleted()),
            ("both know the deletion",     |f| { f.primary = Word::Absent { at: at(5) }; own(f).standing = Standing::Deleted(gone()) }, deleted()),
            ("deleted, other events late", |f| { f.primary = Word::Absent { at: at(9) }; own(f).standing = Standing::Deleted(gone()) }, deleted()),
            ("a deletion is on its way",   |f| f.primary = Word::Absent { at: at(9) },            behind()),
            ("put again after the no",     |f| f.primary = Word::Absent { at: at(4) },            Cause::Visible),
            ("never seen",                 |f| { f.primary = Word::Absent { at: at(5) }; own(f).standing = Standing::Unknown }, Cause::NeverSeen),
            ("absent, and behind",         |f| { f.primary = Word::Absent { at: at(9) }; own(f).standing = Standing::Unknown }, behind()),
            ("cut off, may have moved",    |f| { f.primary = Word::Silent; cut(f) },              cut_off()),
            ("no answer on a live line",   |f| f.primary = Word::Silent,                          Cause::CutOff { since: None }),
            ("cut off, by digest",         |f| { f.primary = Word::Silent; cut(f); f.image.reference = Reference::Digest(digest("a")) }, Cause::Visible),
        ];
        for (facts, table) in [(at_primary(), primary.as_slice()), (at_site(), site.as_slice())] {
            for (name, change, expected) in table {
                let mut facts = facts.clone();
                change(&mut facts);
                assert_eq!(cause(&facts), *expected, "{name}: {facts:?}");
                let sentence = facts.explain().sentence;
                assert!(sentence.ends_with('.') && sentence.len() > 20, "{name}: {sentence}");
            }
        }
    }

    #[test]
    fn an_answer_is_flat_and_says_what_it_cannot_know() {
        let mut facts = at_site();
        lacks(&mut facts);
        let json = serde_json::to_value(facts.explain()).unwrap();
        assert_eq!((&json["code"], &json["bytes"]), (&"waiting_for_blobs".into(), &500.into()));
        assert_eq!((&json["asked"], &json["shown"]["offset"]), (&"secondary".into(), &"1.5".into()));
        assert_eq!(json["not_known_here"], serde_json::json!([]));
        let json = serde_json::to_value(at_primary().explain()).unwrap();
        assert_eq!((&json["code"], &json["shown"]["state"]), (&"visible".into(), &"not-known".into()));
        assert!(!json["not_known_here"].as_array().unwrap().is_empty());
    }

    #[test]
    fn a_long_list_of_blobs_is_cut_and_counted() {
        let mut facts = at_site();
        own(&mut facts).missing = Missing { blobs: vec![digest("x"); 150], bytes: 150, ..Missing::default() };
        let Cause::WaitingForBlobs { blobs, digests, .. } = cause(&facts) else { panic!("{facts:?}") };
        assert_eq!((blobs, digests.len()), (150, DIGESTS_MAX));
    }
}
