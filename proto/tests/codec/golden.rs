//! The bytes of one value of every kind. A difference is a change of the wire and of every log
//! on disk: it needs another protocol version, not another golden file.
#![cfg(test)]

use std::{fmt::Debug, path::Path};

use bytes::Bytes;
use outport_proto::{
    Change, Digest, Event, IntentId, ManifestPut, Offset, RepoName, Timestamp, Traceparent,
    codec::{
        CodecError, WireFrame, decode_entries, decode_event, decode_frame, decode_value, encode_entries,
        encode_event, encode_frame, encode_value,
    },
    frame::{
        Ack, Asked, AuthMode, Behind, BehindLink, Canary, CertificateRequests, Certificates, ClockOffset,
        Credentials, DiffStep, Echo, Fill, FromPrimary, FromSecondary, Heartbeat, Hello, Join, Joined, Keys,
        LAG_UNKNOWN_MICROS, MissingBlobs, Question, Reading, Refusal, RegistryChallenge, Request, Response,
        Resume, SealKey, SiteDetail, SiteReport, Spread, Verdict, Welcome,
    },
    oci::{ChildKind, Descriptor, media_type},
    snapshot::{Deleted, Entry, EntryKey, SnapshotPlace},
};

/// Compares with `golden/NAME.hex`, both ways. With `OUTPORT_GOLDEN=write` in the environment a
/// missing file is written first.
fn check<T: PartialEq + Debug>(
    name: &str,
    value: &T,
    encode: impl Fn(&T) -> Result<Bytes, CodecError>,
    decode: impl Fn(&[u8]) -> Result<T, CodecError>,
) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(format!("{name}.hex"));
    let encoded = encode(value).unwrap();
    let hex = hex(&encoded);
    if !path.exists() && std::env::var("OUTPORT_GOLDEN").is_ok_and(|mode| mode == "write") {
        std::fs::write(&path, &hex).unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(hex, golden, "{name} is encoded otherwise than {}", path.display());
    assert_eq!(&decode(&encoded).unwrap(), value);
}

fn frame<F: WireFrame + PartialEq + Debug>(name: &str, frame: F) {
    check(name, &frame, encode_frame, decode_frame);
}

/// Sixteen bytes a line.
fn hex(bytes: &[u8]) -> String {
    let line = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ");
    bytes.chunks(16).map(|bytes| line(bytes) + "\n").collect()
}

fn manifest_put() -> ManifestPut {
    ManifestPut {
        repo: "team/app".parse().unwrap(),
        digest: Digest::sha256(b"{}"),
        media_type: media_type::OCI_MANIFEST.to_owned(),
        size: 2,
        bytes: Some(Bytes::from_static(b"{}")),
        tags: vec!["1".parse().unwrap(), "latest".parse().unwrap()],
        subject: Some(Digest::sha256(b"subject")),
        artifact_type: Some("application/example".to_owned()),
        platform: Some("linux/arm64/v8".parse().unwrap()),
        annotations: vec![("key".to_owned(), "välue".to_owned())],
        children: vec![
            Descriptor {
                digest: Digest::sha256(b"child"),
                size: 7,
                kind: ChildKind::Manifest,
                platform: Some("linux/amd64".parse().unwrap()),
            },
            Descriptor { digest: Digest::sha256(b"layer"), size: 8, kind: ChildKind::Blob, platform: None },
            Descriptor {
                digest: Digest::sha256(b"foreign"),
                size: 9,
                kind: ChildKind::Foreign,
                platform: None,
            },
        ],
    }
}

fn manifest_without_options() -> ManifestPut {
    ManifestPut {
        digest: Digest::of(outport_proto::Algorithm::Sha512, b"{}"),
        bytes: None,
        tags: Vec::new(),
        subject: None,
        artifact_type: None,
        platform: None,
        annotations: Vec::new(),
        children: Vec::new(),
        ..manifest_put()
    }
}

fn event_with(change: Change) -> Event {
    Event {
        offset: Offset::new(1, 4711),
        time: Timestamp::from_micros(1_700_000_000_000_000),
        actor: "alice".to_owned(),
        intent: None,
        change,
    }
}

