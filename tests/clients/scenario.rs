//! What everybody does with a registry, in the order in which it matters: push through one site,
//! pull through the other at once, again, another version, back again, into a second repository,
//! and without credentials.

use crate::{
    bed::Bed,
    image::{BASE_BYTES, Image},
    raw::Ways,
    sandbox::{Done, Sandbox},
    support::{Node, Options},
};

/// Whose credentials a client uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum As<'a> {
    /// The user's, which it was given for every site.
    User(&'a str),
    /// None.
    Nobody,
}

/// A container tool.
pub(crate) struct Tool {
    /// What must be installed.
    pub(crate) programs: &'static [&'static str],
    /// Starts what it needs to run.
    pub(crate) start: for<'a> fn(&'a Sandbox) -> Box<dyn Client + 'a>,
}

/// A container tool with its state in a sandbox.
pub(crate) trait Client {
    /// Keeps credentials for a registry host; `None` for a tool that keeps none.
    fn login(&self, host: &str, password: &str) -> Option<Done>;

    /// Pushes an image, brought in from its files when the client has it not yet.
    fn push(&self, image: &Image, to: &str, who: As<'_>) -> Done;

    /// Pulls into empty storage without credentials.
    fn pull(&self, from: &str) -> Pulled {
        self.pull_as(from, As::Nobody)
    }

    /// Pulls into empty storage.
    fn pull_as(&self, from: &str, who: As<'_>) -> Pulled;

    /// Lets a client that learns from pulls alone know that the registry has these layers.
    fn note_source(&self, _reference: &str, _who: As<'_>) {}
}

/// A pull's outcome.
pub(crate) struct Pulled {
    pub(crate) done: Done,
    /// The digest of the manifest that the client says it has.
    pub(crate) digest: String,
}

impl Pulled {
    #[track_caller]
    pub(crate) fn digest(self) -> String {
        self.done.success();
        self.digest
    }
}

/// What clients say when they lack credentials.
const UNAUTHORIZED: &[&str] = &[
    "unauthorized",
    "authentication required",
    "no basic auth",
    "denied",
    "authorization failed",
    "invalid username/password",
    // containerd, of whom only the registry itself knows that they may not push.
    "403 forbidden",
    // docker takes loopback addresses for insecure registries: it tries plain HTTP as well and tells of that.
    "malformed http response",
];

pub(crate) fn run(tool: &Tool) {
    run_with(tool, Options::default());
}

pub(crate) fn run_with(tool: &Tool, options: Options) {
    run_by(tool, options, Ways::Outport, |_| {});
}

/// The same by callers who prove in other `ways` who they are, once `set_up` has made them known.
pub(crate) fn run_by(tool: &Tool, options: Options, ways: Ways, set_up: impl FnOnce(&Bed)) {
    let Some(mut bed) = Bed::start(tool.programs, options) else { return };
    set_up(&bed);
    bed.raw.go_by(ways.clone());
    let client = (tool.start)(&bed.sandbox);
    let user = As::User(&bed.cluster.password);
    let (user, reader) = match ways {
        Ways::Outport | Ways::Service { .. } => (user, As::Nobody),
        Ways::Password => (user, user),
        Ways::Nothing => (As::Nobody, As::Nobody),
    };
    let story = Story { bed: &bed, client, user, reader };
    let [one, two] = ["one", "two"].map(|version| Image::make(&bed.sandbox.path("images"), version));
    if user != As::Nobody {
        story.log_in();
    }
    let first = story.push_and_pull_elsewhere(&one, bed.frankfurt(), bed.mumbai());
    let again = story.push_and_pull_elsewhere(&one, bed.mumbai(), bed.frankfurt());
    assert_eq!(again, first, "the same image pushed again is the same");
    let moved = story.push_and_pull_elsewhere(&two, bed.frankfurt(), bed.mumbai());
    assert_ne!(moved, first, "the tag has moved");
    let back = story.push_and_pull_elsewhere(&one, bed.frankfurt(), bed.mumbai());
    assert_eq!(back, first, "the tag has moved back");
    story.mount(&one);
    if user != As::Nobody {
        story.refused_without_credentials(&two);
    }
}

struct Story<'a> {
    bed: &'a Bed,
    client: Box<dyn Client + 'a>,
    user: As<'a>,
    reader: As<'a>,
}

const REPO: &str = "team/app";
const OTHER_REPO: &str = "other/deep/app";
const TAG: &str = "latest";

impl Story<'_> {
    fn pull(&self, from: &str) -> Pulled {
        self.client.pull_as(from, self.reader)
    }

    fn log_in(&self) {
        let (host, password) = (self.bed.frankfurt().registry_by_name(), &self.bed.cluster.password);
        let Some(refused) = self.client.login(&host, "wrong") else { return };
        refused.failure(UNAUTHORIZED);
        for host in [host, self.bed.mumbai().registry_by_name()] {
            self.client.login(&host, password).map(Done::success);
        }
    }

    /// Pushes through one site and pulls at once through the other, then through the first;
    /// returns the manifest's digest.
    fn push_and_pull_elsewhere(&self, image: &Image, through: &Node, elsewhere: &Node) -> String {
        let to = self.bed.reference(through, REPO, TAG);
        self.client.push(image, &to, self.user).success();
        let pulled = self.pull(&self.bed.reference(elsewhere, REPO, TAG)).digest();
        let digest = self.bed.raw.same_everywhere(&self.bed.cluster, REPO, TAG);
        assert_eq!(pulled, digest, "{} at {}", image.version, elsewhere.name);
        assert_eq!(self.pull(&to).digest(), digest, "{} at {}", image.version, through.name);
        digest
    }

    /// The base layer does not travel again when another repository of the registry gets it.
    fn mount(&self, image: &Image) {
        let frankfurt = self.bed.frankfurt();
        let mounts = || frankfurt.metric("outport_redirects_total", "kind=\"mount\"");
        self.client.note_source(&self.bed.reference(frankfurt, REPO, TAG), self.reader);
        let (mounts_before, received_before) = (mounts(), self.bed.received_by_primary());
        let to = self.bed.reference(frankfurt, OTHER_REPO, TAG);
        self.client.push(image, &to, self.user).success();
        let received = self.bed.received_by_primary() - received_before;
        assert!(mounts() > mounts_before, "no mount was asked for");
        assert!(received < BASE_BYTES as u64 / 2, "{received} bytes were sent in spite of the mount");
        let pulled = self.pull(&self.bed.reference(self.bed.mumbai(), OTHER_REPO, TAG)).digest();
        assert_eq!(pulled, self.bed.raw.same_everywhere(&self.bed.cluster, OTHER_REPO, TAG));
    }

    fn refused_without_credentials(&self, image: &Image) {
        let head = self.bed.head();
        let to = self.bed.reference(self.bed.frankfurt(), "private/app", TAG);
        self.client.push(image, &to, As::Nobody).failure(UNAUTHORIZED);
        assert_eq!(self.bed.head(), head, "something was written");
        let proxied = self.bed.frankfurt().metric("outport_proxied_push_bytes_total", "");
        assert!(proxied < 64.0 * 1024.0, "{proxied} bytes of pushes passed through the site");
    }
}
