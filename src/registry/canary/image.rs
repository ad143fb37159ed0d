//! What the canary looks like.

use std::time::Duration;

use bytes::Bytes;
use outport_proto::{Digest, oci::media_type};
use serde_json::{Value, json};

/// So many images take turns: nothing grows.
pub(super) const IMAGES: usize = 8;

const EMPTY: &[u8] = b"{}";
/// Under which annotation a manifest says how often one is pushed, in milliseconds.
const INTERVAL: &str = "outport.canary.interval-ms";

/// One of the images.
pub(super) struct Image {
    /// Config and layer.
    pub(super) blobs: [Bytes; 2],
    /// What names them.
    pub(super) manifest: Bytes,
}

/// Image `number`, of canaries that are pushed every `interval`.
pub(super) fn image(number: usize, interval: Duration) -> Image {
    let layer = Bytes::from(format!("canary {number}\n"));
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": media_type::OCI_MANIFEST,
        "artifactType": "text/plain",
        "config": {
            "mediaType": "application/vnd.oci.empty.v1+json",
            "digest": Digest::sha256(EMPTY),
            "size": EMPTY.len(),
        },
        "layers": [{ "mediaType": "text/plain", "digest": Digest::sha256(&layer), "size": layer.len() }],
        "annotations": { INTERVAL: u64::try_from(interval.as_millis()).unwrap_or(u64::MAX).to_string() },
    });
    Image { blobs: [Bytes::from_static(EMPTY), layer], manifest: Bytes::from(manifest.to_string()) }
}

/// How often canaries like this one are pushed, if its manifest says so.
pub(super) fn interval(manifest: &[u8]) -> Option<Duration> {
    let manifest: Value = serde_json::from_slice(manifest).ok()?;
    manifest["annotations"][INTERVAL].as_str()?.parse().ok().map(Duration::from_millis)
}

#[cfg(test)]
mod tests {
    use outport_proto::oci::parse_manifest;

    use super::*;

    #[test]
    fn a_manifest_names_its_blobs_and_says_how_often_one_comes() {
        let every = Duration::from_millis(2500);
        let image = image(3, every);
        let info = parse_manifest(media_type::OCI_MANIFEST, &image.manifest).unwrap();
        let named: Vec<_> = info.children.iter().map(|child| (child.digest, child.size)).collect();
        let held: Vec<_> = image.blobs.iter().map(|blob| (Digest::sha256(blob), blob.len() as u64)).collect();
        assert_eq!(named, held);
        assert_eq!(interval(&image.manifest), Some(every));
        assert_eq!(interval(b"{}"), None);
    }
}
