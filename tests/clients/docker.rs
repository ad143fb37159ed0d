//! docker: a daemon of its own, with the classic image store.

use crate::{
    image::Image,
    sandbox::{Done, Sandbox},
    scenario::{As, Client, Pulled, Tool},
    support::{USER, path, wait_for},
};

pub(crate) const TOOL: Tool =
    Tool { programs: &["docker", "dockerd"], start: |sandbox| Box::new(Docker::start(sandbox, &[])) };

pub(crate) struct Docker<'a> {
    sandbox: &'a Sandbox,
    socket: String,
}

impl<'a> Docker<'a> {
    /// A daemon that is told `more`.
    pub(crate) fn start(sandbox: &'a Sandbox, more: &[&str]) -> Self {
        let place = |name: &str| path(&sandbox.path(&format!("docker/{name}"))).to_owned();
        let socket = format!("unix://{}", place("socket"));
        let daemon = [
            "dockerd",
            "--config-file=",
            &format!("--host={socket}"),
            &format!("--data-root={}", place("data")),
            &format!("--exec-root={}", place("exec")),
            &format!("--pidfile={}", place("pid")),
            "--storage-driver=vfs",
            "--bridge=none",
            "--iptables=false",
            "--ip6tables=false",
            "--ip-forward=false",
            "--ip-masq=false",
        ];
        sandbox.daemon(&[&daemon[..], more].concat());
        let docker = Self { sandbox, socket };
        wait_for("dockerd to answer", || docker.run(As::Nobody, &["version"]).succeeded.then_some(()));
        docker
    }

    pub(crate) fn run(&self, who: As<'_>, line: &[&str]) -> Done {
        let config = self.sandbox.path(match who {
            As::User(_) => "home/docker",
            As::Nobody => "home/docker-nobody",
        });
        self.sandbox.run(&[&["docker", "--config", path(&config), "--host", &self.socket], line].concat())
    }

    fn ok(&self, line: &[&str]) -> String {
        self.run(As::Nobody, line).success().stdout
    }
}

impl Client for Docker<'_> {
    fn login(&self, host: &str, password: &str) -> Option<Done> {
        Some(self.run(As::User(password), &["login", "--username", USER, "--password", password, host]))
    }

    fn push(&self, image: &Image, to: &str, who: As<'_>) -> Done {
        self.ok(&["load", "--quiet", "--input", path(&image.archive)]);
        self.ok(&["tag", &image.local_name(), to]);
        self.run(who, &["push", to])
    }

    fn pull_as(&self, from: &str, who: As<'_>) -> Pulled {
        let images = self.ok(&["images", "--all", "--quiet"]);
        let mut images: Vec<&str> = images.lines().collect();
        images.dedup();
        if !images.is_empty() {
            self.ok(&[&["rmi", "--force"], &images[..]].concat());
        }
        let done = self.run(who, &["pull", from]);
        let digest = done.stdout.lines().find_map(|line| line.strip_prefix("Digest: "));
        let digest = digest.unwrap_or_default().to_owned();
        Pulled { done, digest }
    }
}
