//! A log whose history forked, and where others stand in it.

use outport_proto::session::Place;

use super::*;

fn append(log: &Log, numbers: std::ops::Range<usize>) -> Offset {
    let changes = numbers.map(change).collect();
    runtime().block_on(log.append("ann", changes)).unwrap()
}

fn begin_epoch(log: &Log) -> Offset {
    runtime().block_on(log.begin_epoch("")).unwrap()
}

/// A place in the first epoch, or in one of those that begin at the time of the tests' [`clock`].
fn at(nth_epoch: u64, seq: u64) -> Offset {
    Offset::new(if nth_epoch == 1 { 1 } else { 998 + nth_epoch }, seq)
}

#[test]
fn an_epoch_is_numbered_by_the_second_in_which_it_begins() {
    let log_at = |clock: &Arc<ManualClock>, disk: &FaultyDisk| {
        let disk = Arc::new(disk.clone()) as SharedDisk;
        Log::open_on(disk, LogOptions::default(), Arc::clone(clock) as SharedClock).unwrap().0
    };
    let clock = ManualClock::at(Timestamp::from_micros(5_000_900_000));
    let log = log_at(&clock, &FaultyDisk::new());
    append(&log, 0..1);
    assert_eq!(begin_epoch(&log).epoch, 5_000);
    assert_eq!(begin_epoch(&log).epoch, 5_001, "in the same second");
    clock.turn(Timestamp::from_secs(7));
    assert_eq!(begin_epoch(&log).epoch, 5_002, "never below the one before");
    clock.set(Timestamp::from_secs(6_000));
    assert_eq!(begin_epoch(&log).epoch, 6_000);
}

#[test]
fn copies_that_do_not_know_of_each_other_begin_epochs_that_are_told_apart() {
    let original = filled(5, LogOptions::default());
    let restored = |secs| {
        let clock = ManualClock::at(Timestamp::from_secs(secs));
        let disk = Arc::new(original.copy()) as SharedDisk;
        let log = Log::open_on(disk, LogOptions::default(), clock).unwrap().0;
        begin_epoch(&log);
        append(&log, 10..10 + (secs % 10) as usize);
        log
    };
    let (one, other) = (restored(2_001), restored(2_008));
    assert_eq!((one.head(), other.head()), (Offset::new(2_001, 7), Offset::new(2_008, 14)));
    let digest = one.digest_at(one.head()).unwrap();
    let fork = Offset::new(1, 5);
    assert_eq!(
        other.place(one.head(), digest).unwrap(),
        Place::Beyond { fork },
        "whoever follows it rewinds"
    );
    assert_eq!(one.place(other.head(), None).unwrap(), Place::Foreign);
}

#[test]
fn several_epochs_come_back_and_know_their_forks() {
    let disk = FaultyDisk::new();
    let log = open_whole(&disk);
    append(&log, 0..3);
    assert_eq!(begin_epoch(&log), at(2, 4));
    append(&log, 3..5);
    assert_eq!(begin_epoch(&log), at(3, 7));
    assert_eq!(begin_epoch(&log), at(4, 8));
    let before = read_all(&log, 700).unwrap();
    drop(log);
    let log = open_whole(&disk);
    assert_eq!(read_all(&log, 700).unwrap(), before);
    assert_eq!(before[3].change, Change::EpochBegan { fork: at(1, 3) });
    assert_eq!(append(&log, 5..6), at(4, 9));
    for (have, place) in [
        (at(1, 3), Place::Within),
        (at(1, 4), Place::Beyond { fork: at(1, 3) }),
        (at(2, 4), Place::Within),
        (at(2, 3), Place::Behind),
        (at(2, 7), Place::Beyond { fork: at(2, 6) }),
        (at(3, 8), Place::Beyond { fork: at(3, 7) }),
        (at(4, 9), Place::Within),
        (at(4, 10), Place::Foreign),
        (at(4, 7), Place::Foreign),
        (at(5, 1), Place::Foreign),
    ] {
        assert_eq!(log.place(have, None).unwrap(), place, "{have}");
    }
    let digest = |offset| log.digest_at(offset).unwrap();
    for (have, digest, place) in [
        (at(2, 5), digest(at(2, 5)), Place::Within),
        (at(2, 5), digest(at(2, 6)), Place::Behind),
        (at(4, 9), digest(at(2, 6)), Place::Foreign),
        (at(1, 4), digest(at(1, 3)), Place::Beyond { fork: at(1, 3) }),
    ] {
        assert!(digest.is_some());
        assert_eq!(log.place(have, digest).unwrap(), place, "{have}");
    }
    assert_eq!(digest(at(9, 1)), None);
}

