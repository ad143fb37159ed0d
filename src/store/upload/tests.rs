use std::{
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Command, Stdio},
    sync::atomic::Ordering,
};

use super::*;
use crate::store::Store;

const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

fn open(root: &Path) -> (Store, Uploads) {
    let (store, _) = Store::open(root).unwrap();
    let uploads = store.uploads();
    (store, uploads)
}

fn repo(name: &str) -> RepoName {
    name.parse().unwrap()
}

fn files_in(dir: &Path) -> usize {
    fs::read_dir(dir.join("uploads")).unwrap().count()
}

#[test]
fn an_upload_in_pieces_becomes_a_blob() {
    let dir = tempfile::tempdir().unwrap();
    let (store, uploads) = open(dir.path());
    let (app, digest) = (repo("team/app"), Digest::sha256(b"one two"));
    let id = uploads.create(&app, NOW).unwrap();
    assert_eq!(id.to_string().parse(), Ok(id));
    uploads.open(&app, id).unwrap().append(b"one ").unwrap();
    assert_eq!(uploads.len(&app, id).unwrap(), 4);
    let mut upload = uploads.open(&app, id).unwrap();
    assert!(matches!(uploads.open(&app, id), Err(StoreError::UploadBusy)));
    assert!(matches!(uploads.cancel(&app, id), Err(StoreError::UploadBusy)));
    upload.append(b"two").unwrap();
    assert!(upload.hasher.is_some(), "the prefix would be hashed again");
    assert_eq!(upload.finish(&digest).unwrap(), 7);
    assert_eq!(store.size(&digest).unwrap(), Some(7));
    assert!(matches!(uploads.open(&app, id), Err(StoreError::UploadUnknown)));
    assert_eq!(files_in(dir.path()), 0);
    assert!(store.inner.uploads.lock().is_empty());
}

#[test]
fn an_upload_goes_on_after_a_restart_under_either_algorithm() {
    for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
        let dir = tempfile::tempdir().unwrap();
        let (app, digest) = (repo("team/app"), Digest::of(algorithm, b"one two"));
        let id = {
            let (_, uploads) = open(dir.path());
            let id = uploads.create(&app, NOW).unwrap();
            uploads.open(&app, id).unwrap().append(b"one ").unwrap();
            id
        };
        let (store, uploads) = open(dir.path());
        let mut upload = uploads.open(&app, id).unwrap();
        assert_eq!(upload.len(), 4);
        upload.append(b"two").unwrap();
        upload.finish(&digest).unwrap();
        assert_eq!(store.size(&digest).unwrap(), Some(7));
    }
}

#[test]
fn another_repository_does_not_see_the_upload() {
    let dir = tempfile::tempdir().unwrap();
    let (_, uploads) = open(dir.path());
    let id = uploads.create(&repo("team/app"), NOW).unwrap();
    let other = repo("team/ap");
    assert!(matches!(uploads.open(&other, id), Err(StoreError::UploadUnknown)));
    assert!(matches!(uploads.len(&other, id), Err(StoreError::UploadUnknown)));
    assert!(matches!(uploads.cancel(&other, id), Err(StoreError::UploadUnknown)));
    uploads.cancel(&repo("team/app"), id).unwrap();
    assert_eq!(files_in(dir.path()), 0);
}

#[test]
fn a_wrong_digest_publishes_nothing_and_ends_the_upload() {
    let dir = tempfile::tempdir().unwrap();
    let (store, uploads) = open(dir.path());
    let app = repo("team/app");
    let id = uploads.create(&app, NOW).unwrap();
    let mut upload = uploads.open(&app, id).unwrap();
    upload.append(b"layer").unwrap();
    let error = upload.finish(&Digest::sha256(b"another")).unwrap_err();
    assert!(matches!(error, StoreError::DigestMismatch { .. }));
    assert!(store.get(&Digest::sha256(b"another")).unwrap().is_none());
    assert!(store.get(&Digest::sha256(b"layer")).unwrap().is_none());
    assert!(matches!(uploads.open(&app, id), Err(StoreError::UploadUnknown)));
    assert_eq!(files_in(dir.path()), 0);
}

#[test]
fn a_full_disk_leaves_the_upload_as_long_as_its_client_was_told() {
    let dir = tempfile::tempdir().unwrap();
    let (store, uploads) = open(dir.path());
    let app = repo("team/app");
    let id = uploads.create(&app, NOW).unwrap();
    let mut upload = uploads.open(&app, id).unwrap();
    upload.append(b"one ").unwrap();
    store.faults().room.store(0, Ordering::SeqCst);
    assert!(matches!(upload.append(b"two"), Err(StoreError::Full { .. })));
    drop(upload);
    store.faults().room.store(u64::MAX, Ordering::SeqCst);
    let mut upload = uploads.open(&app, id).unwrap();
    assert_eq!(upload.len(), 4);
    upload.append(b"two").unwrap();
    upload.finish(&Digest::sha256(b"one two")).unwrap();
}

#[test]
fn abandoned_uploads_are_swept_and_others_stay() {
    let dir = tempfile::tempdir().unwrap();
    let (_, uploads) = open(dir.path());
    let app = repo("team/app");
    let age_max = Duration::from_secs(60);
    let [old, busy, new] = [NOW, NOW, NOW.plus(age_max)].map(|at| uploads.create(&app, at).unwrap());
    fs::write(dir.path().join("uploads").join(format!("{:032x}.meta", 7)), b"{}").unwrap();
    for id in [old, busy, new] {
        let file = File::options().write(true).open(dir.path().join("uploads").join(id.to_string())).unwrap();
        file.set_modified(UNIX_EPOCH + NOW.since(Timestamp::default())).unwrap();
    }
    let held = uploads.open(&app, busy).unwrap();
    assert_eq!(uploads.sweep(NOW.plus(age_max * 2), age_max).unwrap(), 1);
    assert!(matches!(uploads.open(&app, old), Err(StoreError::UploadUnknown)));
    uploads.open(&app, new).unwrap().append(b"more").unwrap();
    drop(held);
    uploads.open(&app, busy).unwrap();
    assert_eq!(files_in(dir.path()), 4);
}

const CHILD: &str = "OUTPORT_TEST_UPLOAD_CHILD";

/// Run in a process of its own: appends for ever and tells how far it is.
#[test]
fn child_that_appends_until_killed() {
    let Some(dir) = std::env::var_os(CHILD) else {
        return;
    };
    let (_, uploads) = open(Path::new(&dir));
    let app = repo("team/app");
    let id = uploads.create(&app, NOW).unwrap();
    let mut upload = uploads.open(&app, id).unwrap();
    loop {
        upload.append(&[7; 1000]).unwrap();
        println!("told {id} {}", upload.len());
    }
}

#[test]
fn what_a_client_was_told_survives_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "store::upload::tests::child_that_appends_until_killed", "--nocapture"])
        .env(CHILD, dir.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut told = None;
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        if let Some((id, len)) = line.split_once("told ").and_then(|(_, rest)| rest.split_once(' ')) {
            let len: u64 = len.parse().unwrap();
            told = Some((id.parse::<UploadId>().unwrap(), len));
            if len >= 50_000 {
                break;
            }
        }
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let (id, len) = told.unwrap();
    let (store, uploads) = open(dir.path());
    let upload = uploads.open(&repo("team/app"), id).unwrap();
    assert!(upload.len() >= len);
    let content = vec![7; upload.len() as usize];
    upload.finish(&Digest::sha256(&content)).unwrap();
    assert_eq!(store.size(&Digest::sha256(&content)).unwrap(), Some(content.len() as u64));
}