#[test]
fn events() {
    let repo = || "team/app".parse().unwrap();
    let digest = Digest::sha256(b"blob");
    for (name, change) in [
        ("event-blob-committed", Change::BlobCommitted { repo: repo(), digest, size: 4 }),
        ("event-blob-mounted", Change::BlobMounted { repo: repo(), digest, size: 4, from: Some(repo()) }),
        (
            "event-blob-mounted-from-anywhere",
            Change::BlobMounted { repo: repo(), digest, size: 4, from: None },
        ),
        ("event-manifest-put", Change::ManifestPut(Box::new(manifest_put()))),
        ("event-manifest-put-least", Change::ManifestPut(Box::new(manifest_without_options()))),
        ("event-tag-deleted", Change::TagDeleted { repo: repo(), tag: "1".parse().unwrap() }),
        ("event-manifest-deleted", Change::ManifestDeleted { repo: repo(), digest }),
        ("event-blob-deleted", Change::BlobDeleted { repo: repo(), digest }),
        ("event-repository-deleted", Change::RepositoryDeleted { repo: repo() }),
        ("event-epoch-began", Change::EpochBegan { fork: Offset::new(1, 4710) }),
    ] {
        check(name, &event_with(change), encode_event, decode_event);
    }
    let led = Event {
        intent: Some(IntentId { site: "mumbai".parse().unwrap(), number: 0x0123_4567_89ab_cdef }),
        ..event_with(Change::TagDeleted { repo: repo(), tag: "1".parse().unwrap() })
    };
    check("event-led-by-a-site", &led, encode_event, decode_event);
}

fn entries() -> Vec<Entry> {
    let repo = || "team/app".parse().unwrap();
    let digest = Digest::sha256(b"blob");
    let offset = Offset::new(1, 2);
    let tombstone = |of| Entry::Tombstone { of, offset };
    vec![
        Entry::Tag {
            repo: repo(),
            tag: "1".parse().unwrap(),
            digest,
            offset,
            time: Timestamp::from_micros(3),
        },
        Entry::Manifest { manifest: Box::new(manifest_without_options()), offset },
        Entry::Link { repo: repo(), digest, size: 4, offset },
        tombstone(Deleted::Tag(repo(), "1".parse().unwrap())),
        tombstone(Deleted::Manifest(repo(), digest)),
        tombstone(Deleted::Blob(repo(), digest)),
        tombstone(Deleted::Repository(repo())),
    ]
}

#[test]
fn records() {
    check("entries", &entries(), |entries| encode_entries(entries), decode_entries);
    check("value", &(7_u32, Offset::new(1, 2), Some(true)), encode_value, decode_value);
}

fn traceparent() -> Traceparent {
    "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".parse().unwrap()
}

fn keys() -> Keys {
    Keys {
        auth: AuthMode::Outport {
            jwks: "{\"keys\":[]}".to_owned(),
            issuer: "https://registry.example.com".to_owned(),
        },
        public_pull: vec!["public/**".to_owned()],
        seal: vec![SealKey { id: 5, secret: [0xa5; 32] }],
        generation: 6,
    }
}

