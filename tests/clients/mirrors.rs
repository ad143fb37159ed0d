//! Clients that are told of a site by their configuration instead of by DNS, as the handbook says.

use std::fs;

use crate::{
    bed::Bed,
    ctr::Ctr,
    image::{Layout, OCI_MANIFEST},
    support::{Options, USER, path},
};

/// The one name, which leads nowhere here.
const REGISTRY: &str = "registry.example.com";
const REFERENCE: &str = "registry.example.com/team/app:one";

/// An image that was pushed to the primary; its digest.
fn pushed(bed: &Bed) -> String {
    let layout = Layout::create(&bed.sandbox.path("layout"));
    let manifest = layout.large_image(1_000_000);
    layout.refer_to(&[(OCI_MANIFEST, &manifest, "one")]);
    let from = format!("oci:{}:one", layout.dir.display());
    let to = format!("docker://{}", bed.reference(&bed.cluster.primary, "team/app", "one"));
    let credentials = format!("{USER}:{}", bed.cluster.password);
    bed.sandbox.ok(&["skopeo", "copy", "--dest-creds", &credentials, &from, &to]);
    outport_proto::Digest::sha256(&manifest).to_string()
}

fn pulls_at_mumbai(bed: &Bed) -> f64 {
    bed.mumbai().metric("outport_pulls_total", "")
}

#[test]
fn containerd_finds_a_site_by_its_hosts_file() {
    let Some(bed) = Bed::start(&["ctr", "containerd", "skopeo"], Options::default()) else { return };
    let digest = pushed(&bed);
    let hosts = bed.sandbox.path("certs.d");
    fs::create_dir_all(hosts.join(REGISTRY)).unwrap();
    let text = format!(
        "server = \"https://{REGISTRY}\"\n[host.\"https://{}\"]\ncapabilities = [\"pull\", \"resolve\"]\n",
        bed.mumbai().registry_by_name()
    );
    fs::write(hosts.join(REGISTRY).join("hosts.toml"), text).unwrap();
    let ctr = Ctr::start(&bed.sandbox);
    ctr.run("mirror", &["images", "pull", "--hosts-dir", path(&hosts), REFERENCE]).success();
    let listed = ctr.run("mirror", &["images", "list", &format!("name=={REFERENCE}")]);
    assert!(listed.stdout.contains(&digest), "{listed}");
    assert!(pulls_at_mumbai(&bed) > 0.0);
}

#[test]
fn podman_and_skopeo_find_a_site_by_their_registries_file() {
    let Some(bed) = Bed::start(&["podman", "skopeo"], Options::default()) else { return };
    let digest = pushed(&bed);
    let dir = bed.sandbox.path("home/.config/containers/registries.conf.d");
    fs::create_dir_all(&dir).unwrap();
    let site = bed.mumbai().registry_by_name();
    let text =
        format!("[[registry]]\nlocation = \"{REGISTRY}\"\n[[registry.mirror]]\nlocation = \"{site}\"\n");
    fs::write(dir.join("outport.conf"), text).unwrap();
    let from = format!("docker://{REFERENCE}");
    let pulled = bed.sandbox.path("pulled");
    bed.sandbox.ok(&["skopeo", "copy", "--src-no-creds", &from, &format!("dir:{}", path(&pulled))]);
    let manifest = fs::read(pulled.join("manifest.json")).unwrap();
    assert_eq!(outport_proto::Digest::sha256(&manifest).to_string(), digest);
    let before = pulls_at_mumbai(&bed);
    assert!(before > 0.0);
    let nobody = bed.sandbox.credentials(crate::scenario::As::Nobody);
    let dir = |part: &str| path(&bed.sandbox.path(&format!("podman/{part}"))).to_owned();
    let (root, tmp) = (dir("root"), dir("tmp"));
    let podman = ["podman", "--root", &root, "--runroot", "/run/podman-mirror", "--tmpdir", &tmp];
    let pull = ["--storage-driver", "vfs", "pull", "--quiet", "--authfile", path(&nobody), REFERENCE];
    bed.sandbox.ok(&[&podman[..], &pull[..]].concat());
    assert!(pulls_at_mumbai(&bed) > before);
}
