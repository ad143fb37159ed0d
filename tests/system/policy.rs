//! What a site keeps, in which order and how fast, as its operator wrote it down.

use std::{
    fs,
    process::Command,
    time::{Duration, Instant},
};

use outport_proto::Digest;
use serde_json::{Value, json};

use crate::{
    far::moved_away,
    support::{
        BINARY, Cluster, Node, Options, PATIENCE,
        http::Response,
        session::{OCI_MANIFEST, Session, bytes},
        wait_for,
    },
};

const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";

fn cluster(rules: &str) -> Cluster {
    Cluster::start(Options { sites: vec!["mumbai"], site_toml: rules.to_owned(), ..Options::default() })
}

fn blobs(site: &Node) -> u64 {
    site.status()["store"]["blobs"].as_u64().unwrap()
}

/// Everything that happened is at the site, and all that it keeps of it.
fn settled(cluster: &Cluster) {
    let head = cluster.primary.status()["head_seq"].clone();
    cluster.sites[0].wait_until(|status| status["applied_seq"] == head && status["complete_seq"] == head);
}

fn why(site: &Node, image: &str) -> Value {
    let output =
        Command::new(BINARY).args(["why", image, "--json", "--admin", &site.admin()]).output().unwrap();
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Pushes an image for an architecture under its digest; returns what an index says of it.
fn child(pusher: &Session, repo: &str, architecture: &str, layer: &[u8]) -> Value {
    let config = json!({ "os": "linux", "architecture": architecture }).to_string();
    let described = |media_type: &str, content: &[u8]| {
        let digest = pusher.push_blob(repo, content);
        json!({ "mediaType": media_type, "digest": digest.to_string(), "size": content.len() })
    };
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": described("application/vnd.oci.image.config.v1+json", config.as_bytes()),
        "layers": [described("application/vnd.oci.image.layer.v1.tar", layer)],
    })
    .to_string();
    let digest = Digest::sha256(manifest.as_bytes()).to_string();
    assert_eq!(pusher.put_manifest(repo, &digest, manifest.as_bytes()).status, 201);
    json!({
        "mediaType": OCI_MANIFEST,
        "digest": digest,
        "size": manifest.len(),
        "platform": { "os": "linux", "architecture": architecture },
    })
}

fn put_index(pusher: &Session, repo: &str, tag: &str, children: &[Value]) -> Vec<u8> {
    let index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": children }).to_string();
    let target = format!("/v2/{repo}/manifests/{tag}");
    assert_eq!(pusher.send("PUT", &target, &[("Content-Type", OCI_INDEX)], index.as_bytes()).status, 201);
    index.into_bytes()
}

#[test]
fn eager_lazy_and_exclude() {
    let mut cluster = cluster(
        "[[policy]]\nrepository = 'base/*'\nkeep = 'eager'\n\
         [[policy]]\nrepository = 'archive/*'\nkeep = 'exclude'\n\
         [[policy]]\nkeep = 'lazy'\n",
    );
    let repos = ["base/os", "team/app", "archive/old"];
    let pusher = Session::user(&cluster, &cluster.primary, &repos);
    let layers = [bytes(100_000, 1), bytes(200_000, 2), bytes(300_000, 3)];
    let pushed: Vec<_> =
        repos.iter().zip(&layers).map(|(repo, layer)| pusher.push_image(repo, "1", &[layer])).collect();
    settled(&cluster);
    let site = &cluster.sites[0];
    assert_eq!(blobs(site), 2, "layer and config of the eager one");
    let (lazy, excluded) = (why(site, "team/app:1"), why(site, "archive/old:1"));
    assert_eq!((&lazy["code"], &lazy["rule"]), (&"not_kept".into(), &"rule 3: everything".into()));
    assert_eq!(excluded["rule"], "rule 2: repository = \"archive/*\"", "{excluded}");
    let sentence = excluded["sentence"].as_str().unwrap();
    assert!(sentence.contains("not replicated by policy (rule 2: repository"), "{sentence}");

    let puller = Session::anyone(&cluster, site, &repos);
    let blob = |puller: &Session, number: usize| {
        puller.get(&format!("/v2/{}/blobs/{}", repos[number], Digest::sha256(&layers[number])))
    };
    let upstream = || site.metric("outport_upstream_bytes_total", "");
    let before = upstream();
    for _ in 0..2 {
        assert_eq!(blob(&puller, 1).body, layers[1]);
        assert_eq!(blob(&puller, 2).body, layers[2]);
    }
    wait_for("the lazy layer to be kept", || (blobs(site) == 3).then_some(()));
    assert_eq!(upstream() - before, 200_000.0 + 2.0 * 300_000.0, "one is kept, the other is not");
    settled(&cluster);

    // Without the primary all of them are known, and what is on disk can be had.
    cluster.primary.kill();
    for (repo, pushed) in repos.iter().zip(&pushed) {
        let manifest = puller.get(&format!("/v2/{repo}/manifests/{}", pushed.digest));
        assert_eq!((manifest.status, manifest.body == pushed.manifest), (200, true), "{repo}");
    }
    assert_eq!([0, 1, 2].map(|number| blob(&puller, number).status), [200, 200, 503]);
}

