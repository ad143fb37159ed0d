//! Answers what sites ask: one request a stream.

use std::{
    os::unix::fs::FileExt as _,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use outport_proto::{
    Digest, ManifestPut, Offset, Reference, RepoName, SiteName,
    frame::{Asked, DIFF_BUCKETS_MAX, DiffStep, Request, Response},
    oci::MANIFEST_BYTES_MAX,
    snapshot::{Entry, SnapshotPlace},
};

use super::{
    above::Above,
    source::{KeysDenied, Source},
};
use crate::{
    blocking,
    fetch::{
        FillError, Flight, UpstreamError,
        framed::{FrameSink, FrameStream, FramedError},
        quic::CloseCode,
    },
    index::{Bucket, BucketSums, IndexError},
    planted::{Bug, is_planted},
    registry::journal::{Behind, Journal, JournalError, SnapshotPiece},
    store::{Blob, BlobReader, Store, StoreError},
    telemetry::trace::{self, Tracing},
};

/// A request must arrive whole within this.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// Longest name of a key that is worth a line in a log, in bytes.
const KEY_NAME_BYTES_MAX: usize = 128;

/// Entries of a bucket in one frame, about, with the children and annotations of manifests.
const PART_ITEMS: usize = 2000;

/// Answers requests from journal and store, and what only the primary can say as its [`Source`]
/// does. Cloning gives another handle.
#[derive(Clone)]
pub struct Answerer {
    journal: Journal,
    store: Store,
    source: Arc<dyn Source>,
    above: Option<Above>,
    /// Held while buckets are read: that reads every row, so sites take turns.
    diffs: Arc<Mutex<()>>,
    tracing: Tracing,
}

/// An answer that is one frame, or one frame and what follows it.
pub(super) enum Answer {
    Frame(Response),
    Blob { blob: Blob, offset: u64 },
    Manifest { bytes: Bytes, offset: u64 },
    Filling { flight: Flight, size: u64, offset: u64 },
    Snapshot(Option<SnapshotPlace>),
    Buckets(Vec<Bucket>),
}

impl Answerer {
    /// Answers of the primary: `journal` and `store` are all there is.
    pub fn new(journal: Journal, store: Store, source: Arc<dyn Source>) -> Self {
        Self { journal, store, source, above: None, diffs: Arc::default(), tracing: Tracing::default() }
    }

    /// Answers of a site that relays, or of a primary that stands in front of a registry.
    pub fn relaying(journal: Journal, store: Store, source: Arc<dyn Source>, above: Above) -> Self {
        Self { above: Some(above), ..Self::new(journal, store, source) }
    }

    /// Records what sites that record their requests ask.
    #[must_use]
    pub fn traced(self, tracing: Tracing) -> Self {
        Self { tracing, ..self }
    }

    /// Reads one request of `asker` from `requests` and answers it on `sink`.
    ///
    /// # Errors
    /// When the peer left, stalled or broke the protocol. What fails here at the primary is an answer.
    pub async fn serve(
        &self,
        asker: &SiteName,
        mut requests: FrameStream<Asked>,
        mut sink: FrameSink,
    ) -> Result<(), FramedError> {
        let Asked { parent, request } = requests.expect(REQUEST_TIMEOUT).await?;
        if parent.is_none() {
            return self.answer_on(asker, request, &mut sink).await;
        }
        let span = self.tracing.asked(kind(&request), trace::Asked::BySite, parent);
        span.set("outport.site", asker.to_string());
        let answered = span.within(self.answer_on(asker, request, &mut sink)).await;
        answered.inspect_err(|error| span.failed(error))
    }

    async fn answer_on(
        &self,
        asker: &SiteName,
        request: Request,
        sink: &mut FrameSink,
    ) -> Result<(), FramedError> {
        let sent = match self.answered(asker, request).await {
            Ok(Answer::Frame(response)) => sink.send(&response).await,
            Ok(Answer::Blob { blob, offset }) => send_blob(sink, blob, offset).await,
            Ok(Answer::Manifest { bytes, offset }) => {
                let size = bytes.len() as u64;
                sink.send(&Response::Body { size }).await?;
                let start = usize::try_from(offset.min(size)).unwrap_or(bytes.len());
                sink.write(&mut [bytes.slice(start..)]).await
            }
            Ok(Answer::Filling { flight, size, offset }) => send_filling(sink, &flight, size, offset).await,
            Ok(Answer::Snapshot(resume)) => self.send_snapshot(resume, sink).await,
            Ok(Answer::Buckets(buckets)) => send_buckets(sink, buckets).await,
            Err(error) => {
                tracing::warn!(site = %asker, %error, "cannot answer a site's request");
                sink.send(&Response::Unavailable { reason: error.to_string() }).await
            }
        };
        match &sent {
            Ok(()) => sink.finish(),
            // Dropping a send stream would finish it and make half a body look like all of it.
            Err(_) => _ = sink.stream().reset(CloseCode::Unavailable.into()),
        }
        sent
    }

    async fn answered(&self, asker: &SiteName, request: Request) -> Result<Answer, AnswerError> {
        if let Request::SiteKeys { site, via } = &request {
            return self.site_keys(asker, site, via).await;
        }
        if let Request::OwnKeys { unknown } = &request {
            let unknown = unknown.get(..KEY_NAME_BYTES_MAX).unwrap_or(unknown);
            self.source.find_key(unknown).await.map_err(AnswerError::Keys)?;
            let keys = self.source.keys(asker, &[]).await;
            return keys.map(|keys| Answer::Frame(Response::SiteKeys(keys))).map_err(|denied| match denied {
                KeysDenied::Unavailable(reason) => AnswerError::Keys(reason),
                denied => AnswerError::Keys(denied.to_string()),
            });
        }
        if let Request::Certify { site, via, requests } = request {
            let at = self.journal.applied();
            let is_asker = via.last().unwrap_or(&site) == asker;
            return match is_asker.then_some(self.source.certify(&site, &via, requests)) {
                None => Ok(Answer::Frame(self.denied(asker, &site, &via, at))),
                Some(certifying) => match certifying.await {
                    Ok(certificates) => Ok(Answer::Frame(Response::Certified(certificates))),
                    Err(KeysDenied::Unavailable(reason)) => Err(AnswerError::Keys(reason)),
                    Err(_) => Ok(Answer::Frame(self.denied(asker, &site, &via, at))),
                },
            };
        }
        if let Request::Authorize { authorization, question } = request {
            let verdict = self.source.verdict(authorization, question).await;
            return verdict
                .map(|verdict| Answer::Frame(Response::Authorized(verdict)))
                .map_err(AnswerError::Verdict);
        }
        if matches!(request, Request::Snapshot { .. } | Request::Diff(_)) {
            self.source.sound().map_err(AnswerError::Unsound)?;
        }
        let Some(above) = &self.above else {
            self.level(&request).await?;
            return self.known(move |this| this.answer(&request)).await;
        };
        if let Some(response) = above.said(&request).await? {
            return Ok(Answer::Frame(response));
        }
        let Request::Fetch { repo, digest, offset } = request else {
            return self.known(move |this| this.answer(&request)).await;
        };
        let (of, at) = (repo.clone(), self.journal.applied());
        match self.known(move |this| this.held(&of, &digest, offset)).await? {
            Held::Here(answer) => Ok(answer),
            Held::Elsewhere { size } => above.fetched(&repo, &digest, offset, size, at).await,
        }
    }

    /// Waits until the index shows all that the log has: sites are sent what is durable, and must not
    /// be answered as of before what they were sent. While nothing is applied that is said at once.
    async fn level(&self, request: &Request) -> Result<(), AnswerError> {
        let is_of_now = matches!(
            request,
            Request::Resolve { .. }
                | Request::Link { .. }
                | Request::Referrers { .. }
                | Request::Fetch { .. }
        );
        if is_of_now { Ok(self.journal.level().await?) } else { Ok(()) }
    }

    /// What is looked up here, away from the runtime's threads.
    async fn known<T: Send + 'static>(
        &self,
        look_up: impl FnOnce(&Self) -> Result<T, AnswerError> + Send + 'static,
    ) -> Result<T, AnswerError> {
        let this = self.clone();
        let known = blocking::spawn(move || look_up(&this)).await;
        known.map_err(|error| AnswerError::Crashed(error.to_string())).flatten()
    }

    async fn site_keys(
        &self,
        asker: &SiteName,
        site: &SiteName,
        via: &[SiteName],
    ) -> Result<Answer, AnswerError> {
        let at = self.journal.applied();
        let denied = KeysDenied::NotBehind { site: site.clone(), asker: asker.clone() };
        let keys = if via.last() == Some(asker) { self.source.keys(site, via).await } else { Err(denied) };
        match keys {
            Ok(keys) => Ok(Answer::Frame(Response::SiteKeys(keys))),
            Err(KeysDenied::Unavailable(reason)) => Err(AnswerError::Keys(reason)),
            Err(KeysDenied::NotBehind { .. } | KeysDenied::Removed(_)) => {
                Ok(Answer::Frame(self.denied(asker, site, via, at)))
            }
        }
    }

    fn denied(&self, asker: &SiteName, site: &SiteName, via: &[SiteName], at: Offset) -> Response {
        tracing::warn!(%asker, %site, ?via, "a site asked for what is not for it, or of one that was removed");
        Response::NotFound { at }
    }

    /// A site that relays may have what it does not know to be linked, and the other way round.
    fn held(&self, repo: &RepoName, digest: &Digest, offset: u64) -> Result<Held, AnswerError> {
        let size = match self.journal.index().link(repo, digest)? {
            Some(size) => size,
            None => match self.journal.index().manifest_record(repo, digest)? {
                Some(ManifestPut { bytes: Some(bytes), .. }) => {
                    return Ok(Held::Here(Answer::Manifest { bytes, offset }));
                }
                Some(put) => put.size,
                None => return Ok(Held::Elsewhere { size: None }),
            },
        };
        let stored = self.store.get(digest).unwrap_or_else(|error| {
            tracing::warn!(%digest, %error, "store failed");
            None
        });
        Ok(match stored.filter(|blob| blob.size == size) {
            Some(blob) => Held::Here(Answer::Blob { blob, offset }),
            None => Held::Elsewhere { size: Some(size) },
        })
    }

    /// The offset is read before the lookup, so that the answer holds at it or is newer.
    fn answer(&self, request: &Request) -> Result<Answer, AnswerError> {
        let (at, index) = (self.journal.applied(), self.journal.index());
        Ok(match request {
            Request::Resolve { repo, reference } => Answer::Frame(self.resolve(repo, reference, at)?),
            Request::Link { repo, digest } => Answer::Frame(match index.link(repo, digest)? {
                Some(size) => Response::Linked { size, at },
                None => Response::NotFound { at },
            }),
            Request::Referrers { repo, digest } => {
                Answer::Frame(Response::Manifests { manifests: index.referrers(repo, digest)?, at })
            }
            Request::Fetch { repo, digest, offset } => self.fetch(repo, digest, *offset, at)?,
            Request::Snapshot { resume } => Answer::Snapshot(resume.clone()),
            Request::SiteKeys { .. }
            | Request::OwnKeys { .. }
            | Request::Authorize { .. }
            | Request::Certify { .. } => return Err(AnswerError::NotHere),
            Request::Diff(step) => self.difference(step)?,
        })
    }

    /// What is read while a snapshot replaces the index is no state of the primary's.
    fn difference(&self, step: &DiffStep) -> Result<Answer, AnswerError> {
        let whole = self.journal.index().whole().ok_or(JournalError::NotWhole)?;
        let answer = match step {
            DiffStep::Sums => {
                let BucketSums { at, sums } = self.journal.bucket_sums()?;
                Answer::Frame(Response::DiffSums { at, sums })
            }
            DiffStep::Entries(buckets) => {
                let wanted = &buckets[..buckets.len().min(DIFF_BUCKETS_MAX)];
                let _turn = self.diffs.lock().unwrap_or_else(PoisonError::into_inner);
                Answer::Buckets(self.journal.buckets(wanted)?)
            }
        };
        let is_whole = self.journal.index().whole() == Some(whole);
        if is_whole { Ok(answer) } else { Err(JournalError::NotWhole.into()) }
    }

    fn resolve(&self, repo: &RepoName, reference: &Reference, at: Offset) -> Result<Response, AnswerError> {
        let Some(record) = self.journal.index().named_record(repo, reference)? else {
            return Ok(Response::NotFound { at });
        };
        let bytes = match record.bytes {
            Some(bytes) => bytes,
            None => self.manifest_bytes(&record)?,
        };
        let manifest = ManifestPut { bytes: Some(bytes), tags: Vec::new(), ..record };
        Ok(Response::Manifest { manifest: Box::new(manifest), at })
    }

    /// A manifest too large for its event stands in the store.
    fn manifest_bytes(&self, record: &ManifestPut) -> Result<Bytes, AnswerError> {
        let blob = self.blob(&record.digest)?;
        let mut bytes = vec![0; usize::try_from(blob.size).unwrap_or(usize::MAX).min(MANIFEST_BYTES_MAX)];
        blob.file.read_exact_at(&mut bytes, 0).map_err(AnswerError::Read)?;
        Ok(bytes.into())
    }

    fn fetch(
        &self,
        repo: &RepoName,
        digest: &Digest,
        offset: u64,
        at: Offset,
    ) -> Result<Answer, AnswerError> {
        if self.journal.index().link(repo, digest)?.is_some() {
            return Ok(Answer::Blob { blob: self.blob(digest)?, offset });
        }
        match self.journal.index().manifest_record(repo, digest)? {
            Some(ManifestPut { bytes: Some(bytes), .. }) => Ok(Answer::Manifest { bytes, offset }),
            Some(_) => Ok(Answer::Blob { blob: self.blob(digest)?, offset }),
            None => Ok(Answer::Frame(Response::NotFound { at })),
        }
    }

    /// The index says that it is here, so absence from the store is a fault and never a "no".
    fn blob(&self, digest: &Digest) -> Result<Blob, AnswerError> {
        self.store.get(digest)?.ok_or(AnswerError::Missing(*digest))
    }

    async fn send_snapshot(
        &self,
        resume: Option<SnapshotPlace>,
        sink: &mut FrameSink,
    ) -> Result<(), FramedError> {
        let mut pieces = self.journal.snapshot(resume);
        while let Some(piece) = pieces.next().await {
            let response = match piece {
                Ok(SnapshotPiece::Begin { from, resumed }) => Response::SnapshotBegin { from, resumed },
                Ok(SnapshotPiece::Part(entries)) => Response::SnapshotPart(entries),
                Ok(SnapshotPiece::End { until, entries }) => Response::SnapshotEnd { until, entries },
                Err(error) => {
                    tracing::warn!(%error, "snapshot given up");
                    Response::Unavailable { reason: error.to_string() }
                }
            };
            sink.send(&response).await?;
        }
        Ok(())
    }
}

