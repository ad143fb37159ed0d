//! How long what was deleted is remembered.
//!
//! A tombstone is needed for as long as something older than it may still be applied. Events come
//! in order, so that is true only of events that are applied again: those behind the place where a
//! snapshot was begun, or from which the log is read anew, and never those below the log's floor. So
//! what is below it *and* old may go; every site decides that for itself, because tombstones are
//! no facts: the state hash knows nothing of them.
//!
//! Rows know offsets and no times. Day marks join them: the first event of each day, by the
//! primary's clock, leaves a row that says which event came before it.

use std::time::Duration;

use outport_proto::{Event, Offset, Timestamp};

use super::{
    Index, IndexError,
    key::{self, Table},
    kv::Rows,
    row,
    tx::Tx,
};

const DAY: Duration = Duration::from_secs(24 * 3600);
/// Rows looked at between two writes: readers and events wait no longer than for these.
const PAGE_ROWS: usize = 512;

/// The tables of tombstones, in the order of [`Tombstones`].
pub(super) const TABLES: [Table; 4] =
    [Table::DeadRepository, Table::DeadManifest, Table::DeadLink, Table::DeadTag];

/// How many there are, of each table: where there are none, nobody has to look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tombstones(pub(super) [u64; 4]);

impl Tombstones {
    pub(super) const NONE: Self = Self([0; 4]);

    fn of(&mut self, key: &[u8]) -> Option<&mut u64> {
        let at = TABLES.iter().position(|table| key.first() == Some(&(*table as u8)))?;
        self.0.get_mut(at)
    }

    /// Whether there may be one under `key`.
    pub(super) fn may_have(mut self, key: &[u8]) -> bool {
        self.of(key).is_none_or(|count| *count > 0)
    }

    /// One was added under `key`.
    pub(super) fn added(&mut self, key: &[u8]) {
        if let Some(count) = self.of(key) {
            *count += 1;
        }
    }

    /// One was removed under `key`.
    pub(super) fn removed(&mut self, key: &[u8]) {
        if let Some(count) = self.of(key) {
            *count = count.saturating_sub(1);
        }
    }
}

/// Which day a time is of.
fn day(time: Timestamp) -> u64 {
    time.as_micros() / DAY.as_micros() as u64
}

impl Tx<'_> {
    /// Leaves a mark where a day begins.
    pub(super) fn note_day(&mut self, event: &Event) {
        let day = day(event.time);
        if day > self.day {
            self.put(key::day(day), &row::encode_offset(self.applied));
            self.day = day;
        }
    }

    fn forget_tombstone(&mut self, key: Vec<u8>, through: Offset) -> Result<u64, IndexError> {
        let is_past = self.dead(&key)?.is_some_and(|dead| dead <= through);
        if is_past {
            self.unbury(key);
        }
        Ok(is_past.into())
    }
}

impl Index {
    /// How many tombstones there are.
    pub fn tombstones(&self) -> u64 {
        super::lock(&self.shared.shown).state.tombstones.0.iter().sum()
    }

    /// The newest place that is older than `age` by a clock that shows `now`, as far as the events
    /// tell that were applied here: to the day.
    ///
    /// # Errors
    /// As every read.
    pub fn place_before(&self, now: Timestamp, age: Duration) -> Result<Option<Offset>, IndexError> {
        let micros = u64::try_from(age.as_micros()).unwrap_or(u64::MAX);
        let last = day(Timestamp::from_micros(now.as_micros().saturating_sub(micros)));
        self.shared.read(|kv| {
            let mut newest = None;
            for row in Rows::all(kv, key::table(Table::Day)) {
                let (key, value) = row?;
                if key > key::day(last) {
                    break;
                }
                newest = Some(row::decode_offset(&row::unseal(&key, &value)?)?);
            }
            Ok(newest)
        })
    }

    /// Forgets the tombstones of events up to `through`, and the marks of days before it. Nothing
    /// that is applied from here on, or applied again, may be older than that. Returns how many went.
    ///
    /// # Errors
    /// When the database fails; some may be gone then.
    pub fn forget_tombstones(&self, through: Offset) -> Result<u64, IndexError> {
        let mut forgotten = 0;
        for table in TABLES {
            forgotten += self.forget(table, |tx, key| tx.forget_tombstone(key, through))?;
        }
        self.forget(Table::Day, |tx, key| {
            if tx.dead(&key)?.is_some_and(|before| before < through) {
                tx.remove(key);
            }
            Ok(0)
        })?;
        Ok(forgotten)
    }

