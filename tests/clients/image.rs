//! Images made without any client: as an OCI layout, and as the archive that `docker save` makes.
//! Layers are gzip of stored blocks: clients take them as compressed and push them as they are,
//! and making one costs no more than copying it.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};

use outport_proto::{Algorithm, Digest, Hasher};
use serde_json::{Value, json};

pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// The name images have at a client before they are pushed anywhere.
pub(crate) const LOCAL_NAME: &str = "localhost/made";
/// Size of the layer that all versions share: large enough to see whether it travels.
pub(crate) const BASE_BYTES: usize = 1024 * 1024;

/// An image on disk.
pub(crate) struct Image {
    /// The OCI layout; its only reference is `version`.
    pub(crate) layout: PathBuf,
    /// The same image as `docker save` writes it.
    pub(crate) archive: PathBuf,
    /// A directory with the files of the image.
    pub(crate) files: PathBuf,
    /// The tag of [`LOCAL_NAME`].
    pub(crate) version: String,
    /// The manifest in the layout.
    pub(crate) manifest: Vec<u8>,
}

impl Image {
    /// An image of two layers: one of [`BASE_BYTES`] that all versions share, one of its own.
    pub(crate) fn make(dir: &Path, version: &str) -> Self {
        let base = noise(BASE_BYTES, 1);
        let files = dir.join(format!("files-{version}"));
        fs::create_dir_all(&files).unwrap();
        fs::write(files.join("base"), &base).unwrap();
        fs::write(files.join("version"), version).unwrap();
        let tars = [tar("base", &base), tar("version", version.as_bytes())];
        let config = config("amd64", &tars);
        let layout = Layout::create(&dir.join(format!("layout-{version}")));
        let manifest = layout.image(&config, &tars);
        layout.refer_to(&[(OCI_MANIFEST, &manifest, version)]);
        let archive = dir.join(format!("archive-{version}.tar"));
        write_archive(&archive, version, &config, &tars);
        Self { layout: layout.dir, archive, files, version: version.to_owned(), manifest }
    }

    /// `oci:DIR:TAG` as the tools of containers/image name it.
    pub(crate) fn oci(&self) -> String {
        format!("oci:{}:{}", self.layout.display(), self.version)
    }

    pub(crate) fn local_name(&self) -> String {
        format!("{LOCAL_NAME}:{}", self.version)
    }
}

/// A directory in the form of the OCI image layout.
pub(crate) struct Layout {
    pub(crate) dir: PathBuf,
}

impl Layout {
    pub(crate) fn create(dir: &Path) -> Self {
        fs::create_dir_all(dir.join("blobs/sha256")).unwrap();
        fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        Self { dir: dir.to_owned() }
    }

    /// Adds an image; returns its manifest.
    pub(crate) fn image(&self, config: &[u8], tars: &[Vec<u8>]) -> Vec<u8> {
        let layers: Vec<Value> = tars
            .iter()
            .map(|tar| {
                let mut layer = Vec::new();
                let mut gzip = StoredGzip::begin(&mut layer).unwrap();
                gzip.write(tar).unwrap();
                gzip.finish().unwrap();
                self.blob(OCI_LAYER, &layer)
            })
            .collect();
        self.manifest(config, &layers)
    }

    fn manifest(&self, config: &[u8], layers: &[Value]) -> Vec<u8> {
        let config = self.blob(OCI_CONFIG, config);
        let manifest =
            json!({ "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": layers });
        let manifest = manifest.to_string().into_bytes();
        self.blob(OCI_MANIFEST, &manifest);
        manifest
    }

    /// Adds an image of one layer with `bytes` in one file.
    pub(crate) fn large_image(&self, bytes: u64) -> Vec<u8> {
        let part = self.dir.join("part");
        let (mut tar, mut layer) = (Hasher::new(Algorithm::Sha256), Hasher::new(Algorithm::Sha256));
        let mut size = 0;
        let mut file = BufWriter::new(File::create(&part).unwrap());
        let out = Tee { file: &mut file, hasher: &mut layer, size: &mut size };
        let mut gzip = StoredGzip::begin(out).unwrap();
        let mut put = |content: &[u8]| {
            tar.update(content);
            gzip.write(content).unwrap();
        };
        put(&tar_header("large", bytes));
        let mut block = noise(1 << 20, 7);
        for at in (0..bytes).step_by(block.len()) {
            block[..8].copy_from_slice(&at.to_le_bytes());
            let length = (bytes - at).min(block.len() as u64) as usize;
            put(&block[..length]);
        }
        put(&vec![0; tar_padding(bytes) + 1024]);
        gzip.finish().unwrap();
        file.flush().unwrap();
        let digest = layer.finish();
        fs::rename(part, self.dir.join("blobs/sha256").join(digest.hex())).unwrap();
        let layer = json!({ "mediaType": OCI_LAYER, "digest": digest.to_string(), "size": size });
        let diff_ids = [tar.finish().to_string()];
        self.manifest(&config_of("amd64", &diff_ids), &[layer])
    }

    /// Adds a blob; returns its descriptor.
    pub(crate) fn blob(&self, media_type: &str, content: &[u8]) -> Value {
        let digest = Digest::sha256(content);
        fs::write(self.dir.join("blobs/sha256").join(digest.hex()), content).unwrap();
        descriptor(media_type, content)
    }

