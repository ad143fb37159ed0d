//! Clients that are told of a site by their configuration instead of by DNS, as the handbook says.

use std::{fs, path::PathBuf};

use crate::{
    bed::Bed,
    ctr::Ctr,
    docker::Docker,
    image::{Layout, OCI_MANIFEST},
    kubelet::Kubelet,
    scenario::As,
    support::{Options, USER, path},
};

/// The one name, which leads nowhere here.
const REGISTRY: &str = "registry.example.com";
const REFERENCE: &str = "registry.example.com/team/app:one";

/// An image that was pushed to the primary; its digest.
fn pushed(bed: &Bed) -> String {
    pushed_to(bed, "team/app")
}

fn pushed_to(bed: &Bed, repo: &str) -> String {
    let layout = Layout::create(&bed.sandbox.path("layout"));
    let manifest = layout.large_image(1_000_000);
    layout.refer_to(&[(OCI_MANIFEST, &manifest, "one")]);
    let from = format!("oci:{}:one", layout.dir.display());
    let to = format!("docker://{}", bed.reference(&bed.cluster.primary, repo, "one"));
    let credentials = format!("{USER}:{}", bed.cluster.password);
    bed.sandbox.ok(&["skopeo", "copy", "--dest-creds", &credentials, &from, &to]);
    outport_proto::Digest::sha256(&manifest).to_string()
}

/// The directory of a containerd that is told of mumbai.
fn hosts(bed: &Bed) -> PathBuf {
    let hosts = bed.sandbox.path("certs.d");
    fs::create_dir_all(hosts.join(REGISTRY)).unwrap();
    let text = format!(
        "server = \"https://{REGISTRY}\"\n[host.\"https://{}\"]\ncapabilities = [\"pull\", \"resolve\"]\n",
        bed.mumbai().registry_by_name()
    );
    fs::write(hosts.join(REGISTRY).join("hosts.toml"), text).unwrap();
    hosts
}

fn pulls_at_mumbai(bed: &Bed) -> f64 {
    bed.mumbai().metric("outport_pulls_total", "")
}

#[test]
fn containerd_finds_a_site_by_its_hosts_file() {
    let Some(bed) = Bed::start(&["ctr", "containerd", "skopeo"], Options::default()) else { return };
    let digest = pushed(&bed);
    let hosts = hosts(&bed);
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
    let nobody = bed.sandbox.credentials(As::Nobody);
    let dir = |part: &str| path(&bed.sandbox.path(&format!("podman/{part}"))).to_owned();
    let (root, tmp) = (dir("root"), dir("tmp"));
    let podman = ["podman", "--root", &root, "--runroot", "/run/podman-mirror", "--tmpdir", &tmp];
    let pull = ["--storage-driver", "vfs", "pull", "--quiet", "--authfile", path(&nobody), REFERENCE];
    bed.sandbox.ok(&[&podman[..], &pull[..]].concat());
    assert!(pulls_at_mumbai(&bed) > before);
}

#[test]
fn docker_asks_a_mirror_for_names_of_docker_hub_alone() {
    let Some(bed) = Bed::start(&["docker", "dockerd", "skopeo"], Options::default()) else { return };
    let digest = pushed(&bed);
    let mirror = format!("--registry-mirror=https://{}", bed.mumbai().registry_by_name());
    let docker = Docker::start(&bed.sandbox, &[&mirror]);
    let pulled = docker.run(As::Nobody, &["pull", "docker.io/team/app:one"]).success();
    assert!(pulled.stdout.contains(&digest), "{pulled}");
    let before = pulls_at_mumbai(&bed);
    assert!(before > 0.0);
    let other = docker.run(As::Nobody, &["pull", REFERENCE]);
    assert!(!other.succeeded, "a name that leads nowhere: {other}");
    assert_eq!(pulls_at_mumbai(&bed), before);
}

#[test]
fn a_kubelet_pulls_at_a_site_with_the_secret_of_the_one_name() {
    let options = Options { public: "team/**", ..Options::default() };
    let Some(bed) = Bed::start(&["containerd", "skopeo"], options) else { return };
    let digest = pushed_to(&bed, "private/app");
    let kubelet = Kubelet::start(&bed.sandbox, &hosts(&bed));
    let image = format!("{REGISTRY}/private/app:one");
    let refused = kubelet.pull(&image, None).unwrap_err();
    assert!(refused.contains("authorization failed") || refused.contains("401"), "{refused}");
    let secret = (USER, bed.cluster.password.as_str());
    kubelet.pull(&image, Some(secret)).unwrap_or_else(|error| panic!("{error}"));
    let images = kubelet.images();
    assert!(images.contains(&digest), "{images}");
    assert!(pulls_at_mumbai(&bed) > 0.0);
}
