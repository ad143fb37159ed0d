//! What a site has that never happened: events of an epoch that ended before them, when its primary was restored
//! from an older copy, or another site took its place.

use outport_proto::{Change, Offset};

use crate::{blocking, log::Log};

/// Read at once, in bytes of events.
const READ_BYTES: usize = 1024 * 1024;
/// Lines about one rewind at most.
const LINES_MAX: usize = 1000;

/// Names what is behind `fork` in the log, for people: it goes.
pub(super) async fn tell(log: Log, fork: Offset) {
    let told = blocking::spawn(move || {
        let (mut after, mut lines) = (fork, 0_usize);
        loop {
            let records = log.read(after, READ_BYTES)?;
            let Some(last) = records.last() else { return Ok::<_, crate::log::LogError>(lines) };
            after = last.event.offset;
            for event in records.iter().map(|record| &record.event) {
                let Some(what) = named(&event.change) else { continue };
                lines += 1;
                if lines <= LINES_MAX {
                    let offset = event.offset;
                    tracing::warn!(%offset, actor = event.actor, what, "this was only at a primary that is gone");
                }
            }
        }
    });
    match told.await {
        Ok(Ok(lines)) if lines > LINES_MAX => tracing::warn!(more = lines - LINES_MAX, "and more"),
        Ok(Ok(_)) => {}
        Ok(Err(error)) => tracing::warn!(%error, "it cannot be told what goes"),
        Err(error) => tracing::error!(%error, "telling what goes crashed"),
    }
}

/// What people know of a change; blobs show in the manifests that name them.
fn named(change: &Change) -> Option<String> {
    Some(match change {
        Change::ManifestPut(put) if put.tags.is_empty() => format!("{}@{}", put.repo, put.digest),
        Change::ManifestPut(put) => {
            let names: Vec<_> = put.tags.iter().map(|tag| format!("{}:{tag}", put.repo)).collect();
            names.join(", ")
        }
        Change::TagDeleted { repo, tag } => format!("the deletion of {repo}:{tag}"),
        Change::ManifestDeleted { repo, digest } => format!("the deletion of {repo}@{digest}"),
        Change::RepositoryDeleted { repo } => format!("the deletion of {repo}"),
        Change::BlobCommitted { .. }
        | Change::BlobMounted { .. }
        | Change::BlobDeleted { .. }
        | Change::EpochBegan { .. } => return None,
    })
}