#[test]
fn an_epoch_may_begin_in_an_empty_log_and_in_one_that_begins_later() {
    let log = open_whole(&FaultyDisk::new());
    assert_eq!(begin_epoch(&log), at(2, 1));
    assert_eq!(log.place(at(1, 40), None).unwrap(), Place::Beyond { fork: Offset::ZERO });

    let log = open_whole(&FaultyDisk::new());
    runtime().block_on(log.reset(at(2, 100), 0)).unwrap();
    assert_eq!(log.digest_at(at(2, 100)).unwrap(), None, "the state is here, the event is not");
    assert_eq!(begin_epoch(&log), at(3, 101));
    for (have, place) in [
        (at(1, 150), Place::Behind),
        (at(2, 99), Place::Behind),
        (at(2, 100), Place::Within),
        (at(2, 101), Place::Beyond { fork: at(2, 100) }),
        (at(3, 50), Place::Foreign),
    ] {
        assert_eq!(log.place(have, None).unwrap(), place, "{have}");
    }
}

#[test]
fn a_full_disk_leaves_the_old_epoch() {
    let disk = FaultyDisk::new();
    let log = open_whole(&disk);
    append(&log, 0..3);
    disk.set_capacity(Some(disk.bytes() + HEADER_BYTES as u64 + 10));
    let outcome = runtime().block_on(log.begin_epoch(""));
    assert!(matches!(outcome, Err(LogError::DiskFull)), "{outcome:?}");
    disk.set_capacity(None);
    assert_eq!(append(&log, 3..4), Offset::new(1, 4));
    drop(log);
    assert_eq!(numbers(&open_whole(&disk)), [0, 1, 2, 3]);
}

/// Whatever the step at which the power goes, the log is in the old epoch or in the new one, and
/// goes on in either.
#[test]
fn a_power_cut_while_an_epoch_begins_leaves_one_epoch_or_the_other() {
    let workload = |disk: &FaultyDisk| {
        let (log, _) = open(disk, small()).ok()?;
        let runtime = runtime();
        runtime.block_on(log.append("", (0..3).map(change).collect())).ok()?;
        runtime.block_on(log.begin_epoch("")).ok()
    };
    let counting = FaultyDisk::new();
    workload(&counting).unwrap();
    let (mut old, mut new) = (0, 0);
    for cut in 0..=counting.counts().changes {
        for seed in 0..16 {
            let disk = FaultyDisk::new();
            disk.cut_power_at(cut);
            let begun = workload(&disk);
            let survived = disk.power_on(seed);
            let (log, _) = open(&survived, small()).unwrap();
            let head = log.head();
            assert!(begun.is_none_or(|begun| begun == head), "cut {cut} seed {seed}");
            if head.epoch > 1 {
                new += 1;
            } else {
                old += 1;
            }
            let first = append(&log, 9..10);
            assert_eq!(first, Offset::new(head.epoch.max(1), head.seq + 1), "cut {cut} seed {seed}");
            let events = read_all(&log, 700).unwrap();
            drop(log);
            let (log, torn) = open(&survived, small()).unwrap();
            assert_eq!((torn, read_all(&log, 700).unwrap()), (None, events), "cut {cut} seed {seed}");
        }
    }
    assert!(old > 0 && new > 0);
}
