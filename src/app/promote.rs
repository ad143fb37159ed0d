//! What a site has becomes a primary's: every site holds the log.

use std::{
    collections::{BTreeMap, BTreeSet},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use outport_proto::{Digest, Offset, RepoName, snapshot::Entry};

use super::{
    StartError,
    data_dir::DataDir,
    durable_write,
    membership::{MEMBERS_FILE, members},
    open_store,
};
use crate::{
    blocking,
    clock::{SharedClock, SystemClock},
    config,
    primary::{members::MemberError, source::Relays},
    registry::{
        Journal,
        journal::{JournalOptions, Origin},
    },
    secondary::memory::Memory,
    shutdown::Shutdown,
    store::{Store, StoreOptions},
};

/// While this file is there, the next start of a primary begins a new epoch.
const FILE: &str = "promoted";
/// Entries of the index that are looked at together, in bytes.
const PART_BYTES: usize = 1024 * 1024;
/// An index of indexes of indexes is as deep as is looked.
const DEPTH_MAX: usize = 4;

/// What is promoted, into what.
#[derive(Clone, Debug)]
pub struct PromoteOptions {
    /// The site's configuration.
    pub site: config::Secondary,
    /// That of the primary it becomes, in the same data directory.
    pub primary: config::Primary,
    /// What could be saved of the data directory of the primary before: with its keys tokens stay good, with its
    /// list of sites those that joined are let in.
    pub saved: Option<PathBuf>,
    /// Go on although blobs are missing.
    pub accept_missing: bool,
}

/// What became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Promoted {
    /// The last event that the site has.
    pub head: Offset,
    /// What it lacks.
    pub missing: Vec<MissingImage>,
    /// Whether it is a primary's now.
    pub is_done: bool,
}

/// An image some of which is not here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MissingImage {
    /// `repository:tag`, or `repository@digest` for what no tag names.
    pub name: String,
    /// Blobs that are not here.
    pub blobs: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Makes the data directory of a site that is stopped a primary's: its log goes on with a new epoch.
///
/// # Errors
/// When it is in use, was never whole, or has never heard of a primary.
pub async fn promote(options: &PromoteOptions) -> Result<Promoted, StartError> {
    let failed = |reason: String| StartError::new(format!("promote site {}", options.site.site), reason);
    let dir = &options.site.data_dir;
    if *dir != options.primary.data_dir {
        let other = options.primary.data_dir.display();
        return Err(failed(format!("its data_dir is {}, and the primary's {other}", dir.display())));
    }
    let data_dir = DataDir::open(dir)?;
    let memory = Memory::open(dir).map_err(|error| failed(error.to_string()))?;
    let cluster = memory.cluster().ok_or_else(|| failed("it has never heard of a primary".to_owned()))?;
    let shutdown = Shutdown::new();
    let clock: SharedClock = Arc::new(SystemClock);
    let store_options = StoreOptions { limit_bytes: None, clock: Arc::clone(&clock), witness: None };
    let store = open_store(&data_dir, store_options).await?;
    let journal_options = JournalOptions { origin: Origin::Followed, ..options.site.log.journal() };
    let journal = Journal::open(dir, journal_options, clock, &shutdown)
        .await
        .map_err(|error| StartError::new("open the journal", error))?;
    let head = journal.log().head();
    let looked = if head == Offset::ZERO || !journal.is_whole() {
        Err(failed("it never had all of its primary's state".to_owned()))
    } else {
        let of = journal.clone();
        let looked = blocking::spawn(move || missing(&of, &store)).await;
        looked.map_err(|error| failed(error.to_string())).and_then(|looked| looked.map_err(failed))
    };
    shutdown.finish(super::GRACE).await;
    let missing = looked?;
    if !missing.is_empty() && !options.accept_missing {
        return Ok(Promoted { head, missing, is_done: false });
    }
    if let Some(saved) = &options.saved {
        take(saved, &data_dir)?;
    }
    leave_the_sites(options, &data_dir)?;
    durable_write(&data_dir.join("cluster"), cluster)?;
    durable_write(&data_dir.join(FILE), "the next start of a primary begins a new epoch\n")?;
    Ok(Promoted { head, missing, is_done: true })
}

/// Whether a primary's data directory was a site's, and has not been started since.
pub(super) fn is_promoted(data_dir: &DataDir) -> bool {
    data_dir.join(FILE).exists()
}

