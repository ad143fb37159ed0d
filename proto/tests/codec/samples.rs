//! Arbitrary values of everything that has a binary form.
#![cfg(test)]

use bytes::Bytes;
use outport_proto::{
    Algorithm, Change, Digest, Event, IntentId, ManifestPut, Offset, Reference, RepoName, SiteName, Tag,
    Timestamp, Traceparent,
    codec::encode_event,
    frame::{
        Ack, AuthMode, Behind, BehindLink, Canary, CertificateRequests, Certificates, ClockOffset,
        Credentials, DiffStep, Echo, Fill, FromPrimary, FromSecondary, Heartbeat, Hello, Join, Joined, Keys,
        MissingBlobs, Question, Reading, Refusal, RegistryChallenge, Request, Response, Resume, SealKey,
        SiteDetail, SiteReport, Spread, Verdict, Welcome,
    },
    oci::{ChildKind, Descriptor, Platform},
    snapshot::{Deleted, Entry, SnapshotPlace},
};
use proptest::{collection::vec, option, prelude::*};

pub(crate) fn repo() -> impl Strategy<Value = RepoName> {
    "[a-z0-9]{1,8}(/[a-z0-9]{1,8}){0,2}".prop_map(|text| text.parse().unwrap())
}

pub(crate) fn tag() -> impl Strategy<Value = Tag> {
    "[a-zA-Z0-9_][a-zA-Z0-9._-]{0,12}".prop_map(|text| text.parse().unwrap())
}

pub(crate) fn site() -> impl Strategy<Value = SiteName> {
    "[a-z][a-z0-9]{0,12}".prop_map(|text| text.parse().unwrap())
}

pub(crate) fn digest() -> impl Strategy<Value = Digest> {
    (any::<bool>(), any::<[u8; 8]>()).prop_map(|(long, content)| {
        Digest::of(if long { Algorithm::Sha512 } else { Algorithm::Sha256 }, &content)
    })
}

pub(crate) fn offset() -> impl Strategy<Value = Offset> {
    (any::<u64>(), any::<u64>()).prop_map(|(epoch, seq)| Offset::new(epoch, seq))
}

fn time() -> impl Strategy<Value = Timestamp> {
    any::<u64>().prop_map(Timestamp::from_micros)
}

fn reference() -> impl Strategy<Value = Reference> {
    prop_oneof![tag().prop_map(Reference::Tag), digest().prop_map(Reference::Digest)]
}

fn platform() -> impl Strategy<Value = Platform> {
    "[a-z]{1,8}/[a-z0-9]{1,8}(/v[0-9])?".prop_map(|text| text.parse().unwrap())
}

fn descriptor() -> impl Strategy<Value = Descriptor> {
    let kind = prop_oneof![Just(ChildKind::Manifest), Just(ChildKind::Blob), Just(ChildKind::Foreign)];
    (digest(), any::<u64>(), kind, option::of(platform()))
        .prop_map(|(digest, size, kind, platform)| Descriptor { digest, size, kind, platform })
}

pub(crate) fn manifest() -> impl Strategy<Value = ManifestPut> {
    let identity = (repo(), digest(), ".{0,20}", any::<u64>(), option::of(vec(any::<u8>(), 0..200)));
    let relations = (
        vec(tag(), 0..3),
        option::of(digest()),
        (option::of(".{0,12}"), option::of(platform())),
        vec((".{0,8}", ".{0,8}"), 0..3),
        vec(descriptor(), 0..4),
    );
    (identity, relations).prop_map(
        |(
            (repo, digest, media_type, size, bytes),
            (tags, subject, (artifact_type, platform), annotations, children),
        )| {
            ManifestPut {
                repo,
                digest,
                media_type,
                size,
                bytes: bytes.map(Bytes::from),
                tags,
                subject,
                artifact_type,
                platform,
                annotations,
                children,
            }
        },
    )
}