/// Sends buckets, each in frames of a size that does not hold up others.
async fn send_buckets(sink: &mut FrameSink, buckets: Vec<Bucket>) -> Result<(), FramedError> {
    for Bucket { bucket, since, until, entries, .. } in buckets {
        let count = entries.len() as u64;
        let (mut part, mut items) = (Vec::new(), 0);
        for entry in entries {
            items += items_in(&entry);
            part.push(entry);
            if items >= PART_ITEMS {
                sink.send(&Response::DiffPart(std::mem::take(&mut part))).await?;
                items = 0;
            }
        }
        if !part.is_empty() {
            sink.send(&Response::DiffPart(part)).await?;
        }
        sink.send(&Response::DiffBucket { bucket, since, until, entries: count }).await?;
    }
    Ok(())
}

/// An entry and what makes it large.
fn items_in(entry: &Entry) -> usize {
    let Entry::Manifest { manifest, .. } = entry else { return 1 };
    let texts = manifest.annotations.iter().map(|(name, value)| 1 + (name.len() + value.len()) / 64);
    1 + manifest.children.len() + texts.sum::<usize>()
}

/// Sends a blob from `offset` on, reading the next piece while the last one is sent.
async fn send_blob(sink: &mut FrameSink, blob: Blob, offset: u64) -> Result<(), FramedError> {
    sink.send(&Response::Body { size: blob.size }).await?;
    let mut reader = blob.reader(offset.min(blob.size)..blob.size);
    let mut piece = read_piece(&mut reader).await?;
    while let Some(bytes) = piece {
        let mut sending = [spoilt(bytes)];
        let (sent, next) = tokio::join!(sink.write(&mut sending), read_piece(&mut reader));
        sent?;
        piece = next?;
    }
    Ok(())
}

