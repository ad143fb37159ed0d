//! Clients: they push, move and delete tags, fetch tokens at any time and pull through any site.

use bytes::Bytes;
use outport::{
    log::Cause,
    registry::{Intent, decide::Kind},
};
use outport_proto::{Change, Digest, IntentId, ManifestPut, Offset, Reference, RepoName, Tag, Timestamp};

use crate::{
    Broken,
    primary::site_name,
    pulls::Pull,
    world::{Happening, World},
};

const REPOS: u64 = 2;
const TAGS: u64 = 6;
const MANIFESTS: u64 = 6;

/// Somebody who does one thing after another.
#[derive(Debug, Default)]
pub(crate) struct Client {
    token: Option<Token>,
    /// The newest offset the primary told this client.
    seen: Option<Offset>,
    /// What it wrote last, and through which site.
    wrote: Option<(RepoName, Reference, Option<usize>)>,
}

/// What a token says, and what was acknowledged when it was issued.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Token {
    pub(crate) offset: Option<Offset>,
    pub(crate) issued_at: Option<Timestamp>,
    pub(crate) holds_push: bool,
    pub(crate) acknowledged: u64,
}

/// A write under way.
#[derive(Debug)]
pub(crate) struct Write {
    client: usize,
    change: Change,
    reference: Option<Reference>,
    /// The site that redirected it, and the intent it opened.
    through: Option<(usize, IntentId)>,
}

impl World {
    pub(crate) fn client_rests(&mut self, client: usize) {
        self.after_millis(1, 500, Happening::ClientActs { client });
    }

    pub(crate) fn client_acts(&mut self, client: usize) -> Result<(), Broken> {
        if self.is_calm {
            return Ok(());
        }
        match self.random.below(100) {
            0..15 => {
                self.after_millis(1, 80, Happening::TokenAsked { client });
                Ok(())
            }
            15..45 => self.begin_write(client),
            _ => self.client_pulls(client),
        }
    }

    /// Issued by the primary's own service, or by another that keeps the primary's time.
    pub(crate) fn token_asked(&mut self, client: usize) {
        if let Some(process) = &self.primary.running {
            let is_own = self.random.percent(70);
            let second = Timestamp::from_secs(self.primary.clock.now().as_secs());
            self.clients[client].token = Some(Token {
                offset: is_own.then(|| process.log.head()),
                issued_at: Some(second),
                holds_push: self.random.percent(15),
                acknowledged: self.oracle.acknowledged_at(self.now),
            });
        }
        self.client_rests(client);
    }

    fn begin_write(&mut self, client: usize) -> Result<(), Broken> {
        let repo = self.some_repo()?;
        let (change, reference) = match self.random.below(100) {
            0..55 => {
                let tag = self.some_tag()?;
                let mut tags = vec![tag.clone()];
                if self.random.percent(15) {
                    tags.push(self.some_tag()?);
                    tags.dedup();
                }
                let bytes = self.some_manifest();
                let put = ManifestPut {
                    repo: repo.clone(),
                    digest: Digest::sha256(&bytes),
                    media_type: "application/vnd.oci.image.manifest.v1+json".to_owned(),
                    size: bytes.len() as u64,
                    bytes: Some(bytes),
                    tags,
                    subject: None,
                    artifact_type: None,
                    platform: None,
                    annotations: Vec::new(),
                    children: Vec::new(),
                };
                (Change::ManifestPut(Box::new(put)), Some(Reference::Tag(tag)))
            }
            55..72 => {
                let tag = self.some_tag()?;
                (Change::TagDeleted { repo: repo.clone(), tag: tag.clone() }, Some(Reference::Tag(tag)))
            }
            72..84 => {
                let digest = Digest::sha256(&self.some_manifest());
                (Change::ManifestDeleted { repo: repo.clone(), digest }, Some(Reference::Digest(digest)))
            }
            84..92 => {
                let digest = Digest::sha256(&self.some_manifest());
                (Change::BlobCommitted { repo: repo.clone(), digest, size: 1 }, None)
            }
            92..98 => {
                let digest = Digest::sha256(&self.some_manifest());
                (Change::BlobDeleted { repo: repo.clone(), digest }, None)
            }
            _ => (Change::RepositoryDeleted { repo: repo.clone() }, None),
        };
        let takes_tags = matches!(change, Change::ManifestDeleted { .. });
        let redirected =
            reference.as_ref().map(|reference| self.redirect(&repo, reference, takes_tags)).transpose()?;
        let through = redirected.flatten();
        if let Some(reference) = &reference {
            let site = through.as_ref().map(|(site, _)| *site);
            self.clients[client].wrote = Some((repo, reference.clone(), site));
        }
        let write = self.number();
        self.writes.insert(write, Write { client, change, reference, through });
        if self.random.percent(3) {
            self.write_ends(write, None);
        } else {
            self.after_millis(1, 120, Happening::WriteArrives { write });
        }
        Ok(())
    }

