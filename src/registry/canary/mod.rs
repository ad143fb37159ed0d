//! A tiny image that the primary pushes again and again, and that every site pulls as a client would. How
//! long that takes is the one number that no part of replication can get wrong about itself.
//!
//! - [`Pusher`] moves the tag `latest` of [`CANARY_REPO`] through a few small images, at the primary.
//! - [`Watcher`] pulls it whenever a site shows it anew, by the read rules, and keeps what it saw.
//!
//! The repository is the primary's own: clients cannot push to it, the catalog does not list it, and with a
//! registry behind the primary it is no business of that one.

mod image;
mod push;
mod watch;

use std::sync::LazyLock;

use outport_proto::{CANARY_REPO, RepoName, Tag};

pub use push::Pusher;
pub use watch::Watcher;

use crate::auth::{Access, Caller};

#[expect(
    clippy::expect_used,
    reason = "the names are constants and valid, as every test of this module shows"
)]
static NAMES: LazyLock<(RepoName, Tag)> =
    LazyLock::new(|| (CANARY_REPO.parse().expect("a valid name"), "latest".parse().expect("a valid tag")));

/// Who pushes and pulls it.
fn caller() -> Caller {
    Caller { subject: "outport".into(), anonymous: false, ..Caller::anonymous(Access::unlimited().into()) }
}

fn repo() -> &'static RepoName {
    &NAMES.0
}

fn tag() -> &'static Tag {
    &NAMES.1
}
