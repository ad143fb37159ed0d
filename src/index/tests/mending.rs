//! One of two indexes goes wrong, is found out, and is made equal to the other.

use outport_proto::{snapshot::Entry, statehash::StateHash};
use proptest::{collection::vec, prelude::*};

use super::{properties::change, *};
use crate::index::{Correction, IndexError, RowsDiffer, Walked, corrections, kv::Batch};

/// What two sites do over the wire, without one: returns how many entries were corrected.
fn repair(site: &Index, primary: &Index) -> Result<usize, IndexError> {
    let theirs = primary.bucket_sums(RowsDiffer::Refuse)?;
    let own = site.bucket_sums(RowsDiffer::Believe)?;
    assert_eq!(own.at, theirs.at);
    let differ = (0..).zip(own.sums.iter().zip(&theirs.sums)).filter(|(_, (own, theirs))| own != theirs);
    let differ: Vec<u16> = differ.map(|(bucket, _)| bucket).collect();
    let (own, theirs) =
        (site.buckets(&differ, RowsDiffer::Believe)?, primary.buckets(&differ, RowsDiffer::Refuse)?);
    let mut count = 0;
    for (own, theirs) in own.iter().zip(theirs) {
        let mut corrections = corrections(&own.entries, theirs.entries);
        for correction in &mut corrections {
            if let Correction::Put { entry: Entry::Manifest { manifest, .. }, is_known: false } = correction {
                let record = primary.manifest_record(&manifest.repo, &manifest.digest)?;
                manifest.bytes = record.and_then(|record| record.bytes);
            }
        }
        count += corrections.len();
        assert!(site.mend(own, (theirs.since, theirs.until), &corrections)?, "nothing moved");
    }
    Ok(count)
}

fn walk(index: &Index, differ: RowsDiffer) -> Result<Walked, IndexError> {
    index.begin_walk()?;
    loop {
        match index.walk_on(1, differ)? {
            Walked::On(_) => {}
            end => return Ok(end),
        }
    }
}

fn adds_up(index: &Index) -> bool {
    let Ok(Walked::Done(report)) = walk(index, RowsDiffer::Believe) else { panic!("no end of the walk") };
    report.adds_up
}

fn some_events() -> Vec<Arc<Event>> {
    events((0..300).map(|number: u64| match number % 3 {
        0 => link("team/app", &number.to_string()),
        1 => put("team/app", &number.to_string(), &[&format!("v{number}")]),
        _ => put("other", &number.to_string(), &["latest"]),
    }))
}

/// Every row but that of the state, which is of the same facts.
fn facts(index: &Index) -> Vec<Row> {
    let mut rows = rows(index);
    rows.retain(|(key, _)| *key != super::super::key::state());
    rows
}

#[test]
fn a_lost_an_added_and_a_changed_tag_and_link_are_found_and_set_right() {
    let events = some_events();
    let at = events.len() as u64;
    for (what, wrong) in [
        ("a lost tag", delete_tag("team/app", "v1")),
        ("a lost link", delete_link("team/app", "0")),
        ("a lost manifest", delete_manifest("other", "2")),
        ("a lost repository", delete_repo("other")),
        ("an added link", link("team/app", "not pushed")),
        ("an added tag", put("team/app", "not pushed", &["wrong"])),
        ("a changed tag", put("team/app", "not pushed", &["v1"])),
    ] {
        let (site, primary) = (in_memory(), in_memory());
        site.apply(&events).unwrap();
        primary.apply(&events).unwrap();
        let truth = primary.state_hash();
        assert_eq!(repair(&site, &primary).unwrap(), 0);
        assert_eq!(site.state_hash(), truth);

        apply(&site, at, wrong);
        assert_ne!(site.state_hash(), truth, "{what}");
        assert_eq!(site.state_hash().1, truth.1, "{what}");
        assert!(repair(&site, &primary).unwrap() > 0, "{what}");
        assert_eq!(site.state_hash(), truth, "{what}");
        assert_eq!(pull(&site, "team/app", "v1"), pull(&primary, "team/app", "v1"), "{what}");
        assert_eq!(pull(&site, "other", "latest"), pull(&primary, "other", "latest"), "{what}");
        assert!(adds_up(&site), "{what}");
        assert_eq!(repair(&site, &primary).unwrap(), 0, "{what}");

        // Life goes on alike.
        for index in [&site, &primary] {
            apply(index, at + 1, put("team/app", "new", &["v1", "wrong"]));
            apply(index, at + 2, delete_manifest("team/app", "1"));
        }
        assert_eq!(site.state_hash(), primary.state_hash(), "{what}");
    }
}

