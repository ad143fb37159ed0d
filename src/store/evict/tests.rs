use std::{path::Path, sync::Arc, thread};

use outport_proto::{Algorithm, Timestamp};

use super::{
    super::{StoreOptions, count},
    *,
};
use crate::clock::ManualClock;

const MIB: usize = 1024 * 1024;

struct Bed {
    store: Store,
    clock: Arc<ManualClock>,
    /// What ranks as eager.
    eager: Arc<Mutex<BTreeSet<Digest>>>,
}

fn bed(root: &Path, limit: u64) -> Bed {
    let clock = ManualClock::at(Timestamp::from_secs(1_000_000));
    let options = StoreOptions { limit_bytes: Some(limit), clock: clock.clone(), witness: None };
    let (store, _) = Store::open_uncounted(root, options).unwrap();
    count(&Arc::downgrade(&store.inner)).unwrap();
    let eager = Arc::<Mutex<BTreeSet<Digest>>>::default();
    let of = Arc::clone(&eager);
    store
        .let_go_by(Arc::new(move |digest| if lock(&of).contains(digest) { Rank::Eager } else { Rank::Lazy }));
    Bed { store, clock, eager }
}

fn content(seed: u8, size: usize) -> Vec<u8> {
    vec![seed; size]
}

impl Bed {
    fn put(&self, seed: u8, size: usize) -> Result<Digest, StoreError> {
        let content = content(seed, size);
        let digest = Digest::sha256(&content);
        let mut ingest = self.store.ingest_of(Algorithm::Sha256, size as u64)?;
        ingest.write(&content)?;
        ingest.commit(&digest)?;
        Ok(digest)
    }

    fn later(&self) {
        let now = Timestamp::from_micros(self.now_micros() + 3_600_000_000);
        self.clock.set(now);
    }

    fn now_micros(&self) -> u64 {
        crate::clock::Clock::now(&*self.clock).as_micros()
    }

    fn holds(&self, digest: &Digest) -> bool {
        self.store.size(digest).unwrap().is_some()
    }
}

#[test]
fn what_was_used_longest_ago_makes_room() {
    let dir = tempfile::tempdir().unwrap();
    let bed = bed(dir.path(), 3 * MIB as u64);
    let mut digests = Vec::new();
    for seed in 0..3 {
        digests.push(bed.put(seed, MIB).unwrap());
        bed.later();
    }
    // Used again, though not hot any more.
    bed.store.inner.hot.forget(&digests[0]);
    drop(bed.store.get(&digests[0]).unwrap().unwrap());
    bed.store.inner.hot.forget(&digests[0]);
    bed.later();
    digests.push(bed.put(3, MIB).unwrap());
    let held: Vec<bool> = digests.iter().map(|digest| bed.holds(digest)).collect();
    assert_eq!(held, [true, false, true, true]);
    assert_eq!(bed.store.stats().bytes, 3 * MIB as u64);
    assert_eq!(bed.store.displaced(), 0);
    assert_eq!(bed.store.inner.metrics.evicted_blobs.get(), 1);
}

#[test]
fn what_is_copied_ahead_goes_last_and_is_counted_until_it_is_back() {
    let dir = tempfile::tempdir().unwrap();
    let bed1 = bed(dir.path(), 2 * MIB as u64);
    let eager = bed1.put(0, MIB).unwrap();
    lock(&bed1.eager).insert(eager);
    bed1.later();
    let lazy = bed1.put(1, MIB).unwrap();
    bed1.later();
    assert!(!bed1.store.has_room(1));
    let second = bed1.put(2, MIB).unwrap();
    assert!(bed1.holds(&eager) && !bed1.holds(&lazy), "the older one is eager");
    lock(&bed1.eager).insert(second);
    bed1.put(3, MIB).unwrap();
    assert!(!bed1.holds(&eager) && bed1.holds(&second));
    assert!(bed1.store.is_displaced(&eager));
    assert_eq!(bed1.store.displaced(), 1);
    drop(bed1);

    let bed2 = bed(dir.path(), 2 * MIB as u64);
    assert_eq!(bed2.store.displaced(), 1, "a restart does not make it whole");
    lock(&bed2.eager).extend([eager, second]);
    bed2.store.review_displaced();
    assert_eq!(bed2.store.displaced(), 1, "it is wanted");
    lock(&bed2.eager).remove(&eager);
    bed2.store.review_displaced();
    assert_eq!(bed2.store.displaced(), 0, "it was deleted");
}

#[test]
fn what_somebody_reads_or_relies_on_stays() {
    let dir = tempfile::tempdir().unwrap();
    let bed = bed(dir.path(), 3 * MIB as u64);
    let read = bed.put(0, MIB).unwrap();
    let leased = bed.put(1, MIB).unwrap();
    let reading = bed.store.get(&read).unwrap().unwrap();
    let lease = bed.store.lease(&leased);
    bed.later();
    let third = bed.put(2, MIB).unwrap();
    bed.put(3, MIB).unwrap();
    assert!(bed.holds(&read) && bed.holds(&leased) && !bed.holds(&third));
    // Nothing may go: then the newcomer is not kept.
    let growing = bed.store.ingest_of(Algorithm::Sha256, MIB as u64).unwrap();
    assert!(matches!(bed.put(5, MIB), Err(StoreError::Full { .. })));
    drop((growing, reading, lease));
    bed.put(5, MIB).unwrap();
    assert!(matches!(bed.put(6, 4 * MIB), Err(StoreError::Full { .. })), "larger than the limit");
    assert!(bed.store.stats().bytes <= 3 * MIB as u64);
}

#[test]
fn the_limit_holds_however_many_come_at_once() {
    const LIMIT: u64 = 4 * MIB as u64;
    let dir = tempfile::tempdir().unwrap();
    let bed = bed(dir.path(), LIMIT);
    thread::scope(|scope| {
        for thread in 0..8 {
            let bed = &bed;
            scope.spawn(move || {
                for round in 0..20 {
                    match bed.put(thread * 20 + round, MIB / 2) {
                        // All the room is promised to others.
                        Ok(_) | Err(StoreError::Full { .. }) => {}
                        Err(error) => panic!("{error}"),
                    }
                    assert!(bed.store.stats().bytes <= LIMIT);
                }
            });
        }
    });
    assert_eq!(bed.store.inner.evictor.reserved.load(Ordering::SeqCst), 0);
    assert!(bed.store.inner.metrics.evicted_blobs.get() > 0);
}

#[test]
fn a_full_disk_evicts_and_the_write_goes_on_where_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let bed = bed(dir.path(), u64::MAX);
    let old = bed.put(0, MIB).unwrap();
    let content = content(7, MIB);
    let digest = Digest::sha256(&content);
    let mut ingest = bed.store.ingest_of(Algorithm::Sha256, MIB as u64).unwrap();
    ingest.write(&content[..MIB / 2]).unwrap();
    bed.store.full_once();
    ingest.write(&content[MIB / 2..]).unwrap();
    ingest.commit(&digest).unwrap();
    assert!(bed.holds(&digest) && !bed.holds(&old));
    // With nothing left that may go it is full after all.
    let _reading = bed.store.get(&digest).unwrap().unwrap();
    bed.store.fill_up_after(0);
    assert!(matches!(bed.put(9, 10), Err(StoreError::Full { .. })));
}
