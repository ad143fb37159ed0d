use std::{os::unix::fs::FileExt as _, sync::atomic::Ordering};

use super::*;

fn open(root: &Path) -> Store {
    let (store, _) = Store::open_uncounted(root, StoreOptions::default()).unwrap();
    count(&Arc::downgrade(&store.inner)).unwrap();
    store
}

fn put(store: &Store, content: &[u8]) -> Digest {
    let digest = Digest::sha256(content);
    let mut ingest = store.ingest(Algorithm::Sha256).unwrap();
    ingest.write(content).unwrap();
    assert_eq!(ingest.commit(&digest).unwrap(), content.len() as u64);
    digest
}

fn read(store: &Store, digest: &Digest) -> Option<Vec<u8>> {
    let blob = store.get(digest).unwrap()?;
    let mut content = vec![0; blob.size as usize];
    blob.file.read_exact_at(&mut content, 0).unwrap();
    Some(content)
}

fn files_in(dir: &Path) -> usize {
    fs::read_dir(dir).unwrap().count()
}

fn stats(bytes: u64, blobs: u64) -> StoreStats {
    StoreStats { bytes, blobs, counting: false }
}

#[test]
fn a_blob_is_here_once_committed_and_after_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let digest = Digest::sha256(b"layer");
    {
        let store = open(dir.path());
        assert!(store.get(&digest).unwrap().is_none());
        let mut ingest = store.ingest(Algorithm::Sha256).unwrap();
        ingest.write(b"lay").unwrap();
        ingest.write(b"er").unwrap();
        assert_eq!(ingest.len(), 5);
        assert!(store.get(&digest).unwrap().is_none(), "visible before it was verified");
        ingest.commit(&digest).unwrap();
        assert_eq!(read(&store, &digest).unwrap(), b"layer");
    }
    let store = open(dir.path());
    assert!(store.get_hot(&digest).is_none());
    assert_eq!(store.size(&digest).unwrap(), Some(5));
    assert_eq!(read(&store, &digest).unwrap(), b"layer");
    assert!(store.get_hot(&digest).is_some());
    assert_eq!(store.stats(), stats(5, 1));
    let hex = digest.hex();
    assert!(dir.path().join("blobs/sha256").join(&hex[..2]).join(&hex).is_file());
}

#[test]
fn sha512_has_its_own_place() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let digest = Digest::of(Algorithm::Sha512, b"layer");
    let mut ingest = store.ingest(Algorithm::Sha512).unwrap();
    ingest.write(b"layer").unwrap();
    ingest.commit(&digest).unwrap();
    assert_eq!(read(&store, &digest).unwrap(), b"layer");
    assert!(store.get(&Digest::sha256(b"layer")).unwrap().is_none());
}

#[test]
fn a_wrong_digest_publishes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let expected = Digest::sha256(b"something else");
    let mut ingest = store.ingest(Algorithm::Sha256).unwrap();
    ingest.write(b"layer").unwrap();
    let error = ingest.commit(&expected).unwrap_err();
    assert!(
        matches!(error, StoreError::DigestMismatch { actual, .. } if *actual == Digest::sha256(b"layer"))
    );
    assert!(store.get(&expected).unwrap().is_none());
    assert!(store.get(&Digest::sha256(b"layer")).unwrap().is_none());
    assert_eq!(files_in(&dir.path().join("tmp")), 0);
    assert_eq!(store.stats(), stats(0, 0));
}

#[test]
fn leftovers_go_when_the_store_opens() {
    let dir = tempfile::tempdir().unwrap();
    let empty = {
        let store = open(dir.path());
        put(&store, b"whole");
        put(&store, b"")
    };
    let hollow = Digest::sha256(b"lost its bytes");
    let hollow_path = dir.path().join("blobs/sha256").join(&hollow.hex()[..2]).join(hollow.hex());
    fs::create_dir_all(hollow_path.parent().unwrap()).unwrap();
    fs::write(&hollow_path, b"").unwrap();
    fs::write(dir.path().join("tmp/0"), b"half").unwrap();

    let (store, leftovers) = Store::open_uncounted(dir.path(), StoreOptions::default()).unwrap();
    assert_eq!(leftovers, Leftovers { temp_files: 1 });
    assert!(store.stats().counting);
    assert!(store.get(&hollow).unwrap().is_none(), "served before it was removed");
    assert_eq!(store.size(&hollow).unwrap(), None);
    count(&Arc::downgrade(&store.inner)).unwrap();
    assert!(!hollow_path.exists());
    assert_eq!(store.stats(), stats(5, 2));
    assert_eq!(read(&store, &empty).unwrap(), b"");
    assert_eq!(files_in(&dir.path().join("tmp")), 0);
}

