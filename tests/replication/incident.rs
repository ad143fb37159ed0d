//! One of very many facts of a site's index goes wrong: how soon that is noticed, and what it takes
//! to set it right.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use outport::{registry::Session, status::SiteStatus};
use outport_proto::{Change, Digest, Event, ManifestPut, RepoName, Tag, oci::media_type};

use crate::{
    stretch::Stretch,
    world::{Primary, Site, World, now, repo},
};

/// Tags of an image, beside its manifest.
const TAGS: u64 = 99;
const REPOSITORIES: u64 = 100;
/// Events of one commit.
const BATCH: usize = 10_000;
const PATIENCE: Duration = Duration::from_secs(300);

/// What became of one incident.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Incident {
    pub(crate) what: &'static str,
    /// Comparisons until one showed it.
    pub(crate) comparisons: u64,
    /// Until the site knew.
    pub(crate) noticed: Duration,
    /// Until a comparison showed that it is gone.
    pub(crate) repaired: Duration,
    /// Bytes of all packets between site and primary meanwhile, in both directions.
    pub(crate) bytes: u64,
    /// What was put, removed or replaced.
    pub(crate) entries: u64,
}

/// Lets one thing after another go wrong at a site that has `facts` tags, manifests and links, a
/// tenth of them links, and sees it repaired.
pub(crate) async fn incidents(facts: u64) -> Vec<Incident> {
    let world = World::new();
    let primary = world.primary().await;
    let stretch = Stretch::to(primary.address).await;
    let site = world.site_at(stretch.address).await;
    fill(&primary, &site, facts).await;
    for journal in [&primary.journal, &site.journal] {
        let walked = journal.verify().await.unwrap();
        assert_eq!((walked.rows, walked.adds_up), (facts, true));
    }

    let (app, missing) = (repo_of(0), Digest::sha256(b"never pushed"));
    let tag: Tag = tag_of(0, 7).parse().unwrap();
    let link = |number| Change::BlobDeleted { repo: repo_of(number), digest: layer(number) };
    let added = Change::BlobCommitted { repo: app.clone(), digest: missing, size: 1 };
    let wrongs = [
        ("a lost tag", vec![Change::TagDeleted { repo: app.clone(), tag: tag.clone() }]),
        ("a lost link", vec![link(3)]),
        ("an added tag", vec![image(0, ["never-pushed".parse().unwrap()])]),
        ("an added link", vec![added.clone()]),
        // The image of the same repository that was pushed after it.
        ("a changed tag", vec![image(REPOSITORIES, [tag])]),
        ("a changed link", vec![link(4), added]),
    ];
    let mut incidents = Vec::new();
    for (number, (what, wrong)) in (1..).zip(wrongs) {
        let before = status(&site);
        let (compared, bytes, began) = (site.session.now().comparisons, stretch.exchanged(), Instant::now());
        tamper(&site, wrong);
        let noticed = reached(&site, "noticing", |session| session.differs).await;
        let comparisons = noticed.comparisons - compared;
        let noticed = began.elapsed();
        reached(&site, "repairing", |session| session.live && !session.differs).await;
        let (repaired, bytes) = (began.elapsed(), stretch.exchanged() - bytes);
        assert_eq!(site.journal.index().state_hash(), primary.journal.index().state_hash(), "{what}");
        let after = status(&site);
        assert_eq!(
            (after.state_mismatches, after.state_repairs, after.alarm),
            (number, number, None),
            "{what}"
        );
        let entries = after.state_entries_repaired - before.state_entries_repaired;
        incidents.push(Incident { what, comparisons, noticed, repaired, bytes, entries });
    }
    let walked = site.journal.verify().await.unwrap();
    assert_eq!((walked.rows, walked.adds_up), (facts, true));
    site.stop().await;
    primary.stop().await;
    incidents
}

async fn fill(primary: &Primary, site: &Site, facts: u64) {
    let images = facts * 9 / 10 / (TAGS + 1);
    let links = facts - images * (TAGS + 1);
    let links = (0..links).map(|number| Change::BlobCommitted {
        repo: repo_of(number),
        digest: layer(number),
        size: 1_000_000 + number,
    });
    let images =
        (0..images).map(|number| image(number, (0..TAGS).map(|tag| tag_of(number, tag).parse().unwrap())));
    let mut changes = links.chain(images);
    loop {
        let batch: Vec<Change> = changes.by_ref().take(BATCH).collect();
        if batch.is_empty() {
            break;
        }
        let head = primary.commit(batch).await;
        let mut applied = site.journal.watch_applied();
        let wait = applied.wait_for(|applied| *applied >= head);
        tokio::time::timeout(PATIENCE, wait).await.unwrap().unwrap();
    }
    reached(site, "going live", |session| session.live && !session.differs).await;
}

fn repo_of(number: u64) -> RepoName {
    repo(&format!("lazy/team-{}", number % REPOSITORIES))
}

fn layer(number: u64) -> Digest {
    Digest::sha256(&number.to_le_bytes())
}

fn tag_of(image: u64, number: u64) -> String {
    format!("build-{image}-{number}")
}

fn image(number: u64, tags: impl IntoIterator<Item = Tag>) -> Change {
    let manifest = Bytes::from(format!(r#"{{"schemaVersion":2,"image":{number}}}"#));
    Change::ManifestPut(Box::new(ManifestPut {
        repo: repo_of(number),
        digest: Digest::sha256(&manifest),
        media_type: media_type::OCI_MANIFEST.to_owned(),
        size: manifest.len() as u64,
        bytes: Some(manifest),
        tags: tags.into_iter().collect(),
        subject: None,
        artifact_type: None,
        platform: None,
        annotations: Vec::new(),
        children: Vec::new(),
    }))
}

/// Applies to a site's index what never happened.
pub(crate) fn tamper(site: &Site, changes: Vec<Change>) {
    let offset = site.journal.applied();
    let event = |change| Arc::new(Event { offset, time: now(), actor: String::new(), intent: None, change });
    let events: Vec<_> = changes.into_iter().map(event).collect();
    site.journal.index().apply(&events).unwrap();
}

pub(crate) fn status(site: &Site) -> SiteStatus {
    site.view.status(Default::default())
}

async fn reached(site: &Site, what: &str, check: impl FnMut(&Session) -> bool) -> Session {
    let mut session = site.session_changes.clone();
    let reached = tokio::time::timeout(PATIENCE, session.wait_for(check)).await;
    *reached.unwrap_or_else(|_| panic!("{what} took too long")).unwrap()
}
