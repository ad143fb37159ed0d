//! What the log promises, on a disk that fails.

use std::{
    future::poll_fn,
    io::Write as _,
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};

use outport_proto::{Change, Digest, Event, Offset, Timestamp, codec};
use tokio::runtime::Runtime;

use super::{
    disk::SharedDisk,
    faulty::FaultyDisk,
    format::{self, HEADER_BYTES},
    *,
};
use crate::clock::ManualClock;

mod epochs;
mod power;
mod probe;
mod retention;

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

fn clock() -> Arc<ManualClock> {
    ManualClock::at(Timestamp::from_secs(1_000))
}

fn open(disk: &FaultyDisk, options: LogOptions) -> Result<(Log, Option<TornTail>), LogError> {
    Log::open_on(Arc::new(disk.clone()) as SharedDisk, options, clock())
}

fn open_whole(disk: &FaultyDisk) -> Log {
    let (log, torn) = open(disk, LogOptions::default()).unwrap();
    assert_eq!(torn, None);
    log
}

fn small() -> LogOptions {
    LogOptions { segment_bytes_max: 1_000, recent_bytes_max: 2_000 }
}

fn change(number: usize) -> Change {
    Change::BlobCommitted {
        repo: "team/app".parse().unwrap(),
        digest: Digest::sha256(&number.to_le_bytes()),
        size: number as u64,
    }
}

fn number_of(event: &Event) -> usize {
    match &event.change {
        Change::BlobCommitted { size, .. } => *size as usize,
        other => panic!("{other:?}"),
    }
}

fn replicated(epoch: u64, seq: u64) -> Record {
    let event = Event {
        offset: Offset::new(epoch, seq),
        time: Timestamp::from_secs(2_000),
        actor: String::new(),
        intent: None,
        change: change(seq as usize),
    };
    Record { encoded: codec::encode_event(&event).unwrap(), event: Arc::new(event), trace: None }
}

/// Every record from the floor on, read in pieces of about `bytes_max`.
fn read_all(log: &Log, bytes_max: usize) -> Result<Vec<Arc<Event>>, LogError> {
    let mut events = Vec::new();
    let mut after = log.floor();
    loop {
        let records = log.read(after, bytes_max)?;
        let Some(last) = records.last() else { return Ok(events) };
        after = last.event.offset;
        for record in records {
            assert_eq!(codec::decode_event(&record.encoded).unwrap(), *record.event);
            events.push(record.event);
        }
    }
}

fn numbers(log: &Log) -> Vec<usize> {
    read_all(log, 700).unwrap().iter().map(|event| number_of(event)).collect()
}

/// A disk with `count` events, each durable before the next.
fn filled(count: usize, options: LogOptions) -> FaultyDisk {
    let disk = FaultyDisk::new();
    let (log, _) = open(&disk, options).unwrap();
    runtime().block_on(async {
        for number in 0..count {
            log.append("ann", vec![change(number)]).await.unwrap();
        }
    });
    drop(log);
    disk
}

fn segments(disk: &FaultyDisk) -> Vec<String> {
    use super::disk::Disk as _;
    disk.list().unwrap().into_iter().filter(|name| format::parse_file_name(name).is_some()).collect()
}

#[test]
fn a_new_log_counts_from_one_and_comes_back() {
    let disk = FaultyDisk::new();
    let log = open_whole(&disk);
    assert_eq!((log.head(), log.floor(), log.bytes()), (Offset::ZERO, Offset::ZERO, 0));
    assert!(log.read(Offset::ZERO, 1).unwrap().is_empty());
    let offset = runtime().block_on(log.append("ann", vec![change(0), change(1)])).unwrap();
    assert_eq!(offset, Offset::new(1, 2));
    let (events, bytes) = (read_all(&log, 1).unwrap(), log.bytes());
    assert_eq!(events[1].actor, "ann");
    drop(log);
    let log = open_whole(&disk);
    assert_eq!((log.head(), log.bytes()), (Offset::new(1, 2), bytes));
    assert_eq!(read_all(&log, 1).unwrap(), events);
    assert!(log.contains(Offset::new(1, 1)) && log.contains(Offset::ZERO));
    assert!(matches!(log.read(Offset::new(1, 3), 1), Err(LogError::NotInLog { .. })));
    assert!(matches!(log.read(Offset::new(2, 1), 1), Err(LogError::NotInLog { .. })));
}