#[test]
fn many_may_take_in_the_same_content_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| put(&store, b"the same"));
        }
    });
    assert_eq!(read(&store, &Digest::sha256(b"the same")).unwrap(), b"the same");
    assert_eq!(store.stats(), stats(8, 1));
    assert_eq!(files_in(&dir.path().join("tmp")), 0);
}

#[test]
fn totals_are_right_whatever_happens_during_the_count() {
    let dir = tempfile::tempdir().unwrap();
    let kept = {
        let store = open(dir.path());
        (0..40_u32).map(|n| put(&store, &n.to_be_bytes())).collect::<Vec<_>>()
    };
    let (store, _) = Store::open_uncounted(dir.path(), StoreOptions::default()).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| count(&Arc::downgrade(&store.inner)).unwrap());
        scope.spawn(|| kept[..20].iter().for_each(|digest| assert!(store.remove(digest).unwrap())));
        scope.spawn(|| (40..50_u32).for_each(|n| _ = put(&store, &n.to_be_bytes())));
    });
    assert_eq!(store.stats(), stats(30 * 4, 30));
}

#[test]
fn a_bad_copy_set_aside_is_absent_and_can_be_taken_in_again() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let digest = put(&store, b"layer");
    assert!(store.get(&digest).unwrap().is_some());
    assert!(store.quarantine(&digest).unwrap());
    assert!(!store.quarantine(&digest).unwrap());
    assert!(store.get(&digest).unwrap().is_none());
    assert_eq!(files_in(&dir.path().join("quarantine")), 1);
    put(&store, b"layer");
    assert_eq!(read(&store, &digest).unwrap(), b"layer");
    assert_eq!(store.stats(), stats(5, 1));
}

#[test]
fn a_removed_blob_is_read_to_its_end_by_who_has_it_open() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let digest = put(&store, b"layer");
    let blob = store.get(&digest).unwrap().unwrap();
    assert!(store.remove(&digest).unwrap());
    assert!(!store.remove(&digest).unwrap());
    assert!(store.get(&digest).unwrap().is_none());
    let mut content = [0; 5];
    blob.file.read_exact_at(&mut content, 0).unwrap();
    assert_eq!(content, *b"layer");
    assert_eq!(store.stats(), stats(0, 0));
}

#[test]
fn nothing_is_published_when_a_sync_fails() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let digest = Digest::sha256(b"layer");
    for fault in [&store.faults().fail_sync, &store.faults().fail_sync_dir] {
        fault.store(true, Ordering::SeqCst);
        let mut ingest = store.ingest(Algorithm::Sha256).unwrap();
        ingest.write(b"layer").unwrap();
        assert!(matches!(ingest.commit(&digest), Err(StoreError::Io { .. })));
        assert!(store.get(&digest).unwrap().is_none());
        assert_eq!(files_in(&dir.path().join("tmp")), 0);
        fault.store(false, Ordering::SeqCst);
    }
    put(&store, b"layer");
    assert_eq!(store.stats(), stats(5, 1));
}

#[test]
fn a_full_disk_says_so_and_recovers_without_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    store.faults().room.store(3, Ordering::SeqCst);
    let mut ingest = store.ingest(Algorithm::Sha256).unwrap();
    ingest.write(b"abc").unwrap();
    assert!(matches!(ingest.write(b"d"), Err(StoreError::Full { .. })));
    assert_eq!(ingest.len(), 3);
    drop(ingest);
    assert_eq!(files_in(&dir.path().join("tmp")), 0);
    store.faults().room.store(u64::MAX, Ordering::SeqCst);
    put(&store, b"abcd");
}

#[test]
fn one_process_has_a_store() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    assert!(matches!(lock(&store.inner.layout, Duration::ZERO), Err(StoreError::InUse(_))));
    drop(store);
    Store::open(dir.path()).unwrap();
}
