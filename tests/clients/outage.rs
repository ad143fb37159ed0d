//! The primary goes away, politely and without a word, while pulls go on; then it comes back.

use std::{
    fs,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
};

use outport_proto::Digest;

use crate::{
    bed::Bed,
    buildah, ctr, docker,
    image::{Image, OCI_MANIFEST},
    podman,
    raw::Raw,
    scenario::{As, Client},
    skopeo,
    support::{Cluster, Node, Options, http, required::installed, wait_for},
};

const REPO: &str = "team/app";
const TAG: &str = "known";
/// What clients say when the primary cannot be reached.
const UNREACHABLE: &[&str] = &["connection refused", "503", "unavailable", "unreachable"];

#[test]
fn pulls_go_on_without_the_primary() {
    let Some(mut bed) = Bed::start_unwired(&[], Options::default()) else { return };
    let image = Image::make(&bed.sandbox.path("images"), "one");
    push(&bed, &image);
    let digest = bed.raw.same_everywhere(&bed.cluster, REPO, TAG);
    bed.cluster.wait_complete();
    let Bed { sandbox, raw, cluster, .. } = &mut bed;
    let tools = [docker::TOOL, podman::TOOL, skopeo::TOOL, buildah::TOOL, ctr::TOOL];
    let clients = tools.iter().filter(|tool| installed(tool.programs)).map(|tool| (tool.start)(sandbox));
    let mut outage = Outage { clients: clients.collect(), raw, cluster, image, digest };
    outage.log_in();
    outage.pull_everywhere();
    let stops: [fn(&mut Node); 2] = [|primary| _ = primary.stop(), Node::kill];
    for (round, stop) in stops.into_iter().enumerate() {
        outage.endure(stop);
        outage.recover(round);
    }
}

struct Outage<'a> {
    clients: Vec<Box<dyn Client + 'a>>,
    raw: &'a Raw,
    cluster: &'a mut Cluster,
    image: Image,
    digest: String,
}

