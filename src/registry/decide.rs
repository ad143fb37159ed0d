//! The read rules: one pure function from facts to what a pull does.
//!
//! The numbers in the comments are the rules as every page about reading names them.

use std::time::Duration;

use outport_proto::{Offset, Timestamp};

/// Everything the rules look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Whether the log is made here or followed from elsewhere.
    pub role: Role,
    /// What is asked for.
    pub kind: Kind,
    /// The caller may pull from the repository.
    pub may_pull: bool,
    /// The caller may push to the repository.
    pub holds_push: bool,
    /// The index has it: the tag, the repository's manifest or link, a referrer, the repository.
    pub known: bool,
    /// Its bytes are here, or none are wanted.
    pub local: bool,
    /// The primary said "no" and no event for the repository was applied since.
    pub remembered_no: bool,
    /// Heartbeats arrive in time.
    pub session_live: bool,
    /// A request to the primary is worth sending.
    pub reachable: bool,
    /// The primary's clock now, less `closed_time`.
    pub age: Duration,
    /// An answer this old is still fresh.
    pub staleness_bound: Duration,
    /// Cut off, an answer older than this is not given; `None` gives any.
    pub stale_max: Option<Duration>,
    /// Newest applied event.
    pub applied: Offset,
    /// Every change acknowledged before it is applied.
    pub closed_time: Timestamp,
    /// Log head when our own token service issued the token.
    pub token_offset: Option<Offset>,
    /// When another issuer issued the token, in whole seconds; not looked at beside `token_offset`.
    pub token_issued_at: Option<Timestamp>,
    /// `Outport-Min-Offset`.
    pub min_offset: Option<Offset>,
    /// A push or delete of it was redirected from here and has not come back as an event.
    pub intent_open: bool,
    /// This pull has waited already.
    pub waited: bool,
    /// Longest wait.
    pub wait_max: Duration,
}

/// Who makes the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// This site: its index is the truth.
    Primary,
    /// Another site.
    Secondary,
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A manifest by tag.
    Tag,
    /// A manifest or blob by digest.
    Digest,
    /// Whether a manifest or blob is there, by digest: HEAD.
    Existence,
    /// The manifests that refer to a digest.
    Referrers,
    /// The tags of a repository, or the repositories.
    Listing,
}

/// What a pull does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Answer from here.
    Serve,
    /// Wait for `until`, at most [`Facts::wait_max`], then decide again.
    WaitThenServe {
        /// What to wait for.
        until: Until,
    },
    /// Ask the primary and answer what it says.
    Revalidate,
    /// Fetch the bytes from the primary, which proves that the repository may have them.
    Fill,
    /// It may exist and cannot be had now.
    Unavailable,
    /// The log says that it does not exist.
    NotFound,
    /// The caller may not read it.
    Denied,
}

/// How far this site must be; the defaults are reached always.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Until {
    /// Applied must reach this.
    pub applied: Offset,
    /// Closed time must reach this.
    pub closed_time: Timestamp,
}

/// The rule that decided, for traces and metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rule {
    /// 1: scope first.
    Scope,
    /// The primary's own index is the truth.
    Authoritative,
    /// 2: by digest, immutable.
    Digest,
    /// 3: every condition of freshness holds.
    Fresh,
    /// 3a: the session is not live, or closed time is too far behind.
    StaleSession,
    /// 3b: the token is newer than what is applied here.
    NewerToken,
    /// 3c: a write intent is open.
    WriteIntent,
    /// 3d: push sessions get the primary's answer.
    PushSession,
    /// 3e: `Outport-Min-Offset` is not applied.
    MinOffset,
    /// 4: unknown here.
    Unknown,
    /// 5: the primary is unreachable.
    Unreachable,
}