/// The new epoch has begun.
pub(super) fn begun(data_dir: &DataDir) -> Result<(), StartError> {
    std::fs::remove_file(data_dir.join(FILE)).map_err(|error| StartError::new("begin a new epoch", error))
}

/// It is no site any more: nobody must wait for it, nor be told that it is cut off.
fn leave_the_sites(options: &PromoteOptions, data_dir: &DataDir) -> Result<(), StartError> {
    let clock: SharedClock = Arc::new(SystemClock);
    let relays = Relays::new(options.primary.replication.relays.clone());
    match members(&options.primary.replication, data_dir, &relays, &clock)?.remove(&options.site.site) {
        Ok(()) | Err(MemberError::Unknown(_)) => Ok(()),
        Err(error) => Err(StartError::new("note that the site is the primary now", error)),
    }
}

/// Copies the keys, and the list of the sites that joined, if there is one.
fn take(saved: &Path, data_dir: &DataDir) -> Result<(), StartError> {
    let failed = |error: std::io::Error| StartError::new(format!("copy from {}", saved.display()), error);
    let keys = data_dir.join("keys");
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&keys).map_err(failed)?;
    for entry in std::fs::read_dir(saved.join("keys")).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if entry.file_type().map_err(failed)?.is_file() {
            let text = std::fs::read_to_string(entry.path()).map_err(failed)?;
            durable_write(&keys.join(entry.file_name()), &text)?;
        }
    }
    match std::fs::read_to_string(saved.join(MEMBERS_FILE)) {
        Ok(text) => durable_write(&data_dir.join(MEMBERS_FILE), &text),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed(error)),
    }
}

/// What the index names and the store does not have, by the images that it is of.
fn missing(journal: &Journal, store: &Store) -> Result<Vec<MissingImage>, String> {
    let mut lacking = BTreeMap::<(RepoName, Digest), u64>::new();
    let (mut manifests, mut tags) = (Vec::new(), Vec::new());
    let index = journal.index();
    let is_here = |digest: &Digest| store.get(digest).is_ok_and(|blob| blob.is_some());
    let walked = index.dump(PART_BYTES, &mut |entries| {
        for entry in entries {
            match entry {
                Entry::Link { repo, digest, size, .. } if !is_here(&digest) => {
                    lacking.insert((repo, digest), size);
                }
                Entry::Manifest { manifest, .. } => {
                    if manifest.bytes.is_none() && !is_here(&manifest.digest) {
                        lacking.insert((manifest.repo.clone(), manifest.digest), manifest.size);
                    }
                    manifests.push((manifest.repo, manifest.digest));
                }
                Entry::Tag { repo, tag, digest, .. } => tags.push((format!("{repo}:{tag}"), repo, digest)),
                Entry::Link { .. } | Entry::Tombstone { .. } => {}
            }
        }
        Ok(())
    });
    walked.map_err(|error| error.to_string())?;
    if lacking.is_empty() {
        return Ok(Vec::new());
    }
    let untagged = manifests.into_iter().map(|(repo, digest)| (format!("{repo}@{digest}"), repo, digest));
    let (mut seen, mut images) = (BTreeSet::new(), Vec::new());
    for (name, repo, digest) in tags.into_iter().chain(untagged) {
        let mut of_image = BTreeSet::from([digest]);
        let mut level = vec![digest];
        for _ in 0..DEPTH_MAX {
            let mut below = Vec::new();
            for manifest in level {
                let record = index.manifest_record(&repo, &manifest).map_err(|error| error.to_string())?;
                below.extend(
                    record.iter().flat_map(|record| record.children.iter().map(|child| child.digest)),
                );
            }
            of_image.extend(below.iter().copied());
            level = below;
        }
        let lacks = of_image.into_iter().filter_map(|digest| {
            let key = (repo.clone(), digest);
            let size = lacking.get(&key)?;
            // Once for all tags of an image, and what no tag names only then.
            seen.insert((name.contains('@'), key)).then_some(*size)
        });
        let (blobs, bytes) = lacks.fold((0, 0), |(blobs, bytes), size| (blobs + 1, bytes + size));
        if blobs > 0 {
            images.push(MissingImage { name, blobs, bytes });
        }
    }
    let tagged: BTreeSet<_> =
        seen.iter().filter(|(untagged, _)| !untagged).map(|(_, key)| key.clone()).collect();
    let only_untagged = seen.iter().any(|(untagged, key)| *untagged && !tagged.contains(key));
    if !only_untagged {
        images.retain(|image| !image.name.contains('@'));
    }
    Ok(images)
}
