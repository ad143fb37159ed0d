//! skopeo: copies between an OCI layout and the registry, without storage of its own.

use std::{cell::Cell, fs};

use outport_proto::Digest;

use crate::{
    image::Image,
    sandbox::{Done, Sandbox},
    scenario::{As, Client, Pulled, Tool},
    support::{USER, path},
};

pub(crate) const TOOL: Tool =
    Tool { programs: &["skopeo"], start: |sandbox| Box::new(Skopeo { sandbox, pulls: Cell::new(0) }) };

struct Skopeo<'a> {
    sandbox: &'a Sandbox,
    pulls: Cell<u32>,
}

impl Client for Skopeo<'_> {
    fn login(&self, host: &str, password: &str) -> Option<Done> {
        Some(self.sandbox.run(&["skopeo", "login", "--username", USER, "--password", password, host]))
    }

    fn push(&self, image: &Image, to: &str, who: As<'_>) -> Done {
        let (from, to) = (image.oci(), format!("docker://{to}"));
        match who {
            As::User(_) => self.sandbox.run(&["skopeo", "copy", &from, &to]),
            As::Nobody => self.sandbox.run(&["skopeo", "copy", "--dest-no-creds", &from, &to]),
        }
    }

    fn pull_as(&self, from: &str, who: As<'_>) -> Pulled {
        let dir = self.sandbox.path(&format!("skopeo-pull-{}", self.pulls.replace(self.pulls.get() + 1)));
        let (from, to) = (format!("docker://{from}"), format!("dir:{}", path(&dir)));
        let done = match who {
            As::User(_) => self.sandbox.run(&["skopeo", "copy", &from, &to]),
            As::Nobody => self.sandbox.run(&["skopeo", "copy", "--src-no-creds", &from, &to]),
        };
        let manifest = fs::read(dir.join("manifest.json")).unwrap_or_default();
        Pulled { done, digest: Digest::sha256(&manifest).to_string() }
    }
}
