//! What a repository holds: all of its manifests, the tags of one, what a reference names.

use outport_proto::{Digest, ManifestPut, Reference, RepoName, Tag};

use super::{
    Index, IndexError,
    key::{self, Parts, Table},
    kv::Rows,
    row,
};

impl Index {
    /// At most `limit` manifests of a repository after `last`, by digest; bytes and tags left out.
    ///
    /// # Errors
    /// As every read: when a row is damaged or the database fails.
    pub fn manifests(
        &self,
        repo: &RepoName,
        last: Option<&Digest>,
        limit: usize,
    ) -> Result<Vec<ManifestPut>, IndexError> {
        self.page(Table::Manifest, repo, last, limit, |digest, fields| {
            Ok(row::decode_held(repo, &digest, fields)?.put)
        })
    }

    /// At most `limit` links of a repository after `last`, by digest, with sizes in bytes.
    ///
    /// # Errors
    /// As every read.
    pub fn links(
        &self,
        repo: &RepoName,
        last: Option<&Digest>,
        limit: usize,
    ) -> Result<Vec<(Digest, u64)>, IndexError> {
        self.page(Table::Link, repo, last, limit, |digest, fields| {
            Ok((digest, row::decode_link(fields)?.size))
        })
    }

    /// At most `limit` tags that name a manifest of a repository, in lexical order.
    ///
    /// # Errors
    /// As every read.
    pub fn tags_naming(
        &self,
        repo: &RepoName,
        digest: &Digest,
        limit: usize,
    ) -> Result<Vec<Tag>, IndexError> {
        self.shared.read(|kv| {
            let rows = Rows::all(kv, key::repo_digest(Table::Naming, repo, digest)).take(limit);
            rows.map(|row| {
                let (key, value) = row?;
                row::unseal(&key, &value)?;
                let mut parts = Parts::of(&key);
                parts.repo()?;
                parts.digest()?;
                parts.last()
            })
            .collect()
        })
    }

    /// [`Index::manifest_record`] of what a reference names.
    ///
    /// # Errors
    /// As every read.
    pub fn named_record(
        &self,
        repo: &RepoName,
        reference: &Reference,
    ) -> Result<Option<ManifestPut>, IndexError> {
        let named = || match reference {
            Reference::Digest(digest) => Ok(Some(*digest)),
            Reference::Tag(tag) => self.tag(repo, tag).map(|entry| entry.map(|entry| entry.digest)),
        };
        let mut digest = named()?;
        while let Some(looked_up) = digest {
            if let Some(record) = self.manifest_record(repo, &looked_up)? {
                return Ok(Some(record));
            }
            // The tag may have moved on, and what it named been deleted.
            digest = named()?.filter(|now| *now != looked_up);
        }
        Ok(None)
    }

    /// At most `limit` rows of a repository in a table that goes by digest, after `last`.
    fn page<T>(
        &self,
        table: Table,
        repo: &RepoName,
        last: Option<&Digest>,
        limit: usize,
        decode: impl Fn(Digest, &[u8]) -> Result<T, IndexError>,
    ) -> Result<Vec<T>, IndexError> {
        let prefix = key::of_repo(table, repo);
        let mut from = last.map_or_else(|| prefix.clone(), |last| key::repo_digest(table, repo, last));
        if last.is_some() {
            from.push(0);
        }
        self.shared.read(|kv| {
            let rows = Rows::starting(kv, prefix, from).take(limit);
            rows.map(|row| {
                let (key, value) = row?;
                let fields = row::unseal(&key, &value)?;
                let mut parts = Parts::of(&key);
                parts.repo()?;
                decode(parts.digest()?, &fields)
            })
            .collect()
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use outport_proto::{Change, Event, Offset, Timestamp};

    use super::super::tests::{digest, in_memory, put, repo, tag};

    fn event(seq: u64, change: Change) -> Arc<Event> {
        let (offset, time) = (Offset::new(1, seq), Timestamp::from_secs(seq));
        Arc::new(Event { offset, time, actor: String::new(), intent: None, change })
    }

    #[test]
    fn manifests_come_in_pages_and_know_their_tags() {
        let (index, app) = (in_memory(), repo("app"));
        let names = ["a", "b", "c", "d", "e"];
        let events: Vec<_> =
            (1..).zip(names).map(|(seq, name)| event(seq, put("app", name, &["x", name]))).collect();
        index.apply(&events).unwrap();
        index.apply(&[event(6, put("app-b", "z", &[]))]).unwrap();
        let mut expected = names.map(digest);
        expected.sort();
        let (mut all, mut last) = (Vec::new(), None);
        loop {
            let page = index.manifests(&app, last.as_ref(), 2).unwrap();
            let Some(put) = page.last() else { break };
            last = Some(put.digest);
            all.extend(page.iter().map(|put| put.digest));
        }
        assert_eq!(all, expected);
        let naming = |name: &str, limit| index.tags_naming(&app, &digest(name), limit).unwrap();
        assert_eq!(naming("a", 9), [tag("a")], "x has moved on");
        assert_eq!(naming("e", 9), [tag("e"), tag("x")]);
        assert_eq!(naming("e", 1), [tag("e")]);
        assert_eq!(naming("z", 9), []);

        let blobs = ["1", "2", "3"].map(digest);
        let link = |(seq, digest)| {
            let repo = app.clone();
            event(seq, Change::BlobCommitted { repo, digest, size: seq })
        };
        index.apply(&(7..).zip(blobs).map(link).collect::<Vec<_>>()).unwrap();
        let mut sorted: Vec<_> = blobs.into_iter().zip(7..).collect();
        sorted.sort();
        assert_eq!(index.links(&app, None, 9).unwrap(), sorted);
        assert_eq!(index.links(&app, Some(&sorted[0].0), 1).unwrap(), sorted[1..2]);
        assert_eq!(index.links(&repo("app-b"), None, 9).unwrap(), []);
    }
}
