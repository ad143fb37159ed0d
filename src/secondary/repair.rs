//! Finds where this site's index differs from the primary's, and makes it equal.
//!
//! The sums of all buckets say which differ, their entries say in what. What this site lacks of
//! manifests is asked for one by one. Everything is fetched first; then each bucket is made equal
//! in one step, if neither end changed it in between. Nothing is held while the network is waited for.

use std::time::Duration;

use bytes::Bytes;
use outport_proto::{
    Digest, Reference, RepoName,
    event::INLINE_MANIFEST_BYTES_MAX,
    frame::{DIFF_BUCKETS_MAX, DiffStep, Request, Response},
    snapshot::Entry,
    statehash::BUCKETS,
};

use crate::{
    fetch::{
        UpstreamError,
        bulk::Bulk,
        framed::{FrameStream, FramedError},
        primary::ask,
    },
    index::{Bucket, Correction, corrections},
    registry::journal::{Journal, JournalError},
};

/// The primary may have to walk its whole index first.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// How long to wait for the events that the primary's answer is ahead by.
const APPLY_TIMEOUT: Duration = Duration::from_secs(5);
/// Buckets that may differ: beyond that a snapshot is less work for everybody.
const BUCKETS_DIFFER_MAX: usize = 1024;
/// Entries that one answer may bring, so that it cannot take all memory.
const ENTRIES_MAX: usize = 400_000;

/// What a round of repair came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Repaired {
    /// Buckets that differed.
    pub(super) buckets: usize,
    /// Tags, manifests and links put, removed or replaced.
    pub(super) entries: usize,
    /// Buckets that changed in between: they may still differ.
    pub(super) moved: usize,
}

/// One round: compares all buckets with those of the primary at the other end of `bulk`, and
/// makes equal those that differ.
///
/// # Errors
/// [`RepairError`]; what was made equal by then stays so.
pub(super) async fn repair(journal: Journal, bulk: Bulk) -> Result<Repaired, RepairError> {
    let bulk = bulk.connection().await?;
    let theirs = their_sums(&bulk).await?;
    let own = blocking(&journal, |journal| journal.bucket_sums()).await?;
    let differing: Vec<u16> = (0..)
        .zip(own.sums.iter().zip(&theirs))
        .filter(|(_, (own, theirs))| own != theirs)
        .map(|(bucket, _)| bucket)
        .collect();
    if differing.len() > BUCKETS_DIFFER_MAX {
        return Err(RepairError::TooMuch(differing.len()));
    }
    let mut repaired = Repaired { buckets: differing.len(), ..Repaired::default() };
    for wanted in differing.chunks(DIFF_BUCKETS_MAX) {
        make_equal(&journal, &bulk, wanted, &mut repaired).await?;
    }
    Ok(repaired)
}

async fn their_sums(bulk: &quinn::Connection) -> Result<Vec<[u8; 32]>, RepairError> {
    let mut answer = ask(bulk, &Request::Diff(DiffStep::Sums), ANSWER_TIMEOUT).await?;
    match answer.expect(ANSWER_TIMEOUT).await? {
        Response::DiffSums { sums, .. } if sums.len() == BUCKETS => Ok(sums),
        other => Err(out_of_place(other)),
    }
}

/// Makes some buckets equal to the primary's.
async fn make_equal(
    journal: &Journal,
    bulk: &quinn::Connection,
    wanted: &[u16],
    repaired: &mut Repaired,
) -> Result<(), RepairError> {
    let theirs = their_buckets(bulk, wanted).await?;
    let asked = wanted.to_vec();
    let own = blocking(journal, move |journal| journal.buckets(&asked)).await?;
    for (own, theirs) in own.into_iter().zip(theirs) {
        let span = (theirs.since, theirs.until);
        let mut corrections = corrections(&own.entries, theirs.entries);
        if span.0 > span.1 || own.since > own.until || !add_bytes(bulk, &mut corrections).await? {
            repaired.moved += 1;
            continue;
        }
        journal.wait_applied(span.0, APPLY_TIMEOUT).await;
        let count = corrections.len();
        if journal.mend(own, span, corrections).await? {
            repaired.entries += count
        } else {
            repaired.moved += 1
        }
    }
    Ok(())
}

