//! Pushing, reading and deleting manifests (specification: "Pushing manifests", "Pulling
//! manifests", "Deleting manifests", "Deleting tags").

use outport_proto::Digest;
use serde_json::json;

use crate::{
    Row,
    registry::{DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST, Registry, bytes, digests},
};

pub const ROWS: &[Row] = &[
    ("an image by tag and digest", image),
    ("HEAD and GET of a manifest agree", head_and_get),
    ("conditions on a manifest", conditions),
    ("every media type comes back as it went", media_types),
    ("an index", index),
    ("tags as parameters", tag_parameters),
    ("a manifest by sha512", by_sha512),
    ("a moved tag", moved_tag),
    ("children that are missing", missing_children),
    ("layers that need not be here", foreign_layers),
    ("4 MiB and one byte more", size_limit),
    ("manifests that are none", invalid_manifests),
    ("a digest that is not the manifest's", wrong_digest),
    ("references that are none", invalid_references),
    ("what nobody pushed", unknown),
    ("delete a tag", delete_tag),
    ("delete a manifest", delete_manifest),
];

fn image(registry: &Registry) {
    let manifest = registry.push_image("1", &bytes(1000, 40));
    let digest = Digest::sha256(&manifest);
    for reference in ["1".to_owned(), digest.to_string()] {
        let response = registry
            .get(&format!("manifests/{reference}"), &[("Accept", OCI_INDEX), ("Accept", OCI_MANIFEST)]);
        assert_eq!((response.status, response.body), (200, manifest.clone()), "{reference}");
    }
    let response = registry.put_manifest(&digest.to_string(), OCI_MANIFEST, &manifest);
    assert_eq!(response.status, 201, "{}", response.text());
    assert_eq!(response.header("docker-content-digest"), Some(digest.to_string().as_str()));
    let behind = registry.send("GET", response.header("location").unwrap(), &[], b"");
    assert_eq!((behind.status, behind.body), (200, manifest));
}

fn head_and_get(registry: &Registry) {
    let manifest = registry.push_image("1", &bytes(10, 41));
    let get = registry.get("manifests/1", &[("Accept-Encoding", "gzip")]);
    let head = registry.head("manifests/1");
    assert_eq!((get.status, head.status), (200, 200));
    assert!(head.body.is_empty());
    let (length, digest) = (manifest.len().to_string(), Digest::sha256(&manifest).to_string());
    for (name, value) in [
        ("content-length", length.as_str()),
        ("content-type", OCI_MANIFEST),
        ("docker-content-digest", &digest),
    ] {
        assert_eq!(get.header(name), Some(value), "{name}");
        assert_eq!(head.header(name), Some(value), "{name}");
    }
    assert_eq!(get.header("etag"), Some(format!("\"{digest}\"").as_str()));
    assert_eq!(get.header("etag"), head.header("etag"));
}

fn conditions(registry: &Registry) {
    let manifest = registry.push_image("1", &bytes(10, 42));
    let etag = format!("\"{}\"", Digest::sha256(&manifest));
    let response = registry.get("manifests/1", &[("If-None-Match", &etag)]);
    assert_eq!((response.status, response.body.len()), (304, 0));
    assert_eq!(registry.get("manifests/1", &[("If-None-Match", "\"x\"")]).status, 200);
    assert_eq!(registry.get("manifests/1", &[("If-None-Match", &format!("\"x\", W/{etag}"))]).status, 304);
}

fn media_types(registry: &Registry) {
    let image: serde_json::Value = serde_json::from_slice(&registry.image(&bytes(10, 43))).unwrap();
    let docker = json!({
        "schemaVersion": 2, "mediaType": DOCKER_MANIFEST, "config": image["config"], "layers": image["layers"],
    });
    let docker = format!("{docker:#}\n");
    let response = registry.put_manifest("docker", DOCKER_MANIFEST, docker.as_bytes());
    assert_eq!(response.status, 201, "{}", response.text());
    let child = json!({ "mediaType": DOCKER_MANIFEST, "digest": Digest::sha256(docker.as_bytes()), "size": docker.len() });
    let list = json!({ "schemaVersion": 2, "mediaType": DOCKER_LIST, "manifests": [child] }).to_string();
    let artifact = json!({ "mediaType": "application/vnd.oci.artifact.manifest.v1+json", "artifactType": "x/y", "blobs": [] });
    for (tag, media_type, body) in [
        ("list", DOCKER_LIST, list.into_bytes()),
        ("artifact", "application/vnd.oci.artifact.manifest.v1+json", artifact.to_string().into_bytes()),
        ("unknown", "application/vnd.example.thing+json", b"{\"any\": [1,2]}\n".to_vec()),
        ("docker", DOCKER_MANIFEST, docker.clone().into_bytes()),
    ] {
        let response = registry.put_manifest(tag, media_type, &body);
        assert_eq!(response.status, 201, "{tag}: {}", response.text());
        let response = registry.get(&format!("manifests/{tag}"), &[]);
        assert_eq!(response.header("content-type"), Some(media_type));
        assert_eq!(response.body, body, "{tag}");
    }
}

