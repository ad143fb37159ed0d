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

#[test]
fn several_epochs_come_back_and_know_their_forks() {
    let disk = FaultyDisk::new();
    let log = open_whole(&disk);
    append(&log, 0..3);
    assert_eq!(begin_epoch(&log), Offset::new(2, 4));
    append(&log, 3..5);
    assert_eq!(begin_epoch(&log), Offset::new(3, 7));
    assert_eq!(begin_epoch(&log), Offset::new(4, 8));
    let before = read_all(&log, 700).unwrap();
    drop(log);
    let log = open_whole(&disk);
    assert_eq!(read_all(&log, 700).unwrap(), before);
    assert_eq!(before[3].change, Change::EpochBegan { fork: Offset::new(1, 3) });
    assert_eq!(append(&log, 5..6), Offset::new(4, 9));
    let at = Offset::new;
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
    assert_eq!(begin_epoch(&log), Offset::new(2, 1));
    assert_eq!(log.place(Offset::new(1, 40), None).unwrap(), Place::Beyond { fork: Offset::ZERO });

    let log = open_whole(&FaultyDisk::new());
    runtime().block_on(log.reset(Offset::new(2, 100), 0)).unwrap();
    assert_eq!(log.digest_at(Offset::new(2, 100)).unwrap(), None, "the state is here, the event is not");
    assert_eq!(begin_epoch(&log), Offset::new(3, 101));
    for (have, place) in [
        (Offset::new(1, 150), Place::Behind),
        (Offset::new(2, 99), Place::Behind),
        (Offset::new(2, 100), Place::Within),
        (Offset::new(2, 101), Place::Beyond { fork: Offset::new(2, 100) }),
        (Offset::new(3, 50), Place::Foreign),
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
            if head.epoch == 2 {
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
