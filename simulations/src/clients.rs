//! Clients: they push, move and delete tags, fetch tokens at any time and pull through any site.

use std::{future::Future, sync::Arc, time::Duration};

use bytes::Bytes;
use outport::{
    auth::{Access, Actions, Caller, Scope},
    clock::Clock as _,
    registry::{Intent, Mounted, NewManifest, PushError, PushService},
};
use outport_proto::{Change, IntentId, Offset, Reference, RepoName, Timestamp};
use tokio::time::Instant;

use crate::{
    Broken,
    content::{Content, MEDIA_TYPE, blobs, images, only_one},
    identities::site_name,
    machine::{Role, Running},
    oracle::{Mark, What},
    random::Random,
    world::World,
};

pub(crate) const REPOS: u64 = 2;
pub(crate) const TAGS: u64 = 5;
/// A pass of the garbage collector takes about so long.
const COLLECTING_MICROS: u64 = 300_000;
/// Nobody waits longer for the primary to take what he pushes.
const WRITE_MAX: Duration = Duration::from_secs(100);

/// Somebody who does one thing after another.
pub(crate) struct Client {
    world: Arc<World>,
    pub(crate) random: Random,
    pub(crate) token: Token,
    /// The newest offset the primary told this client.
    pub(crate) seen: Option<Offset>,
    /// What it wrote last, and through which site.
    pub(crate) wrote: Option<(RepoName, What, Option<usize>)>,
}

/// What a token says, and what was acknowledged when it was issued.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Token {
    pub(crate) offset: Option<Offset>,
    pub(crate) issued_at: Option<Timestamp>,
    pub(crate) holds_push: bool,
    pub(crate) acknowledged: Mark,
}

impl Token {
    /// Whom the token makes of its bearer.
    pub(crate) fn caller(&self, repo: &RepoName) -> Caller {
        let actions = if self.holds_push { Actions::ALL } else { Actions::PULL };
        caller(repo, actions, self)
    }
}

fn caller(repo: &RepoName, actions: Actions, token: &Token) -> Caller {
    let mut access = Access::none();
    access.grant(&Scope::repository(repo, actions));
    Caller {
        subject: "client".into(),
        access: Arc::new(access),
        issued_at: token.issued_at,
        offset: token.offset,
        anonymous: false,
    }
}

/// Does `work` in the process that runs; `None` when that is killed first.
pub(crate) async fn ask<T: Send + 'static>(
    running: &Running,
    work: impl Future<Output = T> + Send + 'static,
) -> Option<T> {
    let task = tokio::spawn(running.process.run(work));
    tokio::select! {
        biased;
        done = task => done.ok(),
        () = running.dead.cancelled() => None,
    }
}

impl Client {
    pub(crate) fn new(world: Arc<World>, number: usize) -> Self {
        let random = Random::new(world.options.seed, 0x0063_6c69 + number as u64);
        Self { world, random, token: Token::default(), seen: None, wrote: None }
    }

    /// Lives until nothing is to be done any more.
    pub(crate) async fn live(mut self) -> Result<(), Broken> {
        loop {
            let rest = self.world.rest(&self.random);
            tokio::time::sleep(rest).await;
            if self.world.is_calm() {
                return Ok(());
            }
            match self.random.below(100) {
                0..12 => self.fetch_token().await,
                12..38 => self.write().await,
                _ => self.pull().await?,
            }
        }
    }

    /// On the way to a node or back.
    pub(crate) async fn travel(&self) {
        tokio::time::sleep(self.random.millis(1, 60)).await;
    }

    /// Issued by the primary's own service, or by another that keeps the primary's time.
    async fn fetch_token(&mut self) {
        self.travel().await;
        let Some(primary) = self.world.machines[0].running() else { return };
        let is_own = self.random.percent(70);
        // Another service, whose clock nobody sets, would not issue tokens of a time that was before.
        let is_own = is_own || self.world.machines[0].clock.is_set_back();
        let second = Timestamp::from_secs(self.world.machines[0].clock.now().as_secs());
        self.token = Token {
            offset: is_own.then(|| primary.journal.log().head()),
            issued_at: Some(second),
            holds_push: self.random.percent(15),
            acknowledged: self.world.oracle().acknowledged_at(Instant::now()),
        };
        self.travel().await;
    }