#[test]
fn an_index_with_excluded_platforms_is_served_as_it_is_and_its_children_are_filled() {
    let cluster =
        cluster("[[policy]]\nplatforms = ['linux/amd64']\nkeep = 'eager'\n[[policy]]\nkeep = 'exclude'\n");
    let repo = "team/app";
    let pusher = Session::user(&cluster, &cluster.primary, &[repo]);
    let (amd, arm) = (bytes(100_000, 4), bytes(200_000, 5));
    let arm_child = child(&pusher, repo, "arm64", &arm);
    let amd_child = child(&pusher, repo, "amd64", &amd);
    let site = &cluster.sites[0];
    wait_for("what is kept, before any index names it", || (blobs(site) == 2).then_some(()));
    let index = put_index(&pusher, repo, "1", &[amd_child, arm_child.clone()]);
    settled(&cluster);
    assert_eq!(blobs(site), 2);

    let puller = Session::anyone(&cluster, site, &[repo]);
    let served = puller.get(&format!("/v2/{repo}/manifests/1"));
    assert_eq!((served.status, served.body == index), (200, true), "{}", served.text());
    let child = arm_child["digest"].as_str().unwrap();
    assert_eq!(puller.get(&format!("/v2/{repo}/manifests/{child}")).status, 200);
    let layer = |content: &[u8]| puller.get(&format!("/v2/{repo}/blobs/{}", Digest::sha256(content))).body;
    assert_eq!((layer(&amd), layer(&arm)), (amd.clone(), arm.clone()));
    assert_eq!(blobs(site), 2, "it is not kept");
    let why = why(site, &format!("{repo}:1"));
    assert_eq!(
        (&why["code"], &why["keep"], &why["blobs"]),
        (&"not_kept".into(), &"exclude".into(), &2.into())
    );
}

#[test]
fn tags_decide_once_they_are_known() {
    let cluster = cluster("[[policy]]\nsemver = '>=1.2, <2'\nkeep = 'eager'\n[[policy]]\nkeep = 'lazy'\n");
    let repo = "team/app";
    let pusher = Session::user(&cluster, &cluster.primary, &[repo]);
    pusher.push_image(repo, "latest", &[&bytes(1000, 6)]);
    let child = child(&pusher, repo, "amd64", &bytes(2000, 7));
    let site = &cluster.sites[0];
    settled(&cluster);
    assert_eq!(blobs(site), 0, "nothing waits for a tag that may never come");
    put_index(&pusher, repo, "v1.4", &[child]);
    settled(&cluster);
    assert_eq!(blobs(site), 2);
}

