//! The parts of the OCI specifications that both ends share: descriptors, manifests, media types.

mod manifest;
mod platform;

pub use manifest::{
    InvalidManifest, MANIFEST_BYTES_MAX, MANIFEST_CHILDREN_MAX, ManifestInfo, parse_manifest,
};
pub use platform::{InvalidPlatform, PLATFORM_BYTES_MAX, Platform, platform_of_config};

use crate::{
    Digest,
    codec::{Decode, Encode},
};

/// Media types by which clients and registries recognise manifests.
pub mod media_type {
    /// OCI image manifest.
    pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    /// OCI image index.
    pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
    /// OCI artifact manifest (withdrawn from the specification, still pushed by clients).
    pub const OCI_ARTIFACT: &str = "application/vnd.oci.artifact.manifest.v1+json";
    /// Docker image manifest, schema 2.
    pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
    /// Docker manifest list.
    pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
    /// OCI image config.
    pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
    /// Docker image config.
    pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
    /// Any bytes.
    pub const OCTET_STREAM: &str = "application/octet-stream";
}

/// What a child of a manifest is, as far as a registry must know.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Descriptor {
    /// The child's digest.
    pub digest: Digest,
    /// Its size in bytes, as the parent declares it.
    pub size: u64,
    /// Whether it is a manifest or a blob, and how registries treat it.
    pub kind: ChildKind,
    /// What an index says that a child manifest runs on.
    pub platform: Option<Platform>,
}

/// The role of a child.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub enum ChildKind {
    /// A manifest listed by an index.
    Manifest,
    /// A config or layer blob that the registry must hold.
    Blob,
    /// A layer that lives elsewhere (`urls` with a non-distributable media type): never required.
    Foreign,
}
