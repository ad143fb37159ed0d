//! Listing tags, repositories and referrers (specification: "Content discovery").

use outport_proto::Digest;
use serde_json::{Value, json};

use crate::{
    Row,
    registry::{OCI_INDEX, OCI_MANIFEST, Registry, bytes, escape},
};

pub const ROWS: &[Row] = &[
    ("tags in pages", tags),
    ("page sizes that are none", page_sizes),
    ("the catalog", catalog),
    ("referrers", referrers),
    ("referrers of what is not there", no_referrers),
    ("a referrer that is deleted", deleted_referrer),
];

fn tags(registry: &Registry) {
    let manifest = registry.push_image("b", &bytes(10, 60));
    for tag in ["a", "C", "d", "1.0", "_x"] {
        assert_eq!(registry.put_manifest(tag, OCI_MANIFEST, &manifest).status, 201);
    }
    let sorted = ["1.0", "C", "_x", "a", "b", "d"];
    let all = registry.get("tags/list", &[]);
    assert_eq!(all.header("content-type").map(|value| value.starts_with("application/json")), Some(true));
    assert_eq!(all.json(), json!({ "name": registry.repo, "tags": sorted }));
    assert_eq!(all.header("link"), None);
    assert_eq!(registry.get("tags/list?last=_x", &[]).json()["tags"], json!(["a", "b", "d"]));
    assert_eq!(registry.get("tags/list?last=B", &[]).json()["tags"], json!(["C", "_x", "a", "b", "d"]));
    assert_eq!(registry.get("tags/list?n=0", &[]).json()["tags"], json!([]));
    let mut seen = Vec::new();
    let mut target = registry.path("tags/list?n=4");
    loop {
        let page = registry.send("GET", &target, &[], b"");
        assert_eq!(page.status, 200, "{}", page.text());
        let json = page.json();
        let tags: Vec<String> = json["tags"].as_array().unwrap().iter().map(text).collect();
        assert!(tags.len() <= 4);
        seen.extend(tags);
        let Some(link) = page.header("link") else { break };
        let (next, relation) = link.split_once(';').expect("a link has a relation");
        assert_eq!(relation.trim(), "rel=\"next\"");
        target = next.trim_matches(['<', '>']).to_owned();
    }
    assert_eq!(seen, sorted);
    let nowhere = registry.send("GET", &format!("/v2/{}/tags/list", registry.other), &[], b"");
    assert_eq!((nowhere.status, nowhere.code().as_str()), (404, "NAME_UNKNOWN"));
}

fn page_sizes(registry: &Registry) {
    registry.push_image("1", &bytes(10, 61));
    for n in ["1000000000", "99999999999999999999999"] {
        assert_eq!(registry.get(&format!("tags/list?n={n}"), &[]).json()["tags"], json!(["1"]), "{n}");
    }
    for n in ["-1", "x", "1.5", "1e3"] {
        let response = registry.get(&format!("tags/list?n={n}"), &[]);
        assert_eq!((response.status, response.code().as_str()), (400, "PAGINATION_NUMBER_INVALID"), "{n}");
    }
}

fn catalog(registry: &Registry) {
    registry.push_image("1", &bytes(10, 62));
    let second = registry.of_other();
    second.push_image("1", &bytes(10, 62));
    let response = registry.send("GET", "/v2/_catalog", &[], b"");
    assert_eq!(response.status, 200, "{}", response.text());
    let json = response.json();
    let names: Vec<String> = json["repositories"].as_array().unwrap().iter().map(text).collect();
    assert!(names.contains(&registry.repo) && names.contains(&second.repo), "{names:?}");
    assert!(names.is_sorted());
    let page = registry.send("GET", &format!("/v2/_catalog?n=1&last={}", escape(&registry.repo)), &[], b"");
    assert_eq!(page.json()["repositories"], json!([second.repo]));
    let all = registry.send("GET", "/v2/_catalog?n=1000000000", &[], b"");
    assert_eq!(all.json()["repositories"].as_array().map(Vec::len), Some(names.len()));
    assert_eq!(registry.send("GET", "/v2/_catalog?n=-1", &[], b"").status, 400);
}