#[test]
fn another_policy_holds_from_the_next_start() {
    let rule = |keep: &str| format!("[[policy]]\nrepository = 'archive/**'\nkeep = '{keep}'\n");
    let mut cluster = cluster(&rule("eager"));
    let repos = ["archive/old", "team/app"];
    let pusher = Session::user(&cluster, &cluster.primary, &repos);
    let (old, shared) = (bytes(100_000, 8), bytes(50_000, 9));
    pusher.push_image("archive/old", "1", &[&old, &shared]);
    pusher.push_image("team/app", "1", &[&shared]);
    settled(&cluster);
    assert_eq!(blobs(&cluster.sites[0]), 3, "two layers and a config");
    let restart = |cluster: &mut Cluster, from: &str, to: &str| {
        let site = &mut cluster.sites[0];
        site.stop();
        let text = fs::read_to_string(site.config()).unwrap();
        fs::write(site.config(), text.replace(&rule(from), &rule(to))).unwrap();
        site.start();
        // Until it has found its primary it cannot fetch what it does not have.
        site.wait_until(|status| status["state"] == "streaming");
    };
    restart(&mut cluster, "eager", "exclude");
    settled(&cluster);
    let site = &cluster.sites[0];
    wait_for("what is excluded to go", || (blobs(site) == 2).then_some(()));
    let puller = Session::anyone(&cluster, site, &repos);
    let target = |repo: &str, content: &[u8]| format!("/v2/{repo}/blobs/{}", Digest::sha256(content));
    assert_eq!(puller.get(&target("archive/old", &old)).body, old);
    assert_eq!(puller.get(&target("team/app", &shared)).body, shared);
    settled(&cluster);
    assert_eq!(blobs(site), 2);
    restart(&mut cluster, "exclude", "eager");
    wait_for("it to be copied again", || (blobs(&cluster.sites[0]) == 3).then_some(()));
    settled(&cluster);
}

#[test]
fn higher_priorities_are_copied_first() {
    let mut cluster = cluster(
        "[[policy]]\nrepository = 'base/*'\nkeep = 'eager'\npriority = 5\n\
         [[bandwidth]]\nlimit = '100MiB/s'\n",
    );
    cluster.sites[0].stop();
    let pusher = Session::user(&cluster, &cluster.primary, &["team/app", "base/os"]);
    for number in 0..12 {
        pusher.push_blob("team/app", &bytes(50_000, 100 + number));
    }
    let first = pusher.push_blob("base/os", &bytes(50_000, 200));
    cluster.sites[0].start();
    settled(&cluster);
    let log = cluster.sites[0].log();
    let finished: Vec<&str> = log.lines().filter(|line| line.contains("fill finished")).collect();
    let place = finished.iter().position(|line| line.contains(&first.to_string()));
    // Four are under way at once, and four may have begun before it was known.
    assert!(finished.len() == 13 && place.is_some_and(|place| place < 9), "{place:?} of {}", finished.len());
}

#[test]
fn copying_ahead_keeps_to_its_limit_and_a_client_does_not_wait_for_it() {
    let cluster = cluster("[[bandwidth]]\nlimit = '256KiB/s'\n");
    let repo = "team/app";
    let pusher = Session::user(&cluster, &cluster.primary, &[repo]);
    let (small, large) = (bytes(512 * 1024, 10), bytes(64 * 1024 * 1024, 11));
    let began = Instant::now();
    pusher.push_blob(repo, &small);
    let site = &cluster.sites[0];
    settled(&cluster);
    assert!(began.elapsed().as_secs_f64() > 1.5, "512 KiB at 256 KiB/s took {:?}", began.elapsed());
    let digest = pusher.push_blob(repo, &large);
    site.wait_until(|status| status["missing_blobs"] == 1);
    let puller = Session::anyone(&cluster, site, &[repo]);
    let began = Instant::now();
    assert!(puller.get(&format!("/v2/{repo}/blobs/{digest}")).body == large);
    assert!(began.elapsed() < PATIENCE, "at the limit it takes four minutes");
    settled(&cluster);
}

