//! What a site keeps through restarts, crashes and snapshots.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use outport_proto::{
    Change, Digest, ManifestPut, Timestamp,
    snapshot::{Entry, SnapshotPlace},
};
use tokio::runtime::Runtime;

use super::*;
use crate::{
    blocking,
    clock::ManualClock,
    log::{disk::Disk as _, faulty::FaultyDisk},
};

const GRACE: Duration = Duration::from_secs(10);

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

fn put(number: u64) -> Change {
    let bytes = bytes::Bytes::from(format!("manifest {number}"));
    Change::ManifestPut(Box::new(ManifestPut {
        repo: "team/app".parse().unwrap(),
        digest: Digest::sha256(&bytes),
        media_type: "application/vnd.oci.image.manifest.v1+json".into(),
        size: bytes.len() as u64,
        bytes: Some(bytes),
        tags: vec![format!("t{number}").parse().unwrap(), "latest".parse().unwrap()],
        subject: None,
        artifact_type: None,
        platform: None,
        annotations: Vec::new(),
        children: Vec::new(),
    }))
}

fn has(journal: &Journal, number: u64) -> bool {
    let tag = format!("t{number}").parse().unwrap();
    journal.index().tag(&"team/app".parse().unwrap(), &tag).unwrap().is_some()
}

/// A site whose log and snapshots lie on faulty disks, and its index in memory: lost with the process.
struct Site {
    clock: Arc<ManualClock>,
    log: FaultyDisk,
    snapshots: FaultyDisk,
    options: JournalOptions,
    shutdown: Shutdown,
}

impl Site {
    fn new(origin: Origin) -> Self {
        let options = JournalOptions {
            origin,
            log: LogOptions { segment_bytes_max: 4_000, recent_bytes_max: 4_000 },
            ..JournalOptions::default()
        };
        let (log, snapshots) = (FaultyDisk::new(), FaultyDisk::new());
        let clock = ManualClock::at(Timestamp::from_secs(1));
        Self { clock, log, snapshots, options, shutdown: Shutdown::new() }
    }

    async fn open(&self) -> Result<Journal, JournalError> {
        let index = Index::in_memory(self.options.index.clone());
        self.open_with((index, Opened::Empty("it was in memory".into()))).await
    }

    async fn open_with(&self, index: (Index, Opened)) -> Result<Journal, JournalError> {
        let clock = Arc::clone(&self.clock);
        let (log, _) = Log::open_on(Arc::new(self.log.clone()), self.options.log.clone(), clock)?;
        let snapshots = Arc::new(self.snapshots.clone());
        Journal::over(log, index, snapshots, self.options.clone(), &self.shutdown).await
    }

    /// Closes the journal and starts over with what is on the disks.
    async fn restart(&mut self, journal: Journal) -> Result<Journal, JournalError> {
        drop(journal);
        assert!(self.shutdown.finish(GRACE).await);
        self.shutdown = Shutdown::new();
        self.open().await
    }

    /// The power goes, and comes again.
    async fn lose_power(&mut self, journal: Journal, seed: u64) -> Result<Journal, JournalError> {
        (self.log, self.snapshots) = (self.log.power_on(seed), self.snapshots.power_on(seed));
        self.restart(journal).await
    }
}

async fn commit(journal: &Journal, numbers: std::ops::Range<u64>) {
    for number in numbers {
        let offset = journal.commit("ann", vec![put(number)]).await.unwrap();
        assert!(journal.applied() >= offset && has(journal, number));
    }
}

/// Takes all of `from`'s state over to `to`.
async fn carry(from: &Journal, to: &Journal) -> Result<Offset, JournalError> {
    let mut pieces = from.snapshot(None);
    let mut installation = None;
    while let Some(piece) = pieces.next().await {
        match (piece?, installation.take()) {
            (SnapshotPiece::Begin { from: at, .. }, _) => {
                installation = Some(to.install_snapshot(at, from.log().bytes()).await?);
            }
            (SnapshotPiece::Part(entries), Some(taking)) => installation = Some(taking.part(entries).await?),
            (SnapshotPiece::End { until, entries }, Some(taking)) => {
                return taking.finish(until, entries).await;
            }
            (piece, None) => panic!("{piece:?} before the beginning"),
        }
    }
    panic!("the snapshot has no end")
}

