//! Where a tag or a manifest stands in the log, as the index remembers it.

use outport_proto::{Digest, Offset, Reference, RepoName};

use super::{
    Index, IndexError,
    key::{self, Table},
    kv::Kv,
    row, view,
};

/// What a reference names, and the event that made it so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    /// The manifest.
    pub digest: Digest,
    /// The event that put it there.
    pub offset: Offset,
}

impl Index {
    /// What `reference` names in a repository, with its place in the log.
    ///
    /// # Errors
    /// As every read: when a row is damaged or the database fails.
    pub fn placed(&self, repo: &RepoName, reference: &Reference) -> Result<Option<Placed>, IndexError> {
        self.shared.read(|kv| match reference {
            Reference::Tag(tag) => {
                let entry = view::tag(kv, repo, tag)?;
                Ok(entry.map(|entry| Placed { digest: entry.digest, offset: entry.offset }))
            }
            Reference::Digest(digest) => {
                let held = view::get(kv, &key::repo_digest(Table::Manifest, repo, digest))?;
                let held = held.map(|fields| row::decode_held(repo, digest, &fields)).transpose()?;
                Ok(held.map(|held| Placed { digest: *digest, offset: held.offset }))
            }
        })
    }

    /// The newest tombstone over `reference`: its own or its repository's. A tag that went with
    /// its manifest carries the offset of the event that had put it there.
    ///
    /// # Errors
    /// As every read.
    pub fn tombstone(&self, repo: &RepoName, reference: &Reference) -> Result<Option<Offset>, IndexError> {
        let own = match reference {
            Reference::Tag(tag) => key::repo_tag(Table::DeadTag, repo, tag.as_str()),
            Reference::Digest(digest) => key::repo_digest(Table::DeadManifest, repo, digest),
        };
        self.shared.read(|kv| Ok(dead(kv, &own)?.max(dead(kv, &key::of_repo(Table::DeadRepository, repo))?)))
    }
}

fn dead(kv: &dyn Kv, key: &[u8]) -> Result<Option<Offset>, IndexError> {
    view::get(kv, key)?.map(|fields| row::decode_offset(&fields)).transpose()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use outport_proto::{Change, Event, Timestamp};

    use super::{
        super::tests::{by_tag, digest, in_memory, put, repo, tag},
        *,
    };

    fn event(seq: u64, change: Change) -> Arc<Event> {
        let (offset, time) = (Offset::new(1, seq), Timestamp::from_secs(seq));
        Arc::new(Event { offset, time, actor: String::new(), intent: None, change })
    }

    #[test]
    fn a_reference_is_where_its_last_event_put_it() {
        let (index, app, one) = (in_memory(), repo("app"), by_tag("1"));
        let by_digest = Reference::Digest(digest("a"));
        assert_eq!(index.placed(&app, &one).unwrap(), None);
        assert_eq!(index.tombstone(&app, &one).unwrap(), None);

        index.apply(&[event(1, put("app", "a", &["1"])), event(2, put("app", "b", &["1"]))]).unwrap();
        let placed = index.placed(&app, &one).unwrap().unwrap();
        assert_eq!((placed.digest, placed.offset), (digest("b"), Offset::new(1, 2)));
        assert_eq!(index.placed(&app, &by_digest).unwrap().unwrap().offset, Offset::new(1, 1));

        index.apply(&[event(3, Change::TagDeleted { repo: app.clone(), tag: tag("1") })]).unwrap();
        assert_eq!(index.placed(&app, &one).unwrap(), None);
        assert_eq!(index.tombstone(&app, &one).unwrap(), Some(Offset::new(1, 3)));
        index.apply(&[event(4, Change::RepositoryDeleted { repo: app.clone() })]).unwrap();
        assert_eq!(index.tombstone(&app, &by_digest).unwrap(), Some(Offset::new(1, 4)));
    }
}
