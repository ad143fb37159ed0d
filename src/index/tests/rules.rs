//! What events do, in order and again.

use outport_proto::Offset;

use super::{
    super::{
        IndexError,
        kv::{Batch, Kv},
        tx::Tx,
    },
    *,
};

#[test]
fn a_push_is_visible_by_tag_and_by_digest_and_only_in_its_repository() {
    let index = in_memory();
    apply(&index, 1, put("team/app", "a", &["1", "latest"]));
    assert_eq!(pull(&index, "team/app", "1").as_deref(), Some("manifest a"));
    assert_eq!(pull(&index, "team/app", "latest").as_deref(), Some("manifest a"));
    assert_eq!(pull(&index, "team/other", "1"), None);
    let found = index.manifest(&repo("team/app"), &Reference::Digest(digest("a"))).unwrap().unwrap();
    assert_eq!(&*found.media_type, "application/vnd.oci.image.manifest.v1+json");
    assert_eq!(found.size, 10);
    assert_eq!(index.manifest(&repo("team"), &Reference::Digest(digest("a"))).unwrap(), None);
    let entry = index.tag(&repo("team/app"), &tag("1")).unwrap().unwrap();
    assert_eq!((entry.digest, entry.offset), (digest("a"), Offset::new(1, 1)));
    assert_eq!(index.applied(), Offset::new(1, 1));
    assert_eq!(*index.watch().borrow(), Offset::new(1, 1));
}

#[test]
fn what_is_older_than_what_stands_changes_nothing() {
    let pushed = || put("r", "a", &["t"]);
    let other = || put("r", "b", &["t"]);
    let late = event(2, pushed());
    // (what happened later, what the tag shows then and after the late push)
    let table = [
        (other(), Some("manifest b")),
        (delete_tag("r", "t"), None),
        (delete_manifest("r", "a"), None),
        (delete_repo("r"), None),
    ];
    for (later, shown) in table {
        let index = in_memory();
        index.apply(&[event(5, later.clone())]).unwrap();
        index.apply(std::slice::from_ref(&late)).unwrap();
        assert_eq!(pull(&index, "r", "t").as_deref(), shown, "late after {later:?}");
        assert_eq!(index.applied(), Offset::new(1, 5), "applied never goes back");

        let index = in_memory();
        index.apply(&[late.clone(), event(5, later.clone())]).unwrap();
        let once = rows(&index);
        assert_eq!(pull(&index, "r", "t").as_deref(), shown, "in order, {later:?}");
        index.apply(&[late.clone(), event(5, later.clone())]).unwrap();
        index.apply(std::slice::from_ref(&late)).unwrap();
        assert_eq!(rows(&index), once, "again, {later:?}");
        apply(&index, 9, pushed());
        assert_eq!(pull(&index, "r", "t").as_deref(), Some("manifest a"), "a newer push, {later:?}");
    }
}

#[test]
fn links_come_and_go_by_offset() {
    let index = in_memory();
    let of = |name: &str| index.link(&repo("r"), &digest(name)).unwrap();
    apply(&index, 1, link("r", "x"));
    assert_eq!(of("x"), Some(10));
    assert_eq!(index.any_link(&digest("x")).unwrap(), Some((repo("r"), 10)));
    assert_eq!(index.naming(&digest("x"), 9).unwrap(), [repo("r")]);
    apply(&index, 2, put("r", "m", &[]));
    assert_eq!(of("m"), None, "a manifest is no blob link");
    apply(&index, 3, delete_link("r", "x"));
    apply(&index, 1, link("r", "x"));
    assert_eq!((of("x"), index.any_link(&digest("x")).unwrap()), (None, None));
    assert!(!index.is_named(&digest("x")).unwrap());
    let mounted =
        Change::BlobMounted { repo: repo("r"), digest: digest("x"), size: 10, from: Some(repo("s")) };
    apply(&index, 4, mounted);
    assert_eq!(of("x"), Some(10));
    apply(&index, 5, delete_repo("r"));
    apply(&index, 4, link("r", "x"));
    assert_eq!((of("x"), index.any_link(&digest("x")).unwrap()), (None, None));
    apply(&index, 6, link("a/b", "x"));
    apply(&index, 7, link("c", "x"));
    assert_eq!(index.any_link(&digest("x")).unwrap(), Some((repo("a/b"), 10)));
}

#[test]
fn deleting_a_manifest_takes_the_tags_that_name_it_and_no_others() {
    let index = in_memory();
    let changes = [
        put("r", "a", &["1", "2", "moved"]),
        put("s", "a", &["1"]),
        put("r", "b", &["moved", "other"]),
        delete_manifest("r", "a"),
    ];
    index.apply(&events(changes.clone())).unwrap();
    assert_eq!(index.tags(&repo("r"), None, 10).unwrap(), [tag("moved"), tag("other")]);
    assert_eq!(pull(&index, "r", "moved").as_deref(), Some("manifest b"));
    assert_eq!(pull(&index, "s", "1").as_deref(), Some("manifest a"), "bytes are shared, not lost");
    assert!(!rows(&index).is_empty());
    let before = rows(&index);
    index.apply(&events(changes)).unwrap();
    assert_eq!(rows(&index), before);
}

#[test]
fn the_last_deletion_removes_the_bytes() {
    let index = in_memory();
    index.apply(&events([put("r", "a", &["1"]), put("s", "a", &[]), delete_manifest("r", "a")])).unwrap();
    let bodies = |index: &Index| rows(index).iter().filter(|(key, _)| key[0] == b'u').count();
    assert_eq!(bodies(&index), 1);
    apply(&index, 4, delete_repo("s"));
    assert_eq!(bodies(&index), 0);
}

