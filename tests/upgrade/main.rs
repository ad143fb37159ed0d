//! Nodes of two versions: a site and its primary, or the relay between them, may be of the version before, and a fleet is
//! upgraded and brought back node by node, while what was pushed at any time stays.

#![cfg(test)]
#![expect(
    unreachable_pub,
    reason = "a test binary is reached by nobody: `pub` tells its modules apart well enough"
)]

#[path = "../support/mod.rs"]
mod support;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
};

use support::{
    Cluster, Node, Options, path,
    session::{Image, Session, bytes},
};

/// The newest commit that speaks wire version 2 and not yet 3. When a version is added, its last commit goes here.
const BEFORE: &str = "9d0dd36e44479d6058f331535b1df82d421a3285";
const REPO: &str = "team/app";

/// The program of [`BEFORE`], built from this repository's own history.
fn before() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("before").join(BEFORE);
        let (source, target) = (dir.join("source"), dir.join("target"));
        if !source.is_dir() {
            // Under its name once all of it is there.
            let partial = dir.join("partial");
            fs::create_dir_all(&partial).unwrap();
            extract(&partial);
            fs::rename(&partial, &source).unwrap();
        }
        let built = Command::new(env!("CARGO"))
            .args(["build", "--quiet", "--locked", "--bin", "outport", "--manifest-path"])
            .arg(source.join("Cargo.toml"))
            // Apart from what is built now: packages of one name would be taken for one another.
            .env("CARGO_TARGET_DIR", &target)
            .env("CARGO_PROFILE_DEV_DEBUG", "0")
            .status()
            .unwrap();
        assert!(built.success(), "the program of {BEFORE} cannot be built");
        target.join("debug/outport")
    })
}

fn extract(source: &Path) {
    let root = env!("CARGO_MANIFEST_DIR");
    let mut archive = Command::new("git")
        .args(["-C", root, "archive", "--format=tar", BEFORE])
        .stdout(Stdio::piped())
        .spawn()
        .expect("git is needed to get at the version before");
    let unpacked = Command::new("tar")
        .args(["-x", "-C", path(source)])
        .stdin(archive.stdout.take().unwrap())
        .status()
        .unwrap();
    let is_there = archive.wait().unwrap().success() && unpacked.success();
    assert!(is_there, "this clone does not have commit {BEFORE}: `git fetch --unshallow` gets it");
}

/// What was pushed so far, by tag.
#[derive(Default)]
struct Pushed(Vec<(String, Image)>);

impl Pushed {
    /// Pushes a new image through each node, moves a tag there, and pulls everything everywhere.
    fn push_and_pull(&mut self, cluster: &Cluster) {
        for node in cluster.nodes() {
            let number = self.0.len();
            let image = Session::user(cluster, node, &[REPO]).push_image(
                REPO,
                &format!("v{number}"),
                &[&bytes(50_000, number as u64)],
            );
            let moved = Session::user(cluster, node, &[REPO]).put_manifest(REPO, "latest", &image.manifest);
            assert_eq!(moved.status, 201, "{}: {}", node.name, moved.text());
            self.0.push((format!("v{number}"), image));
            self.pull_all(cluster);
        }
        cluster.wait_complete();
    }

    fn pull_all(&self, cluster: &Cluster) {
        let newest = self.0.last().map(|(_, image)| ("latest".to_owned(), image));
        for node in cluster.nodes() {
            let puller = Session::anyone(cluster, node, &[REPO]);
            for (tag, image) in self.0.iter().map(|(tag, image)| (tag.clone(), image)).chain(newest.clone()) {
                let got = puller.get(&format!("/v2/{REPO}/manifests/{tag}"));
                assert_eq!(got.status, 200, "{tag} at {}: {}", node.name, got.text());
                assert!(got.body == image.manifest, "{tag} at {} is another one", node.name);
                assert_eq!(got.header("warning"), None, "{tag} at {}", node.name);
            }
        }
    }
}

/// Stops a node and starts another program in its place, with what it has on its disk.
fn replace(node: &mut Node, program: &Path) {
    node.stop();
    node.program = program.to_owned();
    node.start();
    if node.name != "primary" {
        node.wait_until(|status| status["state"] == "streaming");
    }
}

#[test]
fn sites_and_primaries_of_two_versions_work_together() {
    for old in [&["primary"][..], &["mumbai"], &["mumbai", "pune"]] {
        let cluster = Cluster::start(Options {
            sites: vec!["mumbai", "pune", "frankfurt"],
            behind: vec![("pune", "mumbai")],
            program_of: old.iter().map(|name| (*name, before().to_owned())).collect(),
            ..Options::default()
        });
        let mut pushed = Pushed::default();
        for _ in 0..2 {
            pushed.push_and_pull(&cluster);
        }
        for site in &cluster.sites {
            assert_eq!(site.status()["state_mismatches"], 0, "{} beside old {old:?}", site.name);
        }
    }
}

#[test]
fn a_fleet_is_upgraded_and_brought_back_node_by_node() {
    let names = ["primary", "frankfurt", "mumbai"];
    let mut cluster = Cluster::start(Options {
        program_of: names.iter().map(|name| (*name, before().to_owned())).collect(),
        ..Options::default()
    });
    let mut pushed = Pushed::default();
    pushed.push_and_pull(&cluster);
    // As the handbook says: sites first, and back in the other order.
    let new = PathBuf::from(support::BINARY);
    for (order, program) in
        [(["mumbai", "frankfurt", "primary"], &*new), (["primary", "frankfurt", "mumbai"], before())]
    {
        for name in order {
            match name {
                "primary" => replace(&mut cluster.primary, program),
                site => replace(cluster.site_mut(site), program),
            }
            for site in &cluster.sites {
                site.wait_until(|status| status["state"] == "streaming");
            }
            pushed.push_and_pull(&cluster);
        }
    }
    assert_eq!(pushed.0.len(), 7 * 3);
}