    fn forget(
        &self,
        table: Table,
        forget: impl Fn(&mut Tx<'_>, Vec<u8>) -> Result<u64, IndexError>,
    ) -> Result<u64, IndexError> {
        let prefix = key::table(table);
        let (mut from, mut forgotten) = (prefix.clone(), 0);
        loop {
            let page = self.shared.read(|kv| kv.page(&prefix, &from, PAGE_ROWS))?;
            let Some((last, _)) = page.last() else { return Ok(forgotten) };
            from.clone_from(last);
            from.push(0);
            let keys: Vec<Vec<u8>> = page.into_iter().map(|(key, _)| key).collect();
            let mut of_page = 0;
            self.shared.change(|tx| {
                of_page = 0;
                for key in keys {
                    of_page += forget(tx, key)?;
                }
                Ok(())
            })?;
            forgotten += of_page;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::{
        super::tests::{
            delete_link, delete_manifest, delete_repo, delete_tag, event, in_memory, link, put, repo, tag,
        },
        *,
    };

    #[test]
    fn old_tombstones_go_and_newer_ones_stay() {
        let index = in_memory();
        let changes = [
            put("app", "a", &["1", "2"]),
            link("app", "a"),
            delete_tag("app", "1"),
            delete_link("app", "a"),
            delete_manifest("app", "a"),
            link("other", "a"),
            delete_repo("other"),
        ];
        for (seq, change) in (1..).zip(changes) {
            index.apply(&[event(seq, change)]).unwrap();
        }
        let hash = index.state_hash();
        assert_eq!(index.tombstones(), 5, "two tags, a link, a manifest, a repository");
        assert_eq!(index.forget_tombstones(Offset::new(1, 4)).unwrap(), 3, "the second tag's is of event 1");
        assert_eq!((index.tombstones(), index.state_hash()), (2, hash));
        index.apply(&[event(5, put("app", "a", &["1"]))]).unwrap();
        assert_eq!(index.tag(&repo("app"), &tag("1")).unwrap(), None, "what is kept still wins");
        assert_eq!(index.forget_tombstones(Offset::new(1, 7)).unwrap(), 3);
        assert_eq!((index.tombstones(), index.state_hash().0), (0, hash.0));
    }

    #[test]
    fn what_comes_back_ends_its_tombstone() {
        let index = in_memory();
        let changes = [link("app", "a"), delete_link("app", "a"), link("app", "a"), delete_link("app", "b")];
        for (seq, change) in (1..).zip(changes) {
            index.apply(&[event(seq, change)]).unwrap();
        }
        assert_eq!(index.tombstones(), 1);
    }

    #[test]
    fn a_place_is_found_by_its_age_to_the_day() {
        let index = in_memory();
        assert_eq!(index.place_before(Timestamp::from_secs(1 << 40), Duration::ZERO).unwrap(), None);
        let secs = |days: u64, hours: u64| Timestamp::from_secs((days * 24 + hours) * 3600);
        for (seq, time) in [(1, secs(10, 1)), (2, secs(10, 2)), (3, secs(11, 1)), (4, secs(14, 0))] {
            let event = Event { time, ..(*event(seq, link("app", &seq.to_string()))).clone() };
            index.apply(&[Arc::new(event)]).unwrap();
        }
        let place = |now, days| index.place_before(now, DAY * days).unwrap().map(|offset| offset.seq);
        assert_eq!(place(secs(14, 5), 0), Some(3), "all that came before today");
        assert_eq!(place(secs(14, 5), 1), Some(2), "the 11th began behind it");
        assert_eq!(place(secs(14, 5), 3), Some(2));
        assert_eq!(place(secs(14, 5), 4), Some(0));
        assert_eq!(place(secs(14, 5), 5), None);
        index.forget_tombstones(Offset::new(1, 2)).unwrap();
        assert_eq!(place(secs(14, 5), 4), None, "marks go with what they were for");
        assert_eq!(place(secs(14, 5), 3), Some(2));
    }
}
