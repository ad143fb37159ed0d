use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use outport_proto::{RepoName, oci::media_type};

use super::*;
use crate::auth::Actions;
use crate::registry::{
    Mounted, PullOptions, PushError, Want,
    testing::{Primary, caller, image, puller, pusher_of, reference, repo},
};

fn collector(primary: &Primary, grace: Duration) -> Collector {
    Collector::new(primary.journal.index().clone(), primary.store.clone(), grace)
}

async fn collect(collector: &Collector) -> Found {
    collector.collect(false, Pace::Fast).await.unwrap().found
}

fn count(blobs: u64, bytes: u64) -> Count {
    Count { blobs, bytes }
}

async fn delete_blob(primary: &Primary, repo: &RepoName, digest: &Digest) -> Result<(), PushError> {
    primary.push.delete_blob(&pusher_of(repo), repo, digest).await.map(|_| ())
}

#[tokio::test(start_paused = true)]
async fn an_unlinked_blob_goes_when_its_grace_period_is_over() {
    let (primary, app, other) = (Primary::new().await, repo("team/app"), repo("team/other"));
    let shared = primary.blob(&app, b"shared").await;
    primary.blob(&other, b"shared").await;
    let lonely = primary.blob(&app, b"lonely").await;
    let collector = collector(&primary, Duration::from_secs(600));
    assert_eq!(collect(&collector).await, Found::default());

    for digest in [&shared, &lonely] {
        delete_blob(&primary, &app, digest).await.unwrap();
    }
    let waits = Found { unlinked: count(1, 6), in_grace: count(1, 6), ..Found::default() };
    assert_eq!(collect(&collector).await, waits);
    tokio::time::advance(Duration::from_secs(599)).await;
    assert_eq!(collect(&collector).await, waits);
    tokio::time::advance(Duration::from_secs(1)).await;
    let dry = collector.collect(true, Pace::Fast).await.unwrap();
    let gone = Found { unlinked: count(1, 6), removed: count(1, 6), ..Found::default() };
    assert_eq!((dry.found, dry.dry_run, dry.blobs), (gone, true, 2));
    assert!(primary.store.get(&lonely).unwrap().is_some());
    assert_eq!(collect(&collector).await, gone);
    assert!(primary.store.get(&lonely).unwrap().is_none());
    assert!(primary.store.get(&shared).unwrap().is_some(), "another repository links it");
}

#[tokio::test(start_paused = true)]
async fn a_blob_that_was_linked_meanwhile_has_its_whole_grace_period_again() {
    let (primary, app) = (Primary::new().await, repo("team/app"));
    let collector = collector(&primary, Duration::from_secs(600));
    let digest = primary.blob(&app, b"again").await;
    for _ in 0..2 {
        delete_blob(&primary, &app, &digest).await.unwrap();
        assert_eq!(collect(&collector).await.in_grace, count(1, 5));
        tokio::time::advance(Duration::from_secs(400)).await;
        primary.blob(&app, b"again").await;
        assert_eq!(collect(&collector).await, Found::default());
    }
}

#[tokio::test]
async fn what_somebody_counts_on_stays() {
    let (primary, app) = (Primary::new().await, repo("team/app"));
    let collector = collector(&primary, Duration::ZERO);
    let [asked, unasked, leased] = [b"asked", b"quiet", b"lease"];
    let asked = primary.blob(&app, asked).await;
    let unasked = primary.blob(&app, unasked).await;
    let leased = primary.blob(&app, leased).await;
    let headers = PullOptions { want: Want::Headers, ..PullOptions::default() };
    primary.pull.blob(&pusher_of(&app), &app, &asked, headers).await.unwrap();
    primary.pull.blob(&puller(), &app, &unasked, headers).await.unwrap();
    for digest in [&asked, &unasked, &leased] {
        delete_blob(&primary, &app, digest).await.unwrap();
    }
    let lease = primary.store.lease(&leased);
    let found = collect(&collector).await;
    assert_eq!((found.leased, found.removed), (count(2, 10), count(1, 5)));
    assert!(primary.store.get(&unasked).unwrap().is_none());
    drop(lease);
    assert_eq!(collect(&collector).await.removed, count(1, 5));
    assert!(primary.store.get(&asked).unwrap().is_some());
}

