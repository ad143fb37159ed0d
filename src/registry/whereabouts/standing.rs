//! Where a reference stands in a node's own log and index.

use std::sync::Arc;

use outport_proto::{Change, Digest, Event, Offset, Reference, Timestamp};

use super::ImageRef;
use crate::{
    index::{Index, IndexError},
    log::Log,
};

/// What a node's index says of a reference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is there.
    Shown {
        /// What it names.
        digest: Digest,
        /// The event that put it there.
        offset: Offset,
    },
    /// It was there.
    Deleted(Deletion),
    /// It never was, as far as the index remembers.
    Unknown,
}

/// A deletion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deletion {
    /// Its event.
    pub offset: Offset,
    /// When, by the primary's clock; `None` when the log no longer reaches back.
    pub time: Option<Timestamp>,
    /// Who asked for it; `None` when the log no longer reaches back or nobody had a name.
    pub actor: Option<String>,
}

/// Where `image` stands. Reads index and log, and may block.
///
/// # Errors
/// When the index fails; a log that fails is as one that does not reach back.
pub fn standing(index: &Index, log: &Log, image: &ImageRef) -> Result<Standing, IndexError> {
    let ImageRef { repo, reference } = image;
    if let Some(placed) = index.placed(repo, reference)? {
        return Ok(Standing::Shown { digest: placed.digest, offset: placed.offset });
    }
    let Some(offset) = index.tombstone(repo, reference)? else {
        return Ok(Standing::Unknown);
    };
    let mut event = event_at(log, offset);
    let put = event.as_ref().and_then(|event| match &event.change {
        Change::ManifestPut(put) => Some(put.digest),
        _ => None,
    });
    let mut offset = offset;
    // A tag that went with its manifest: the deletion is the manifest's.
    if let Some(digest) = put
        && let Some(of_manifest) = index.tombstone(repo, &Reference::Digest(digest))?
    {
        offset = of_manifest;
        event = event_at(log, of_manifest);
    }
    let actor = event.as_ref().map(|event| event.actor.clone()).filter(|actor| !actor.is_empty());
    Ok(Standing::Deleted(Deletion { offset, time: event.map(|event| event.time), actor }))
}

fn event_at(log: &Log, offset: Offset) -> Option<Arc<Event>> {
    let before = Offset::new(offset.epoch, offset.seq.checked_sub(1)?);
    let record = log.read(before, 1).ok()?.into_iter().next()?;
    (record.event.offset == offset).then_some(record.event)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::testing::{NOW, Primary, pusher, reference, repo};

    #[tokio::test]
    async fn a_deletion_is_found_with_who_and_when() {
        let primary = Primary::new().await;
        let (app, log) = (repo("team/app"), primary.journal.log());
        let image = |name: &str| ImageRef { repo: app.clone(), reference: reference(name) };
        let stands = |name: &str| standing(primary.journal.index(), log, &image(name)).unwrap();
        let one = primary.image(&app, "1", "one").await;
        let two = primary.image(&app, "2", "two").await;
        assert_eq!(stands("1"), Standing::Shown { digest: one.digest, offset: one.offset });
        assert_eq!(stands("3"), Standing::Unknown);

        let tag = primary.push.delete_manifest(&pusher(), &app, &reference("1")).await.unwrap();
        let by_digest = Reference::Digest(two.digest);
        let manifest = primary.push.delete_manifest(&pusher(), &app, &by_digest).await.unwrap();
        let deleted = |offset| {
            let (time, actor) = (Some(NOW), Some("tester".to_owned()));
            Standing::Deleted(Deletion { offset, time, actor })
        };
        assert_eq!(stands("1"), deleted(tag.offset));
        assert_eq!(stands("2"), deleted(manifest.offset), "the tag went with its manifest");
        assert_eq!(stands(&two.digest.to_string()), deleted(manifest.offset));
        assert!(matches!(stands(&one.digest.to_string()), Standing::Shown { .. }));
    }
}