#[test]
fn a_row_lost_by_the_database_is_found_by_the_walk_and_never_spread() {
    let events = some_events();
    let dir = tempfile::tempdir().unwrap();
    let (site, _) = Index::open(dir.path(), options()).unwrap();
    let primary = in_memory();
    for index in [&site, &primary] {
        index.apply(&events).unwrap();
        assert!(adds_up(index));
        let key = super::super::key::repo_tag(super::super::key::Table::Tag, &repo("team/app"), "v1");
        index.shared.base.write(Batch::from([(key, None)])).unwrap();
        assert_eq!(pull(index, "team/app", "v1"), None);
    }
    assert_eq!(site.state_hash(), primary.state_hash(), "what is kept with every change does not see it");

    let refused = walk(&primary, RowsDiffer::Refuse);
    assert!(matches!(refused, Err(IndexError::Damaged(_))), "{refused:?}");

    let good = in_memory();
    good.apply(&events).unwrap();
    assert!(!adds_up(&site));
    assert_ne!(site.state_hash(), good.state_hash(), "from here on everybody can see it");
    assert!(adds_up(&site));
    assert_eq!(repair(&site, &good).unwrap(), 1);
    assert_eq!(site.state_hash(), good.state_hash());
    assert_eq!(facts(&site), facts(&good));
    site.close().unwrap();
    drop(site);
    let (again, _) = Index::open(dir.path(), options()).unwrap();
    assert_eq!(again.state_hash(), good.state_hash());
}

#[test]
fn a_bucket_that_lost_a_row_since_the_walk_is_not_compared() {
    let (site, primary) = (in_memory(), in_memory());
    for index in [&site, &primary] {
        index.apply(&some_events()).unwrap();
        assert!(adds_up(index));
        let key = super::super::key::repo_tag(super::super::key::Table::Tag, &repo("team/app"), "v1");
        index.shared.base.write(Batch::from([(key, None)])).unwrap();
    }
    let named = Digest::sha256(b"");
    let bucket =
        outport_proto::statehash::Fact::Tag { repo: &repo("team/app"), tag: &tag("v1"), digest: &named };
    let bucket = bucket.bucket();
    assert!(matches!(primary.buckets(&[bucket], RowsDiffer::Refuse), Err(IndexError::Damaged(_))));
    assert!(matches!(site.buckets(&[bucket], RowsDiffer::Believe), Err(IndexError::Database { .. })));
    // The next look walks first.
    site.bucket_sums(RowsDiffer::Believe).unwrap();
    assert_ne!(site.state_hash(), primary.state_hash());
    assert!(site.buckets(&[bucket], RowsDiffer::Believe).is_ok());
}