fn referrers(registry: &Registry) {
    let subject = registry.push_image("1", &bytes(10, 63));
    let subject_digest = Digest::sha256(&subject);
    let subject = json!({ "mediaType": OCI_MANIFEST, "digest": subject_digest, "size": subject.len() });
    let config = json!({ "mediaType": "application/vnd.oci.empty.v1+json", "digest": registry.push_blob(b"{}"), "size": 2 });
    let signature = json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST, "artifactType": "application/vnd.example.signature+json",
        "config": config, "layers": [config], "subject": subject, "annotations": { "by": "me", "at": "noon" },
    });
    let by_config = json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": [config], "subject": subject,
    });
    let index = json!({
        "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [], "subject": subject,
    });
    let mut expected = Vec::new();
    for (media_type, body, artifact_type) in [
        (OCI_MANIFEST, &signature, Some("application/vnd.example.signature+json")),
        (OCI_MANIFEST, &by_config, Some("application/vnd.oci.empty.v1+json")),
        (OCI_INDEX, &index, None),
    ] {
        let bytes = body.to_string().into_bytes();
        let digest = Digest::sha256(&bytes);
        let response = registry.put_manifest(&digest.to_string(), media_type, &bytes);
        assert_eq!(response.status, 201, "{}", response.text());
        assert_eq!(response.header("oci-subject"), Some(subject_digest.to_string().as_str()));
        let mut descriptor = json!({ "mediaType": media_type, "digest": digest, "size": bytes.len() });
        if let Some(artifact_type) = artifact_type {
            descriptor["artifactType"] = json!(artifact_type);
        }
        if let Some(annotations) = body.get("annotations") {
            descriptor["annotations"] = annotations.clone();
        }
        expected.push(descriptor);
    }
    let sorted = |list: &Value| {
        let mut list = list.as_array().unwrap().clone();
        list.sort_by_key(|descriptor| text(&descriptor["digest"]));
        list
    };
    expected.sort_by_key(|descriptor| text(&descriptor["digest"]));
    let response = registry.get(&format!("referrers/{subject_digest}"), &[]);
    assert_eq!((response.status, response.header("content-type")), (200, Some(OCI_INDEX)));
    assert_eq!(response.json()["schemaVersion"], 2);
    assert_eq!(response.json()["mediaType"], OCI_INDEX);
    assert_eq!(sorted(&response.json()["manifests"]), expected);
    let filter = escape("application/vnd.example.signature+json");
    let response = registry.get(&format!("referrers/{subject_digest}?artifactType={filter}"), &[]);
    assert_eq!(response.header("oci-filters-applied"), Some("artifactType"));
    let filtered = response.json();
    let filtered = filtered["manifests"].as_array().unwrap();
    assert_eq!(filtered.len(), 1);
    assert_eq!(filtered[0]["artifactType"], "application/vnd.example.signature+json");
}

fn no_referrers(registry: &Registry) {
    let expected = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [] });
    let response = registry.get(&format!("referrers/{}", Digest::sha256(b"?")), &[]);
    assert_eq!((response.status, response.header("content-type")), (200, Some(OCI_INDEX)));
    assert_eq!(response.json(), expected);
    let response = registry.get("referrers/sha256:nonsense", &[]);
    assert_eq!((response.status, response.code().as_str()), (400, "DIGEST_INVALID"));
}

fn deleted_referrer(registry: &Registry) {
    // The subject may come later, or never.
    let subject = Digest::sha256(b"to be pushed some day");
    let config = json!({ "mediaType": "x", "digest": registry.push_blob(b"{}"), "size": 2 });
    let body = json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": [],
        "subject": { "mediaType": OCI_MANIFEST, "digest": subject, "size": 1 },
    })
    .to_string();
    let digest = Digest::sha256(body.as_bytes());
    let response = registry.put_manifest("signature", OCI_MANIFEST, body.as_bytes());
    assert_eq!(response.header("oci-subject"), Some(subject.to_string().as_str()));
    let list =
        || registry.get(&format!("referrers/{subject}"), &[]).json()["manifests"].as_array().unwrap().len();
    assert_eq!(list(), 1);
    assert_eq!(registry.delete(&format!("manifests/{digest}")).status, 202);
    assert_eq!(list(), 0);
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