    /// Writes `index.json`: media type, manifest and tag of each reference.
    pub(crate) fn refer_to(&self, references: &[(&str, &[u8], &str)]) {
        let manifests: Vec<Value> = references
            .iter()
            .map(|(media_type, manifest, tag)| {
                let mut descriptor = descriptor(media_type, manifest);
                descriptor["annotations"] = json!({ REF_NAME: tag });
                descriptor
            })
            .collect();
        let index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests });
        fs::write(self.dir.join("index.json"), index.to_string()).unwrap();
    }
}

pub(crate) fn descriptor(media_type: &str, content: &[u8]) -> Value {
    json!({ "mediaType": media_type, "digest": Digest::sha256(content).to_string(), "size": content.len() })
}

/// The configuration of an image of these layers.
pub(crate) fn config(architecture: &str, tars: &[Vec<u8>]) -> Vec<u8> {
    let diff_ids: Vec<String> = tars.iter().map(|tar| Digest::sha256(tar).to_string()).collect();
    config_of(architecture, &diff_ids)
}

fn config_of(architecture: &str, diff_ids: &[String]) -> Vec<u8> {
    let history: Vec<Value> = diff_ids.iter().map(|_| json!({ "created_by": "test" })).collect();
    json!({
        "created": "2024-01-01T00:00:00Z",
        "architecture": architecture,
        "os": "linux",
        "config": { "Cmd": ["/version"] },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
        "history": history,
    })
    .to_string()
    .into_bytes()
}

fn write_archive(file: &Path, version: &str, config: &[u8], tars: &[Vec<u8>]) {
    let config_name = format!("{}.json", Digest::sha256(config).hex());
    let layer_names: Vec<String> = (0..tars.len()).map(|number| format!("layer{number}.tar")).collect();
    let manifest = json!([{
        "Config": config_name,
        "RepoTags": [format!("{LOCAL_NAME}:{version}")],
        "Layers": layer_names,
    }]);
    let manifest = manifest.to_string();
    let mut archive = Vec::new();
    let mut entry = |name: &str, content: &[u8]| {
        archive.extend_from_slice(&tar_header(name, content.len() as u64));
        archive.extend_from_slice(content);
        archive.resize(archive.len().next_multiple_of(512), 0);
    };
    entry("manifest.json", manifest.as_bytes());
    entry(&config_name, config);
    layer_names.iter().zip(tars).for_each(|(name, tar)| entry(name, tar));
    archive.extend_from_slice(&[0; 1024]);
    fs::write(file, archive).unwrap();
}

/// A tar archive of one file.
pub(crate) fn tar(name: &str, content: &[u8]) -> Vec<u8> {
    let mut tar = tar_header(name, content.len() as u64).to_vec();
    tar.extend_from_slice(content);
    tar.resize(tar.len() + tar_padding(content.len() as u64) + 1024, 0);
    tar
}

/// A ustar header (POSIX.1-1988) of a regular file of root's.
fn tar_header(name: &str, size: u64) -> [u8; 512] {
    let mut header = [0; 512];
    let mut put = |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, name);
    put(100, "0000644");
    put(108, "0000000");
    put(116, "0000000");
    put(124, &format!("{size:011o}"));
    put(136, "00000000000");
    put(148, "        ");
    put(156, "0");
    put(257, "ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header
}

fn tar_padding(size: u64) -> usize {
    (size.next_multiple_of(512) - size) as usize
}

/// Gzip (RFC 1952) of stored blocks (RFC 1951 section 3.2.4).
struct StoredGzip<W> {
    out: W,
    crc: crc_fast::Digest,
    size: u32,
}

impl<W: Write> StoredGzip<W> {
    fn begin(mut out: W) -> io::Result<Self> {
        out.write_all(&[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255])?;
        Ok(Self { out, crc: crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32IsoHdlc), size: 0 })
    }

    fn write(&mut self, content: &[u8]) -> io::Result<()> {
        self.crc.update(content);
        self.size = self.size.wrapping_add(content.len() as u32);
        content.chunks(usize::from(u16::MAX)).try_for_each(|block| self.block(0, block))
    }

    fn block(&mut self, last: u8, content: &[u8]) -> io::Result<()> {
        let length = content.len() as u16;
        self.out.write_all(&[last])?;
        self.out.write_all(&length.to_le_bytes())?;
        self.out.write_all(&(!length).to_le_bytes())?;
        self.out.write_all(content)
    }

    fn finish(mut self) -> io::Result<()> {
        self.block(1, &[])?;
        self.out.write_all(&(self.crc.finalize() as u32).to_le_bytes())?;
        self.out.write_all(&self.size.to_le_bytes())
    }
}

/// Writes to a file and hashes on the way.
struct Tee<'a, W> {
    file: &'a mut W,
    hasher: &'a mut Hasher,
    size: &'a mut u64,
}

impl<W: Write> Write for Tee<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write_all(bytes)?;
        self.hasher.update(bytes);
        *self.size += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Bytes that do not compress (xorshift).
fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.take(length.div_ceil(8)).flatten().take(length).collect()
}