/// Whether the end of a fill was held back shows only when there is something wrong in it.
fn spoilt(bytes: Bytes) -> Bytes {
    if !is_planted(Bug::HeldBackTailEarly) || !crate::random::number().is_multiple_of(8) {
        return bytes;
    }
    let mut bytes = Vec::from(bytes);
    if let Some(last) = bytes.last_mut() {
        *last = !*last;
    }
    bytes.into()
}

/// Passes a blob on from `offset` while it arrives.
async fn send_filling(
    sink: &mut FrameSink,
    flight: &Flight,
    size: u64,
    offset: u64,
) -> Result<(), FramedError> {
    sink.send(&Response::Body { size }).await?;
    let mut reader = flight.reader(offset.min(size)..size);
    loop {
        match reader.chunk().await {
            Ok(Some(bytes)) => sink.write(&mut [bytes]).await?,
            Ok(None) => return Ok(()),
            Err(error) => {
                tracing::info!(%error, "a fill that was passed on broke off");
                return Err(FramedError::Broken(error.to_string()));
            }
        }
    }
}

async fn read_piece(reader: &mut BlobReader) -> Result<Option<Bytes>, FramedError> {
    reader.chunk().await.map_err(|error| {
        tracing::warn!(%error, "cannot read a blob");
        FramedError::Broken(error.to_string())
    })
}

