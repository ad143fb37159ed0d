//! Listing, paging, and what readers see while things change.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use super::*;

fn names(repos: &[RepoName]) -> Vec<&str> {
    repos.iter().map(RepoName::as_str).collect()
}

#[test]
fn tags_are_listed_in_lexical_order_and_paged() {
    let index = in_memory();
    apply(&index, 1, put("r", "a", &["b", "a", "B", "_", "1.10", "1.9", "a-", "aa"]));
    apply(&index, 2, put("r/s", "a", &["never"]));
    apply(&index, 3, put("r-s", "a", &["never"]));
    let sorted = ["1.10", "1.9", "B", "_", "a", "a-", "aa", "b"];
    let list = |last: Option<&str>, limit| {
        let tags = index.tags(&repo("r"), last, limit).unwrap();
        tags.iter().map(|tag| tag.as_str().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(list(None, usize::MAX), sorted);
    for size in 1..=9 {
        let mut paged: Vec<String> = Vec::new();
        loop {
            let page = list(paged.last().map(String::as_str), size);
            assert!(page.len() <= size);
            if page.is_empty() {
                break;
            }
            paged.extend(page);
        }
        assert_eq!(paged, sorted, "pages of {size}");
    }
    assert_eq!(list(Some("a"), 2), ["a-", "aa"]);
    assert_eq!(list(Some("Z"), 1), ["_"], "`last` need not exist");
    assert_eq!(list(Some("\u{fffd}"), 1), [""; 0]);
    assert_eq!(list(None, 0), [""; 0]);
    assert_eq!(index.tags(&repo("none"), None, 5).unwrap(), []);
}

#[test]
fn repositories_are_those_that_hold_anything() {
    let index = in_memory();
    let changes = [
        put("a", "m", &["t"]),
        put("a/b", "m", &[]),
        link("a-b", "x"),
        put("a0", "m", &["t"]),
        put("gone", "m", &["t"]),
        link("gone", "x"),
        put("z", "m", &["t"]),
        delete_manifest("gone", "m"),
        delete_link("gone", "x"),
    ];
    index.apply(&events(changes)).unwrap();
    let list = |last, limit| index.repositories(last, limit).unwrap();
    assert_eq!(names(&list(None, 100)), ["a", "a-b", "a/b", "a0", "z"]);
    assert_eq!(names(&list(None, 2)), ["a", "a-b"]);
    assert_eq!(names(&list(Some("a-b"), 2)), ["a/b", "a0"]);
    assert_eq!(names(&list(Some("a1"), 2)), ["z"], "`last` need not exist");
    assert_eq!(names(&list(Some("a\0\u{fffd}"), 1)), ["a-b"], "nor be a name");
    assert_eq!(names(&list(Some("z"), 2)), [""; 0]);
    for (name, exists) in [("a", true), ("a-b", true), ("a/b", true), ("gone", false), ("aa", false)] {
        assert_eq!(index.has_repository(&repo(name)).unwrap(), exists, "{name}");
    }
}

#[test]
fn a_damaged_row_is_said_to_be_damaged() {
    let index = in_memory();
    apply(&index, 1, put("r", "a", &["t"]));
    for (at, (key, value)) in rows(&index).into_iter().enumerate() {
        let mut flipped = value.to_vec();
        flipped[0] ^= 1;
        index.shared.base.write([(key.clone(), Some(flipped.into()))].into()).unwrap();
        let damaged = |result| matches!(result, Err(super::super::IndexError::Damaged(_)));
        match key[0] {
            b't' | b'm' | b'u' => {
                assert!(damaged(index.manifest(&repo("r"), &by_tag("t")).map(|_| ())), "row {at}");
            }
            _ => {}
        }
        if key[0] == b't' {
            assert!(damaged(index.tags(&repo("r"), None, 9).map(|_| ())), "row {at}");
            assert!(damaged(index.repositories(None, 9).map(|_| ())), "row {at}");
        }
        if matches!(key[0], b't' | b'm' | b'u') {
            assert!(damaged(index.dump(1000, &mut |_| Ok(())).map(|_| ())), "row {at}");
        }
        index.shared.base.write([(key, Some(value))].into()).unwrap();
    }
    assert_eq!(pull(&index, "r", "t").as_deref(), Some("manifest a"), "whole again");
}

#[test]
fn a_warm_manifest_is_served_without_the_store_until_it_changes() {
    let index = in_memory();
    apply(&index, 1, put("r", "a", &["t"]));
    assert!(pull(&index, "r", "t").is_some());
    // What only the store knows of is not seen by a warm read.
    let tag_row = rows(&index).into_iter().find(|(key, _)| key[0] == b't').unwrap();
    index.shared.base.write([(tag_row.0.clone(), None)].into()).unwrap();
    assert!(pull(&index, "r", "t").is_some(), "warm");
    index.shared.base.write([(tag_row.0, Some(tag_row.1))].into()).unwrap();
    apply(&index, 2, put("r", "b", &["t"]));
    assert_eq!(pull(&index, "r", "t").as_deref(), Some("manifest b"));
    let Change::ManifestPut(mut again) = put("r", "b", &[]) else { unreachable!() };
    again.media_type = "application/other".into();
    apply(&index, 3, Change::ManifestPut(again));
    let found = index.manifest(&repo("r"), &by_tag("t")).unwrap().unwrap();
    assert_eq!(&*found.media_type, "application/other");
    apply(&index, 4, delete_repo("r"));
    assert_eq!(pull(&index, "r", "t"), None);
}

/// A tag is moved back and forth, what it named before being deleted: at every instant it names
/// something, and never anything older than what `applied` had promised before the read.
#[test]
fn readers_never_miss_a_tag_that_moves_nor_see_it_go_back() {
    readers_follow_a_moving_tag(&in_memory(), 1000);
    let dir = tempfile::tempdir().unwrap();
    readers_follow_a_moving_tag(&Index::open(dir.path(), options()).unwrap().0, 300);
}

fn readers_follow_a_moving_tag(index: &Index, turns: u64) {
    apply(index, 1, put("r", "0", &["t"]));
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let promised = index.applied().seq;
                    let seen = pull(index, "r", "t").expect("the tag is always there");
                    let seen: u64 = seen.strip_prefix("manifest ").unwrap().parse().unwrap();
                    assert!(2 * seen + 1 >= promised.saturating_sub(1), "saw {seen} after {promised}");
                }
            });
        }
        for turn in 1..turns {
            apply(index, 2 * turn, put("r", &turn.to_string(), &["t"]));
            apply(index, 2 * turn + 1, delete_manifest("r", &(turn - 1).to_string()));
        }
        done.store(true, Ordering::Relaxed);
    });
}
