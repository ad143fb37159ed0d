//! Reading a manifest: only what a registry must know of it. The bytes are never rewritten.
//!
//! Source: OCI image specification v1.1, `manifest.md` and `image-index.md`; Docker image
//! manifest v2 schema 2.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{ChildKind, Descriptor, media_type, platform::RawPlatform};
use crate::Digest;

/// Largest manifest in bytes. The specification asks for at least 4 MiB.
pub const MANIFEST_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Most children of one manifest: enough for every index seen, and a bound on what one push can cause.
pub const MANIFEST_CHILDREN_MAX: usize = 10_000;

/// What a manifest says about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ManifestInfo {
    /// Config, layers and child manifests, in the manifest's order.
    pub children: Vec<Descriptor>,
    /// What it refers to.
    pub subject: Option<Digest>,
    /// Its artifact type, else its config's media type.
    pub artifact_type: Option<String>,
    /// The config of an image, which tells the platform it runs on ([`super::platform_of_config`]).
    pub config: Option<Digest>,
    /// Its annotations, by key.
    pub annotations: BTreeMap<String, String>,
}

/// Reads `bytes`, pushed as `content_type` (without parameters).
///
/// A media type that is not one of [`media_type`] is stored as it comes: its bytes are looked at
/// for a subject and nothing of them is refused.
///
/// # Errors
/// [`InvalidManifest`] for a known media type whose bytes do not fit it.
pub fn parse_manifest(content_type: &str, bytes: &[u8]) -> Result<ManifestInfo, InvalidManifest> {
    let shape = match content_type {
        media_type::OCI_MANIFEST | media_type::DOCKER_MANIFEST => Shape::Image,
        media_type::OCI_INDEX | media_type::DOCKER_LIST => Shape::Index,
        media_type::OCI_ARTIFACT => Shape::Artifact,
        _ => return Ok(parse_unknown(bytes)),
    };
    let raw: RawManifest =
        serde_json::from_slice(bytes).map_err(|error| InvalidManifest::Json(error.to_string()))?;
    if raw.schema_version.is_some_and(|version| version != 2) {
        return Err(InvalidManifest::SchemaVersion);
    }
    if raw.media_type.as_deref().is_some_and(|declared| declared != content_type) {
        return Err(InvalidManifest::MediaTypeMismatch);
    }
    let is_image = raw.config.is_some() || raw.layers.is_some() || raw.blobs.is_some();
    match shape {
        Shape::Image if raw.manifests.is_some() => return Err(InvalidManifest::BothImageAndIndex),
        Shape::Image if raw.config.is_none() || raw.layers.is_none() => {
            return Err(InvalidManifest::MissingField("config and layers"));
        }
        Shape::Index if is_image => return Err(InvalidManifest::BothImageAndIndex),
        Shape::Index if raw.manifests.is_none() => return Err(InvalidManifest::MissingField("manifests")),
        Shape::Artifact if raw.manifests.is_some() => return Err(InvalidManifest::BothImageAndIndex),
        Shape::Image | Shape::Index | Shape::Artifact => {}
    }
    raw.into_info()
}

fn parse_unknown(bytes: &[u8]) -> ManifestInfo {
    let raw: RawUnknown = serde_json::from_slice(bytes).unwrap_or_default();
    ManifestInfo {
        children: Vec::new(),
        subject: raw.subject.map(|subject| subject.digest),
        artifact_type: raw.artifact_type,
        config: None,
        annotations: raw.annotations.unwrap_or_default(),
    }
}

#[derive(Clone, Copy)]
enum Shape {
    Image,
    Index,
    Artifact,
}

