//! Where a walk gets the names of repositories from, and what becomes of it on the way.

use std::{
    process::Command,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
};

use crate::{
    agreement::report,
    hostile::{LAYER, in_front_of, json, manifest_of, nothing_but},
    liar::{Asked, Liar, Reply},
    support::{
        BINARY, Cluster,
        http::get_plain,
        session::{Session, image},
        wait_for,
    },
};

/// A registry whose catalog is closed, with `names` in it, each with one tag.
fn closed(names: &'static [&'static str], special: fn(&Asked) -> Option<Reply>) -> Liar {
    nothing_but(move |asked| {
        let path = asked.path.split('?').next().unwrap();
        if path == "/v2/_catalog" {
            return Some(Reply::Whole(401, Vec::new(), b"{}".to_vec()));
        }
        if path.contains("/blobs/") {
            return Some(Reply::ok(&[], LAYER));
        }
        for name in names {
            if path == format!("/v2/{name}/tags/list") {
                return Some(json(&[], &serde_json::json!({ "name": name, "tags": ["1"] })));
            }
            if path.starts_with(&format!("/v2/{name}/manifests/")) {
                return Some(manifest_of(&image(&[LAYER])));
            }
        }
        special(asked)
    })
}

fn repositories(cluster: &Cluster) -> usize {
    wait_for("everything to be walked", || report(cluster)["last_reconciled_at"].as_u64());
    assert_eq!(report(cluster)["failed"], 0, "{}", report(cluster));
    report(cluster)["found"].as_u64().unwrap() as usize
}

#[test]
fn names_come_from_a_list_or_a_file_where_the_catalog_is_closed() {
    let liar = closed(&["team/app", "team/other"], |_| None);
    let cluster = in_front_of(&liar, "");
    let error = wait_for("the walk to stop", || report(&cluster)["error"].as_str().map(str::to_owned));
    assert!(error.contains("gateway.reconcile.source"), "{error}");
    assert_eq!(cluster.primary.metric("outport_gateway_alarm", ""), 1.0);
    drop(cluster);

    let list = "[gateway.reconcile]\nsource = 'list'\nrepositories = ['team/app', 'team/other']\n";
    assert_eq!(repositories(&in_front_of(&liar, list)), 2);

    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("names");
    std::fs::write(&file, "# ours\nteam/app\n\n  team/other\n").unwrap();
    let of_file = format!("[gateway.reconcile]\nsource = 'file'\nfile = '{}'\n", file.display());
    assert_eq!(repositories(&in_front_of(&liar, &of_file)), 2);
    std::fs::write(&file, "team/app\nNot One\n").unwrap();
    let cluster = in_front_of(&liar, &of_file);
    let error = wait_for("the walk to stop", || report(&cluster)["error"].as_str().map(str::to_owned));
    assert!(error.contains("line 2"), "{error}");
}

#[test]
fn names_come_from_gitlabs_projects() {
    let liar = closed(&["team/app", "team/app/worker", "other/tool"], |asked| {
        let page = |next: &str, value: serde_json::Value| match next {
            "" => json(&[], &value),
            next => json(&[("Link", format!("<{next}>; rel=\"next\""))], &value),
        };
        Some(match asked.path.as_str() {
            "/api/v4/projects?pagination=keyset&per_page=100&order_by=id&sort=asc" => {
                let projects = serde_json::json!([
                    { "id": 1, "container_registry_access_level": "enabled" },
                    { "id": 2, "container_registry_access_level": "disabled" },
                ]);
                page("/api/v4/projects?id_after=2&pagination=keyset", projects)
            }
            "/api/v4/projects?id_after=2&pagination=keyset" => page("", serde_json::json!([{ "id": 3 }])),
            "/api/v4/projects/1/registry/repositories?per_page=100" => {
                let next = "/api/v4/projects/1/registry/repositories?per_page=100&page=2";
                page(next, serde_json::json!([{ "id": 9, "path": "team/app", "location": "x" }]))
            }
            "/api/v4/projects/1/registry/repositories?per_page=100&page=2" => {
                page("", serde_json::json!([{ "path": "team/app/worker" }]))
            }
            "/api/v4/projects/3/registry/repositories?per_page=100" => {
                page("", serde_json::json!([{ "path": "other/tool" }]))
            }
            _ => return None,
        })
    });
    let dir = tempfile::tempdir().unwrap();
    let token = dir.path().join("token");
    std::fs::write(&token, "glpat-made-up\n").unwrap();
    let gitlab = format!(
        "[gateway.reconcile]\nsource = 'gitlab'\ngitlab_url = '{}'\ngitlab_token_file = '{}'\n",
        liar.url(),
        token.display()
    );
    assert_eq!(repositories(&in_front_of(&liar, &gitlab)), 3);
    let (api, registry): (Vec<Asked>, Vec<Asked>) =
        liar.asked().into_iter().partition(|asked| asked.path.starts_with("/api/"));
    assert!(api.iter().all(|asked| asked.private_token.as_deref() == Some("glpat-made-up")));
    assert!(registry.iter().all(|asked| asked.private_token.is_none()), "the token is for the API alone");
    assert!(api.iter().all(|asked| !asked.path.contains("/2/registry")), "its registry is turned off");
}

