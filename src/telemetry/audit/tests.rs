use std::{
    fs, io,
    sync::{Mutex, mpsc},
};

use serde_json::Value;

use super::*;

/// Hands lines over to a test.
struct Wire(mpsc::Sender<String>);

impl Sink for Wire {
    fn take(&mut self, _: &[Line], lines: &[u8]) -> io::Result<()> {
        let text = String::from_utf8(lines.to_vec()).unwrap();
        text.lines().for_each(|line| _ = self.0.send(line.to_owned()));
        Ok(())
    }
}

/// Takes nothing until it is let go.
struct Stuck(Arc<Mutex<()>>);

impl Sink for Stuck {
    fn take(&mut self, _: &[Line], _: &[u8]) -> io::Result<()> {
        drop(self.0.lock());
        Ok(())
    }
}

fn kept(sink: impl Sink + 'static) -> (Audit, AuditMetrics) {
    let metrics = AuditMetrics::new(&mut Registry::default());
    (Audit::start("mumbai", vec![Box::new(sink)], metrics.clone()).unwrap(), metrics)
}

fn tell(audit: &Audit, detail: &str) {
    audit.tell(&Record { detail: Some(detail), ..Record::at(SystemTime::now(), Kind::Admin) });
}

fn lines(path: &std::path::Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap();
    assert!(text.is_empty() || text.ends_with('\n'), "a line is cut");
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test]
async fn what_is_noted_deep_below_stands_in_the_line() {
    let (sent, received) = mpsc::channel();
    let (audit, _) = kept(Wire(sent));
    let mut work = std::pin::pin!(audit.noting(async {
        note(|notes| notes.subject = Some("ana".into()));
        tokio::task::yield_now().await;
        note(|notes| notes.rule = Some("3a"));
        7
    }));
    assert_eq!(work.as_mut().await, 7);
    let notes = noted(work);
    note(|notes| notes.subject = Some("nobody is asked here".into()));
    let agent = http::HeaderValue::from_bytes(b"evil\t\xff\"agent").unwrap();
    let headers = http::HeaderMap::from_iter([(http::header::USER_AGENT, agent)]);
    let begun = SystemTime::UNIX_EPOCH + Duration::from_micros(1_767_323_045_000_007);
    let telling = audit.begin(&Record {
        subject: notes.subject.as_deref(),
        rule: notes.rule,
        repository: Some(&"team/app".parse().unwrap()),
        reference: Some((&"latest".parse::<outport_proto::Reference>().unwrap()).into()),
        client: Some([10, 0, 0, 1].into()),
        user_agent: Record::agent_in(&headers),
        trace_id: Some([0xab; 16]),
        ..Record::at(begun, Kind::Pull)
    });
    let ended = Ended { bytes: 12, ending: Ending::Cut, took: Duration::from_micros(1500) };
    telling.unwrap().end(Some(ended));
    let line: Value = serde_json::from_str(&received.recv().unwrap()).unwrap();
    for (key, value) in [
        ("time", "2026-01-02T03:04:05.000007Z"),
        ("ending", "cut"),
        ("kind", "pull"),
        ("site", "mumbai"),
        ("subject", "ana"),
        ("rule", "3a"),
        ("repository", "team/app"),
        ("reference", "latest"),
        ("client", "10.0.0.1"),
        ("user_agent", "evil\t\u{fffd}\"agent"),
        ("trace_id", "abababababababababababababababab"),
    ] {
        assert_eq!(line[key], value, "{line}");
    }
    assert_eq!((&line["seconds"], &line["bytes"]), (&0.0015.into(), &12.into()));
    assert_eq!(line.as_object().unwrap().len(), 13, "what is not known is left out: {line}");
}

#[test]
fn whoever_tells_never_waits_and_what_is_dropped_is_counted() {
    let gate = Arc::new(Mutex::new(()));
    let held = gate.lock().unwrap();
    let (audit, metrics) = kept(Stuck(Arc::clone(&gate)));
    // What waited when the writer came may be in its hands.
    let told = 2 * writer::QUEUE_MAX + 10_000;
    (0..told).for_each(|_| tell(&audit, ""));
    let dropped = metrics.dropped.get();
    assert!((10_000..=writer::QUEUE_MAX as u64 + 10_000).contains(&dropped), "{dropped}");
    assert_eq!(metrics.told[Kind::Admin as usize].get() + dropped, told as u64);
    drop(held);
    audit.flush(Duration::from_secs(20));
    tell(&audit, "");
    assert_eq!(metrics.dropped.get(), dropped, "it goes on");
}

#[test]
fn a_file_is_put_aside_by_size_and_only_so_many_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.log");
    let other = dir.path().join("audit.log.bak");
    fs::write(&other, "somebody else's").unwrap();
    let hour = Duration::from_secs(3600);
    let options = FileOptions { path: path.clone(), bytes_max: 1000, age_max: hour, keep: 2 };
    let (audit, _) = kept(RotatingFile::open(options).unwrap());
    for number in 0..40 {
        tell(&audit, &number.to_string());
        audit.flush(hour);
    }
    let mut files: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.retain(|file| *file != other);
    assert_eq!(files.len(), 3, "{files:?}");
    assert!(files.iter().all(|file| fs::metadata(file).unwrap().len() <= 1000));
    let numbers: Vec<u64> = files[1..]
        .iter()
        .chain([&path])
        .flat_map(|file| lines(file))
        .map(|line| line["detail"].as_str().unwrap().parse().unwrap())
        .collect();
    let first = numbers[0];
    assert_eq!(numbers, (first..40).collect::<Vec<_>>(), "nothing is lost or out of order");
    assert!(other.exists());
}

#[test]
fn a_file_that_somebody_takes_away_is_begun_anew_and_one_from_before_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.log");
    let hour = Duration::from_secs(3600);
    let options = FileOptions { path: path.clone(), bytes_max: 1 << 20, age_max: hour, keep: 2 };
    let (audit, _) = kept(RotatingFile::open(options.clone()).unwrap());
    tell(&audit, "first");
    audit.flush(hour);
    fs::rename(&path, dir.path().join("taken")).unwrap();
    tell(&audit, "second");
    audit.flush(hour);
    let (again, _) = kept(RotatingFile::open(options).unwrap());
    tell(&again, "third");
    again.flush(hour);
    let details: Vec<Value> = lines(&path).iter().map(|line| line["detail"].clone()).collect();
    assert_eq!(details, ["second", "third"]);
}

#[test]
fn a_disk_that_is_full_costs_records_and_never_half_a_line() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.log");
    // Writing there fails with "no space left".
    std::os::unix::fs::symlink("/dev/full", &path).unwrap();
    let hour = Duration::from_secs(3600);
    let options = FileOptions { path: path.clone(), bytes_max: 1 << 20, age_max: hour, keep: 2 };
    let (audit, metrics) = kept(RotatingFile::open(options).unwrap());
    tell(&audit, "lost");
    audit.flush(hour);
    assert_eq!(metrics.dropped.get(), 1);
    fs::remove_file(&path).unwrap();
    tell(&audit, "kept");
    audit.flush(hour);
    assert_eq!(lines(&path).len(), 1);
    assert_eq!(metrics.dropped.get(), 1);
}

#[test]
fn nothing_is_kept_unless_somebody_wants_it() {
    let audit = Audit::default();
    assert!(!audit.is_kept() && audit.begin(&Record::at(SystemTime::now(), Kind::Pull)).is_none());
    audit.flush(Duration::ZERO);
}
