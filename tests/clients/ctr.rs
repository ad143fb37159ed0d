//! ctr: containerd's own client, with a containerd of its own.

use std::{cell::Cell, fs};

use crate::{
    image::Image,
    sandbox::{Done, Sandbox},
    scenario::{As, Client, Pulled, Tool},
    support::{USER, path, wait_for},
};

pub(crate) const TOOL: Tool =
    Tool { programs: &["ctr", "containerd"], start: |sandbox| Box::new(Ctr::start(sandbox)) };

/// The namespace of images that are pushed.
const PUSH: &str = "push";

pub(crate) struct Ctr<'a> {
    sandbox: &'a Sandbox,
    socket: String,
    pulls: Cell<u32>,
}

impl<'a> Ctr<'a> {
    pub(crate) fn start(sandbox: &'a Sandbox) -> Self {
        let dir = sandbox.path("containerd");
        fs::create_dir_all(&dir).unwrap();
        let (config, dir) = (dir.join("config.toml"), path(&dir));
        let socket = format!("{dir}/socket");
        // Namespaces share no content, so that a pull into a new one is a pull of everything.
        let text = format!(
            "version = 2\nroot = '{dir}/root'\nstate = '{dir}/state'\n\
             disabled_plugins = ['io.containerd.grpc.v1.cri', 'io.containerd.internal.v1.opt']\n\
             [grpc]\naddress = '{socket}'\n\
             [plugins.'io.containerd.metadata.v1.bolt']\ncontent_sharing_policy = 'isolated'\n"
        );
        fs::write(&config, text).unwrap();
        sandbox.daemon(&["containerd", "--config", path(&config)]);
        let ctr = Self { sandbox, socket, pulls: Cell::new(0) };
        wait_for("containerd to answer", || ctr.run(PUSH, &["version"]).succeeded.then_some(()));
        ctr
    }

    pub(crate) fn run(&self, namespace: &str, line: &[&str]) -> Done {
        let ctr = ["ctr", "--address", &self.socket, "--namespace", namespace];
        self.sandbox.run(&[&ctr[..], line].concat())
    }
}

impl Client for Ctr<'_> {
    /// Its credentials are arguments of each push.
    fn login(&self, _host: &str, _password: &str) -> Option<Done> {
        None
    }

    fn push(&self, image: &Image, to: &str, who: As<'_>) -> Done {
        let archive = self.sandbox.path(&format!("ctr-{}.tar", image.version));
        if !archive.exists() {
            self.sandbox.ok(&["tar", "-C", path(&image.layout), "-cf", path(&archive), "."]);
            let base_name = crate::image::LOCAL_NAME;
            let import = ["images", "import", "--no-unpack", "--base-name", base_name, path(&archive)];
            self.run(PUSH, &import).success();
        }
        let (credentials, local_name) = match who {
            As::User(password) => (format!("{USER}:{password}"), image.local_name()),
            As::Nobody => (String::new(), image.local_name()),
        };
        self.run(PUSH, &["images", "push", "--user", &credentials, to, &local_name])
    }

    fn pull_as(&self, from: &str, who: As<'_>) -> Pulled {
        let namespace = format!("pull-{}", self.pulls.replace(self.pulls.get() + 1));
        let done = match who {
            As::User(password) => {
                self.run(&namespace, &["images", "pull", "--user", &format!("{USER}:{password}"), from])
            }
            As::Nobody => self.run(&namespace, &["images", "pull", from]),
        };
        let listed = self.run(&namespace, &["images", "list", &format!("name=={from}")]);
        let digest = listed.stdout.split_whitespace().find(|word| word.starts_with("sha256:"));
        Pulled { done, digest: digest.unwrap_or_default().to_owned() }
    }

    /// It mounts only what it once pulled from the registry.
    fn note_source(&self, reference: &str, who: As<'_>) {
        match who {
            As::User(password) => {
                self.run(PUSH, &["content", "fetch", "--user", &format!("{USER}:{password}"), reference])
            }
            As::Nobody => self.run(PUSH, &["content", "fetch", reference]),
        }
        .success();
    }
}