#[test]
fn a_bucket_that_changed_since_it_was_read_is_left_alone() {
    let (site, primary) = (in_memory(), in_memory());
    let events = some_events();
    let at = events.len() as u64;
    for index in [&site, &primary] {
        index.apply(&events).unwrap();
    }
    apply(&site, at, delete_tag("team/app", "v1"));
    let named = Digest::sha256(b"");
    let fact =
        outport_proto::statehash::Fact::Tag { repo: &repo("team/app"), tag: &tag("v1"), digest: &named };
    let bucket = [fact.bucket()];
    let [own] = &site.buckets(&bucket, RowsDiffer::Believe).unwrap()[..] else { unreachable!() };
    let [theirs] = &primary.buckets(&bucket, RowsDiffer::Refuse).unwrap()[..] else { unreachable!() };
    let span = (theirs.since, theirs.until);
    let corrections = corrections(&own.entries, theirs.entries.clone());
    assert_eq!(corrections.len(), 1);
    // Read before an event that deletes the tag for all: it must not come back.
    for index in [&site, &primary] {
        apply(index, at + 1, delete_tag("team/app", "v1"));
    }
    assert!(!site.mend(own, span, &corrections).unwrap());
    assert_eq!(site.state_hash(), primary.state_hash());
    // An answer from before something that this site has already: not comparable either.
    apply(&site, at + 2, put("team/app", "new", &["v1"]));
    let [own] = &site.buckets(&bucket, RowsDiffer::Believe).unwrap()[..] else { unreachable!() };
    assert!(!site.mend(own, span, &corrections).unwrap());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn whatever_goes_wrong_in_one_of_two_indexes_is_repaired(
        history in vec(change(), 1..60),
        wrong in vec(change(), 0..12),
        lost in vec(any::<prop::sample::Index>(), 0..4),
        later in vec(change(), 0..20),
        on_disk in any::<bool>(),
    ) {
        let history = events(history);
        let at = history.len() as u64;
        let dir = tempfile::tempdir().unwrap();
        let site = if on_disk { Index::open(dir.path(), options()).unwrap().0 } else { in_memory() };
        let primary = in_memory();
        site.apply(&history).unwrap();
        primary.apply(&history).unwrap();
        for change in wrong {
            apply(&site, at, change);
        }
        for index in lost {
            let mut rows = rows(&site);
            rows.retain(|(key, _)| b"lmt".contains(&key[0]));
            if !rows.is_empty() {
                let (key, _) = index.get(&rows);
                site.shared.base.write(Batch::from([(key.clone(), None)])).unwrap();
            }
        }
        let _ = adds_up(&site);
        repair(&site, &primary).unwrap();
        prop_assert_eq!(site.state_hash(), primary.state_hash());
        prop_assert!(adds_up(&site));
        for (seq, change) in (at + 1..).zip(later) {
            let event = event(seq, change);
            site.apply(&[Arc::clone(&event)]).unwrap();
            primary.apply(&[event]).unwrap();
            prop_assert_eq!(site.state_hash(), primary.state_hash());
        }
    }

    #[test]
    fn sums_found_while_events_are_applied_are_those_of_the_rows(
        changes in vec(change(), 2..80),
        start in any::<prop::sample::Index>(),
        steps in vec(0..4_usize, 40),
    ) {
        let events = events(changes);
        let index = in_memory();
        let mut at = start.index(events.len());
        index.apply(&events[..at]).unwrap();
        index.begin_walk().unwrap();
        let mut steps = steps.into_iter();
        let end = loop {
            let walked = index.walk_on(1, RowsDiffer::Refuse).unwrap();
            if !matches!(walked, Walked::On(_)) {
                break walked;
            }
            let end = (at + steps.next().unwrap_or(0)).min(events.len());
            index.apply(&events[at..end]).unwrap();
            at = end;
        };
        prop_assert!(matches!(end, Walked::Done(report) if report.adds_up), "{end:?}");
        index.apply(&events[at..]).unwrap();
        let known = index.bucket_sums(RowsDiffer::Refuse).unwrap();
        prop_assert!(adds_up(&index));
        prop_assert_eq!(&index.bucket_sums(RowsDiffer::Refuse).unwrap(), &known, "walked anew");
        let mut total = StateHash::EMPTY;
        known.sums.iter().for_each(|sum| total.include(&StateHash::from_bytes(sum)));
        prop_assert_eq!((total.bytes(), known.at), index.state_hash());
    }
}