pub(crate) fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        (repo(), digest(), any::<u64>()).prop_map(|(repo, digest, size)| Change::BlobCommitted {
            repo,
            digest,
            size
        }),
        (repo(), digest(), any::<u64>(), option::of(repo()))
            .prop_map(|(repo, digest, size, from)| Change::BlobMounted { repo, digest, size, from }),
        manifest().prop_map(|put| Change::ManifestPut(Box::new(put))),
        (repo(), tag()).prop_map(|(repo, tag)| Change::TagDeleted { repo, tag }),
        (repo(), digest()).prop_map(|(repo, digest)| Change::ManifestDeleted { repo, digest }),
        (repo(), digest()).prop_map(|(repo, digest)| Change::BlobDeleted { repo, digest }),
        repo().prop_map(|repo| Change::RepositoryDeleted { repo }),
        offset().prop_map(|fork| Change::EpochBegan { fork }),
    ]
}

pub(crate) fn event() -> impl Strategy<Value = Event> {
    let intent = option::of((site(), any::<u64>()).prop_map(|(site, number)| IntentId { site, number }));
    (offset(), time(), ".{0,12}", intent, change()).prop_map(|(offset, time, actor, intent, change)| Event {
        offset,
        time,
        actor,
        intent,
        change,
    })
}

pub(crate) fn entry() -> impl Strategy<Value = Entry> {
    let deleted = prop_oneof![
        (repo(), tag()).prop_map(|(repo, tag)| Deleted::Tag(repo, tag)),
        (repo(), digest()).prop_map(|(repo, digest)| Deleted::Manifest(repo, digest)),
        (repo(), digest()).prop_map(|(repo, digest)| Deleted::Blob(repo, digest)),
        repo().prop_map(Deleted::Repository),
    ];
    prop_oneof![
        (repo(), tag(), digest(), offset(), time())
            .prop_map(|(repo, tag, digest, offset, time)| { Entry::Tag { repo, tag, digest, offset, time } }),
        (manifest(), offset())
            .prop_map(|(manifest, offset)| Entry::Manifest { manifest: Box::new(manifest), offset }),
        (repo(), digest(), any::<u64>(), offset()).prop_map(|(repo, digest, size, offset)| Entry::Link {
            repo,
            digest,
            size,
            offset
        }),
        (deleted, offset()).prop_map(|(of, offset)| Entry::Tombstone { of, offset }),
    ]
}

fn keys() -> impl Strategy<Value = Keys> {
    let seal = (any::<u32>(), any::<[u8; 32]>()).prop_map(|(id, secret)| SealKey { id, secret });
    (auth(), vec(".{0,8}", 0..3), vec(seal, 0..3), any::<u64>())
        .prop_map(|(auth, public_pull, seal, generation)| Keys { auth, public_pull, seal, generation })
}

fn auth() -> impl Strategy<Value = AuthMode> {
    let roots = vec(vec(any::<u8>(), 0..8), 0..3);
    let challenge = prop_oneof![
        ".{0,8}".prop_map(|realm| RegistryChallenge::Basic { realm }),
        (".{0,8}", ".{0,8}").prop_map(|(realm, service)| RegistryChallenge::Bearer { realm, service }),
    ];
    prop_oneof![
        (".{0,20}", ".{0,20}").prop_map(|(jwks, issuer)| AuthMode::Outport { jwks, issuer }),
        (".{0,20}", ".{0,20}", roots).prop_map(|(jwks, issuer, roots)| AuthMode::Token {
            jwks,
            issuer,
            roots
        }),
        (option::of(challenge), any::<u32>(), any::<u32>(), any::<u32>(), any::<u64>()).prop_map(
            |(challenge, allow_seconds, deny_seconds, cached_max, revoked)| AuthMode::Delegated {
                challenge,
                allow_seconds,
                deny_seconds,
                cached_max,
                revoked: Timestamp::from_micros(revoked),
            }
        ),
        Just(AuthMode::Anonymous),
    ]
}