impl Rule {
    /// Its name in traces and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Scope => "scope",
            Self::Authoritative => "authoritative",
            Self::Digest => "digest",
            Self::Fresh => "fresh",
            Self::StaleSession => "stale-session",
            Self::NewerToken => "newer-token",
            Self::WriteIntent => "write-intent",
            Self::PushSession => "push-session",
            Self::MinOffset => "min-offset",
            Self::Unknown => "unknown",
            Self::Unreachable => "unreachable",
        }
    }
}

/// Decides one pull.
pub fn decide(facts: &Facts) -> (Decision, Rule) {
    if !facts.may_pull {
        return (Decision::Denied, Rule::Scope);
    }
    match (facts.role, facts.kind) {
        (Role::Primary, _) => (authoritative(facts), Rule::Authoritative),
        (Role::Secondary, Kind::Digest | Kind::Existence) => by_digest(facts),
        (Role::Secondary, Kind::Tag | Kind::Referrers | Kind::Listing) => movable(facts),
    }
}

/// Bytes that the primary's index names and its disk lost may come back: never a "no".
fn authoritative(facts: &Facts) -> Decision {
    match (facts.known, facts.local) {
        (true, true) => Decision::Serve,
        (true, false) => Decision::Unavailable,
        (false, _) => Decision::NotFound,
    }
}

fn by_digest(facts: &Facts) -> (Decision, Rule) {
    let push_session = facts.kind == Kind::Existence && facts.holds_push;
    match (facts.known, facts.local) {
        // A push session leaves out what it is told is there: a stale yes would break it.
        (true, _) if push_session && facts.reachable => (Decision::Revalidate, Rule::PushSession),
        (true, true) if push_session => (Decision::Serve, Rule::Unreachable),
        // Content never changes, but this site just led its deletion to the primary.
        (true, _) if facts.intent_open && facts.reachable => (Decision::Revalidate, Rule::WriteIntent),
        (true, true) => (Decision::Serve, Rule::Digest),
        (true, false) if facts.reachable => (Decision::Fill, Rule::Digest),
        (true, false) => (Decision::Unavailable, Rule::Unreachable),
        (false, _) if facts.remembered_no && unmet(facts).is_none() => (Decision::NotFound, Rule::Unknown),
        (false, _) if !facts.reachable => (Decision::Unavailable, Rule::Unreachable),
        (false, _) if facts.kind == Kind::Digest => (Decision::Fill, Rule::Unknown),
        (false, _) => (Decision::Revalidate, Rule::Unknown),
    }
}

fn movable(facts: &Facts) -> (Decision, Rule) {
    let unmet = unmet(facts);
    if !facts.known {
        return match unmet {
            None if facts.remembered_no => (Decision::NotFound, Rule::Unknown),
            _ if facts.reachable => (Decision::Revalidate, Rule::Unknown),
            _ => (Decision::Unavailable, Rule::Unreachable),
        };
    }
    match unmet {
        None if facts.local => (Decision::Serve, Rule::Fresh),
        None if facts.reachable => (Decision::Fill, Rule::Fresh),
        None => (Decision::Unavailable, Rule::Unreachable),
        Some(Unmet { rule, until: Some(until) }) if !facts.waited => {
            (Decision::WaitThenServe { until }, rule)
        }
        Some(Unmet { rule, .. }) if facts.reachable => (Decision::Revalidate, rule),
        Some(_) if !facts.local || facts.stale_max.is_some_and(|max| facts.age > max) => {
            (Decision::Unavailable, Rule::Unreachable)
        }
        Some(_) => (Decision::Serve, Rule::Unreachable),
    }
}

/// A condition of rule 3 that does not hold.
struct Unmet {
    rule: Rule,
    /// What would make all of them hold, when waiting can.
    until: Option<Until>,
}

