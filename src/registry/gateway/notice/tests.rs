use serde_json::json;

use super::*;

fn repo() -> RepoName {
    "team/app".parse().unwrap()
}

fn digest() -> Digest {
    Digest::sha256(b"x")
}

fn tag(name: &str, digest: Option<Digest>) -> Hint {
    Hint::Tag { repo: repo(), tag: name.parse().unwrap(), digest }
}

fn hints(format: Format, body: &serde_json::Value) -> Vec<Hint> {
    let notices = read(format, None, body.to_string().as_bytes()).unwrap();
    assert_eq!((notices.idle, notices.unknown), (0, 0), "{body}");
    notices.hints
}

#[test]
fn events_of_distribution() {
    let event = |action: &str, target: serde_json::Value| {
        json!({ "events": [{ "id": "1", "timestamp": "2026-01-01T00:00:00Z", "action": action,
            "target": target, "request": { "method": "PUT" }, "actor": {}, "source": {} }] })
    };
    let (repository, text) = ("team/app", digest().to_string());
    let manifest = "application/vnd.docker.distribution.manifest.v2+json";
    let octets = "application/octet-stream";
    let by_tag =
        json!({ "mediaType": manifest, "digest": text, "size": 7, "repository": repository, "tag": "1" });
    let by_digest = json!({ "mediaType": manifest, "digest": text, "repository": repository });
    let blob = json!({ "mediaType": octets, "digest": text, "repository": repository });
    let mounted = json!({ "mediaType": octets, "digest": text, "repository": repository,
        "fromRepository": "base/debian" });
    let bare = json!({ "digest": text, "repository": repository });
    let untagged = json!({ "repository": repository, "tag": "1" });
    let of = |action: &str, target: &serde_json::Value| hints(Format::Docker, &event(action, target.clone()));
    assert_eq!(of("push", &by_tag), [tag("1", Some(digest()))]);
    assert_eq!(of("push", &by_digest), [Hint::Manifest { repo: repo(), digest: digest() }]);
    for (action, target) in [("push", &blob), ("mount", &mounted)] {
        assert_eq!(of(action, target), [Hint::Blob { repo: repo(), digest: digest() }]);
    }
    assert_eq!(of("delete", &bare), [Hint::Deleted { repo: repo(), digest: digest() }]);
    assert_eq!(of("delete", &untagged), [tag("1", None)]);
    let third = json!({ "mediaType": "", "digest": "", "size": 0, "repository": repository, "tag": "1" });
    assert_eq!(of("delete", &third), [tag("1", None)], "version 3 says what it does not say");
    assert_eq!(of("delete", &json!({ "repository": repository })), [Hint::Repository { repo: repo() }]);
    let moved = json!({ "repository": repository, "rename": { "from": "team", "to": "other" } });
    assert_eq!(of("rename", &moved), [Hint::Everything]);
}

#[test]
fn what_is_not_known_is_counted_and_holds_up_nothing() {
    let text = digest().to_string();
    let target = |name: &str| json!({ "repository": name, "digest": text, "mediaType": "m", "tag": "1" });
    let body = json!({ "events": [
        { "action": "pull", "target": target("team/app") },
        { "action": "sing", "target": target("team/app") },
        { "action": "push", "target": target("No/Repository") },
        { "action": "push", "target": { "repository": "team/app", "digest": "sha256:zz", "mediaType": "m" } },
        { "action": "push" },
        { "action": "push", "target": target("team/app") },
    ]});
    let notices = read(Format::Docker, None, body.to_string().as_bytes()).unwrap();
    assert_eq!((notices.idle, notices.unknown), (1, 4));
    assert_eq!(notices.hints, [tag("1", Some(digest()))]);
    for body in ["", "[]", "{}", r#"{"events":{}}"#, r#"{"events":[1]}"#] {
        assert!(read(Format::Docker, None, body.as_bytes()).is_err(), "{body}");
    }
    let many = json!({ "events": vec![json!({ "action": "pull" }); EVENTS_MAX + 1] }).to_string();
    assert_eq!(read(Format::Docker, None, many.as_bytes()), Err(UnreadableNotice::TooMany));
}