#[test]
fn referrers_are_listed_while_they_are_held() {
    let index = in_memory();
    apply(&index, 1, put_referrer("r", "sbom", "image"));
    apply(&index, 2, put_referrer("r", "signature", "image"));
    apply(&index, 3, put_referrer("s", "elsewhere", "image"));
    let listed = index.referrers(&repo("r"), &digest("image")).unwrap();
    let mut expected = [digest("sbom"), digest("signature")];
    expected.sort();
    assert_eq!(listed.iter().map(|manifest| manifest.digest).collect::<Vec<_>>(), expected);
    assert_eq!(listed[0].artifact_type.as_deref(), Some("application/spdx+json"));
    assert_eq!(listed[0].annotations, [("kind".to_owned(), "sbom".to_owned())]);
    assert_eq!(listed[0].bytes, None);
    apply(&index, 4, delete_manifest("r", "sbom"));
    let listed = index.referrers(&repo("r"), &digest("image")).unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].digest, digest("signature"));
}

#[test]
fn a_manifest_of_any_size_comes_back_whole_and_a_wrong_one_is_not_kept() {
    let index = in_memory();
    for (seq, len) in (1..).zip([0, 1, 4095, 4096, 4097, 8192, 100_000, 256 * 1024]) {
        let bytes = Bytes::from((0..len).map(|at| (at % 251) as u8).collect::<Vec<_>>());
        let Change::ManifestPut(mut manifest) = put("r", "any", &["t"]) else { unreachable!() };
        manifest.digest = Digest::sha256(&bytes);
        manifest.size = len;
        manifest.bytes = Some(bytes.clone());
        apply(&index, seq, Change::ManifestPut(manifest.clone()));
        let found = index.manifest(&repo("r"), &by_tag("t")).unwrap().unwrap();
        assert_eq!(found.bytes, Some(bytes), "{len}");
        let record = index.manifest_record(&repo("r"), &manifest.digest).unwrap().unwrap();
        manifest.tags.clear();
        assert_eq!(record, *manifest);
    }
    let Change::ManifestPut(mut wrong) = put("r", "wrong", &["wrong"]) else { unreachable!() };
    wrong.bytes = Some(Bytes::from_static(b"manifest WRONG"));
    apply(&index, 100, Change::ManifestPut(wrong));
    let found = index.manifest(&repo("r"), &by_tag("wrong")).unwrap().unwrap();
    assert_eq!(found.bytes, None, "to be fetched like a blob");
}

#[test]
fn the_state_hash_depends_on_what_is_there_alone() {
    let (one, two) = (in_memory(), in_memory());
    assert_eq!(one.state_hash(), ([0; 32], Offset::ZERO));
    one.apply(&events([put("r", "a", &["1"]), link("r", "x"), put("r", "b", &["2"])])).unwrap();
    two.apply(&events([put("r", "b", &["1"]), link("r", "x"), put("r", "b", &["2"]), link("s", "y")]))
        .unwrap();
    assert_ne!(one.state_hash().0, two.state_hash().0);
    apply(&two, 5, put("r", "a", &["1"]));
    apply(&two, 6, delete_repo("s"));
    assert_eq!(one.state_hash().0, two.state_hash().0);
    assert_eq!(two.state_hash().1, Offset::new(1, 6));
}

#[test]
fn a_large_repository_is_deleted_in_steps_that_can_be_taken_again() {
    let names: Vec<String> = (0..3000).map(|number| number.to_string()).collect();
    let pushes = events(names.iter().map(|name| put("r", name, &[name])));
    let deletion = event(4000, delete_repo("r"));
    let whole = in_memory();
    whole.apply(&pushes).unwrap();
    whole.apply(std::slice::from_ref(&deletion)).unwrap();
    assert_eq!(whole.state_hash(), ([0; 32], Offset::new(1, 4000)));
    assert_eq!(rows(&whole).len(), 2, "the state and one tombstone");

    let stopped = in_memory();
    stopped.apply(&pushes).unwrap();
    {
        let mut writer = stopped.shared.writer.lock().unwrap();
        let failing = FailingAfter { kv: &*stopped.shared.base, writes_left: 1.into() };
        let super::super::Writer { stored, tally, .. } = &mut *writer;
        let mut tx = Tx::new(&failing, &stopped.shared.hot, stored, tally);
        assert!(tx.apply(&deletion).is_err(), "the second step fails");
        assert_eq!(writer.stored.applied, Offset::new(1, 3000), "applied does not lead");
    }
    assert!(rows(&stopped).len() > 2);
    stopped.apply(&pushes[2000..]).unwrap();
    stopped.apply(&[deletion]).unwrap();
    assert_eq!(rows(&stopped), rows(&whole));
}

struct FailingAfter<'a> {
    kv: &'a dyn Kv,
    writes_left: std::sync::atomic::AtomicI32,
}

impl Kv for FailingAfter<'_> {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, IndexError> {
        self.kv.get(key)
    }

    fn page(&self, prefix: &[u8], from: &[u8], rows_max: usize) -> Result<Vec<Row>, IndexError> {
        self.kv.page(prefix, from, rows_max)
    }

    fn write(&self, batch: Batch) -> Result<(), IndexError> {
        if self.writes_left.fetch_sub(1, std::sync::atomic::Ordering::Relaxed) > 0 {
            return self.kv.write(batch);
        }
        Err(IndexError::Database { action: "write a batch", reason: "no space left on device".into() })
    }

    fn flush(&self) -> Result<(), IndexError> {
        self.kv.flush()
    }
}