#[test]
fn what_is_committed_is_visible_at_once_and_after_a_restart() {
    runtime().block_on(async {
        let mut site = Site::new(Origin::Own);
        let journal = site.open().await.unwrap();
        commit(&journal, 0..20).await;
        let hash = journal.index().state_hash();
        let journal = site.restart(journal).await.unwrap();
        assert_eq!((journal.applied(), journal.index().state_hash()), (Offset::new(1, 20), hash));
        let journal = site.lose_power(journal, 1).await.unwrap();
        assert_eq!(journal.index().state_hash(), hash);
    });
}

#[test]
fn concurrent_commits_all_become_visible() {
    runtime().block_on(async {
        let site = Site::new(Origin::Own);
        let journal = site.open().await.unwrap();
        let commits: Vec<_> = (0..200)
            .map(|number| {
                let journal = journal.clone();
                tokio::spawn(async move {
                    journal.commit("", vec![put(number)]).await.unwrap();
                    assert!(has(&journal, number));
                })
            })
            .collect();
        for commit in commits {
            commit.await.unwrap();
        }
        assert_eq!(journal.applied(), Offset::new(1, 200));
    });
}

#[test]
fn a_restart_loads_the_newest_whole_snapshot_and_the_tail() {
    runtime().block_on(async {
        let mut site = Site::new(Origin::Own);
        let journal = site.open().await.unwrap();
        for end in [10, 20, 30] {
            commit(&journal, end - 10..end).await;
            keeper::write_snapshot(&journal.shared).unwrap();
        }
        commit(&journal, 30..35).await;
        let state = journal.index().state_hash();
        let names = site.snapshots.list().unwrap();
        assert_eq!(names.len(), 2, "{names:?}");
        let journal = site.restart(journal).await.unwrap();
        assert_eq!(journal.index().state_hash(), state);
        let mut newest = site.snapshots.content(&names[1]).unwrap();
        newest[100] ^= 1;
        site.snapshots.set_content(&names[1], newest);
        let journal = site.restart(journal).await.unwrap();
        assert_eq!(journal.index().state_hash(), state, "from the older snapshot");
        site.snapshots.remove(&names[0]).unwrap();
        let journal = site.restart(journal).await.unwrap();
        assert_eq!(journal.index().state_hash(), state, "from the whole log");
    });
}