#[test]
fn frames_from_a_secondary() {
    let hello = Hello {
        versions: vec![2, 1],
        site: "mumbai".parse().unwrap(),
        node: "node-a".to_owned(),
        program: "outport 0.1.0".to_owned(),
        have: Some(Offset::new(1, 4711)),
        have_digest: Some(Digest::sha256(b"event")),
        epoch: 1,
        cluster: Some("c1".to_owned()),
    };
    let first = Hello { have: None, have_digest: None, epoch: 0, cluster: None, ..hello.clone() };
    frame("hello", FromSecondary::Hello(hello));
    frame("hello-first", FromSecondary::Hello(first));
    let report = SiteReport {
        store_bytes: 6,
        store_limit_bytes: Some(7),
        store_blobs: 8,
        missing_blobs: 9,
        log_bytes: 10,
        lag_applied_micros: 11,
        lag_complete_micros: 12,
        staleness_bound_micros: 13,
    };
    let ack = Ack {
        received: Offset::new(1, 5),
        durable: Offset::new(1, 4),
        applied: Offset::new(1, 3),
        complete: Offset::new(1, 2),
        report: report.clone(),
        behind: Vec::new(),
    };
    frame("ack", FromSecondary::Ack(ack.clone()));
    let up = Behind {
        site: "goa".parse().unwrap(),
        via: vec!["pune".parse().unwrap()],
        program: "0.1.0".to_owned(),
        link: BehindLink::Up { rtt_micros: 14 },
        silent_micros: 15,
        received: Offset::new(1, 4),
        durable: Offset::new(1, 3),
        applied: Offset::new(1, 2),
        complete: Offset::new(1, 1),
        report,
        alarm: None,
        forks_refused: 0,
    };
    let down =
        Behind { link: BehindLink::Down, via: Vec::new(), alarm: Some("fork".to_owned()), ..up.clone() };
    let snapshot = Behind { link: BehindLink::Snapshot { rtt_micros: 16 }, ..up.clone() };
    frame("ack-behind", FromSecondary::Ack(Ack { behind: vec![up, down, snapshot], ..ack }));
    let quiet = SiteDetail {
        site: "goa".parse().unwrap(),
        eta_micros: None,
        applied: None,
        complete: None,
        pulls: Vec::new(),
        hits_ppm: None,
        served_bytes: 0,
        upstream_bytes: 0,
        clock: None,
        last_error: None,
        location: None,
        canary: None,
        missing: Vec::new(),
        fills: Vec::new(),
    };
    let busy = SiteDetail {
        site: "mumbai".parse().unwrap(),
        eta_micros: Some(17),
        applied: Some(Spread { p50_micros: 18, p99_micros: 19 }),
        complete: Some(Spread { p50_micros: 20, p99_micros: 21 }),
        pulls: vec![("local".to_owned(), 22)],
        hits_ppm: Some(23),
        served_bytes: 24,
        upstream_bytes: 25,
        clock: Some(ClockOffset { ahead_micros: -26, error_micros: 27 }),
        last_error: Some(("primary unreachable".to_owned(), Timestamp::from_micros(28))),
        location: Some((19_076_090, -29)),
        canary: Some(Canary { interval_micros: 30, lag_micros: Some(31), error: Some("none".to_owned()) }),
        missing: vec![MissingBlobs { repo: "team/app".parse().unwrap(), blobs: 32, bytes: 33 }],
        fills: vec![Fill {
            repo: "team/app".parse().unwrap(),
            digest: Digest::sha256(b"blob"),
            received_bytes: 34,
            size_bytes: Some(35),
        }],
    };
    frame("details", FromSecondary::Details(vec![quiet, busy]));
    frame("probe", FromSecondary::Probe(12));
}