#[test]
fn a_directory_on_a_real_disk_belongs_to_one_log() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("new/log");
    let (log, _) = Log::open(&path, small(), clock()).unwrap();
    runtime().block_on(async {
        for number in 0..30 {
            log.append("", vec![change(number)]).await.unwrap();
        }
    });
    assert!(matches!(Log::open(&path, small(), clock()), Err(LogError::Io { .. })));
    drop(log);
    let (log, torn) = Log::open(&path, small(), clock()).unwrap();
    assert_eq!((numbers(&log), torn), ((0..30).collect(), None));
}

#[test]
fn many_appends_share_one_fsync() {
    let disk = filled(1, LogOptions::default());
    let log = open_whole(&disk);
    let before = disk.counts().syncs;
    disk.hold_syncs(true);
    runtime().block_on(async {
        let mut appends: Vec<_> =
            (0..100).map(|number| Box::pin(log.append("", vec![change(number)]))).collect();
        for append in &mut appends {
            // Asked, and not answered: nothing can be durable yet.
            assert!(poll_fn(|context| Poll::Ready(append.as_mut().poll(context).is_pending())).await);
        }
        disk.hold_syncs(false);
        let mut offsets = Vec::new();
        for append in appends {
            offsets.push(append.await.unwrap().seq);
        }
        offsets.sort_unstable();
        assert_eq!(offsets, (2..=101).collect::<Vec<_>>());
    });
    let syncs = disk.counts().syncs - before;
    assert!(syncs <= 2, "{syncs} fsyncs for 100 appends");
}

#[test]
fn event_times_never_go_back() {
    let disk = FaultyDisk::new();
    let clock = clock();
    let (log, _) = Log::open_on(Arc::new(disk.clone()), LogOptions::default(), clock.clone()).unwrap();
    runtime().block_on(async {
        log.append("", vec![change(0)]).await.unwrap();
        clock.set(Timestamp::from_secs(10));
        log.append("", vec![change(1)]).await.unwrap();
    });
    drop(log);
    let (log, _) = Log::open_on(Arc::new(disk), LogOptions::default(), clock).unwrap();
    runtime().block_on(log.append("", vec![change(2)])).unwrap();
    let times: Vec<_> = read_all(&log, 1).unwrap().iter().map(|event| event.time.as_secs()).collect();
    assert_eq!(times, [1_000; 3]);
}

#[test]
fn a_torn_last_record_is_cut_at_every_length() {
    let disk = filled(4, LogOptions::default());
    let name = segments(&disk).remove(0);
    let whole = disk.content(&name).unwrap();
    let record = (whole.len() - HEADER_BYTES) / 4;
    for cut in 1..record {
        let disk = FaultyDisk::new();
        disk.set_content(&name, whole[..whole.len() - cut].to_vec());
        let (log, torn) = open(&disk, LogOptions::default()).unwrap();
        let torn_bytes = (record - cut) as u64;
        assert_eq!(torn, Some(TornTail { after: Offset::new(1, 3), bytes: torn_bytes }), "cut {cut}");
        assert_eq!(numbers(&log), [0, 1, 2]);
        runtime().block_on(log.append("", vec![change(9)])).unwrap();
        drop(log);
        assert_eq!(numbers(&open_whole(&disk)), [0, 1, 2, 9]);
    }
}