fn question() -> impl Strategy<Value = Question> {
    prop_oneof![
        Just(Question::Ping),
        Just(Question::Catalog),
        repo().prop_map(Question::Repository),
        (repo(), reference()).prop_map(|(repo, reference)| Question::Manifest { repo, reference }),
        (repo(), digest()).prop_map(|(repo, digest)| Question::Blob { repo, digest }),
    ]
}

pub(crate) fn from_secondary() -> impl Strategy<Value = FromSecondary> {
    let has = (option::of(offset()), option::of(digest()), any::<u64>());
    let hello = (vec(any::<u16>(), 0..4), site(), ".{0,8}", ".{0,8}", has, option::of(".{0,8}")).prop_map(
        |(versions, site, node, program, (have, have_digest, epoch), cluster)| {
            FromSecondary::Hello(Hello { versions, site, node, program, have, have_digest, epoch, cluster })
        },
    );
    let ack = ((offset(), offset(), offset(), offset()), report(), vec(behind(), 0..3)).prop_map(
        |((received, durable, applied, complete), report, behind)| {
            FromSecondary::Ack(Ack { received, durable, applied, complete, report, behind })
        },
    );
    let details = vec(detail(), 0..3).prop_map(FromSecondary::Details);
    prop_oneof![hello, ack, details, any::<u64>().prop_map(FromSecondary::Probe)]
}

fn detail() -> impl Strategy<Value = SiteDetail> {
    let spread = || {
        option::of(any::<[u64; 2]>().prop_map(|[p50_micros, p99_micros]| Spread { p50_micros, p99_micros }))
    };
    let clock = any::<(i64, u64)>()
        .prop_map(|(ahead_micros, error_micros)| ClockOffset { ahead_micros, error_micros });
    let numbers = (option::of(any::<u64>()), spread(), spread(), option::of(any::<u32>()), any::<[u64; 2]>());
    let pulls = vec((".{0,8}", any::<u64>()), 0..3);
    let canary = (any::<u64>(), option::of(any::<u64>()), option::of(".{0,8}"))
        .prop_map(|(interval_micros, lag_micros, error)| Canary { interval_micros, lag_micros, error });
    let missing =
        (repo(), any::<[u64; 2]>()).prop_map(|(repo, [blobs, bytes])| MissingBlobs { repo, blobs, bytes });
    let fill = (repo(), digest(), any::<u64>(), option::of(any::<u64>())).prop_map(
        |(repo, digest, received_bytes, size_bytes)| Fill { repo, digest, received_bytes, size_bytes },
    );
    let place = (option::of(any::<(i32, i32)>()), option::of(canary), vec(missing, 0..3), vec(fill, 0..3));
    let texts = (pulls, option::of(clock), option::of((".{0,8}", time())), place);
    (site(), numbers, texts).prop_map(
        |(
            site,
            (eta_micros, applied, complete, hits_ppm, bytes),
            (pulls, clock, last_error, (location, canary, missing, fills)),
        )| {
            SiteDetail {
                site,
                eta_micros,
                applied,
                complete,
                pulls,
                hits_ppm,
                served_bytes: bytes[0],
                upstream_bytes: bytes[1],
                clock,
                last_error,
                location,
                canary,
                missing,
                fills,
            }
        },
    )
}

fn report() -> impl Strategy<Value = SiteReport> {
    (any::<[u64; 7]>(), any::<bool>()).prop_map(|(n, limited)| SiteReport {
        store_bytes: n[0],
        store_limit_bytes: limited.then_some(n[1]),
        store_blobs: n[2],
        missing_blobs: n[3],
        log_bytes: n[4],
        lag_applied_micros: n[5],
        lag_complete_micros: n[6],
        staleness_bound_micros: n[0],
    })
}

