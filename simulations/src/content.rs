//! What is pushed: a few images over a few blobs, so that they meet often.

use std::sync::OnceLock;

use bytes::Bytes;
use outport_proto::Digest;

/// Sizes of the blobs in bytes. Some fit into what is held back of a fill, some do not.
const BLOBS: [usize; 8] = [120, 450, 900, 3_000, 20_000, 66_000, 90_000, 180_000];
/// The first of them that is a layer; those before are configs.
const LAYERS_FROM: usize = 3;
/// How many manifests there are.
pub(crate) const MANIFESTS: u64 = 8;
/// What a manifest is called.
pub(crate) const MEDIA_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";

/// Something with its digest.
#[derive(Clone, Debug)]
pub(crate) struct Content {
    pub(crate) digest: Digest,
    pub(crate) bytes: Bytes,
}

/// An image: its manifest and the blobs it names.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    pub(crate) manifest: Content,
    pub(crate) blobs: [usize; 2],
}

fn content(bytes: Vec<u8>) -> Content {
    Content { digest: Digest::sha256(&bytes), bytes: bytes.into() }
}

/// A small blob that nobody else pushes.
pub(crate) fn only_one(number: u64) -> Content {
    content(number.to_be_bytes().repeat(8))
}

/// All blobs.
pub(crate) fn blobs() -> &'static [Content] {
    static MADE: OnceLock<Vec<Content>> = OnceLock::new();
    MADE.get_or_init(|| {
        let sizes = BLOBS.iter().enumerate();
        let made = sizes.map(|(number, size)| {
            let mut state = number as u64 + 1;
            let bytes = std::iter::repeat_with(|| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 56) as u8
            });
            content(bytes.take(*size).collect())
        });
        made.collect()
    })
}

/// All images.
pub(crate) fn images() -> &'static [Image] {
    static MADE: OnceLock<Vec<Image>> = OnceLock::new();
    MADE.get_or_init(|| {
        let made = (0..MANIFESTS as usize).map(|number| {
            let layers = BLOBS.len() - LAYERS_FROM;
            let chosen = [number % LAYERS_FROM, LAYERS_FROM + number % layers];
            let [config, layer] = chosen.map(|blob| {
                let blob = &blobs()[blob];
                format!(
                    r#"{{"mediaType":"application/octet-stream","digest":"{}","size":{}}}"#,
                    blob.digest,
                    blob.bytes.len()
                )
            });
            let manifest = format!(
                r#"{{"schemaVersion":2,"mediaType":"{MEDIA_TYPE}","config":{config},"layers":[{layer}],"annotations":{{"number":"{number}"}}}}"#
            );
            Image { manifest: content(manifest.into_bytes()), blobs: chosen }
        });
        made.collect()
    })
}
