//! A registry that was there before.

use std::process::Command;

use crate::{
    agreement::{direct, report, tags, wait_applied, wait_backfilled},
    support::{
        BINARY, Cluster, Options,
        registry::{Lets, Registry},
        session::{OCI_MANIFEST, Session},
    },
};

const REPOS: &[&str] = &["library/debian", "team/app", "team/deep/er/tool"];

fn fill(registry: &Registry) {
    let session = Session::with_token(&registry.address(), "nobody looks at it");
    for repo in REPOS {
        for tag in ["1.0", "1.1", "latest"] {
            session.push_image(repo, tag, &[repo.as_bytes(), tag.as_bytes()]);
        }
    }
}

#[test]
fn what_a_registry_had_before_is_pulled_from_a_site_byte_for_byte() {
    let options =
        Options { registry: Some(Lets::Anybody), registry_filled: Some(fill), ..Options::default() };
    let cluster = Cluster::start(options);
    let site = &cluster.sites[1];
    let here = Session::user(&cluster, site, REPOS);
    let there = direct(&cluster);
    // It is there at once, walked or not.
    let tag = "/v2/team/app/manifests/1.1";
    assert_eq!(here.get(tag).text(), there.send("GET", tag, &[("Accept", OCI_MANIFEST)], b"").text());
    wait_backfilled(&cluster);
    wait_applied(&cluster, site);
    assert_eq!(tags(&here, REPOS), tags(&there, REPOS));
    for repo in REPOS {
        for tag in ["1.0", "1.1", "latest"] {
            let target = format!("/v2/{repo}/manifests/{tag}");
            let (mine, theirs) =
                (here.get(&target), there.send("GET", &target, &[("Accept", OCI_MANIFEST)], b""));
            assert_eq!(mine.body, theirs.body, "{target}");
            assert_eq!(mine.header("content-type"), theirs.header("content-type"));
            let manifest = theirs.json();
            let layers = manifest["layers"].as_array().unwrap();
            for blob in layers.iter().chain([&manifest["config"]]) {
                let target = format!("/v2/{repo}/blobs/{}", blob["digest"].as_str().unwrap());
                assert_eq!(here.get(&target).body, there.get(&target).body, "{target}");
            }
        }
    }
    let report = report(&cluster);
    assert_eq!((&report["missed"], &report["unfit"]), (&0.into(), &0.into()), "{report}");
}

#[test]
fn what_happens_at_the_registry_itself_is_found_by_a_walk() {
    let options =
        Options { registry: Some(Lets::Anybody), registry_filled: Some(fill), ..Options::default() };
    let cluster = Cluster::start(options);
    wait_backfilled(&cluster);
    let there = direct(&cluster);
    let reconcile = |repos: &[&str]| {
        let output = Command::new(BINARY)
            .arg("reconcile")
            .args(repos)
            .args(["--admin", &cluster.primary.admin(), "--json"])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()
    };
    let counts = |report: &serde_json::Value| ["found", "gone"].map(|name| report[name].as_u64().unwrap());
    assert_eq!(counts(&reconcile(&[])), [0, 0], "nothing has happened");
    // Moved, new, in a new repository, and deleted.
    there.push_image("team/app", "latest", &[b"moved"]);
    there.push_image("team/app", "2.0", &[b"new"]);
    there.push_image("team/new", "1", &[b"first"]);
    let gone = there.send("HEAD", "/v2/library/debian/manifests/1.0", &[("Accept", OCI_MANIFEST)], b"");
    let gone = gone.header("docker-content-digest").unwrap().to_owned();
    assert_eq!(there.send("DELETE", &format!("/v2/library/debian/manifests/{gone}"), &[], b"").status, 202);
    let [found, removed] = counts(&reconcile(&["team/app"]));
    assert_eq!([found, removed], [2, 0], "of one repository");
    let [found, removed] = counts(&reconcile(&[]));
    // The tag, and the manifest that it named.
    assert_eq!([found, removed], [1, 2], "of the others");
    let repos = [REPOS, &["team/new"]].concat();
    for site in &cluster.sites {
        wait_applied(&cluster, site);
        let here = Session::user(&cluster, site, &repos);
        assert_eq!(tags(&here, &repos), tags(&there, &repos), "{}", site.name);
        assert_eq!(here.get(&format!("/v2/library/debian/manifests/{gone}")).status, 404);
    }
}