fn behind() -> impl Strategy<Value = Behind> {
    let link = (any::<u64>(), 0..3).prop_map(|(rtt_micros, link)| match link {
        0 => BehindLink::Down,
        1 => BehindLink::Up { rtt_micros },
        _ => BehindLink::Snapshot { rtt_micros },
    });
    let offsets = (offset(), offset(), offset(), offset());
    let alarm = (option::of(".{0,8}"), any::<u64>());
    ((site(), vec(site(), 0..3), ".{0,8}"), link, any::<u64>(), offsets, report(), alarm).prop_map(
        |(
            (site, via, program),
            link,
            silent_micros,
            (received, durable, applied, complete),
            report,
            (alarm, forks_refused),
        )| Behind {
            site,
            via,
            program,
            link,
            silent_micros,
            received,
            durable,
            applied,
            complete,
            report,
            alarm,
            forks_refused,
        },
    )
}

pub(crate) fn from_primary() -> impl Strategy<Value = FromPrimary> {
    let resume = prop_oneof![
        Just(Resume::Tail),
        Just(Resume::Snapshot),
        offset().prop_map(|fork| Resume::Rewind { fork }),
    ];
    let welcome = (
        (any::<u16>(), ".{0,8}", offset(), offset(), resume),
        keys(),
        (".{0,8}", ".{0,8}", ".{0,8}", vec(site(), 0..3)),
    )
        .prop_map(
            |(
                (version, cluster, head, floor, resume),
                keys,
                (token_realm, token_service, public_url, path),
            )| {
                FromPrimary::Welcome(Box::new(Welcome {
                    version,
                    cluster,
                    head,
                    floor,
                    resume,
                    keys,
                    token_realm,
                    token_service,
                    public_url,
                    path,
                }))
            },
        );
    let refused = prop_oneof![
        vec(any::<u16>(), 0..3).prop_map(Refusal::Version),
        ".{0,8}".prop_map(Refusal::Site),
        ".{0,8}".prop_map(Refusal::Cluster),
        ".{0,8}".prop_map(Refusal::Violation),
        (offset(), any::<u64>(), offset()).prop_map(|(have, epoch, head)| Refusal::Fork {
            have,
            epoch,
            head
        }),
        ".{0,8}".prop_map(Refusal::Unready),
        vec(site(), 0..3).prop_map(Refusal::Ring),
    ];
    let heartbeat = (offset(), time(), time(), any::<u64>(), any::<[u8; 32]>(), offset(), any::<bool>())
        .prop_map(|(head, closed_time, now, log_bytes, state_hash, state_at, unsure)| {
            FromPrimary::Heartbeat(Heartbeat {
                head,
                closed_time,
                now,
                log_bytes,
                state_hash,
                state_at,
                unsure,
            })
        });
    let echo =
        any::<(u64, u64)>().prop_map(|(probe_micros, came_at_micros)| Echo { probe_micros, came_at_micros });
    let reading = (any::<u64>(), any::<u64>(), option::of(echo)).prop_map(|(at_micros, age_micros, echo)| {
        FromPrimary::Reading(Reading { at_micros, age_micros, echo })
    });
    prop_oneof![
        welcome,
        reading,
        refused.prop_map(FromPrimary::Refused),
        vec(event().prop_map(|event| encode_event(&event).unwrap()), 0..4).prop_map(FromPrimary::Append),
        heartbeat,
        keys().prop_map(FromPrimary::Keys),
        vec((offset(), traceparent()), 0..4).prop_map(FromPrimary::Traces),
    ]
}

pub(crate) fn traceparent() -> impl Strategy<Value = Traceparent> {
    (any::<[u8; 16]>(), any::<[u8; 8]>(), any::<bool>())
        .prop_map(|(trace_id, span_id, sampled)| Traceparent { trace_id, span_id, sampled })
}

