//! Pulls through a site, and the checks of every answer.

use std::{os::unix::fs::FileExt as _, sync::Arc, time::Duration};

use bytes::Bytes;
use outport::{
    fetch::HOLD_BACK_BYTES,
    registry::{BlobContent, PullError, PullOptions, PullRules, Staleness, Want},
};
use outport_proto::{Digest, Offset, Reference, RepoName};
use tokio::time::Instant;

use crate::{
    Broken,
    clients::{Client, Token, ask, joined},
    content::blobs,
    machine::Running,
    oracle::{Mark, What},
    world::World,
};

/// A pull that has not ended by then never will: a fill gives up after six silent attempts.
const PULL_MAX: Duration = Duration::from_secs(300);

/// What clocks that drift, and instants of a millisecond, make of a time.
const INEXACT: Duration = Duration::from_millis(5);
const DRIFT_MAX: f64 = 0.0005;

/// A pull under way.
#[derive(Clone, Debug)]
pub(crate) struct Pull {
    pub(crate) site: usize,
    pub(crate) repo: RepoName,
    pub(crate) what: What,
    pub(crate) want: Want,
    pub(crate) token: Token,
    pub(crate) min_offset: Option<Offset>,
    /// The newest event acknowledged when it began.
    pub(crate) acknowledged: Mark,
    /// The same for as long before as a remembered "no" may be old.
    pub(crate) acknowledged_earlier: Mark,
    /// The newest acknowledged write of the same thing through the same site when it began.
    pub(crate) written_here: Mark,
}

/// What came of it.
pub(crate) struct Answer {
    digest: Option<Digest>,
    offset: Offset,
    staleness: Option<Staleness>,
}

/// How a pull ended for its client.
enum End {
    Answered(Answer),
    No,
    Unavailable,
    Failed,
}

impl Client {
    pub(crate) async fn pull(&mut self) -> Result<(), Broken> {
        let world = Arc::clone(self.world());
        let mut number = 1 + self.random.index(world.machines.len() - 1);
        let Some(mut repo) = self.some_repo() else { return Ok(()) };
        let mut what = match self.random.below(100) {
            0..60 => match self.some_tag() {
                Some(tag) => What::Manifest(Reference::Tag(tag)),
                None => return Ok(()),
            },
            60..75 => What::Manifest(Reference::Digest(self.some_image())),
            _ => What::Blob(blobs()[self.random.index(blobs().len())].digest),
        };
        if let Some((wrote_in, wrote, through)) = self.wrote.clone().filter(|_| self.random.percent(45)) {
            (repo, what) = (wrote_in, wrote);
            number = through.filter(|_| self.random.percent(60)).unwrap_or(number);
        }
        let want = if self.random.percent(30) { Want::Headers } else { Want::Content };
        let min_offset = self.seen.filter(|_| self.random.percent(30));
        self.travel().await;
        world.pull(number, repo, what, want, self.token, min_offset, self.leaves_after()).await
    }

    /// Some leave before they have everything.
    fn leaves_after(&self) -> Option<Duration> {
        self.random.percent(5).then(|| self.random.millis(1, 500))
    }
}

impl World {
    /// Pulls through a site and checks the answer.
    #[expect(clippy::too_many_arguments, reason = "all of them make a request what it is")]
    pub(crate) async fn pull(
        self: &Arc<Self>,
        number: usize,
        repo: RepoName,
        what: What,
        want: Want,
        token: Token,
        min_offset: Option<Offset>,
        leaves_after: Option<Duration>,
    ) -> Result<(), Broken> {
        let kind = match (&what, want) {
            (What::Manifest(Reference::Tag(_)), _) => "tag",
            (What::Manifest(_), Want::Content) => "digest",
            (What::Manifest(_), Want::Headers) => "digest HEAD",
            (What::Blob(_), Want::Content) => "blob",
            (What::Blob(_), Want::Headers) => "blob HEAD",
        };
        let Some(running) = self.machines[number].running() else {
            self.count_pull(kind, "no site");
            return Ok(());
        };
        let pull = {
            let oracle = self.oracle();
            let now = Instant::now();
            let acknowledged = oracle.acknowledged_at(now);
            let earlier = now.checked_sub(PullRules::default().staleness_bound + INEXACT).unwrap_or(now);
            let acknowledged_earlier = oracle.acknowledged_at(earlier);
            let written_here = oracle.written_through(number, &repo, &what);
            Pull {
                site: number,
                repo,
                what,
                want,
                token,
                min_offset,
                acknowledged,
                acknowledged_earlier,
                written_here,
            }
        };
        let (world, asked, at) = (Arc::clone(self), pull.clone(), Arc::clone(&running));
        let work = ask(&running, async move { world.answer(&at, asked).await });
        let patience = leaves_after.unwrap_or(PULL_MAX);
        let how = match tokio::time::timeout(patience, work).await {
            Ok(Some(Ok(how))) => how,
            Ok(Some(Err(broken))) => return Err(broken),
            Ok(None) => "connection lost",
            Err(_) if leaves_after.is_some() => "client left",
            Err(_) => return Err(Broken(format!("a pull does not end: {pull:?}"))),
        };
        self.count_pull(kind, how);
        self.network.note(&[number as u64, how.len() as u64]);
        Ok(())
    }