    async fn write(&mut self) {
        let world = Arc::clone(&self.world);
        let repo = self.some_repo();
        let Some(repo) = repo else { return };
        let write = match self.random.below(100) {
            0..60 => Write::Push {
                image: self.random.index(images().len()),
                tags: (0..1 + self.random.below(5) / 4).filter_map(|_| self.some_tag()).collect(),
            },
            60..72 => match self.some_tag() {
                Some(tag) => Write::Delete(What::Manifest(Reference::Tag(tag))),
                None => return,
            },
            72..82 => Write::Delete(What::Manifest(Reference::Digest(self.some_image()))),
            82..88 => Write::Blob(self.random.percent(30).then(|| self.random.index(blobs().len()))),
            88..93 => Write::Mount(self.random.index(blobs().len())),
            93..99 => Write::Delete(What::Blob(blobs()[self.random.index(blobs().len())].digest)),
            _ => Write::DeleteRepository,
        };
        let names = write.names();
        self.travel().await;
        let through = self.redirect(&repo, &names).await;
        let site = through.map(|(site, _)| site);
        if let Some(what) = names.first() {
            self.wrote = Some((repo.clone(), what.clone(), site));
        }
        self.travel().await;
        let Some(primary) = world.machines[0].running() else {
            return self.world.count_write(write.kind(), "no primary");
        };
        let Role::Primary { push } = &primary.role else { return };
        let doing = Doing {
            world: Arc::clone(&world),
            push: push.clone(),
            led: match through {
                Some((site, number)) if number != 0 => match site_name(site - 1) {
                    Ok(site) => push.led(IntentId { site, number }),
                    Err(_) => return,
                },
                _ => push.clone(),
            },
            caller: caller(&repo, Actions::ALL, &self.token),
            other: self.some_repo().unwrap_or_else(|| repo.clone()),
            primary: Arc::clone(&primary),
            repo,
            names,
            through: site,
        };
        let kind = write.kind();
        let work = ask(&primary, doing.do_it(write));
        // Some leave before they hear of it.
        let patience = if self.random.percent(4) { self.random.millis(1, 200) } else { WRITE_MAX };
        let (end, seen) = match tokio::time::timeout(patience, work).await {
            Ok(Some(Ok(offset))) => ("done", Some(offset)),
            Ok(Some(Err(PushError::Unavailable { .. } | PushError::Internal))) => ("failed", None),
            Ok(Some(Err(_))) => ("refused", None),
            Ok(None) => ("connection lost", None),
            Err(_) => ("given up", None),
        };
        self.world.count_write(kind, end);
        drop(primary);
        self.travel().await;
        self.seen = self.seen.max(seen);
    }

    /// A site sends most writes on to the primary and notes that it did.
    async fn redirect(&self, repo: &RepoName, names: &[What]) -> Option<(usize, u64)> {
        let site = 1 + self.random.index(self.world.machines.len() - 1);
        let machine = &self.world.machines[site];
        let running = machine.running().filter(|_| self.random.percent(75))?;
        let Role::Site { intents, .. } = &running.role else { return None };
        if names.is_empty() {
            return Some((site, 0));
        }
        let number = self.random.number();
        let references = names.iter().map(|what| match what {
            What::Manifest(reference) => reference.clone(),
            What::Blob(digest) => Reference::Digest(*digest),
        });
        let takes_tags = matches!(names, [What::Manifest(Reference::Digest(_))]);
        let intent = Intent { number, repo: repo.clone(), names: references.collect(), takes_tags };
        let (intents, now) = (intents.clone(), machine.clock.steady_time());
        ask(&running, async move { intents.open(intent, now) }).await?;
        Some((site, number))
    }

    pub(crate) fn some_repo(&self) -> Option<RepoName> {
        format!("team/app-{}", self.random.below(REPOS)).parse().ok()
    }

    pub(crate) fn some_tag(&self) -> Option<outport_proto::Tag> {
        format!("v{}", self.random.below(TAGS)).parse().ok()
    }

    pub(crate) fn some_image(&self) -> outport_proto::Digest {
        images()[self.random.index(images().len())].manifest.digest
    }

    pub(crate) fn world(&self) -> &Arc<World> {
        &self.world
    }
}

/// What is written.
enum Write {
    Push {
        image: usize,
        tags: Vec<outport_proto::Tag>,
    },
    /// One of the blobs, or one that nobody else has.
    Blob(Option<usize>),
    Mount(usize),
    Delete(What),
    DeleteRepository,
}

impl Write {
    const fn kind(&self) -> &'static str {
        match self {
            Self::Push { .. } => "push",
            Self::Blob(_) => "blob",
            Self::Mount(_) => "mount",
            Self::Delete(What::Manifest(Reference::Tag(_))) => "delete tag",
            Self::Delete(What::Manifest(Reference::Digest(_))) => "delete manifest",
            Self::Delete(What::Blob(_)) => "delete blob",
            Self::DeleteRepository => "delete repository",
        }
    }

    /// What a redirect announces, and what is known to show once it is acknowledged.
    fn names(&self) -> Vec<What> {
        match self {
            Self::Push { tags, .. } => {
                tags.iter().map(|tag| What::Manifest(Reference::Tag(tag.clone()))).collect()
            }
            Self::Delete(what) => vec![what.clone()],
            Self::Blob(_) | Self::Mount(_) | Self::DeleteRepository => Vec::new(),
        }
    }
}