#[test]
fn the_log_is_cut_only_behind_a_snapshot_and_the_site_comes_back() {
    runtime().block_on(async {
        let mut site = Site::new(Origin::Own);
        site.options.retention = crate::log::Retention { bytes: 8_000, age: Duration::MAX };
        let journal = site.open().await.unwrap();
        commit(&journal, 0..60).await;
        let state = journal.index().state_hash();
        let waiting = async {
            while journal.log().expired(&site.options.retention).is_some() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(GRACE, waiting).await.unwrap();
        let floor = journal.log().floor();
        assert!(floor.seq > 0 && floor < journal.log().head());
        let covered = Snapshots::open(Arc::new(site.snapshots.clone())).unwrap().list().unwrap();
        assert!(covered.iter().any(|(from, _)| *from >= floor), "{covered:?} {floor}");
        let journal = site.restart(journal).await.unwrap();
        assert_eq!((journal.log().floor(), journal.index().state_hash()), (floor, state));

        // Without a snapshot that can be written nothing is removed.
        site.snapshots.set_capacity(Some(0));
        commit(&journal, 60..120).await;
        for name in site.snapshots.list().unwrap() {
            site.snapshots.remove(&name).unwrap();
        }
        let journal_floor = journal.log().floor();
        assert!(
            blocking::drive({
                let shared = Arc::clone(&journal.shared);
                async move { keeper::cut_expired(&shared).await }
            })
            .await
            .unwrap()
            .is_err()
        );
        assert_eq!(journal.log().floor(), journal_floor);
    });
}

#[test]
fn snapshots_are_written_as_the_log_grows() {
    runtime().block_on(async {
        let mut site = Site::new(Origin::Own);
        site.options.snapshot_log_bytes = 2_000;
        let journal = site.open().await.unwrap();
        commit(&journal, 0..20).await;
        let written = async {
            while site.snapshots.list().unwrap().iter().all(|name| !name.ends_with(".snapshot")) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(GRACE, written).await.unwrap();
    });
}

#[test]
fn an_index_from_another_history_is_rebuilt() {
    runtime().block_on(async {
        for foreign in [Offset::new(1, 500), Offset::new(7, 3)] {
            let mut site = Site::new(Origin::Own);
            let journal = site.open().await.unwrap();
            commit(&journal, 0..5).await;
            let state = journal.index().state_hash();
            drop(journal);
            assert!(site.shutdown.finish(GRACE).await);
            site.shutdown = Shutdown::new();
            let index = Index::in_memory(site.options.index.clone());
            let other = Arc::new(outport_proto::Event {
                offset: foreign,
                time: Timestamp::from_secs(1),
                actor: String::new(),
                intent: None,
                change: put(99),
            });
            index.apply(&[other]).unwrap();
            let journal = site.open_with((index, Opened::Ready(foreign))).await.unwrap();
            assert_eq!(journal.index().state_hash(), state);
            assert!(!has(&journal, 99));
        }
    });
}

#[test]
fn a_secondary_follows_and_then_needs_a_snapshot() {
    runtime().block_on(async {
        let (primary_site, mut site) = (Site::new(Origin::Own), Site::new(Origin::Followed));
        let primary = primary_site.open().await.unwrap();
        let secondary = site.open().await.unwrap();
        commit(&primary, 0..5).await;
        let head = secondary.replicate(primary.log().read(Offset::ZERO, usize::MAX).unwrap()).await.unwrap();
        assert!(secondary.wait_applied(head, GRACE).await);
        assert_eq!(secondary.index().state_hash(), primary.index().state_hash());
        assert!(!secondary.wait_applied(head.next(), Duration::from_millis(1)).await);

        commit(&primary, 5..40).await;
        let from = carry(&primary, &secondary).await.unwrap();
        assert_eq!((from, secondary.log().floor()), (Offset::new(1, 40), from));
        assert!(secondary.is_whole());
        assert_eq!(secondary.index().state_hash(), primary.index().state_hash());
        commit(&primary, 40..45).await;
        let head = secondary.replicate(primary.log().read(from, usize::MAX).unwrap()).await.unwrap();
        assert!(secondary.wait_applied(head, GRACE).await);

        let secondary = site.restart(secondary).await.unwrap();
        assert_eq!(secondary.index().state_hash(), primary.index().state_hash(), "snapshot and tail");
        for name in site.snapshots.list().unwrap() {
            site.snapshots.remove(&name).unwrap();
        }
        let secondary = site.restart(secondary).await.unwrap();
        assert_eq!(secondary.log().head(), Offset::ZERO, "nothing leads to its log: it asks anew");
        primary_site.shutdown.finish(GRACE).await;
    });
}

#[test]
fn what_the_dead_branch_held_goes_with_a_snapshot() {
    runtime().block_on(async {
        let (primary_site, site) = (Site::new(Origin::Own), Site::new(Origin::Followed));
        let primary = primary_site.open().await.unwrap();
        let secondary = site.open().await.unwrap();
        secondary.commit("", vec![put(99), put(98), put(97)]).await.unwrap();
        commit(&primary, 0..2).await;
        carry(&primary, &secondary).await.unwrap();
        assert!(has(&secondary, 1) && !has(&secondary, 99));
        assert_eq!(secondary.index().state_hash(), primary.index().state_hash());
    });
}

#[test]
fn an_incomplete_or_abandoned_snapshot_changes_nothing() {
    runtime().block_on(async {
        let site = Site::new(Origin::Followed);
        let journal = site.open().await.unwrap();
        commit(&journal, 0..3).await;
        let installation = journal.install_snapshot(Offset::new(2, 90), 0).await.unwrap();
        let outcome = installation.finish(Offset::new(2, 90), 5).await;
        assert!(matches!(outcome, Err(JournalError::Incomplete { found: 0, expected: 5 })));
        drop(journal.install_snapshot(Offset::new(2, 90), 0).await.unwrap());
        assert_eq!((journal.applied(), journal.log().head()), (Offset::new(1, 3), Offset::new(1, 3)));
        assert!(has(&journal, 2));
        journal.forget_snapshot().await.unwrap();
        assert_eq!(site.snapshots.list().unwrap(), Vec::<String>::new());
    });
}

#[test]
fn a_snapshot_of_an_index_that_is_replaced_meanwhile_is_given_up() {
    runtime().block_on(async {
        let (mut site, other) = (Site::new(Origin::Followed), Site::new(Origin::Own));
        site.options.log = LogOptions::default();
        let journal = site.open().await.unwrap();
        // More than waits for a reader that does not read.
        for number in 0..40 {
            let Change::ManifestPut(mut manifest) = put(number) else { panic!("a manifest") };
            let bytes = bytes::Bytes::from(format!("{number:>50000}").repeat(5));
            (manifest.digest, manifest.size) = (Digest::sha256(&bytes), bytes.len() as u64);
            manifest.bytes = Some(bytes);
            journal.commit("", vec![Change::ManifestPut(manifest)]).await.unwrap();
        }
        let mut pieces = journal.snapshot(None);
        assert!(matches!(pieces.next().await, Some(Ok(SnapshotPiece::Begin { .. }))));
        let source = other.open().await.unwrap();
        commit(&source, 100..150).await;
        carry(&source, &journal).await.unwrap();
        let mut last = None;
        while let Some(piece) = pieces.next().await {
            last = Some(piece);
        }
        assert!(matches!(last, Some(Err(JournalError::NotWhole))), "{last:?}");

        let behind = Site::new(Origin::Followed);
        let behind = behind.open().await.unwrap();
        carry(&journal, &behind).await.unwrap();
        assert_eq!(behind.index().state_hash(), source.index().state_hash());
    });
}

#[test]
fn a_snapshot_that_was_begun_before_another_replaces_nothing_after_it() {
    runtime().block_on(async {
        let site = Site::new(Origin::Followed);
        let journal = site.open().await.unwrap();
        let late = journal.install_snapshot(Offset::new(1, 40), 0).await.unwrap();
        let newer = journal.install_snapshot(Offset::new(1, 50), 0).await.unwrap();
        newer.finish(Offset::new(1, 50), 0).await.unwrap();
        commit(&journal, 0..1).await;
        let outcome = late.finish(Offset::new(1, 40), 0).await;
        assert!(matches!(outcome, Err(JournalError::Superseded)), "{outcome:?}");
        assert_eq!((journal.applied(), journal.log().head()), (Offset::new(1, 51), Offset::new(1, 51)));
    });
}

/// Whatever the step at which the power goes: afterwards the site shows its old state, the new
/// one, or nothing at all and asks again.
#[test]
fn a_power_cut_while_a_snapshot_is_installed_leaves_no_half_state() {
    runtime().block_on(async {
        let primary_site = Site::new(Origin::Own);
        let primary = primary_site.open().await.unwrap();
        commit(&primary, 0..6).await;
        let new = primary.index().state_hash().0;
        let mut installed = 0;
        for cut in 0..60 {
            for disk in ["log", "snapshots"] {
                let mut site = Site::new(Origin::Followed);
                let secondary = site.open().await.unwrap();
                secondary.commit("", vec![put(50), put(51)]).await.unwrap();
                let old = secondary.index().state_hash().0;
                let faulty = if disk == "log" { &site.log } else { &site.snapshots };
                faulty.cut_power_at(faulty.counts().changes + cut);
                let carried = carry(&primary, &secondary).await;
                let secondary = site.lose_power(secondary, cut).await.unwrap();
                let empty = secondary.log().head() == Offset::ZERO;
                let state = secondary.index().state_hash().0;
                if carried.is_ok() {
                    assert_eq!(state, new, "{disk} cut {cut}");
                    installed += 1;
                } else if !empty {
                    assert!(state == old || state == new, "{disk} cut {cut}");
                }
                assert_eq!(secondary.applied(), secondary.log().head(), "{disk} cut {cut}");
                site.shutdown.finish(GRACE).await;
            }
        }
        assert!(installed > 0, "the last cuts come after the end");
    });
}

#[test]
fn a_failed_fsync_fails_the_commit_and_reads_go_on() {
    runtime().block_on(async {
        let mut site = Site::new(Origin::Own);
        let journal = site.open().await.unwrap();
        commit(&journal, 0..3).await;
        site.log.fail_sync(0);
        let outcome = journal.commit("", vec![put(3)]).await;
        assert!(matches!(outcome, Err(JournalError::Log(LogError::Stopped(_)))), "{outcome:?}");
        assert!(has(&journal, 2) && !has(&journal, 3));
        assert!(matches!(journal.failure().await, JournalError::Log(LogError::Stopped(_))));
        assert!(journal.failed().is_some());
        let journal = site.lose_power(journal, 3).await.unwrap();
        assert!(has(&journal, 2) && journal.failed().is_none());
    });
}

#[test]
fn a_closed_journal_refuses_commits() {
    runtime().block_on(async {
        let site = Site::new(Origin::Own);
        let journal = site.open().await.unwrap();
        commit(&journal, 0..1).await;
        assert!(site.shutdown.finish(GRACE).await);
        let outcome = journal.commit("", vec![put(1)]).await;
        assert!(matches!(outcome, Err(JournalError::Closed)), "{outcome:?}");
        assert!(has(&journal, 0) && journal.failed().is_none());
    });
}

#[test]
fn a_journal_on_a_real_disk_goes_on_where_it_was() {
    runtime().block_on(async {
        let dir = tempfile::tempdir().unwrap();
        for round in 0..3 {
            let shutdown = Shutdown::new();
            let clock = ManualClock::at(Timestamp::from_secs(1));
            let options = JournalOptions::default();
            let start = Instant::now();
            let journal = Journal::open(dir.path(), options, clock, &shutdown).await.unwrap();
            assert_eq!(journal.applied(), Offset::new(u64::from(round > 0), round * 10));
            commit(&journal, round * 10..round * 10 + 10).await;
            drop(journal);
            assert!(shutdown.finish(GRACE).await);
            assert!(start.elapsed() < GRACE);
        }
    });
}

#[test]
fn a_snapshot_that_was_cut_off_is_resumed_behind_its_last_whole_part() {
    runtime().block_on(async {
        let primary_site = Site::new(Origin::Own);
        let primary = primary_site.open().await.unwrap();
        commit(&primary, 0..9).await;
        let (head, link) = (primary.log().head(), |number: u64| Entry::Link {
            repo: "team/app".parse().unwrap(),
            digest: Digest::sha256(&number.to_le_bytes()),
            size: number,
            offset: Offset::new(1, number),
        });
        let mut site = Site::new(Origin::Followed);
        let mut secondary = site.open().await.unwrap();
        assert!(secondary.resume_snapshot().await.unwrap().is_none());
        let taking = secondary.install_snapshot(head, 7).await.unwrap();
        let taking = taking.part(vec![link(1), link(2)]).await.unwrap();
        drop(taking.part(vec![link(3)]).await.unwrap());

        // The last of it may have been torn, or be anything.
        let name = site.snapshots.list().unwrap().remove(0);
        let whole = site.snapshots.content(&name).unwrap();
        for (cut, entries) in [(0, 3), (1, 2), (20, 2)] {
            let mut content = whole[..whole.len() - cut].to_vec();
            content.extend_from_slice(&[0; 9][..cut.min(9)]);
            site.snapshots.set_content(&name, content);
            secondary = site.restart(secondary).await.unwrap();
            let resumed = secondary.resume_snapshot().await.unwrap().unwrap();
            assert_eq!(resumed.entries(), entries, "{cut} bytes cut");
            let place = resumed.place().unwrap();
            assert_eq!((place.from, place.after), (head, link(entries).key()));
            let resumed = resumed.part(vec![link(9)]).await.unwrap();
            if cut == 20 {
                assert_eq!(resumed.finish(head, 1).await.unwrap(), head);
                let linked = |number| secondary.index().link(&"team/app".parse().unwrap(), &number).unwrap();
                let digest = |number: u64| Digest::sha256(&number.to_le_bytes());
                let found = [1, 2, 3, 9].map(|number| linked(digest(number)).is_some());
                assert_eq!(found, [true, true, false, true]);
            }
        }
        assert!(secondary.resume_snapshot().await.unwrap().is_none(), "it is installed");
        let secondary = site.restart(secondary).await.unwrap();
        assert_eq!(secondary.applied(), head, "the file is whole");
        site.shutdown.finish(GRACE).await;
        primary_site.shutdown.finish(GRACE).await;
    });
}

#[test]
fn the_rest_of_a_snapshot_is_given_only_where_the_log_has_all_that_follows() {
    runtime().block_on(async {
        let site = Site::new(Origin::Own);
        let journal = site.open().await.unwrap();
        commit(&journal, 0..9).await;
        let begin = |from, after: &Entry| {
            let mut pieces = journal.snapshot(Some(SnapshotPlace { from, after: after.key() }));
            async move { pieces.next().await.unwrap().unwrap() }
        };
        let mut pieces = journal.snapshot(None);
        let mut entries = Vec::new();
        while let Some(piece) = pieces.next().await {
            if let SnapshotPiece::Part(part) = piece.unwrap() {
                entries.extend(part);
            }
        }
        let begun = Offset::new(1, 4);
        let resumed = SnapshotPiece::Begin { from: begun, resumed: true };
        assert_eq!(begin(begun, &entries[3]).await, resumed);
        let anew = SnapshotPiece::Begin { from: journal.applied(), resumed: false };
        for elsewhere in [Offset::new(1, 10), Offset::new(2, 4), Offset::new(0, 4)] {
            assert_eq!(begin(elsewhere, &entries[3]).await, anew, "{elsewhere}");
        }
        // What is handed out is behind the place, and all that is.
        for at in 0..entries.len() {
            let after = Some(SnapshotPlace { from: begun, after: entries[at].key() });
            let (mut pieces, mut rest) = (journal.snapshot(after), Vec::new());
            while let Some(piece) = pieces.next().await {
                match piece.unwrap() {
                    SnapshotPiece::Part(part) => rest.extend(part),
                    SnapshotPiece::End { entries, .. } => assert_eq!(entries, rest.len() as u64),
                    SnapshotPiece::Begin { .. } => {}
                }
            }
            assert_eq!(rest, entries[at + 1..], "after {at}");
        }
        site.shutdown.finish(GRACE).await;
    });
}

#[test]
fn a_log_is_not_cut_while_a_snapshot_needs_it_and_tombstones_go_below_it() {
    runtime().block_on(async {
        const DAY: u64 = 24 * 3600;
        let mut site = Site::new(Origin::Own);
        site.options.retention = Retention { bytes: 4_000, age: Duration::MAX };
        let journal = site.open().await.unwrap();
        let hold = journal.shared.holds.hold(Offset::new(1, 1));
        commit(&journal, 0..2).await;
        let gone = Change::TagDeleted { repo: "team/app".parse().unwrap(), tag: "t0".parse().unwrap() };
        journal.commit("", vec![gone]).await.unwrap();
        site.clock.set(Timestamp::from_secs(40 * DAY));
        commit(&journal, 2..60).await;
        site.clock.set(Timestamp::from_secs(90 * DAY));
        let held = keeper::cut_expired(&journal.shared).await.unwrap();
        assert_eq!(held, None, "a site may still need what is in the log");
        assert_eq!(keeper::forget_tombstones(&journal.shared).unwrap(), 0);
        drop(hold);
        let held = keeper::cut_expired(&journal.shared).await.unwrap();
        assert_eq!(held, None, "it may come for what follows its snapshot");
        // Another process knows nothing of it.
        let journal = site.restart(journal).await.unwrap();
        // Its keeper cuts the log at its first look, and then forgets what lies below.
        let forgotten = async {
            while journal.index().tombstones() > 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(GRACE, forgotten).await.unwrap();
        assert!(journal.log().floor() > Offset::new(1, 3));
        site.shutdown.finish(GRACE).await;
    });
}

#[test]
fn a_damaged_log_is_fatal_where_it_is_the_only_one_and_set_aside_where_it_is_a_copy() {
    runtime().block_on(async {
        for origin in [Origin::Own, Origin::Followed] {
            let dir = tempfile::tempdir().unwrap();
            let clock = ManualClock::at(Timestamp::from_secs(1));
            let options = JournalOptions {
                origin,
                log: LogOptions { segment_bytes_max: 4_000, recent_bytes_max: 4_000 },
                ..JournalOptions::default()
            };
            let shutdown = Shutdown::new();
            let journal = Journal::open(dir.path(), options.clone(), clock.clone(), &shutdown).await.unwrap();
            commit(&journal, 0..40).await;
            let (head, state) = (journal.log().head(), journal.index().state_hash());
            let missed = journal.log().read(Offset::ZERO, 1).unwrap();
            assert_eq!(journal.alarm(), None);
            drop(journal);
            assert!(shutdown.finish(GRACE).await);

            let segments =
                std::fs::read_dir(dir.path().join("log")).unwrap().map(|entry| entry.unwrap().path());
            let newest =
                segments.filter(|path| path.extension().is_some_and(|name| name == "log")).max().unwrap();
            let mut bytes = std::fs::read(&newest).unwrap();
            bytes[90] ^= 1;
            std::fs::write(&newest, bytes).unwrap();

            let shutdown = Shutdown::new();
            let opened = Journal::open(dir.path(), options.clone(), clock.clone(), &shutdown).await;
            if origin == Origin::Own {
                let error = opened.unwrap_err();
                assert!(matches!(error, JournalError::Damaged(_)), "{error}");
                assert!(error.to_string().contains("--restored"), "{error}");
                continue;
            }
            let journal = opened.unwrap();
            assert!(journal.alarm().unwrap().contains("damaged"), "{:?}", journal.alarm());
            assert_eq!(journal.index().state_hash(), state, "what it shows stays");
            assert_eq!(
                (journal.log().floor(), journal.log().head()),
                (head, head),
                "what follows is asked for"
            );
            assert!(journal.is_whole() && dir.path().join("log.damaged").is_dir());
            assert_eq!(journal.replicate(missed).await.unwrap(), head, "what it had is skipped");
            journal.commit("", vec![put(41)]).await.unwrap();
            drop(journal);
            assert!(shutdown.finish(GRACE).await);
            let shutdown = Shutdown::new();
            let journal = Journal::open(dir.path(), options, clock, &shutdown).await.unwrap();
            assert_eq!((journal.alarm(), journal.applied()), (None, head.next()), "once");
            drop(journal);
            assert!(shutdown.finish(GRACE).await);
        }
    });
}