#[test]
fn frames_from_the_primary() {
    let welcome = |resume| {
        FromPrimary::Welcome(Box::new(Welcome {
            version: 1,
            cluster: "c1".to_owned(),
            head: Offset::new(1, 9),
            floor: Offset::new(1, 2),
            resume,
            keys: keys(),
            token_realm: "https://registry.example.com/token".to_owned(),
            token_service: "registry.example.com".to_owned(),
            public_url: "https://registry.example.com".to_owned(),
            path: vec!["mumbai".parse().unwrap(), "pune".parse().unwrap()],
        }))
    };
    frame("welcome-tail", welcome(Resume::Tail));
    frame("welcome-snapshot", welcome(Resume::Snapshot));
    frame("welcome-rewind", welcome(Resume::Rewind { fork: Offset::new(1, 7) }));
    frame("refused-version", FromPrimary::Refused(Refusal::Version(vec![1, 2])));
    frame("refused-site", FromPrimary::Refused(Refusal::Site("mumbai".to_owned())));
    frame("refused-cluster", FromPrimary::Refused(Refusal::Cluster("c1".to_owned())));
    frame("refused-violation", FromPrimary::Refused(Refusal::Violation("first frame".to_owned())));
    let fork = Refusal::Fork { have: Offset::new(1, 12), epoch: 2, head: Offset::new(1, 9) };
    frame("refused-fork", FromPrimary::Refused(fork));
    frame("refused-unready", FromPrimary::Refused(Refusal::Unready("no primary".to_owned())));
    let path = vec!["mumbai".parse().unwrap(), "pune".parse().unwrap()];
    frame("refused-ring", FromPrimary::Refused(Refusal::Ring(path)));
    let event = event_with(Change::RepositoryDeleted { repo: "a".parse().unwrap() });
    let encoded = encode_event(&event).unwrap();
    frame("append", FromPrimary::Append(vec![encoded.clone(), encoded]));
    frame(
        "heartbeat",
        FromPrimary::Heartbeat(Heartbeat {
            head: Offset::new(1, 9),
            closed_time: Timestamp::from_micros(10),
            now: Timestamp::from_micros(11),
            log_bytes: 12,
            state_hash: [0x5a; 32],
            state_at: Offset::new(1, 8),
            unsure: false,
        }),
    );
    let echo = Some(Echo { probe_micros: 15, came_at_micros: 16 });
    frame("reading", FromPrimary::Reading(Reading { at_micros: 13, age_micros: 14, echo }));
    let unknown = Reading { at_micros: 13, age_micros: LAG_UNKNOWN_MICROS, echo: None };
    frame("reading-unknown", FromPrimary::Reading(unknown));
    frame("keys", FromPrimary::Keys(keys()));
    frame("traces", FromPrimary::Traces(vec![(Offset::new(1, 9), traceparent())]));
    let of = |auth| FromPrimary::Keys(Keys { auth, ..keys() });
    let (jwks, issuer) = ("{\"keys\":[]}".to_owned(), "gitlab-issuer".to_owned());
    frame("keys-token", of(AuthMode::Token { jwks, issuer, roots: vec![vec![0x30, 0], vec![0x30, 1, 5]] }));
    let delegated = |challenge| AuthMode::Delegated {
        challenge,
        allow_seconds: 60,
        deny_seconds: 10,
        cached_max: 100_000,
        revoked: Timestamp::from_micros(13),
    };
    let basic = RegistryChallenge::Basic { realm: "Registry".to_owned() };
    frame("keys-delegated-basic", of(delegated(Some(basic))));
    let realm = "https://quay.example.com/v2/auth".to_owned();
    let bearer = RegistryChallenge::Bearer { realm, service: "quay.example.com".to_owned() };
    frame("keys-delegated-bearer", of(delegated(Some(bearer))));
    frame("keys-delegated-open", of(delegated(None)));
    frame("keys-anonymous", of(AuthMode::Anonymous));
}