/// A write under way at the primary.
struct Doing {
    world: Arc<World>,
    push: PushService,
    /// For the one request that a redirect announced.
    led: PushService,
    caller: Caller,
    primary: Arc<Running>,
    repo: RepoName,
    other: RepoName,
    names: Vec<What>,
    /// The site that redirected it.
    through: Option<usize>,
}

impl Doing {
    async fn do_it(self, write: Write) -> Result<Offset, PushError> {
        let offset = match write {
            Write::Push { image, tags } => {
                let image = &images()[image];
                for blob in image.blobs {
                    self.upload(&blobs()[blob]).await?;
                }
                let mut tags = tags.into_iter();
                let reference = tags.next().map_or(Reference::Digest(image.manifest.digest), Reference::Tag);
                // A push by tag has but one; others go by digest with `tag` parameters.
                let rest: Vec<_> = tags.collect();
                let (reference, tags) = match (rest.is_empty(), reference) {
                    (true, reference) => (reference, rest),
                    (false, Reference::Tag(first)) => {
                        (Reference::Digest(image.manifest.digest), [first].into_iter().chain(rest).collect())
                    }
                    (false, reference) => (reference, rest),
                };
                let manifest = NewManifest {
                    reference,
                    tags,
                    content_type: MEDIA_TYPE.to_owned(),
                    bytes: image.manifest.bytes.clone(),
                };
                self.led.put_manifest(&self.caller, &self.repo, manifest).await?.offset
            }
            Write::Blob(Some(blob)) => self.upload(&blobs()[blob]).await?,
            Write::Blob(None) => self.upload(&only_one(self.world.random.number())).await?,
            Write::Mount(blob) => {
                let digest = blobs()[blob].digest;
                let mounted = self.push.mount(&self.caller, &self.repo, &digest, Some(&self.other)).await?;
                match mounted {
                    Mounted::Linked(put) => put.offset,
                    Mounted::Upload(right, _) => {
                        self.push.cancel_upload(&right).await?;
                        return Err(PushError::BlobUnknown);
                    }
                }
            }
            Write::Delete(What::Manifest(reference)) => {
                self.led.delete_manifest(&self.caller, &self.repo, &reference).await?.offset
            }
            Write::Delete(What::Blob(digest)) => {
                self.led.delete_blob(&self.caller, &self.repo, &digest).await?.offset
            }
            Write::DeleteRepository => {
                let change = Change::RepositoryDeleted { repo: self.repo.clone() };
                self.primary.journal.commit("client", vec![change]).await.map_err(|_| PushError::Internal)?
            }
        };
        for what in &self.names {
            self.acknowledged(offset, Some(what));
        }
        self.acknowledged(offset, None);
        Ok(offset)
    }

    async fn upload(&self, blob: &Content) -> Result<Offset, PushError> {
        let (right, _) = self.push.start_upload(&self.caller, &self.repo, None).await?;
        let mut append = self.push.append(&right, None).await?;
        let half = blob.bytes.len() / 2;
        for piece in [blob.bytes.slice(..half), blob.bytes.slice(half..)] {
            append.write(piece).await?;
        }
        append.finish().await?;
        // A bad moment to collect garbage: nothing links what is published next.
        if self.world.random.percent(25) {
            self.primary.collect();
            tokio::time::sleep(self.world.random.micros(0, COLLECTING_MICROS)).await;
        }
        let offset = self.push.finish_upload(&right, &blob.digest).await?.offset;
        let is_rotten = self.world.rotten().contains(&blob.digest);
        if !is_rotten && self.primary.has_lost(&self.repo, &blob.digest) {
            self.world
                .broken(Broken(format!("a blob is lost that was acknowledged at {offset}: {}", blob.digest)));
        }
        self.acknowledged(offset, None);
        Ok(offset)
    }

    /// The primary says that it is done.
    fn acknowledged(&self, offset: Offset, what: Option<&What>) {
        let through = self.through.zip(what).map(|(site, what)| (site, self.repo.clone(), what.clone()));
        if what.is_none() {
            self.world.report().acknowledged += 1;
        }
        self.world.oracle().acknowledge(Instant::now(), offset.seq, through);
    }
}

/// Everything of a stream of pieces.
pub(crate) fn joined(pieces: &[Bytes]) -> Vec<u8> {
    pieces.iter().flat_map(|piece| piece.iter().copied()).collect()
}