#[test]
fn a_flipped_bit_is_never_passed_over() {
    let disk = filled(4, LogOptions::default());
    let name = segments(&disk).remove(0);
    let whole = disk.content(&name).unwrap();
    let record = (whole.len() - HEADER_BYTES) / 4;
    let last = whole.len() - record;
    for bit in 0..whole.len() * 8 {
        let mut flipped = whole.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        let disk = FaultyDisk::new();
        disk.set_content(&name, flipped);
        match open(&disk, LogOptions::default()) {
            Err(LogError::Corrupt { segment, position, .. }) => {
                assert_eq!(segment, name);
                assert!(bit / 8 < last, "bit {bit}: the last record may be a torn one");
                let record_start = match bit / 8 {
                    byte if byte < HEADER_BYTES => 0,
                    byte => byte - (byte - HEADER_BYTES) % record,
                };
                assert_eq!(position, record_start as u64, "bit {bit}");
            }
            Err(LogError::NewerFormat { .. }) => assert!((8..10).contains(&(bit / 8)), "bit {bit}"),
            Ok((log, Some(torn))) => {
                assert!(bit / 8 >= last, "bit {bit}");
                assert_eq!((torn.after, numbers(&log)), (Offset::new(1, 3), vec![0, 1, 2]));
            }
            other => panic!("bit {bit}: {other:?}"),
        }
    }
}

#[test]
fn a_removed_swapped_or_foreign_record_is_damage() {
    let disk = filled(4, LogOptions::default());
    let name = segments(&disk).remove(0);
    let whole = disk.content(&name).unwrap();
    let record = (whole.len() - HEADER_BYTES) / 4;
    let (header, records) = whole.split_at(HEADER_BYTES);
    let records: Vec<&[u8]> = records.chunks(record).collect();
    let foreign = {
        let disk = FaultyDisk::new();
        let log = open_whole(&disk);
        runtime().block_on(log.append("bob", vec![change(0)])).unwrap();
        disk.content(&name).unwrap()[HEADER_BYTES..].to_vec()
    };
    for order in [
        vec![records[0], records[2], records[3]],
        vec![records[1], records[0], records[2], records[3]],
        vec![records[0], records[1], records[1], records[2], records[3]],
        vec![&foreign, records[1], records[2], records[3]],
    ] {
        let disk = FaultyDisk::new();
        disk.set_content(&name, [header, &order.concat()].concat());
        assert!(matches!(open(&disk, LogOptions::default()), Err(LogError::Corrupt { .. })));
    }
}

#[test]
fn damage_in_an_older_segment_is_found_when_read() {
    let disk = filled(40, small());
    let names = segments(&disk);
    assert!(names.len() > 3, "{names:?}");
    let whole = disk.content(&names[1]).unwrap();
    let mut flipped = whole.clone();
    flipped[HEADER_BYTES + 40] ^= 1;
    disk.set_content(&names[1], flipped);
    let (log, _) = open(&disk, small()).unwrap();
    match read_all(&log, 700) {
        Err(LogError::Corrupt { segment, position, .. }) => {
            assert_eq!((segment, position), (names[1].clone(), HEADER_BYTES as u64));
        }
        other => panic!("{other:?}"),
    }
    drop(log);
    disk.set_content(&names[1], whole[..whole.len() - 1].to_vec());
    assert!(matches!(open(&disk, small()), Err(LogError::Corrupt { .. })), "its end is missing");
}