    /// A site sends most writes on to the primary and notes that it did.
    fn redirect(
        &mut self,
        repo: &RepoName,
        reference: &Reference,
        takes_tags: bool,
    ) -> Result<Option<(usize, IntentId)>, Broken> {
        let site = self.random.index(self.sites.len());
        let number = self.number();
        let running = self.sites[site].running.as_ref();
        let Some(process) = running.filter(|_| self.random.percent(75)) else { return Ok(None) };
        let names = vec![reference.clone()];
        process
            .intents
            .open(Intent { number, repo: repo.clone(), names, takes_tags }, self.sites[site].clock.now());
        Ok(Some((site, IntentId { site: site_name(site)?, number })))
    }

    pub(crate) fn write_arrives(&mut self, number: u64) {
        let (Some(write), Some(process)) = (self.writes.get(&number), &self.primary.running) else {
            return self.write_ends(number, None);
        };
        let exists = match &write.change {
            Change::TagDeleted { repo, tag } => process.index.tag(repo, tag).is_ok_and(|tag| tag.is_some()),
            Change::ManifestDeleted { repo, digest } => {
                process.index.manifest_record(repo, digest).is_ok_and(|held| held.is_some())
            }
            Change::BlobDeleted { repo, digest } => {
                process.index.link(repo, digest).is_ok_and(|link| link.is_some())
            }
            _ => true,
        };
        if !exists {
            return self.write_ends(number, None);
        }
        let intent = write.through.as_ref().map(|(_, intent)| intent.clone());
        let cause = Cause { actor: "client".to_owned(), intent };
        let change = write.change.clone();
        self.commit(number, cause, change);
    }

    /// The primary says that a write is done.
    pub(crate) fn acknowledge(&mut self, number: u64, offset: Offset) {
        let Some(write) = self.writes.get(&number) else { return };
        let named = write.change.repo().cloned().zip(write.reference.clone());
        let site = write.through.as_ref().map(|(site, _)| *site);
        let through = site.zip(named).map(|(site, (repo, reference))| (site, repo, reference));
        self.oracle.acknowledge(self.now, offset.seq, through);
        self.report.acknowledged += 1;
        self.note(&[number, offset.seq]);
        self.write_ends(number, Some(offset));
    }

    /// A client knows the outcome of a write, or that it will not.
    pub(crate) fn write_ends(&mut self, number: u64, offset: Option<Offset>) {
        if let Some(write) = self.writes.remove(&number) {
            let client = &mut self.clients[write.client];
            client.seen = client.seen.max(offset);
            self.client_rests(write.client);
        }
    }

    fn client_pulls(&mut self, number: usize) -> Result<(), Broken> {
        let mut site = self.random.index(self.sites.len());
        let mut repo = self.some_repo()?;
        let mut reference = if self.random.percent(75) {
            Reference::Tag(self.some_tag()?)
        } else {
            Reference::Digest(Digest::sha256(&self.some_manifest()))
        };
        let client = &self.clients[number];
        if let Some((wrote_in, wrote, through)) = client.wrote.clone().filter(|_| self.random.percent(50)) {
            (repo, reference) = (wrote_in, wrote);
            site = through.filter(|_| self.random.percent(60)).unwrap_or(site);
        }
        let kind = match &reference {
            Reference::Tag(_) => Kind::Tag,
            Reference::Digest(_) if self.random.percent(50) => Kind::Existence,
            Reference::Digest(_) => Kind::Digest,
        };
        let life = self.sites[site].life;
        if self.sites[site].running.is_none() {
            self.client_rests(number);
            return Ok(());
        }
        let run = (site, life);
        let pull = Pull {
            client: number,
            run,
            kind,
            token: client.token.unwrap_or_default(),
            min_offset: client.seen.filter(|_| self.random.percent(30)),
            acknowledged: self.oracle.acknowledged_at(self.now),
            written_here: self.oracle.written_through(site, &repo, &reference),
            repo,
            reference,
            stage: 0,
            waited: false,
            cut: false,
            until: None,
            asked: None,
        };
        self.begin_pull(pull)
    }

    fn some_repo(&mut self) -> Result<RepoName, Broken> {
        let name = format!("team/app-{}", self.random.below(REPOS));
        name.parse().map_err(|error| Broken(format!("a name: {error}")))
    }

    fn some_tag(&mut self) -> Result<Tag, Broken> {
        let name = format!("v{}", self.random.below(TAGS));
        name.parse().map_err(|error| Broken(format!("a tag: {error}")))
    }

    fn some_manifest(&mut self) -> Bytes {
        let number = self.random.below(MANIFESTS);
        let padding = "x".repeat(usize::try_from(number * number * 37).unwrap_or_default());
        format!("{{\"schemaVersion\":2,\"number\":{number},\"padding\":\"{padding}\"}}").into()
    }
}
