//! The sample image of the demo: one layer with one file, made here so that nothing is downloaded.

use bytes::Bytes;
use outport_proto::{Digest, oci::media_type};
use serde_json::json;

/// An image ready to be pushed.
pub(super) struct SampleImage {
    /// Config and layer, in that order.
    pub(super) blobs: [Bytes; 2],
    /// The OCI image manifest that names them.
    pub(super) manifest: Bytes,
}

/// The sample image.
pub(super) fn image() -> SampleImage {
    let layer = tar_of("outport.txt", b"Pulled from the nearest port.\n");
    let diff_id = Digest::sha256(&layer);
    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        "config": { "Cmd": ["/outport.txt"], "WorkingDir": "/" },
        "rootfs": { "type": "layers", "diff_ids": [diff_id] },
        "history": [{ "created_by": "outport demo" }],
    });
    let config = Bytes::from(config.to_string());
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": media_type::OCI_MANIFEST,
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": Digest::sha256(&config),
            "size": config.len(),
        },
        "layers": [{
            "mediaType": "application/vnd.oci.image.layer.v1.tar",
            "digest": diff_id,
            "size": layer.len(),
        }],
    });
    SampleImage { blobs: [config, layer], manifest: Bytes::from(manifest.to_string()) }
}

/// Block size of the tar format.
const BLOCK: usize = 512;

/// An archive of one file in the ustar format (POSIX.1-1988): a header block, the content padded
/// to whole blocks, two blocks of zeros.
fn tar_of(name: &str, content: &[u8]) -> Bytes {
    let mut header = [0_u8; BLOCK];
    let mut put = |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, name);
    put(100, "0000644\0");
    put(108, "0000000\0");
    put(116, "0000000\0");
    put(124, &format!("{:011o}\0", content.len()));
    put(136, "00000000000\0");
    put(148, "        ");
    put(156, "0");
    put(257, "ustar\x0000");
    let checksum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..155].copy_from_slice(format!("{checksum:06o}\0").as_bytes());
    let mut archive = header.to_vec();
    archive.extend_from_slice(content);
    archive.resize(archive.len().next_multiple_of(BLOCK) + 2 * BLOCK, 0);
    archive.into()
}

#[cfg(test)]
mod tests {
    use outport_proto::oci::parse_manifest;

    use super::*;

    #[test]
    fn the_manifest_names_the_blobs() {
        let image = image();
        let info = parse_manifest(media_type::OCI_MANIFEST, &image.manifest).unwrap();
        let named: Vec<_> = info.children.iter().map(|child| (child.digest, child.size)).collect();
        let held: Vec<_> = image.blobs.iter().map(|blob| (Digest::sha256(blob), blob.len() as u64)).collect();
        assert_eq!(named, held);
    }

    #[test]
    fn the_layer_is_a_tar_archive() {
        let image = image();
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("layer.tar");
        std::fs::write(&file, &image.blobs[1]).unwrap();
        let output = std::process::Command::new("tar").arg("-xOf").arg(&file).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        assert_eq!(output.stdout, b"Pulled from the nearest port.\n");
    }
}