/// Unknown fields pass; a known field that stands twice is refused by the derived code, so no
/// two readers can see different manifests in one.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawManifest {
    schema_version: Option<u64>,
    media_type: Option<String>,
    artifact_type: Option<String>,
    config: Option<RawDescriptor>,
    layers: Option<Vec<RawDescriptor>>,
    blobs: Option<Vec<RawDescriptor>>,
    manifests: Option<Vec<RawDescriptor>>,
    subject: Option<RawDescriptor>,
    annotations: Option<BTreeMap<String, String>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawUnknown {
    artifact_type: Option<String>,
    subject: Option<RawDescriptor>,
    annotations: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDescriptor {
    media_type: Option<String>,
    digest: Digest,
    size: u64,
    urls: Option<Vec<String>>,
    platform: Option<RawPlatform>,
}

impl RawManifest {
    fn into_info(self) -> Result<ManifestInfo, InvalidManifest> {
        let artifact_type = self
            .artifact_type
            .filter(|text| !text.is_empty())
            .or_else(|| self.config.as_ref().and_then(|config| config.media_type.clone()));
        let config = self.config.as_ref().filter(|config| config.is_image_config());
        let config = config.map(|config| config.digest);
        let blobs = self.config.into_iter().chain(self.layers.into_iter().flatten());
        let children: Vec<Descriptor> = blobs
            .chain(self.blobs.into_iter().flatten())
            .map(|raw| {
                let kind = if raw.is_foreign() { ChildKind::Foreign } else { ChildKind::Blob };
                raw.into_descriptor(kind)
            })
            .chain(self.manifests.into_iter().flatten().map(|raw| raw.into_descriptor(ChildKind::Manifest)))
            .collect();
        if children.len() > MANIFEST_CHILDREN_MAX {
            return Err(InvalidManifest::TooManyChildren);
        }
        Ok(ManifestInfo {
            children,
            subject: self.subject.map(|subject| subject.digest),
            artifact_type,
            config,
            annotations: self.annotations.unwrap_or_default(),
        })
    }
}

impl RawDescriptor {
    /// A registry never fetches `urls`: such a layer is simply not required here.
    fn is_foreign(&self) -> bool {
        let elsewhere = self.urls.as_ref().is_some_and(|urls| !urls.is_empty());
        let non_distributable = self
            .media_type
            .as_deref()
            .is_some_and(|text| text.contains("nondistributable") || text.contains("foreign"));
        elsewhere || non_distributable
    }

    fn is_image_config(&self) -> bool {
        matches!(self.media_type.as_deref(), Some(media_type::OCI_CONFIG | media_type::DOCKER_CONFIG))
    }

    fn into_descriptor(self, kind: ChildKind) -> Descriptor {
        let platform = self.platform.filter(|_| kind == ChildKind::Manifest);
        let platform = platform.and_then(|platform| platform.platform());
        Descriptor { digest: self.digest, size: self.size, kind, platform }
    }
}

/// Why bytes are not a manifest of their media type.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidManifest {
    /// Not JSON of the right types, or a field stands twice.
    #[error("the manifest is not valid JSON for its media type: {0}")]
    Json(String),
    /// `schemaVersion` is not 2.
    #[error("the manifest's schemaVersion is not 2")]
    SchemaVersion,
    /// `mediaType` differs from the `Content-Type` it was pushed with.
    #[error("the manifest's mediaType differs from the Content-Type")]
    MediaTypeMismatch,
    /// Fields of an image and of an index in one document.
    #[error("the manifest has the fields of an image and of an index")]
    BothImageAndIndex,
    /// A required field is missing.
    #[error("the manifest lacks {0}")]
    MissingField(&'static str),
    /// More than [`MANIFEST_CHILDREN_MAX`] children.
    #[error("the manifest has too many children")]
    TooManyChildren,
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOB: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn image(extra: &str) -> String {
        format!(
            r#"{{"schemaVersion":2,"config":{{"mediaType":"a/config","digest":"{BLOB}","size":1}},"layers":[{{"mediaType":"l","digest":"{BLOB}","size":2}}]{extra}}}"#
        )
    }

    #[test]
    fn an_image() {
        let info = parse_manifest(media_type::OCI_MANIFEST, image("").as_bytes()).unwrap();
        assert_eq!(info.artifact_type.as_deref(), Some("a/config"));
        assert_eq!(info.children.iter().map(|child| child.size).collect::<Vec<_>>(), [1, 2]);
        let with_subject = image(&format!(r#","artifactType":"t","subject":{{"digest":"{BLOB}","size":3}}"#));
        let info = parse_manifest(media_type::OCI_MANIFEST, with_subject.as_bytes()).unwrap();
        assert_eq!((info.artifact_type.as_deref(), info.subject.is_some()), (Some("t"), true));
    }

    #[test]
    fn an_index_tells_platforms_and_an_image_its_config() {
        let child = |platform: &str| {
            let index = format!(r#"{{"manifests":[{{"digest":"{BLOB}","size":1,"platform":{platform}}}]}}"#);
            let info = parse_manifest(media_type::OCI_INDEX, index.as_bytes()).unwrap();
            info.children[0].platform.as_ref().map(ToString::to_string)
        };
        let amd64 = r#"{"os":"linux","architecture":"amd64","os.features":["x"]}"#;
        assert_eq!(child(amd64).as_deref(), Some("linux/amd64"));
        for none in ["null", "{}", r#"{"os":"linux","architecture":7}"#] {
            assert_eq!(child(none), None, "{none}");
        }
        let config_of =
            |text: &str| parse_manifest(media_type::OCI_MANIFEST, text.as_bytes()).unwrap().config;
        assert_eq!(config_of(&image("")), None, "an artifact has no platform");
        let image = image("").replace("a/config", media_type::OCI_CONFIG);
        assert_eq!(config_of(&image), Some(BLOB.parse().unwrap()));
    }

    #[test]
    fn what_is_refused() {
        let twice = image(r#","layers":[]"#);
        let both = image(r#","manifests":[]"#);
        let other_type = image(&format!(r#","mediaType":"{}""#, media_type::OCI_INDEX));
        let deep = format!(r#"{{"config":{}{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
        for (text, why) in [
            (twice.as_str(), "duplicate field"),
            (&both, "an image and of an index"),
            (&other_type, "differs"),
            (&deep, "not valid JSON"),
            ("{}", "lacks"),
            ("", "not valid JSON"),
        ] {
            let error = parse_manifest(media_type::OCI_MANIFEST, text.as_bytes()).unwrap_err();
            assert!(error.to_string().contains(why), "{error}");
        }
        let index = image("");
        assert_eq!(
            parse_manifest(media_type::OCI_INDEX, index.as_bytes()),
            Err(InvalidManifest::BothImageAndIndex)
        );
    }

    #[test]
    fn an_unknown_media_type_is_taken_as_it_comes() {
        assert_eq!(parse_manifest("application/x", b"\xff\0"), Ok(ManifestInfo::default()));
    }
}
