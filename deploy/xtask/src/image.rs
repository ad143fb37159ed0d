//! A container image of Outport: the program, the libraries that it needs, authorities for HTTPS, and nothing else.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, ensure};
use flate2::{Compression, GzBuilder};
use outport_proto::{Digest, oci::media_type};
use serde_json::{Value, json};
use tar::{Builder, Header};

use crate::root::Root;

/// Who the program runs as: nobody that another image knows by name.
const USER: u64 = 65_532;
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// Where Debian keeps the authorities for HTTPS.
const AUTHORITIES: &str = "etc/ssl/certs/ca-certificates.crt";

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// Of the manifest.
    pub digest: Digest,
    /// Of all that is pulled: manifest, configuration and layers.
    pub bytes: u64,
}

/// Writes the image of `binary`, called `outport:TAG`, as a directory, or as an archive if `out` ends with `.tar`.
///
/// # Errors
/// When the program or a library cannot be read, or nothing can be written.
pub fn write(binary: &Path, tag: &str, out: &Path) -> anyhow::Result<Written> {
    let (files, written) = layout(binary, tag)?;
    if out.extension().is_some_and(|extension| extension == "tar") {
        let mut archive = Builder::new(Vec::new());
        for (path, content) in &files {
            let mut header = Header::new_gnu();
            header.set_mode(0o644);
            header.set_size(content.len() as u64);
            archive.append_data(&mut header, path, content.as_slice())?;
        }
        fs::write(out, archive.into_inner()?).with_context(|| format!("write {}", out.display()))?;
    } else {
        for (path, content) in &files {
            let path = out.join(path);
            let directory = path.parent().unwrap_or(out);
            fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
            fs::write(&path, content).with_context(|| format!("write {}", path.display()))?;
        }
    }
    Ok(written)
}

/// A path and what is there.
type File = (PathBuf, Vec<u8>);

/// The files of the OCI layout.
fn layout(binary: &Path, tag: &str) -> anyhow::Result<(Vec<File>, Written)> {
    let program = fs::read(binary).with_context(|| format!("read {}", binary.display()))?;
    ensure!(program.starts_with(b"\x7fELF"), "{}: not a program of Linux", binary.display());
    // What changes seldom is a layer of its own.
    let mut below = Root::default();
    below.libraries_of(binary)?;
    let authorities = fs::read(Path::new("/").join(AUTHORITIES));
    below.file(
        AUTHORITIES,
        0o644,
        authorities.context("read the authorities for HTTPS (Debian: ca-certificates)")?,
    );
    below.file(
        "etc/passwd",
        0o644,
        format!("outport:x:{USER}:{USER}:Outport:/var/lib/outport:/sbin/nologin\n"),
    );
    below.file("etc/group", 0o644, format!("outport:x:{USER}:\n"));
    below.file("etc/nsswitch.conf", 0o644, "hosts: files dns\n");
    below.directory("tmp", 0o1777, 0);
    below.directory("var/lib/outport", 0o700, USER);
    below.directory("etc/outport", 0o755, USER);
    let mut above = Root::default();
    above.file("usr/bin/outport", 0o755, program);
    let layers = [below.archive()?, above.archive()?];
    let diff_ids: Vec<String> = layers.iter().map(|layer| Digest::sha256(layer).to_string()).collect();
    let layers = layers.iter().map(|layer| compressed(layer)).collect::<anyhow::Result<Vec<_>>>()?;

    let config = json!({
        "architecture": match std::env::consts::ARCH { "x86_64" => "amd64", "aarch64" => "arm64", other => other },
        "os": "linux",
        "config": {
            "User": format!("{USER}:{USER}"),
            "Env": ["PATH=/usr/bin"],
            "Entrypoint": ["/usr/bin/outport"],
            "WorkingDir": "/var/lib/outport",
            "Volumes": { "/var/lib/outport": {} },
            // Registry, replication (QUIC), admin.
            "ExposedPorts": { "5000/tcp": {}, "5443/udp": {}, "9000/tcp": {} },
            // Docker's own; others ask /readyz.
            "Healthcheck": {
                "Test": ["CMD", "/usr/bin/outport", "status", "--json"],
                "Interval": 10_000_000_000_u64, "Timeout": 5_000_000_000_u64, "StartPeriod": 5_000_000_000_u64,
            },
            "Labels": labels(tag),
        },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
        "history": [
            { "created_by": "libraries, authorities for HTTPS, a user" },
            { "created_by": "outport" },
        ],
    });
    let config = serde_json::to_vec(&config)?;
    let descriptor = |media_type: &str, content: &[u8]| json!({ "mediaType": media_type, "digest": Digest::sha256(content), "size": content.len() });
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": media_type::OCI_MANIFEST,
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
        "layers": layers.iter().map(|layer| descriptor(LAYER, layer)).collect::<Vec<_>>(),
        "annotations": labels(tag),
    });
    let manifest = serde_json::to_vec(&manifest)?;
    let mut entry = descriptor(media_type::OCI_MANIFEST, &manifest);
    // `ctr` takes a whole name, others what stands behind its colon.
    entry["annotations"] = json!({
        "io.containerd.image.name": format!("docker.io/library/outport:{tag}"),
        "org.opencontainers.image.ref.name": tag,
    });
    let index = json!({ "schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": [entry] });

    let blobs = layers.into_iter().chain([config, manifest.clone()]).collect::<Vec<_>>();
    let bytes = blobs.iter().map(|blob| blob.len() as u64).sum();
    let mut files = vec![
        (PathBuf::from("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()),
        (PathBuf::from("index.json"), serde_json::to_vec(&index)?),
    ];
    files.extend(blobs.into_iter().map(|blob| {
        let digest = Digest::sha256(&blob);
        (Path::new("blobs/sha256").join(digest.hex()), blob)
    }));
    Ok((files, Written { digest: Digest::sha256(&manifest), bytes }))
}

fn labels(tag: &str) -> Value {
    json!({
        "org.opencontainers.image.title": "Outport",
        "org.opencontainers.image.description": "Geo-aware edge read replicas for container registries",
        "org.opencontainers.image.source": env!("CARGO_PKG_REPOSITORY"),
        "org.opencontainers.image.licenses": "Apache-2.0",
        "org.opencontainers.image.version": tag,
    })
}

/// With no name and no time inside, so that it comes out the same.
fn compressed(bytes: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut encoder = GzBuilder::new().mtime(0).write(Vec::new(), Compression::best());
    encoder.write_all(bytes)?;
    Ok(encoder.finish()?)
}
