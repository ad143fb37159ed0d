use std::{
    fs::OpenOptions,
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
};

use outport_proto::Algorithm;

use super::{super::StoreOptions, *};
use crate::clock::ManualClock;

const LARGE: usize = CHECKED_FIRST_BYTES_MAX as usize + 3 * PIECE_BYTES + 17;

fn open(root: &Path) -> Store {
    Store::open_uncounted(root, StoreOptions::default()).unwrap().0
}

fn content(size: usize) -> Vec<u8> {
    (0..size).map(|at| (at * 31 / 7) as u8).collect()
}

fn put(store: &Store, content: &[u8]) -> Digest {
    let digest = Digest::sha256(content);
    let mut ingest = store.ingest(Algorithm::Sha256).unwrap();
    ingest.write(content).unwrap();
    ingest.commit(&digest).unwrap();
    digest
}

/// A store that was opened after a bit of its one blob was flipped.
fn rotten(root: &Path, content: &[u8], at: usize) -> (Store, Digest) {
    let digest = put(&open(root), content);
    flip(root, &digest, at);
    (open(root), digest)
}

fn flip(root: &Path, digest: &Digest, at: usize) {
    let path = root.join("blobs/sha256").join(&digest.hex()[..2]).join(digest.hex());
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let before = Stamp::of(&file.metadata().unwrap());
    let mut byte = [0];
    file.read_exact_at(&mut byte, at as u64).unwrap();
    // A file that changes twice in one tick of the clock looks the same.
    while Stamp::of(&file.metadata().unwrap()) == before {
        file.write_all_at(&[byte[0] ^ 1], at as u64).unwrap();
    }
}

async fn read(blob: &Blob, range: Range<u64>) -> Result<Vec<u8>, (Vec<u8>, StoreError)> {
    let (mut reader, mut got) = (blob.reader(range), Vec::new());
    loop {
        match reader.chunk().await {
            Ok(Some(piece)) => got.extend_from_slice(&piece),
            Ok(None) => return Ok(got),
            Err(error) => {
                assert!(reader.chunk().await.unwrap().is_none());
                return Err((got, error));
            }
        }
    }
}

#[tokio::test]
async fn a_small_bad_copy_is_never_given() {
    for at in [0, 500, 999] {
        let dir = tempfile::tempdir().unwrap();
        let content = content(1000);
        let (store, digest) = rotten(dir.path(), &content, at);
        assert!(store.get(&digest).unwrap().is_none(), "byte {at}");
        assert_eq!(std::fs::read_dir(dir.path().join("quarantine")).unwrap().count(), 1);
        assert_eq!(store.inner.metrics.rotten.get(), 1);
        put(&store, &content);
        assert_eq!(read(&store.get(&digest).unwrap().unwrap(), 0..1000).await.unwrap(), content);
        assert_eq!(store.inner.metrics.rotten.get(), 1);
    }
}

#[tokio::test]
async fn a_large_bad_copy_is_cut_off_before_its_end() {
    for at in [0, LARGE / 2, LARGE - 1] {
        let dir = tempfile::tempdir().unwrap();
        let content = content(LARGE);
        let (store, digest) = rotten(dir.path(), &content, at);
        let heard = Arc::new(AtomicUsize::new(0));
        let hears = Arc::clone(&heard);
        store.on_rotten(Arc::new(move |_| _ = hears.fetch_add(1, Ordering::SeqCst)));
        assert!(store.get_hot(&digest).is_none());
        let blob = store.get(&digest).unwrap().unwrap();
        let (got, error) = read(&blob, 0..LARGE as u64).await.unwrap_err();
        assert!(matches!(error, StoreError::Rotten(_)), "byte {at}: {error}");
        assert!(got.len() < LARGE);
        assert!(store.get(&digest).unwrap().is_none());
        // Whoever has it open still does not get all of it, and a good copy stays.
        put(&store, &content);
        assert!(read(&blob, 0..LARGE as u64).await.is_err());
        let good = store.get(&digest).unwrap().unwrap();
        assert_eq!(read(&good, 0..LARGE as u64).await.unwrap(), content);
        assert_eq!((store.inner.metrics.rotten.get(), heard.load(Ordering::SeqCst)), (1, 1));
    }
}

#[tokio::test]
async fn no_part_of_a_bad_copy_is_given() {
    for at in [0, LARGE / 2, LARGE - 1] {
        let dir = tempfile::tempdir().unwrap();
        let (store, digest) = rotten(dir.path(), &content(LARGE), at);
        let blob = store.get(&digest).unwrap().unwrap();
        let (first, last) = (read(&blob, 0..10), read(&blob, LARGE as u64 - 10..LARGE as u64));
        let (first, last) = tokio::join!(first, last);
        for (got, error) in [first.unwrap_err(), last.unwrap_err()] {
            assert!(got.is_empty() && matches!(error, StoreError::Rotten(_)), "byte {at}");
        }
        assert!(store.get_sound(&digest).unwrap().is_none());
    }
}

#[tokio::test]
async fn what_was_checked_is_believed_until_it_changes_or_a_day_is_over() {
    let dir = tempfile::tempdir().unwrap();
    let clock = ManualClock::at(Timestamp::from_secs(1_000_000));
    let content = content(LARGE);
    let digest = put(&open(dir.path()), &content);
    let options = StoreOptions { limit_bytes: None, clock: clock.clone(), witness: None };
    let (store, _) = Store::open_uncounted(dir.path(), options).unwrap();
    let is_doubtful = || store.get(&digest).unwrap().unwrap().doubt.is_some();
    assert!(is_doubtful(), "this process has not seen its content");
    let blob = store.get(&digest).unwrap().unwrap();
    assert_eq!(read(&blob, 5..9).await.unwrap(), content[5..9]);
    assert!(!is_doubtful() && store.get_hot(&digest).is_some());
    clock.set(Timestamp::from_secs(1_000_000 + 25 * 3600));
    assert!(is_doubtful());
    let blob = store.get(&digest).unwrap().unwrap();
    assert_eq!(read(&blob, 0..LARGE as u64).await.unwrap(), content);
    assert!(!is_doubtful());
    // Opened again after a while its use is noted, and that does not make it doubtful.
    store.inner.hot.forget(&digest);
    clock.set(Timestamp::from_secs(1_000_000 + 26 * 3600));
    assert!(!is_doubtful());
    flip(dir.path(), &digest, LARGE / 2);
    assert!(store.get_hot(&digest).is_none() && is_doubtful());
    assert!(store.get_sound(&digest).unwrap().is_none());
}