/// Those that waiting cannot mend come first: there is no use in waiting for the others then.
fn unmet(facts: &Facts) -> Option<Unmet> {
    let at_once = |rule| Some(Unmet { rule, until: None });
    if !facts.session_live || facts.age > facts.staleness_bound {
        return at_once(Rule::StaleSession);
    }
    if facts.intent_open {
        return at_once(Rule::WriteIntent);
    }
    if facts.holds_push {
        return at_once(Rule::PushSession);
    }
    let token = Until {
        applied: facts.token_offset.unwrap_or_default(),
        closed_time: match (facts.token_offset, facts.token_issued_at) {
            (None, Some(issued_at)) => issued_at.plus(Duration::from_secs(1)),
            _ => Timestamp::default(),
        },
    };
    let asked = facts.min_offset.unwrap_or_default();
    let newer_token = token.applied > facts.applied || token.closed_time > facts.closed_time;
    if !newer_token && asked <= facts.applied {
        return None;
    }
    let until = Until { applied: token.applied.max(asked), closed_time: token.closed_time };
    let primary_now = facts.closed_time.plus(facts.age);
    let in_reach = until.closed_time.since(primary_now) <= facts.wait_max;
    let rule = if newer_token { Rule::NewerToken } else { Rule::MinOffset };
    Some(Unmet { rule, until: in_reach.then_some(until) })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// A warm tag on a connected secondary.
    fn warm(kind: Kind) -> Facts {
        Facts {
            role: Role::Secondary,
            kind,
            may_pull: true,
            holds_push: false,
            known: true,
            local: true,
            remembered_no: false,
            session_live: true,
            reachable: true,
            age: Duration::from_millis(250),
            staleness_bound: SECOND,
            stale_max: None,
            applied: Offset::new(1, 10),
            closed_time: Timestamp::from_secs(1_000),
            token_offset: None,
            token_issued_at: None,
            min_offset: None,
            intent_open: false,
            waited: false,
            wait_max: Duration::from_millis(150),
        }
    }

    fn wait(seq: u64, closed_secs: u64) -> Decision {
        let applied = if seq == 0 { Offset::ZERO } else { Offset::new(1, seq) };
        let until = Until { applied, closed_time: Timestamp::from_secs(closed_secs) };
        Decision::WaitThenServe { until }
    }

    #[test]
    fn the_table() {
        use Decision::*;
        use Kind::*;
        type Row = (&'static str, Kind, fn(&mut Facts), Decision, Rule);
        let cut = |facts: &mut Facts| {
            (facts.session_live, facts.reachable, facts.age) = (false, false, 60 * SECOND);
        };
        const NEWER: Offset = Offset::new(1, 11);
        #[rustfmt::skip]
        let rows: &[Row] = &[
            // what                                kind       facts beside a warm one                                   decision           rule
            ("1 scope",                            Tag,       |f| f.may_pull = false,                                   Denied,            Rule::Scope),
            ("1 scope, also at the primary",       Digest,    |f| { f.may_pull = false; f.role = Role::Primary },       Denied,            Rule::Scope),
            ("1 scope, before unknown",            Digest,    |f| { f.may_pull = false; f.known = false },              Denied,            Rule::Scope),
            ("the primary knows",                  Tag,       |f| f.role = Role::Primary,                               Serve,             Rule::Authoritative),
            ("the primary has no stale session",   Tag,       |f| { f.role = Role::Primary; f.session_live = false },   Serve,             Rule::Authoritative),
            ("the primary says no",                Tag,       |f| { f.role = Role::Primary; f.known = false },          NotFound,          Rule::Authoritative),
            ("the primary lost bytes",             Digest,    |f| { f.role = Role::Primary; f.local = false },          Unavailable,       Rule::Authoritative),
            ("2 linked and local",                 Digest,    |_| (),                                                   Serve,             Rule::Digest),
            ("2 linked and local, push token",     Digest,    |f| f.holds_push = true,                                  Serve,             Rule::Digest),
            ("2 linked, not local",                Digest,    |f| f.local = false,                                      Fill,              Rule::Digest),
            ("2 being deleted from here",          Digest,    |f| f.intent_open = true,                                 Revalidate,        Rule::WriteIntent),
            ("2 HEAD, being deleted from here",    Existence, |f| f.intent_open = true,                                 Revalidate,        Rule::WriteIntent),
            ("2 being deleted, cut off",           Digest,    |f| { f.reachable = false; f.intent_open = true },        Serve,             Rule::Digest),
            ("2 HEAD",                             Existence, |_| (),                                                   Serve,             Rule::Digest),
            ("3d HEAD in a push session",          Existence, |f| f.holds_push = true,                                  Revalidate,        Rule::PushSession),
            ("3 fresh",                            Tag,       |_| (),                                                   Serve,             Rule::Fresh),
            ("3 fresh, bytes not here",            Tag,       |f| f.local = false,                                      Fill,              Rule::Fresh),
            ("3a at the bound",                    Tag,       |f| f.age = SECOND,                                       Serve,             Rule::Fresh),
            ("3a past the bound",                  Tag,       |f| f.age = SECOND + Duration::from_micros(1),            Revalidate,        Rule::StaleSession),
            ("3a no heartbeats",                   Tag,       |f| f.session_live = false,                               Revalidate,        Rule::StaleSession),
            ("3b token at what is applied",        Tag,       |f| f.token_offset = Some(f.applied),                     Serve,             Rule::Fresh),
            ("3b token newer",                     Tag,       |f| f.token_offset = Some(NEWER),                         wait(11, 0),       Rule::NewerToken),
            ("3b token newer, waited",             Tag,       |f| { f.token_offset = Some(NEWER); f.waited = true },    Revalidate,        Rule::NewerToken),
            ("3b token of a later epoch",          Tag,       |f| { f.token_offset = Some(Offset::new(2, 1)); f.waited = true }, Revalidate, Rule::NewerToken),
            ("3b token of an earlier epoch",       Tag,       |f| f.token_offset = Some(Offset::new(0, 99)),            Serve,             Rule::Fresh),
            ("3b iat closed",                      Tag,       |f| f.token_issued_at = Some(Timestamp::from_secs(999)),  Serve,             Rule::Fresh),
            ("3b iat about to close",              Tag,       |f| { f.token_issued_at = Some(Timestamp::from_secs(1_000)); f.age = 900 * SECOND / 1000 }, wait(0, 1_001), Rule::NewerToken),
            ("3b iat far from closing",            Tag,       |f| f.token_issued_at = Some(Timestamp::from_secs(1_000)), Revalidate,       Rule::NewerToken),
            ("3b our own token's iat is nothing",  Tag,       |f| { f.token_offset = Some(f.applied); f.token_issued_at = Some(Timestamp::from_secs(2_000)) }, Serve, Rule::Fresh),
            ("3c",                                 Tag,       |f| f.intent_open = true,                                 Revalidate,        Rule::WriteIntent),
            ("3c before waiting",                  Tag,       |f| { f.intent_open = true; f.token_offset = Some(NEWER) }, Revalidate,      Rule::WriteIntent),
            ("3d",                                 Tag,       |f| f.holds_push = true,                                  Revalidate,        Rule::PushSession),
            ("3e applied",                         Tag,       |f| f.min_offset = Some(f.applied),                       Serve,             Rule::Fresh),
            ("3e not applied",                     Tag,       |f| f.min_offset = Some(NEWER),                           wait(11, 0),       Rule::MinOffset),
            ("3e not applied, waited",             Tag,       |f| { f.min_offset = Some(NEWER); f.waited = true },      Revalidate,        Rule::MinOffset),
            ("4 tag unknown",                      Tag,       |f| f.known = false,                                      Revalidate,        Rule::Unknown),
            ("4 digest unknown",                   Digest,    |f| f.known = false,                                      Fill,              Rule::Unknown),
            ("4 digest unknown, bytes by chance",  Digest,    |f| { f.known = false; f.local = true },                  Fill,              Rule::Unknown),
            ("4 HEAD unknown",                     Existence, |f| f.known = false,                                      Revalidate,        Rule::Unknown),
            ("4 remembered no",                    Tag,       |f| { f.known = false; f.remembered_no = true },          NotFound,          Rule::Unknown),
            ("4 remembered no, newer token",       Tag,       |f| { f.known = false; f.remembered_no = true; f.token_offset = Some(NEWER) }, Revalidate, Rule::Unknown),
            ("4 remembered no, push session",      Existence, |f| { f.known = false; f.remembered_no = true; f.holds_push = true }, Revalidate, Rule::Unknown),
            ("5 tag known",                        Tag,       |f| f.reachable = false,                                  Serve,             Rule::Fresh),
            ("5 digest unknown",                   Digest,    |f| { f.reachable = false; f.known = false },             Unavailable,       Rule::Unreachable),
            ("5 digest not local",                 Digest,    |f| { f.reachable = false; f.local = false },             Unavailable,       Rule::Unreachable),
            ("6 referrers",                        Referrers, |_| (),                                                   Serve,             Rule::Fresh),
            ("6 referrers, none here",             Referrers, |f| f.known = false,                                      Revalidate,        Rule::Unknown),
            ("6 referrers in a push session",      Referrers, |f| f.holds_push = true,                                  Revalidate,        Rule::PushSession),
            ("6 listing",                          Listing,   |_| (),                                                   Serve,             Rule::Fresh),
        ];
        for (what, kind, change, decision, rule) in rows {
            let mut facts = warm(*kind);
            change(&mut facts);
            assert_eq!(decide(&facts), (*decision, *rule), "{what}: {facts:?}");
        }
        #[rustfmt::skip]
        let cut_off: &[Row] = &[
            ("5 tag known",                Tag,       |_| (),                                  Serve,       Rule::Unreachable),
            ("5 push session",             Tag,       |f| f.holds_push = true,                 Serve,       Rule::Unreachable),
            ("5 newer token",              Tag,       |f| f.token_offset = Some(NEWER),        Serve,       Rule::Unreachable),
            ("5 tag unknown",              Tag,       |f| f.known = false,                     Unavailable, Rule::Unreachable),
            ("5 remembered no",            Tag,       |f| { f.known = false; f.remembered_no = true }, Unavailable, Rule::Unreachable),
            ("5 at the limit",             Tag,       |f| f.stale_max = Some(60 * SECOND),     Serve,       Rule::Unreachable),
            ("5 past the limit",           Tag,       |f| f.stale_max = Some(59 * SECOND),     Unavailable, Rule::Unreachable),
            ("5 digests have no age",      Digest,    |f| f.stale_max = Some(59 * SECOND),     Serve,       Rule::Digest),
            ("5 HEAD in a push session",   Existence, |f| f.holds_push = true,                 Serve,       Rule::Unreachable),
            ("5 bytes not here",           Tag,       |f| f.local = false,                     Unavailable, Rule::Unreachable),
        ];
        for (what, kind, change, decision, rule) in cut_off {
            let mut facts = warm(*kind);
            cut(&mut facts);
            change(&mut facts);
            assert_eq!(decide(&facts), (*decision, *rule), "{what}: {facts:?}");
        }
    }

    prop_compose! {
        fn any_facts()(
            primary: bool,
            kind in prop::sample::select(vec![
                Kind::Tag, Kind::Digest, Kind::Existence, Kind::Referrers, Kind::Listing,
            ]),
            flags: [bool; 9],
            age_ms in 0_u64..3_000,
            stale_max in prop::option::of(0_u64..3_000),
            token_offset in prop::option::of(8_u64..13),
            token_issued_at in prop::option::of(997_u64..1_003),
            min_offset in prop::option::of(8_u64..13),
        ) -> Facts {
            let [may_pull, holds_push, known, local, remembered_no, session_live, reachable, intent_open, waited] = flags;
            Facts {
                role: if primary { Role::Primary } else { Role::Secondary },
                may_pull, holds_push, known, local, remembered_no, session_live, reachable, intent_open, waited,
                age: Duration::from_millis(age_ms),
                stale_max: stale_max.map(Duration::from_millis),
                token_offset: token_offset.map(|seq| Offset::new(1, seq)),
                token_issued_at: token_issued_at.map(Timestamp::from_secs),
                min_offset: min_offset.map(|seq| Offset::new(1, seq)),
                ..warm(kind)
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4_000))]

        #[test]
        fn what_holds_whatever_the_facts(facts in any_facts()) {
            let (decision, rule) = decide(&facts);
            let secondary = facts.role == Role::Secondary;
            let immutable = matches!(facts.kind, Kind::Digest | Kind::Existence);
            prop_assert_eq!(decision == Decision::Denied, !facts.may_pull);
            if decision == Decision::NotFound {
                prop_assert!(!facts.known, "a known thing is never denied to exist");
                prop_assert!(!secondary || facts.remembered_no, "a no is the primary's word");
                prop_assert!(!secondary || facts.session_live, "cut off, a no is not known");
            }
            if decision == Decision::Serve {
                prop_assert!(facts.known && facts.local);
                if secondary && !immutable && rule != Rule::Unreachable {
                    prop_assert!(facts.session_live && facts.age <= facts.staleness_bound);
                    prop_assert!(!facts.holds_push && !facts.intent_open);
                    prop_assert!(facts.token_offset.is_none_or(|offset| offset <= facts.applied));
                    prop_assert!(facts.min_offset.is_none_or(|offset| offset <= facts.applied));
                }
                if rule == Rule::Unreachable {
                    prop_assert!(!facts.reachable, "stale while the primary could be asked");
                }
            }
            if secondary && matches!(decision, Decision::Revalidate | Decision::Fill) {
                prop_assert!(facts.reachable, "asks a primary that is not there");
            }
            if let Decision::WaitThenServe { until } = decision {
                prop_assert!(!facts.waited && facts.session_live && secondary);
                prop_assert!(until.applied > facts.applied || until.closed_time > facts.closed_time);
            }
            let asks = matches!(
                decision,
                Decision::Revalidate | Decision::Fill | Decision::WaitThenServe { .. }
            );
            prop_assert!(secondary || !asks, "the primary has nobody to ask");
            let undisturbed = !facts.intent_open && (facts.kind == Kind::Digest || !facts.holds_push);
            if immutable && facts.may_pull && facts.known && facts.local && undisturbed {
                prop_assert_eq!(decision, Decision::Serve, "what is linked and local needs nobody");
            }
            if secondary && facts.may_pull && facts.reachable {
                prop_assert!(decision != Decision::Unavailable, "the primary could be asked");
            }
        }

        #[test]
        fn waiting_ends(facts in any_facts()) {
            let (decision, _) = decide(&Facts { waited: true, ..facts });
            let waits = matches!(decision, Decision::WaitThenServe { .. });
            prop_assert!(!waits);
        }

        #[test]
        fn a_wait_that_comes_true_is_served(facts in any_facts()) {
            if let (Decision::WaitThenServe { until }, _) = decide(&facts) {
                let applied = until.applied.max(facts.applied);
                let closed_time = until.closed_time.max(facts.closed_time);
                let (decision, rule) = decide(&Facts { applied, closed_time, waited: true, ..facts });
                let expected = match (facts.local, facts.reachable) {
                    (true, _) => (Decision::Serve, Rule::Fresh),
                    (false, true) => (Decision::Fill, Rule::Fresh),
                    (false, false) => (Decision::Unavailable, Rule::Unreachable),
                };
                prop_assert_eq!((decision, rule), expected);
            }
        }
    }
}
