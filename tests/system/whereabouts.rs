//! Push, wait, deploy; and when an image is not where it should be, why.

use std::{
    process::{Command, Output},
    time::{Duration, Instant},
};

use outport_proto::Digest;
use serde_json::Value;

use crate::{
    status::Halted,
    support::{
        BINARY, Cluster, Node, Options,
        http::{Client, get_plain},
        session::{Session, bytes, finish, image},
        wait_for,
    },
};

const REPO: &str = "team/app";
/// Exit code of a wait whose time is over.
const TIMED_OUT: Option<i32> = Some(3);

#[test]
fn what_was_waited_for_is_there() {
    let mut cluster = Cluster::start(Options::default());
    let pusher = Session::user(&cluster, &cluster.sites[0], &[REPO]);
    let layer = bytes(2_000_000, 1);
    let pushed = pusher.push_image(REPO, "1", &[&layer]);
    let waited = json(&run("wait", &cluster.primary, &["team/app:1", "--all-sites", "--complete"]), Some(0));
    assert_eq!((&waited["reached"], &waited["stage"]), (&true.into(), &"complete".into()), "{waited}");
    assert_eq!(waited["digest"], pushed.digest.to_string());
    assert_eq!(waited["sites"].as_array().unwrap().len(), 2, "{waited}");
    for site in &cluster.sites {
        assert!(site.metric("outport_store_bytes", "") >= 2_000_000.0);
        let own = json(&run("wait", site, &["team/app:1", "--complete"]), Some(0));
        assert_eq!((&own["digest"], own["sites"].as_array().unwrap().len()), (&waited["digest"], 1));
        let by_digest = format!("{REPO}@{}", pushed.digest);
        json(&run("wait", site, &[&by_digest, "--site", &site.name]), Some(0));
        let puller = Session::anyone(&cluster, site, &[REPO]);
        assert_eq!(puller.get(&format!("/v2/{REPO}/manifests/1")).body, pushed.manifest);
        for asked in [&cluster.primary, site] {
            let why = why(asked, "team/app:1", site);
            assert_eq!(why["code"], "visible", "{why}");
        }
    }
    let text = outport("wait", &cluster.primary, &["team/app:1"]);
    let line = String::from_utf8(text.stdout).unwrap();
    assert!(line.contains("is visible at frankfurt, mumbai"), "{line}");

    // A wait that begins before the push ends with it.
    let moved = Digest::sha256(&image(&[b"new"]));
    let digest = moved.to_string();
    let waiting: Vec<_> = cluster
        .nodes()
        .map(|node| {
            let mut command = command("wait", node, &["team/app:1", "--digest", &digest, "--timeout", "30s"]);
            command.stdout(std::process::Stdio::piped()).spawn().unwrap()
        })
        .collect();
    assert_eq!(pusher.push_image(REPO, "1", &[b"new"]).digest, moved);
    for wait in waiting {
        let waited = json(&wait.wait_with_output().unwrap(), Some(0));
        assert_eq!(waited["digest"], digest.as_str(), "{waited}");
    }

    // A site that is stopped reaches nothing more; the others do.
    cluster.sites[1].stop();
    pusher.push_image(REPO, "2", &[b"two"]);
    let began = Instant::now();
    let late = run("wait", &cluster.primary, &["team/app:2", "--all-sites", "--timeout", "700ms"]);
    let late = json(&late, TIMED_OUT);
    assert!(began.elapsed() >= Duration::from_millis(700), "{:?}", began.elapsed());
    assert_eq!(late["reached"], false);
    assert_eq!((&late["sites"][0]["reached"], &late["sites"][1]["reached"]), (&true.into(), &false.into()));
    json(&run("wait", &cluster.primary, &["team/app:2", "--site", "frankfurt"]), Some(0));
    json(&run("wait", &cluster.primary, &["team/app:1", "--site", "mumbai"]), Some(0));
    json(&run("wait", &cluster.sites[0], &["team/app:3", "--timeout", "0.1"]), TIMED_OUT);
    for (arguments, says) in [
        (["team/app:2", "--site", "nowhere"].as_slice(), "no site is called nowhere"),
        (&["team/app"], "repository:tag"),
        (&["team/app:2", "--timeout", "11m"], "at most 10 minutes"),
    ] {
        let refused = outport("wait", &cluster.primary, arguments);
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && refused.status.code() != TIMED_OUT, "{said}");
        assert!(said.contains(says), "{said}");
    }
    let other = outport("wait", &cluster.sites[0], &["team/app:2", "--site", "mumbai"]);
    assert_eq!(other.status.code(), Some(1));
}