impl Outage<'_> {
    fn log_in(&self) {
        for client in &self.clients {
            for site in &self.cluster.sites {
                if let Some(done) = client.login(&site.registry_by_name(), &self.cluster.password) {
                    done.success();
                }
            }
        }
    }

    fn pull_everywhere(&self) {
        for client in &self.clients {
            for site in &self.cluster.sites {
                let from = format!("{}/{REPO}:{TAG}", site.registry_by_name());
                assert_eq!(client.pull(&from).digest(), self.digest, "at {}", site.name);
            }
        }
    }

    /// Stops the primary while pulls go on; what is known stays, the rest is not guessed.
    fn endure(&mut self, stop: fn(&mut Node)) {
        let authorization = self.raw.anonymous(REPO).authorization();
        let (ended, pulls) = (AtomicBool::new(false), AtomicU64::new(0));
        thread::scope(|scope| {
            let (client, digest) = (self.raw.client(), self.digest.clone());
            let nodes: Vec<String> = self.cluster.sites.iter().map(Node::registry).collect();
            let (ended, pulls) = (&ended, &pulls);
            let puller = scope.spawn(move || {
                while !ended.load(Ordering::Relaxed) {
                    for node in &nodes {
                        pull(&client, node, &authorization, &digest);
                        pulls.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
            let more_pulls = |than: u64| {
                let went_on = || pulls.load(Ordering::Relaxed) > than + 4 || puller.is_finished();
                wait_for("pulls to go on", || went_on().then_some(()));
            };
            more_pulls(0);
            stop(&mut self.cluster.primary);
            more_pulls(pulls.load(Ordering::Relaxed));
            for site in &self.cluster.sites {
                site.wait_until(|status| status["state"] == "disconnected");
            }
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                self.unknown_is_unavailable();
                self.pull_everywhere();
                self.pushes_fail();
            }));
            more_pulls(pulls.load(Ordering::Relaxed));
            ended.store(true, Ordering::Relaxed);
            puller.join().expect("every pull is answered");
            if let Err(panic) = outcome {
                std::panic::resume_unwind(panic);
            }
        });
    }

    /// Never a 404 from a site that cannot know.
    fn unknown_is_unavailable(&self) {
        let digest = Digest::sha256(b"never heard of");
        for site in &self.cluster.sites {
            for target in
                ["manifests/unheard-of".to_owned(), format!("manifests/{digest}"), format!("blobs/{digest}")]
            {
                let answer = self.raw.get(site, &format!("/v2/{REPO}/{target}"));
                assert_eq!(answer.status, 503, "{target} at {}: {}", site.name, answer.text());
                assert!(answer.header("retry-after").is_some(), "{target} at {}", site.name);
                assert!(!answer.code().is_empty(), "{}", answer.text());
            }
            let answer = self.raw.get(site, &format!("/v2/{REPO}/manifests/{TAG}"));
            assert_eq!(answer.status, 200, "at {}", site.name);
            assert!(answer.header("age").is_some(), "a tag of a site that is cut off has an age");
        }
    }

    fn pushes_fail(&self) {
        for client in &self.clients {
            let to = format!("{}/{REPO}:lost", self.cluster.sites[0].registry_by_name());
            client.push(&self.image, &to, As::User(&self.cluster.password)).failure(UNREACHABLE);
        }
    }

    /// With the primary back, everything works again, at once where a site has noticed.
    fn recover(&mut self, round: usize) {
        self.cluster.primary.start();
        for site in &self.cluster.sites {
            site.wait_until(|status| status["state"] == "streaming");
        }
        for (number, client) in self.clients.iter().enumerate() {
            let tag = format!("round-{round}-{number}");
            let [frankfurt, mumbai] = [0, 1].map(|at| &self.cluster.sites[at]);
            let [to, from] =
                [frankfurt, mumbai].map(|node| format!("{}/{REPO}:{tag}", node.registry_by_name()));
            client.push(&self.image, &to, As::User(&self.cluster.password)).success();
            let pulled = client.pull(&from).digest();
            assert_eq!(pulled, self.raw.same_everywhere(self.cluster, REPO, &tag));
            assert_eq!(self.raw.manifest(mumbai, REPO, "unheard-of").status, 404);
            assert_eq!(
                self.raw.manifest(mumbai, REPO, "lost").status,
                404,
                "nothing of a failed push is seen"
            );
        }
        self.pull_everywhere();
    }
}

fn push(bed: &Bed, image: &Image) {
    bed.raw.user(REPO);
    let manifest: serde_json::Value = serde_json::from_slice(&image.manifest).unwrap();
    for blob in manifest["layers"].as_array().unwrap().iter().chain([&manifest["config"]]) {
        let digest = blob["digest"].as_str().unwrap().replace("sha256:", "blobs/sha256/");
        bed.raw.push_blob(bed.frankfurt(), REPO, &fs::read(image.layout.join(digest)).unwrap());
    }
    bed.raw.push_manifest(bed.frankfurt(), REPO, TAG, OCI_MANIFEST, &image.manifest);
}

/// A pull by tag with a token that was issued before.
fn pull(client: &http::Client, node: &str, authorization: &str, digest: &str) {
    let headers = [("Authorization", authorization)];
    let manifest = client.get(node, &format!("/v2/{REPO}/manifests/{TAG}"), &headers);
    assert_eq!(manifest.status, 200, "{node}: {}", manifest.text());
    assert_eq!(Digest::sha256(&manifest.body).to_string(), digest);
    let layer = manifest.json()["layers"][0]["digest"].as_str().unwrap().to_owned();
    let content = client.get(node, &format!("/v2/{REPO}/blobs/{layer}"), &headers);
    assert_eq!(Digest::sha256(&content.body).to_string(), layer, "{node}: {}", content.status);
}