#[test]
fn a_newer_format_is_refused_by_name() {
    let disk = filled(1, LogOptions::default());
    let name = segments(&disk).remove(0);
    let mut content = disk.content(&name).unwrap();
    content[8] = 2;
    disk.set_content(&name, content);
    match open(&disk, LogOptions::default()) {
        Err(LogError::NewerFormat { segment, version }) => assert_eq!((segment, version), (name, 2)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn ring_and_segments_read_alike() {
    let disk = filled(100, small());
    let (cold, _) = open(&disk, small()).unwrap();
    let everything = read_all(&cold, usize::MAX).unwrap();
    drop(cold);
    for recent_bytes_max in [0, 3_000, usize::MAX] {
        let disk = FaultyDisk::new();
        let (log, _) = open(&disk, LogOptions { recent_bytes_max, ..small() }).unwrap();
        runtime().block_on(async {
            for number in 0..100 {
                log.append("ann", vec![change(number)]).await.unwrap();
            }
        });
        for bytes_max in [1, 500, 5_000] {
            assert_eq!(read_all(&log, bytes_max).unwrap(), everything);
        }
        for after in 0..100 {
            let records = log.read(Offset::new(1, after), 400).unwrap();
            assert_eq!(records[0].event.offset, Offset::new(1, after + 1));
        }
    }
}

#[test]
fn a_full_disk_takes_nothing_and_goes_on_once_there_is_room() {
    for room in 0..400 {
        let disk = filled(3, small());
        let (log, _) = open(&disk, small()).unwrap();
        disk.set_capacity(Some(disk.bytes() + room));
        let runtime = runtime();
        let mut taken = 3;
        loop {
            match runtime.block_on(log.append("", vec![change(taken)])) {
                Ok(_) => taken += 1,
                Err(LogError::DiskFull) => break,
                Err(other) => panic!("{other}"),
            }
        }
        assert_eq!(log.head().seq, taken as u64);
        disk.set_capacity(None);
        runtime.block_on(log.append("", vec![change(taken)])).unwrap();
        let expected: Vec<usize> = (0..=taken).collect();
        assert_eq!(numbers(&log), expected);
        drop(log);
        let (log, torn) = open(&disk.power_on(room), small()).unwrap();
        assert_eq!((numbers(&log), torn), (expected, None), "room {room}");
    }
}

#[test]
fn after_a_failed_fsync_nothing_is_acknowledged_ever_and_reads_go_on() {
    let disk = filled(3, LogOptions::default());
    let log = open_whole(&disk);
    let runtime = runtime();
    disk.fail_sync(0);
    for _ in 0..2 {
        let outcome = runtime.block_on(log.append("", vec![change(3)]));
        assert!(matches!(outcome, Err(LogError::Stopped(_))), "{outcome:?}");
    }
    assert!(log.stopped().is_some());
    assert_eq!((log.head(), numbers(&log)), (Offset::new(1, 3), vec![0, 1, 2]));
    assert!(matches!(runtime.block_on(log.failure()), LogError::Stopped(_)));
    log.probe().unwrap();
    drop(log);
    for disk in [disk.after_kill(), disk.power_on(1)] {
        let (log, torn) = open(&disk, LogOptions::default()).unwrap();
        assert_eq!((numbers(&log), torn), (vec![0, 1, 2], None), "what is in doubt is not believed");
        assert_eq!(runtime.block_on(log.append("", vec![change(3)])).unwrap(), Offset::new(1, 4));
    }
}

#[test]
fn a_segment_that_is_not_durable_is_not_left_to_be_found() {
    let runtime = runtime();
    let mut begun = 0;
    // Of so many, some are the first of a segment.
    for taken in 40..60 {
        let disk = filled(taken, small());
        let before = segments(&disk);
        let (log, _) = open(&disk, small()).unwrap();
        let opened = disk.counts().syncs;
        runtime.block_on(log.append("", vec![change(taken)])).unwrap();
        begun += usize::from(disk.counts().syncs > opened + 1);

        let disk = filled(taken, small());
        let (log, _) = open(&disk, small()).unwrap();
        disk.fail_sync(0);
        assert!(runtime.block_on(log.append("", vec![change(taken)])).is_err());
        let disk = disk.after_kill();
        assert_eq!(segments(&disk), before);
        let (log, torn) = open(&disk, small()).unwrap();
        assert_eq!((numbers(&log), torn), ((0..taken).collect(), None));
    }
    assert!(begun > 0);
}

#[test]
fn after_a_failed_write_the_log_stops() {
    let disk = filled(3, LogOptions::default());
    let log = open_whole(&disk);
    disk.fail_append(0);
    let outcome = runtime().block_on(log.append("", vec![change(3)]));
    assert!(matches!(outcome, Err(LogError::Stopped(_))), "{outcome:?}");
    drop(log);
    let (log, torn) = open(&disk.after_kill(), LogOptions::default()).unwrap();
    assert_eq!((numbers(&log), torn), (vec![0, 1, 2], None));
}

#[test]
fn replicated_events_are_taken_in_order_and_once() {
    let disk = FaultyDisk::new();
    let log = open_whole(&disk);
    let take = |from: u64, to: u64, epoch| {
        let records = (from..=to).map(|seq| replicated(epoch, seq)).collect();
        runtime().block_on(log.append_replicated(records))
    };
    assert!(matches!(take(2, 3, 1), Err(LogError::Gap { .. })), "a new log begins with event 1");
    assert_eq!(take(1, 5, 1).unwrap(), Offset::new(1, 5));
    assert_eq!(take(3, 7, 1).unwrap(), Offset::new(1, 7), "what is here is skipped");
    assert_eq!(take(1, 2, 1).unwrap(), Offset::new(1, 7));
    match take(9, 9, 1) {
        Err(LogError::Gap { head, found }) => {
            assert_eq!((head, found), (Offset::new(1, 7), Offset::new(1, 9)));
        }
        other => panic!("{other:?}"),
    }
    assert!(matches!(take(5, 5, 2), Err(LogError::Gap { .. })), "another history of event 5");
    assert_eq!(take(8, 9, 2).unwrap(), Offset::new(2, 9), "a new epoch goes on counting");
    assert!(matches!(take(10, 10, 1), Err(LogError::Gap { .. })), "an epoch never returns");
    assert!(log.contains(Offset::new(1, 7)) && !log.contains(Offset::new(1, 8)));
    assert_eq!(runtime().block_on(log.append("", vec![change(10)])).unwrap(), Offset::new(2, 10));
    drop(log);
    let log = open_whole(&disk);
    assert_eq!((log.head(), numbers(&log)), (Offset::new(2, 10), (1..=10).collect()));
}

#[test]
fn a_reset_log_begins_after_its_snapshot() {
    let disk = filled(40, small());
    let (log, _) = open(&disk, small()).unwrap();
    let runtime = runtime();
    runtime.block_on(log.reset(Offset::new(3, 500), 77)).unwrap();
    let begun = (Offset::new(3, 500), Offset::new(3, 500), 77);
    assert_eq!((log.head(), log.floor(), log.bytes()), begun);
    assert!(matches!(log.read(Offset::new(1, 10), 1), Err(LogError::BelowFloor { .. })));
    drop(log);
    let (log, _) = open(&disk, small()).unwrap();
    assert_eq!((log.head(), log.floor(), log.bytes()), begun);
    runtime.block_on(log.append_replicated(vec![replicated(4, 501)])).unwrap();
    assert_eq!(numbers(&log), [501]);
    runtime.block_on(log.reset(Offset::new(3, 20), 0)).unwrap();
    runtime.block_on(log.append_replicated(vec![replicated(3, 21)])).unwrap();
    assert_eq!((log.floor(), numbers(&log)), (Offset::new(3, 20), vec![21]), "backwards too");
    runtime.block_on(log.reset(Offset::ZERO, 0)).unwrap();
    drop(log);
    assert_eq!(open_whole(&disk.power_on(1)).head(), Offset::ZERO);
}

#[test]
fn a_hundred_thousand_events_reopen_in_less_time_than_a_restart_may_take() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = Log::open(dir.path(), LogOptions::default(), clock()).unwrap();
    let runtime = runtime();
    for batch in 0..20 {
        let changes = (batch * 5_000..(batch + 1) * 5_000).map(change).collect();
        runtime.block_on(log.append("ann", changes)).unwrap();
    }
    drop(log);
    let start = Instant::now();
    let (log, _) = Log::open(dir.path(), LogOptions::default(), clock()).unwrap();
    assert_eq!(log.head(), Offset::new(1, 100_000));
    // Well under a second where nobody else is at work.
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
}

#[test]
fn what_lies_beside_the_segments_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    writeln!(std::fs::File::create(dir.path().join("1-1.log")).unwrap(), "not ours").unwrap();
    let (log, _) = Log::open(dir.path(), LogOptions::default(), clock()).unwrap();
    assert_eq!(log.head(), Offset::ZERO);
    assert!(dir.path().join("1-1.log").exists());
}