async fn their_buckets(bulk: &quinn::Connection, wanted: &[u16]) -> Result<Vec<Bucket>, RepairError> {
    let request = Request::Diff(DiffStep::Entries(wanted.to_vec()));
    let mut answer = ask(bulk, &request, ANSWER_TIMEOUT).await?;
    let mut buckets = Vec::with_capacity(wanted.len());
    let mut left = ENTRIES_MAX;
    for wanted in wanted {
        buckets.push(their_bucket(&mut answer, *wanted, &mut left).await?);
    }
    Ok(buckets)
}

async fn their_bucket(
    answer: &mut FrameStream<Response>,
    wanted: u16,
    left: &mut usize,
) -> Result<Bucket, RepairError> {
    let mut entries = Vec::new();
    loop {
        match answer.expect(ANSWER_TIMEOUT).await? {
            Response::DiffPart(part) => {
                *left = left.checked_sub(part.len()).ok_or(RepairError::OutOfPlace)?;
                entries.extend(part);
            }
            Response::DiffBucket { bucket, since, until, entries: count }
                if bucket == wanted && count == entries.len() as u64 =>
            {
                return Ok(Bucket { bucket, since, until, entries, sum: Default::default() });
            }
            other => return Err(out_of_place(other)),
        }
    }
}

/// Asks for the bytes of the manifests that this site does not have. Returns whether all are
/// still there.
async fn add_bytes(bulk: &quinn::Connection, corrections: &mut [Correction]) -> Result<bool, RepairError> {
    for correction in corrections {
        let Correction::Put { entry: Entry::Manifest { manifest, .. }, is_known: false } = correction else {
            continue;
        };
        if manifest.size > INLINE_MANIFEST_BYTES_MAX as u64 {
            continue;
        }
        let Some(bytes) = their_manifest(bulk, &manifest.repo, &manifest.digest).await? else {
            return Ok(false);
        };
        manifest.bytes = Some(bytes);
    }
    Ok(true)
}

async fn their_manifest(
    bulk: &quinn::Connection,
    repo: &RepoName,
    digest: &Digest,
) -> Result<Option<Bytes>, RepairError> {
    let request = Request::Resolve { repo: repo.clone(), reference: Reference::Digest(*digest) };
    let mut answer = ask(bulk, &request, ANSWER_TIMEOUT).await?;
    match answer.expect(ANSWER_TIMEOUT).await? {
        Response::Manifest { manifest, .. } => Ok(manifest.bytes),
        Response::NotFound { .. } => Ok(None),
        other => Err(out_of_place(other)),
    }
}

async fn blocking<T: Send + 'static>(
    journal: &Journal,
    work: impl FnOnce(&Journal) -> Result<T, JournalError> + Send + 'static,
) -> Result<T, RepairError> {
    let journal = journal.clone();
    let done = crate::blocking::spawn(move || work(&journal)).await;
    Ok(done.map_err(|error| RepairError::Crashed(error.to_string()))??)
}

fn out_of_place(response: Response) -> RepairError {
    match response {
        Response::Unavailable { reason } => RepairError::Unavailable(reason),
        _ => RepairError::OutOfPlace,
    }
}

/// Why a round of repair ended early.
#[derive(Debug, thiserror::Error)]
pub(super) enum RepairError {
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
    #[error(transparent)]
    Framed(#[from] FramedError),
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error("the primary cannot say what it has: {0}")]
    Unavailable(String),
    #[error("the primary answered something else")]
    OutOfPlace,
    #[error("{0} of {BUCKETS} buckets differ")]
    TooMuch(usize),
    #[error("repairing crashed: {0}")]
    Crashed(String),
}
