//! buildah: builds an image from nothing, pushes it from its storage, pulls into another.

use std::cell::Cell;

use crate::{
    image::Image,
    sandbox::{Done, Sandbox},
    scenario::{As, Client, Pulled, Tool},
    support::{USER, path},
};

pub(crate) const TOOL: Tool =
    Tool { programs: &["buildah"], start: |sandbox| Box::new(Buildah { sandbox, pulls: Cell::new(0) }) };

struct Buildah<'a> {
    sandbox: &'a Sandbox,
    pulls: Cell<u32>,
}

impl Buildah<'_> {
    /// Runs buildah with the storage of that name.
    fn run(&self, storage: &str, line: &[&str]) -> Done {
        let dir = |part: &str| path(&self.sandbox.path(&format!("buildah/{storage}/{part}"))).to_owned();
        let (root, run) = (dir("root"), dir("run"));
        let storage = ["--root", &root, "--runroot", &run, "--storage-driver", "vfs"];
        self.sandbox.run(&[&["buildah"], &storage[..], line].concat())
    }

    fn build(&self, image: &Image) {
        let container = format!("container-{}", image.version);
        let local_name = image.local_name();
        for line in [
            &["from", "--name", &container, "scratch"][..],
            &["add", "--quiet", &container, path(&image.files), "/"],
            &["config", "--cmd", "/version", &container],
            &["commit", "--quiet", "--rm", &container, &local_name],
        ] {
            self.run("push", line).success();
        }
    }
}

impl Client for Buildah<'_> {
    fn login(&self, host: &str, password: &str) -> Option<Done> {
        Some(self.run("push", &["login", "--username", USER, "--password", password, host]))
    }

    fn push(&self, image: &Image, to: &str, who: As<'_>) -> Done {
        let name = image.local_name();
        if !self.run("push", &["inspect", "--type", "image", &name]).succeeded {
            self.build(image);
        }
        let (credentials, to) = (self.sandbox.credentials(who), format!("docker://{to}"));
        self.run("push", &["push", "--quiet", "--authfile", path(&credentials), &name, &to])
    }

    fn pull_as(&self, from: &str, who: As<'_>) -> Pulled {
        let storage = format!("pull-{}", self.pulls.replace(self.pulls.get() + 1));
        let credentials = self.sandbox.credentials(who);
        let done = self.run(&storage, &["pull", "--quiet", "--authfile", path(&credentials), from]);
        let format = ["--format", "{{.FromImageDigest}}"];
        let shown = self.run(&storage, &[&["inspect", "--type", "image"], &format[..], &[from]].concat());
        Pulled { done, digest: shown.stdout.trim().to_owned() }
    }
}