fn index(registry: &Registry) {
    let images = [registry.image(&bytes(10, 44)), registry.image(&bytes(10, 45))];
    let mut children = Vec::new();
    for (image, architecture) in images.iter().zip(["amd64", "arm64"]) {
        let digest = Digest::sha256(image);
        assert_eq!(registry.put_manifest(&digest.to_string(), OCI_MANIFEST, image).status, 201);
        children.push(json!({
            "mediaType": OCI_MANIFEST, "digest": digest, "size": image.len(),
            "platform": { "os": "linux", "architecture": architecture },
        }));
    }
    let index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": children }).to_string();
    assert_eq!(registry.put_manifest("multi", OCI_INDEX, index.as_bytes()).status, 201);
    let response = registry.get("manifests/multi", &[]);
    assert_eq!((response.header("content-type"), response.text()), (Some(OCI_INDEX), index.clone()));
    let outer = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [
        { "mediaType": OCI_INDEX, "digest": Digest::sha256(index.as_bytes()), "size": index.len() },
    ] });
    assert_eq!(registry.put_manifest("nested", OCI_INDEX, outer.to_string().as_bytes()).status, 201);
    let empty = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [] }).to_string();
    assert_eq!(registry.put_manifest("empty", OCI_INDEX, empty.as_bytes()).status, 201);
}

fn tag_parameters(registry: &Registry) {
    let manifest = registry.image(&bytes(10, 46));
    for (digest, tags) in digests(&manifest).into_iter().zip([["a", "b"], ["c", "d"]]) {
        let reference = format!("{digest}?tag={}&tag={}", tags[0], tags[1]);
        let response = registry.put_manifest(&reference, OCI_MANIFEST, &manifest);
        assert_eq!(response.status, 201, "{}", response.text());
        let told: Vec<&str> = response
            .headers
            .iter()
            .filter(|(name, _)| name.eq_ignore_ascii_case("oci-tag"))
            .flat_map(|(_, value)| value.split(',').map(str::trim))
            .collect();
        assert_eq!(told, tags);
        for tag in tags {
            let response = registry.head(&format!("manifests/{tag}"));
            assert_eq!(response.header("docker-content-digest"), Some(digest.to_string().as_str()), "{tag}");
        }
    }
}

fn by_sha512(registry: &Registry) {
    let manifest = registry.image(&bytes(10, 47));
    let [_, digest] = digests(&manifest);
    let response = registry.put_manifest(&digest.to_string(), OCI_MANIFEST, &manifest);
    assert_eq!(response.status, 201, "{}", response.text());
    assert_eq!(response.header("docker-content-digest"), Some(digest.to_string().as_str()));
    let response = registry.get(&format!("manifests/{digest}"), &[]);
    assert_eq!((response.status, response.body), (200, manifest));
}

fn moved_tag(registry: &Registry) {
    let (first, second) =
        (registry.push_image("t", &bytes(10, 48)), registry.push_image("t", &bytes(10, 49)));
    assert_eq!(registry.get("manifests/t", &[]).body, second);
    let old = registry.get(&format!("manifests/{}", Digest::sha256(&first)), &[]);
    assert_eq!((old.status, old.body), (200, first.clone()));
    assert_eq!(registry.put_manifest("t", OCI_MANIFEST, &first).status, 201);
    assert_eq!(registry.get("manifests/t", &[]).body, first);
}

fn missing_children(registry: &Registry) {
    let missing = json!({ "mediaType": "x", "digest": Digest::sha256(b"not here"), "size": 8 });
    let config = json!({ "mediaType": "x", "digest": registry.push_blob(b"{}"), "size": 2 });
    let image = json!({ "schemaVersion": 2, "config": config, "layers": [missing] }).to_string();
    let index = json!({ "schemaVersion": 2, "manifests": [missing] }).to_string();
    for (media_type, body) in [(OCI_MANIFEST, image), (OCI_INDEX, index)] {
        let response = registry.put_manifest("1", media_type, body.as_bytes());
        assert!(matches!(response.status, 400 | 404), "{}", response.status);
        assert_eq!(response.code(), "MANIFEST_BLOB_UNKNOWN");
    }
    assert_eq!(registry.head("manifests/1").status, 404);
}

fn foreign_layers(registry: &Registry) {
    let config = json!({ "mediaType": "x", "digest": registry.push_blob(b"{}"), "size": 2 });
    let foreign = json!({
        "mediaType": "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        "digest": Digest::sha256(b"elsewhere"), "size": 9, "urls": ["http://169.254.169.254/secret"],
    });
    let image =
        json!({ "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": [foreign] })
            .to_string();
    assert_eq!(registry.put_manifest("1", OCI_MANIFEST, image.as_bytes()).status, 201);
    let bare =
        json!({ "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": [], "else": 1 });
    assert_eq!(registry.put_manifest("2", OCI_MANIFEST, bare.to_string().as_bytes()).status, 201);
}

