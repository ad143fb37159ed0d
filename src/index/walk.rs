//! Walking all rows, to know the sums of the buckets and to find rows that were lost.

use outport_proto::{Offset, statehash::StateHash};

use super::{Index, IndexError, Shared, key, lock, row::State, tx};

/// Rows read while writers wait.
const PAGE_ROWS: usize = 128;

/// What to make of rows that do not add up to the state hash that events led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowsDiffer {
    /// The hash becomes that of the rows, so that whoever compares it sees that they are wrong. For
    /// an index that can be repaired from another.
    Believe,
    /// The index is damaged. For one that nobody has a better copy of: its log leads to a new one.
    Refuse,
}

/// What a walk found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalkReport {
    /// Rows it met: tags, manifests and links.
    pub rows: u64,
    /// Everything up to here was applied when it was through.
    pub at: Offset,
    /// Whether the rows add up to the state hash that events led to.
    pub adds_up: bool,
}

/// How far a walk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Walked {
    /// No walk is under way.
    Idle,
    /// It met this many rows so far.
    On(u64),
    /// It is through.
    Done(WalkReport),
}

/// What walks came to since the index was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// Walks that came to their end.
    pub walks: u64,
    /// Rows met.
    pub rows: u64,
    /// Walks whose rows did not add up.
    pub mismatches: u64,
    /// Rows met by the walk under way.
    pub under_way: Option<u64>,
    /// The newest that came to its end.
    pub last: Option<WalkReport>,
}

/// The sums of all buckets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BucketSums {
    /// They hold at this offset.
    pub at: Offset,
    /// In the order of the buckets.
    pub sums: Vec<[u8; 32]>,
}

impl Index {
    /// Begins to walk all rows; one that is under way begins anew.
    ///
    /// # Errors
    /// When the index is closed.
    pub fn begin_walk(&self) -> Result<(), IndexError> {
        let mut writer = self.shared.writer_if_open()?;
        let at = writer.stored.applied;
        writer.tally.begin_walk(at);
        Ok(())
    }

    /// Goes on with the walk under way, about `rows` rows. Writers wait for a small part of that
    /// at most.
    ///
    /// # Errors
    /// [`IndexError::Damaged`] when a row is, or when the rows differ and that is refused.
    pub fn walk_on(&self, rows: usize, differ: RowsDiffer) -> Result<Walked, IndexError> {
        let mut walked = Walked::Idle;
        for _ in 0..rows.div_ceil(PAGE_ROWS) {
            walked = self.shared.noting_damage(self.shared.walk_page(differ))?;
            if !matches!(walked, Walked::On(_)) {
                break;
            }
        }
        Ok(walked)
    }

    /// The sums of all buckets; walks all rows first when they are not known.
    ///
    /// # Errors
    /// As [`Index::walk_on`].
    pub fn bucket_sums(&self, differ: RowsDiffer) -> Result<BucketSums, IndexError> {
        loop {
            {
                let writer = self.shared.writer_if_open()?;
                if let Some(known) = writer.tally.known() {
                    let sums = known.all().map(|sum| sum.bytes()).collect();
                    return Ok(BucketSums { at: writer.stored.applied, sums });
                }
            }
            if self.is_deferring() {
                let reason = "the index is catching up".to_owned();
                return Err(IndexError::Database { action: "add up the index", reason });
            }
            if self.walk_on(PAGE_ROWS, differ)? == Walked::Idle {
                self.begin_walk()?;
            }
        }
    }

    /// What walks came to.
    pub fn verified(&self) -> Verified {
        *lock(&self.shared.verified)
    }

    /// The state hash at an offset that was applied lately, by events that came one by one.
    pub fn state_hash_at(&self, offset: Offset) -> Option<[u8; 32]> {
        lock(&self.shared.shown).hash_at(offset)
    }
}

impl Shared {
    fn walk_page(&self, differ: RowsDiffer) -> Result<Walked, IndexError> {
        let mut writer = self.writer_if_open()?;
        let Some(walk) = writer.tally.walk() else { return Ok(Walked::Idle) };
        if let Some(table) = walk.table() {
            let page = self.read(|kv| kv.page(&key::table(table), &walk.cursor, PAGE_ROWS))?;
            walk.take_in(&page, page.len() < PAGE_ROWS)?;
            let mut verified = lock(&self.verified);
            verified.rows += page.len() as u64;
            verified.under_way = Some(walk.rows);
            return Ok(Walked::On(walk.rows));
        }
        if self.overlay().is_some() {
            // What is found can be acted upon once the database is what readers see.
            return Ok(Walked::On(walk.rows));
        }
        let rows = writer.tally.end_walk();
        let stored = writer.stored;
        let total = writer.tally.known().map_or(StateHash::EMPTY, |known| known.total());
        let adds_up = total.bytes() == stored.hash;
        let report = WalkReport { rows, at: stored.applied, adds_up };
        self.note(report);
        if !adds_up && differ == RowsDiffer::Refuse {
            writer.tally.forget();
            return Err(IndexError::Damaged(format!(
                "its {rows} rows are not those that the events up to {} led to",
                stored.applied
            )));
        }
        if !adds_up {
            let state = State { hash: total.bytes(), ..stored };
            self.base.write([tx::state_row(&state)].into())?;
            writer.stored = state;
            *lock(&self.below.state) = state;
            lock(&self.shown).replace(state);
        }
        Ok(Walked::Done(report))
    }

    fn note(&self, report: WalkReport) {
        let mut verified = lock(&self.verified);
        verified.walks += 1;
        verified.mismatches += u64::from(!report.adds_up);
        verified.under_way = None;
        verified.last = Some(report);
        drop(verified);
        if !report.adds_up {
            let WalkReport { rows, at, .. } = report;
            tracing::error!(rows, %at, "the rows of the index are not those that events led to");
        }
    }
}