#[tokio::test]
async fn a_manifest_that_is_kept_as_a_blob_lives_as_long_as_it_is_held() {
    let (primary, app) = (Primary::new().await, repo("team/app"));
    let collector = collector(&primary, Duration::ZERO);
    let config = primary.blob(&app, b"config").await;
    let padding = "x".repeat(400 * 1024);
    let bytes = image(&config, &format!(r#","annotations":{{"padding":"{padding}"}}"#));
    let size = bytes.len() as u64;
    let put = primary.put(&app, "large", media_type::OCI_MANIFEST, bytes).await.unwrap();
    assert_eq!(primary.store.size(&put.digest).unwrap(), Some(size));
    assert_eq!(collect(&collector).await, Found::default());
    primary.push.delete_manifest(&pusher_of(&app), &app, &reference(&put.digest.to_string())).await.unwrap();
    assert_eq!(collect(&collector).await.removed, count(1, size));
}

#[tokio::test]
async fn an_empty_index_is_no_reason_to_remove_anything() {
    let (primary, app) = (Primary::new().await, repo("team/app"));
    let digest = primary.blob(&app, b"whole").await;
    let site = crate::registry::testing::Secondary::of(&primary);
    let empty = Collector::new(site.index.clone(), primary.store.clone(), Duration::ZERO);
    assert_eq!(collect(&empty).await, Found::default());
    assert!(primary.store.get(&digest).unwrap().is_some());
}

/// Somebody pushes and deletes, somebody mounts and deletes, and garbage is collected without
/// pause: what the index shows is there, and so is what a push or mount was acknowledged for.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_push_or_mount_loses_its_blob_to_a_pass() {
    const ROUNDS: usize = 400;
    let (primary, app, other) = (Arc::new(Primary::new().await), repo("team/app"), repo("team/other"));
    let collector = collector(&primary, Duration::ZERO);
    let digest = Digest::sha256(b"wanted");
    let done = Arc::new(AtomicBool::new(false));
    let passes = tokio::task::spawn_blocking({
        let (shared, done) = (Arc::clone(&collector.shared), Arc::clone(&done));
        let part = usize::from(digest.as_bytes()[0]);
        move || {
            let mut removed = 0;
            while !done.load(SeqCst) {
                shared.look_at(part, 0, false).unwrap();
                removed = lock(&shared.report).found.removed.blobs;
            }
            removed
        }
    });
    let watching = tokio::task::spawn_blocking({
        let (primary, done) = (Arc::clone(&primary), Arc::clone(&done));
        move || {
            let index = primary.journal.index();
            while !done.load(SeqCst) {
                let at = index.applied();
                let (named, size) = (index.is_named(&digest).unwrap(), primary.store.size(&digest).unwrap());
                if index.applied() == at && named {
                    assert!(size.is_some(), "{digest} is linked at {at} and gone");
                }
            }
        }
    });
    let pushing = tokio::spawn({
        let (primary, app) = (Arc::clone(&primary), app.clone());
        async move {
            for _ in 0..ROUNDS {
                primary.blob(&app, b"wanted").await;
                assert!(primary.store.get(&digest).unwrap().is_some());
                delete_blob(&primary, &app, &digest).await.unwrap();
            }
        }
    });
    let mounting = tokio::spawn({
        let (primary, app, other) = (Arc::clone(&primary), app.clone(), other.clone());
        async move {
            let both = caller(&["team/app", "team/other"], Actions::ALL);
            let mut mounted = 0;
            for _ in 0..ROUNDS {
                match primary.push.mount(&both, &other, &digest, Some(&app)).await.unwrap() {
                    Mounted::Linked(_) => {
                        assert!(primary.store.get(&digest).unwrap().is_some());
                        delete_blob(&primary, &other, &digest).await.unwrap();
                        mounted += 1;
                    }
                    Mounted::Upload(right, _) => primary.push.cancel_upload(&right).await.unwrap(),
                }
            }
            mounted
        }
    });
    pushing.await.unwrap();
    let mounted = mounting.await.unwrap();
    done.store(true, SeqCst);
    watching.await.unwrap();
    let removed = passes.await.unwrap();
    assert!(removed > 0 && mounted > 0, "{removed} removed, {mounted} mounted: nothing met");
}