#[test]
fn requests() {
    let repo = || "team/app".parse().unwrap();
    let digest = Digest::sha256(b"blob");
    frame("request-resolve-tag", Request::Resolve { repo: repo(), reference: "1".parse().unwrap() });
    frame(
        "request-resolve-digest",
        Request::Resolve { repo: repo(), reference: digest.to_string().parse().unwrap() },
    );
    frame("request-link", Request::Link { repo: repo(), digest });
    frame("request-fetch", Request::Fetch { repo: repo(), digest, offset: 65536 });
    frame("request-referrers", Request::Referrers { repo: repo(), digest });
    frame("request-snapshot", Request::Snapshot { resume: None });
    let at = Offset::new(1, 9);
    let place = |after| Request::Snapshot { resume: Some(SnapshotPlace { from: at, after }) };
    let (repo, digest) = ("team/app".parse::<RepoName>().unwrap(), Digest::sha256(b"{}"));
    frame("request-snapshot-after-link", place(EntryKey::Link(repo.clone(), digest)));
    frame("request-snapshot-after-manifest", place(EntryKey::Manifest(repo.clone(), digest)));
    frame("request-snapshot-after-tag", place(EntryKey::Tag(repo.clone(), "1".parse().unwrap())));
    frame("request-snapshot-after-tombstone", place(EntryKey::Tombstone(Deleted::Repository(repo))));
    let (site, via) = ("goa".parse().unwrap(), vec!["pune".parse().unwrap(), "mumbai".parse().unwrap()]);
    frame("request-site-keys", Request::SiteKeys { site, via });
    frame("request-diff-sums", Request::Diff(DiffStep::Sums));
    frame("request-diff-entries", Request::Diff(DiffStep::Entries(vec![7, 4095])));
    let authorization = || Some(Credentials("Basic YW5hOnMzY3JldA==".to_owned()));
    let repo = || "team/app".parse().unwrap();
    for (name, authorization, question) in [
        ("ping", None, Question::Ping),
        ("catalog", authorization(), Question::Catalog),
        ("repository", authorization(), Question::Repository(repo())),
        ("manifest", authorization(), Question::Manifest { repo: repo(), reference: "1".parse().unwrap() }),
        ("blob", authorization(), Question::Blob { repo: repo(), digest }),
    ] {
        frame(&format!("request-authorize-{name}"), Request::Authorize { authorization, question });
    }
    frame("request-own-keys", Request::OwnKeys { unknown: "2024-05".to_owned() });
    let [site, relay] = ["goa", "pune"].map(|name| name.parse().unwrap());
    frame("request-certify", Request::Certify { site, via: vec![relay], requests: certificate_requests() });
    let traced = Asked { parent: Some(traceparent()), request: Request::Diff(DiffStep::Sums) };
    frame("request-traced", traced);
    let untraced = encode_frame(&Asked::from(Request::Diff(DiffStep::Sums))).unwrap();
    assert_eq!(untraced, encode_frame(&Request::Diff(DiffStep::Sums)).unwrap());
}

#[test]
fn responses() {
    let at = Offset::new(1, 9);
    frame("response-manifest", Response::Manifest { manifest: Box::new(manifest_put()), at });
    frame("response-linked", Response::Linked { size: 4, at });
    frame("response-not-found", Response::NotFound { at });
    frame("response-body", Response::Body { size: 1 << 40 });
    frame("response-manifests", Response::Manifests { manifests: vec![manifest_without_options()], at });
    frame("response-snapshot-begin", Response::SnapshotBegin { from: at, resumed: false });
    frame("response-snapshot-part", Response::SnapshotPart(entries()));
    frame("response-snapshot-end", Response::SnapshotEnd { until: at, entries: 7 });
    frame("response-unavailable", Response::Unavailable { reason: "no disk".to_owned() });
    frame("response-site-keys", Response::SiteKeys(keys()));
    frame("response-diff-sums", Response::DiffSums { at, sums: vec![[0x5a; 32], [0; 32]] });
    frame("response-diff-part", Response::DiffPart(entries()));
    let since = Offset::new(1, 4);
    frame("response-diff-bucket", Response::DiffBucket { bucket: 7, since, until: at, entries: 7 });
    for (name, verdict) in [
        ("yes", Verdict::Yes),
        ("unauthorized", Verdict::Unauthorized),
        ("denied", Verdict::Denied),
        ("unknown", Verdict::Unknown),
    ] {
        frame(&format!("response-authorized-{name}"), Response::Authorized(verdict));
    }
    frame("response-certified", Response::Certified(certificates()));
}

#[test]
fn joining() {
    let join = Join {
        site: "goa".parse().unwrap(),
        secret: [0x5a; 32],
        requests: certificate_requests(),
        node: "edge-1".to_owned(),
        program: "0.1.0".to_owned(),
    };
    frame("join", join);
    frame("joined", Joined::Joined(certificates()));
    frame("joined-refused", Joined::Refused("the token was used before".to_owned()));
}

fn certificate_requests() -> CertificateRequests {
    CertificateRequests { node: vec![0x30, 1], https: Some(vec![0x30, 2]) }
}

fn certificates() -> Certificates {
    let chain = |last| vec![vec![0x30, 0x82, last]];
    Certificates { node: chain(1), https: Some(chain(2)), authorities: chain(3) }
}