#[test]
fn every_cause_has_its_name() {
    let mut cluster = Cluster::start(Options {
        sites: vec!["mumbai"],
        public: "team/**",
        site_toml: "[[policy]]\nrepository = 'team/**'\nkeep = 'eager'\n[[policy]]\nkeep = 'lazy'\n"
            .to_owned(),
        ..Options::default()
    });
    let pusher = Session::user(&cluster, &cluster.primary, &[REPO, "lazy/app"]);
    let pushed = pusher.push_image(REPO, "1", &[&bytes(100_000, 2)]);
    pusher.push_image("lazy/app", "1", &[&bytes(50_000, 3)]);
    json(&run("wait", &cluster.primary, &["lazy/app:1", "--complete"]), Some(0));
    {
        let (primary, site) = (&cluster.primary, &cluster.sites[0]);
        let lazy = why(site, "lazy/app:1", site);
        assert_eq!((&lazy["code"], &lazy["blobs"]), (&"not_kept".into(), &1.into()), "{lazy}");
        assert_eq!(lazy["bytes"], 50_000, "{lazy}");
        assert_eq!((&lazy["keep"], &lazy["rule"]), (&"lazy".into(), &"rule 2: everything".into()), "{lazy}");
        let unknown = why(primary, "lazy/app:1", site);
        assert!(unknown["not_known_here"].to_string().contains("policy"), "{unknown}");
        for asked in [primary, site] {
            let never = why(asked, "team/app:never", site);
            assert_eq!(never["code"], "never_seen", "{never}");
        }

        let asked_for = |who: &[&str]| {
            let arguments = [&["lazy/app:1", "--site", &site.name], who].concat();
            json(&run("why", primary, &arguments), Some(0))["code"].clone()
        };
        assert_ne!(asked_for(&["--user", "demo"]), "denied");
        for nobody in [["--user", "stranger"].as_slice(), &["--anonymous"]] {
            assert_eq!(asked_for(nobody), "denied");
        }
        let elsewhere = outport("why", site, &["lazy/app:1", "--user", "stranger"]);
        assert_eq!(elsewhere.status.code(), Some(1), "only the primary knows who may pull");

        let target = format!("/v2/{REPO}/manifests/{}", pushed.digest);
        assert_eq!(pusher.send("DELETE", &target, &[], b"").status, 202);
        let head = primary.status()["head_seq"].as_u64().unwrap();
        site.wait_until(|status| status["applied_seq"] == head);
        for asked in [primary, site] {
            let deleted = why(asked, "team/app:1", site);
            assert_eq!(
                (&deleted["code"], &deleted["actor"]),
                (&"deleted".into(), &"demo".into()),
                "{deleted}"
            );
            let offset = deleted["offset"].as_str().unwrap();
            assert!(offset.ends_with(&format!(".{head}")), "{deleted}");
            assert!(deleted["time"].as_str().unwrap().ends_with('Z'), "{deleted}");
        }

        // A site that stands still is behind, and cut off once it was silent for too long.
        let mut attempt = 10;
        wait_for("the primary to see that the site is behind", || {
            attempt += 1;
            site.wait_until(|status| status["state"] == "streaming");
            let halted = Halted::new(site);
            pusher.push_image(REPO, &attempt.to_string(), &[b"late"]);
            let late = why(primary, &format!("team/app:{attempt}"), site);
            let is_behind = late["code"] == "behind";
            if is_behind {
                assert!(late["events"].as_u64().unwrap() >= 1, "{late}");
                let cut_off = wait_for("the primary to miss the site", || {
                    let now = why(primary, &format!("team/app:{attempt}"), site);
                    (now["code"] == "cut_off").then_some(now)
                });
                assert!(cut_off["since"].as_str().unwrap().ends_with('Z'), "{cut_off}");
                let text = outport("why", primary, &[&format!("team/app:{attempt}"), "--site", "mumbai"]);
                let text = String::from_utf8(text.stdout).unwrap();
                assert!(text.starts_with("cut_off: mumbai is cut off from the primary since "), "{text}");
            }
            drop(halted);
            is_behind.then_some(())
        });
    }
    let last = pusher.push_image(REPO, "last", &[b"last"]);
    json(&run("wait", &cluster.primary, &["team/app:last", "--complete"]), Some(0));
    cluster.primary.kill();
    let site = &cluster.sites[0];
    site.wait_until(|status| status["state"] == "disconnected");
    let cut_off = why(site, "team/app:last", site);
    assert_eq!((&cut_off["code"], &cut_off["primary"]["state"]), (&"cut_off".into(), &"unreachable".into()));
    assert_eq!(cut_off["shown"]["digest"], last.digest.to_string());
    let by_digest = why(site, &format!("{REPO}@{}", last.digest), site);
    assert_eq!(by_digest["code"], "visible", "a digest needs nobody's word: {by_digest}");
    json(&run("wait", site, &["team/app:last", "--timeout", "0.2"]), TIMED_OUT);
    assert_eq!(outport("why", site, &["team/app:last", "--site", "elsewhere"]).status.code(), Some(1));
}

