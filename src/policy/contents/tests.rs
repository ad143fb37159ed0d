use std::sync::Arc;

use bytes::Bytes;
use outport_proto::{Event, Offset, Timestamp, oci::media_type};

use super::*;
use crate::{index::IndexOptions, policy::tests::policy};

/// A repository's index that grows event by event, and what each event makes wanted.
struct Site {
    policy: Policy,
    index: Index,
    applied: u64,
}

/// Names stand for contents.
fn digest(name: &str) -> Digest {
    Digest::sha256(name.as_bytes())
}

fn app() -> RepoName {
    "team/app".parse().unwrap()
}

fn child(name: &str, kind: ChildKind, platform: &str) -> Descriptor {
    Descriptor { digest: digest(name), size: 1, kind, platform: platform.parse().ok() }
}

/// A manifest, as the primary's event tells of it.
fn put(name: &str, tags: &[&str], children: Vec<Descriptor>) -> ManifestPut {
    ManifestPut {
        repo: app(),
        digest: digest(name),
        media_type: media_type::OCI_MANIFEST.to_owned(),
        size: name.len() as u64,
        bytes: Some(Bytes::copy_from_slice(name.as_bytes())),
        tags: tags.iter().map(|tag| tag.parse().unwrap()).collect(),
        subject: None,
        artifact_type: None,
        platform: None,
        annotations: Vec::new(),
        children,
    }
}

/// An image with one layer, `NAME-layer`.
fn image(name: &str, tags: &[&str], platform: &str) -> ManifestPut {
    let layer = child(&format!("{name}-layer"), ChildKind::Blob, "");
    ManifestPut { platform: platform.parse().ok(), ..put(name, tags, vec![layer]) }
}

fn index_of(name: &str, tags: &[&str], children: &[(&str, &str)]) -> ManifestPut {
    let child = |(name, platform): &(&str, &str)| child(name, ChildKind::Manifest, platform);
    put(name, tags, children.iter().map(child).collect())
}

impl Site {
    fn new(rules: &str) -> Self {
        let index = Index::in_memory(IndexOptions { hot_bytes_max: 1 << 20, cache_bytes_max: 1 << 20 });
        Self { policy: policy(rules), index, applied: 0 }
    }

    fn contents(&self) -> Contents<'_> {
        Contents::new(&self.policy, &self.index)
    }

    /// The digests that a change makes wanted, by name.
    fn wants(&mut self, change: Change) -> Vec<Digest> {
        self.applied += 1;
        let (offset, time) = (Offset::new(1, self.applied), Timestamp::from_secs(self.applied));
        let event = Event { offset, time, actor: String::new(), intent: None, change };
        self.index.apply(&[Arc::new(event.clone())]).unwrap();
        let mut wanted: Vec<_> =
            self.contents().wanted_by(&event.change).unwrap().into_iter().map(|blob| blob.digest).collect();
        wanted.sort();
        wanted
    }

    fn wants_of(&mut self, put: ManifestPut) -> Vec<Digest> {
        self.wants(Change::ManifestPut(Box::new(put)))
    }

    fn keep(&self, name: &str) -> Keep {
        self.contents().verdict(&app(), &digest(name)).unwrap().keep
    }
}

fn all(names: &[&str]) -> Vec<Digest> {
    let mut digests: Vec<_> = names.iter().map(|name| digest(name)).collect();
    digests.sort();
    digests
}

fn committed(name: &str) -> Change {
    Change::BlobCommitted { repo: app(), digest: digest(name), size: 1 }
}

#[test]
fn without_conditions_a_blob_is_wanted_as_soon_as_it_is_pushed() {
    let mut site = Site::new("[[policy]]\nrepository = 'team/*'\nkeep = 'eager'\npriority = 4");
    assert_eq!(site.wants(committed("a-layer")), all(&["a-layer"]));
    assert_eq!(site.wants_of(image("a", &[], "")), all(&["a-layer"]));
    let blob = site.contents().wanted_link(&app(), digest("x"), 9).unwrap();
    assert_eq!((blob.size, blob.priority), (9, 4));
    let mut lazy = Site::new("[[policy]]\nkeep = 'lazy'");
    assert_eq!(lazy.wants(committed("a-layer")), []);
    assert_eq!(lazy.wants_of(image("a", &["1"], "")), []);
}

const PLATFORMS: &str = r#"
    [[policy]]
    platforms = ["linux/amd64"]
    keep = "eager"
    [[policy]]
    keep = "exclude"
"#;

#[test]
fn an_image_is_judged_by_its_own_platform_before_an_index_names_it() {
    let mut site = Site::new(PLATFORMS);
    assert_eq!(site.wants(committed("amd-layer")), [], "whose it is turns out later");
    assert_eq!(site.wants_of(image("amd", &[], "linux/amd64")), all(&["amd-layer"]));
    assert_eq!(site.wants_of(image("arm", &[], "linux/arm64")), []);
    let index = index_of("all", &["1"], &[("amd", "linux/amd64"), ("arm", "linux/arm64")]);
    assert_eq!(site.wants_of(index), all(&["amd-layer"]));
    assert_eq!((site.keep("amd-layer"), site.keep("arm-layer")), (Keep::Eager, Keep::Exclude));
    assert_eq!(site.keep("unheard of"), Keep::Lazy, "in doubt it is kept");
}