    async fn answer(&self, running: &Running, pull: Pull) -> Result<&'static str, Broken> {
        let options = PullOptions { min_offset: pull.min_offset, want: pull.want };
        let caller = pull.token.caller(&pull.repo);
        let end = match &pull.what {
            What::Manifest(reference) => {
                match running.pull.manifest(&caller, &pull.repo, reference, options).await {
                    Ok(answer) => {
                        if Digest::sha256(&answer.bytes) != answer.digest {
                            return Err(Broken(format!("a wrong byte in a manifest: {pull:?}")));
                        }
                        let (offset, staleness) = (answer.offset, answer.staleness);
                        End::Answered(Answer { digest: Some(answer.digest), offset, staleness })
                    }
                    Err(error) => of_error(&error),
                }
            }
            What::Blob(digest) => match running.pull.blob(&caller, &pull.repo, digest, options).await {
                Ok(answer) => {
                    let (offset, staleness) = (answer.offset, answer.staleness);
                    // What it says holds from now on, however long the bytes take.
                    let answered = Answer { digest: Some(answer.digest), offset, staleness };
                    self.check_answer(&pull, &answered)?;
                    let size = usize::try_from(answer.size).unwrap_or(usize::MAX);
                    let wants = answer.content.is_some();
                    let bytes = read(answer.content, answer.size).await;
                    self.report().blob_bytes += bytes.len() as u64;
                    match bytes.len() == size {
                        _ if !wants => {}
                        true if Digest::sha256(&bytes) != *digest => {
                            return Err(Broken(format!("a wrong byte in a complete blob: {pull:?}")));
                        }
                        true => {}
                        false if is_wrong_in_tail(digest, &bytes) => {
                            return Err(Broken(format!("a wrong byte in the end of a blob: {pull:?}")));
                        }
                        false => return Ok("broke off"),
                    }
                    return Ok(if answered.staleness.is_some() { "stale" } else { "answered" });
                }
                Err(error) => of_error(&error),
            },
        };
        match end {
            End::Answered(answer) => {
                self.check_answer(&pull, &answer)?;
                Ok(if answer.staleness.is_some() { "stale" } else { "answered" })
            }
            End::No => {
                self.check_no(&pull)?;
                Ok("no")
            }
            End::Unavailable => Ok("unavailable"),
            End::Failed => Ok("failed"),
        }
    }

    /// A "no" was true at some moment since the pull began.
    fn check_no(&self, pull: &Pull) -> Result<(), Broken> {
        let oracle = self.oracle();
        let needed = if self.remembered_max == 0 {
            vec![pull.acknowledged]
        } else {
            vec![pull.acknowledged_earlier, pull.token.acknowledged, pull.written_here]
        };
        let missed = needed.into_iter().find(|mark| !oracle.was_since(&pull.repo, &pull.what, *mark, None));
        // A remembered one may be of a history that ended and of whose end the site has not heard yet.
        let earlier = Instant::now().checked_sub(PullRules::default().staleness_bound + INEXACT);
        let was_true = |since| oracle.was_absent_lately(&pull.repo, &pull.what, since);
        match missed {
            None => Ok(()),
            // The primary said it of the history in which the pull began, and it was long on its way.
            Some(_) if oracle.was_absent_before_end(&pull.repo, &pull.what, pull.acknowledged) => Ok(()),
            Some(_) if self.remembered_max > 0 && earlier.is_some_and(was_true) => Ok(()),
            Some(mark) => {
                let needed = oracle.seq(mark);
                Err(Broken(format!("false 404: event {needed} had to show; {pull:?}")))
            }
        }
    }

    /// Every promise about one answer.
    fn check_answer(&self, pull: &Pull, answer: &Answer) -> Result<(), Broken> {
        let now = Instant::now();
        let oracle = self.oracle();
        let (repo, what, digest) = (&pull.repo, &pull.what, answer.digest);
        let broken = |promise: &str, needed: u64| {
            let age = answer.staleness.map(|staleness| staleness.age);
            Err(Broken(format!(
                "{promise}: site {} answers {digest:?} at {} (stale: {age:?}), and event {needed} had to show; {pull:?}",
                pull.site - 1,
                answer.offset
            )))
        };
        if !oracle.was(repo, what, answer.offset, digest) {
            return broken(
                "an index is not what the log leads to (a delete undone, an event lost)",
                answer.offset.seq,
            );
        }
        if !oracle.is_present(answer.offset) {
            // A history that ended may show until the site hears of it, but not to those who know better.
            let knows = pull.token.offset.is_some() && !oracle.is_dead(pull.token.acknowledged);
            return if knows && answer.staleness.is_none() && !is_immutable(pull) {
                broken("a dead history shows to a newer token", 0)
            } else {
                Ok(())
            };
        }
        let mut needed = Vec::new();
        let before = |age: Duration| oracle.acknowledged_at(now.checked_sub(age).unwrap_or(now));
        match answer.staleness {
            Some(Staleness { age }) => {
                let age = age.mul_f64(1.0 + DRIFT_MAX) + INEXACT;
                needed.push(("an answer is older than it says", before(age)));
            }
            None if is_immutable(pull) => {}
            None => {
                // What was true when it began is no stale answer, however long that was on its way.
                let bound = before(PullRules::default().staleness_bound + INEXACT);
                let begun = pull.acknowledged;
                let earlier = if oracle.seq(begun) < oracle.seq(bound) { begun } else { bound };
                needed.push(("staleness bound", earlier));
                needed.push(("newer token", pull.token.acknowledged));
                needed.push(("read your writes at one site", pull.written_here));
                if let Some(offset) = pull.min_offset.filter(|offset| oracle.is_present(*offset)) {
                    needed.push(("Outport-Min-Offset", oracle.mark(offset.seq)));
                }
            }
        }
        let asks_primary = pull.token.holds_push && !(is_immutable(pull) && pull.want == Want::Content);
        if asks_primary && answer.staleness.is_none() {
            needed.push(("push session", pull.acknowledged));
        }
        match needed.into_iter().find(|(_, needed)| !oracle.was_since(repo, what, *needed, digest)) {
            Some((promise, needed)) => broken(promise, oracle.seq(needed)),
            None => Ok(()),
        }
    }
}

