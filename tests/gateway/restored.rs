//! A gateway that comes back from a backup, in front of a registry that went on without it.

use std::{fs, process::Command};

use crate::{
    agreement::{direct, report, wait_applied, wait_backfilled},
    support::{BINARY, Cluster, Options, path, registry::Lets, session::Session, wait_for},
};

const REPO: &str = "team/app";
const LATEST: &str = "/v2/team/app/manifests/latest";

fn copy(from: &std::path::Path, to: &std::path::Path) {
    let _ = fs::remove_dir_all(to);
    assert!(Command::new("cp").args(["-a", path(from), path(to)]).status().unwrap().success());
}

/// Starts the primary with what is in `backup`, walking slowly.
fn restore(cluster: &mut Cluster, backup: &std::path::Path) {
    cluster.primary.stop();
    copy(backup, cluster.primary.data());
    let config = fs::read_to_string(cluster.primary.config()).unwrap();
    let slower = config.replace("requests_per_second = 5000", "requests_per_second = 4");
    fs::write(cluster.primary.config(), slower).unwrap();
    cluster.primary.arguments = vec!["--restored".to_owned()];
    cluster.primary.start();
}

#[test]
fn a_gateway_that_comes_back_from_a_backup_asks_before_it_answers() {
    let mut cluster = Cluster::start(Options {
        registry: Some(Lets::Anybody),
        sites: vec!["mumbai"],
        gateway_toml: "[gateway.reconcile]\nrequests_per_second = 5000\n".to_owned(),
        ..Options::default()
    });
    wait_backfilled(&cluster);
    let there = direct(&cluster);
    let reconcile = |cluster: &Cluster| {
        let arguments = ["reconcile", "--admin", &cluster.primary.admin()];
        assert!(Command::new(BINARY).args(arguments).status().unwrap().success());
        wait_applied(cluster, &cluster.sites[0]);
    };
    for number in 0..40 {
        there.push_image(REPO, &format!("t{number}"), &[b"layer"]);
    }
    let old = there.push_image(REPO, "latest", &[b"old"]);
    reconcile(&cluster);
    let backup = cluster.dir.path().join("backup");
    cluster.primary.stop();
    copy(cluster.primary.data(), &backup);
    cluster.primary.start();

    let new = there.push_image(REPO, "latest", &[b"new"]);
    let late = there.push_image(REPO, "late", &[b"late"]);
    reconcile(&cluster);
    let site = |cluster: &Cluster| Session::anyone(cluster, &cluster.sites[0], &[REPO]);
    assert_eq!(site(&cluster).get(LATEST).body, new.manifest);

    let before = cluster.primary.status()["epoch"].as_u64().unwrap();
    restore(&mut cluster, &backup);
    cluster.sites[0].wait_until(|status| {
        status["epoch"].as_u64().unwrap() > before
            && status["state"] == "streaming"
            && status["lag_events"] == 0
    });
    for node in [&cluster.primary, &cluster.sites[0]] {
        let here = Session::anyone(&cluster, node, &[REPO]);
        assert_eq!(here.get(LATEST).body, new.manifest, "{}", node.name);
        assert_eq!(here.get("/v2/team/app/manifests/late").body, late.manifest, "{}", node.name);
    }
    assert!(report(&cluster)["last_reconciled_at"].is_null(), "the walk is not through yet");
    wait_backfilled(&cluster);
    wait_applied(&cluster, &cluster.sites[0]);
    // From here on the log answers.
    cluster.registry.as_mut().unwrap().kill();
    wait_for("a fresh answer", || {
        let response = site(&cluster).get(LATEST);
        assert_eq!(response.body, new.manifest);
        response.header("warning").is_none().then_some(())
    });

    // And while neither the log nor the registry can tell, nobody says that an answer is fresh.
    restore(&mut cluster, &backup);
    let known = Session::anyone(&cluster, &cluster.primary, &[REPO]).get(LATEST);
    assert!(known.header("warning").is_some(), "{} {:?}", known.status, known.headers);
    assert_eq!(known.body, old.manifest);
}