#[test]
fn a_tag_that_moved_to_what_no_site_can_serve_stays_where_it_was_and_says_so() {
    static IS_FIT: AtomicBool = AtomicBool::new(true);
    let liar = nothing_but(|asked| {
        let path = asked.path.split('?').next().unwrap();
        Some(match path {
            "/v2/_catalog" => json(&[], &serde_json::json!({ "repositories": ["team/app"] })),
            "/v2/team/app/tags/list" => json(&[], &serde_json::json!({ "name": "team/app", "tags": ["1"] })),
            _ if path.contains("/blobs/") => Reply::ok(&[], LAYER),
            _ if !path.contains("/manifests/") => return None,
            _ if IS_FIT.load(Relaxed) => manifest_of(&image(&[LAYER])),
            _ => manifest_of(b"{\"schemaVersion\":1}"),
        })
    });
    let cluster = in_front_of(&liar, "");
    assert_eq!(repositories(&cluster), 1);
    let alarm = || cluster.primary.status()["gateway"]["alarm"].as_str().map(str::to_owned);
    assert_eq!(alarm(), None);
    let reconcile = || {
        let arguments = ["reconcile", "--admin", &cluster.primary.admin()];
        Command::new(BINARY).args(arguments).output().unwrap().status.code()
    };
    IS_FIT.store(false, Relaxed);
    assert_eq!(reconcile(), Some(3));
    let stuck = alarm().unwrap();
    assert!(stuck.contains("served as they were before") && stuck.contains("team/app: 1"), "{stuck}");
    let here = Session::anyone(&cluster, &cluster.sites[0], &["team/app"]);
    assert_eq!(here.get("/v2/team/app/manifests/1").body, image(&[LAYER]));
    IS_FIT.store(true, Relaxed);
    assert_eq!(reconcile(), Some(0));
    assert_eq!(alarm(), None);
}

#[test]
fn a_walk_goes_on_where_it_stopped_and_one_bad_manifest_stops_nothing() {
    const REPOSITORIES: usize = 200;
    static KILLED_AT: AtomicUsize = AtomicUsize::new(0);
    let liar = nothing_but(|asked| {
        let path = asked.path.split('?').next().unwrap();
        if path == "/v2/_catalog" {
            let names: Vec<String> = (0..REPOSITORIES).map(|number| format!("r{number:03}")).collect();
            return Some(json(&[], &serde_json::json!({ "repositories": names })));
        }
        let name = path.strip_prefix("/v2/")?.split('/').next()?;
        Some(match path {
            _ if path.ends_with("/tags/list") => {
                json(&[], &serde_json::json!({ "name": name, "tags": ["1"] }))
            }
            _ if path.contains("/blobs/") => Reply::ok(&[], LAYER),
            _ if name == "r007" => Reply::Whole(500, Vec::new(), b"{}".to_vec()),
            _ if name == "r008" => manifest_of(&vec![b' '; 4 * 1024 * 1024 + 1]),
            _ => manifest_of(&image(&[LAYER])),
        })
    });
    let mut cluster = in_front_of(&liar, "[gateway.reconcile]\nrequests_per_second = 150\nconcurrency = 2\n");
    let walked = |cluster: &Cluster| report(cluster)["repositories"].as_u64().unwrap() as usize;
    wait_for("some of it to be walked", || (walked(&cluster) > 80).then_some(()));
    cluster.primary.kill();
    KILLED_AT.store(liar.asked().len(), Relaxed);
    cluster.primary.start();
    wait_for("everything to be walked", || report(&cluster)["last_reconciled_at"].as_u64());
    let asked = liar.asked();
    let first = asked[KILLED_AT.load(Relaxed)..].iter().find(|asked| asked.path.contains("/tags/list"));
    assert!(first.unwrap().path.as_str() > "/v2/r060", "{first:?}");
    let (_, page) = get_plain(&cluster.primary.admin(), "/v1/reconcile").unwrap();
    assert_eq!(report(&cluster)["failed"], 2, "{page}");
    let alarm = cluster.primary.status()["gateway"]["alarm"].as_str().unwrap().to_owned();
    assert!(alarm.contains("r007") || alarm.contains("r008"), "{alarm}");
    // All but those two.
    wait_for("all others to be in the log", || {
        let seq = cluster.primary.status()["head_seq"].as_u64().unwrap() as usize;
        (seq >= (REPOSITORIES - 2) * 2).then_some(())
    });
}

#[test]
fn a_registry_that_fails_at_everything_stops_the_walk_and_takes_nothing_away() {
    static FAILS: AtomicUsize = AtomicUsize::new(0);
    let liar = nothing_but(|asked| {
        let path = asked.path.split('?').next().unwrap();
        let tags: Vec<String> = (0..40).map(|number| format!("v{number}")).collect();
        Some(match path {
            "/v2/_catalog" => json(&[], &serde_json::json!({ "repositories": ["team/app"] })),
            "/v2/team/app/tags/list" => json(&[], &serde_json::json!({ "name": "team/app", "tags": tags })),
            _ if FAILS.load(Relaxed) > 0 && path.contains("/manifests/") => {
                Reply::Whole(502, Vec::new(), b"<html>bad gateway</html>".to_vec())
            }
            _ if path.contains("/manifests/") => manifest_of(&image(&[LAYER])),
            _ if path.contains("/blobs/") => Reply::ok(&[], LAYER),
            _ => return None,
        })
    });
    let cluster = in_front_of(&liar, "[gateway.reconcile]\nrequests_per_second = 1000\nconcurrency = 16\n");
    assert_eq!(repositories(&cluster), 40);
    let before = cluster.primary.status()["head_seq"].clone();
    FAILS.store(1, Relaxed);
    let output = std::process::Command::new(crate::support::BINARY)
        .args(["reconcile", "--admin", &cluster.primary.admin()])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("status 502"), "{said}");
    let status = cluster.primary.status();
    assert_eq!(status["head_seq"], before);
    assert!(status["gateway"]["alarm"].as_str().unwrap().contains("stopped"), "{status}");
}