#[test]
fn an_operator_copies_now_what_the_policy_does_not() {
    let cluster = cluster("[[policy]]\nkeep = 'lazy'\n");
    let repos = ["team/app", "team/other"];
    let pusher = Session::user(&cluster, &cluster.primary, &repos);
    let child = child(&pusher, "team/app", "amd64", &bytes(100_000, 12));
    put_index(&pusher, "team/app", "1", &[child]);
    pusher.push_image("team/other", "1", &[&bytes(30_000, 13), &bytes(30_000, 14)]);
    let site = &cluster.sites[0];
    let prefetch = |arguments: &[&str], node: &Node| {
        let output = Command::new(BINARY)
            .arg("prefetch")
            .args(arguments)
            .args(["--admin", &node.admin()])
            .output()
            .unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
    };
    // It asks the primary, so the image need not be here yet.
    let (code, text, errors) = prefetch(&["team/app:1", "--json"], site);
    assert_eq!(code, 0, "{text}{errors}");
    let steps: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((&steps[0]["event"], &steps[0]["blobs"]), (&"found".into(), &2.into()), "{text}");
    let done = steps.last().unwrap();
    assert_eq!((&done["event"], &done["blobs"], &done["failed"]), (&"done".into(), &2.into(), &0.into()));
    assert_eq!(blobs(site), 2);

    settled(&cluster);
    let (code, text, errors) = prefetch(&["team/other", "team/app:never", "no/such"], site);
    assert_eq!(code, 3, "{text}{errors}");
    assert!(text.contains("team/other: 2 blobs") && text.contains("2 blobs ("), "{text}");
    assert!(errors.contains("team/app:never: the registry has no such image"), "{errors}");
    assert!(errors.contains("no/such: the registry has no repository no/such"), "{errors}");
    let (code, text, _) = prefetch(&["team/other"], site);
    assert_eq!((code, text.contains("nothing is missing")), (0, true), "{text}");

    let (code, _, errors) = prefetch(&["team/app"], &cluster.primary);
    assert!(code == 1 && errors.contains("ask a site"), "{errors}");
    let (code, _, errors) = prefetch(&["registry.example.com:5000/app"], site);
    assert!(code == 2 && errors.contains("without a host"), "{errors}");
    // A web page is no operator.
    let http = crate::support::http::Client::plain();
    let target = "/v1/prefetch?ref=team/app";
    assert_eq!(http.send(&site.admin(), "GET", target, &[], b"").status, 405);
    let page = [("Origin", "https://example.com")];
    assert_eq!(http.send(&site.admin(), "POST", target, &page, b"").status, 403);
}

#[test]
fn a_staleness_bound_holds_for_the_repositories_of_its_rule() {
    let mut cluster = cluster(
        "[[policy]]\nrepository = 'prod/*'\nstaleness_bound_ms = 500\n\
         [[policy]]\nrepository = 'base/**'\nstaleness_bound_ms = 60000\n",
    );
    let repos = ["prod/app", "base/os"];
    let pusher = Session::user(&cluster, &cluster.primary, &repos);
    let pushed = repos.map(|repo| pusher.push_image(repo, "1", &[&bytes(1000, 15)]));
    cluster.wait_complete();
    // What a heartbeat tells is older than 500 ms when it has come that far and may have come
    // farther, and much younger than a minute.
    let _wire = moved_away(&mut cluster, Duration::from_millis(300));
    let puller = Session::anyone(&cluster, &cluster.sites[0], &repos);
    let pull = |number: usize| puller.get(&format!("/v2/{}/manifests/1", repos[number]));
    let count = |cluster: &Cluster, result: &str| {
        cluster.sites[0].metric("outport_pulls_total", &format!("result=\"{result}\""))
    };
    let admits = |got: &Response| {
        let said = ["warning", "age", "outport-staleness"].map(|name| got.header(name).is_some());
        assert!(said == [said[0]; 3], "{got:?}");
        said[0]
    };
    wait_for("an answer within the larger bound", || {
        let local = count(&cluster, "local");
        let got = pull(1);
        assert_eq!((got.status, &got.body, admits(&got)), (200, &pushed[1].manifest, false));
        (count(&cluster, "local") > local).then_some(())
    });
    let (local, asked) = (count(&cluster, "local"), count(&cluster, "revalidated"));
    for _ in 0..3 {
        let got = pull(0);
        assert_eq!((got.status, &got.body, admits(&got)), (200, &pushed[0].manifest, false));
    }
    assert_eq!(count(&cluster, "revalidated") - asked, 3.0, "the primary was asked each time");
    assert_eq!(count(&cluster, "local"), local);

    // Cut off, what a site says of an answer is how old it is, whatever bound it had.
    cluster.primary.kill();
    cluster.sites[0].wait_until(|status| status["state"] == "disconnected");
    for (number, pushed) in pushed.iter().enumerate() {
        let got = pull(number);
        assert_eq!((got.status, &got.body, admits(&got)), (200, &pushed.manifest, true));
    }
}
