//! After a failed fsync: when a new start is worth trying, and what it finds.

use super::*;

fn stopped(disk: &FaultyDisk) -> Log {
    let log = open_whole(disk);
    let outcome = runtime().block_on(log.append("", vec![change(9)]));
    assert!(matches!(outcome, Err(LogError::Stopped(_))), "{outcome:?}");
    log
}

#[test]
fn a_segment_that_alone_is_not_durable_is_no_reason_to_start_again() {
    let disk = filled(3, LogOptions::default());
    let log = open_whole(&disk);
    disk.refuse_syncs(Some(".log"));
    runtime().block_on(log.append("", vec![change(9)])).unwrap_err();
    for _ in 0..2 {
        let asked = log.probe().unwrap_err().to_string();
        assert!(asked.contains("sync segment"), "{asked}");
        assert_eq!(numbers(&log), [0, 1, 2], "reads go on");
    }
    disk.refuse_syncs(None);
    log.probe().unwrap();
    drop(log);
    let log = open_whole(&disk);
    assert_eq!(runtime().block_on(log.append("", vec![change(3)])).unwrap(), Offset::new(1, 4));
    drop(log);
    assert_eq!(numbers(&open_whole(&disk.power_on(1))), [0, 1, 2, 3]);
}

#[test]
fn a_start_shows_what_the_disk_has_and_not_what_memory_took_for_written() {
    let disk = filled(3, LogOptions::default());
    let log = open_whole(&disk);
    disk.fail_sync(0);
    // Killed before it takes back what it wrote: behind the append and the sync.
    disk.cut_power_at(disk.counts().changes + 2);
    runtime().block_on(log.append("", vec![change(9)])).unwrap_err();
    drop(log);
    let killed = disk.after_kill();
    let (log, torn) = open(&killed, LogOptions::default()).unwrap();
    assert_eq!(numbers(&log), [0, 1, 2]);
    assert!(torn.is_some());
    runtime().block_on(log.append("", vec![change(3)])).unwrap();
    drop(log);
    for seed in 0..16 {
        assert_eq!(numbers(&open_whole(&killed.power_on(seed))), [0, 1, 2, 3], "seed {seed}");
    }
}

#[test]
fn a_disk_that_lost_what_was_acknowledged_is_no_disk_to_start_from() {
    let disk = filled(3, LogOptions::default());
    disk.fail_sync(2);
    let log = stopped(&disk);
    log.probe().unwrap();
    let newest = segments(&disk).pop().unwrap();
    disk.rot(&newest, HEADER_BYTES + 30);
    let asked = log.probe().unwrap_err().to_string();
    assert!(asked.contains("ends at 0.0") || asked.contains("damaged"), "{asked}");
}

#[test]
fn a_reset_whose_decision_the_disk_never_got_is_part_of_the_question_and_did_not_happen() {
    let disk = filled(3, LogOptions::default());
    let log = open_whole(&disk);
    disk.refuse_syncs(Some("reset"));
    runtime().block_on(log.reset(Offset::new(1, 50), 0)).unwrap_err();
    assert!(log.probe().unwrap_err().to_string().contains("sync reset marker"));
    disk.refuse_syncs(None);
    log.probe().unwrap();
    drop(log);
    assert_eq!(open_whole(&disk).head(), Offset::new(1, 3));
}