#[test]
fn an_image_without_a_platform_of_its_own_waits_for_an_index_that_tells_one() {
    let mut site = Site::new(PLATFORMS);
    assert_eq!(site.wants_of(image("a", &[], "")), []);
    assert_eq!(site.wants_of(image("b", &[], "")), []);
    let index = index_of("all", &["1"], &[("a", "linux/amd64"), ("b", "")]);
    assert_eq!(site.wants_of(index), all(&["a-layer"]));
    assert_eq!((site.keep("a-layer"), site.keep("b-layer")), (Keep::Eager, Keep::Exclude));
}

const TAGS: &str = r#"
    [[policy]]
    tag = "dev-*"
    keep = "exclude"
    [[policy]]
    semver = ">=1.2"
    keep = "eager"
    [[policy]]
    keep = "lazy"
"#;

#[test]
fn the_tags_of_an_index_count_for_its_children_and_referrers() {
    let mut site = Site::new(TAGS);
    assert_eq!(site.wants_of(image("a", &[], "linux/amd64")), []);
    assert_eq!(site.wants_of(index_of("all", &[], &[("a", "linux/amd64")])), []);
    let signature = ManifestPut { subject: Some(digest("a")), ..image("sig", &[], "") };
    assert_eq!(site.wants_of(signature), [], "its subject has no tag yet");
    assert_eq!(site.keep("a-layer"), Keep::Lazy);
    let tagged = index_of("all", &["v1.3"], &[("a", "linux/amd64")]);
    assert_eq!(site.wants_of(tagged), all(&["a-layer", "sig-layer"]));
    let later = ManifestPut { subject: Some(digest("all")), ..image("sbom", &[], "") };
    assert_eq!(site.wants_of(later), all(&["sbom-layer"]));
    assert_eq!((site.keep("a-layer"), site.keep("sbom-layer")), (Keep::Eager, Keep::Eager));
}

#[test]
fn a_child_is_not_judged_as_if_it_stood_alone() {
    let mut site = Site::new(TAGS);
    site.wants_of(image("a", &[], ""));
    assert_eq!(site.wants_of(index_of("dev", &["dev-1"], &[("a", "")])), []);
    assert_eq!(site.keep("a-layer"), Keep::Exclude);
    // A blob of two images is kept as the one that keeps more.
    assert_eq!(site.wants_of(index_of("release", &["1.2"], &[("a", "")])), all(&["a-layer"]));
    assert_eq!(site.keep("a-layer"), Keep::Eager);
    // A tag that moves away takes its say with it: the index is one without tags then.
    assert_eq!(site.wants_of(image("b", &["1.2"], "")), all(&["b-layer"]));
    assert_eq!(site.keep("a-layer"), Keep::Lazy);
}

#[test]
fn a_tag_that_comes_later_closes_what_was_open() {
    let mut site = Site::new(TAGS);
    assert_eq!(site.wants_of(image("a", &[], "linux/amd64")), []);
    assert_eq!(site.wants_of(image("a", &["2.0.0"], "linux/amd64")), all(&["a-layer"]));
    assert_eq!(site.wants_of(image("c", &["latest"], "linux/amd64")), []);
    assert_eq!(site.keep("c-layer"), Keep::Lazy);
}

#[test]
fn a_build_cache_lists_blobs_in_an_index() {
    let mut site = Site::new(TAGS);
    site.wants(committed("cache"));
    assert_eq!(
        site.wants_of(index_of("cached", &["1.9"], &[("cache", ""), ("absent", "")])),
        all(&["cache"])
    );
}

#[test]
fn a_manifest_too_large_for_its_event_is_a_blob_too() {
    let large = ManifestPut { size: 300 * 1024, bytes: None, ..image("big", &["1.2"], "") };
    for rules in
        ["[[policy]]\nkeep = 'exclude'", "[[policy]]\ntag = 'x'\nkeep = 'eager'\n[[policy]]\nkeep = 'lazy'"]
    {
        let mut site = Site::new(rules);
        assert_eq!(site.wants_of(large.clone()), all(&["big"]), "metadata is everywhere: {rules}");
        assert_eq!(site.contents().wanted_beyond_links(&large).unwrap().len(), 1);
    }
    for rules in [TAGS, ""] {
        let mut site = Site::new(rules);
        assert_eq!(site.wants_of(large.clone()), all(&["big", "big-layer"]), "{rules}");
        let beyond = site.contents().wanted_beyond_links(&large).unwrap();
        let all_of_it = !rules.is_empty();
        assert_eq!(beyond.len(), if all_of_it { 2 } else { 1 }, "{rules}: links are met elsewhere");
    }
}
