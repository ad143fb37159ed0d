//! podman: loads an archive, pushes from its storage, pulls into another.

use std::cell::Cell;

use crate::{
    image::Image,
    sandbox::{Done, Sandbox},
    scenario::{As, Client, Pulled, Tool},
    support::{USER, path},
};

pub(crate) const TOOL: Tool =
    Tool { programs: &["podman"], start: |sandbox| Box::new(Podman { sandbox, pulls: Cell::new(0) }) };

struct Podman<'a> {
    sandbox: &'a Sandbox,
    pulls: Cell<u32>,
}

impl Podman<'_> {
    /// Runs podman with the storage of that name.
    fn run(&self, storage: &str, line: &[&str]) -> Done {
        let dir = |part: &str| path(&self.sandbox.path(&format!("podman/{storage}/{part}"))).to_owned();
        // podman allows its run root 50 characters; the sandbox has a `/run` of its own.
        let (root, run, tmp) = (dir("root"), format!("/run/podman-{storage}"), dir("tmp"));
        let storage = ["--root", &root, "--runroot", &run, "--tmpdir", &tmp, "--storage-driver", "vfs"];
        self.sandbox.run(&[&["podman"], &storage[..], line].concat())
    }
}

impl Client for Podman<'_> {
    fn login(&self, host: &str, password: &str) -> Option<Done> {
        Some(self.run("push", &["login", "--username", USER, "--password", password, host]))
    }

    fn push(&self, image: &Image, to: &str, who: As<'_>) -> Done {
        let name = image.local_name();
        if !self.run("push", &["image", "exists", &name]).succeeded {
            self.run("push", &["load", "--quiet", "--input", path(&image.archive)]).success();
        }
        let credentials = self.sandbox.credentials(who);
        self.run("push", &["push", "--authfile", path(&credentials), &name, to])
    }

    fn pull_as(&self, from: &str, who: As<'_>) -> Pulled {
        let storage = format!("pull-{}", self.pulls.replace(self.pulls.get() + 1));
        let credentials = self.sandbox.credentials(who);
        let done = self.run(&storage, &["pull", "--quiet", "--authfile", path(&credentials), from]);
        let shown = self.run(&storage, &["image", "inspect", "--format", "{{.Digest}}", from]);
        Pulled { done, digest: shown.stdout.trim().to_owned() }
    }
}
