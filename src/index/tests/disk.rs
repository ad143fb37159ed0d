//! Closing, killing, damaging and opening again.

use std::{fs, mem, path::Path};

use outport_proto::Offset;

use super::{
    super::{IndexError, Opened},
    *,
};

fn open(dir: &Path) -> (Index, Opened) {
    Index::open(dir, options()).unwrap()
}

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let (entry, to) = entry.map(|entry| (entry.path(), to.join(entry.file_name()))).unwrap();
        if entry.is_dir() {
            copy_dir(&entry, &to);
        } else {
            fs::copy(entry, to).unwrap();
        }
    }
}

/// An index of a thousand tags, closed.
fn closed_index(dir: &Path) {
    let (index, opened) = open(dir);
    assert!(matches!(opened, Opened::Empty(_)));
    let tags: Vec<String> = (0..1000).map(|number| number.to_string()).collect();
    index.apply(&events(tags.iter().map(|name| put("r", name, &[name])))).unwrap();
    assert_eq!(index.close().unwrap(), Offset::new(1, 1000));
    let after = index.apply(&[event(1001, put("r", "late", &["late"]))]);
    assert!(matches!(after, Err(IndexError::Database { .. })), "closed");
    assert_eq!(pull(&index, "r", "7").as_deref(), Some("manifest 7"), "still readable");
}

#[test]
fn a_closed_index_opens_where_it_was() {
    let dir = tempfile::tempdir().unwrap();
    closed_index(dir.path());
    let (index, opened) = open(dir.path());
    assert_eq!(opened, Opened::Ready(Offset::new(1, 1000)));
    assert_eq!(index.applied(), Offset::new(1, 1000));
    assert_eq!(pull(&index, "r", "999").as_deref(), Some("manifest 999"));
    assert_eq!(index.tags(&repo("r"), None, usize::MAX).unwrap().len(), 1000);
    let hash = index.state_hash();
    drop(index);
    let (index, opened) = open(dir.path());
    assert_eq!(opened, Opened::Ready(Offset::new(1, 1000)), "dropped is closed");
    assert_eq!(index.state_hash(), hash);
}

#[test]
fn a_killed_index_opens_at_or_after_its_last_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let killed = tempfile::tempdir().unwrap();
    let (index, _) = open(dir.path());
    let names: Vec<String> = (0..600).map(|number| number.to_string()).collect();
    let history = events(names.iter().map(|name| put("r", name, &[name, "latest"])));
    for (step, part) in history.chunks(50).enumerate() {
        index.apply(part).unwrap();
        if step == 6 {
            assert_eq!(index.checkpoint().unwrap(), Offset::new(1, 350));
        }
    }
    copy_dir(dir.path(), killed.path());
    let (after, opened) = open(killed.path());
    let Opened::Ready(applied) = opened else { panic!("{opened:?}") };
    assert!((350..=600).contains(&applied.seq), "{applied}");
    // Everything up to there and nothing else, then the log's tail makes it whole.
    let there = usize::try_from(applied.seq).unwrap();
    let expected = in_memory();
    expected.apply(&history[..there]).unwrap();
    assert_eq!(rows(&after), rows(&expected));
    after.apply(&history[there..]).unwrap();
    assert_eq!(rows(&after), rows(&index));
    mem::forget(index);
}

#[test]
fn what_is_doubtful_is_set_aside_and_the_index_starts_empty() {
    type Harm = fn(&Path);
    let harms: [(&str, Harm); 6] = [
        ("marker missing", |dir| fs::remove_file(dir.join("checkpoint")).unwrap()),
        ("marker damaged", |dir| fs::write(dir.join("checkpoint"), b"nonsense").unwrap()),
        ("database cut short", |dir| {
            let db = fs::OpenOptions::new().write(true).open(dir.join("db/db")).unwrap();
            db.set_len(4096).unwrap();
        }),
        ("database zeroed", |dir| {
            let len = fs::metadata(dir.join("db/db")).unwrap().len();
            fs::write(dir.join("db/db"), vec![0; usize::try_from(len).unwrap()]).unwrap();
        }),
        ("configuration damaged", |dir| fs::write(dir.join("db/conf"), b"segment_size: 17\n").unwrap()),
        ("another boot, not shut down cleanly", |dir| {
            use super::super::home::Home;
            let home = Home::of_another_boot(dir);
            home.checkpoint(super::super::open::NOTHING, false, || Ok(())).unwrap();
        }),
    ];
    let whole = tempfile::tempdir().unwrap();
    closed_index(whole.path());
    for (what, harm) in harms {
        let dir = tempfile::tempdir().unwrap();
        copy_dir(whole.path(), dir.path());
        harm(dir.path());
        let (index, opened) = open(dir.path());
        assert!(matches!(opened, Opened::Empty(_)), "{what}: {opened:?}");
        assert_eq!(index.applied(), Offset::ZERO, "{what}");
        assert_eq!(index.tags(&repo("r"), None, 5).unwrap(), [], "{what}");
        assert!(dir.path().join("doubtful-1").is_dir(), "{what}");
        apply(&index, 1, put("r", "new", &["t"]));
        drop(index);
        assert_eq!(open(dir.path()).1, Opened::Ready(Offset::new(1, 1)), "{what}: usable from then on");
    }
}

#[test]
fn a_row_found_damaged_makes_the_next_start_rebuild() {
    let dir = tempfile::tempdir().unwrap();
    let (index, _) = open(dir.path());
    apply(&index, 1, put("r", "a", &["t"]));
    let (key, value) = rows(&index).into_iter().find(|(key, _)| key[0] == b't').unwrap();
    let mut flipped = value.to_vec();
    flipped[3] ^= 16;
    index.shared.base.write([(key, Some(flipped.into()))].into()).unwrap();
    assert!(matches!(index.manifest(&repo("r"), &by_tag("t")), Err(IndexError::Damaged(_))));
    drop(index);
    let (_, opened) = open(dir.path());
    assert!(matches!(opened, Opened::Empty(_)), "{opened:?}");
}

#[test]
fn an_index_in_use_is_not_taken_away() {
    let dir = tempfile::tempdir().unwrap();
    let (index, _) = open(dir.path());
    apply(&index, 1, put("r", "a", &["t"]));
    assert!(matches!(Index::open(dir.path(), options()), Err(IndexError::Database { .. })));
    assert!(pull(&index, "r", "t").is_some());
}

#[test]
fn a_cleared_index_is_empty_also_after_it_is_opened_again() {
    let dir = tempfile::tempdir().unwrap();
    closed_index(dir.path());
    let (index, _) = open(dir.path());
    assert_eq!(pull(&index, "r", "7").as_deref(), Some("manifest 7"));
    index.clear().unwrap();
    assert_eq!((index.applied(), pull(&index, "r", "7")), (Offset::ZERO, None));
    assert_eq!(index.state_hash(), in_memory().state_hash());
    index.apply(&events([put("r", "new", &["new"])])).unwrap();
    drop(index);
    let (index, opened) = open(dir.path());
    assert_eq!(opened, Opened::Ready(Offset::new(1, 1)));
    assert_eq!(pull(&index, "r", "new").as_deref(), Some("manifest new"));
    assert_eq!(pull(&index, "r", "7"), None);
}