#[test]
fn a_registry_that_lost_its_storage_takes_nothing_away() {
    let gateway_toml = "[gateway.reconcile]\nremovals_max = 5\n".to_owned();
    let options = Options {
        registry: Some(Lets::Anybody),
        registry_filled: Some(fill),
        gateway_toml,
        ..Options::default()
    };
    let mut cluster = Cluster::start(options);
    wait_backfilled(&cluster);
    cluster.wait_complete();
    let before = cluster.primary.status()["head_seq"].as_u64().unwrap();
    let registry = cluster.registry.as_mut().unwrap();
    registry.kill();
    std::fs::rename(&registry.storage, registry.storage.with_extension("away")).unwrap();
    registry.start();
    let output =
        Command::new(BINARY).args(["reconcile", "--admin", &cluster.primary.admin()]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("--accept-removals"), "{said}");
    let status = cluster.primary.status();
    assert!(status["head_seq"].as_u64().unwrap() <= before + 5, "{before} {status}");
    assert!(status["gateway"]["alarm"].as_str().unwrap().contains("lacks more than 5"), "{status}");
    // Questions do not take more away either: those who ask a primary that cannot know are told so.
    let pusher = Session::user(&cluster, &cluster.primary, REPOS);
    let asked = REPOS.iter().flat_map(|repo| {
        ["1.0", "1.1", "latest"].map(|tag| pusher.get(&format!("/v2/{repo}/manifests/{tag}")).status)
    });
    let unknown = asked.filter(|status| *status == 404).count();
    assert!(unknown <= 10, "{unknown}");
    let head = cluster.primary.status()["head_seq"].as_u64().unwrap();
    assert!(head <= before + 10, "{before} {head}");
    let registry = cluster.registry.as_mut().unwrap();
    registry.kill();
    // Nobody pushed meanwhile, so that it may not even be there.
    let _ = std::fs::remove_dir_all(&registry.storage);
    std::fs::rename(registry.storage.with_extension("away"), &registry.storage).unwrap();
    registry.start();
    let output =
        Command::new(BINARY).args(["reconcile", "--admin", &cluster.primary.admin()]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(cluster.primary.status()["gateway"]["alarm"], serde_json::Value::Null);
    let site = &cluster.sites[0];
    wait_applied(&cluster, site);
    assert_eq!(tags(&Session::user(&cluster, site, REPOS), REPOS), tags(&direct(&cluster), REPOS));
}

#[test]
fn blobs_come_from_the_registrys_own_files_when_it_is_down() {
    let dir = tempfile::tempdir().unwrap();
    // Where the cluster puts it is known once it is there.
    let place = dir.path().join("storage");
    let gateway_toml = format!("storage = '{}'\n", place.display());
    std::fs::create_dir(&place).unwrap();
    let options = Options {
        registry: Some(Lets::Anybody),
        registry_filled: Some(fill),
        gateway_toml,
        site_toml: "[[policy]]\nkeep = 'lazy'\n".to_owned(),
        ..Options::default()
    };
    let mut cluster = Cluster::start(options);
    wait_backfilled(&cluster);
    let registry = cluster.registry.as_mut().unwrap();
    std::fs::remove_dir(&place).unwrap();
    std::os::unix::fs::symlink(&registry.storage, &place).unwrap();
    registry.kill();
    let site = &cluster.sites[0];
    wait_applied(&cluster, site);
    let here = Session::user(&cluster, site, REPOS);
    for repo in REPOS {
        let manifest = here.get(&format!("/v2/{repo}/manifests/1.1")).json();
        for layer in manifest["layers"].as_array().unwrap() {
            let response = here.get(&format!("/v2/{repo}/blobs/{}", layer["digest"].as_str().unwrap()));
            assert_eq!(response.status, 200, "{}", response.text());
            assert_eq!(response.body.len() as u64, layer["size"].as_u64().unwrap());
        }
    }
}