#[test]
fn waits_are_bounded_and_end_with_their_clients_and_with_the_node() {
    let mut cluster = Cluster::start(Options { sites: vec!["mumbai"], ..Options::default() });
    let target = "GET /v1/wait?ref=team/app:never&timeout=600 HTTP/1.1\r\nHost: x\r\n\r\n";
    let admin = cluster.primary.admin();
    let begin = || {
        let mut connection = Client::plain().connect(&admin).unwrap();
        connection.raw(target.as_bytes()).unwrap();
        connection
    };
    let short = "/v1/wait?ref=team/app:never&timeout=0.01";
    // The short one takes a turn as well, which one of the others may have wanted.
    let fill = || {
        let mut waiting: Vec<_> = (1..outport::admin::WAITS_MAX).map(|_| begin()).collect();
        wait_for("all turns to be taken", || {
            waiting.push(begin());
            (get_plain(&admin, short).unwrap().0 == 503).then_some(())
        });
        waiting
    };
    let mut waiting = fill();
    assert_eq!(get_plain(&admin, "/v1/status").unwrap().0, 200);
    assert!(cluster.primary.stop() < Duration::from_secs(3), "a wait holds nobody back");
    for connection in &mut waiting {
        assert_eq!(connection.receive(false).unwrap().status, 503);
    }
    cluster.primary.start();
    drop(fill());
    wait_for("the waits to end with their clients", || {
        (get_plain(&admin, short).unwrap().0 == 504).then_some(())
    });
}

#[test]
fn answers_say_where_in_the_log_they_hold() {
    let cluster = Cluster::start(Options { sites: vec!["mumbai"], ..Options::default() });
    let site = &cluster.sites[0];
    let pusher = Session::user(&cluster, &cluster.primary, &[REPO, "team/other"]);
    let layer = pusher.push_blob(REPO, b"layer");
    pusher.push_image(REPO, "1", &[b"layer"]);
    let manifest = image(&[b"layer"]);
    let location = pusher.begin_upload(REPO);
    let content = b"content";
    let end = finish(&location, &Digest::sha256(content));
    let mount = format!("/v2/team/other/blobs/uploads/?mount={layer}&from={REPO}");
    let mut last = (0, 0);
    for response in [
        pusher.send("PUT", &end, &[], content),
        pusher.send("POST", &mount, &[], b""),
        pusher.put_manifest(REPO, "2", &manifest),
        pusher.send("DELETE", &format!("/v2/{REPO}/manifests/2"), &[], b""),
        pusher.send("DELETE", &format!("/v2/team/other/blobs/{layer}"), &[], b""),
    ] {
        assert!(matches!(response.status, 201 | 202), "{}", response.text());
        let offset = offset(response.header("outport-offset"));
        assert!(offset > last, "{response:?}");
        last = offset;
    }
    let min = format!("{}.{}", last.0, last.1);
    let puller = Session::anyone(&cluster, &cluster.primary, &[REPO]);
    let digest = Digest::sha256(&manifest);
    for node in [&cluster.primary, site] {
        let puller = puller.at(node);
        for target in [
            format!("/v2/{REPO}/manifests/1"),
            format!("/v2/{REPO}/manifests/{digest}"),
            format!("/v2/{REPO}/blobs/{layer}"),
            format!("/v2/{REPO}/tags/list"),
            format!("/v2/{REPO}/referrers/{digest}"),
        ] {
            let methods: &[&str] = if target.contains("list") || target.contains("referrers") {
                &["GET"]
            } else {
                &["GET", "HEAD"]
            };
            for method in methods {
                let answer = puller.send(method, &target, &[("Outport-Min-Offset", &min)], b"");
                assert_eq!(answer.status, 200, "{target}: {}", answer.text());
                let immutable = target.contains("sha256:") && !target.contains("referrers");
                let at = offset(answer.header("outport-offset"));
                assert!(immutable || at >= last, "{} {target}: {at:?} before {last:?}", node.name);
                for name in ["age", "warning", "outport-staleness"] {
                    assert_eq!(answer.header(name), None, "{target}");
                }
                let bad = puller.send(method, &target, &[("Outport-Min-Offset", "soon")], b"");
                assert_eq!(bad.status, 400, "{} {method} {target}", node.name);
            }
        }
    }
}

fn offset(value: Option<&str>) -> (u64, u64) {
    let (epoch, seq) = value.expect("Outport-Offset").split_once('.').expect("epoch.seq");
    (epoch.parse().unwrap(), seq.parse().unwrap())
}

fn command(name: &str, node: &Node, arguments: &[&str]) -> Command {
    let mut command = Command::new(BINARY);
    command.args([name, "--json", "--admin", &node.admin()]).args(arguments);
    command
}

pub fn run(name: &str, node: &Node, arguments: &[&str]) -> Output {
    command(name, node, arguments).output().unwrap()
}

fn outport(name: &str, node: &Node, arguments: &[&str]) -> Output {
    Command::new(BINARY).args([name, "--admin", &node.admin()]).args(arguments).output().unwrap()
}

pub fn json(output: &Output, code: Option<i32>) -> Value {
    let (said, wrong) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), code, "{said}{wrong}");
    serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}{wrong}"))
}

pub fn why(asked: &Node, image: &str, site: &Node) -> Value {
    json(&run("why", asked, &[image, "--site", &site.name]), Some(0))
}