fn is_immutable(pull: &Pull) -> bool {
    !matches!(pull.what, What::Manifest(Reference::Tag(_)))
}

fn of_error(error: &PullError) -> End {
    match error {
        PullError::NameUnknown | PullError::ManifestUnknown | PullError::BlobUnknown => End::No,
        PullError::Unavailable { .. } => End::Unavailable,
        PullError::Denied | PullError::Internal => End::Failed,
    }
}

/// Whether bytes that are given out only once the digest matched are not those of the blob.
fn is_wrong_in_tail(digest: &Digest, bytes: &[u8]) -> bool {
    let Some(blob) = blobs().iter().find(|blob| blob.digest == *digest) else { return true };
    let held_from = blob.bytes.len().saturating_sub(HOLD_BACK_BYTES as usize);
    let tail = bytes.get(held_from..).unwrap_or_default();
    blob.bytes[held_from..].get(..tail.len()) != Some(tail)
}

/// What of a blob arrives: fewer bytes than it has when it breaks off, or when none are wanted.
async fn read(content: Option<BlobContent>, size: u64) -> Vec<u8> {
    match content {
        None => Vec::new(),
        Some(BlobContent::Local(blob)) => {
            let mut bytes = vec![0; usize::try_from(blob.size).unwrap_or_default()];
            let read = blob.file.read_exact_at(&mut bytes, 0);
            read.map(|()| bytes).unwrap_or_default()
        }
        Some(BlobContent::Filling(filling)) => {
            let mut reader = filling.reader(0..size);
            let mut pieces: Vec<Bytes> = Vec::new();
            while let Ok(Some(piece)) = reader.chunk().await {
                pieces.push(piece);
            }
            joined(&pieces)
        }
    }
}