/// What a span is called.
const fn kind(request: &Request) -> &'static str {
    match request {
        Request::Resolve { .. } => "resolve",
        Request::Link { .. } => "link",
        Request::Fetch { .. } => "fetch",
        Request::Referrers { .. } => "referrers",
        Request::Snapshot { .. } => "snapshot",
        Request::SiteKeys { .. } | Request::OwnKeys { .. } => "keys",
        Request::Diff(_) => "diff",
        Request::Authorize { .. } => "authorise",
        Request::Certify { .. } => "certify",
    }
}

/// Where what was asked for is.
enum Held {
    Here(Answer),
    /// Of this size, if the index knows it.
    Elsewhere {
        size: Option<u64>,
    },
}

/// Why there is no answer now.
#[derive(Debug, thiserror::Error)]
pub(super) enum AnswerError {
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
    #[error("fill: {0}")]
    Fill(FillError),
    #[error("keys: {0}")]
    Keys(String),
    #[error("{0}")]
    Verdict(String),
    #[error("keys are answered elsewhere")]
    NotHere,
    #[error("{0}")]
    Unsound(String),
    #[error(transparent)]
    Index(#[from] IndexError),
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("read a manifest: {0}")]
    Read(std::io::Error),
    #[error("{0} is in the index and not in the store")]
    Missing(Digest),
    #[error(transparent)]
    Behind(#[from] Behind),
    #[error("an answer crashed: {0}")]
    Crashed(String),
}
