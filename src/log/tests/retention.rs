//! A log that forgets its oldest segments.

use super::*;

const ALL_BUT_THE_LAST: Retention = Retention { bytes: 0, age: Duration::MAX };

#[test]
fn segments_expire_whole_by_bytes_or_by_age() {
    let log = open(&filled(40, small()), small()).unwrap().0;
    assert_eq!(log.expired(&Retention::UNLIMITED), None);
    let last = log.expired(&ALL_BUT_THE_LAST).unwrap();
    assert!(last < log.head() && last.seq > 20, "{last}");
    let half = log.expired(&Retention { bytes: log.bytes() / 2, age: Duration::MAX }).unwrap();
    assert!(half < last && half.seq > 5, "{half}");
    // All events have the time the clock stands at.
    assert_eq!(log.expired(&Retention { bytes: u64::MAX, age: Duration::from_secs(1) }), None);
}

#[test]
fn what_is_cut_is_below_the_floor_for_good() {
    let disk = filled(40, small());
    let (log, _) = open(&disk, small()).unwrap();
    let files = segments(&disk).len();
    let (head, bytes) = (log.head(), log.bytes());
    let to = log.expired(&ALL_BUT_THE_LAST).unwrap();
    assert_eq!(runtime().block_on(log.cut(to)).unwrap(), to);
    assert_eq!(runtime().block_on(log.cut(Offset::new(1, 1))).unwrap(), to, "no segment ends there");
    assert!(matches!(log.read(Offset::new(1, 1), 1), Err(LogError::BelowFloor { .. })));
    assert_eq!(log.digest_at(Offset::new(1, 1)).unwrap(), None);
    let kept = read_all(&log, 700).unwrap();
    assert_eq!(kept.first().unwrap().offset, to.next());
    assert!(segments(&disk).len() < files);
    drop(log);
    let log = open_whole(&disk);
    assert_eq!((log.floor(), log.head(), log.bytes()), (to, head, bytes));
    assert_eq!(read_all(&log, 700).unwrap(), kept);
}

#[test]
fn a_power_cut_while_it_forgets_leaves_no_hole() {
    let full = filled(40, small());
    let counting = full.after_kill();
    let work = |disk: &FaultyDisk| {
        let (log, _) = open(disk, small()).ok()?;
        let to = log.expired(&ALL_BUT_THE_LAST)?;
        runtime().block_on(log.cut(to)).ok()
    };
    let before = counting.counts().changes;
    let to = work(&counting).unwrap();
    for cut in before..=counting.counts().changes {
        for seed in 0..8 {
            let disk = full.after_kill();
            disk.cut_power_at(cut);
            let done = work(&disk);
            let log = open_whole(&disk.power_on(seed));
            assert!(
                log.floor() <= to && done.is_none_or(|floor| floor == log.floor()),
                "cut {cut} seed {seed}"
            );
            let events = read_all(&log, 700).unwrap();
            assert_eq!(events.first().unwrap().offset.seq, log.floor().seq + 1, "cut {cut} seed {seed}");
            assert_eq!(events.last().unwrap().offset, Offset::new(1, 40), "cut {cut} seed {seed}");
        }
    }
}