#[test]
fn webhooks_of_harbor() {
    let text = digest().to_string();
    let data = |tag: &str| {
        json!({ "resources": [{ "digest": text, "tag": tag,
            "resource_url": "harbor.example.com/team/app:1" }],
            "repository": { "name": "app", "namespace": "team", "repo_full_name": "team/app" } })
    };
    let own = |kind: &str, tag: &str| json!({ "type": kind, "occur_at": 1, "event_data": data(tag) });
    let cloud = |kind: &str, tag: &str| json!({ "specversion": "1.0", "type": kind, "data": data(tag) });
    for (pushed, deleted) in [
        (own("PUSH_ARTIFACT", "1"), own("DELETE_ARTIFACT", "1")),
        (cloud("harbor.artifact.pushed", "1"), cloud("harbor.artifact.deleted", "1")),
    ] {
        assert_eq!(hints(Format::Harbor, &pushed), [tag("1", Some(digest()))]);
        let all_of_it = Hint::Deleted { repo: repo(), digest: digest() };
        assert_eq!(hints(Format::Harbor, &deleted), [all_of_it], "an artifact goes with all its tags");
    }
    let by_digest = hints(Format::Harbor, &own("PUSH_ARTIFACT", &text));
    assert_eq!(by_digest, [Hint::Manifest { repo: repo(), digest: digest() }]);
    let by_digest = hints(Format::Harbor, &own("DELETE_ARTIFACT", &text));
    assert_eq!(by_digest, [Hint::Deleted { repo: repo(), digest: digest() }]);
    let of = |body: serde_json::Value| read(Format::Harbor, None, body.to_string().as_bytes()).unwrap();
    assert_eq!(of(own("PULL_ARTIFACT", "1")).idle, 1);
    assert_eq!(of(own("SCANNING_COMPLETED", "1")).unknown, 1);
    assert_eq!(of(json!({ "type": "PUSH_ARTIFACT" })).unknown, 1);
    let names = ["app:v1", "app@sha256:12", "deep/er:v1"].map(|name| json!({ "name_tag": name }));
    let retention = json!({ "project_name": "team", "deleted_artifact": names });
    let retained = of(json!({ "type": "TAG_RETENTION", "event_data": { "retention": retention } }));
    let deeper = Hint::Repository { repo: "team/deep/er".parse().unwrap() };
    let app = || Hint::Repository { repo: repo() };
    assert_eq!(retained.hints, [app(), app(), deeper]);
}

#[test]
fn events_of_zot() {
    let text = digest().to_string();
    let event = |kind: &str, reference: &str| {
        json!({ "specversion": "1.0", "type": kind, "source": "zot", "datacontenttype": "application/json",
            "data": { "name": "team/app", "reference": reference, "digest": text, "mediaType": "m" } })
    };
    let of = |kind: &str, reference: &str| hints(Format::Zot, &event(kind, reference));
    assert_eq!(of("zotregistry.image.updated", "1"), [tag("1", Some(digest()))]);
    let manifest = Hint::Manifest { repo: repo(), digest: digest() };
    assert_eq!(of("zotregistry.image.updated", &text), [manifest]);
    assert_eq!(of("zotregistry.image.deleted", "1"), [tag("1", None)]);
    let deleted = Hint::Deleted { repo: repo(), digest: digest() };
    assert_eq!(of("zotregistry.image.deleted", &text), [deleted]);
    assert_eq!(of("com.example.registry.image.updated", "1"), [tag("1", Some(digest()))]);
    let created = [Hint::Repository { repo: repo() }];
    assert_eq!(of("zotregistry.repository.created", ""), created);
    let bare = json!({ "name": "team/app", "reference": "1", "digest": text }).to_string();
    let binary = read(Format::Zot, Some("zotregistry.image.updated"), bare.as_bytes()).unwrap();
    assert_eq!(binary.hints, [tag("1", Some(digest()))], "in binary mode the type stands in a header");
    assert_eq!(read(Format::Zot, Some("zotregistry.image.lint_failed"), bare.as_bytes()).unwrap().unknown, 1);
}
