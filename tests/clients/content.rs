//! What is pushed besides plain images, and what is taken away again, through a site.

use std::{fs, path::PathBuf};

use serde_json::{Value, json};

use crate::{
    bed::Bed,
    image::{self, Image, Layout, OCI_INDEX, OCI_MANIFEST, descriptor},
    support::{Node, Options, USER, path},
};

const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const EMPTY: &str = "application/vnd.oci.empty.v1+json";

#[test]
fn content_of_every_kind_through_a_site() {
    let Some(bed) = Bed::start(&["skopeo"], Options::default()) else { return };
    let content = Content { bed: &bed, credentials: format!("{USER}:{}", bed.cluster.password) };
    content.index_of_two_architectures();
    content.docker_schema_2();
    content.artifact_with_subject();
    content.deleted_everywhere_at_once();
}

struct Content<'a> {
    bed: &'a Bed,
    credentials: String,
}

impl Content<'_> {
    fn index_of_two_architectures(&self) {
        let layout = Layout::create(&self.dir("index"));
        let architectures = ["amd64", "arm64"];
        let manifests = architectures.map(|architecture| {
            let tars = [image::tar("architecture", architecture.as_bytes())];
            layout.image(&image::config(architecture, &tars), &tars)
        });
        let children: Vec<Value> = architectures
            .iter()
            .zip(&manifests)
            .map(|(architecture, manifest)| {
                let mut child = descriptor(OCI_MANIFEST, manifest);
                child["platform"] = json!({ "os": "linux", "architecture": architecture });
                child
            })
            .collect();
        let index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": children }).to_string();
        layout.blob(OCI_INDEX, index.as_bytes());
        layout.refer_to(&[(OCI_INDEX, index.as_bytes(), "all")]);

        let (repo, tag) = ("team/multi", "all");
        let from = format!("oci:{}:{tag}", layout.dir.display());
        self.copy(&["--all"], &from, &self.at(self.bed.frankfurt(), repo, tag));
        for (architecture, manifest) in architectures.iter().zip(&manifests) {
            let pulled = self.dir(&format!("multi-{architecture}"));
            let to = format!("dir:{}", path(&pulled));
            // An option of skopeo, not of its command.
            let options = ["skopeo", "--override-os", "linux", "--override-arch", architecture, "copy"];
            let from = self.at(self.bed.mumbai(), repo, tag);
            self.bed.sandbox.ok(&[&options[..], &["--src-no-creds", &from, &to]].concat());
            assert_eq!(fs::read(pulled.join("manifest.json")).unwrap(), *manifest, "{architecture}");
        }
        self.bed.raw.same_everywhere(&self.bed.cluster, repo, tag);
        let answer = self.bed.raw.manifest(self.bed.mumbai(), repo, tag);
        assert_eq!((answer.header("content-type"), answer.text()), (Some(OCI_INDEX), index));
    }

    fn docker_schema_2(&self) {
        let image = Image::make(&self.dir("schema2"), "one");
        let converted = self.dir("schema2-converted");
        let dir = format!("dir:{}", path(&converted));
        self.copy(&["--format", "v2s2"], &image.oci(), &dir);
        let manifest = fs::read_to_string(converted.join("manifest.json")).unwrap();

        let (repo, tag) = ("team/schema2", "one");
        self.copy(&["--preserve-digests"], &dir, &self.at(self.bed.frankfurt(), repo, tag));
        let answer = self.bed.raw.manifest(self.bed.mumbai(), repo, tag);
        assert_eq!((answer.header("content-type"), answer.text()), (Some(DOCKER_MANIFEST), manifest));
        self.bed.raw.same_everywhere(&self.bed.cluster, repo, tag);
    }

    fn artifact_with_subject(&self) {
        let (repo, tag) = ("team/signed", "one");
        let image = Image::make(&self.dir("signed"), "one");
        self.copy(&[], &image.oci(), &self.at(self.bed.frankfurt(), repo, tag));
        let subject = descriptor(OCI_MANIFEST, &image.manifest);
        let digest = subject["digest"].as_str().unwrap();

        let (raw, kind) = (&self.bed.raw, "application/vnd.example.signature.v1");
        let empty = descriptor(EMPTY, b"{}");
        let artifact = json!({
            "schemaVersion": 2, "mediaType": OCI_MANIFEST, "artifactType": kind,
            "config": empty, "layers": [empty], "subject": subject,
        });
        let artifact = artifact.to_string().into_bytes();
        let artifact_digest = descriptor(OCI_MANIFEST, &artifact)["digest"].as_str().unwrap().to_owned();
        raw.user(repo).push_blob(self.bed.frankfurt(), repo, b"{}");
        let pushed = raw.push_manifest(self.bed.frankfurt(), repo, &artifact_digest, OCI_MANIFEST, &artifact);
        assert_eq!(pushed.header("oci-subject"), Some(digest));

        for node in self.bed.cluster.nodes() {
            let referrers = raw.anonymous(repo).get(node, &format!("/v2/{repo}/referrers/{digest}"));
            assert_eq!(referrers.header("content-type"), Some(OCI_INDEX), "at {}", node.name);
            let listed = &referrers.json()["manifests"];
            assert_eq!(listed.as_array().map(Vec::len), Some(1), "at {}: {}", node.name, referrers.text());
            assert_eq!(listed[0]["digest"], artifact_digest, "at {}", node.name);
            assert_eq!(listed[0]["artifactType"], kind, "at {}", node.name);
            let answer = raw.manifest(node, repo, &artifact_digest);
            assert_eq!(answer.body, artifact, "at {}", node.name);
        }
    }

    fn deleted_everywhere_at_once(&self) {
        let (repo, tag) = ("team/short-lived", "one");
        let image = Image::make(&self.dir("short-lived"), tag);
        self.copy(&[], &image.oci(), &self.at(self.bed.frankfurt(), repo, tag));
        let digest = self.bed.raw.same_everywhere(&self.bed.cluster, repo, tag);

        let at_mumbai = self.at(self.bed.mumbai(), repo, tag);
        self.bed.sandbox.ok(&["skopeo", "delete", "--creds", &self.credentials, &at_mumbai]);
        for node in self.bed.cluster.nodes() {
            for reference in [tag, &digest] {
                let gone = self.bed.raw.manifest(node, repo, reference);
                assert_eq!(gone.status, 404, "{reference} at {}: {}", node.name, gone.text());
                assert_eq!(gone.code(), "MANIFEST_UNKNOWN", "{reference} at {}", node.name);
            }
            let inspect = ["skopeo", "inspect", "--no-creds", &self.at(node, repo, tag)];
            self.bed.sandbox.run(&inspect).failure(&["manifest unknown"]);
        }

        self.copy(&[], &image.oci(), &self.at(self.bed.frankfurt(), repo, tag));
        assert_eq!(self.bed.raw.same_everywhere(&self.bed.cluster, repo, tag), digest, "pushed anew");
    }

    fn copy(&self, options: &[&str], from: &str, to: &str) {
        let credentials = ["--dest-creds", &self.credentials];
        let credentials = if to.starts_with("docker:") { &credentials[..] } else { &[] };
        self.bed.sandbox.ok(&[&["skopeo", "copy"], credentials, options, &[from, to]].concat());
    }

    fn at(&self, node: &Node, repo: &str, tag: &str) -> String {
        format!("docker://{}", self.bed.reference(node, repo, tag))
    }

    fn dir(&self, name: &str) -> PathBuf {
        self.bed.sandbox.path(name)
    }
}