fn size_limit(registry: &Registry) {
    const LIMIT: usize = 4 * 1024 * 1024;
    let config = json!({ "mediaType": "x", "digest": registry.push_blob(b"{}"), "size": 2 });
    let padded = |length: usize| {
        let mut image =
            json!({ "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": [] })
                .to_string();
        image.push_str(&" ".repeat(length - image.len()));
        image.into_bytes()
    };
    let largest = padded(LIMIT);
    let response = registry.put_manifest("1", OCI_MANIFEST, &largest);
    assert_eq!(response.status, 201, "{}", response.text());
    let response = registry.get("manifests/1", &[]);
    assert!(response.body == largest, "{} bytes", response.body.len());
    let response = registry.put_manifest("2", OCI_MANIFEST, &padded(LIMIT + 1));
    assert_eq!(response.status, 413, "{}", response.text());
    assert_eq!(registry.head("manifests/2").status, 404);
}

fn invalid_manifests(registry: &Registry) {
    let config = json!({ "mediaType": "x", "digest": registry.push_blob(b"{}"), "size": 2 });
    let good = json!({ "schemaVersion": 2, "config": config, "layers": [] }).to_string();
    let both = json!({ "schemaVersion": 2, "config": config, "layers": [], "manifests": [] }).to_string();
    let twice = good.replacen('{', "{\"layers\":[],", 1);
    let deep = good.replacen('{', &format!("{{\"annotations\":{}{},", "[".repeat(5000), "]".repeat(5000)), 1);
    for body in ["", "{", "[]", "null", &both, &twice, &deep] {
        let response = registry.put_manifest("1", OCI_MANIFEST, body.as_bytes());
        assert_eq!((response.status, response.code().as_str()), (400, "MANIFEST_INVALID"), "{body:.80}");
    }
    let response = registry.put_manifest("1", OCI_INDEX, good.as_bytes());
    assert_eq!((response.status, response.code().as_str()), (400, "MANIFEST_INVALID"));
    assert_eq!(registry.head("manifests/1").status, 404);
}

fn wrong_digest(registry: &Registry) {
    let mut manifest = registry.image(&bytes(10, 50));
    let digests = digests(&manifest);
    manifest.extend(b"  ");
    for digest in digests {
        let response = registry.put_manifest(&digest.to_string(), OCI_MANIFEST, &manifest);
        assert_eq!((response.status, response.code().as_str()), (400, "DIGEST_INVALID"));
        assert_eq!(registry.head(&format!("manifests/{digest}")).status, 404);
    }
}

fn invalid_references(registry: &Registry) {
    for reference in ["sha256:baddigeststring", ".hidden", "a%2fb", "tag%00", &"t".repeat(129)] {
        let response = registry.put_manifest(reference, OCI_MANIFEST, b"{}");
        assert!(matches!(response.status, 400 | 404), "{reference}: {}", response.status);
        let response = registry.get(&format!("manifests/{reference}"), &[]);
        assert!(matches!(response.status, 400 | 404), "{reference}: {}", response.status);
    }
}

fn unknown(registry: &Registry) {
    let nowhere = registry.get("manifests/latest", &[]);
    assert_eq!(nowhere.status, 404);
    assert!(matches!(nowhere.code().as_str(), "NAME_UNKNOWN" | "MANIFEST_UNKNOWN"));
    registry.push_image("1", b"x");
    for reference in ["latest".to_owned(), Digest::sha256(b"?").to_string()] {
        let response = registry.get(&format!("manifests/{reference}"), &[]);
        assert_eq!((response.status, response.code().as_str()), (404, "MANIFEST_UNKNOWN"));
        assert_eq!(registry.head(&format!("manifests/{reference}")).status, 404);
        assert_eq!(registry.delete(&format!("manifests/{reference}")).status, 404);
    }
}

fn delete_tag(registry: &Registry) {
    let manifest = registry.push_image("1", b"y");
    assert_eq!(registry.put_manifest("2", OCI_MANIFEST, &manifest).status, 201);
    assert_eq!(registry.delete("manifests/1").status, 202);
    assert_eq!(registry.head("manifests/1").status, 404);
    assert_eq!(registry.head("manifests/2").status, 200);
    assert_eq!(registry.head(&format!("manifests/{}", Digest::sha256(&manifest))).status, 200);
    registry.push_image("1", b"y");
    assert_eq!(registry.head("manifests/1").status, 200);
}

fn delete_manifest(registry: &Registry) {
    let manifest = registry.push_image("1", b"z");
    let digest = Digest::sha256(&manifest);
    assert_eq!(registry.put_manifest("2", OCI_MANIFEST, &manifest).status, 201);
    assert_eq!(registry.delete(&format!("manifests/{digest}")).status, 202);
    for reference in ["1", "2", &digest.to_string()] {
        assert_eq!(registry.head(&format!("manifests/{reference}")).status, 404, "{reference}");
    }
    assert_eq!(registry.get("tags/list", &[]).json()["tags"], json!([]));
}