pub(crate) fn request() -> impl Strategy<Value = Request> {
    prop_oneof![
        (repo(), reference()).prop_map(|(repo, reference)| Request::Resolve { repo, reference }),
        (repo(), digest()).prop_map(|(repo, digest)| Request::Link { repo, digest }),
        (repo(), digest(), any::<u64>()).prop_map(|(repo, digest, offset)| Request::Fetch {
            repo,
            digest,
            offset
        }),
        (repo(), digest()).prop_map(|(repo, digest)| Request::Referrers { repo, digest }),
        option::of((offset(), entry())).prop_map(|place| Request::Snapshot {
            resume: place.map(|(from, last)| SnapshotPlace { from, after: last.key() }),
        }),
        (site(), vec(site(), 0..3)).prop_map(|(site, via)| Request::SiteKeys { site, via }),
        Just(Request::Diff(DiffStep::Sums)),
        vec(any::<u16>(), 0..4).prop_map(|buckets| Request::Diff(DiffStep::Entries(buckets))),
        (option::of(".{0,12}".prop_map(Credentials)), question())
            .prop_map(|(authorization, question)| Request::Authorize { authorization, question }),
        ".{0,12}".prop_map(|unknown| Request::OwnKeys { unknown }),
        (site(), vec(site(), 0..3), certificate_requests())
            .prop_map(|(site, via, requests)| Request::Certify { site, via, requests }),
    ]
}

fn certificate_requests() -> impl Strategy<Value = CertificateRequests> {
    (der(), option::of(der())).prop_map(|(node, https)| CertificateRequests { node, https })
}

fn certificates() -> impl Strategy<Value = Certificates> {
    (vec(der(), 0..3), option::of(vec(der(), 0..3)), vec(der(), 0..3))
        .prop_map(|(node, https, authorities)| Certificates { node, https, authorities })
}

fn der() -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..8)
}

pub(crate) fn join() -> impl Strategy<Value = Join> {
    (site(), any::<[u8; 32]>(), certificate_requests(), ".{0,12}", ".{0,12}")
        .prop_map(|(site, secret, requests, node, program)| Join { site, secret, requests, node, program })
}

pub(crate) fn joined() -> impl Strategy<Value = Joined> {
    prop_oneof![certificates().prop_map(Joined::Joined), ".{0,12}".prop_map(Joined::Refused)]
}

pub(crate) fn response() -> impl Strategy<Value = Response> {
    prop_oneof![
        (manifest(), offset())
            .prop_map(|(manifest, at)| Response::Manifest { manifest: Box::new(manifest), at }),
        (any::<u64>(), offset()).prop_map(|(size, at)| Response::Linked { size, at }),
        offset().prop_map(|at| Response::NotFound { at }),
        any::<u64>().prop_map(|size| Response::Body { size }),
        (vec(manifest(), 0..3), offset()).prop_map(|(manifests, at)| Response::Manifests { manifests, at }),
        (offset(), any::<bool>()).prop_map(|(from, resumed)| Response::SnapshotBegin { from, resumed }),
        vec(entry(), 0..4).prop_map(Response::SnapshotPart),
        (offset(), any::<u64>()).prop_map(|(until, entries)| Response::SnapshotEnd { until, entries }),
        ".{0,12}".prop_map(|reason| Response::Unavailable { reason }),
        keys().prop_map(Response::SiteKeys),
        (offset(), vec(any::<[u8; 32]>(), 0..4)).prop_map(|(at, sums)| Response::DiffSums { at, sums }),
        vec(entry(), 0..4).prop_map(Response::DiffPart),
        (any::<u16>(), offset(), offset(), any::<u64>()).prop_map(|(bucket, since, until, entries)| {
            Response::DiffBucket { bucket, since, until, entries }
        }),
        prop_oneof![
            Just(Verdict::Yes),
            Just(Verdict::Unauthorized),
            Just(Verdict::Denied),
            Just(Verdict::Unknown)
        ]
        .prop_map(Response::Authorized),
        certificates().prop_map(Response::Certified),
    ]
}
